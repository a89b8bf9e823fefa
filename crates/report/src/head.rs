//! The head of a report: what was run, where, when and with what.

use crate::fields::short;
use crate::report::spelled;
use crate::row::Row;
use skipbench_machine::Machine;
use skipbench_record::Run;
use std::fmt::Display;

/// Cells that are named where results are missing.
const NAMED: usize = 8;

/// What stands above the tables.
pub(crate) struct Head {
    pub(crate) title: String,
    /// A name and a value each.
    pub(crate) facts: Vec<(String, String)>,
    pub(crate) notes: Vec<String>,
    /// What there is no result of yet, one a run; also among the notes.
    pub(crate) missing: Vec<String>,
    /// What every machine is called in the tables, and what it is.
    pub(crate) machines: Vec<(String, String)>,
}

impl Head {
    /// `names`: what the runs are called.
    pub(crate) fn new(
        runs: &[Run],
        names: &[String],
        rows: &[&Row<'_>],
        machines: &[&Machine],
    ) -> Self {
        let of_runs = |of: fn(&Run) -> String| distinct(runs.iter().map(of));
        let binaries = distinct(rows.iter().map(|row| &row.record.measured().binary));
        let mut facts = vec![
            (
                "experiment".to_owned(),
                of_runs(|run| run.info.name.clone()).join("; "),
            ),
            (
                "models".to_owned(),
                distinct(rows.iter().map(|row| model(row))).join("; "),
            ),
        ];
        let name = |index: usize| match machines.len() {
            1 => "machine".to_owned(),
            _ => format!("machine {}", index + 1),
        };
        let numbered = machines.iter().enumerate();
        let machines: Vec<(String, String)> = numbered
            .map(|(index, machine)| (name(index), spelled(machine, machines)))
            .collect();
        facts.extend(machines.iter().cloned());
        facts.extend([
            ("made with".to_owned(), binaries.join("; ")),
            ("date".to_owned(), dates(rows)),
            (
                "seed".to_owned(),
                of_runs(|run| run.info.seed.to_string()).join("; "),
            ),
        ]);
        facts.retain(|(_, value)| !value.is_empty());
        let written = runs.iter().flat_map(|run| run.info.notes.iter().cloned());
        let mut notes = distinct(written);
        let unfinished = runs.iter().zip(names);
        let missing: Vec<String> = unfinished
            .filter_map(|(run, name)| missing(run, name))
            .collect();
        notes.extend(missing.iter().cloned());
        Self {
            title: of_runs(|run| run.info.title.clone()).join(" | "),
            facts,
            notes,
            missing,
            machines,
        }
    }
}

/// Each once, in order of appearance.
fn distinct<T: Display>(values: impl Iterator<Item = T>) -> Vec<String> {
    let mut distinct: Vec<String> = Vec::new();
    for value in values.map(|value| value.to_string()) {
        if !distinct.contains(&value) {
            distinct.push(value);
        }
    }
    distinct
}

fn model(row: &Row<'_>) -> String {
    let model = &row.record.model;
    format!(
        "{} ({} layers, {} on {}, weights {})",
        model.name,
        model.n_layers,
        model.kept(),
        model.device,
        short(&model.weights)
    )
}

/// The days from the first result to the last.
fn dates(rows: &[&Row<'_>]) -> String {
    let records = rows.iter().map(|row| row.record);
    let mut days: Vec<&str> = records
        .flat_map(|record| [&record.made.at, &record.measured().at])
        .map(|at| at.get(..10).unwrap_or(at))
        .collect();
    days.sort_unstable();
    match (days.first(), days.last()) {
        (Some(first), Some(last)) if first != last => format!("{first} to {last}"),
        (Some(day), _) => (*day).to_owned(),
        _ => String::new(),
    }
}

fn missing(run: &Run, name: &str) -> Option<String> {
    let missing = run.missing();
    if missing.is_empty() {
        return None;
    }
    let more = match missing.len().saturating_sub(NAMED) {
        0 => String::new(),
        more => format!("; and {more} more"),
    };
    Some(format!(
        "{} of {} cells of {name} have no result yet: {}{more}.",
        missing.len(),
        run.info.cells.len(),
        missing[..missing.len().min(NAMED)].join("; ")
    ))
}
