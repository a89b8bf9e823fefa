//! The engine against a model whose numbers can be worked out by hand, and against transformers' own tokens.
#![allow(clippy::unwrap_used)]

mod beams;
mod candidates;
mod each;
mod exits;
mod fills;
mod likelihood;
mod memory;
mod mock;
mod modules;
mod not_numbers;
mod oracles;
mod parity;
mod prefill;
mod quantised;
mod sampling;
mod scores;
mod speculate;
mod stops;
mod support;
mod timing;
mod work;
