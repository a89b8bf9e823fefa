//! Reading the settings of a strategy such that a mistake is answered with the nearest thing that works.
//!
//! serde's `deny_unknown_fields` only lists what it expected. [`StrictSeed`] sits between a derived
//! `Deserialize` and the format, learns the known keys from `deserialize_struct`, and looks at each key
//! before the derived code does. [`named`] does the same for the names of a setting's values.

use crate::error::{did_you_mean, nearest};
use crate::exits;
use serde::de::value::{MapDeserializer, StrDeserializer};
use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, Visitor};
use serde::{Deserialize, forward_to_deserialize_any};
use std::fmt;
use std::marker::PhantomData;

/// A plain enum whose values have names: the variants of a strategy.
pub(crate) trait Named: Copy + 'static {
    /// Every value.
    const ALL: &'static [Self];

    /// Its name.
    fn name(self) -> &'static str;

    /// The value of this name.
    fn by_name(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|v| v.name() == name)
    }
}

/// Deserializes a [`Named`] value, for `#[serde(deserialize_with)]`.
pub(crate) fn named<'de, T: Named, D: Deserializer<'de>>(deserializer: D) -> Result<T, D::Error> {
    struct NameVisitor<T>(PhantomData<T>);

    impl<T: Named> Visitor<'_> for NameVisitor<T> {
        type Value = T;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("one of ")?;
            f.write_str(&names::<T>().collect::<Vec<_>>().join(", "))
        }

        fn visit_str<E: Error>(self, found: &str) -> Result<T, E> {
            T::by_name(found).ok_or_else(|| {
                let hint = did_you_mean(nearest(found, names::<T>()));
                let known = names::<T>().collect::<Vec<_>>().join(", ");
                E::custom(format_args!(
                    "unknown value `{found}`{hint}; known: {known}"
                ))
            })
        }
    }

    fn names<T: Named>() -> impl Iterator<Item = &'static str> {
        T::ALL.iter().map(|value| value.name())
    }

    deserializer.deserialize_str(NameVisitor(PhantomData))
}

/// Deserializes the settings `T` of a strategy; nothing at all (`unified:` in YAML) is their default.
pub(crate) struct StrictSeed<T> {
    strategy: &'static str,
    settings: PhantomData<T>,
}

impl<T> StrictSeed<T> {
    pub(crate) fn new(strategy: &'static str) -> Self {
        Self {
            strategy,
            settings: PhantomData,
        }
    }
}

impl<'de, T: Deserialize<'de>> DeserializeSeed<'de> for StrictSeed<T> {
    type Value = T;

    fn deserialize<D: Deserializer<'de>>(self, inner: D) -> Result<T, D::Error> {
        T::deserialize(Strict {
            inner,
            strategy: self.strategy,
            known: &[],
        })
    }
}

/// A deserializer, visitor, map access or key that passes everything on except unknown keys.
struct Strict<I> {
    inner: I,
    strategy: &'static str,
    known: &'static [&'static str],
}

impl<'de, D: Deserializer<'de>> Deserializer<'de> for Strict<D> {
    type Error = D::Error;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, D::Error> {
        self.inner.deserialize_any(visitor)
    }

    /// Asks the format for whatever is there, so that a number or nothing reaches the visitor too.
    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        known: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, D::Error> {
        self.inner.deserialize_any(Strict {
            inner: visitor,
            strategy: self.strategy,
            known,
        })
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option
        unit unit_struct newtype_struct seq tuple tuple_struct map enum identifier ignored_any
    }
}

impl<'de, V: Visitor<'de>> Visitor<'de> for Strict<V> {
    type Value = V::Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the settings of `{}` as a map", self.strategy)?;
        match self.known.contains(&"speedup") {
            true => write!(f, ", such as `{}: {{speedup: 2}}`", self.strategy),
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
            strategy: self.strategy,
            known: self.known,
        })
    }
}

impl<'de, A: MapAccess<'de>> MapAccess<'de> for Strict<A> {
    type Error = A::Error;

    fn next_key_seed<K: DeserializeSeed<'de>>(
        &mut self,
        seed: K,
    ) -> Result<Option<K::Value>, A::Error> {
        // Refusing inside the seed lets the format say where the key is.
        self.inner.next_key_seed(Strict {
            inner: seed,
            strategy: self.strategy,
            known: self.known,
        })
    }

    fn next_value_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<S::Value, A::Error> {
        self.inner.next_value_seed(seed)
    }

    fn size_hint(&self) -> Option<usize> {
        self.inner.size_hint()
    }
}

impl<'de, K: DeserializeSeed<'de>> DeserializeSeed<'de> for Strict<K> {
    type Value = K::Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<K::Value, D::Error> {
        let key = deserializer.deserialize_identifier(KnownKey {
            strategy: self.strategy,
            known: self.known,
        })?;
        self.inner.deserialize(StrDeserializer::new(key))
    }
}

/// Reads a key, and refuses it if it is not known.
struct KnownKey {
    strategy: &'static str,
    known: &'static [&'static str],
}

impl Visitor<'_> for KnownKey {
    type Value = &'static str;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a setting of `{}`", self.strategy)
    }

    fn visit_str<E: Error>(self, key: &str) -> Result<&'static str, E> {
        let Self { strategy, known } = self;
        if let Some(known) = known.iter().find(|known| **known == key) {
            return Ok(known);
        }
        Err(if known.is_empty() {
            E::custom(format_args!(
                "unknown key `{key}`: `{strategy}` has no settings"
            ))
        } else {
            let hint = match exits::SETTINGS.contains(&key) {
                // No slip of the pen.
                true => ", which is for tokens that choose where they leave, as under `early-exit` and `shallow-deep`".to_owned(),
                false => did_you_mean(nearest(key, known.iter().copied())),
            };
            let known = known.join(", ");
            E::custom(format_args!(
                "unknown key `{key}` of `{strategy}`{hint}; known: {known}"
            ))
        })
    }
}
