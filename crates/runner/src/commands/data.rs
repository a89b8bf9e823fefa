//! `skipbench data`.

use crate::experiment::MAX_PROMPTS;
use anyhow::bail;
use clap::Args;
use skipbench_tasks::{DEFAULT_SEED, Split, Task};
use std::io::Write;
use std::process::ExitCode;

/// Arguments of `skipbench data`.
#[derive(Debug, Args)]
pub struct DataArgs {
    /// `translation` or `summarization`
    task: String,
    /// `train`, `calibration` or `test`
    #[arg(long, default_value = "test")]
    split: String,
    /// How many examples
    #[arg(short, long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=MAX_PROMPTS as i64))]
    n: u32,
}

/// Writes `{"id", "prompt", "source", "reference"}` lines.
///
/// # Errors
/// An unknown task or split.
pub fn run(args: DataArgs) -> anyhow::Result<ExitCode> {
    let task: Task = args.task.parse()?;
    let split = match args.split.as_str() {
        "train" => Split::Train,
        "calibration" => Split::Calibration,
        "test" => Split::Test,
        other => bail!("unknown split `{other}`; there are `train`, `calibration` and `test`"),
    };
    let mut out = std::io::stdout().lock();
    for example in skipbench_tasks::examples(task, split, DEFAULT_SEED, args.n as usize) {
        let line = serde_json::json!({
            "id": example.id,
            "prompt": task.prompt(&example.source),
            "source": example.source,
            "reference": example.reference,
        });
        serde_json::to_writer(&mut out, &line)?;
        writeln!(out)?;
    }
    Ok(ExitCode::SUCCESS)
}
