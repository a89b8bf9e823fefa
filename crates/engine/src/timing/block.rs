//! What is kept of a timed block.

use crate::generation::Generation;
use serde::{Deserialize, Serialize};
use skipbench_machine::Energy;

/// One batch of prompts timed under the full network and under the strategy, back to back.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Block {
    /// Which batch of prompts.
    pub batch: usize,
    /// Which pass over the batches, from 0.
    #[serde(default)]
    pub pass: usize,
    /// Whether the strategy ran first.
    #[serde(default)]
    pub strategy_first: bool,
    /// Rows of the batch.
    pub rows: usize,
    /// Prompt tokens of all rows.
    pub prompt_tokens: usize,
    /// Tokens of all rows that the decode steps generated, by either.
    pub decoded_tokens: usize,
    /// Bytes that the strategy's decode steps read.
    pub bytes: u64,
    /// Bytes that the full network reads for the same tokens.
    pub full_bytes: u64,
    /// The full network.
    pub full: Times,
    /// The strategy.
    pub strategy: Times,
}

impl Block {
    /// Log of the decode time of the full network over that of the strategy; `None` where nothing was decoded.
    pub(super) fn log_ratio(&self) -> Option<f64> {
        let ratio = self.full.decode_s() / self.strategy.decode_s();
        (ratio.is_finite() && ratio > 0.0).then(|| ratio.ln())
    }
}

/// Times of one generation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Times {
    /// Seconds to the first token of every row (TTFT).
    pub prefill_s: f64,
    /// Seconds of each decode step (TPOT: every row gets a token).
    pub step_s: Vec<f64>,
    /// Of all of them, the seconds of drafting.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub draft_s: f64,
    /// Energy of the whole generation, prefill included.
    #[serde(default, skip_serializing_if = "Energy::is_absent")]
    pub energy: Energy,
}

fn is_zero(seconds: &f64) -> bool {
    *seconds == 0.0
}

impl Times {
    /// To the tenth of a microsecond, finer than any clock here can tell.
    pub(crate) fn of(generation: &Generation, energy: Energy) -> Self {
        let round = |seconds: f64| (seconds * 1e7).round() / 1e7;
        Self {
            prefill_s: round(generation.prefill_s),
            step_s: generation.step_s.iter().map(|&s| round(s)).collect(),
            draft_s: round(generation.drafts.draft_s),
            energy,
        }
    }

    /// Seconds of all decode steps.
    pub fn decode_s(&self) -> f64 {
        self.step_s.iter().sum()
    }
}
