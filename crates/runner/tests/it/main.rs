//! The `skipbench` binary as its users meet it.

mod bad_input;
mod generate;
mod layers;
mod run;
mod schema;
mod support;
mod train;
