//! Every family that loads: the trained network computes what the engine computes, its gradients are the slopes of the loss, and
//! what is written of it is what was trained.
#![allow(clippy::unwrap_used)]

use crate::adapter::{AdaptedMatrix, AdapterConfig, BaseType};
use crate::architecture::Architecture;
use crate::config::LossOn;
use crate::data::{Batch, Pair};
use crate::export::{Export, export};
use crate::net::Net;
use crate::objective::Step;
use crate::ops::{CrossEntropy, to_vec};
use crate::optimizer::Gradients;
use candle_core::{DType, Device, Tensor};
use serde::Deserialize;
use skipbench_model::{Backend, CausalLm, Decoder, ModelConfig, Span, WeightType};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

fn tests_of_model() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../model/tests")
}

/// Committed checkpoints of all families, by path.
fn checkpoints() -> Vec<PathBuf> {
    let folders = ["fixtures", "gguf"].map(|name| tests_of_model().join(name));
    let mut found: Vec<PathBuf> = folders
        .iter()
        .flat_map(|folder| std::fs::read_dir(folder).unwrap())
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.is_dir() || path.extension().is_some_and(|end| end == "gguf"))
        .filter(|path| !path.ends_with("blocks.gguf"))
        .collect();
    found.sort();
    assert!(found.len() >= 40, "{found:?}");
    found
}

/// What transformers computed for one prompt.
#[derive(Deserialize)]
struct Expected {
    prompt: Vec<u32>,
    logits: Vec<f32>,
}

/// Of a folder, or of the one that a GGUF file was made from.
fn expected(checkpoint: &Path) -> Vec<Expected> {
    #[derive(Deserialize)]
    struct File {
        rows: Vec<Expected>,
    }
    let folder = tests_of_model()
        .join("fixtures")
        .join(checkpoint.file_stem().unwrap());
    let text = std::fs::read_to_string(folder.join("expected.json")).unwrap();
    serde_json::from_str::<File>(&text).unwrap().rows
}

fn load(checkpoint: &Path, adapter: Option<&AdapterConfig>) -> Net {
    let config = ModelConfig::open(checkpoint).unwrap();
    let architecture = Architecture::of_checkpoint(config, None, None).unwrap();
    Net::load(
        &architecture,
        checkpoint,
        adapter.map(|adapter| (adapter, 5)),
    )
    .unwrap()
}

fn adapter(base: BaseType) -> AdapterConfig {
    AdapterConfig {
        rank: 2,
        alpha: Some(3.0),
        matrices: None,
        base,
    }
}

/// Rows whose every token counts; the one behind a prompt is of no account.
fn batch(prompts: &[&[u32]]) -> Batch {
    let pairs: Vec<Pair> = prompts
        .iter()
        .map(|prompt| Pair {
            prompt: prompt.to_vec(),
            response: vec![prompt[0]],
        })
        .collect();
    Batch::new(&pairs, LossOn::All)
}

/// `[counted, vocab_size]`
fn logits(net: &Net, batch: &Batch) -> Tensor {
    let run = net.run(batch, None, &BTreeSet::new(), true).unwrap();
    let counted = Tensor::new(batch.counted.as_slice(), &Device::Cpu).unwrap();
    let last = &run.states[&net.shape().n_layers];
    net.logits(&last.index_select(&counted, 0).unwrap())
        .unwrap()
}

/// Of each row its last token's.
fn last_logits(net: &Net, prompts: &[&[u32]]) -> Vec<Vec<f32>> {
    let all: Vec<Vec<f32>> = logits(net, &batch(prompts)).to_vec2().unwrap();
    let ends = prompts.iter().scan(0, |end, prompt| {
        *end += prompt.len();
        Some(*end)
    });
    ends.map(|end| all[end - 1].clone()).collect()
}

/// What the engine's model makes of the last token of a prompt.
fn engine_logits(dir: &Path, prompt: &[u32]) -> Vec<f32> {
    let model = Decoder::load(dir, &Device::Cpu, Some(WeightType::F32), Backend::Auto).unwrap();
    let spans = Span::prompts([prompt.len()]);
    let layers = model.sizes().n_layers;
    let mut cache = model.new_cache(1, vec![prompt.len(); layers]).unwrap();
    let mut hidden = model.embed(prompt, &spans).unwrap();
    for layer in 0..layers {
        hidden = model.layer(layer, &hidden, &mut cache, &spans).unwrap();
    }
    let logits: Vec<Vec<f32>> = model.head(&hidden).unwrap().to_vec2().unwrap();
    logits.last().unwrap().clone()
}

/// The longest prompt, cut to what is trained on and to a few tokens more than a window.
fn longest_prompt(rows: &[Expected], longest: usize) -> &[u32] {
    let prompts = rows.iter().map(|row| row.prompt.as_slice());
    let prompt = prompts.max_by_key(|prompt| prompt.len()).unwrap();
    assert!(prompt.len() > 3);
    &prompt[..prompt.len().min(longest).min(12)]
}

fn apart(found: &[f32], wanted: &[f32]) -> f32 {
    assert_eq!(found.len(), wanted.len());
    let apart = found.iter().zip(wanted).map(|(a, b)| (a - b).abs());
    apart.fold(0.0, |most, apart| {
        if apart > most || apart.is_nan() {
            apart
        } else {
            most
        }
    })
}

/// Moves what is trained away from where it stands, the upper halves of adapters from zero.
fn disturb(net: &Net) {
    for (index, name) in net.names().iter().enumerate() {
        let var = net.var(name);
        let values = to_vec(var.as_tensor()).unwrap();
        let values: Vec<f32> = values
            .iter()
            .enumerate()
            .map(|(at, value)| value * 0.97 + 0.02 * ((index + 3 * at) as f32).sin())
            .collect();
        let values = Tensor::from_vec(values, var.shape(), &Device::Cpu).unwrap();
        var.set(&values).unwrap();
    }
}

/// Alone and side by side with rows of other lengths; those of a GGUF file are the engine's.
#[test]
fn logits_are_those_of_transformers() {
    for checkpoint in checkpoints() {
        let rows = expected(&checkpoint);
        let trained = load(&checkpoint, None);
        let kept = load(&checkpoint, Some(&adapter(BaseType::Stored)));
        let longest = trained.architecture().max_positions();
        let rows: Vec<&Expected> = rows
            .iter()
            .filter(|row| row.prompt.len() <= longest)
            .collect();
        assert!(!rows.is_empty());
        let prompts: Vec<&[u32]> = rows.iter().map(|row| row.prompt.as_slice()).collect();
        for net in [&trained, &kept] {
            for (found, row) in last_logits(net, &prompts).iter().zip(&rows) {
                let wanted = match checkpoint.is_dir() {
                    true => row.logits.clone(),
                    // Some files are in blocks, whose values are others than transformers'.
                    false => engine_logits(&checkpoint, &row.prompt),
                };
                let apart = apart(found, &wanted);
                assert!(apart < 1e-4, "{}: {apart}", checkpoint.display());
                let alone = &last_logits(net, &[&row.prompt])[0];
                // As many digits as the order of a sum decides.
                let largest = found.iter().fold(1f32, |most, logit| most.max(logit.abs()));
                let apart = self::apart(alone, found) / largest;
                assert!(
                    apart < 1e-5,
                    "{}: {apart} by its neighbours",
                    checkpoint.display()
                );
            }
        }
    }
}

/// The slope of the loss along the gradient of each variable, against the difference quotient.
fn check_gradients(net: &Net, batch: &Batch, what: &Path) {
    let loss = || {
        let targets = batch.targets.clone();
        logits(net, batch)
            .apply_op1(CrossEntropy { targets })
            .unwrap()
    };
    let value = || f64::from(loss().to_scalar::<f32>().unwrap());
    let grads = loss().backward().unwrap();
    let mut seen = 0;
    for name in net.names() {
        let var = net.var(name);
        let grad = grads.get(var).unwrap();
        let squares = grad.sqr().unwrap().sum_all().unwrap();
        let norm = f64::from(squares.to_scalar::<f32>().unwrap().sqrt());
        assert!(norm.is_finite(), "{}: {name}", what.display());
        seen += usize::from(norm > 1e-3);
        let direction = (grad / norm.max(1e-9)).unwrap();
        let start = var.as_tensor().copy().unwrap();
        let at = |step: f64| {
            var.set(&(&start + (&direction * step).unwrap()).unwrap())
                .unwrap();
            value()
        };
        // Two quotients, from which what grows with the square of the step drops out (Richardson). Long steps cross the kinks
        // of ReLU, short ones drown in rounding: a gradient that is right agrees with one of them.
        let quotient = |h: f64| (at(h) - at(-h)) / (2.0 * h);
        let slopes = [0.01, 0.003, 0.001].map(|h| {
            // As far as the loss moves by so much: of steep weights less.
            let h = h / norm.max(1.0);
            (4.0 * quotient(h / 2.0) - quotient(h)) / 3.0
        });
        var.set(&start).unwrap();
        let is_near = |slope: &f64| (slope - norm).abs() < 0.02 * norm + 3e-4;
        assert!(
            slopes.iter().any(is_near),
            "{}: {name}: slopes {slopes:?}, gradient {norm}",
            what.display()
        );
    }
    // Weights whose gradients are too small to be told from rounding are few.
    assert!(
        4 * seen > 3 * net.names().len(),
        "{}: {seen}",
        what.display()
    );
}

#[test]
fn gradients_are_the_slopes_of_the_loss() {
    for checkpoint in checkpoints().iter().filter(|path| path.is_dir()) {
        let rows = expected(checkpoint);
        let longest = load(checkpoint, None).architecture().max_positions();
        let prompt = longest_prompt(&rows, longest);
        let batch = batch(&[prompt, &prompt[..3]]);
        for adapter in [None, Some(adapter(BaseType::F32))] {
            let net = load(checkpoint, adapter.as_ref());
            if adapter.is_some() {
                disturb(&net);
            }
            check_gradients(&net, &batch, checkpoint);
        }
    }
}

/// Trained whole and merged from an adapter, of folders and of GGUF files.
#[test]
fn a_folder_that_was_written_computes_what_was_trained() {
    for checkpoint in checkpoints() {
        for adapter in [None, Some(adapter(BaseType::Stored))] {
            let net = load(&checkpoint, adapter.as_ref());
            let longest = net.architecture().max_positions();
            let rows = expected(&checkpoint);
            let prompt = &rows[0].prompt[..rows[0].prompt.len().min(longest)];
            let before = last_logits(&net, &[prompt]).remove(0);
            disturb(&net);
            let wanted = last_logits(&net, &[prompt]).remove(0);
            assert!(apart(&before, &wanted) > 1e-2, "{}", checkpoint.display());
            let values: Vec<Vec<f32>> = net
                .names()
                .iter()
                .map(|name| to_vec(net.var(name).as_tensor()).unwrap())
                .collect();
            let values: Vec<&[f32]> = values.iter().map(Vec::as_slice).collect();
            let dir = tempfile::tempdir().unwrap();
            let tuned = Export::Tuned {
                beside: Vec::new(),
                dtype: DType::F32,
            };
            export(dir.path(), &net, &values, &tuned).unwrap();
            let found = engine_logits(dir.path(), prompt);
            let apart = apart(&found, &wanted);
            assert!(
                apart < 1e-4,
                "{}, {adapter:?}: {apart}",
                checkpoint.display()
            );
        }
    }
}

/// Whole and of adapters, of layers whose halves stand one behind the other and side by side.
#[test]
fn layers_that_are_computed_again_have_the_same_gradients() {
    for fixture in [
        "llama1",
        "gemma3",
        "gpt-neox",
        "opt-sums-projected",
        "phi3-window",
    ] {
        let checkpoint = tests_of_model().join("fixtures").join(fixture);
        let rows = expected(&checkpoint);
        let longest = load(&checkpoint, None).architecture().max_positions();
        let prompt = longest_prompt(&rows, longest);
        let batch = batch(&[prompt, &prompt[..2]]);
        for adapter in [None, Some(adapter(BaseType::Stored))] {
            let gradients = |again: bool| {
                let net = load(&checkpoint, adapter.as_ref())
                    .recomputing(again)
                    .unwrap();
                disturb(&net);
                let step = Step::plain(None, net.shape().n_layers);
                let pass = net.losses(&batch, &step).unwrap();
                let gradients = Gradients::of(&net, &pass.loss.backward().unwrap()).unwrap();
                (pass.loss.to_scalar::<f32>().unwrap(), gradients)
            };
            let ((loss, once), (again, twice)) = (gradients(false), gradients(true));
            assert!((loss - again).abs() < 1e-6, "{fixture}: {loss} {again}");
            assert!(once.norm > 1e-2, "{fixture}: {}", once.norm);
            for (once, twice) in once.values.iter().zip(&twice.values) {
                let apart = apart(once, twice);
                assert!(apart < 1e-5, "{fixture}, {adapter:?}: {apart}");
            }
        }
    }
}

/// Rows of other lengths beside it, and their padding, change nothing of a row.
#[test]
fn the_loss_of_a_pair_does_not_depend_on_its_neighbours() {
    for fixture in ["llama2-gqa-tied", "gemma2", "bloom", "opt"] {
        let checkpoint = tests_of_model().join("fixtures").join(fixture);
        let net = load(&checkpoint, None);
        let pair = |prompt: &[u32], response: &[u32]| Pair {
            prompt: prompt.to_vec(),
            response: response.to_vec(),
        };
        let pairs = [
            pair(&[5, 6, 7], &[8, 9]),
            pair(&[4], &[10, 11, 12, 13, 14, 15]),
            pair(&[9, 8, 7, 6, 5], &[4]),
        ];
        let loss = |pairs: &[Pair]| {
            let batch = Batch::new(pairs, LossOn::Response);
            net.loss_of(&batch, None).unwrap()
        };
        let (together, tokens) = loss(&pairs);
        let alone = pairs.iter().map(|pair| loss(std::slice::from_ref(pair)));
        let alone = alone
            .map(|(loss, tokens)| loss * tokens as f64)
            .sum::<f64>();
        let alone = alone / tokens as f64;
        assert!(
            (together / alone - 1.0).abs() < 1e-5,
            "{fixture}: {together} {alone}"
        );
    }
}

#[test]
fn a_base_in_fewer_bits_is_near_and_smaller() {
    let checkpoint = tests_of_model().join("fixtures/bloom");
    let rows = expected(&checkpoint);
    let prompts: Vec<&[u32]> = rows.iter().map(|row| row.prompt.as_slice()).collect();
    let net = |base| load(&checkpoint, Some(&adapter(base)));
    let exact = net(BaseType::F32);
    let mut bytes = exact.kept_bytes();
    for base in [BaseType::Bf16, BaseType::Q8_0] {
        let net = net(base);
        assert!(
            net.kept_bytes() < bytes * 3 / 5,
            "{base:?}: {}",
            net.kept_bytes()
        );
        bytes = net.kept_bytes();
        let found = last_logits(&net, &prompts);
        for (found, exact) in found.iter().zip(last_logits(&exact, &prompts)) {
            // Eight bits of each weight are right: of what is made of them, most of the first two digits.
            let largest = exact.iter().fold(0f32, |most, logit| most.max(logit.abs()));
            let apart = apart(found, &exact) / largest;
            assert!(apart > 0.0 && apart < 0.05, "{base:?}: {apart}");
        }
    }
}

#[test]
fn a_matrix_that_a_layer_lacks_or_holds_with_others_is_named() {
    let refused = |fixture: &str, matrices: &[AdaptedMatrix]| {
        let checkpoint = tests_of_model().join("fixtures").join(fixture);
        let config = ModelConfig::open(&checkpoint).unwrap();
        let architecture = Architecture::of_checkpoint(config, None, None).unwrap();
        let adapter = AdapterConfig {
            matrices: Some(matrices.to_vec()),
            ..adapter(BaseType::Stored)
        };
        let net = Net::load(&architecture, &checkpoint, Some((&adapter, 0)));
        net.err().map(|error| error.to_string())
    };
    use AdaptedMatrix::{Gate, K, O, Q, V};
    let message = refused("opt", &[Gate]).unwrap();
    assert!(
        message.contains("`gate`") && message.contains("`up`"),
        "{message}"
    );
    let message = refused("phi3-window", &[O, Q]).unwrap();
    assert!(message.contains("`q`, `k`, `v`"), "{message}");
    assert_eq!(refused("phi3-window", &[Q, K, V]), None);
    assert_eq!(refused("qwen2", &[Q]), None);
}
