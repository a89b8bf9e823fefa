//! The items of a task: rows of its file, with what their fields are for.

use super::rows::{self, Kind, Row, kind_of};
use crate::experiment::Fields;
use crate::load::{read_lines, read_text};
use crate::models::fetch_data;
use anyhow::{Context, anyhow, bail};
use serde_json::{Map, Value};
use skipbench_prompts::PromptTemplate;
use std::collections::{BTreeSet, HashMap};
use std::path::{Path, PathBuf};

/// The first items of a file.
pub(super) struct Items {
    path: PathBuf,
    pub(super) items: Vec<Item>,
    /// How many the file has.
    pub(super) count: usize,
}

/// An item.
pub(super) struct Item {
    /// Its name, where a field has one.
    id: Option<String>,
    /// Every field by its own name, and the source as `source`.
    pub(super) fields: Map<String, Value>,
    /// The right answers.
    pub(super) references: Vec<String>,
    place: String,
}

impl Items {
    /// The first `most` items with their references: fields of the rows, or the lines of `reference` for source texts.
    ///
    /// # Errors
    /// A file that cannot be read, files that do not pair up, a field that is not there or holds something else.
    pub(super) fn read(
        path: &Path,
        reference: Option<&Path>,
        fields: &Fields,
        most: usize,
    ) -> anyhow::Result<Self> {
        let mut items = Self::of(path, fields, most, reference.is_none())?;
        if let Some(reference) = reference {
            let lines = read_lines(&fetch_data(reference)?)?;
            if lines.len() != items.count {
                bail!(
                    "{} has {} lines, {} has {}; they must pair up",
                    path.display(),
                    items.count,
                    reference.display(),
                    lines.len()
                );
            }
            for (item, line) in items.items.iter_mut().zip(lines) {
                item.references = vec![line];
            }
        }
        Ok(items)
    }

    /// The first `most` items without references.
    ///
    /// # Errors
    /// As [`Items::read`].
    pub(super) fn sources(path: &Path, fields: &Fields, most: usize) -> anyhow::Result<Self> {
        Self::of(path, &fields.without_id(), most, false)
    }

    /// The first `most` questions, whose choices are their references.
    ///
    /// # Errors
    /// As [`Items::read`].
    pub(super) fn asked(path: &Path, fields: &Fields, most: usize) -> anyhow::Result<Self> {
        Self::of(path, fields, most, false)
    }

    /// The first `most` texts; a file of plain text is one.
    ///
    /// # Errors
    /// As [`Items::read`].
    pub(super) fn texts(path: &Path, fields: &Fields, most: usize) -> anyhow::Result<Self> {
        if Kind::of(path) != Kind::Text {
            return Self::of(path, fields, most, false);
        }
        let text = read_text(&fetch_data(path)?)?;
        let text = text.strip_prefix('\u{feff}').unwrap_or(&text);
        let row = Row {
            fields: [("source".to_owned(), Value::from(text))]
                .into_iter()
                .collect(),
            place: "the text".to_owned(),
        };
        Ok(Self {
            path: path.to_path_buf(),
            items: vec![Item::of(row, &Fields::default(), false)?],
            count: 1,
        })
    }

    fn of(path: &Path, fields: &Fields, most: usize, scored: bool) -> anyhow::Result<Self> {
        let rows = rows::read(path, most)?;
        let fields = match Kind::of(path) {
            // A line of text has no other field.
            Kind::Text => &Fields::default(),
            _ => fields,
        };
        let items = rows.rows.into_iter().map(|row| {
            let place = row.place.clone();
            Item::of(row, fields, scored).with_context(|| format!("{}: {place}", path.display()))
        });
        let items = Self {
            path: path.to_path_buf(),
            items: items.collect::<anyhow::Result<_>>()?,
            count: rows.count,
        };
        items.check_ids()?;
        Ok(items)
    }

    /// Answers are told apart by ids.
    fn check_ids(&self) -> anyhow::Result<()> {
        let mut seen: HashMap<&str, &str> = HashMap::new();
        for item in &self.items {
            let Some(id) = &item.id else { continue };
            if let Some(earlier) = seen.insert(id, &item.place) {
                bail!(
                    "{}: {} has the id {id:?} of {earlier}; every item needs its own, or leave `fields.id` out to count them",
                    self.path.display(),
                    item.place
                );
            }
        }
        Ok(())
    }

    /// The same items, all of them with one more field, or with another value of it.
    pub(super) fn with(mut self, name: &str, value: Option<&str>) -> Self {
        if let Some(value) = value {
            for item in &mut self.items {
                item.fields.insert(name.to_owned(), Value::from(value));
            }
        }
        self
    }

    /// The names that a prompt may use.
    pub(super) fn names(&self) -> BTreeSet<&str> {
        let fields = self.items.iter().flat_map(|item| item.fields.keys());
        fields.map(String::as_str).collect()
    }

    /// A name for each item, of the task's name where it has none of its own.
    pub(super) fn ids(&self, task: &str) -> Vec<String> {
        let items = self.items.iter().enumerate();
        items
            .map(|(index, item)| item.id.clone().unwrap_or_else(|| format!("{task}/{index}")))
            .collect()
    }

    /// What a template makes of an item of these.
    ///
    /// # Errors
    /// A name that the item does not have.
    pub(super) fn render(&self, template: &PromptTemplate, item: &Item) -> anyhow::Result<String> {
        self.at(item, template.render(&item.fields).map_err(Into::into))
    }

    /// Says of an error which item it is about.
    ///
    /// # Errors
    /// The error.
    pub(super) fn at<T>(&self, item: &Item, result: anyhow::Result<T>) -> anyhow::Result<T> {
        result.with_context(|| format!("{}: {}", self.path.display(), item.place))
    }
}

impl Item {
    fn of(row: Row, names: &Fields, scored: bool) -> anyhow::Result<Self> {
        let Row { mut fields, place } = row;
        // An item need not have the field that nobody named; a prompt that asks for it says so.
        let is_named = names.source != Fields::default().source;
        let source = match is_named || fields.contains_key(&names.source) {
            true => Some(text(&fields, &names.source, "source")?),
            false => None,
        };
        let id = match &names.id {
            None => None,
            Some(name) => Some(match found(&fields, name, "id")? {
                Value::String(id) => id.clone(),
                Value::Number(id) => id.to_string(),
                other => bail!(
                    "field `{name}`, which `fields.id` names, is {}; an id is a text or a number",
                    kind_of(other)
                ),
            }),
        };
        let references = match scored {
            true => references(&fields, names)?,
            false => Vec::new(),
        };
        if let Some(source) = source {
            fields.insert("source".to_owned(), Value::from(source));
        }
        Ok(Self {
            id,
            fields,
            references,
            place,
        })
    }

    /// The source text, where it has one.
    pub(super) fn source(&self) -> Option<&str> {
        self.fields.get("source")?.as_str()
    }
}

/// The right answers of an item: every text, or list of texts, of the fields that are named.
fn references(fields: &Map<String, Value>, names: &Fields) -> anyhow::Result<Vec<String>> {
    let mut texts = Vec::new();
    for name in names.references() {
        let wrong = |found: &Value| {
            anyhow!(
                "field `{name}`, which `fields.reference` names, holds {}; a reference is a text or a list of texts",
                kind_of(found)
            )
        };
        match found(fields, name, "reference")? {
            Value::String(text) => texts.push(text.clone()),
            Value::Array(list) => {
                for item in list {
                    texts.push(item.as_str().ok_or_else(|| wrong(item))?.to_owned());
                }
            }
            other => return Err(wrong(other)),
        }
    }
    match texts.is_empty() {
        true => bail!(
            "`{}` holds no reference; an answer is scored against one at least",
            names.references().join("`, `")
        ),
        false => Ok(texts),
    }
}

fn text(fields: &Map<String, Value>, name: &str, role: &str) -> anyhow::Result<String> {
    match found(fields, name, role)? {
        Value::String(text) => Ok(text.clone()),
        other => bail!(
            "field `{name}`, which `fields.{role}` names, is {}; a {role} is a text",
            kind_of(other)
        ),
    }
}

/// The value of a field: of its name, or within objects by a path such as `translation.de`.
pub(super) fn found<'a>(
    fields: &'a Map<String, Value>,
    name: &str,
    role: &str,
) -> anyhow::Result<&'a Value> {
    let path = || {
        let mut steps = name.split('.');
        let first = fields.get(steps.next()?)?;
        steps.try_fold(first, |value, step| value.get(step))
    };
    fields.get(name).or_else(path).ok_or_else(|| {
        let there: Vec<String> = fields.keys().map(|key| format!("`{key}`")).collect();
        anyhow!(
            "no field `{name}`, which `{}` names; there are {}",
            match role.contains('.') {
                true => role.to_owned(),
                false => format!("fields.{role}"),
            },
            there.join(", ")
        )
    })
}
