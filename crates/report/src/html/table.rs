//! The table of a group with every column that has something to show; those that say less are hidden at first.

use crate::columns::{Column, Format, Get, Shown, When};
use crate::fields::{Field, fields, metrics};
use crate::front::is_beaten;
use crate::row::Row;
use serde::Serialize;

/// A table that a reader sorts, filters and narrows.
#[derive(Serialize)]
pub(super) struct Sortable {
    columns: Vec<Heading>,
    rows: Vec<Line>,
}

#[derive(Serialize)]
struct Heading {
    name: String,
    about: String,
    is_shown: bool,
    /// Words, which stand to the left.
    is_text: bool,
}

#[derive(Serialize)]
struct Line {
    id: String,
    class: &'static str,
    /// Each with the interval behind it, which is written smaller.
    cells: Vec<(String, String)>,
}

impl Sortable {
    pub(super) fn new(rows: &[Row<'_>]) -> Self {
        let metrics = metrics(rows.iter());
        let main = metrics.first().copied();
        let mut table = Self {
            columns: Vec::new(),
            rows: rows
                .iter()
                .map(|row| Line {
                    id: row.id(),
                    class: class(row, rows, main),
                    cells: Vec::new(),
                })
                .collect(),
        };
        // What names a row comes first; its parts stand in it.
        let all = fields(&metrics);
        let (names, others): (Vec<_>, Vec<_>) = all
            .into_iter()
            .filter(|field| !["strategy", "variant"].contains(&field.column.name))
            .partition(|field| field.column.name == "label");
        for field in names.into_iter().chain(others) {
            table.add(&field, rows, field.metric == main);
        }
        table
    }

    fn add(&mut self, field: &Field<'_>, rows: &[Row<'_>], is_main: bool) {
        let column = field.column;
        let shown = column.main.or(column.cost);
        let format = shown.map_or(plain(column), |shown| shown.format);
        let cells = rows.iter().map(|row| field.cell(row, format, is_main));
        let cells: Vec<Option<String>> = cells.collect();
        let varies = cells.windows(2).any(|pair| pair[0] != pair[1]);
        let is_told = |shown: &Shown| match shown.when {
            When::Always => true,
            When::Varied => varies,
            When::AboveZero => cells.iter().flatten().any(|cell| cell != "0%"),
        };
        // What has one value for all rows is no column, unless the main table would show it.
        let is_shown = column.main.as_ref().is_some_and(is_told);
        if cells.iter().all(Option::is_none) || !is_shown && !varies {
            return;
        }
        let name = match shown {
            Some(shown) => field.named(shown.header),
            None => field.named(column.name),
        };
        let is_taken = self.columns.iter().any(|other| other.name == name);
        let unit = match column.unit {
            "" => String::new(),
            unit => format!(" ({unit})"),
        };
        self.columns.push(Heading {
            name: if is_taken {
                field.named(column.name)
            } else {
                name
            },
            about: format!("{}{unit}", column.doc.replace('`', "")),
            is_shown,
            is_text: matches!(column.get, Get::Text(_)),
        });
        for (line, cell) in self.rows.iter_mut().zip(cells) {
            let cell = cell.unwrap_or_else(|| "–".to_owned());
            line.cells.push(match cell.split_once(" [") {
                Some((value, interval)) => (value.to_owned(), format!("[{interval}")),
                None => (cell, String::new()),
            });
        }
    }
}

/// How a column is shown that no table for print shows.
fn plain(column: &Column) -> Format {
    match column.get {
        Get::Text(_) | Get::Count(_) => Format::Plain,
        Get::Number(_) | Get::Score(_) => Format::Significant,
    }
}

fn class(row: &Row<'_>, rows: &[Row<'_>], metric: Option<&str>) -> &'static str {
    match metric {
        _ if row.is_full() => "full",
        _ if row.record.failure.is_some() => "failed",
        _ if row.sets.is_some() => "random",
        _ if row.record.strategy.is_oracle => "oracle",
        Some(metric) if is_beaten(row, rows, metric) => "beaten",
        _ => "",
    }
}
