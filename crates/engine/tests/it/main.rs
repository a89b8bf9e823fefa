//! The engine against a model whose numbers can be worked out by hand, and against transformers' own tokens.
#![allow(clippy::unwrap_used)]

mod exits;
mod mock;
mod parity;
mod speculate;
mod support;
