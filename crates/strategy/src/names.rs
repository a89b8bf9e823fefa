//! Enums whose values have names, in experiments and short forms as in results.

use crate::error::{did_you_mean, nearest};
use serde::de::{Deserializer, Error, Visitor};
use std::fmt;
use std::marker::PhantomData;

/// A plain enum whose values have names; [`named!`] declares one.
pub(crate) trait Named: Copy + 'static {
    /// Every value.
    const ALL: &'static [Self];

    /// Its name.
    fn name(self) -> &'static str;

    /// The names of all values.
    fn names() -> Vec<&'static str> {
        Self::ALL.iter().map(|value| value.name()).collect()
    }

    /// The value of this name.
    fn by_name(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|v| v.name() == name)
    }
}

/// Declares an enum with the name of each value.
macro_rules! named {
    (
        $(#[$doc:meta])*
        $vis:vis enum $name:ident {
            $($(#[$value_doc:meta])* $value:ident = $text:literal,)*
        }
    ) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, serde::Serialize, schemars::JsonSchema)]
        $vis enum $name {
            $($(#[$value_doc])* #[serde(rename = $text)] $value,)*
        }

        impl $name {
            /// Every value, in the order in which help texts list them.
            $vis const ALL: &'static [Self] = &[$(Self::$value),*];

            /// Its name in experiments, short forms and results.
            $vis const fn name(self) -> &'static str {
                match self {
                    $(Self::$value => $text,)*
                }
            }
        }

        impl $crate::names::Named for $name {
            const ALL: &'static [Self] = Self::ALL;

            fn name(self) -> &'static str {
                self.name()
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(self.name())
            }
        }

        impl<'de> serde::Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                $crate::names::deserialize(deserializer)
            }
        }
    };
}
pub(crate) use named;

/// Reads a value by its name; an unknown name is answered with the nearest.
pub(crate) fn deserialize<'de, T: Named, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<T, D::Error> {
    struct NameVisitor<T>(PhantomData<T>);

    impl<T: Named> Visitor<'_> for NameVisitor<T> {
        type Value = T;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            write!(f, "one of {}", T::names().join(", "))
        }

        fn visit_str<E: Error>(self, found: &str) -> Result<T, E> {
            T::by_name(found).ok_or_else(|| {
                let hint = did_you_mean(nearest(found, T::names()));
                let known = T::names().join(", ");
                E::custom(format_args!(
                    "unknown value `{found}`{hint}; known: {known}"
                ))
            })
        }
    }

    deserializer.deserialize_str(NameVisitor(PhantomData))
}
