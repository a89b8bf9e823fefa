//! Scores against the reference implementations.
#![allow(clippy::unwrap_used)]

mod golden;
mod invariants;
mod shared;
