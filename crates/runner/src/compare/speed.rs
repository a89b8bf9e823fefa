//! Speed of one cell in two runs.

use super::estimate::Estimate;
use skipbench_engine::Block;
use skipbench_record::Record;
use std::collections::BTreeMap;

/// What is measured of a block.
#[derive(Clone, Copy)]
pub(super) enum Measure {
    /// Decode time of the full network over that of the strategy: each run is its own yardstick.
    Achieved,
    /// Tokens per second of the strategy alone.
    TokensPerSecond,
    /// Tokens per second of the full network beside it.
    FullTokensPerSecond,
}

/// A measure in two runs.
pub(super) struct SpeedChange {
    pub(super) old: f64,
    pub(super) new: f64,
    /// Of the logarithm.
    pub(super) estimate: Option<Estimate>,
    /// Batches of the run that has fewer of them.
    pub(super) batches: usize,
}

impl SpeedChange {
    /// `None` where one of the runs has no usable time.
    pub(super) fn of(measure: Measure, old: &Record, new: &Record) -> Option<Self> {
        let (old, new) = (blocks(old), blocks(new));
        let (was, is) = (by_batch(measure, old), by_batch(measure, new));
        Some(Self {
            old: geometric_mean(&was)?,
            new: geometric_mean(&is)?,
            estimate: Estimate::of_batches(&was, &is, shapes(old) == shapes(new)),
            batches: was.len().min(is.len()),
        })
    }
}

fn blocks(record: &Record) -> &[Block] {
    record.timing.as_ref().map_or(&[], |timing| &timing.blocks)
}

/// The logarithm of a measure for each batch: the median over its passes, so that what hits one pass alone is left out.
fn by_batch(measure: Measure, blocks: &[Block]) -> BTreeMap<usize, f64> {
    let mut passes: BTreeMap<usize, Vec<f64>> = BTreeMap::new();
    for block in blocks {
        let (full_s, strategy_s) = (block.full.decode_s(), block.strategy.decode_s());
        let tokens = block.decoded_tokens as f64;
        let value = match measure {
            Measure::Achieved => full_s / strategy_s,
            Measure::TokensPerSecond => tokens / strategy_s,
            Measure::FullTokensPerSecond => tokens / full_s,
        };
        if value.is_finite() && value > 0.0 {
            passes.entry(block.batch).or_default().push(value.ln());
        }
    }
    passes
        .into_iter()
        .map(|(batch, mut passes)| (batch, median(&mut passes)))
        .collect()
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    (values[(values.len() - 1) / 2] + values[middle]) / 2.0
}

fn geometric_mean(logs: &BTreeMap<usize, f64>) -> Option<f64> {
    let sum: f64 = logs.values().sum();
    (!logs.is_empty()).then(|| (sum / logs.len() as f64).exp())
}

/// Rows and prompt tokens of each batch: where they agree, the batches hold the same prompts.
fn shapes(blocks: &[Block]) -> BTreeMap<usize, (usize, usize)> {
    blocks
        .iter()
        .map(|block| (block.batch, (block.rows, block.prompt_tokens)))
        .collect()
}
