//! Which layers of a decoder run at each step: pure decisions, no tensors, no I/O.
//!
//! # Overview
//!
//! - [`StrategySpec`] is a strategy as an experiment writes it: a name, a variant, a target speedup and
//!   the strategy's own settings. It reads the short form `unified:even@3` and the long form
//!   `unified: {rule: even, speedup: 3}`.
//! - [`StrategySpec::build`] makes a [`Strategy`] for a model of a given depth. The engine asks it for a
//!   [`StepPlan`] at each step and, where it wants to look at the tokens, reports a signal after each check.
//! - [`LayerSet`] is the set of layers that run, attention and MLP apart.
//! - [`StrategySpec::explain`] says which layers those are without any model.
//!
//! The prompt runs through every layer, unless a strategy cuts layers out of it too ([`Prefill::Skip`]); strategies choose the
//! layers of the generated tokens from the second on.
//!
//! ```
//! use skipbench_strategy::{BatchShape, StrategySpec};
//!
//! let spec: StrategySpec = "unified:even@3".parse()?;
//! let mut strategy = spec.build(24)?;
//! strategy.begin(&BatchShape { prompt_lens: vec![7, 12], n_layers: 24, max_new_tokens: 32 })?;
//! assert_eq!(strategy.plan(1).layers.to_vec(), [0, 3, 7, 10, 13, 16, 20, 23]);
//! # Ok::<(), skipbench_strategy::StrategyError>(())
//! ```
//!
//! # Adding a strategy
//!
//! Write `strategies/<name>.rs` with its own settings (a serde struct that implements `Settings`), and name it in the
//! `registry!` of `strategies/mod.rs`. Everything else follows: both forms, suggestions, schema, `explain`.
//! A strategy of another crate implements [`Extension`] and is handed to [`register`].

mod axes;
mod budget;
mod error;
mod exits;
mod explain;
mod extension;
mod label;
mod layer_list;
mod layer_set;
mod long_form;
mod names;
mod preset;
mod pruned;
mod schedule;
mod scoring;
mod settings;
mod spec;
mod strategies;
mod strategy;
#[cfg(test)]
mod testing;

pub use axes::{Agreement, BatchMode, ExitCheck, ExitSignal, KvFill, Prefill, PromptSignal};
pub use budget::kept_layers;
pub use error::{StrategyError, did_you_mean, nearest};
pub use explain::{Explanation, StepRange};
pub use extension::{Extension, Request, register};
pub use layer_list::LayerListForm;
pub use layer_set::{LayerSet, MAX_LAYERS};
pub use scoring::Scoring;
pub use spec::{Knob, StrategySpec};
pub use strategy::{BatchShape, DraftLimit, Needs, StepPlan, Strategy, Verdict, Verification};
