//! The `skipbench` binary.

use std::process::ExitCode;

/// Training allocates and frees tensors of megabytes all the time; the system's allocator gives each back to the
/// kernel, which then clears the pages again.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    skipbench::main()
}
