//! skipbench compares layer-skipping strategies for decoder-only language models.
//!
//! The main path: [`cli`] parses `skipbench run EXPERIMENT.yaml`; [`plan::Plan`] turns the experiment into cells
//! (model x task x strategy x speedup x batch size); [`cell`] runs one: a quality pass to the natural end of
//! sequence and a timing pass of fixed length, interleaved with the full network; [`skipbench_record::Folder`] keeps
//! what is finished, so that a run that was cut off resumes; [`skipbench_report::Report`] draws what the folder holds.

pub mod cell;
pub mod cli;
pub mod commands;
pub mod compare;
pub mod experiment;
pub mod plan;
pub mod task;

pub use cli::main;

mod adapters;
mod allocator;
mod binary;
mod calibrate;
mod digest;
mod identity;
mod input;
mod layer_files;
mod load;
mod memo;
mod models;
mod outputs;
mod preview;
mod progress;
mod prompter;
mod samples;
mod scoring;
mod sweep;
mod trace;
mod yaml;
