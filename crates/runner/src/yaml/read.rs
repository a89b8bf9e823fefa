//! From the tree to a type. serde's derived code tells what it knew and what it found in
//! [`Error`](serde::de::Error)'s own methods, so nothing has to be parsed out of a message.

use super::Document;
use super::tree::{Entry, Node, Place, Value};
use serde::de::value::{MapAccessDeserializer, StrDeserializer};
use serde::de::{
    self, DeserializeSeed, Deserializer, Expected, IntoDeserializer, MapAccess, SeqAccess,
    Unexpected, Visitor,
};
use serde::forward_to_deserialize_any;
use skipbench_strategy::{did_you_mean, nearest};
use std::fmt;

/// What is wrong, and where as far as that is known.
#[derive(Debug)]
pub(super) struct Fault {
    pub(super) message: String,
    pub(super) place: Option<Place>,
}

impl Fault {
    /// Names the value that it is about, if nothing further inside has done so.
    fn of(self, path: &str) -> Self {
        match path {
            "" => self,
            _ if self.place.is_some() => self,
            path => Self {
                message: format!("`{path}`: {}", self.message),
                ..self
            },
        }
    }

    /// The place of the innermost value stands.
    fn at(mut self, place: Place) -> Self {
        self.place.get_or_insert(place);
        self
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Fault {}

impl de::Error for Fault {
    fn custom<T: fmt::Display>(message: T) -> Self {
        Self {
            message: message.to_string(),
            place: None,
        }
    }

    fn invalid_type(found: Unexpected<'_>, wanted: &dyn Expected) -> Self {
        let found = match found {
            Unexpected::Seq => "a list".to_owned(),
            Unexpected::Map => "a map of keys".to_owned(),
            Unexpected::Unit | Unexpected::Option => "nothing".to_owned(),
            Unexpected::Str(text) => format!("the text {text:?}"),
            Unexpected::Float(number) => format!("`{number:?}`"),
            Unexpected::Unsigned(number) => format!("`{number}`"),
            Unexpected::Signed(number) => format!("`{number}`"),
            Unexpected::Bool(truth) => format!("`{truth}`"),
            found => found.to_string(),
        };
        Self::custom(format_args!("expected {wanted}, not {found}"))
    }

    fn invalid_value(found: Unexpected<'_>, wanted: &dyn Expected) -> Self {
        match found {
            Unexpected::Unsigned(_) | Unexpected::Signed(_) => {
                Self::custom(format_args!("{found} is out of range"))
            }
            _ => Self::invalid_type(found, wanted),
        }
    }

    fn unknown_field(found: &str, known: &'static [&'static str]) -> Self {
        let hint = did_you_mean(nearest(found, known.iter().copied()));
        Self::custom(format_args!(
            "unknown key `{found}`{hint}; known: {}",
            known.join(", ")
        ))
    }

    fn unknown_variant(found: &str, known: &'static [&'static str]) -> Self {
        let hint = did_you_mean(nearest(found, known.iter().copied()));
        Self::custom(format_args!(
            "unknown value `{found}`{hint}; known: {}",
            known.join(", ")
        ))
    }

    fn missing_field(field: &'static str) -> Self {
        Self::custom(format_args!("key `{field}` is missing"))
    }

    fn duplicate_field(field: &'static str) -> Self {
        Self::custom(format_args!("key `{field}` stands twice in the same map"))
    }
}

/// Reads one value of a document.
pub(super) struct Reader<'a> {
    document: &'a Document,
    node: &'a Node,
    /// Key path of the value; empty for the document itself.
    path: String,
}

impl<'a> Reader<'a> {
    pub(super) fn new(document: &'a Document) -> Self {
        Self {
            document,
            node: &document.root,
            path: String::new(),
        }
    }

    fn below(&self, node: &'a Node, step: impl fmt::Display) -> Self {
        Self {
            document: self.document,
            node,
            path: match self.path.as_str() {
                "" => step.to_string(),
                path => format!("{path}.{step}"),
            },
        }
    }

    /// A scalar as it was written.
    fn written(&self) -> &'a str {
        let Place { source, bytes, .. } = self.node.place;
        let text = self.document.sources.get(source);
        text.and_then(|source| source.text.get(bytes.0..bytes.0 + bytes.1))
            .unwrap_or_default()
    }

    /// Refuses the value for lack of `wanted`.
    fn wants(&self, wanted: impl fmt::Display) -> Fault {
        let found = match &self.node.value {
            Value::Null => "nothing".to_owned(),
            Value::List(_) => "a list".to_owned(),
            Value::Map(_) => "a map of keys".to_owned(),
            Value::Text(text) => format!("the text {text:?}"),
            _ => format!("`{}`", self.written()),
        };
        let message = match self.path.as_str() {
            "" => format!("the file takes {wanted}; it holds {found}"),
            path if found == "nothing" => format!("`{path}` takes {wanted}, and is empty"),
            path => format!("`{path}` takes {wanted}, not {found}"),
        };
        Fault {
            message,
            place: Some(self.node.place),
        }
    }

    fn number<V: Visitor<'a>>(self, visitor: V, wanted: &str) -> Result<V::Value, Fault> {
        let (place, path) = (self.node.place, self.path.clone());
        match self.node.value {
            Value::Unsigned(value) => visitor.visit_u64(value),
            Value::Signed(value) => visitor.visit_i64(value),
            Value::Float(value) if wanted == A_NUMBER => visitor.visit_f64(value),
            _ => return Err(self.wants(wanted)),
        }
        .map_err(|fault: Fault| fault.of(&path).at(place))
    }

    fn entries<V: Visitor<'a>>(self, visitor: V, wanted: &str) -> Result<V::Value, Fault> {
        let Value::Map(entries) = &self.node.value else {
            return Err(self.wants(wanted));
        };
        let (place, path) = (self.node.place, self.path.clone());
        let entries = Entries {
            rest: entries.iter(),
            value: None,
            map: self,
        };
        visitor
            .visit_map(entries)
            .map_err(|fault| match fault.place {
                Some(_) => fault,
                None => fault.of(&path).at(place),
            })
    }
}

const A_NUMBER: &str = "a number";

macro_rules! numbers {
    ($($method:ident: $wanted:expr,)*) => {
        $(fn $method<V: Visitor<'a>>(self, visitor: V) -> Result<V::Value, Fault> {
            self.number(visitor, $wanted)
        })*
    };
}

impl<'a> Deserializer<'a> for Reader<'a> {
    type Error = Fault;

    fn deserialize_any<V: Visitor<'a>>(self, visitor: V) -> Result<V::Value, Fault> {
        let (place, path) = (self.node.place, self.path.clone());
        match &self.node.value {
            Value::Null => visitor.visit_unit(),
            Value::Bool(value) => visitor.visit_bool(*value),
            Value::Unsigned(value) => visitor.visit_u64(*value),
            Value::Signed(value) => visitor.visit_i64(*value),
            Value::Float(value) => visitor.visit_f64(*value),
            Value::Text(text) => visitor.visit_str(text),
            Value::List(_) => return self.deserialize_seq(visitor),
            Value::Map(_) => return self.entries(visitor, ""),
        }
        .map_err(|fault: Fault| fault.of(&path).at(place))
    }

    fn deserialize_bool<V: Visitor<'a>>(self, visitor: V) -> Result<V::Value, Fault> {
        match self.node.value {
            Value::Bool(value) => visitor.visit_bool(value),
            _ => Err(self.wants("true or false")),
        }
    }

    numbers! {
        deserialize_i8: "a whole number",
        deserialize_i16: "a whole number",
        deserialize_i32: "a whole number",
        deserialize_i64: "a whole number",
        deserialize_f32: A_NUMBER,
        deserialize_f64: A_NUMBER,
    }

    fn deserialize_u64<V: Visitor<'a>>(self, visitor: V) -> Result<V::Value, Fault> {
        const WANTED: &str = "a whole number from 0 up";
        match self.node.value {
            Value::Signed(_) => Err(self.wants(WANTED)),
            _ => self.number(visitor, WANTED),
        }
    }

    fn deserialize_u32<V: Visitor<'a>>(self, visitor: V) -> Result<V::Value, Fault> {
        self.deserialize_u64(visitor)
    }

    fn deserialize_u16<V: Visitor<'a>>(self, visitor: V) -> Result<V::Value, Fault> {
        self.deserialize_u64(visitor)
    }

    fn deserialize_u8<V: Visitor<'a>>(self, visitor: V) -> Result<V::Value, Fault> {
        self.deserialize_u64(visitor)
    }

    /// A number or a truth value is a text too, as it was written.
    fn deserialize_str<V: Visitor<'a>>(self, visitor: V) -> Result<V::Value, Fault> {
        let (place, path) = (self.node.place, self.path.clone());
        match &self.node.value {
            Value::Text(text) => visitor.visit_str(text),
            Value::Null | Value::List(_) | Value::Map(_) => return Err(self.wants("a text")),
            _ => visitor.visit_str(self.written()),
        }
        .map_err(|fault: Fault| fault.of(&path).at(place))
    }

    fn deserialize_string<V: Visitor<'a>>(self, visitor: V) -> Result<V::Value, Fault> {
        self.deserialize_str(visitor)
    }

    fn deserialize_option<V: Visitor<'a>>(self, visitor: V) -> Result<V::Value, Fault> {
        match self.node.value {
            Value::Null => visitor.visit_none(),
            _ => visitor.visit_some(self),
        }
    }

    fn deserialize_newtype_struct<V: Visitor<'a>>(
        self,
        _name: &'static str,
        visitor: V,
    ) -> Result<V::Value, Fault> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_seq<V: Visitor<'a>>(self, visitor: V) -> Result<V::Value, Fault> {
        let (place, path) = (self.node.place, self.path.clone());
        match &self.node.value {
            Value::List(items) => visitor
                .visit_seq(Items {
                    rest: items.iter().enumerate(),
                    list: self,
                })
                .map_err(|fault| fault.of(&path).at(place)),
            Value::Null | Value::Map(_) => Err(self.wants("a list")),
            _ => {
                let key = self.path.rsplit('.').next().unwrap_or_default();
                let source = self.document.sources.get(place.source);
                let colon = if source.is_some_and(|source| source.has_lines) {
                    ": "
                } else {
                    "="
                };
                let written = self.written();
                Err(self.wants(format_args!("a list (write `{key}{colon}[{written}]`)")))
            }
        }
    }

    fn deserialize_map<V: Visitor<'a>>(self, visitor: V) -> Result<V::Value, Fault> {
        self.entries(visitor, "a map of keys")
    }

    fn deserialize_struct<V: Visitor<'a>>(
        self,
        _name: &'static str,
        known: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Fault> {
        let wanted = format!("the keys {}", known.join(", "));
        self.entries(visitor, &wanted)
    }

    fn deserialize_enum<V: Visitor<'a>>(
        self,
        _name: &'static str,
        known: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Fault> {
        let (place, path) = (self.node.place, self.path.clone());
        match &self.node.value {
            Value::Text(name) => {
                let name: StrDeserializer<'_, Fault> = name.as_str().into_deserializer();
                visitor.visit_enum(name)
            }
            Value::Map(entries) => visitor.visit_enum(MapAccessDeserializer::new(Entries {
                rest: entries.iter(),
                value: None,
                map: self,
            })),
            _ => return Err(self.wants(format_args!("one of {}", known.join(", ")))),
        }
        .map_err(|fault| fault.of(&path).at(place))
    }

    fn deserialize_ignored_any<V: Visitor<'a>>(self, visitor: V) -> Result<V::Value, Fault> {
        visitor.visit_unit()
    }

    forward_to_deserialize_any! {
        <V: Visitor<'a>>
        i128 u128 char bytes byte_buf unit unit_struct tuple tuple_struct identifier
    }
}

/// The items of a list.
struct Items<'a> {
    rest: std::iter::Enumerate<std::slice::Iter<'a, Node>>,
    list: Reader<'a>,
}

impl<'a> SeqAccess<'a> for Items<'a> {
    type Error = Fault;

    fn next_element_seed<S: DeserializeSeed<'a>>(
        &mut self,
        seed: S,
    ) -> Result<Option<S::Value>, Fault> {
        let Some((index, node)) = self.rest.next() else {
            return Ok(None);
        };
        seed.deserialize(self.list.below(node, index))
            .map(Some)
            .map_err(|fault| fault.at(node.place))
    }
}

/// The entries of a map.
struct Entries<'a> {
    rest: std::slice::Iter<'a, Entry>,
    value: Option<&'a Entry>,
    map: Reader<'a>,
}

impl<'a> MapAccess<'a> for Entries<'a> {
    type Error = Fault;

    fn next_key_seed<S: DeserializeSeed<'a>>(
        &mut self,
        seed: S,
    ) -> Result<Option<S::Value>, Fault> {
        self.value = self.rest.next();
        let Some(entry) = self.value else {
            return Ok(None);
        };
        seed.deserialize(Key(&entry.key))
            .map(Some)
            .map_err(|fault| fault.of(&self.map.path).at(entry.key_place))
    }

    fn next_value_seed<S: DeserializeSeed<'a>>(&mut self, seed: S) -> Result<S::Value, Fault> {
        let Some(entry) = self.value.take() else {
            return Err(de::Error::custom("a value was asked for before its key"));
        };
        seed.deserialize(self.map.below(&entry.value, &entry.key))
            .map_err(|fault| fault.at(entry.value.place))
    }
}

/// A key of a map, which is a number where one is asked for.
struct Key<'a>(&'a str);

impl<'a> Deserializer<'a> for Key<'a> {
    type Error = Fault;

    fn deserialize_any<V: Visitor<'a>>(self, visitor: V) -> Result<V::Value, Fault> {
        visitor.visit_borrowed_str(self.0)
    }

    fn deserialize_u64<V: Visitor<'a>>(self, visitor: V) -> Result<V::Value, Fault> {
        match self.0.parse() {
            Ok(number) => visitor.visit_u64(number),
            Err(_) => self.deserialize_any(visitor),
        }
    }

    fn deserialize_enum<V: Visitor<'a>>(
        self,
        name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Fault> {
        let text: StrDeserializer<'_, Fault> = self.0.into_deserializer();
        text.deserialize_enum(name, variants, visitor)
    }

    fn deserialize_newtype_struct<V: Visitor<'a>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value, Fault> {
        visitor.visit_newtype_struct(self)
    }

    forward_to_deserialize_any! {
        <V: Visitor<'a>>
        bool i8 i16 i32 i64 i128 u8 u16 u32 u128 f32 f64 char str string bytes byte_buf option unit unit_struct seq tuple
        tuple_struct map struct identifier ignored_any
    }
}
