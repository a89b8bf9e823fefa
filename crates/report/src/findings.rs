//! The answer of a report in sentences. What stands between backticks is code.

use crate::fields::{achieved, score_text};
use crate::front::is_beaten;
use crate::row::Row;
use crate::scores::Scored;
use std::cmp::Ordering;

/// A difference from the full network counts where its corrected p-value is below this.
const ALPHA: f64 = 0.05;
/// A full network that measures farther from itself than this, as a share, was timed by a clock that tells nothing.
const STEADY: f64 = 0.1;

/// What was compared, on what.
pub(crate) fn overview(rows: &[&Row<'_>]) -> String {
    let mut parts = Vec::new();
    // Sets of a random band are one strategy.
    let strategies = distinct(rows, |row| {
        let strategy = &row.record.strategy;
        row.band.unwrap_or(&strategy.series).to_owned()
    });
    let speeds = distinct(rows, |row| {
        row.target().map_or(String::new(), |t| format!("{t}x"))
    });
    let speeds: Vec<String> = speeds
        .into_iter()
        .filter(|speed| !speed.is_empty())
        .collect();
    parts.push(format!(
        "{} against the full network",
        count(strategies.len().saturating_sub(1), "strategy")
    ));
    if !speeds.is_empty() {
        parts.push(format!("asked for {}", listed(&speeds)));
    }
    let tasks = distinct(rows, |row| {
        format!(
            "{} ({} prompts)",
            row.record.task.name, row.record.task.prompts
        )
    });
    parts.push(format!("on {}", listed(&tasks)));
    let models = distinct(rows, |row| {
        let model = &row.record.model;
        format!(
            "{} ({} layers, {} on {})",
            model.name,
            model.n_layers,
            model.kept(),
            model.device
        )
    });
    parts.push(format!("with {}", listed(&models)));
    let settings = distinct(rows, |row| row.setting());
    parts.push(format!("at {}", listed(&settings)));
    format!("{}.", parts.join(", "))
}

/// What the rows of a group, sorted, say about strategies.
pub(crate) fn findings(rows: &[Row<'_>]) -> Vec<String> {
    let mut said = Vec::new();
    if let Some((metric, full)) = baseline(rows) {
        let known: Vec<Known<'_>> = rows
            .iter()
            .filter_map(|row| Known::of(row, metric))
            .collect();
        said.extend(kept(&known, metric, full));
        said.extend(fastest(&known, rows, metric, full));
        said.extend(against_random(rows, metric));
    }
    said.extend(noise(rows));
    said
}

/// A timed and scored strategy, no oracle and no band.
struct Known<'r> {
    row: &'r Row<'r>,
    score: &'r Scored,
    speed: f64,
}

impl<'r> Known<'r> {
    fn of(row: &'r Row<'r>, metric: &str) -> Option<Self> {
        let is_strategy = !row.is_full() && !row.record.strategy.is_oracle && row.sets.is_none();
        Some(Self {
            row,
            score: row.score(metric).filter(|_| is_strategy)?,
            speed: row.achieved()?,
        })
    }

    /// Surely faster than the full network, as far as is known.
    fn is_faster(&self) -> bool {
        self.row.interval().map_or(self.speed, |(lo, _)| lo) > 1.0
    }

    /// At least as good as the full network, or not to be told from it: neither by the paired test nor by intervals that lie
    /// apart, which few prompts show where the test is too weak to.
    fn is_as_good(&self, full: &Scored) -> bool {
        let (own, higher) = (self.score, self.score.kind.higher_is_better());
        let (is_no_worse, overlaps) = match higher {
            true => (own.score >= full.score, own.hi >= full.lo),
            false => (own.score <= full.score, own.lo <= full.hi),
        };
        is_no_worse || overlaps && own.p_value.is_some_and(|p| p >= ALPHA)
    }

    /// The slower first, and of two of the same speed the worse.
    fn by_speed(&self, other: &Self) -> Ordering {
        let by_quality = || self.quality().total_cmp(&other.quality());
        self.speed.total_cmp(&other.speed).then_with(by_quality)
    }

    fn quality(&self) -> f64 {
        match self.score.kind.higher_is_better() {
            true => self.score.score,
            false => -self.score.score,
        }
    }
}

/// The main metric, and the full network's score under it.
fn baseline<'r>(rows: &'r [Row<'_>]) -> Option<(&'r str, &'r Scored)> {
    let metric = rows.first()?.record.task.metrics.first()?;
    let full = rows.iter().find(|row| row.is_full())?;
    Some((metric, full.score(metric)?))
}

/// The fastest of those whose quality cannot be told from the full network's, or the best of all that are faster.
fn kept(known: &[Known<'_>], metric: &str, full: &Scored) -> Option<String> {
    let faster = || known.iter().filter(|one| one.is_faster());
    let best = faster()
        .filter(|one| one.is_as_good(full))
        .max_by(|a, b| a.by_speed(b));
    if let Some(best) = best {
        let told = match best.score.p_value {
            Some(p) => format!(" (p = {p:.2})"),
            None => String::new(),
        };
        return Some(format!(
            "Fastest without a loss that can be told{told}: `{}` decodes {} as fast as the full network, at {metric} {} against {}.",
            best.row.label(),
            achieved(best.row)?,
            score_text(best.score),
            score_text(full),
        ));
    }
    let Some(best) = faster().max_by(|a, b| a.quality().total_cmp(&b.quality())) else {
        return Some("No strategy was surely faster than the full network.".to_owned());
    };
    Some(format!(
        "Every strategy that is faster loses {metric}; `{}` loses least: {} against {}, at {} the speed.",
        best.row.label(),
        score_text(best.score),
        score_text(full),
        achieved(best.row)?,
    ))
}

/// The fastest that keeps at least half of the quality, where it is not as good as the full network.
fn fastest(known: &[Known<'_>], rows: &[Row<'_>], metric: &str, full: &Scored) -> Option<String> {
    let half = |one: &&Known<'_>| match one.score.kind.higher_is_better() {
        true => one.score.score >= full.score / 2.0,
        false => one.score.score <= full.score * 2.0,
    };
    let best = known
        .iter()
        .filter(half)
        .filter(|one| !is_beaten(one.row, rows, metric))
        .max_by(|a, b| a.by_speed(b))?;
    if best.is_as_good(full) || !best.is_faster() {
        return None;
    }
    let (limit, kept) = match best.score.kind.higher_is_better() {
        true => (
            "keeps at least half of the full network's",
            format!(" ({:.0}%)", 100.0 * best.score.score / full.score),
        ),
        false => ("at most doubles the full network's", String::new()),
    };
    Some(format!(
        "Fastest that {limit} {metric}: `{}` at {}, {metric} {}{kept}.",
        best.row.label(),
        achieved(best.row)?,
        score_text(best.score),
    ))
}

/// How many are no better than random sets.
fn against_random(rows: &[Row<'_>], metric: &str) -> Option<String> {
    let bands: Vec<&Row<'_>> = rows.iter().filter(|row| row.sets.is_some()).collect();
    let judged = |row: &&Row<'_>| {
        !row.is_full()
            && !row.record.strategy.is_oracle
            && row.sets.is_none()
            && row.score(metric).is_some()
            && bands.iter().any(|band| band.target() == row.target())
    };
    let all = rows.iter().filter(judged).count();
    let within = rows
        .iter()
        .filter(judged)
        .filter(|row| row.score(metric).is_some_and(|score| score.is_within_band))
        .count();
    (all > 0).then(|| {
        format!("{within} of {all} strategies are no better than random sets of layers at the same target.")
    })
}

/// What the full network timed against itself says of the clock.
fn noise(rows: &[Row<'_>]) -> Option<String> {
    let full = rows
        .iter()
        .find(|row| row.is_full() && row.achieved().is_some())?;
    let itself = format!(
        "The full network against itself measured {}",
        achieved(full)?
    );
    Some(match resolution(full) {
        Some(share) if !is_unsteady(full) => format!(
            "{itself}: differences in speed below {} cannot be seen here.",
            in_percent(share)
        ),
        _ => format!("{itself}."),
    })
}

/// The smallest difference in speed that can be seen, as a share: the end of the full network's interval over itself that
/// is farther from 1.
pub(crate) fn resolution(full: &Row<'_>) -> Option<f64> {
    let (lo, hi) = full.interval()?;
    Some((lo - 1.0).abs().max((hi - 1.0).abs()))
}

/// Whether a row is a full network that is not as fast as itself.
pub(crate) fn is_unsteady(row: &Row<'_>) -> bool {
    let is_off = |ratio: f64| (ratio - 1.0).abs() > STEADY;
    let excludes_one = row.interval().is_some_and(|(lo, hi)| lo > 1.0 || hi < 1.0);
    row.is_full() && (excludes_one || row.achieved().is_some_and(is_off))
}

fn in_percent(share: f64) -> String {
    format!("{:.1}%", 100.0 * share)
}

fn distinct(rows: &[&Row<'_>], of: impl Fn(&Row<'_>) -> String) -> Vec<String> {
    let mut found = Vec::new();
    for value in rows.iter().map(|row| of(row)) {
        if !found.contains(&value) {
            found.push(value);
        }
    }
    found
}

/// `one strategy`, `12 strategies`
fn count(number: usize, noun: &str) -> String {
    match (number, noun.strip_suffix('y')) {
        (1, _) => format!("1 {noun}"),
        (_, Some(stem)) => format!("{number} {stem}ies"),
        _ => format!("{number} {noun}s"),
    }
}

/// `a, b and c`; of many the first.
fn listed(values: &[String]) -> String {
    const MOST: usize = 6;
    match values {
        [] => String::new(),
        [one] => one.clone(),
        many if many.len() > MOST => {
            format!("{} and {} more", many[..MOST].join(", "), many.len() - MOST)
        }
        [first @ .., last] => format!("{} and {last}", first.join(", ")),
    }
}
