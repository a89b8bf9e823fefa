//! `skipbench report`.

use anyhow::bail;
use clap::Args;
use skipbench_record::Run;
use skipbench_report::Report;
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

/// Arguments of `skipbench report`.
#[derive(Debug, Args)]
pub struct ReportArgs {
    /// Folders of runs or archives; several stand side by side, and the shards of one experiment as one run
    #[arg(required = true)]
    dirs: Vec<PathBuf>,
    /// Folder to write to, instead of the run's own; without it nothing is written of several
    #[arg(long)]
    out: Option<PathBuf>,
    /// Also write an archive of the run: a small folder that stands alone
    #[arg(long, value_name = "DIR")]
    archive: Option<PathBuf>,
}

/// Draws runs again from their folders alone; runs nothing.
///
/// # Errors
/// A folder that is not there, that holds no run or one of another version.
pub fn run(args: ReportArgs) -> anyhow::Result<ExitCode> {
    if let Some(file) = args.dirs.iter().find(|path| path.is_file()) {
        bail!(
            "{} is a file; `report` takes the folder of a run, such as runs/quickstart",
            file.display()
        );
    }
    let runs = args.dirs.iter().map(|dir| Run::read(dir));
    let runs = Run::join_shards(runs.collect::<Result<_, _>>()?);
    for warning in runs.iter().flat_map(|run| &run.warnings) {
        tracing::warn!("{warning}");
    }
    let report = Report::of(&runs)?;
    let mut out = std::io::stdout().lock();
    write!(out, "{}", report.terminal())?;
    let own = (args.dirs.len() == 1).then(|| args.dirs[0].clone());
    if let Some(archive) = &args.archive {
        let [run] = &runs[..] else {
            bail!("`--archive` takes one run, or the shards of one");
        };
        run.archive(archive)?;
        report.write_archive(archive)?;
        writeln!(out, "Archive: {}", archive.display())?;
    }
    if let Some(dir) = args.out.or(own) {
        std::fs::create_dir_all(&dir)?;
        report.write(&dir)?;
        writeln!(out, "Report: {}", dir.join("report.html").display())?;
    }
    Ok(ExitCode::SUCCESS)
}
