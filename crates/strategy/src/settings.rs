//! What strategies have in common, and what each says of itself.

use crate::schedule::ScheduleLength;
use crate::{BatchMode, Knob, KvFill, LayerSet, Prefill, Scoring, Strategy, StrategyError, budget};
use schemars::JsonSchema;
use serde::de::{Error, MapAccess};
use serde::{Deserialize, Serialize};

/// The settings that strategies share; a strategy takes those that its [`Definition`] says. `None` was not given.
#[derive(Clone, Debug, Default, PartialEq, Serialize, JsonSchema)]
#[serde(default, rename_all = "kebab-case")]
pub(crate) struct Common {
    /// The target speedup.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) speedup: Option<f64>,
    /// The threshold, in 0..1; found by calibration if not given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) threshold: Option<f64>,
    /// Layers in the order in which they are dropped, the least important first, instead of one measured.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) order: Option<Vec<usize>>,
    /// Which layers the prompt runs through.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Prefill")]
    pub(crate) prefill: Option<Prefill>,
    /// What is done about the keys and values of the layers that a token skips.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "KvFill")]
    pub(crate) kv_fill: Option<KvFill>,
    /// What becomes of rows that exit before others.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "BatchMode")]
    pub(crate) batch_mode: Option<BatchMode>,
}

/// Settings that mean something only where tokens leave at a check.
pub(crate) const OF_EXITS: [&str; 2] = ["kv-fill", "batch-mode"];

impl Common {
    /// Their names, in the order of the fields.
    const KEYS: [&str; 6] = [
        "speedup",
        "threshold",
        "order",
        "prefill",
        "kv-fill",
        "batch-mode",
    ];

    /// Reads the value of a key.
    pub(crate) fn read<'de, A: MapAccess<'de>>(
        &mut self,
        key: &str,
        map: &mut A,
    ) -> Result<(), A::Error> {
        fn value<'de, T: Deserialize<'de>, A: MapAccess<'de>>(
            map: &mut A,
        ) -> Result<Option<T>, A::Error> {
            map.next_value().map(Some)
        }
        match key {
            "speedup" => self.speedup = map.next_value()?,
            "threshold" => self.threshold = map.next_value()?,
            "order" => self.order = map.next_value()?,
            "prefill" => self.prefill = value(map)?,
            "kv-fill" => self.kv_fill = value(map)?,
            "batch-mode" => self.batch_mode = value(map)?,
            _ => return Err(A::Error::custom(format_args!("unknown key `{key}`"))),
        }
        Ok(())
    }

    /// Those alone that differ from what they are if they are not given.
    pub(crate) fn beside(&self, default: &Definition) -> Self {
        fn differing<T: Copy + PartialEq>(given: Option<T>, default: Option<T>) -> Option<T> {
            given.filter(|_| given != default)
        }
        Self {
            prefill: differing(self.prefill, default.prefill),
            kv_fill: differing(self.kv_fill, default.kv_fill),
            batch_mode: differing(self.batch_mode, default.batch_mode),
            ..self.clone()
        }
    }
}

/// What is known of a strategy without its settings.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Definition {
    /// Its name in short and long form.
    pub(crate) name: &'static str,
    /// What it does, in a line, with its source.
    pub(crate) about: &'static str,
    /// The setting of the long form that the variant of the short form stands for.
    pub(crate) variant_key: Option<&'static str>,
    /// Whether it takes a target speedup.
    pub(crate) speedup: bool,
    /// Whether it takes a threshold.
    pub(crate) threshold: bool,
    /// Whether it takes an order in which layers are dropped.
    pub(crate) order: bool,
    /// The prefill if none is given; `None` for a strategy that leaves no choice.
    pub(crate) prefill: Option<Prefill>,
    /// The KV fill if none is given; `None` for a strategy that leaves no choice.
    pub(crate) kv_fill: Option<KvFill>,
    /// The KV fills that it can use.
    pub(crate) kv_fills: &'static [KvFill],
    /// The batch mode if none is given; `None` for a strategy that leaves no choice.
    pub(crate) batch_mode: Option<BatchMode>,
    /// The fewest layers of a model on which it works.
    pub(crate) min_layers: usize,
    /// Whether it can draft for `self-speculative`: its layers do not depend on the position, since rows of a batch move on
    /// by different numbers of tokens.
    pub(crate) drafts: bool,
    /// Whether it knows what no strategy can.
    pub(crate) is_oracle: bool,
    /// Why it cannot run under a beam search, if it cannot.
    pub(crate) no_beams: Option<&'static str>,
    /// Why its tokens cannot be sampled, if they cannot.
    pub(crate) no_sampling: Option<&'static str>,
}

impl Definition {
    /// A strategy that takes none of the common settings.
    pub(crate) const fn new(name: &'static str, about: &'static str) -> Self {
        Self {
            name,
            about,
            variant_key: None,
            speedup: false,
            threshold: false,
            order: false,
            prefill: None,
            kv_fill: None,
            kv_fills: &[],
            batch_mode: None,
            min_layers: budget::MIN_KEPT,
            drafts: false,
            is_oracle: false,
            no_beams: None,
            no_sampling: None,
        }
    }

    /// A strategy whose layers follow from the target and stay the same at every step.
    pub(crate) const fn fixed(name: &'static str, about: &'static str) -> Self {
        Self {
            speedup: true,
            prefill: Some(Prefill::Full),
            drafts: true,
            ..Self::new(name, about)
        }
    }

    /// A strategy whose tokens leave at a check once a signal passes a threshold.
    pub(crate) const fn of_exits(name: &'static str, about: &'static str, kv_fill: KvFill) -> Self {
        Self {
            variant_key: Some("signal"),
            speedup: true,
            threshold: true,
            kv_fill: Some(kv_fill),
            kv_fills: &KvFill::OF_EXITS,
            batch_mode: Some(BatchMode::Compact),
            drafts: true,
            ..Self::new(name, about)
        }
    }

    /// Whether it takes the common setting of this name.
    pub(crate) fn takes(&self, key: &str) -> bool {
        match key {
            "speedup" => self.speedup,
            "threshold" => self.threshold,
            "order" => self.order,
            "prefill" => self.prefill.is_some(),
            "kv-fill" => self.kv_fill.is_some(),
            "batch-mode" => self.batch_mode.is_some(),
            _ => false,
        }
    }

    /// The common settings that it takes.
    pub(crate) fn common_keys(&self) -> impl Iterator<Item = &'static str> {
        Common::KEYS.into_iter().filter(|key| self.takes(key))
    }

    /// Where a setting is written among the others: what the variant stands for, the target and the threshold, what is the
    /// strategy's own, the other common ones.
    pub(crate) fn rank(&self, key: &str) -> usize {
        match Common::KEYS.iter().position(|common| *common == key) {
            Some(at @ 0..2) => at + 1,
            Some(at) => at + 2,
            None if self.variant_key == Some(key) => 0,
            None => 3,
        }
    }
}

/// What is a strategy's own. Each strategy implements it on the serde struct of its own settings, whose `Default` is the
/// strategy as its bare name means it.
pub(crate) trait Settings {
    /// What is known of it without its settings.
    fn definition(&self) -> Definition;

    /// Every variant that [`set_variant`](Self::set_variant) accepts; empty if it has none.
    fn variants(&self) -> Vec<&'static str> {
        Vec::new()
    }

    /// The variant that is set.
    fn variant(&self) -> Option<&'static str> {
        None
    }

    /// Sets one of [`variants`](Self::variants); called with nothing else.
    fn set_variant(&mut self, variant: &'static str, common: &mut Common) {
        let _ = (variant, common);
    }

    /// What its threshold does, unless its own settings stand in the threshold's place.
    fn knob(&self) -> Option<Knob> {
        None
    }

    /// What must be scored on calibration text before it knows its layers.
    fn scoring(&self, asked: &Asked<'_>) -> Option<Scoring> {
        let _ = asked;
        None
    }

    /// The length over which its schedule runs, where it has one.
    fn schedule_mut(&mut self) -> Option<&mut ScheduleLength> {
        None
    }

    /// The strategy for a model of some depth, the number of whose layers suits its [`Definition`]. Whatever can be refused
    /// is refused before what is only still open: a threshold, scores, references.
    fn build(&self, asked: &Asked<'_>) -> Result<Box<dyn Strategy>, StrategyError>;
}

/// What a strategy is built from beside its own settings.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Asked<'a> {
    /// The strategy's name.
    pub(crate) name: &'static str,
    /// Layers of the model.
    pub(crate) n_layers: usize,
    pub(crate) speedup: Option<f64>,
    pub(crate) threshold: Option<f64>,
    pub(crate) order: Option<&'a [usize]>,
    pub(crate) prefill: Prefill,
    pub(crate) kv_fill: KvFill,
    pub(crate) batch_mode: BatchMode,
}

impl<'a> Asked<'a> {
    pub(crate) fn new(definition: &Definition, common: &'a Common, n_layers: usize) -> Self {
        Self {
            name: definition.name,
            n_layers,
            speedup: common.speedup,
            threshold: common.threshold,
            order: common.order.as_deref(),
            prefill: common.prefill.or(definition.prefill).unwrap_or_default(),
            kv_fill: common.kv_fill.or(definition.kv_fill).unwrap_or_default(),
            batch_mode: common.batch_mode.unwrap_or_default(),
        }
    }

    /// What is wrong with a setting.
    pub(crate) fn wrong(&self, key: &'static str, message: impl Into<String>) -> StrategyError {
        StrategyError::Setting {
            strategy: self.name,
            key,
            message: message.into(),
        }
    }

    /// The target, for a strategy that cannot do without.
    pub(crate) fn target(&self) -> Result<f64, StrategyError> {
        let strategy = self.name;
        let speedup = self
            .speedup
            .ok_or(StrategyError::MissingSpeedup { strategy })?;
        budget::check_speedup(speedup).map(|()| speedup)
    }

    /// Layers that the target leaves.
    pub(crate) fn kept(&self) -> Result<usize, StrategyError> {
        budget::kept_layers(self.n_layers, self.target()?)
    }

    /// Sub-layers that the target leaves, of two in each layer.
    pub(crate) fn kept_sub_layers(&self) -> Result<usize, StrategyError> {
        Ok((2.0 * self.n_layers as f64 / self.target()? + 1e-9).floor() as usize)
    }

    /// The threshold, which must be in 0..1 where it is given.
    pub(crate) fn checked_threshold(&self) -> Result<Option<f64>, StrategyError> {
        match self.threshold {
            Some(t) if !(0.0..=1.0).contains(&t) => Err(self.wrong(
                "threshold",
                format!("{} is outside 0 to 1", budget::Number(t)),
            )),
            threshold => Ok(threshold),
        }
    }

    /// The static strategy of `layers`, a function from layers of the model and layers kept.
    pub(crate) fn fixed(
        &self,
        layers: impl FnOnce(usize, usize) -> LayerSet,
    ) -> Result<Box<dyn Strategy>, StrategyError> {
        Ok(self.run(layers(self.n_layers, self.kept()?)))
    }

    /// The strategy that runs the same layers at every step.
    pub(crate) fn run(&self, layers: LayerSet) -> Box<dyn Strategy> {
        Box::new(crate::strategy::FixedLayers {
            n_layers: self.n_layers,
            layers,
            prefill: self.prefill,
        })
    }
}
