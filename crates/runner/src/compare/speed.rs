//! Speed of one cell in two runs.

use skipbench_engine::{Block, SpeedChange, Times, compare_speed, speedup};
use skipbench_record::Record;

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
pub(super) struct Speeds {
    pub(super) old: f64,
    pub(super) new: f64,
    /// `None` where one of them timed but one batch.
    pub(super) change: Option<SpeedChange>,
}

impl Speeds {
    /// `None` where one of the runs has no usable time.
    pub(super) fn of(measure: Measure, old: &Record, new: &Record) -> Option<Self> {
        let (old, new) = (measure.blocks(old), measure.blocks(new));
        Some(Self {
            old: speedup(&old)?.ratio,
            new: speedup(&new)?.ratio,
            change: compare_speed(&old, &new),
        })
    }
}

impl Measure {
    /// Blocks whose speedup is the measure: tokens per second are the speedup over a network that decodes one in a second.
    fn blocks(self, record: &Record) -> Vec<Block> {
        let mut blocks = match &record.timing {
            Some(timing) => timing.blocks.clone(),
            None => Vec::new(),
        };
        for block in &mut blocks {
            if let Self::FullTokensPerSecond = self {
                block.strategy = block.full.clone();
            }
            if let Self::TokensPerSecond | Self::FullTokensPerSecond = self {
                block.full = Times {
                    step_s: vec![block.decoded_tokens as f64],
                    ..block.full.clone()
                };
            }
        }
        blocks
    }
}
