//! The `skipbench` binary as its users meet it.
#![allow(clippy::unwrap_used)]

mod bad_input;
mod chat;
mod compare;
mod first_steps;
mod gate;
mod generate;
mod http;
#[path = "../../../model/tests/it/hub_server.rs"]
mod hub_server;
mod kinds;
mod layers;
mod likelihood;
mod lm_eval;
mod paper;
mod plan;
mod prune;
mod records;
mod report;
mod run;
mod runs;
mod schema;
mod score;
mod serve;
mod shapes;
mod slurm;
mod sources;
mod strategies;
mod support;
mod sweep;
mod tasks;
mod train;
mod train_adapter;
mod train_objective;
