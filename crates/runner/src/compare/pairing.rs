//! Which cell of the one run is which of the other, and whether the two can be compared.

use super::Axis;
use anyhow::bail;
use skipbench_record::{Record, Run};
use skipbench_strategy::StrategySpec;
use std::collections::BTreeSet;
use std::str::FromStr;

/// A strategy of the baseline and the one that is set against it.
#[derive(Clone, Debug)]
pub struct StrategyPair {
    old: Named,
    new: Named,
}

impl FromStr for StrategyPair {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once('=') {
            Some((old, new)) if !old.trim().is_empty() && !new.trim().is_empty() => Ok(Self {
                old: Named::of(old),
                new: Named::of(new),
            }),
            _ => Err(
                "write it as OLD=NEW, a strategy of BASELINE and one of NEW, as in `unified@2=top@2`"
                    .to_owned(),
            ),
        }
    }
}

/// A strategy as a user names it: by its settings where this program knows it, by its label where it does not.
#[derive(Clone, Debug)]
struct Named {
    text: String,
    spec: Option<StrategySpec>,
}

impl Named {
    fn of(text: &str) -> Self {
        Self {
            text: text.trim().to_owned(),
            spec: text.trim().parse().ok(),
        }
    }

    fn is(&self, record: &Record) -> bool {
        match (&self.spec, settings(record)) {
            (Some(spec), Some(of_record)) => *spec == of_record,
            _ => self.text == record.strategy.label,
        }
    }
}

/// The strategy of a record with every setting that this program knows, new ones at their default; `None` for one of
/// another program.
fn settings(record: &Record) -> Option<StrategySpec> {
    serde_json::from_value(record.strategy.spec.clone()).ok()
}

/// A cell of both runs.
#[derive(Clone, Copy)]
pub(super) struct CellPair<'a> {
    pub(super) old: &'a Record,
    /// `None` where the new run has no such cell.
    pub(super) new: Option<&'a Record>,
}

/// The cells of two runs.
pub(super) struct Pairing<'a> {
    /// Every cell of the baseline that is asked for.
    pub(super) cells: Vec<CellPair<'a>>,
    /// Names of the cells that the new run alone has.
    pub(super) added: Vec<String>,
}

/// Pairs the cells of two runs by what they are: model, task, strategy with all its settings, batch size and beams; with
/// `pairs`, only cells with these strategies.
pub(super) fn pair<'a>(
    baseline: &'a Run,
    new: &'a Run,
    across: &[Axis],
    pairs: &[StrategyPair],
) -> anyhow::Result<Pairing<'a>> {
    let places = Places::of(baseline, new, across);
    let old_cells = cells(&baseline.records, &places);
    let new_cells = cells(&new.records, &places);
    let mut pairing = Pairing {
        cells: Vec::new(),
        added: Vec::new(),
    };
    if pairs.is_empty() {
        let same =
            |old: &Record, new: &Record| places.is_same(old, new) && is_same_strategy(old, new);
        for old in &old_cells {
            let found = new_cells.iter().find(|new| same(old[0], new[0]));
            pairing.cells.push(closest(old, found));
        }
        let is_new = |new: &&Vec<&Record>| !old_cells.iter().any(|old| same(old[0], new[0]));
        let added = new_cells.iter().filter(is_new);
        pairing.added = added.map(|records| records[0].name()).collect();
    }
    for StrategyPair { old, new } in pairs {
        known(old, "BASELINE", &old_cells)?;
        known(new, "NEW", &new_cells)?;
        for old in old_cells.iter().filter(|cell| old.is(cell[0])) {
            let mut found = new_cells.iter().filter(|cell| new.is(cell[0]));
            let found = found.find(|new| places.is_same(old[0], new[0]));
            pairing.cells.push(closest(old, found));
        }
    }
    if pairing.cells.iter().all(|cell| cell.new.is_none()) {
        bail!(
            "no cell of BASELINE is in NEW, so there is nothing to compare\n  BASELINE: {}\n  NEW: {}\n\
             cells are the same that have the same model, task, strategy, batch size and beams; `--pair OLD=NEW` sets other \
             strategies side by side, `--across model` and `--across task` the only model or task of each",
            some_names(&old_cells),
            some_names(&new_cells)
        );
    }
    Ok(pairing)
}

/// The same strategy has the same settings; where this program does not know it, the same ones as text.
fn is_same_strategy(old: &Record, new: &Record) -> bool {
    old.strategy.spec == new.strategy.spec
        || settings(old).is_some_and(|spec| settings(new) == Some(spec))
}

/// What tells cells apart beside their strategy.
struct Places {
    /// The one model of each run counts as the same, whatever its name.
    any_model: bool,
    any_task: bool,
}

impl Places {
    fn of(baseline: &Run, new: &Run, across: &[Axis]) -> Self {
        let single = |name: fn(&Record) -> &String| {
            [baseline, new].into_iter().all(|run| {
                let names: BTreeSet<&String> = run.records.iter().map(name).collect();
                names.len() == 1
            })
        };
        Self {
            any_model: across.contains(&Axis::Model) && single(|record| &record.model.name),
            any_task: across.contains(&Axis::Task) && single(|record| &record.task.name),
        }
    }

    fn is_same(&self, old: &Record, new: &Record) -> bool {
        (self.any_model || old.model.name == new.model.name)
            && (self.any_task || old.task.name == new.task.name)
            && old.search.batch_size == new.search.batch_size
            && old.search.beams == new.search.beams
    }
}

/// The records of each cell, one of each machine.
fn cells<'a>(records: &'a [Record], places: &Places) -> Vec<Vec<&'a Record>> {
    let mut cells: Vec<Vec<&Record>> = Vec::new();
    for record in records {
        let same = |cell: &&mut Vec<&Record>| {
            let first = cell[0];
            places.is_same(first, record) && is_same_strategy(first, record)
        };
        match cells.iter_mut().find(same) {
            Some(cell) => cell.push(record),
            None => cells.push(vec![record]),
        }
    }
    cells
}

/// Of several machines those that both were measured on, otherwise the last of each.
fn closest<'a>(old: &[&'a Record], new: Option<&Vec<&'a Record>>) -> CellPair<'a> {
    let new = new.map_or(&[][..], Vec::as_slice);
    let pairs = old
        .iter()
        .rev()
        .flat_map(|old| new.iter().rev().map(move |new| (*old, *new)));
    let on_one_machine = pairs
        .clone()
        .find(|(old, new)| machine_changes(old, new).is_empty());
    match on_one_machine.or_else(|| pairs.clone().next()) {
        Some((old, new)) => CellPair {
            old,
            new: Some(new),
        },
        None => CellPair {
            old: old[old.len() - 1],
            new: None,
        },
    }
}

/// What differs between the machines of two measurements and changes times.
pub(super) fn machine_changes(old: &Record, new: &Record) -> Vec<String> {
    let mut changes = new.measured().machine.differences(&old.measured().machine);
    if old.model.device != new.model.device {
        changes.push(format!(
            "device {}, not {}",
            new.model.device, old.model.device
        ));
    }
    changes
}

fn known(strategy: &Named, side: &str, cells: &[Vec<&Record>]) -> anyhow::Result<()> {
    if cells.iter().any(|cell| strategy.is(cell[0])) {
        return Ok(());
    }
    let labels: BTreeSet<&str> = cells
        .iter()
        .map(|cell| cell[0].strategy.label.as_str())
        .collect();
    let labels: Vec<String> = labels.iter().map(|label| format!("`{label}`")).collect();
    bail!(
        "--pair: {side} has no strategy `{}`; it has {}",
        strategy.text,
        labels.join(", ")
    )
}

fn some_names(cells: &[Vec<&Record>]) -> String {
    const SHOWN: usize = 4;
    let names: Vec<String> = cells
        .iter()
        .take(SHOWN)
        .map(|cell| cell[0].name())
        .collect();
    match cells.len() {
        0 => "no finished cell".to_owned(),
        n if n > SHOWN => format!("{}, and {} more", names.join(", "), n - SHOWN),
        _ => names.join(", "),
    }
}

/// What is not the same in two cells though it must be, each with what lets it differ.
pub(super) fn differences(old: &Record, new: &Record) -> Vec<(Axis, String)> {
    let mut found = Vec::new();
    let mut differ = |axis, name: &str, was: &str, is: &str| {
        if was != is {
            found.push((axis, format!("{name} ({} -> {})", short(was), short(is))));
        }
    };
    let (was, is) = (&old.model, &new.model);
    differ(Axis::Model, "weights", &was.weights, &is.weights);
    differ(Axis::Model, "tokenizer", &was.tokenizer, &is.tokenizer);
    differ(Axis::Model, "config", &was.config, &is.config);
    differ(Axis::Model, "element type", &was.dtype, &is.dtype);
    if old.task.texts != new.task.texts {
        let (was, is) = (old.task.prompts, new.task.prompts);
        let texts = match was == is {
            true => format!("prompts or references (of {was} prompts)"),
            false => format!("prompts ({was} -> {is})"),
        };
        found.push((Axis::Task, texts));
    }
    for part in new.answers_from.differing(&old.answers_from) {
        let axis = match part {
            // Told by the records themselves.
            "weights" | "tokenizer" | "config" | "dtype" | "task texts" | "device" => continue,
            // What the cell is.
            "strategy" | "batch size" | "beams" => continue,
            // What is tested.
            "binary" => continue,
            // What computes and how long it is timed: `machine_changes` tells it where it matters.
            "instruction set" | "GPU" | "GPU driver" | "host" | "processor" | "cores"
            | "threads" | "timing settings" | "seed" => continue,
            "calibration texts" => Axis::Task,
            "kv-dtype" => Axis::Model,
            // What is not known is a setting.
            _ => Axis::Settings,
        };
        found.push((axis, new.answers_from.change(&old.answers_from, part)));
    }
    if let (Some(was), Some(is)) = (&old.timing, &new.timing)
        && was.new_tokens != is.new_tokens
    {
        let tokens = format!(
            "timing new-tokens ({} -> {})",
            was.new_tokens, is.new_tokens
        );
        found.push((Axis::Settings, tokens));
    }
    found
}

/// A digest is told by its first digits.
fn short(text: &str) -> &str {
    match text.len() > 16 && text.is_ascii() {
        true => &text[..8],
        false => text,
    }
}
