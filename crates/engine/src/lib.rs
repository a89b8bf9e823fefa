//! Drives a model with a layer-skipping strategy.
//!
//! # Overview
//!
//! [`Engine::generate`] runs every layer over the prompts (prefill), then, for each further token, the layers that
//! the [`Strategy`](skipbench_strategy::Strategy) names (decode). The first token of an answer therefore always
//! comes from the full network, as in arXiv 2404.06954. Rows leave the batch when they end, and leave a step when
//! they exit early; nothing is padded, so a row's tokens are the same alone and in any batch.
//!
//! [`measure`] times a strategy against the full network in randomised, interleaved blocks, and [`Ledger`] says
//! which speedup the bytes read would allow.

mod error;
mod generate;
mod ledger;
mod signal;
mod speculate;
mod timing;

pub use error::{EngineError, Result};
pub use generate::{Engine, Generation, Options, RowOutput};
pub use ledger::Ledger;
pub use timing::{Block, Interval, Speedup, TimingPlan, measure, speedup};
