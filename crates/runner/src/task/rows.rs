//! The rows of a task's file: lines of text, JSON lines, or Parquet.

use super::parquet;
use crate::load::{read_lines, read_text};
use crate::models::fetch_data;
use anyhow::{Context, bail};
use serde_json::{Map, Value};
use std::path::Path;

/// The first rows of a file.
pub(super) struct Rows {
    /// In order; a text file's have the one field `source`.
    pub(super) rows: Vec<Row>,
    /// How many there are in all.
    pub(super) count: usize,
}

/// A row, and where it stands for messages to name: `line 3`.
pub(super) struct Row {
    pub(super) fields: Map<String, Value>,
    pub(super) place: String,
}

/// What a file holds, by its name.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A text a line.
    Text,
    /// A JSON object a line.
    JsonLines,
    /// A table.
    Parquet,
}

impl Kind {
    /// By the name's ending, in front of `.gz`.
    pub(crate) fn of(path: &Path) -> Self {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        // A revision of the hub stands behind the name.
        let name = match path.to_str().is_some_and(|text| text.starts_with("hub:")) {
            true => name.split('@').next().unwrap_or_default(),
            false => &name,
        };
        let name = name.strip_suffix(".gz").unwrap_or(name);
        let ends = |ends: &[&str]| ends.iter().any(|end| name.ends_with(end));
        if ends(&[".jsonl", ".json", ".ndjson"]) {
            Self::JsonLines
        } else if ends(&[".parquet"]) {
            Self::Parquet
        } else {
            Self::Text
        }
    }
}

/// The first `most` rows of a file.
///
/// # Errors
/// A file that cannot be read, a line that is no JSON object, a table that is none.
pub(super) fn read(path: &Path, most: usize) -> anyhow::Result<Rows> {
    let here = fetch_data(path)?;
    let rows = match Kind::of(path) {
        Kind::Text => text(&here, most)?,
        Kind::JsonLines => json_lines(&here, most)?,
        Kind::Parquet => parquet::read(&here, most)?,
    };
    if rows.count == 0 {
        bail!("{} holds nothing", path.display());
    }
    Ok(rows)
}

fn text(path: &Path, most: usize) -> anyhow::Result<Rows> {
    let lines = read_lines(path)?;
    let count = lines.len();
    let row = |(index, line): (usize, String)| Row {
        fields: [("source".to_owned(), Value::from(line))]
            .into_iter()
            .collect(),
        place: format!("line {}", index + 1),
    };
    Ok(Rows {
        rows: lines.into_iter().take(most).enumerate().map(row).collect(),
        count,
    })
}

fn json_lines(path: &Path, most: usize) -> anyhow::Result<Rows> {
    let mut rows = Rows {
        rows: Vec::new(),
        count: 0,
    };
    for (place, fields) in json_objects(&read_text(path)?, path) {
        // Lines that are not asked for are read too: how many there are is part of the result.
        let fields = fields?;
        if rows.count < most {
            rows.rows.push(Row { fields, place });
        }
        rows.count += 1;
    }
    Ok(rows)
}

/// The objects of JSON lines, each with its place; blank lines are passed over.
pub(crate) fn json_objects<'t>(
    text: &'t str,
    path: &'t Path,
) -> impl Iterator<Item = (String, anyhow::Result<Map<String, Value>>)> + 't {
    let lines = text.split('\n').enumerate();
    let lines = lines.filter(|(_, line)| !line.trim().is_empty());
    lines.map(move |(index, line)| {
        let place = format!("line {}", index + 1);
        let object = json_object(line).with_context(|| format!("{}: {place}", path.display()));
        (place, object)
    })
}

fn json_object(line: &str) -> anyhow::Result<Map<String, Value>> {
    let found = match serde_json::from_str(line) {
        Ok(Value::Object(object)) => return Ok(object),
        Ok(other) => kind_of(&other),
        Err(error) => bail!("not JSON ({error}); every line is an object of its own, in braces"),
    };
    bail!("expected a JSON object, not {found}; every line is an object of its own, in braces")
}

/// What a JSON value is, in words.
pub(super) fn kind_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::String(_) => "a text",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}
