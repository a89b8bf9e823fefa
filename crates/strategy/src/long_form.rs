//! The long form of a strategy, a map from its name to its settings: read such that a mistake is answered with the nearest
//! thing that works, written with every setting, described as JSON Schema.
//!
//! The settings of a strategy come from two places: the common ones, of which it takes some, and its own, a serde struct.
//! [`Strict`] sits between that struct's derived `Deserialize` and the format. It learns the struct's keys from
//! `deserialize_struct`, looks at each key before the derived code does, and keeps the common settings for itself. (serde's
//! `flatten` would copy the values first, and their place in the text would be lost.)

use crate::error::{did_you_mean, nearest};
use crate::settings::{Common, Definition, OF_EXITS, Settings};
use crate::strategies::Kind;
use crate::{BatchMode, KvFill, Prefill, StrategySpec};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::value::{MapDeserializer, StrDeserializer};
use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, Visitor};
use serde::ser::SerializeMap;
use serde::{Deserialize, Serialize, Serializer, forward_to_deserialize_any};
use serde_json::{Map, Value};
use std::borrow::Cow;
use std::fmt;
use std::marker::PhantomData;

impl<'de> Deserialize<'de> for StrategySpec {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(SpecVisitor)
    }
}

struct SpecVisitor;

impl<'de> Visitor<'de> for SpecVisitor {
    type Value = StrategySpec;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(
            "a strategy: `name[:variant][@speedup]`, or a map such as `unified: {rule: even, speedup: 3}`",
        )
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<StrategySpec, E> {
        text.parse().map_err(E::custom)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<StrategySpec, A::Error> {
        let Some(name) = map.next_key::<String>()? else {
            return Err(A::Error::custom("a strategy is missing its name"));
        };
        let named = StrategySpec::named(&name).map_err(A::Error::custom)?;
        let mut common = Common::default();
        let kind = named.kind.read(&mut map, &mut common)?;
        if let Some(second) = map.next_key::<String>()? {
            return Err(A::Error::custom(format_args!(
                "a strategy is one name with its settings below it, but `{second}` stands beside `{name}`; indent it if it is a setting of `{name}`"
            )));
        }
        Ok(StrategySpec { common, kind })
    }
}

/// Deserializes the own settings `T` of a strategy and puts the common ones, which stand between them, into `common`;
/// nothing at all (`unified:` in YAML) is the default.
pub(crate) struct OwnSeed<'a, T> {
    common: Reading<'a>,
    own: PhantomData<T>,
}

impl<'a, T> OwnSeed<'a, T> {
    pub(crate) fn new(definition: Definition, common: &'a mut Common) -> Self {
        Self {
            common: Reading {
                definition,
                common,
                seen: Vec::new(),
            },
            own: PhantomData,
        }
    }
}

impl<'de, T: Deserialize<'de>> DeserializeSeed<'de> for OwnSeed<'_, T> {
    type Value = T;

    fn deserialize<D: Deserializer<'de>>(self, inner: D) -> Result<T, D::Error> {
        T::deserialize(Strict {
            inner,
            reading: self.common,
            own_keys: &[],
        })
    }
}

/// The common settings while they are read.
struct Reading<'a> {
    definition: Definition,
    common: &'a mut Common,
    seen: Vec<&'static str>,
}

/// A deserializer, a visitor or a map access that passes on what is the strategy's own.
struct Strict<'a, I> {
    inner: I,
    reading: Reading<'a>,
    own_keys: &'static [&'static str],
}

impl<'de, D: Deserializer<'de>> Deserializer<'de> for Strict<'_, D> {
    type Error = D::Error;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, D::Error> {
        self.inner.deserialize_any(visitor)
    }

    /// Asks the format for whatever is there, so that a number or nothing reaches the visitor too.
    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        own_keys: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, D::Error> {
        self.inner.deserialize_any(Strict {
            inner: visitor,
            reading: self.reading,
            own_keys,
        })
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option
        unit unit_struct newtype_struct seq tuple tuple_struct map enum identifier ignored_any
    }
}

impl<'de, V: Visitor<'de>> Visitor<'de> for Strict<'_, V> {
    type Value = V::Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Definition { name, speedup, .. } = self.reading.definition;
        write!(f, "the settings of `{name}` as a map")?;
        match speedup {
            true => write!(f, ", such as `{name}: {{speedup: 2}}`"),
            false => Ok(()),
        }
    }

    fn visit_unit<E: Error>(self) -> Result<V::Value, E> {
        let nothing = std::iter::empty::<(&str, &str)>();
        self.inner.visit_map(MapDeserializer::new(nothing))
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<V::Value, A::Error> {
        self.inner.visit_map(Strict {
            inner: map,
            reading: self.reading,
            own_keys: self.own_keys,
        })
    }
}

impl<'de, A: MapAccess<'de>> MapAccess<'de> for Strict<'_, A> {
    type Error = A::Error;

    fn next_key_seed<K: DeserializeSeed<'de>>(
        &mut self,
        seed: K,
    ) -> Result<Option<K::Value>, A::Error> {
        let Reading {
            definition,
            common,
            seen,
        } = &mut self.reading;
        loop {
            // Refusing inside the seed lets the format say where the key is.
            let known = KnownKey {
                definition,
                own_keys: self.own_keys,
                seen,
            };
            let Some(key) = self.inner.next_key_seed(known)? else {
                return Ok(None);
            };
            if !definition.takes(key) {
                let key = StrDeserializer::<A::Error>::new(key);
                return seed.deserialize(key).map(Some);
            }
            seen.push(key);
            common.read(key, &mut self.inner)?;
        }
    }

    fn next_value_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<S::Value, A::Error> {
        self.inner.next_value_seed(seed)
    }
}

/// Reads a key, and refuses it if it is not known.
struct KnownKey<'a> {
    definition: &'a Definition,
    own_keys: &'static [&'static str],
    seen: &'a [&'static str],
}

impl<'de> DeserializeSeed<'de> for KnownKey<'_> {
    type Value = &'static str;

    fn deserialize<D: Deserializer<'de>>(self, key: D) -> Result<&'static str, D::Error> {
        key.deserialize_identifier(self)
    }
}

impl Visitor<'_> for KnownKey<'_> {
    type Value = &'static str;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a setting of `{}`", self.definition.name)
    }

    fn visit_str<E: Error>(self, key: &str) -> Result<&'static str, E> {
        let strategy = self.definition.name;
        let own = self.own_keys.iter().copied();
        let mut known: Vec<&str> = own.chain(self.definition.common_keys()).collect();
        if self.seen.contains(&key) {
            return Err(E::custom(format_args!("`{key}` is given twice")));
        }
        if let Some(known) = known.iter().find(|known| **known == key) {
            return Ok(known);
        }
        if known.is_empty() {
            return Err(E::custom(format_args!(
                "unknown key `{key}`: `{strategy}` has no settings"
            )));
        }
        known.sort_by_key(|key| self.definition.rank(key));
        let hint = match OF_EXITS.contains(&key) {
            // No slip of the pen.
            true => ", which is for tokens that choose where they leave, as under `early-exit` and `shallow-deep`".to_owned(),
            false => did_you_mean(nearest(key, known.iter().copied())),
        };
        let known = known.join(", ");
        Err(E::custom(format_args!(
            "unknown key `{key}` of `{strategy}`{hint}; known: {known}"
        )))
    }
}

impl Serialize for StrategySpec {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let settings = self.settings().map_err(serde::ser::Error::custom)?;
        let mut long = serializer.serialize_map(Some(1))?;
        long.serialize_entry(self.name(), &settings)?;
        long.end()
    }
}

impl StrategySpec {
    /// The value of the long form's one key: the strategy's own settings, and of the common ones those that are not what
    /// they are without being given.
    pub(crate) fn settings(&self) -> serde_json::Result<Map<String, Value>> {
        let definition = self.definition();
        let common = serde_json::to_value(self.common.beside(&definition))?;
        Ok(in_order(&definition, [self.kind.to_value()?, common]))
    }

    /// The strategy of this name with settings from the value of its long form.
    pub(crate) fn from_settings(name: &str, settings: Value) -> Result<Self, String> {
        let long = Map::from_iter([(name.to_owned(), settings)]);
        serde_json::from_value(Value::Object(long)).map_err(|error| error.to_string())
    }
}

/// The entries of objects as they are written.
fn in_order(
    definition: &Definition,
    objects: impl IntoIterator<Item = Value>,
) -> Map<String, Value> {
    let maps = objects.into_iter().filter_map(|object| match object {
        Value::Object(map) => Some(map),
        _ => None,
    });
    let mut entries: Vec<(String, Value)> = maps.flatten().collect();
    entries.sort_by_key(|(key, _)| definition.rank(key));
    entries.into_iter().collect()
}

impl JsonSchema for StrategySpec {
    fn schema_name() -> Cow<'static, str> {
        "StrategySpec".into()
    }

    fn schema_id() -> Cow<'static, str> {
        concat!(module_path!(), "::StrategySpec").into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let long_forms = Kind::schemas(generator);
        let long_forms = long_forms.into_iter().map(|(definition, settings)| {
            json_schema!({
                "description": definition.about,
                "type": "object",
                "properties": {definition.name: settings},
                "required": [definition.name],
                "additionalProperties": false,
            })
        });
        let short_form = json_schema!({
            "description": "name[:variant][@speedup], as in unified:even@3",
            "type": "string",
        });
        let forms: Vec<Schema> = [short_form].into_iter().chain(long_forms).collect();
        json_schema!({
            "description": "A strategy: its short form, or a map from its name to its settings.",
            "anyOf": forms,
        })
    }
}

/// The schema of all settings of a strategy, of which `T` are its own.
pub(crate) struct Whole<T>(PhantomData<T>);

impl<T: Settings + Default + JsonSchema> JsonSchema for Whole<T> {
    fn schema_name() -> Cow<'static, str> {
        T::schema_name()
    }

    fn schema_id() -> Cow<'static, str> {
        format!("{} and common settings", T::schema_id()).into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let definition = T::default().definition();
        let mut common = Common::json_schema(generator)
            .remove("properties")
            .unwrap_or_default();
        if let Value::Object(common) = &mut common {
            common.retain(|key, _| definition.takes(key));
            let defaults = [
                ("prefill", definition.prefill.map(Prefill::name)),
                ("kv-fill", definition.kv_fill.map(KvFill::name)),
                ("batch-mode", definition.batch_mode.map(BatchMode::name)),
            ];
            for (key, default) in defaults {
                if let (Some(setting), Some(default)) = (common.get_mut(key), default) {
                    setting["default"] = default.into();
                }
            }
        }
        let mut whole = T::json_schema(generator);
        let properties = whole.ensure_object().entry("properties");
        let properties = properties.or_insert_with(|| Map::new().into());
        let own = properties.take();
        *properties = in_order(&definition, [own, common]).into();
        whole
    }
}
