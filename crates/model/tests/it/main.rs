//! What a user of the crate sees: checkpoints in, logits and tokens out, clear errors.
#![allow(clippy::unwrap_used)]

mod bad_gguf;
mod bad_input;
mod cases;
mod families;
mod gguf;
mod hub;
mod hub_server;
mod kv;
mod narrow;
mod oracle;
mod parity;
mod quantised;
mod stories;
mod support;
mod tokens;
