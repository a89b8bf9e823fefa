//! The tree, and what builds and changes it.

use super::read::Fault;
use serde::de::{Deserialize, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_saphyr::{
    DuplicateKeyPolicy, MessageFormatter, NonFiniteFloatPolicy, Spanned, UserMessageFormatter,
};
use std::fmt;

/// A value and where it was written.
#[derive(Debug, Clone, Default)]
pub(super) struct Node {
    pub(super) value: Value,
    pub(super) place: Place,
}

/// What YAML can say.
#[derive(Debug, Clone, Default)]
pub(super) enum Value {
    /// Nothing, as after `key:`.
    #[default]
    Null,
    Bool(bool),
    Unsigned(u64),
    Signed(i64),
    Float(f64),
    Text(String),
    List(Vec<Node>),
    Map(Vec<Entry>),
}

/// A key with its value.
#[derive(Debug, Clone)]
pub(super) struct Entry {
    pub(super) key: String,
    pub(super) key_place: Place,
    pub(super) value: Node,
}

/// A place in one of a document's texts.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Place {
    pub(super) source: usize,
    /// From 1; 0 where only the text is known.
    pub(super) line: usize,
    /// In characters, from 1.
    pub(super) column: usize,
    /// In characters.
    pub(super) len: usize,
    /// In bytes of the text: where it begins, and how many; 0 bytes where that is not known.
    pub(super) bytes: (usize, usize),
}

impl Place {
    pub(super) fn in_source(source: usize) -> Self {
        Self {
            source,
            ..Self::default()
        }
    }

    fn new(location: serde_saphyr::Location, source: usize) -> Self {
        let (line, span) = (location.line() as usize, location.span());
        Self {
            source,
            line,
            column: location.column() as usize,
            len: span.len() as usize,
            bytes: (
                span.byte_offset().unwrap_or(0) as usize,
                span.byte_len().unwrap_or(0) as usize,
            ),
        }
    }
}

/// Parses a text.
pub(super) fn parse(text: &str, source: usize) -> Result<Node, Fault> {
    let options = serde_saphyr::options! {
        with_snippet: false,
        non_finite_float_policy: NonFiniteFloatPolicy::PassThrough,
        duplicate_keys: DuplicateKeyPolicy::Error,
    };
    match serde_saphyr::from_str_with_options::<Spanned<Raw>>(text, options) {
        Ok(raw) => Ok(node(raw, source)),
        Err(error) => {
            let error = error.without_snippet();
            let message = match error {
                serde_saphyr::Error::DuplicateMappingKey { key: Some(key), .. } => {
                    format!("key `{key}` stands twice in the same map")
                }
                serde_saphyr::Error::MultipleDocuments { .. } => {
                    "a second document begins here; one file holds one".to_owned()
                }
                error => UserMessageFormatter.format_message(error).into_owned(),
            };
            Err(Fault {
                message,
                place: error.location().map(|at| Place::new(at, source)),
            })
        }
    }
}

/// A value as the library gives it.
enum Raw {
    Scalar(Value),
    List(Vec<Spanned<Raw>>),
    Map(Vec<(Spanned<String>, Spanned<Raw>)>),
}

fn node(raw: Spanned<Raw>, source: usize) -> Node {
    Node {
        place: Place::new(raw.defined, source),
        value: match raw.value {
            Raw::Scalar(value) => value,
            Raw::List(items) => {
                Value::List(items.into_iter().map(|item| node(item, source)).collect())
            }
            Raw::Map(entries) => Value::Map(
                entries
                    .into_iter()
                    .map(|(key, value)| Entry {
                        key_place: Place::new(key.defined, source),
                        key: key.value,
                        value: node(value, source),
                    })
                    .collect(),
            ),
        },
    }
}

impl<'de> Deserialize<'de> for Raw {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct RawVisitor;

        impl<'de> Visitor<'de> for RawVisitor {
            type Value = Raw;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a value")
            }

            fn visit_unit<E>(self) -> Result<Raw, E> {
                Ok(Raw::Scalar(Value::Null))
            }

            fn visit_bool<E>(self, value: bool) -> Result<Raw, E> {
                Ok(Raw::Scalar(Value::Bool(value)))
            }

            fn visit_u64<E>(self, value: u64) -> Result<Raw, E> {
                Ok(Raw::Scalar(Value::Unsigned(value)))
            }

            fn visit_i64<E>(self, value: i64) -> Result<Raw, E> {
                Ok(Raw::Scalar(Value::Signed(value)))
            }

            fn visit_f64<E>(self, value: f64) -> Result<Raw, E> {
                Ok(Raw::Scalar(Value::Float(value)))
            }

            fn visit_str<E>(self, value: &str) -> Result<Raw, E> {
                Ok(Raw::Scalar(Value::Text(value.to_owned())))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Raw, A::Error> {
                let mut items = Vec::new();
                while let Some(item) = seq.next_element()? {
                    items.push(item);
                }
                Ok(Raw::List(items))
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Raw, A::Error> {
                let mut entries = Vec::new();
                while let Some(key) = map.next_key::<Spanned<String>>()? {
                    if key.value.is_empty() {
                        return Err(A::Error::custom("a key is empty"));
                    }
                    entries.push((key, map.next_value()?));
                }
                Ok(Raw::Map(entries))
            }
        }

        deserializer.deserialize_any(RawVisitor)
    }
}

impl Node {
    /// The value below a key, or the item of an index.
    pub(super) fn child(&self, step: &str) -> Option<&Node> {
        match &self.value {
            Value::Map(entries) => entries
                .iter()
                .find(|entry| entry.key == step)
                .map(|entry| &entry.value),
            Value::List(items) => items.get(step.parse::<usize>().ok()?),
            _ => None,
        }
    }

    /// Takes a key out of a map.
    pub(super) fn take(&mut self, key: &str) -> Option<Node> {
        let Value::Map(entries) = &mut self.value else {
            return None;
        };
        let index = entries.iter().position(|entry| entry.key == key)?;
        Some(entries.remove(index).value)
    }

    /// The value of a key.
    pub(super) fn child_mut(&mut self, key: &str) -> Option<&mut Node> {
        let Value::Map(entries) = &mut self.value else {
            return None;
        };
        let entry = entries.iter_mut().find(|entry| entry.key == key)?;
        Some(&mut entry.value)
    }

    /// Of the items of the list below `list`, the values of `key`.
    pub(super) fn children_mut(&mut self, list: &str, key: &str) -> Vec<&mut Node> {
        self.items_mut(list)
            .filter_map(|item| item.child_mut(key))
            .collect()
    }

    /// Makes a text a map of one key with that text.
    pub(super) fn text_is(&mut self, key: &str) {
        if !matches!(self.value, Value::Text(_)) {
            return;
        }
        let text = std::mem::take(self);
        *self = Node {
            place: text.place,
            value: Value::Map(vec![Entry {
                key: key.to_owned(),
                key_place: text.place,
                value: text,
            }]),
        };
    }

    /// The items of a list below a key; none where there is no list.
    pub(super) fn items_mut(&mut self, key: &str) -> impl Iterator<Item = &mut Node> {
        let entry = match &mut self.value {
            Value::Map(entries) => entries.iter_mut().find(|entry| entry.key == key),
            _ => None,
        };
        let items = entry.map(|entry| &mut entry.value.value);
        let items = items.and_then(|value| match value {
            Value::List(items) => Some(items),
            _ => None,
        });
        items.into_iter().flatten()
    }

    /// Lays `over` over this value: maps key by key, anything else in its place.
    pub(super) fn merge(&mut self, over: Node) {
        match (&mut self.value, over.value) {
            (Value::Map(entries), Value::Map(new)) => {
                self.place = over.place;
                for entry in new {
                    match entries.iter_mut().find(|old| old.key == entry.key) {
                        Some(old) => {
                            old.key_place = entry.key_place;
                            old.value.merge(entry.value);
                        }
                        None => entries.push(entry),
                    }
                }
            }
            (value, new) => {
                *value = new;
                self.place = over.place;
            }
        }
    }

    /// Sets the value at a key path; keys that are not there yet are made, items of a list are not.
    ///
    /// # Errors
    /// What is wrong with the path.
    pub(super) fn set(&mut self, path: &str, new: Node) -> Result<(), String> {
        let mut node = self;
        let mut done = String::new();
        for step in path.split('.') {
            if step.is_empty() {
                return Err(format!("`{path}` has an empty step"));
            }
            if let Value::Null = node.value {
                node.value = Value::Map(Vec::new());
                node.place = new.place;
            }
            node = match &mut node.value {
                Value::Map(entries) => {
                    let index = match entries.iter().position(|entry| entry.key == step) {
                        Some(index) => index,
                        None => {
                            entries.push(Entry {
                                key: step.to_owned(),
                                key_place: new.place,
                                value: Node::default(),
                            });
                            entries.len() - 1
                        }
                    };
                    &mut entries[index].value
                }
                Value::List(items) => {
                    let count = items.len();
                    let item = step
                        .parse()
                        .ok()
                        .and_then(|index: usize| items.get_mut(index));
                    item.ok_or_else(|| match count {
                        0 => format!("`{done}` is an empty list; set all of it"),
                        _ => format!(
                            "`{done}` is a list with items 0 to {}, so `{step}` is none of it",
                            count - 1
                        ),
                    })?
                }
                _ => return Err(format!("`{done}` is a single value, so it has no `{step}`")),
            };
            if !done.is_empty() {
                done.push('.');
            }
            done.push_str(step);
        }
        *node = new;
        Ok(())
    }
}
