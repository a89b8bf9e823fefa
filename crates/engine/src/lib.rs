//! Drives a model with a layer-skipping strategy.
//!
//! # Overview
//!
//! [`Engine::generate`] runs every layer over the prompts (prefill), then, for each further token, the layers that
//! the [`Strategy`](skipbench_strategy::Strategy) names (decode). The first token of an answer therefore always
//! comes from the full network, as in arXiv 2404.06954, unless the strategy cuts layers out of the prefill as well. Rows leave the batch when they end, and leave a step when
//! they exit early; nothing is padded, so a row's tokens are the same alone and in any batch.
//!
//! [`Engine::generate_each`] does the same for rows that are asked for one by one, and tells their tokens as they come.
//!
//! [`measure`] times a strategy against the full network in randomised, interleaved blocks, and [`Ledger`] says
//! which speedup the bytes read would allow. [`removal_order`] scores layers on calibration text.

mod audit;
mod bandwidth;
mod beam;
mod candidates;
mod decode;
mod draw;
mod error;
mod exact;
mod generate;
mod generation;
mod laps;
mod ledger;
mod likelihood;
mod ngram;
mod options;
mod oracle;
mod prefill;
mod reduce;
mod replay;
mod run;
mod scores;
mod select;
mod signal;
mod skipped;
mod speculate;
mod step;
mod stop;
mod tensors;
mod timing;
mod trace;

pub use audit::{CheckAudit, EntryAudit, KvAudit, LayerAudit};
pub use bandwidth::copied_bytes_per_s;
pub use error::{EngineError, Result};
pub use generate::Engine;
pub use generation::{DraftTally, End, Generation, RowOutput, TokenScore};
pub use laps::Spent;
pub use ledger::{Cost, Ledger};
pub use likelihood::{Likelihood, ScoreMode, ScoreOptions, ScoredText};
pub use options::{Beam, MAX_LENGTH_PENALTY, Options, Sampling};
pub use scores::{CalibrationText, ScoreLog, removal_order};
pub use stop::StopTexts;
pub use timing::{
    Block, Drift, Interval, Latency, Outliers, SpeedChange, Speedup, Times, TimingPlan,
    compare_speed, energy_per_token, measure, speedup, student,
};
pub use trace::TokenTrace;
