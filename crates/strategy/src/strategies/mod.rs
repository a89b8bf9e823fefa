//! The strategies, a file each, and the registry: one enum of which they are the variants.

mod adaskip;
mod angular;
mod block_influence;
mod bottom;
mod drop_list;
mod early_exit;
mod every_other;
mod full;
mod middle;
mod oracle_depth;
mod oracle_exit;
mod perplexity;
mod position_decay;
mod prompt_depth;
mod random;
mod self_speculative;
mod shallow_deep;
mod skip_decode;
mod sleb;
mod sublayer_drop;
mod top;
mod unified;

use crate::extension::{self, Extended};
use crate::long_form::{OwnSeed, Whole};
use crate::settings::{Common, Definition, Settings};
use schemars::{Schema, SchemaGenerator};
use serde::de::MapAccess;

/// Declares the enum and what has to be said once per variant, which has the name of the settings struct.
macro_rules! registry {
    ($($module:ident::$name:ident,)*) => {
        /// A strategy with the settings that are its own.
        #[derive(Clone, Debug, PartialEq)]
        pub(crate) enum Kind {
            $($name($module::$name),)*
            /// A strategy registered by another crate.
            Extended(Extended),
        }

        impl Kind {
            /// Every strategy with its default settings.
            pub(crate) fn all() -> Vec<Self> {
                let extended = extension::all().into_iter().map(Self::Extended);
                vec![$(Self::$name($module::$name::default())),*].into_iter().chain(extended).collect()
            }

            pub(crate) fn own(&self) -> &dyn Settings {
                match self {
                    $(Self::$name(own) => own,)*
                    Self::Extended(own) => own,
                }
            }

            pub(crate) fn own_mut(&mut self) -> &mut dyn Settings {
                match self {
                    $(Self::$name(own) => own,)*
                    Self::Extended(own) => own,
                }
            }

            /// Its own settings as a map.
            pub(crate) fn to_value(&self) -> serde_json::Result<serde_json::Value> {
                match self {
                    $(Self::$name(own) => serde_json::to_value(own),)*
                    Self::Extended(own) => serde_json::to_value(own),
                }
            }

            /// The same strategy with its own settings read from the value of a map, and the common ones beside them.
            pub(crate) fn read<'de, A: MapAccess<'de>>(
                self,
                map: &mut A,
                common: &mut Common,
            ) -> Result<Self, A::Error> {
                let definition = self.own().definition();
                Ok(match self {
                    $(Self::$name(_) => Self::$name(map.next_value_seed(OwnSeed::new(definition, common))?),)*
                    Self::Extended(own) => Self::Extended(own.read(map.next_value()?, common)),
                })
            }

            /// The schema of the settings of every strategy of this crate.
            pub(crate) fn schemas(generator: &mut SchemaGenerator) -> Vec<(Definition, Schema)> {
                vec![$((
                    $module::$name::default().definition(),
                    generator.subschema_for::<Whole<$module::$name>>(),
                )),*]
            }
        }
    };
}

registry! {
    full::Full,
    unified::Unified,
    top::Top,
    bottom::Bottom,
    middle::Middle,
    random::Random,
    every_other::EveryOther,
    drop_list::DropList,
    block_influence::BlockInfluence,
    angular::Angular,
    sleb::Sleb,
    perplexity::Perplexity,
    sublayer_drop::SublayerDrop,
    skip_decode::SkipDecode,
    position_decay::PositionDecay,
    early_exit::EarlyExit,
    shallow_deep::ShallowDeep,
    prompt_depth::PromptDepth,
    adaskip::Adaskip,
    self_speculative::SelfSpeculative,
    oracle_exit::OracleExit,
    oracle_depth::OracleDepth,
}
