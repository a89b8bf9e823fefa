//! The registry: one enum whose variants are the strategies.

use crate::error::nearest;
use crate::strategies::{
    bottom::Bottom, drop_list::DropList, early_exit::EarlyExit, every_other::EveryOther,
    full::Full, middle::Middle, random::Random, self_speculative::SelfSpeculative,
    skip_decode::SkipDecode, top::Top, unified::Unified,
};
use crate::strict::StrictSeed;
use crate::{Knob, Strategy, StrategyError, StrategySpec};
use schemars::JsonSchema;
use serde::de::MapAccess;
use serde::{Deserialize, Serialize};

/// What the settings of a strategy can do. Each strategy implements it on its serde struct, whose
/// `Default` is the strategy as its bare name means it.
pub(crate) trait Settings {
    /// Its name: the enum's variant in kebab-case.
    fn name(&self) -> &'static str;

    /// Every variant that [`set_variant`](Self::set_variant) accepts; empty if it has none.
    fn variants(&self) -> Vec<&'static str> {
        Vec::new()
    }

    /// The variant that is set.
    fn variant(&self) -> Option<&'static str> {
        None
    }

    /// Sets one of [`variants`](Self::variants); called with nothing else.
    fn set_variant(&mut self, variant: &'static str) {
        let _ = variant;
    }

    /// The target speedup that is set.
    fn speedup(&self) -> Option<f64> {
        None
    }

    /// Where the target goes; `None` for a strategy that takes none.
    fn speedup_mut(&mut self) -> Option<&mut Option<f64>> {
        None
    }

    /// The threshold that is set.
    fn threshold(&self) -> Option<f64> {
        None
    }

    /// Where a threshold goes; `None` for a strategy that takes none.
    fn threshold_mut(&mut self) -> Option<&mut Option<f64>> {
        None
    }

    /// The strategy that drafts for it, where one does.
    fn draft(&self) -> Option<&StrategySpec> {
        None
    }

    /// The knob that must still be calibrated.
    fn knob(&self) -> Option<Knob> {
        None
    }

    /// Everything that can be refused before a model is loaded, calibration apart.
    fn validate(&self, n_layers: usize) -> Result<(), StrategyError>;

    /// The strategy for a model of this depth; validates first.
    fn build(&self, n_layers: usize) -> Result<Box<dyn Strategy>, StrategyError>;
}

/// Declares the enum and what has to be said once per variant. The settings struct has the variant's name.
macro_rules! registry {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// A strategy with its settings.
        #[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
        #[serde(rename_all = "kebab-case")]
        pub(crate) enum Kind {
            $($(#[$doc])* $name($name),)*
        }

        impl Kind {
            /// Every strategy with its default settings.
            pub(crate) fn all() -> Vec<Self> {
                vec![$(Self::$name($name::default())),*]
            }

            pub(crate) fn settings(&self) -> &dyn Settings {
                match self { $(Self::$name(settings) => settings,)* }
            }

            pub(crate) fn settings_mut(&mut self) -> &mut dyn Settings {
                match self { $(Self::$name(settings) => settings,)* }
            }

            /// The same strategy with settings read from the value of a map.
            pub(crate) fn read<'de, A: MapAccess<'de>>(self, map: &mut A) -> Result<Self, A::Error> {
                let strategy = self.settings().name();
                Ok(match self {
                    $(Self::$name(_) => Self::$name(map.next_value_seed(StrictSeed::new(strategy))?),)*
                })
            }
        }
    };
}

registry! {
    /// Every layer: the network as it was trained.
    Full,
    /// Layers spread over the whole depth, from the target speedup alone.
    Unified,
    /// The topmost layers are skipped.
    Top,
    /// The lowest layers are skipped.
    Bottom,
    /// A block in the middle is skipped.
    Middle,
    /// A random subset: what every other strategy has to beat.
    Random,
    /// Every second layer.
    EveryOther,
    /// All layers but those of a list.
    DropList,
    /// Fewer layers with each position.
    SkipDecode,
    /// Each token leaves when the model is sure of it.
    EarlyExit,
    /// Some layers draft, all verify: the full network's tokens.
    SelfSpeculative,
}

impl Kind {
    /// The strategy of this name with its default settings.
    pub(crate) fn named(name: &str) -> Result<Self, StrategyError> {
        let names = || Self::all().into_iter().map(|kind| kind.settings().name());
        Self::all()
            .into_iter()
            .find(|kind| kind.settings().name() == name)
            .ok_or_else(|| StrategyError::UnknownStrategy {
                found: name.to_owned(),
                nearest: nearest(name, names()),
                known: names().collect::<Vec<_>>().join(", "),
            })
    }
}
