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
    /// Folders of runs, or archived ones; shards of one experiment are drawn as one run, others side by side
    #[arg(required = true, value_name = "DIR")]
    dirs: Vec<PathBuf>,
    /// Folder to write to. Without it one run is drawn in its own folder, and several are printed alone
    #[arg(long)]
    out: Option<PathBuf>,
    /// Folder for an archive: small, and drawn again wherever it goes
    #[arg(long, value_name = "DEST")]
    archive: Option<PathBuf>,
}

/// Draws everything again from what the folders hold; runs nothing, and needs neither checkpoint nor data.
///
/// # Errors
/// A folder that holds no run or one of another version, and one that cannot be written.
pub fn run(args: ReportArgs) -> anyhow::Result<ExitCode> {
    let runs = read(&args.dirs)?;
    let report = Report::of(&runs)?;
    let mut written = String::new();
    if let Some(dest) = &args.archive {
        let [run] = &runs[..] else {
            bail!(
                "--archive takes one run, or the shards of one; these are {}",
                runs.len()
            );
        };
        run.archive(dest)?;
        report.write_archive(dest)?;
        written.push_str(&format!("Archive: {}\n", dest.display()));
    }
    let own = (args.dirs.len() == 1).then(|| &args.dirs[0]);
    if let Some(dir) = args.out.as_ref().or(own) {
        match args.out.is_none() && runs[0].is_archive() {
            // What is archived stays small.
            true => report.write_archive(dir)?,
            false => report.write(dir)?,
        };
        written.push_str(&format!("Report: {}\n", dir.join("report.html").display()));
    }
    let mut out = std::io::stdout().lock();
    write!(out, "{}{written}", report.terminal())?;
    Ok(ExitCode::SUCCESS)
}

/// Reads runs, with what is wrong with them to stderr.
fn read(dirs: &[PathBuf]) -> anyhow::Result<Vec<Run>> {
    let mut runs = Vec::new();
    for dir in dirs {
        if dir.is_file() {
            let name = dir.file_stem().unwrap_or_default().to_string_lossy();
            bail!(
                "{} is a file, and `report` takes the folder that a run has written, such as runs/{name}",
                dir.display()
            );
        }
        let run = Run::read(dir)?;
        for warning in &run.warnings {
            tracing::warn!("{warning}");
        }
        runs.push(run);
    }
    Ok(Run::join_shards(runs))
}
