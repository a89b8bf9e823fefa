//! What changed from one run to another: better, same, worse, or cannot tell.
//!
//! The cells of both runs are paired by what they are (`pairing.rs`); speed and quality of each pair become a change with
//! its uncertainty (`estimate.rs`), and all of them together, corrected for their number (Holm 1979), become verdicts. The
//! [`Comparison`] holds everything that is printed of it in whatever form.
//!
//! A loss counts where it is larger than the limit and this is no accident: where the whole interval of the change lies
//! beyond the limit, and, for quality, a test that does without that interval finds a change at all. So an identical build
//! is called worse less often than `alpha`, and neither is one that loses less than the limit.

mod check;
mod estimate;
mod output;
mod pairing;
mod quality;
mod speed;

pub use check::{Change, Check, Dimension};
pub use estimate::Verdict;
pub use output::{annotations, junit, markdown, table};
pub use pairing::StrategyPair;

use anyhow::bail;
use check::{cell, judge};
use pairing::{CellPair, differences};
use serde::Serialize;
use skipbench_metrics::Resampling;
use skipbench_record::{Record, Run};
use std::collections::BTreeSet;

/// What two runs may differ in and be compared all the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Axis {
    /// Weights, tokenizer, configuration, element type
    Model,
    /// Prompts and references; the prompts that both have are compared
    Task,
    /// Decoding and timing settings
    Settings,
    /// Machine, threads, instruction set, GPU: times of both are compared
    Machine,
}

impl Axis {
    fn name(self) -> &'static str {
        match self {
            Self::Model => "model",
            Self::Task => "task",
            Self::Settings => "settings",
            Self::Machine => "machine",
        }
    }
}

/// What counts as worse.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Limits {
    /// How much longer a token may take, as a share.
    pub max_slowdown: f64,
    /// Loss of quality that is allowed, in points: hundredths of the metric's range.
    pub max_quality_drop: f64,
    /// The chance that anything is called worse though nothing is.
    pub alpha: f64,
    /// A loss of tokens per second counts too.
    pub tokens_per_s: bool,
}

/// How to compare.
#[derive(Clone, Debug)]
pub struct Settings {
    /// What counts as worse.
    pub limits: Limits,
    /// What may differ.
    pub across: Vec<Axis>,
    /// Strategies that are set against each other; where there are none, each is set against itself.
    pub pairs: Vec<StrategyPair>,
}

/// Two runs, cell by cell.
#[derive(Clone, Debug, Serialize)]
pub struct Comparison {
    /// The one that is compared with.
    pub baseline: Side,
    /// The one that is judged.
    pub new: Side,
    /// What counted as worse.
    pub limits: Limits,
    /// What was allowed to differ.
    pub across: Vec<Axis>,
    /// The worst verdict of all: what the exit code says.
    pub worse: bool,
    /// The cells of the baseline, in order.
    pub cells: Vec<CellComparison>,
    /// Names of the cells that the new run alone has.
    pub added: Vec<String>,
    /// What a reader must know of either run.
    pub warnings: Vec<String>,
}

/// A run that is compared.
#[derive(Clone, Debug, Serialize)]
pub struct Side {
    /// Its folder.
    pub dir: String,
    /// Name of the experiment.
    pub experiment: String,
    /// The programs that made its results.
    pub binaries: Vec<String>,
    /// The machines that it was measured on.
    pub machines: Vec<String>,
}

/// A cell of the baseline and what became of it.
#[derive(Clone, Debug, Serialize)]
pub struct CellComparison {
    /// For people: `model task batch 8 unified@2`.
    pub name: String,
    /// Name of the model.
    pub model: String,
    /// Name of the task.
    pub task: String,
    /// Rows of a batch.
    pub batch_size: usize,
    /// Beams; 1 is greedy decoding.
    pub beams: usize,
    /// The strategy of the baseline.
    pub strategy: String,
    /// The strategy that is set against it, where it is another one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub new_strategy: Option<String>,
    /// What was compared.
    pub checks: Vec<Check>,
}

/// Compares two runs.
///
/// # Errors
/// Runs that are not comparable, with what differs; a strategy of a pair that is not there.
pub fn compare(baseline: &Run, new: &Run, settings: &Settings) -> anyhow::Result<Comparison> {
    let pairing = pairing::pair(baseline, new, &settings.across, &settings.pairs)?;
    comparable(&pairing.cells, &settings.across)?;
    let resampling = resampling(settings.limits.alpha, pairing.cells.len());
    let mut cells: Vec<CellComparison> = pairing
        .cells
        .iter()
        .map(|pair| cell(baseline, new, pair, settings, &resampling))
        .collect();
    judge(&mut cells, &settings.limits);
    let mut comparison = Comparison {
        baseline: Side::of(baseline),
        new: Side::of(new),
        limits: settings.limits,
        across: settings.across.clone(),
        worse: false,
        cells,
        added: pairing.added,
        warnings: Vec::new(),
    };
    comparison.worse = comparison.count(Verdict::Worse) > 0;
    for (name, run) in [("BASELINE", baseline), ("NEW", new)] {
        let warnings = run.warnings.iter();
        comparison
            .warnings
            .extend(warnings.map(|warning| format!("{name}: {warning}")));
    }
    Ok(comparison)
}

impl Comparison {
    /// Every check with its cell.
    pub fn checks(&self) -> impl Iterator<Item = (&CellComparison, &Check)> {
        self.cells
            .iter()
            .flat_map(|cell| cell.checks.iter().map(move |check| (cell, check)))
    }

    /// Checks with this verdict.
    pub fn count(&self, verdict: Verdict) -> usize {
        self.checks()
            .filter(|(_, check)| check.verdict == verdict)
            .count()
    }
}

impl Side {
    fn of(run: &Run) -> Self {
        let distinct = |of: fn(&Record) -> String| -> Vec<String> {
            let all: BTreeSet<String> = run.records.iter().map(of).collect();
            all.into_iter().collect()
        };
        Self {
            dir: run.dir.display().to_string(),
            experiment: run.info.name.clone(),
            binaries: distinct(|record| record.measured().binary.to_string()),
            machines: distinct(|record| record.measured().machine.to_string()),
        }
    }
}

/// Refuses cells that differ in what they must not.
fn comparable(cells: &[CellPair<'_>], across: &[Axis]) -> anyhow::Result<()> {
    let mut reasons: Vec<String> = Vec::new();
    let mut needed = BTreeSet::new();
    for CellPair { old, new } in cells {
        let found = new.map_or(Vec::new(), |new| differences(old, new));
        for (axis, difference) in found {
            if across.contains(&axis) {
                continue;
            }
            needed.insert(axis);
            let reason = match axis {
                Axis::Model => format!("model {}: {difference}", old.model.name),
                Axis::Task => format!("task {}: {difference}", old.task.name),
                Axis::Settings | Axis::Machine => difference,
            };
            if !reasons.contains(&reason) {
                reasons.push(reason);
            }
        }
    }
    if reasons.is_empty() {
        return Ok(());
    }
    let flags = needed
        .into_iter()
        .map(|axis| format!("--across {}", axis.name()));
    let flags: Vec<String> = flags.collect();
    bail!(
        "BASELINE and NEW are not comparable; they differ in\n  {}\n`{}` compares them all the same",
        reasons.join("\n  "),
        flags.join(" ")
    )
}

/// Enough shuffles that a p-value can pass the correction for all cells.
fn resampling(alpha: f64, cells: usize) -> Resampling {
    let least = 20.0 * cells as f64 / alpha;
    Resampling {
        shuffles: (least as usize).clamp(Resampling::default().shuffles, 200_000),
        ..Resampling::default()
    }
}
