//! Which fields of unknown items are what.

use serde_json::{Map, Value};

/// What sources and right answers are called, the surest name first.
const SOURCES: [&str; 16] = [
    "source",
    "src",
    "prompt",
    "input",
    "instruction",
    "question",
    "dialogue",
    "article",
    "document",
    "context",
    "text",
    "query",
    "sentence",
    "en",
    "problem",
    "content",
];
const REFERENCES: [&str; 16] = [
    "reference",
    "references",
    "ref",
    "target",
    "tgt",
    "output",
    "answer",
    "answers",
    "summary",
    "highlights",
    "response",
    "completion",
    "translation",
    "label",
    "de",
    "solution",
];

/// The fields of items, and which hold what.
pub(super) struct Columns {
    pub(super) source: String,
    pub(super) reference: String,
    /// Every field that holds a text or a list of texts, within objects by a path.
    pub(super) all: Vec<String>,
}

impl Columns {
    /// Those of lines of text.
    pub(super) fn of_text() -> Self {
        Self {
            source: "source".to_owned(),
            reference: String::new(),
            all: Vec::new(),
        }
    }

    /// Those that were given, or whose names are usual.
    ///
    /// # Errors
    /// What was not found, and the fields that there are.
    pub(super) fn guess(
        rows: &[Map<String, Value>],
        source: Option<&str>,
        reference: Option<&str>,
    ) -> Result<Self, (&'static str, Vec<String>)> {
        let all: Vec<String> = rows.first().map_or_else(Vec::new, |row| fields(row, ""));
        let named = |names: &[&str], taken: Option<&str>| -> Option<String> {
            let free = || all.iter().filter(|field| taken != Some(field.as_str()));
            let last = |field: &str| field.rsplit('.').next().unwrap_or_default().to_lowercase();
            let exact = names
                .iter()
                .find_map(|name| free().find(|field| last(field) == *name));
            exact.cloned()
        };
        let source = source
            .map(str::to_owned)
            .or_else(|| named(&SOURCES, reference));
        let Some(source) = source else {
            return Err(("source", all));
        };
        let reference = reference
            .map(str::to_owned)
            .or_else(|| named(&REFERENCES, Some(&source)))
            .or_else(|| match &all[..] {
                // Of two texts the other one.
                [a, b] => Some(if *a == source { b.clone() } else { a.clone() }),
                _ => None,
            });
        match reference {
            Some(reference) => Ok(Self {
                source,
                reference,
                all,
            }),
            None => Err(("reference", all)),
        }
    }

    pub(super) fn sources(&self, rows: &[Map<String, Value>]) -> Vec<String> {
        rows.iter()
            .filter_map(|row| text(row, &self.source))
            .collect()
    }

    pub(super) fn references(&self, rows: &[Map<String, Value>]) -> Vec<String> {
        rows.iter()
            .filter_map(|row| text(row, &self.reference))
            .collect()
    }
}

/// Fields with texts, and with lists of them.
fn fields(row: &Map<String, Value>, within: &str) -> Vec<String> {
    let mut found = Vec::new();
    for (name, value) in row {
        let path = format!("{within}{name}");
        match value {
            Value::String(_) => found.push(path),
            Value::Array(list) if list.iter().all(Value::is_string) && !list.is_empty() => {
                found.push(path)
            }
            Value::Object(inner) => found.extend(fields(inner, &format!("{path}."))),
            _ => {}
        }
    }
    found
}

/// A text, or the first of a list.
fn text(row: &Map<String, Value>, path: &str) -> Option<String> {
    let mut steps = path.split('.');
    let first = row.get(path).or_else(|| row.get(steps.next()?))?;
    let value = match row.contains_key(path) {
        true => first,
        false => steps.try_fold(first, |value, step| value.get(step))?,
    };
    let text = value.as_str().or_else(|| value.get(0)?.as_str());
    text.map(str::to_owned)
}

/// Whether answers are much shorter than what they are about.
pub(super) fn is_summary(sources: &[String], references: &[String]) -> bool {
    let words = |texts: &[String]| -> usize {
        texts
            .iter()
            .map(|text| text.split_whitespace().count())
            .sum()
    };
    words(sources) > 3 * words(references)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn guess(row: Value) -> Result<(String, String), &'static str> {
        let rows = [row.as_object().unwrap().clone()];
        match Columns::guess(&rows, None, None) {
            Ok(found) => Ok((found.source, found.reference)),
            Err((role, _)) => Err(role),
        }
    }

    #[test]
    fn usual_names_are_known() {
        let pair = |a: &str, b: &str| Ok((a.to_owned(), b.to_owned()));
        assert_eq!(
            guess(json!({"id": "1", "dialogue": "a", "summary": "b", "topic": "c"})),
            pair("dialogue", "summary")
        );
        assert_eq!(
            guess(json!({"translation": {"en": "a", "de": "b"}})),
            pair("translation.en", "translation.de")
        );
        assert_eq!(
            guess(json!({"question": "a", "answers": ["b", "c"]})),
            pair("question", "answers")
        );
        assert_eq!(
            guess(json!({"Input": "a", "wished": "b"})),
            pair("Input", "wished")
        );
        assert_eq!(
            guess(json!({"prompt": "a", "b": "x", "c": "y"})),
            Err("reference")
        );
        assert_eq!(guess(json!({"b": "x", "c": 1})), Err("source"));
    }

    #[test]
    fn texts_are_found_within_objects_and_lists() {
        let row = json!({"a.b": "whole", "a": {"b": "inner", "c": ["first", "second"]}});
        let row = row.as_object().unwrap();
        assert_eq!(text(row, "a.b").as_deref(), Some("whole"));
        assert_eq!(text(row, "a.c").as_deref(), Some("first"));
        assert_eq!(text(row, "a.d"), None);
    }
}
