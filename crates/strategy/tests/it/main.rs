//! Layer sets against their golden files, and specs as a user writes them.
#![allow(clippy::unwrap_used)]

mod forms;
mod golden;
mod spec;
