//! Tests of what this crate gives to others.

mod bad_input;
mod parity;
