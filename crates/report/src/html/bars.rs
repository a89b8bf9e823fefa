//! Rows with bars: how fast each was, where its time goes, what it found in the KV cache.

use crate::fields::{achieved, percent, significant};
use crate::row::Row;
use serde::Serialize;
use skipbench_engine::{Cost, Ledger};

/// Rows with a scale of their own.
#[derive(Serialize)]
pub(super) struct Bars {
    /// Where numbers of the scale stand, percent of its width, and what they are.
    ticks: Vec<(f64, String)>,
    rows: Vec<Bar>,
}

#[derive(Serialize)]
struct Bar {
    id: String,
    label: String,
    is_full: bool,
    /// Class, left edge and width in percent of the scale, and what it is in words.
    parts: Vec<(&'static str, f64, f64, String)>,
    /// Numbers beside it.
    cells: Vec<String>,
}

/// Asked, possible and achieved speedup of every timed row.
pub(super) fn speeds(rows: &[Row<'_>]) -> Option<Bars> {
    let timed: Vec<&Row<'_>> = rows.iter().filter(|row| row.achieved().is_some()).collect();
    // The end of an interval that says nothing would squeeze the rest.
    let most = timed
        .iter()
        .flat_map(|row| [row.target(), row.bound(), row.achieved().map(|a| 1.1 * a)]);
    let scale = Scale::new(most.flatten().fold(1.0, f64::max));
    let bar = |row: &Row<'_>| {
        let ratio = row.achieved()?;
        let mut parts = vec![("one", scale.at(1.0), 0.0, String::new())];
        if let Some((lo, hi)) = row.interval() {
            let (lo, hi) = (scale.at(lo), scale.at(hi));
            parts.push(("interval", lo, hi - lo, "95% interval".to_owned()));
        }
        if let Some(bound) = row.bound() {
            parts.push(("bound", scale.at(bound), 0.0, format!("bound {bound:.2}x")));
        }
        if let Some(target) = row.target() {
            parts.push(("target", scale.at(target), 0.0, format!("target {target}x")));
        }
        parts.push(("dot", scale.at(ratio), 0.0, format!("achieved {ratio:.2}x")));
        let or_none = |text: Option<String>| text.unwrap_or_else(|| "–".to_owned());
        Some(Bar {
            id: row.id(),
            label: row.name(),
            is_full: row.is_full(),
            parts,
            cells: vec![
                or_none(row.target().map(|target| format!("{target}x"))),
                or_none(row.bound().map(|bound| format!("{bound:.2}x"))),
                or_none(achieved(row)),
            ],
        })
    };
    let bars: Vec<Bar> = timed.into_iter().filter_map(bar).collect();
    (bars.len() > 1).then(|| Bars {
        ticks: scale.ticks("x"),
        rows: bars,
    })
}

type Of = fn(&Ledger) -> Cost;

/// What the bytes of a token are for, by class and name.
const PARTS: [(&str, &str, Of); 5] = [
    ("layers", "layers", |l| l.layers),
    ("kv", "KV read", |l| l.kv_read),
    ("head", "LM head", |l| l.head),
    ("checks", "exit checks", |l| l.checks),
    ("fill", "KV fill", |l| l.kv_fill),
];

/// The decode time of a token as a share of the full network's, by what its bytes are for and what they do not explain; of
/// rows that were not timed, the bytes.
pub(super) fn ledger(rows: &[Row<'_>]) -> Option<Bars> {
    // One set does not stand for the costs of a band.
    let rows = || rows.iter().filter(|row| row.sets.is_none());
    let is_timed = rows().any(|row| row.achieved().is_some());
    let length = |row: &Row<'_>| match is_timed {
        true => Some(1.0 / row.achieved()?),
        false => Some(1.0 / row.bound()?),
    };
    let scale = Scale::new(rows().filter_map(length).fold(1.0, f64::max));
    let bar = |row: &Row<'_>| {
        let length = length(row)?;
        let total = row.mbytes(Ledger::total)?;
        let unexplained = row
            .beyond_bytes()
            .filter(|_| is_timed)
            .map_or(0.0, |u| u.clamp(0.0, 1.0));
        let mut left = 0.0;
        let mut parts = vec![("one", scale.at(1.0), 0.0, String::new())];
        for (class, name, of) in PARTS {
            let (Some(share), Some(mbytes)) = (row.share(of), row.mbytes(of)) else {
                continue;
            };
            let width = length * (1.0 - unexplained) * share;
            let about = format!(
                "{name}: {} MB, {} of the bytes",
                significant(mbytes),
                percent(share)
            );
            parts.push((class, scale.at(left), scale.at(width), about));
            left += width;
        }
        let width = length * unexplained;
        if width > 0.0 {
            let about = format!(
                "not explained by bytes: {} of the time",
                percent(unexplained)
            );
            parts.push(("unexplained", scale.at(left), scale.at(width), about));
        }
        Some(Bar {
            id: row.id(),
            label: row.name(),
            is_full: row.is_full(),
            parts,
            cells: vec![significant(total), percent(length)],
        })
    };
    let bars: Vec<Bar> = rows().filter_map(bar).collect();
    (!bars.is_empty()).then(|| Bars {
        ticks: scale.ticks(""),
        rows: bars,
    })
}

/// What rows read from the KV cache where layers had been skipped: strategy, fill, made-up and hidden entries per token,
/// distance and cosine of the made-up ones, distance of those computed later.
pub(super) fn audit(rows: &[Row<'_>]) -> Vec<Vec<String>> {
    let or_none = |value: Option<f64>, digits: usize| {
        value.map_or_else(|| "–".to_owned(), |value| format!("{value:.digits$}"))
    };
    let line = |row: &Row<'_>| {
        let audit = row.quality()?.kv_audit.as_ref()?;
        let per_token = |reads: u64| row.per_token(|_| reads as f64);
        Some(vec![
            row.label(),
            row.record.executed.as_ref()?.kv_fill.clone(),
            or_none(per_token(audit.approximate_reads), 1),
            or_none(per_token(audit.masked_reads), 1),
            or_none(audit.distance, 3),
            or_none(audit.cosine, 3),
            or_none(audit.deferred_distance, 6),
        ])
    };
    rows.iter().filter_map(line).collect()
}

/// From zero to a round number.
struct Scale {
    end: f64,
    step: f64,
}

impl Scale {
    fn new(most: f64) -> Self {
        let step = [0.2, 0.25, 0.5, 1.0, 2.0, 5.0, 10.0]
            .into_iter()
            .find(|step| most / step <= 6.0)
            .unwrap_or(most / 5.0);
        Self {
            end: (most * 1.02 / step).ceil() * step,
            step,
        }
    }

    /// Percent of the width, in hundredths; what lies beyond the end stands at it.
    fn at(&self, value: f64) -> f64 {
        let percent = (100.0 * value / self.end).clamp(0.0, 100.0);
        (100.0 * percent).round() / 100.0
    }

    fn ticks(&self, unit: &str) -> Vec<(f64, String)> {
        let count = (self.end / self.step).round() as usize;
        let tick = |index: usize| {
            let value = index as f64 * self.step;
            let text = format!("{value:.2}");
            let text = text.trim_end_matches('0').trim_end_matches('.');
            (self.at(value), format!("{text}{unit}"))
        };
        (0..=count).map(tick).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::Scale;

    #[test]
    fn a_scale_ends_at_a_round_number_beyond_the_largest() {
        let scale = Scale::new(2.7);
        assert_eq!(
            (scale.end, scale.at(1.5), scale.at(9.0)),
            (3.0, 50.0, 100.0)
        );
        let ticks: Vec<String> = scale.ticks("x").into_iter().map(|tick| tick.1).collect();
        assert_eq!(ticks, ["0x", "0.5x", "1x", "1.5x", "2x", "2.5x", "3x"]);
    }
}
