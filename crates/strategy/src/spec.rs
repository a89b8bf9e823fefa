//! A strategy as an experiment or a command line writes it.

use crate::error::nearest;
use crate::registry::Kind;
use crate::schedule::ScheduleLength;
use crate::{BatchMode, Explanation, KvFill, Scoring, Strategy, StrategyError};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{Error, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use std::borrow::Cow;
use std::fmt;

/// A strategy with its settings: name, variant, target speedup and what else it takes.
///
/// Reads the short form `name[:variant][@speedup]` and the long form, a map with one key:
///
/// ```
/// # use skipbench_strategy::StrategySpec;
/// let short: StrategySpec = "early-exit:cosine@2".parse()?;
/// let long: StrategySpec =
///     serde_json::from_str(r#"{"early-exit": {"signal": "cosine", "speedup": 2}}"#)?;
/// assert_eq!(short, long);
/// assert_eq!(short.to_string(), "early-exit:cosine@2");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// It serializes as the long form with every setting, so that a digest of it determines the strategy.
/// Its [`Display`](fmt::Display) is the short form, which leaves out a variant that is the default, followed by the
/// settings that have no place in it where they are not at their default, as in `early-exit@2 {kv-fill: deferred}`; so what a
/// table calls a strategy can be written wherever a strategy can.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(transparent)]
pub struct StrategySpec {
    pub(crate) kind: Kind,
}

/// The one number of a dynamic strategy that is to be calibrated until its speed meets the target.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Knob {
    /// Its smallest value.
    pub lo: f64,
    /// Its largest value.
    pub hi: f64,
    /// Whether a larger value runs more layers; if not, it runs fewer.
    pub rises_with_depth: bool,
}

impl StrategySpec {
    /// Every layer at every step: the network as it was trained.
    pub fn full() -> Self {
        Self {
            kind: Kind::Full(Default::default()),
        }
    }

    /// Unified skipping by the published rule, without a target.
    pub(crate) fn unified() -> Self {
        Self {
            kind: Kind::Unified(Default::default()),
        }
    }

    /// The strategy of this name with its default settings.
    pub(crate) fn named(name: &str) -> Result<Self, StrategyError> {
        Kind::named(name).map(|kind| Self { kind })
    }

    /// Every strategy with its default settings and no target, in the order in which help texts list them.
    pub fn all() -> Vec<Self> {
        Kind::all().into_iter().map(|kind| Self { kind }).collect()
    }

    /// Its name, as in `unified`.
    pub fn name(&self) -> &'static str {
        self.kind.settings().name()
    }

    /// Its variant, as in `published`; `None` for a strategy that has no variants.
    pub fn variant(&self) -> Option<&'static str> {
        self.kind.settings().variant()
    }

    /// Every variant that its short form takes.
    pub fn variants(&self) -> Vec<&'static str> {
        self.kind.settings().variants()
    }

    /// Its target speedup; `None` where none was given, and for `full`.
    pub fn target_speedup(&self) -> Option<f64> {
        self.kind.settings().speedup()
    }

    /// The same strategy for another target; `full`, which takes none, stays as it is.
    /// [`validate`](Self::validate) says whether the target is possible.
    #[must_use]
    pub fn with_target(&self, speedup: f64) -> Self {
        let mut spec = self.clone();
        if let Some(slot) = spec.speedup_mut() {
            *slot = Some(speedup);
        }
        spec
    }

    /// Whether it is the full network.
    pub fn is_full(&self) -> bool {
        self.name() == "full"
    }

    /// What it has in common with the same strategy at other targets.
    pub fn series(&self) -> String {
        let mut spec = self.clone();
        if let Some(slot) = spec.speedup_mut() {
            *slot = None;
        }
        spec.to_string()
    }

    /// Its exit threshold; `None` where none was given, and for a strategy that takes none.
    pub fn threshold(&self) -> Option<f64> {
        self.kind.settings().threshold()
    }

    /// The same strategy with a calibrated threshold; one that takes none stays as it is.
    #[must_use]
    pub fn with_threshold(&self, threshold: f64) -> Self {
        let mut spec = self.clone();
        if let Some(slot) = spec.threshold_mut() {
            *slot = Some(threshold);
        }
        spec
    }

    /// The strategy that drafts for a speculative one; its threshold and target are the drafting strategy's.
    pub fn draft(&self) -> Option<&StrategySpec> {
        self.kind.settings().draft()
    }

    /// What it does, in a line, with its source.
    pub fn about(&self) -> &'static str {
        self.kind.settings().about()
    }

    /// What has to be scored on calibration text before [`build`](Self::build) succeeds; [`with_order`](Self::with_order)
    /// takes the outcome.
    pub fn scoring(&self, n_layers: usize) -> Option<Scoring> {
        self.kind.settings().scoring(n_layers)
    }

    /// The same strategy with layers in the order in which they are dropped, the least important first; one that takes
    /// none stays as it is.
    #[must_use]
    pub fn with_order(&self, order: Vec<usize>) -> Self {
        let mut spec = self.clone();
        if let Some(slot) = spec.order_mut() {
            *slot = Some(order);
        }
        spec
    }

    /// Whether its schedule is laid over the expected length of an answer, which is not known yet;
    /// [`with_expected_length`](Self::with_expected_length) takes it. Until then the largest number of new tokens counts.
    pub fn wants_expected_length(&self) -> bool {
        self.clone()
            .kind
            .settings_mut()
            .expected_length_mut()
            .is_some()
    }

    /// The same strategy with its schedule laid over `tokens` generated tokens; one that does not ask stays as it is.
    #[must_use]
    pub fn with_expected_length(&self, tokens: usize) -> Self {
        let mut spec = self.clone();
        if let Some(slot) = spec.kind.settings_mut().expected_length_mut() {
            *slot = ScheduleLength::Tokens(tokens.max(2));
        }
        spec
    }

    /// The KV fills that it can use, where there is a choice.
    pub fn kv_fills(&self) -> &'static [KvFill] {
        self.kind.settings().kv_fills()
    }

    /// The KV fill that is set, where there is a choice.
    pub fn kv_fill(&self) -> Option<KvFill> {
        self.clone().kind.settings_mut().kv_fill_mut().copied()
    }

    /// Whether a KV fill was asked for that is not the strategy's own choice.
    pub fn has_own_kv_fill(&self) -> bool {
        let default = Kind::named(self.name()).ok().map(|kind| Self { kind });
        default.is_some_and(|default| default.kv_fill() != self.kv_fill())
    }

    /// What becomes of rows that are done before others.
    pub fn batch_mode(&self) -> BatchMode {
        self.kind.settings().batch_mode()
    }

    /// The same strategy with another KV fill; one that leaves no choice stays as it is.
    #[must_use]
    pub fn with_kv_fill(&self, fill: KvFill) -> Self {
        let mut spec = self.clone();
        if let Some(slot) = spec.kind.settings_mut().kv_fill_mut() {
            *slot = fill;
        }
        spec
    }

    /// The strategies that an experiment runs in its place, where it stands for several: the seeds of a random band. Only for
    /// one that [`validate`](Self::validate) accepts.
    pub fn members(&self) -> Option<Vec<Self>> {
        let members = self.kind.settings().members()?;
        Some(members.into_iter().map(|kind| Self { kind }).collect())
    }

    /// For one set of a random band: what all sets of the band have in common, as the set of seed 0.
    pub fn band(&self) -> Option<Self> {
        self.kind.settings().band().map(|kind| Self { kind })
    }

    /// Whether its target says how deep it goes; for a strategy whose settings say that already, a target is but a name.
    pub fn follows_target(&self, n_layers: usize) -> bool {
        let mut without = self.clone();
        match without.speedup_mut() {
            Some(slot) if slot.is_some() => {
                *slot = None;
                without.validate(n_layers).is_err()
            }
            _ => false,
        }
    }

    /// Whether what it does at a step depends on the step, so that all rows must be at the same one.
    pub(crate) fn goes_by_position(&self) -> bool {
        self.kind.settings().goes_by_position()
    }

    /// The strategies of which an oracle picks one for each sequence, the fastest first.
    pub fn menu(&self, n_layers: usize) -> Option<Vec<Self>> {
        self.kind.settings().menu(n_layers)
    }

    /// Whether it knows what no strategy can: its layers bound what others can reach, and its time means nothing.
    pub fn is_oracle(&self) -> bool {
        self.kind.settings().is_oracle()
    }

    /// Refuses a search that the strategy cannot run under.
    ///
    /// # Errors
    /// More than one beam, sampling or forbidden n-grams, with a strategy that needs one greedy continuation.
    pub fn check_search(
        &self,
        beams: usize,
        sampling: bool,
        no_repeat_ngram: usize,
    ) -> Result<(), StrategyError> {
        let settings = self.kind.settings();
        let refused = [
            (beams > 1, "a beam search", settings.no_beams()),
            (sampling, "sampling", settings.no_sampling()),
            (
                no_repeat_ngram > 0,
                "`no-repeat-ngram`",
                settings.no_sampling(),
            ),
        ];
        for (asked, search, reason) in refused {
            if let (true, Some(reason)) = (asked, reason) {
                return Err(StrategyError::Search {
                    strategy: settings.name(),
                    search,
                    reason,
                });
            }
        }
        Ok(())
    }

    pub(crate) fn order_mut(&mut self) -> Option<&mut Option<Vec<usize>>> {
        self.kind.settings_mut().order_mut()
    }

    /// Where the target goes; `None` for a strategy that takes none.
    pub(crate) fn speedup_mut(&mut self) -> Option<&mut Option<f64>> {
        self.kind.settings_mut().speedup_mut()
    }

    /// Where the threshold goes; `None` for a strategy that takes none.
    pub(crate) fn threshold_mut(&mut self) -> Option<&mut Option<f64>> {
        self.kind.settings_mut().threshold_mut()
    }

    /// What has to be calibrated before [`build`](Self::build) succeeds: the threshold of a dynamic
    /// strategy that was given a target but no threshold.
    pub fn knob(&self) -> Option<Knob> {
        self.kind.settings().knob()
    }

    /// Checks every setting against a model of this depth, before any model is loaded. A threshold that
    /// is still to be calibrated is no error here.
    ///
    /// # Errors
    /// If a setting is impossible, a target is missing, or the target leaves fewer than two layers.
    pub fn validate(&self, n_layers: usize) -> Result<(), StrategyError> {
        self.kind.settings().validate(n_layers)
    }

    /// The strategy for a model of this depth.
    ///
    /// # Errors
    /// As [`validate`](Self::validate), and if a threshold is still to be calibrated.
    pub fn build(&self, n_layers: usize) -> Result<Box<dyn Strategy>, StrategyError> {
        self.kind.settings().build(n_layers)
    }

    /// The layers that it runs in a model of this depth when `max_new_tokens` are generated.
    ///
    /// # Errors
    /// As [`validate`](Self::validate).
    pub fn explain(
        &self,
        n_layers: usize,
        max_new_tokens: usize,
    ) -> Result<Explanation, StrategyError> {
        Explanation::of(self, n_layers, max_new_tokens)
    }

    pub(crate) fn set_variant(&mut self, found: &str) -> Result<(), StrategyError> {
        let settings = self.kind.settings_mut();
        // A drafting strategy may have a variant of its own: `self-speculative:unified:even`.
        if let (true, Some((draft, nested))) = (settings.draft().is_some(), found.split_once(':')) {
            self.set_variant(draft)?;
            return match self.kind.settings_mut().draft_mut() {
                Some(draft) => draft.set_variant(nested),
                None => Ok(()),
            };
        }
        let (strategy, variants) = (settings.name(), settings.variants());
        if variants.is_empty() {
            let found = found.to_owned();
            return Err(StrategyError::NoVariants { strategy, found });
        }
        let Some(variant) = variants.iter().find(|name| **name == found) else {
            return Err(StrategyError::UnknownVariant {
                strategy,
                found: found.to_owned(),
                nearest: nearest(found, variants.iter().copied()),
                known: variants.join(", "),
            });
        };
        settings.set_variant(variant);
        Ok(())
    }
}

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
        let kind = Kind::named(&name)
            .map_err(A::Error::custom)?
            .read(&mut map)?;
        if let Some(second) = map.next_key::<String>()? {
            return Err(A::Error::custom(format_args!(
                "a strategy is one name with its settings below it, but `{second}` stands beside `{name}`; indent it if it is a setting of `{name}`"
            )));
        }
        Ok(StrategySpec { kind })
    }
}

impl JsonSchema for StrategySpec {
    fn schema_name() -> Cow<'static, str> {
        "StrategySpec".into()
    }

    fn schema_id() -> Cow<'static, str> {
        concat!(module_path!(), "::StrategySpec").into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let long_form = generator.subschema_for::<Kind>();
        json_schema!({
            "description": "A strategy: its short form, or a map from its name to its settings.",
            "anyOf": [
                {
                    "description": "name[:variant][@speedup], as in unified:even@3",
                    "type": "string",
                },
                long_form,
            ],
        })
    }
}
