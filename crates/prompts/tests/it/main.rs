//! Tests of what this crate gives to others.

#![allow(clippy::unwrap_used)]

mod bad_input;
mod parity;
