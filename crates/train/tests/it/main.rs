//! A training run as its user sees it: it learns, it resumes, and what it writes is what it trained.
#![allow(clippy::unwrap_used)]

use candle_core::{DType, Device, Tensor};
use serde_json::{Map, Value, json};
use skipbench_model::{Backend, CausalLm, Decoder, KvCache, ModelConfig, Part, Span};
use skipbench_strategy::LayerSet;
use skipbench_train::objective::Step;
use skipbench_train::{
    Architecture, Batch, Depths, Export, Fill, LayerUse, LossOn, ModelShape, Net, OptimizerConfig,
    Pair, Schedule, TrainConfig, Trainer, train_tokenizer,
};
use std::collections::HashMap;
use std::path::Path;
use tokenizers::Tokenizer;

const SEED: u64 = 7;

fn shape() -> ModelShape {
    ModelShape {
        vocab_size: 300,
        d_model: 32,
        n_layers: 4,
        n_heads: 4,
        n_kv_heads: 2,
        d_ff: 48,
        rope_theta: 10_000.0,
        norm_eps: 1e-5,
        max_positions: 32,
        tied_head: false,
    }
}

fn load(dir: &Path) -> skipbench_train::Result<Net> {
    let config = ModelConfig::open(dir).unwrap();
    let architecture = Architecture::of_checkpoint(config, None, None)?;
    Net::load(&architecture, dir, None)
}

/// A head that is not the embedding is not thrown away because a config ties them.
#[test]
fn a_tied_head_that_differs_is_refused() {
    let shipped = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../data/checkpoints/adapted");
    let dir = tempfile::tempdir().unwrap();
    for name in ["config.json", "model.safetensors"] {
        std::fs::copy(shipped.join(name), dir.path().join(name)).unwrap();
    }
    let load = || load(dir.path());
    assert!(load().is_ok());
    let config = dir.path().join("config.json");
    let text = std::fs::read_to_string(&config).unwrap();
    let tied = text.replace("word_embeddings\": false", "word_embeddings\": true");
    std::fs::write(&config, tied).unwrap();
    let message = load().err().unwrap().to_string();
    for part in ["tie_word_embeddings", "lm_head.weight", "set it to false"] {
        assert!(message.contains(part), "{message}");
    }
}

fn config(steps: u64) -> TrainConfig {
    TrainConfig {
        steps,
        batch_size: 16,
        seed: SEED,
        loss_on: LossOn::Response,
        accumulate: 1,
        recompute: false,
        checkpoint_every: 7,
        optimizer: OptimizerConfig {
            learning_rate: 5e-3,
            schedule: Schedule::Cosine,
            floor: 0.1,
            warm_up_steps: steps.min(10),
            weight_decay: 0.01,
            beta1: 0.9,
            beta2: 0.95,
            clip_norm: 1.0,
            ema_decay: 0.9,
        },
    }
}

/// Answers repeat the prompt backwards, so they need attention to every one of its tokens.
fn pairs(step: u64, count: u64) -> Vec<Pair> {
    (0..count)
        .map(|row| {
            let mut state = step * count + row + 1;
            let symbols: Vec<u32> = (0..3)
                .map(|_| {
                    state = state
                        .wrapping_mul(6_364_136_223_846_793_005)
                        .wrapping_add(1);
                    3 + (state >> 33) as u32 % 6
                })
                .collect();
            let prompt = std::iter::once(1).chain(symbols.iter().copied()).collect();
            let response = symbols.iter().rev().copied().chain([2]).collect();
            Pair { prompt, response }
        })
        .collect()
}

fn context(data: &str) -> Map<String, Value> {
    Map::from_iter([("data".to_owned(), json!([data]))])
}

fn start(dir: &Path, steps: u64) -> Trainer {
    let net = Net::new(&shape(), SEED).unwrap();
    Trainer::new(dir, &config(steps), &context("reversed"), net).unwrap()
}

/// The same layers for every token, the prompts' too.
fn everywhere(layers: LayerSet, pairs: &[Pair]) -> Step {
    let depths = Depths::of_rows(pairs, vec![layers; pairs.len()]);
    Step::plain(Some(depths), shape().n_layers)
}

/// Trains until the end, or until `stop_after` updates; gives the losses. Every third step runs without layer 2.
fn train(trainer: &mut Trainer, stop_after: Option<u64>) -> Vec<f32> {
    let mut losses = Vec::new();
    while !trainer.is_done() && stop_after != Some(trainer.step()) {
        let pairs = pairs(trainer.step(), 16);
        let step = match trainer.step() % 3 {
            2 => everywhere(LayerSet::from_layers([0, 1, 3]), &pairs),
            _ => Step::plain(None, shape().n_layers),
        };
        let batch = Batch::new(&pairs, LossOn::Response);
        let report = trainer.update(&batch, &step).unwrap();
        losses.push(report.loss);
    }
    losses
}

fn tokenizer() -> Tokenizer {
    let text = "the quick brown fox jumps over the lazy dog".to_owned();
    train_tokenizer(std::iter::once(text), 300).unwrap()
}

fn export(trainer: &mut Trainer, dir: &Path) -> skipbench_train::Result<()> {
    let model = Export::Model {
        tokenizer: &tokenizer(),
        dtype: DType::F32,
    };
    trainer.export(dir, &model)
}

/// Weights of the folder that a finished training exports.
fn exported(trainer: &mut Trainer, dir: &Path) -> Vec<u8> {
    export(trainer, dir).unwrap();
    std::fs::read(dir.join("model.safetensors")).unwrap()
}

#[test]
fn it_learns_a_task_that_needs_attention() {
    let dir = tempfile::tempdir().unwrap();
    let losses = train(&mut start(dir.path(), 300), None);
    let last = losses[losses.len() - 20..].iter().sum::<f32>() / 20.0;
    // Three of six symbols by chance, and the certain end of sequence: (3 ln 6) / 4.
    assert!(
        losses[0] > 4.0 && last < 0.2,
        "{} -> {last}; chance is 1.34",
        losses[0]
    );
}

#[test]
fn a_run_that_was_cut_off_ends_with_the_same_bytes() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let mut whole = start(&path("whole"), 20);
    let losses = train(&mut whole, None);
    let whole = exported(&mut whole, &path("whole-out"));

    let mut stopped = start(&path("stopped"), 20);
    train(&mut stopped, Some(10));
    stopped.save().unwrap();
    let mut resumed = start(&path("stopped"), 20);
    assert_eq!(resumed.step(), 10);
    assert_eq!(train(&mut resumed, None), losses[10..]);
    assert!(exported(&mut resumed, &path("stopped-out")) == whole);

    // Killed at step 12: the checkpoint of step 7 is the newest, and the log loses what came behind it.
    train(&mut start(&path("killed"), 20), Some(12));
    let mut resumed = start(&path("killed"), 20);
    assert_eq!(resumed.step(), 7);
    assert_eq!(train(&mut resumed, None), losses[7..]);
    assert!(exported(&mut resumed, &path("killed-out")) == whole);
    let log = std::fs::read_to_string(path("killed").join("loss.csv")).unwrap();
    let cell = |line: &str, column| line.split(',').nth(column).unwrap().to_owned();
    let column = |column| log.lines().skip(1).map(move |line| cell(line, column));
    let wanted: Vec<String> = (1..=20).map(|step| step.to_string()).collect();
    assert_eq!(column(0).collect::<Vec<_>>(), wanted);
    let layers: Vec<String> = (0..20)
        .map(|step| if step % 3 == 2 { "3" } else { "4" }.to_owned())
        .collect();
    assert_eq!(column(5).collect::<Vec<_>>(), layers);
}

/// Losses and weights of a few updates under another config.
fn updates(dir: &Path, change: impl Fn(&mut TrainConfig)) -> (Vec<f32>, HashMap<String, Tensor>) {
    let mut config = config(6);
    change(&mut config);
    let net = Net::new(&shape(), SEED).unwrap();
    let net = net.recomputing(config.recompute).unwrap();
    let mut trainer = Trainer::new(dir, &config, &context("reversed"), net).unwrap();
    let losses = train(&mut trainer, None);
    let out = dir.join("out");
    exported(&mut trainer, &out);
    let weights = out.join("model.safetensors");
    (
        losses,
        candle_core::safetensors::load(weights, &Device::Cpu).unwrap(),
    )
}

#[test]
fn an_update_in_parts_is_that_of_the_whole_batch() {
    let folder = tempfile::tempdir().unwrap();
    let dir = |name: &str| folder.path().join(name);
    let (losses, weights) = updates(&dir("whole"), |_| {});
    let in_parts = updates(&dir("parts"), |config| config.accumulate = 3);
    let again = updates(&dir("again"), |config| config.recompute = true);
    for (name, (found_losses, found)) in [("parts", in_parts), ("again", again)] {
        for (found, wanted) in found_losses.iter().zip(&losses) {
            assert!((found - wanted).abs() < 1e-3, "{name}: {found} {wanted}");
        }
        for (tensor, wanted) in &weights {
            let apart = (&found[tensor] - wanted).unwrap().abs().unwrap();
            let most = apart.flatten_all().unwrap().max(0).unwrap();
            let most = most.to_scalar::<f32>().unwrap();
            // AdamW makes steps of 0.005 of gradients whose signs alone are sure.
            assert!(most < 5e-3, "{name}: {tensor} {most}");
        }
    }
}

#[test]
fn only_a_finished_network_is_exported_and_then_the_run_is_over() {
    let folder = tempfile::tempdir().unwrap();
    let (dir, out) = (folder.path().join("training"), folder.path());
    let mut trainer = start(&dir, 8);
    train(&mut trainer, Some(7));
    let message = export(&mut trainer, out).unwrap_err().to_string();
    assert!(message.contains("step 7 of 8"), "{message}");
    assert!(!out.join("config.json").exists() && Trainer::is_unfinished(&dir));
    assert_eq!(Trainer::finished(&dir).unwrap(), None);

    train(&mut trainer, None);
    let weights = exported(&mut trainer, out);
    assert!(!Trainer::is_unfinished(&dir));
    let architecture = Architecture::of_shape(&shape()).unwrap();
    let settings =
        skipbench_train::settings_of_run(&config(8), &architecture, &context("reversed")).unwrap();
    assert_eq!(Trainer::finished(&dir).unwrap(), Some(settings));

    // Killed between the last step and the end of the export: what was there is gone, and the rest is done again.
    let mut again = start(&dir, 8);
    assert_eq!(again.step(), 0);
    train(&mut again, None);
    std::fs::remove_file(out.join("model.safetensors")).unwrap();
    let mut again = start(&dir, 8);
    assert!(again.is_done());
    assert!(exported(&mut again, out) == weights);
}

#[test]
fn an_export_that_fails_leaves_the_old_network_as_it_was() {
    let folder = tempfile::tempdir().unwrap();
    let (dir, out) = (folder.path().join("training"), folder.path().join("out"));
    let mut trainer = start(&dir, 2);
    train(&mut trainer, None);
    std::fs::create_dir(&out).unwrap();
    for name in ["config.json", "model.safetensors"] {
        std::fs::write(out.join(name), "old").unwrap();
    }
    // The last file but the weights cannot be staged.
    let blocked = format!("tokenizer.json.{}.tmp", std::process::id());
    std::fs::create_dir(out.join(&blocked)).unwrap();
    export(&mut trainer, &out).unwrap_err();
    let mut names: Vec<String> = std::fs::read_dir(&out)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    assert_eq!(
        names,
        ["config.json", "model.safetensors", blocked.as_str()]
    );
    for name in ["config.json", "model.safetensors"] {
        assert_eq!(std::fs::read_to_string(out.join(name)).unwrap(), "old");
    }
    assert!(Trainer::is_unfinished(&dir));
    std::fs::remove_dir(out.join(&blocked)).unwrap();
    assert_ne!(exported(&mut trainer, &out), b"old");
}

#[test]
fn a_checkpoint_that_does_not_belong_or_is_damaged() {
    let dir = tempfile::tempdir().unwrap();
    train(&mut start(dir.path(), 20), Some(7));
    let error = |config: &TrainConfig, data: &str| {
        let net = Net::new(&shape(), SEED).unwrap();
        Trainer::new(dir.path(), config, &context(data), net)
            .err()
            .map(|error| error.to_string())
    };
    let mut often = config(20);
    often.checkpoint_every = 1;
    assert_eq!(error(&often, "reversed"), None);
    let mut other = config(21);
    other.optimizer.learning_rate = 0.25;
    let message = error(&other, "other").unwrap();
    for named in [
        "`train.steps` was 20 and is 21",
        "`train.optimizer.learning-rate` was 0.005 and is 0.25",
        "`data[0]` was \"reversed\" and is \"other\"",
    ] {
        assert!(message.contains(named), "{message}");
    }
    let path = dir.path().join("checkpoint.safetensors");
    let whole = std::fs::read(&path).unwrap();
    let zeros = vec![0; whole.len()];
    for damaged in [&whole[..0], &whole[..20], &whole[..whole.len() - 1], &zeros] {
        std::fs::write(&path, damaged).unwrap();
        let message = error(&config(20), "reversed").unwrap();
        assert!(
            message.contains("checkpoint.safetensors") && message.contains("delete it"),
            "{message}"
        );
    }
    // What a power loss left beside a whole checkpoint does not matter.
    std::fs::write(&path, &whole).unwrap();
    std::fs::write(path.with_extension("safetensors.12.tmp"), &whole[..99]).unwrap();
    assert_eq!(start(dir.path(), 20).step(), 7);
}

/// Weights by name.
fn weights(path: &Path) -> HashMap<String, Vec<f32>> {
    let values = |tensor: Tensor| tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    candle_core::safetensors::load(path, &Device::Cpu)
        .unwrap()
        .into_iter()
        .map(|(name, tensor)| (name, values(tensor)))
        .collect()
}

/// What is cut out of every token is not trained, bit for bit, though weights decay and are averaged; all else is.
#[test]
fn sub_layers_that_no_token_runs_keep_their_weights() {
    let folder = tempfile::tempdir().unwrap();
    let export = |name: &str, steps: u64, layers: LayerSet| {
        let mut trainer = start(&folder.path().join(name), steps);
        while !trainer.is_done() {
            let pairs = pairs(trainer.step(), 4);
            let batch = Batch::new(&pairs, LossOn::Response);
            let report = trainer.update(&batch, &everywhere(layers, &pairs)).unwrap();
            for (layer, ran) in report.ran.iter().enumerate() {
                let tokens = |runs: bool| if runs { batch.tokens() } else { 0 };
                let wanted = LayerUse {
                    attention: tokens(layers.has_attention(layer)),
                    mlp: tokens(layers.has_mlp(layer)),
                };
                assert_eq!(*ran, wanted, "layer {layer}");
            }
        }
        let out = folder.path().join(format!("{name}-out"));
        exported(&mut trainer, &out);
        weights(&out.join("model.safetensors"))
    };
    let mut layers = LayerSet::from_layers([0, 1, 2]);
    layers.remove_attention(1);
    layers.remove_mlp(2);
    let (short, long) = (export("short", 1, layers), export("long", 5, layers));
    for (name, before) in &short {
        let is_cut = ["1.self_attn", "1.input", "2.mlp", "2.post", "3."]
            .iter()
            .any(|part| name.contains(&format!("layers.{part}")));
        assert_eq!(*before == long[name], is_cut, "{name}");
    }
}

#[test]
fn pairs_that_do_not_fit_are_refused() {
    let net = Net::new(&shape(), SEED).unwrap();
    let error = |prompt: Vec<u32>, response: Vec<u32>| {
        let batch = Batch::new(&[Pair { prompt, response }], LossOn::All);
        net.losses(&batch, &Step::plain(None, 4))
            .unwrap_err()
            .to_string()
    };
    let message = error(vec![1; 30], vec![2; 10]);
    assert!(
        message.contains("40") && message.contains("32"),
        "{message}"
    );
    for (prompt, response) in [(vec![1, 300], vec![2]), (vec![1], vec![300])] {
        let message = error(prompt, response);
        assert!(
            message.contains("token 300") && message.contains("vocabulary of 300"),
            "{message}"
        );
    }
}

/// The layers that a rule gives to prompts, and to the state that predicts response token `t`.
struct Rule {
    prompt: LayerSet,
    response: fn(usize) -> LayerSet,
    fill: Fill,
}

impl Rule {
    fn depths(&self, pairs: &[Pair]) -> Depths {
        let sets = |pair: &Pair| (1..pair.response.len()).map(self.response).collect();
        Depths {
            prompts: vec![self.prompt; pairs.len()],
            responses: pairs.iter().map(sets).collect(),
            fill: self.fill,
        }
    }
}

/// Runs the sub-layers of `layers` on `hidden` as the engine does.
fn run_layers(
    model: &dyn CausalLm,
    layers: &LayerSet,
    mut hidden: Tensor,
    cache: &mut KvCache,
    span: Span,
) -> Tensor {
    for layer in layers.iter() {
        let part = match (layers.has_attention(layer), layers.has_mlp(layer)) {
            (true, true) => Part::Whole,
            (true, false) => Part::Attention,
            _ => Part::Mlp,
        };
        hidden = model
            .layer_part(layer, part, &hidden, cache, &[span])
            .unwrap();
    }
    hidden
}

/// Summed negative log-likelihood of a response as the engine computes it: the prompt through its layers, then token by
/// token through those of the rule; under `deferred` on keys and values of all layers.
fn decoded_loss(model: &dyn CausalLm, pair: &Pair, rule: &Rule) -> f64 {
    let n_layers = model.sizes().n_layers;
    let mut loss = 0.0;
    let mut cache = model.new_cache(1, vec![32; n_layers]).unwrap();
    for (t, &target) in pair.response.iter().enumerate() {
        let layers = match t {
            0 => rule.prompt,
            _ => (rule.response)(t),
        };
        let text: Vec<u32> = pair
            .prompt
            .iter()
            .chain(&pair.response[..t])
            .copied()
            .collect();
        let whole = t == 0 || rule.fill == Fill::Deferred;
        if whole {
            cache = model.new_cache(1, vec![32; n_layers]).unwrap();
        }
        let first = if whole { 0 } else { text.len() - 1 };
        let span = Span {
            row: 0,
            start: first,
            len: text.len() - first,
        };
        let hidden = model.embed(&text[first..], &[span]).unwrap();
        let hidden = run_layers(model, &layers, hidden, &mut cache, span);
        let logits = model
            .head(&hidden)
            .unwrap()
            .to_vec2::<f32>()
            .unwrap()
            .pop()
            .unwrap();
        let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let sum: f64 = logits.iter().map(|x| f64::from(x - largest).exp()).sum();
        loss += f64::from(largest - logits[target as usize]) + sum.ln();
    }
    loss
}

/// What is trained is what the engine runs: at full depth, under layers that get fewer from token to token, with layers or
/// sub-layers cut out of prompts and responses, and where tokens leave.
#[test]
fn the_loss_is_that_of_the_exported_folder_run_token_by_token() {
    let folder = tempfile::tempdir().unwrap();
    let mut trainer = start(&folder.path().join("run"), 60);
    train(&mut trainer, None);
    // The average of the weights is what is exported; a network loaded from there is compared.
    let out = folder.path().join("out");
    exported(&mut trainer, &out);
    let net = load(&out).unwrap();
    let model = Decoder::load(&out, &Device::Cpu, None, Backend::Auto).unwrap();
    let pairs = pairs(1000, 5);
    let batch = Batch::new(&pairs, LossOn::Response);
    let tokens: usize = pairs.iter().map(|pair| pair.response.len()).sum();
    let sub_layers = |_| {
        let mut layers = LayerSet::from_layers([0, 1, 3]);
        layers.remove_attention(1);
        layers.remove_mlp(3);
        layers.insert_mlp(2);
        layers
    };
    let full = LayerSet::full(4);
    let rule = |prompt, response, fill| Rule {
        prompt,
        response,
        fill,
    };
    let rules = [
        rule(full, |_| LayerSet::full(4), Fill::Passed),
        rule(full, |_| LayerSet::from_layers([0, 2, 3]), Fill::Passed),
        rule(
            full,
            |t| LayerSet::from_layers([0].into_iter().chain(1..5 - t.min(3))),
            Fill::Passed,
        ),
        rule(full, sub_layers, Fill::Passed),
        rule(sub_layers(0), sub_layers, Fill::Passed),
        rule(full, |t| LayerSet::full(1 + t % 4), Fill::Deferred),
    ];
    let losses = rules.map(|rule| {
        let step = Step::plain(Some(rule.depths(&pairs)), 4);
        let pass = net.losses(&batch, &step).unwrap();
        let trained = pass.loss.to_scalar::<f32>().unwrap();
        let decoded: f64 = pairs
            .iter()
            .map(|pair| decoded_loss(&model, pair, &rule))
            .sum();
        let decoded = decoded / tokens as f64;
        assert!(
            (f64::from(trained) - decoded).abs() < 1e-4,
            "{trained} and {decoded}"
        );
        trained
    });
    for (index, loss) in losses.iter().enumerate() {
        assert!(!losses[..index].contains(loss), "{losses:?}");
    }
}

#[test]
fn the_similarity_of_a_prompt_is_that_of_the_exported_folder() {
    let folder = tempfile::tempdir().unwrap();
    let mut trainer = start(&folder.path().join("run"), 30);
    train(&mut trainer, None);
    let out = folder.path().join("out");
    exported(&mut trainer, &out);
    let net = load(&out).unwrap();
    let model = Decoder::load(&out, &Device::Cpu, None, Backend::Auto).unwrap();
    let mut pairs = pairs(1000, 3);
    pairs[1].prompt.pop();
    let found = net
        .prompt_similarity(&Batch::new(&pairs, LossOn::Response))
        .unwrap();
    for (pair, found) in pairs.iter().zip(found) {
        let len = pair.prompt.len();
        let span = Span {
            row: 0,
            start: 0,
            len,
        };
        let mut cache = model.new_cache(1, vec![32; 4]).unwrap();
        let mut hidden = model.embed(&pair.prompt, &[span]).unwrap();
        for (index, found) in found.into_iter().enumerate() {
            let part = [Part::Attention, Part::Mlp][index % 2];
            let new = model
                .layer_part(index / 2, part, &hidden, &mut cache, &[span])
                .unwrap();
            let sum = |a: &Tensor, b: &Tensor| (a * b).unwrap().sum(1).unwrap();
            let norms = (sum(&hidden, &hidden) * sum(&new, &new))
                .unwrap()
                .sqrt()
                .unwrap();
            let cosines = (sum(&hidden, &new) / norms).unwrap();
            let wanted = cosines.mean_all().unwrap().to_scalar::<f32>().unwrap();
            assert!(
                (found - f64::from(wanted)).abs() < 1e-5,
                "{found} and {wanted}"
            );
            hidden = new;
        }
    }
}
