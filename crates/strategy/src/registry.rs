//! The registry: one enum whose variants are the strategies.

use crate::error::nearest;
use crate::extension::{self, Extended};
use crate::schedule::ScheduleLength;
use crate::strategies::{
    adaskip::Adaskip, angular::Angular, block_influence::BlockInfluence, bottom::Bottom,
    drop_list::DropList, early_exit::EarlyExit, every_other::EveryOther, full::Full,
    middle::Middle, oracle_depth::OracleDepth, oracle_exit::OracleExit, perplexity::Perplexity,
    position_decay::PositionDecay, prompt_depth::PromptDepth, random::Random,
    self_speculative::SelfSpeculative, shallow_deep::ShallowDeep, skip_decode::SkipDecode,
    sleb::Sleb, sublayer_drop::SublayerDrop, top::Top, unified::Unified,
};
use crate::strict::StrictSeed;
use crate::{BatchMode, Knob, KvFill, Scoring, Strategy, StrategyError, StrategySpec};
use schemars::JsonSchema;
use serde::de::MapAccess;
use serde::{Deserialize, Serialize};

/// What the settings of a strategy can do. Each strategy implements it on its serde struct, whose
/// `Default` is the strategy as its bare name means it.
pub(crate) trait Settings {
    /// Its name: the enum's variant in kebab-case.
    fn name(&self) -> &'static str;

    /// What it does, in a line, with its source.
    fn about(&self) -> &'static str;

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

    /// Where that strategy is.
    fn draft_mut(&mut self) -> Option<&mut StrategySpec> {
        None
    }

    /// The knob that must still be calibrated.
    fn knob(&self) -> Option<Knob> {
        None
    }

    /// The KV fills that it can use, where there is a choice.
    fn kv_fills(&self) -> &'static [KvFill] {
        &[]
    }

    /// Where the KV fill goes; `None` for a strategy that leaves no choice.
    fn kv_fill_mut(&mut self) -> Option<&mut KvFill> {
        None
    }

    /// What becomes of rows that are done before others.
    fn batch_mode(&self) -> BatchMode {
        BatchMode::Compact
    }

    /// What must be scored on calibration text before it knows its layers.
    fn scoring(&self, n_layers: usize) -> Option<Scoring> {
        let _ = n_layers;
        None
    }

    /// Where the order goes in which layers are dropped, the first being the least important.
    fn order_mut(&mut self) -> Option<&mut Option<Vec<usize>>> {
        None
    }

    /// Where the expected length of an answer goes, where a schedule asks for it and does not know it.
    fn expected_length_mut(&mut self) -> Option<&mut ScheduleLength> {
        None
    }

    /// Whether what it does at a step depends on the step, so that all rows must be at the same one.
    fn goes_by_position(&self) -> bool {
        false
    }

    /// The strategies that an experiment runs in its place, where it stands for several.
    fn members(&self) -> Option<Vec<Kind>> {
        None
    }

    /// For one set of a random band: what all sets of the band have in common.
    fn band(&self) -> Option<Kind> {
        None
    }

    /// The strategies of which an oracle picks one for each sequence, the fastest first.
    fn menu(&self, n_layers: usize) -> Option<Vec<StrategySpec>> {
        let _ = n_layers;
        None
    }

    /// Whether it knows what no strategy can: its layers bound what others can reach, and its time means nothing.
    fn is_oracle(&self) -> bool {
        false
    }

    /// Why it cannot run under a beam search, if it cannot.
    fn no_beams(&self) -> Option<&'static str> {
        None
    }

    /// Why its tokens cannot be sampled, if they cannot.
    fn no_sampling(&self) -> Option<&'static str> {
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
            /// A strategy registered by another crate.
            #[serde(untagged, skip_deserializing)]
            #[schemars(skip)]
            Extended(Extended),
        }

        impl Kind {
            /// Every strategy with its default settings.
            pub(crate) fn all() -> Vec<Self> {
                let extended = extension::all().into_iter().map(Self::Extended);
                vec![$(Self::$name($name::default())),*].into_iter().chain(extended).collect()
            }

            pub(crate) fn settings(&self) -> &dyn Settings {
                match self {
                    $(Self::$name(settings) => settings,)*
                    Self::Extended(settings) => settings,
                }
            }

            pub(crate) fn settings_mut(&mut self) -> &mut dyn Settings {
                match self {
                    $(Self::$name(settings) => settings,)*
                    Self::Extended(settings) => settings,
                }
            }

            /// The same strategy with settings read from the value of a map.
            pub(crate) fn read<'de, A: MapAccess<'de>>(self, map: &mut A) -> Result<Self, A::Error> {
                let strategy = self.settings().name();
                Ok(match self {
                    $(Self::$name(_) => Self::$name(map.next_value_seed(StrictSeed::new(strategy))?),)*
                    Self::Extended(extended) => Self::Extended(extended.read(map.next_value()?)),
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
    /// The layers that change the hidden state least are cut out.
    BlockInfluence,
    /// The block whose ends are most alike is cut out.
    Angular,
    /// Layers are cut out one at a time, each the one that is missed least.
    Sleb,
    /// The layers that are missed least, each alone, are cut out.
    Perplexity,
    /// Attention or MLPs alone are cut out.
    SublayerDrop,
    /// Fewer layers with each position, those at the bottom going first.
    SkipDecode,
    /// Fewer layers with each position, those in the middle going first.
    PositionDecay,
    /// Each token leaves when the model is sure of it.
    EarlyExit,
    /// Each token runs a few layers or all.
    ShallowDeep,
    /// The depth of an answer follows from its prompt.
    PromptDepth,
    /// The sub-layers of an answer follow from what they did to its prompt.
    Adaskip,
    /// Some layers draft, all verify: the full network's tokens.
    SelfSpeculative,
    /// The first layer that agrees with the last.
    OracleExit,
    /// The least depth of a menu that keeps a sequence's quality.
    OracleDepth,
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
