//! `skipbench collect`.

use super::run::write_report;
use crate::sweep::Sweep;
use anyhow::bail;
use clap::Args;
use skipbench_record::{Folder, Record, Run};
use std::collections::HashSet;
use std::path::PathBuf;
use std::process::ExitCode;

/// Arguments of `skipbench collect`.
#[derive(Debug, Args)]
pub struct CollectArgs {
    /// Folder of a sweep
    #[arg(value_name = "DIR")]
    dir: PathBuf,
}

/// Makes one run of what the shards of a sweep have finished, and writes its report; neither checkpoint nor data is needed, and
/// shards may still be running.
///
/// # Errors
/// A folder that is no sweep, a shard of another experiment or program, another process that writes to the folder.
pub fn run(args: &CollectArgs) -> anyhow::Result<ExitCode> {
    let sweep = Sweep::open(&args.dir)?;
    // Before anything is written.
    sweep.own_folders()?;
    let info = skipbench_record::RunInfo::read(&args.dir)?;
    let mut folder = Folder::open(&args.dir, &info)?;
    for warning in folder.warnings() {
        tracing::warn!("{warning}");
    }
    sweep.collect(&mut folder)?;
    folder.close()?;
    let run = Run::read(&args.dir)?;
    if run.records.is_empty() {
        bail!(
            "no shard of {} has finished a cell yet; `skipbench status {}` says how far they are",
            args.dir.display(),
            args.dir.display()
        );
    }
    write_report(&args.dir, &HashSet::new())?;
    let failed = run.records.iter().filter_map(Record::why_failed).count();
    let missing = run.missing().len();
    if missing > 0 {
        tracing::warn!(
            "{missing} of {} cells are not there yet; `skipbench status {}` says why",
            run.info.cells.len(),
            args.dir.display()
        );
    }
    Ok(match failed + missing {
        0 => ExitCode::SUCCESS,
        _ => ExitCode::from(1),
    })
}
