//! Says what a run asks of a CUDA device, for `scripts/cuda/count.sh`: a line of launches, uploads and waits.
//!
//! `asked MODEL STRATEGY ROWS TOKENS`, in f16; prompts are of different lengths.
#![expect(
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "a check has no API and no user input"
)]

use candle_core::Device;
use skipbench_engine::{Engine, Options};
use skipbench_model::{Backend, CausalLm, Decoder, WeightType, ops};
use skipbench_strategy::StrategySpec;
use std::path::Path;

/// Of the longest answer that is asked for, over which schedules by position are laid.
const PLANNED: usize = 18;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [model, strategy, rows, tokens] = &arguments[..] else {
        panic!("asked MODEL STRATEGY ROWS TOKENS");
    };
    let device = Device::new_cuda(0).unwrap();
    let weights = Some(WeightType::F16);
    let model = Decoder::load(Path::new(model), &device, weights, Backend::Auto).unwrap();
    let strategy: StrategySpec = strategy.parse().unwrap();
    let mut strategy = strategy.build(model.sizes().n_layers).unwrap();
    let prompts: Vec<Vec<u32>> = (0..rows.parse().unwrap())
        .map(|row| (3..6 + 2 * row).collect())
        .collect();
    let options = Options {
        max_new_tokens: tokens.parse().unwrap(),
        planned_tokens: Some(PLANNED),
        ..Options::default()
    };
    let engine = Engine::new(&model);
    let (generation, work) =
        ops::counted(|| engine.generate(&prompts, strategy.as_mut(), &options));
    generation.unwrap();
    let uploads = work.layouts + work.uploads;
    println!("counted {} {uploads} {}", work.launches, work.syncs);
}
