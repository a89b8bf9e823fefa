//! `skipbench status`.

use super::print_json;
use crate::sweep::{CellState, Progress, ShardState, SweepState};
use clap::Args;
use serde_json::json;
use std::fmt::Write as _;
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

/// Arguments of `skipbench status`.
#[derive(Debug, Args)]
pub struct StatusArgs {
    /// Folder of a run or of a sweep
    #[arg(value_name = "DIR")]
    dir: PathBuf,
    /// Print one JSON value
    #[arg(long)]
    json: bool,
}

/// Says how far a run is: which cells are done, running, waiting, failed and missing, and what became of each shard.
///
/// # Errors
/// A folder that holds no run, or that cannot be read.
pub fn run(args: &StatusArgs) -> anyhow::Result<ExitCode> {
    let state = SweepState::of(&args.dir)?;
    for warning in &state.warnings {
        tracing::warn!("{warning}");
    }
    if args.json {
        let count = |progress: Progress| (progress.name().to_owned(), state.count(progress).into());
        let mut value = serde_json::to_value(&state)?;
        let mut counts: serde_json::Map<_, _> = Progress::ALL.map(count).into_iter().collect();
        counts.insert("total".to_owned(), json!(state.cells.len()));
        value["counts"] = counts.into();
        print_json(&value)?;
    } else {
        write!(std::io::stdout().lock(), "{}", text(&state))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Cells of a kind that are named one by one.
const NAMED: usize = 20;

fn text(state: &SweepState) -> String {
    let counts = Progress::ALL.map(|progress| (progress, state.count(progress)));
    let counts = counts.iter().filter(|(_, count)| *count > 0);
    let counts: Vec<String> = counts
        .map(|(progress, count)| format!("{count} {}", progress.name()))
        .collect();
    let mut text = format!(
        "{}: {} cells, {}\n",
        state.experiment,
        state.cells.len(),
        counts.join(", ")
    );
    for shard in &state.shards {
        text.push_str(&line(shard));
    }
    if let Some(collecting) = &state.collecting {
        let _ = writeln!(text, "collects: {collecting}");
    }
    let of = |progress: Progress| {
        state
            .cells
            .iter()
            .filter(move |cell| cell.state == progress)
    };
    name_all(&mut text, "Failed", of(Progress::Failed));
    name_all(&mut text, "Missing", of(Progress::Missing));
    let nobody = of(Progress::Missing).count() > 0 || of(Progress::Failed).count() > 0;
    if nobody && !state.shards.is_empty() {
        text.push_str(
            "\nThe command that began this, given again, runs what is missing and what failed.\n",
        );
    }
    text
}

/// `shard 2-of-4  failed  11 of 15 cells, node1: the time limit was reached`, and the last line of its log.
fn line(shard: &ShardState) -> String {
    let mut line = format!(
        "shard {}  {:<7}  {} of {} cells",
        shard.shard,
        shard.state.name(),
        shard.done,
        shard.cells
    );
    for detail in [&shard.node, &shard.reason].into_iter().flatten() {
        let _ = write!(line, ", {detail}");
    }
    if let (Progress::Failed | Progress::Running, Some(last)) = (shard.state, &shard.last_line) {
        let _ = write!(line, "\n    {}: {last}", shard.log.display());
    }
    line.push('\n');
    line
}

fn name_all<'a>(text: &mut String, heading: &str, cells: impl Iterator<Item = &'a CellState>) {
    let cells: Vec<&CellState> = cells.collect();
    if cells.is_empty() {
        return;
    }
    let _ = writeln!(text, "\n{heading}:");
    for cell in cells.iter().take(NAMED) {
        let reason = cell.reason.as_ref();
        let reason = reason.map_or_else(String::new, |reason| format!(": {reason}"));
        let _ = writeln!(text, "  {}{reason}", cell.name);
    }
    if cells.len() > NAMED {
        let _ = writeln!(text, "  and {} more", cells.len() - NAMED);
    }
}
