//! Tables for people: what the columns show of the rows of a group.

use crate::columns::{COLUMNS, Column, METRIC, Shown, When};
use crate::fields::{Field, fields, metrics};
use crate::row::{Row, sorted};

/// Which of the two tables of a group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Scores and speeds.
    Main,
    /// Bytes and arithmetic by what they are for, and what they do not explain.
    Cost,
}

/// A table ready for print.
pub(crate) struct Table {
    pub(crate) title: String,
    pub(crate) header: Vec<String>,
    pub(crate) rows: Vec<Vec<String>>,
    pub(crate) notes: Vec<String>,
    /// The columns that it shows.
    columns: Vec<&'static Column>,
    /// Rows were compared with the full network.
    has_tests: bool,
    /// A row stands for a random band.
    has_band: bool,
}

impl Kind {
    fn shown(self, column: &Column) -> Option<Shown> {
        match self {
            Self::Main => column.main,
            Self::Cost => column.cost,
        }
    }
}

impl Table {
    /// Columns that have nothing to show are left out.
    pub(crate) fn new(kind: Kind, group: &[Row<'_>]) -> Self {
        let rows = match kind {
            Kind::Main => sorted(group),
            // One set does not stand for the costs of a band.
            Kind::Cost => sorted(group)
                .into_iter()
                .filter(|row| row.sets.is_none())
                .collect(),
        };
        let metrics = metrics(rows.iter());
        let mut table = Self {
            title: title(kind, &group[0]),
            header: Vec::new(),
            rows: vec![Vec::new(); rows.len()],
            notes: Vec::new(),
            columns: Vec::new(),
            has_tests: rows
                .iter()
                .flat_map(|row| &row.scores)
                .any(|score| score.p_value.is_some()),
            has_band: rows.iter().any(|row| row.sets.is_some()),
        };
        for field in fields(&metrics) {
            if let Some(shown) = kind.shown(field.column) {
                table.add(
                    &field,
                    shown,
                    field.metric == metrics.first().copied(),
                    &rows,
                );
            }
        }
        if kind == Kind::Main {
            table.notes = notes(&rows, &table);
        }
        table
    }

    /// A table whose cells are ready.
    pub(crate) fn plain(
        title: String,
        header: Vec<String>,
        rows: Vec<Vec<String>>,
        notes: Vec<String>,
    ) -> Self {
        Self {
            title,
            header,
            rows,
            notes: notes.iter().map(|note| one_line(note)).collect(),
            columns: Vec::new(),
            has_tests: false,
            has_band: false,
        }
    }

    fn add(&mut self, field: &Field<'_>, shown: Shown, is_main: bool, rows: &[Row<'_>]) {
        let cells = rows
            .iter()
            .map(|row| field.cell(row, shown.format, is_main));
        let cells: Vec<Option<String>> = cells.collect();
        let is_empty = cells.iter().all(Option::is_none);
        let is_told = match shown.when {
            When::Always => true,
            When::Varied => cells.windows(2).any(|pair| pair[0] != pair[1]),
            When::AboveZero => cells.iter().flatten().any(|cell| cell != "0%"),
        };
        if is_empty || !is_told {
            return;
        }
        let interval = if is_main && field.metric.is_some() {
            " [95%]"
        } else {
            ""
        };
        self.header.push(field.named(shown.header) + interval);
        for (row, cell) in self.rows.iter_mut().zip(cells) {
            row.push(one_line(&cell.unwrap_or_else(|| "-".to_owned())));
        }
        self.columns.push(field.column);
    }

    fn shows(&self, name: &str) -> bool {
        self.columns.iter().any(|column| column.name == name)
    }
}

fn title(kind: Kind, row: &Row<'_>) -> String {
    let (model, task, ..) = row.group();
    let of = match kind {
        Kind::Main => "",
        Kind::Cost => "Cost of a token: ",
    };
    let limit = row.record.task.limit();
    let limit = limit.map_or_else(String::new, |limit| format!(", {limit} prompts"));
    let scoring = row.record.task.scoring.as_ref();
    let scoring = scoring.map_or_else(String::new, |how| format!(", scored {}", how.mode));
    format!("{of}{task}, {}, {model}{limit}{scoring}", row.setting())
}

/// What a reader must know of the rows, each under the name that tells it apart in the table.
fn notes(rows: &[Row<'_>], table: &Table) -> Vec<String> {
    let mut notes = Vec::new();
    for row in rows {
        let mut name = row.label();
        if table.shows("run") {
            name.push_str(&format!(", {}", row.run));
        }
        if table.shows("machine") {
            name.push_str(&format!(", machine {}", row.machine));
        }
        let failure = row
            .record
            .failure
            .iter()
            .map(|reason| format!("failed: {reason}"));
        let all = failure.chain(row.notes.iter().cloned());
        notes.extend(all.map(|note| one_line(&format!("{name}: {note}"))));
    }
    notes
}

fn one_line(text: &str) -> String {
    match text.contains(['\n', '\r']) {
        true => text.split_whitespace().collect::<Vec<_>>().join(" "),
        false => text.to_owned(),
    }
}

/// What marks and columns of some tables mean; what stands between backticks is code.
pub(crate) fn legend(kind: Kind, tables: &[Table]) -> String {
    let mut parts = Vec::new();
    if kind == Kind::Main && tables.iter().any(|table| table.has_tests) {
        parts.push(TESTED.to_owned());
    }
    if kind == Kind::Main && tables.iter().any(|table| table.has_band) {
        parts.push(WITHIN_BAND.to_owned());
    }
    for column in COLUMNS {
        let is_shown = tables.iter().any(|table| table.shows(column.name));
        // What a strategy is called speaks for itself, and the main table comes first.
        let is_known = column.name == "label" || kind == Kind::Cost && column.main.is_some();
        if let Some(shown) = kind.shown(column).filter(|_| is_shown && !is_known) {
            let name = match shown.header {
                METRIC => "scores".to_owned(),
                header => format!("`{header}`"),
            };
            parts.push(format!("{name}: {}.", column.doc));
        }
    }
    parts.join(" ")
}

const TESTED: &str = "`*`: differs from the full network (McNemar's exact test where answers are right or wrong, paired approximate randomisation otherwise; Holm-corrected, p < 0.05).";
const WITHIN_BAND: &str = "`°`: no better than random sets of the same target, whose row gives their median and the range that holds 95% of them.";
