//! A training run as its user sees it: it learns, it resumes, and what it writes is what it trained.
#![allow(clippy::unwrap_used)]

use candle_core::{DType, Device};
use skipbench_model::{Backend, CausalLm, Decoder, Span};
use skipbench_train::{
    Batch, Control, LossOn, ModelShape, Net, OptimizerConfig, Pair, TrainConfig, Trainer,
    train_tokenizer,
};
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

fn config(steps: u64) -> TrainConfig {
    TrainConfig {
        steps,
        batch_size: 16,
        seed: SEED,
        loss_on: LossOn::Response,
        checkpoint_every: 7,
        optimizer: OptimizerConfig {
            learning_rate: 5e-3,
            floor: 0.1,
            warm_up_steps: 10,
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

fn start(dir: &Path, steps: u64) -> Trainer {
    Trainer::new(
        dir,
        &config(steps),
        "reversed",
        Net::new(&shape(), SEED).unwrap(),
    )
    .unwrap()
}

/// Trains until the end, or until `stop_after` updates.
fn train(trainer: &mut Trainer, stop_after: Option<u64>) -> Vec<f32> {
    let mut losses = Vec::new();
    trainer
        .run(
            |step| (Batch::new(&pairs(step, 16), LossOn::Response), None),
            |report| {
                losses.push(report.loss);
                match stop_after {
                    Some(stop) if report.step == stop => Control::Stop,
                    _ => Control::Continue,
                }
            },
        )
        .unwrap();
    losses
}

fn tokenizer() -> Tokenizer {
    let text = "the quick brown fox jumps over the lazy dog".to_owned();
    train_tokenizer(std::iter::once(text), 300).unwrap()
}

fn exported(trainer: &Trainer, dir: &Path) -> Vec<u8> {
    trainer.export(dir, &tokenizer(), DType::F32).unwrap();
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
    train(&mut whole, None);
    let whole = exported(&whole, &path("whole-out"));

    train(&mut start(&path("stopped"), 20), Some(10));
    let mut resumed = start(&path("stopped"), 20);
    assert_eq!(resumed.step(), 10);
    train(&mut resumed, None);
    assert!(exported(&resumed, &path("stopped-out")) == whole);

    // Killed at step 12: the checkpoint of step 7 is the newest, and the log loses what came behind it.
    let panics = std::panic::catch_unwind(|| {
        let mut killed = start(&path("killed"), 20);
        let _ = killed.run(
            |step| {
                assert!(step < 12, "killed");
                (Batch::new(&pairs(step, 16), LossOn::Response), None)
            },
            |_| Control::Continue,
        );
    });
    assert!(panics.is_err());
    let mut resumed = start(&path("killed"), 20);
    assert_eq!(resumed.step(), 7);
    train(&mut resumed, None);
    assert!(exported(&resumed, &path("killed-out")) == whole);
    let log = std::fs::read_to_string(path("killed").join("loss.csv")).unwrap();
    let steps: Vec<&str> = log
        .lines()
        .skip(1)
        .map(|line| line.split(',').next().unwrap())
        .collect();
    let wanted: Vec<String> = (1..=20).map(|step| step.to_string()).collect();
    assert_eq!(steps, wanted);
}

#[test]
fn a_checkpoint_that_does_not_belong_or_is_damaged() {
    let dir = tempfile::tempdir().unwrap();
    train(&mut start(dir.path(), 20), Some(3));
    let error = |config: &TrainConfig, context: &str| {
        let net = Net::new(&shape(), SEED).unwrap();
        Trainer::new(dir.path(), config, context, net)
            .err()
            .unwrap()
            .to_string()
    };
    assert!(error(&config(21), "reversed").contains("another config"));
    assert!(error(&config(20), "other data").contains("another config"));
    let path = dir.path().join("checkpoint.safetensors");
    let whole = std::fs::read(&path).unwrap();
    for len in [0, 20, whole.len() - 1] {
        std::fs::write(&path, &whole[..len]).unwrap();
        let message = error(&config(20), "reversed");
        assert!(
            message.contains("checkpoint.safetensors") && message.contains("delete it"),
            "{message}"
        );
    }
}

#[test]
fn pairs_that_do_not_fit_are_refused() {
    let net = Net::new(&shape(), SEED).unwrap();
    let long = Pair {
        prompt: vec![1; 30],
        response: vec![2; 10],
    };
    let message = net
        .loss(&Batch::new(&[long], LossOn::All), None)
        .unwrap_err()
        .to_string();
    assert!(
        message.contains("40") && message.contains("32"),
        "{message}"
    );
}

/// Summed negative log-likelihood of a response as the engine computes it: prompt through all layers, then token by
/// token through those that `runs` names.
fn decoded_loss(model: &dyn CausalLm, pair: &Pair, runs: &dyn Fn(usize, usize) -> bool) -> f64 {
    let n_layers = model.sizes().n_layers;
    let mut cache = model.new_cache(1, vec![32; n_layers]).unwrap();
    let mut loss = 0.0;
    for (t, &target) in pair.response.iter().enumerate() {
        let (ids, span) = match t {
            0 => (
                pair.prompt.clone(),
                Span {
                    row: 0,
                    start: 0,
                    len: pair.prompt.len(),
                },
            ),
            _ => (
                vec![pair.response[t - 1]],
                Span::token(0, pair.prompt.len() + t - 1),
            ),
        };
        let mut hidden = model.embed(&ids).unwrap();
        for layer in (0..n_layers).filter(|&layer| t == 0 || runs(layer, t)) {
            hidden = model.layer(layer, &hidden, &mut cache, &[span]).unwrap();
        }
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

/// What is trained is what the engine runs, at full depth and under layers that get fewer from token to token.
#[test]
fn the_loss_is_that_of_the_exported_folder_run_token_by_token() {
    let folder = tempfile::tempdir().unwrap();
    let mut trainer = start(&folder.path().join("run"), 60);
    train(&mut trainer, None);
    // The average of the weights is what is exported; a network loaded from there is compared.
    let out = folder.path().join("out");
    trainer.export(&out, &tokenizer(), DType::F32).unwrap();
    let net = Net::load(&shape(), &out).unwrap();
    let model = Decoder::load(&out, &Device::Cpu, None, Backend::Auto).unwrap();
    let pairs = pairs(1000, 5);
    let batch = Batch::new(&pairs, LossOn::Response);
    let tokens: usize = pairs.iter().map(|pair| pair.response.len()).sum();
    let full = |_: usize, _: usize| true;
    let fixed = |layer: usize, _: usize| layer != 1;
    let falling = |layer: usize, t: usize| layer == 0 || layer + t <= 4;
    let rules: [&dyn Fn(usize, usize) -> bool; 3] = [&full, &fixed, &falling];
    let losses = rules.map(|runs| {
        let depths = |layer: usize, _row: usize, t: usize| runs(layer, t);
        let trained = net
            .loss(&batch, Some(&depths))
            .unwrap()
            .to_scalar::<f32>()
            .unwrap();
        let decoded: f64 = pairs
            .iter()
            .map(|pair| decoded_loss(&model, pair, runs))
            .sum();
        let decoded = decoded / tokens as f64;
        assert!(
            (f64::from(trained) - decoded).abs() < 1e-4,
            "{trained} and {decoded}"
        );
        trained
    });
    assert!(
        losses[0] != losses[1] && losses[1] != losses[2],
        "{losses:?}"
    );
}
