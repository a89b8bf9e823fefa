//! Scores against the reference implementations.
#![allow(clippy::unwrap_used, clippy::print_stdout)]

mod evidence;
mod golden;
mod invariants;
mod shared;
