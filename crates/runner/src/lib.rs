//! skipbench compares layer-skipping strategies for decoder-only language models.
//!
//! The main path: [`cli`] parses `skipbench run EXPERIMENT.yaml`; [`plan::Plan`] turns the experiment into cells
//! (model x task x strategy x speedup x batch size); [`cell`] runs one: a quality pass to the natural end of
//! sequence and a timing pass of fixed length, interleaved with the full network; [`store::Store`] keeps what is
//! finished, so that a run that was cut off resumes; [`summary`] turns the records into the rows that
//! `skipbench-report` writes.

pub mod cell;
pub mod cli;
pub mod commands;
pub mod experiment;
pub mod plan;
pub mod store;
pub mod summary;
pub mod task;

pub use cli::main;

mod calibrate;
mod digest;
mod input;
mod load;
mod progress;
mod trace;
