//! What is compared of a cell, and what can be said of it.

use super::estimate::{Bias, Estimate, MOST_TIMES_AS_MANY, Verdict};
use super::pairing::{CellPair, machine_changes};
use super::quality::QualityChange;
use super::speed::{Measure, Speeds};
use super::{Axis, CellComparison, Limits, Settings};
use serde::Serialize;
use skipbench_metrics::{Resampling, holm};
use skipbench_record::{Record, Run};

/// One thing that was compared.
#[derive(Clone, Debug, Serialize)]
pub struct Check {
    /// `result` (whether there is one), `speed`, `tokens/s` or `quality`.
    pub dimension: Dimension,
    /// What was measured: `achieved`, `tokens/s`, or the name of a metric.
    pub measure: String,
    /// Its value in the baseline, on its own scale.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub baseline: Option<f64>,
    /// Its value in the new run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub new: Option<f64>,
    /// From the one to the other, gains above zero.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub change: Option<Change>,
    /// Chance of such a loss beyond the limit where there is none, times two, after correction for all that was tested.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub p_worse: Option<f64>,
    /// What can be said.
    pub verdict: Verdict,
    /// Batches or prompts that it was measured on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub measured_on: Option<usize>,
    /// Batches or prompts that would tell, where it cannot be told and more would help.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub needed: Option<usize>,
    /// Why, where the numbers do not say it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    #[serde(skip)]
    estimate: Option<Estimate>,
}

/// A change with its interval.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Change {
    /// A share of the baseline's speed, or points of quality.
    pub value: f64,
    /// Low end of the interval at the level 1 - alpha.
    pub lo: f64,
    /// High end.
    pub hi: f64,
}

/// What is compared of a cell.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
pub enum Dimension {
    /// Whether there is a result.
    #[serde(rename = "result")]
    Result,
    /// Speedup over the full network.
    #[serde(rename = "speed")]
    Speed,
    /// Tokens per second.
    #[serde(rename = "tokens/s")]
    TokensPerSecond,
    /// Score of the answers.
    #[serde(rename = "quality")]
    Quality,
}

impl Dimension {
    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Result => "result",
            Self::Speed => "speed",
            Self::TokensPerSecond => "tokens/s",
            Self::Quality => "quality",
        }
    }

    /// What more is needed of where it cannot be told.
    pub fn unit(self) -> &'static str {
        match self {
            Self::Quality | Self::Result => "prompts",
            Self::Speed | Self::TokensPerSecond => "batches",
        }
    }
}

/// Compares the two records of a cell; verdicts that need all cells come from [`judge`].
pub(super) fn cell(
    baseline: &Run,
    run: &Run,
    &CellPair { old, new }: &CellPair<'_>,
    settings: &Settings,
    resampling: &Resampling,
) -> CellComparison {
    let other = new.filter(|new| new.strategy.label != old.strategy.label);
    let new_strategy = other.map(|new| new.strategy.label.clone());
    let name = match &new_strategy {
        Some(label) => format!("{} -> {label}", old.name()),
        None => old.name(),
    };
    let checks = match new {
        None => vec![Check::result(
            Verdict::Worse,
            "NEW has no such cell".to_owned(),
        )],
        Some(new) => match missing_result(old, new) {
            Some(check) => vec![check],
            None => {
                let mut checks = speed(old, new, settings);
                checks.extend(quality((baseline, old), (run, new), resampling));
                checks
            }
        },
    };
    CellComparison {
        name,
        model: old.model.name.clone(),
        task: old.task.name.clone(),
        batch_size: old.search.batch_size,
        beams: old.search.beams,
        strategy: old.strategy.label.clone(),
        new_strategy,
        checks,
    }
}

/// Where one of the cells has failed.
fn missing_result(old: &Record, new: &Record) -> Option<Check> {
    let failed = |record: &Record| match (&record.failure, &record.quality) {
        (Some(reason), _) => Some(reason.clone()),
        (None, None) => Some("there are no answers".to_owned()),
        (None, Some(_)) => None,
    };
    match (failed(old), failed(new)) {
        (None, None) => None,
        (None, Some(reason)) => Some(Check::result(
            Verdict::Worse,
            format!("failed in NEW: {reason}"),
        )),
        (Some(_), None) => Some(Check::result(
            Verdict::Better,
            "failed in BASELINE alone".to_owned(),
        )),
        (Some(_), Some(reason)) => Some(Check::result(
            Verdict::CannotTell,
            format!("failed in both; in NEW: {reason}"),
        )),
    }
}

/// Nothing where neither was timed, and nothing but tokens per second for the full network, which is its own yardstick.
fn speed(old: &Record, new: &Record, settings: &Settings) -> Vec<Check> {
    if old.timing.is_none() && new.timing.is_none() {
        return Vec::new();
    }
    let machine = machine_changes(old, new);
    let mut checks = Vec::new();
    if !(old.strategy.is_full && new.strategy.is_full) {
        let mut check = Check::of_speed(Measure::Achieved, old, new, settings);
        if !machine.is_empty() && !settings.across.contains(&Axis::Machine) {
            check.estimate = None;
            check.reason = Some(format!(
                "measured on another machine ({}); `--across machine` compares all the same",
                machine.join("; ")
            ));
        }
        checks.push(check);
    }
    if machine.is_empty() {
        checks.push(Check::of_speed(
            Measure::TokensPerSecond,
            old,
            new,
            settings,
        ));
    }
    checks
}

fn quality(old: (&Run, &Record), new: (&Run, &Record), resampling: &Resampling) -> Option<Check> {
    let metric = old.1.task.metrics.first()?.clone();
    let blank = Check::blank(Dimension::Quality, metric);
    Some(match QualityChange::of(old, new, resampling) {
        Err(reason) => Check {
            reason: Some(reason.to_string()),
            ..blank
        },
        Ok(change) if change.changed == 0 => Check {
            baseline: Some(change.old),
            new: Some(change.new),
            change: Some(Change {
                value: 0.0,
                lo: 0.0,
                hi: 0.0,
            }),
            verdict: Verdict::Same,
            measured_on: Some(change.prompts),
            reason: Some(format!("all {} answers are the same", change.prompts)),
            ..blank
        },
        Ok(change) => Check {
            measure: change.metric,
            baseline: Some(change.old),
            new: Some(change.new),
            measured_on: Some(change.prompts),
            reason: Some(format!(
                "{} of {} answers differ ({})",
                change.changed, change.prompts, change.test
            )),
            estimate: change.estimate,
            ..blank
        },
    })
}

/// Of a change of the full network from one run to the next, the share that may show in `achieved` though nothing has changed,
/// for a strategy that does the full network's work and less of it.
const SHARE_OF_LIKE_WORK: f64 = 0.25;

/// The same for one that also does other work: exit checks do not become faster where the layers do
/// (`reports/2026-11-27-amd-epyc-2c-gate-aa`).
const SHARE_OF_OTHER_WORK: f64 = 1.0;

/// Changes of the full network up to this log are not worth a note.
const WORTH_TELLING: f64 = 0.02;

/// How far the `achieved` of a strategy may be off where the full network runs `machine` (a log) faster than in the baseline:
/// too low where it does, too high where it runs slower.
fn what_the_machine_may_explain(machine: f64, strategy: &Record) -> Bias {
    let ledger = strategy.quality.as_ref().map(|quality| quality.ledger);
    let other_work = ledger.is_some_and(|ledger| ledger.checks.bytes + ledger.draft.bytes > 0);
    let share = match other_work {
        true => SHARE_OF_OTHER_WORK,
        false => SHARE_OF_LIKE_WORK,
    };
    Bias {
        below: share * (-machine).max(0.0),
        above: share * machine.max(0.0),
    }
}

impl Check {
    fn blank(dimension: Dimension, measure: String) -> Self {
        Self {
            dimension,
            measure,
            baseline: None,
            new: None,
            change: None,
            p_worse: None,
            verdict: Verdict::CannotTell,
            measured_on: None,
            needed: None,
            reason: None,
            estimate: None,
        }
    }

    fn result(verdict: Verdict, reason: String) -> Self {
        Self {
            verdict,
            reason: Some(reason),
            ..Self::blank(Dimension::Result, "result".to_owned())
        }
    }

    fn of_speed(measure: Measure, old: &Record, new: &Record, settings: &Settings) -> Self {
        let blank = match measure {
            Measure::Achieved => Self::blank(Dimension::Speed, "achieved".to_owned()),
            _ => Self::blank(Dimension::TokensPerSecond, "tokens/s".to_owned()),
        };
        let untimed = |record: &Record| record.timing.is_none();
        let Some(speeds) = Speeds::of(measure, old, new) else {
            let reason = match (untimed(old), untimed(new)) {
                (true, _) => "not timed in BASELINE",
                (_, true) => "not timed in NEW",
                _ => "there is no usable time",
            };
            return Self {
                reason: Some(reason.to_owned()),
                ..blank
            };
        };
        let full = Speeds::of(Measure::FullTokensPerSecond, old, new);
        let machine = full.map_or(0.0, |full| (full.new / full.old).ln());
        let same_machine = machine_changes(old, new).is_empty();
        let mut estimate = speeds.change.as_ref().map(Estimate::from);
        if let (Measure::Achieved, true, Some(estimate)) = (measure, same_machine, &mut estimate) {
            estimate.bias = what_the_machine_may_explain(machine, new);
        }
        let tells_the_machine = match measure {
            Measure::Achieved => same_machine && machine.abs() > WORTH_TELLING,
            _ => !settings.limits.tokens_per_s,
        };
        Self {
            baseline: Some(speeds.old),
            new: Some(speeds.new),
            measured_on: Some(speeds.change.map_or(1, |change| change.batches)),
            reason: match speeds.change {
                None => Some("one batch cannot tell; two are the least".to_owned()),
                Some(_) => tells_the_machine.then(|| {
                    let percent = 100.0 * machine.exp_m1();
                    format!("the full network beside it changed by {percent:+.1}%")
                }),
            },
            estimate,
            ..blank
        }
    }

    /// The largest loss that is allowed, in the units of the estimate.
    fn limit(&self, limits: &Limits) -> f64 {
        match self.dimension {
            Dimension::Speed | Dimension::TokensPerSecond => limits.max_slowdown.ln_1p(),
            Dimension::Quality | Dimension::Result => limits.max_quality_drop,
        }
    }

    /// Whether a loss makes the run worse. Tokens per second of two runs differ with whatever else a machine did meanwhile.
    fn decides(&self, limits: &Limits) -> bool {
        self.dimension != Dimension::TokensPerSecond || limits.tokens_per_s
    }

    fn judge(&mut self, estimate: &Estimate, limits: &Limits, (p_loss, p_gain): (f64, f64)) {
        let (limit, alpha) = (self.limit(limits), limits.alpha);
        let (lo, hi) = estimate.interval(alpha);
        let shown = |gain: f64| match self.dimension {
            Dimension::Speed | Dimension::TokensPerSecond => gain.exp_m1(),
            Dimension::Quality | Dimension::Result => gain,
        };
        self.change = Some(Change {
            value: shown(estimate.gain),
            lo: shown(lo),
            hi: shown(hi),
        });
        self.p_worse = Some(p_loss);
        self.verdict = estimate.verdict(limit, alpha, p_loss, p_gain);
        if self.verdict == Verdict::Worse && !self.decides(limits) {
            self.verdict = Verdict::CannotTell;
            self.explain("slower, which alone fails no gate but with `--tokens-per-s`".to_owned());
        } else if self.verdict == Verdict::CannotTell {
            self.needed = estimate.units_needed(limit, alpha);
            let (unit, now) = (self.dimension.unit(), estimate.units);
            self.explain(match self.needed {
                Some(needed) => format!("about {needed} {unit} would tell, not {now}"),
                None => format!("not even {MOST_TIMES_AS_MANY} times as many {unit} would tell"),
            });
        }
    }

    /// Puts a reason in front of what is said already.
    fn explain(&mut self, reason: String) {
        self.reason = Some(match self.reason.take() {
            Some(more) => format!("{reason}; {more}"),
            None => reason,
        });
    }
}

/// Gives every check that was measured its verdict. The checks that decide are one family of tests, so that the chance of
/// a single false alarm among all of them stays below alpha; those that only inform are another.
pub(super) fn judge(cells: &mut [CellComparison], limits: &Limits) {
    let checks = cells.iter_mut().flat_map(|cell| &mut cell.checks);
    let measured = checks.filter_map(|check| check.estimate.map(|estimate| (check, estimate)));
    let (decisive, informative): (Vec<_>, Vec<_>) =
        measured.partition(|(check, _)| check.decides(limits));
    for family in [decisive, informative] {
        let losses = family.iter().map(|(check, estimate)| {
            let limit = check.limit(limits);
            estimate.p_of_loss_within(limit)
        });
        let losses = holm(&losses.collect::<Vec<_>>());
        let gains = family.iter().map(|(_, estimate)| estimate.p_of_no_gain());
        let gains = holm(&gains.collect::<Vec<_>>());
        for ((check, estimate), p) in family.into_iter().zip(losses.into_iter().zip(gains)) {
            check.judge(&estimate, limits, p);
        }
    }
}
