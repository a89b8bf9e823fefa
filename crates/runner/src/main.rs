//! The `skipbench` binary: parses the command line, runs the command, turns the outcome into an exit code.

use clap::Parser;
use skipbench::cli::Cli;
use std::io::Write;
use std::process::ExitCode;

/// Training allocates and frees tensors of megabytes all the time; the system's allocator gives each back to the
/// kernel, which then clears the pages again.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let cli = Cli::parse();
    skipbench::cli::init_logging(cli.verbose);
    // The main thread works in the pool itself: a product handed over and waited for costs two wake-ups. A pool that
    // cannot be built leaves the default one, which is only slower.
    let _ = rayon::ThreadPoolBuilder::new()
        .use_current_thread()
        .build_global();
    match cli.command.run() {
        Ok(code) => code,
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            // Nothing is left to tell if stderr is gone.
            let _ = writeln!(std::io::stderr(), "error: {error:#}");
            ExitCode::from(2)
        }
    }
}

/// `skipbench .. | head` is not an error.
fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        cause
            .downcast_ref::<std::io::Error>()
            .is_some_and(|io| io.kind() == std::io::ErrorKind::BrokenPipe)
    })
}
