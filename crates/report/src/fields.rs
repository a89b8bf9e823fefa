//! The columns of a file or table, and the cells that they show.

use crate::columns::{COLUMNS, Column, Format, Get, METRIC};
use crate::row::Row;
use crate::scores::Scored;

/// Metrics that always have columns in files, so that results of different experiments can be stacked.
const METRICS: [&str; 6] = ["bleu", "chrf", "rouge1", "rouge2", "rougeL", "rougeLsum"];

/// A column of a file or table: an entry of [`COLUMNS`], or what becomes of one for one metric.
#[derive(Clone)]
pub(crate) struct Field<'m> {
    pub(crate) column: &'static Column,
    pub(crate) metric: Option<&'m str>,
}

/// Names of the metrics of some rows, in order of appearance.
pub(crate) fn metrics<'a>(rows: impl Iterator<Item = &'a Row<'a>>) -> Vec<&'a str> {
    let mut names: Vec<&str> = Vec::new();
    for name in rows.flat_map(|row| &row.record.task.metrics) {
        if !names.contains(&name.as_str()) {
            names.push(name);
        }
    }
    names
}

/// All columns of a file.
pub(crate) fn file_fields<'a>(rows: impl Iterator<Item = &'a Row<'a>>) -> Vec<Field<'a>> {
    let more = metrics(rows)
        .into_iter()
        .filter(|name| !METRICS.contains(name));
    let metrics: Vec<&str> = METRICS.into_iter().chain(more).collect();
    fields(&metrics)
}

/// All columns with these metrics; entries for metrics that follow each other take turns.
pub(crate) fn fields<'m>(metrics: &[&'m str]) -> Vec<Field<'m>> {
    let is_score = |column: &Column| matches!(column.get, Get::Score(_));
    let same_kind = |a: &Column, b: &Column| is_score(a) && is_score(b);
    let mut fields = Vec::new();
    for run in COLUMNS.chunk_by(same_kind) {
        let names: Vec<Option<&str>> = match is_score(&run[0]) {
            true => metrics.iter().copied().map(Some).collect(),
            false => vec![None],
        };
        for metric in names {
            fields.extend(run.iter().map(|column| Field { column, metric }));
        }
    }
    // A metric that is asked for takes the place of the column of its name.
    let is_metric = |name: &str| metrics.contains(&name);
    fields.retain(|field| field.metric.is_some() || !is_metric(field.column.name));
    fields
}

impl Field<'_> {
    pub(crate) fn named(&self, pattern: &str) -> String {
        pattern.replace(METRIC, self.metric.unwrap_or_default())
    }

    fn score<'r>(&self, row: &'r Row<'_>) -> Option<&'r Scored> {
        row.score(self.metric?)
    }

    /// The number that a file holds.
    pub(crate) fn number(&self, row: &Row<'_>) -> Option<f64> {
        match self.column.get {
            Get::Text(_) => None,
            Get::Count(of) => of(row).map(|count| count as f64),
            Get::Number(of) => of(row),
            Get::Score(of) => self.score(row).and_then(of),
        }
    }

    /// The cell of a table; `is_main` for the main metric.
    pub(crate) fn cell(&self, row: &Row<'_>, format: Format, is_main: bool) -> Option<String> {
        match (format, self.column.get) {
            (Format::Cell(of), _) => of(row),
            (Format::Score, _) => Some(scored(self.score(row)?, is_main)),
            (Format::Plain, Get::Text(of)) => of(row),
            (Format::Plain, _) => Some(self.number(row)?.to_string()),
            (Format::Ratio, _) => Some(format!("{:.2}x", self.number(row)?)),
            (Format::Fixed(digits), _) => Some(format!("{:.digits$}", self.number(row)?)),
            (Format::Significant, _) => Some(significant(self.number(row)?)),
            (Format::Percent, _) => Some(percent(self.number(row)?)),
        }
    }
}

/// A difference from the full network counts where its corrected p-value is below this.
const ALPHA: f64 = 0.05;

/// A score with its interval.
pub(crate) fn score_text(value: &Scored) -> String {
    let [score, lo, hi] = [value.score, value.lo, value.hi].map(|score| value.kind.format(score));
    format!("{score} [{lo}, {hi}]")
}

fn scored(value: &Scored, is_main: bool) -> String {
    let [score, lo, hi] = [value.score, value.lo, value.hi].map(|score| value.kind.format(score));
    let significant = if value.p_value.is_some_and(|p| p < ALPHA) {
        "*"
    } else {
        ""
    };
    let within = if is_main && value.is_within_band {
        "°"
    } else {
        ""
    };
    match is_main {
        true => format!("{score}{significant}{within} [{lo}, {hi}]"),
        false => format!("{score}{significant}"),
    }
}

/// Without a minus before a zero.
pub(crate) fn percent(share: f64) -> String {
    match (100.0 * share).round() {
        0.0 => "0%".to_owned(),
        percent => format!("{percent:.0}%"),
    }
}

pub(crate) fn significant(value: f64) -> String {
    let digits = match value {
        value if value >= 100.0 => 0,
        value if value >= 10.0 => 1,
        value if value >= 1.0 => 2,
        _ => 3,
    };
    format!("{value:.digits$}")
}

pub(crate) fn mebibytes(bytes: u64) -> String {
    format!("{:.0}", bytes as f64 / f64::from(1 << 20))
}

pub(crate) fn achieved(row: &Row<'_>) -> Option<String> {
    let ratio = row.achieved()?;
    Some(match row.interval() {
        Some((lo, hi)) => format!("{ratio:.2}x [{lo:.2}, {hi:.2}]"),
        None => format!("{ratio:.2}x"),
    })
}

/// Enough of a digest to tell two apart.
pub(crate) fn short(digest: &str) -> &str {
    digest.get(..12).unwrap_or(digest)
}
