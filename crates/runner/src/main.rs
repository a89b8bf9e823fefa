//! The `skipbench` binary.
fn main() {}
