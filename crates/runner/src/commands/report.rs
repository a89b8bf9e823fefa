//! `skipbench report`.

use super::run::{Provenance, write_report};
use crate::plan::Plan;
use crate::store::Store;
use clap::Args;
use std::path::PathBuf;
use std::process::ExitCode;

/// Arguments of `skipbench report`.
#[derive(Debug, Args)]
pub struct ReportArgs {
    /// YAML experiment
    experiment: PathBuf,
    /// Folder of the results, instead of the experiment's own
    #[arg(long)]
    out: Option<PathBuf>,
}

/// Writes the report from what is finished; runs nothing.
///
/// # Errors
/// A run that is not there or cannot be read.
pub fn run(args: ReportArgs) -> anyhow::Result<ExitCode> {
    let mut plan = Plan::from_yaml(&args.experiment)?;
    if args.out.is_some() {
        plan.experiment.out = args.out;
    }
    let dir = plan.experiment.out_dir();
    if !dir.join("cells.jsonl").is_file() {
        anyhow::bail!(
            "{} holds no run; `skipbench run {}` makes one",
            dir.display(),
            args.experiment.display()
        );
    }
    let store = Store::open(&dir)?;
    let provenance = Provenance::of(&dir, &plan)?;
    write_report(&plan, &store, &dir, &provenance, &[])?;
    Ok(ExitCode::SUCCESS)
}
