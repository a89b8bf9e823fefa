//! What is kept of a timed block.

use crate::generation::Generation;
use crate::laps::Spent;
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
    /// Of these, the bytes of exit checks and KV fills.
    #[serde(default, skip_serializing_if = "is_none")]
    pub extra_bytes: u64,
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
    /// Of all of them, the seconds of each part of a step.
    #[serde(default, skip_serializing_if = "Spent::is_zero")]
    pub spent: Spent,
    /// Energy of the whole generation, prefill included.
    #[serde(default, skip_serializing_if = "Energy::is_absent")]
    pub energy: Energy,
}

fn is_none(bytes: &u64) -> bool {
    *bytes == 0
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
            spent: generation.spent.map(round),
            energy,
        }
    }

    /// One decode step and nothing else.
    #[cfg(test)]
    pub(super) fn decoding(step_s: f64) -> Self {
        Self {
            prefill_s: 0.0,
            step_s: vec![step_s],
            draft_s: 0.0,
            spent: Spent::default(),
            energy: Energy::default(),
        }
    }

    /// Seconds of all decode steps.
    pub fn decode_s(&self) -> f64 {
        self.step_s.iter().sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_kept_to_the_tenth_of_a_microsecond() {
        let generation = Generation {
            prefill_s: 0.123_456_789,
            step_s: vec![0.000_000_14, 1.0],
            ..Generation::default()
        };
        let times = Times::of(&generation, Energy::default());
        assert_eq!(times.prefill_s, 0.123_456_8);
        let text = serde_json::to_string(&times).unwrap();
        assert_eq!(text, r#"{"prefill_s":0.1234568,"step_s":[1e-7,1.0]}"#);
        assert_eq!(serde_json::from_str::<Times>(&text).unwrap(), times);
    }

    #[test]
    fn blocks_of_older_records_are_read() {
        let text = r#"{"batch": 3, "rows": 2, "prompt_tokens": 9, "decoded_tokens": 4, "bytes": 7, "full_bytes": 8,
            "full": {"prefill_s": 1.0, "step_s": [4.0]}, "strategy": {"prefill_s": 1.0, "step_s": [1.0, 1.0], "draft_s": 0.5}}"#;
        let block: Block = serde_json::from_str(text).unwrap();
        assert_eq!(
            (block.batch, block.pass, block.strategy.draft_s),
            (3, 0, 0.5)
        );
        assert_eq!(block.log_ratio(), Some(2.0f64.ln()));
    }
}
