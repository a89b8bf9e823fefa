//! A strategy as an experiment or a command line writes it.

use crate::error::nearest;
use crate::schedule::ScheduleLength;
use crate::settings::{Asked, Common, Definition};
use crate::strategies::Kind;
use crate::{BatchMode, Explanation, KvFill, MAX_LAYERS, Scoring, Strategy, StrategyError};
use std::path::Path;

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
/// It serializes as the long form, so that a digest of it determines the strategy.
/// Its [`Display`](std::fmt::Display) is the short form, which leaves out a variant that is the default, followed by the
/// settings that have no place in it where they are not at their default, as in `early-exit@2 {kv-fill: deferred}`; so what a
/// table calls a strategy can be written wherever a strategy can.
///
/// A setting that is given as what it is without being given makes no other strategy: the two are equal, and so are their
/// labels and their long forms.
#[derive(Clone, Debug)]
pub struct StrategySpec {
    /// What every strategy has.
    pub(crate) common: Common,
    /// What is its own.
    pub(crate) kind: Kind,
}

impl PartialEq for StrategySpec {
    fn eq(&self, other: &Self) -> bool {
        let common = |spec: &Self| spec.common.beside(&spec.definition());
        self.kind == other.kind && common(self) == common(other)
    }
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

impl From<Kind> for StrategySpec {
    fn from(kind: Kind) -> Self {
        Self {
            common: Common::default(),
            kind,
        }
    }
}

impl StrategySpec {
    /// Every layer at every step: the network as it was trained.
    pub fn full() -> Self {
        Kind::Full(Default::default()).into()
    }

    /// Whether it is [`full`](Self::full), to which all others are compared.
    pub fn is_full(&self) -> bool {
        matches!(self.kind, Kind::Full(_))
    }

    /// Unified skipping by the published rule, without a target.
    pub(crate) fn unified() -> Self {
        Kind::Unified(Default::default()).into()
    }

    /// Every strategy with its default settings and no target, in the order in which help texts list them.
    pub fn all() -> Vec<Self> {
        Kind::all().into_iter().map(Self::from).collect()
    }

    /// The strategy of this name with its default settings.
    pub(crate) fn named(name: &str) -> Result<Self, StrategyError> {
        let names = || Self::all().into_iter().map(|spec| spec.name());
        let found = Self::all().into_iter().find(|spec| spec.name() == name);
        found.ok_or_else(|| StrategyError::UnknownStrategy {
            found: name.to_owned(),
            nearest: nearest(name, names()),
            known: names().collect::<Vec<_>>().join(", "),
        })
    }

    pub(crate) fn definition(&self) -> Definition {
        self.kind.own().definition()
    }

    /// Its name, as in `unified`.
    pub fn name(&self) -> &'static str {
        self.definition().name
    }

    /// What it does, in a line, with its source.
    pub fn about(&self) -> &'static str {
        self.definition().about
    }

    /// Its variant, as in `published`; `None` for a strategy that has no variants.
    pub fn variant(&self) -> Option<&'static str> {
        self.kind.own().variant()
    }

    /// Every variant that its short form takes.
    pub fn variants(&self) -> Vec<&'static str> {
        self.kind.own().variants()
    }

    /// What it is called without its target, and without that of the strategy that drafts for it: what the points of one
    /// curve have in common.
    ///
    /// ```
    /// # use skipbench_strategy::StrategySpec;
    /// let spec: StrategySpec = "self-speculative:top@2".parse()?;
    /// assert_eq!(spec.series(), "self-speculative:top");
    /// # Ok::<(), skipbench_strategy::StrategyError>(())
    /// ```
    pub fn series(&self) -> String {
        self.with(|common| common.speedup = None).to_string()
    }

    /// The strategy that drafts for a speculative one; its threshold and target are the drafting strategy's.
    pub fn draft(&self) -> Option<&StrategySpec> {
        match &self.kind {
            Kind::SelfSpeculative(own) => Some(own.draft()),
            _ => None,
        }
    }

    /// The strategy whose target, threshold and order count: the one that drafts, where one does.
    fn decider(&self) -> &Self {
        self.draft().map_or(self, Self::decider)
    }

    fn decider_mut(&mut self) -> &mut Self {
        match self.kind {
            Kind::SelfSpeculative(ref mut own) => own.draft_mut().decider_mut(),
            _ => self,
        }
    }

    /// The same strategy with other common settings.
    fn with(&self, change: impl FnOnce(&mut Common)) -> Self {
        let mut spec = self.clone();
        change(&mut spec.decider_mut().common);
        spec
    }

    /// Whether it takes a target speedup.
    pub(crate) fn takes_target(&self) -> bool {
        self.decider().definition().speedup
    }

    /// Its target speedup; `None` where none was given, and for `full`.
    pub fn target_speedup(&self) -> Option<f64> {
        self.decider().common.speedup
    }

    /// The same strategy for another target; `full`, which takes none, stays as it is.
    /// [`validate`](Self::validate) says whether the target is possible.
    #[must_use]
    pub fn with_target(&self, speedup: f64) -> Self {
        let taken = self.takes_target().then_some(speedup);
        self.with(|common| common.speedup = taken)
    }

    /// Whether its target says how deep it goes; for a strategy whose settings say that already, a target is but a name.
    pub fn follows_target(&self, n_layers: usize) -> bool {
        let without = self.with(|common| common.speedup = None);
        self.target_speedup().is_some() && without.validate(n_layers).is_err()
    }

    /// Its exit threshold; `None` where none was given, and for a strategy that takes none.
    pub fn threshold(&self) -> Option<f64> {
        self.decider().common.threshold
    }

    /// The same strategy with a calibrated threshold; one that takes none stays as it is.
    #[must_use]
    pub fn with_threshold(&self, threshold: f64) -> Self {
        let taken = self.decider().definition().threshold.then_some(threshold);
        self.with(|common| common.threshold = taken)
    }

    /// What has to be calibrated before [`build`](Self::build) succeeds: the threshold of a dynamic
    /// strategy that was given a target but no threshold.
    pub fn knob(&self) -> Option<Knob> {
        let decider = self.decider();
        let open = decider.common.speedup.is_some() && decider.common.threshold.is_none();
        decider.kind.own().knob().filter(|_| open)
    }

    /// What has to be scored on calibration text before [`build`](Self::build) succeeds; [`with_order`](Self::with_order)
    /// takes the outcome.
    pub fn scoring(&self, n_layers: usize) -> Option<Scoring> {
        let decider = self.decider();
        decider.kind.own().scoring(&decider.asked(n_layers))
    }

    /// The same strategy with layers in the order in which they are dropped, the least important first; one that takes
    /// none stays as it is.
    #[must_use]
    pub fn with_order(&self, order: Vec<usize>) -> Self {
        let taken = self.decider().definition().order.then_some(order);
        self.with(|common| common.order = taken)
    }

    /// Whether its schedule is laid over the expected length of an answer, which is not known yet;
    /// [`with_expected_length`](Self::with_expected_length) takes it. Until then the largest number of new tokens counts.
    pub fn wants_expected_length(&self) -> bool {
        let mut spec = self.clone();
        let length = spec.kind.own_mut().schedule_mut();
        length.is_some_and(|length| *length == ScheduleLength::Expected)
    }

    /// The same strategy with its schedule laid over `tokens` generated tokens; one that does not ask stays as it is.
    #[must_use]
    pub fn with_expected_length(&self, tokens: usize) -> Self {
        let mut spec = self.clone();
        if let Some(length) = spec.kind.own_mut().schedule_mut()
            && *length == ScheduleLength::Expected
        {
            *length = ScheduleLength::Tokens(tokens.max(2));
        }
        spec
    }

    /// A file of layers that it names and that is yet to be read; [`with_layer_file`](Self::with_layer_file) takes what stands
    /// in it.
    pub fn layer_file(&self) -> Option<&Path> {
        match &self.decider().kind {
            Kind::DropList(own) => own.file(),
            _ => None,
        }
    }

    /// The same strategy with the layers that the text of its file lists, in any [`LayerListForm`](crate::LayerListForm); one that
    /// names no file stays as it is.
    ///
    /// # Errors
    /// A text that lists no layers.
    pub fn with_layer_file(&self, text: &str) -> Result<Self, StrategyError> {
        let mut spec = self.clone();
        if self.layer_file().is_some()
            && let Kind::DropList(own) = &mut spec.decider_mut().kind
        {
            own.read_file(text)
                .map_err(|message| StrategyError::Setting {
                    strategy: "drop-list",
                    key: "file",
                    message,
                })?;
        }
        Ok(spec)
    }

    /// The KV fills that it can use, where there is a choice.
    pub fn kv_fills(&self) -> &'static [KvFill] {
        self.definition().kv_fills
    }

    /// The KV fill that is set, where there is a choice.
    pub fn kv_fill(&self) -> Option<KvFill> {
        self.common.kv_fill.or(self.definition().kv_fill)
    }

    /// Whether a KV fill was asked for, be it the strategy's own choice.
    pub fn has_own_kv_fill(&self) -> bool {
        self.common.kv_fill.is_some()
    }

    /// The same strategy with another KV fill; one that leaves no choice stays as it is.
    #[must_use]
    pub fn with_kv_fill(&self, fill: KvFill) -> Self {
        let mut spec = self.clone();
        spec.common.kv_fill = self.kv_fill().map(|_| fill);
        spec
    }

    /// What becomes of rows that are done before others.
    pub fn batch_mode(&self) -> BatchMode {
        self.decider().common.batch_mode.unwrap_or_default()
    }

    /// The strategies that an experiment runs in its place, where it stands for several: the seeds of a random band. Only for
    /// one that [`validate`](Self::validate) accepts.
    pub fn members(&self) -> Option<Vec<Self>> {
        let Kind::Random(own) = &self.kind else {
            return None;
        };
        let member = |own| Self {
            kind: Kind::Random(own),
            ..self.clone()
        };
        Some(own.members()?.map(member).collect())
    }

    /// For one set of a random band: what all sets of the band have in common, as the set of seed 0.
    pub fn band(&self) -> Option<Self> {
        let Kind::Random(own) = &self.kind else {
            return None;
        };
        Some(Self {
            kind: Kind::Random(own.first()),
            ..self.clone()
        })
    }

    /// The strategies of which an oracle picks one for each sequence, the fastest first.
    pub fn menu(&self, n_layers: usize) -> Option<Vec<Self>> {
        match &self.kind {
            Kind::OracleDepth(own) => own.menu(&self.asked(n_layers)).ok(),
            _ => None,
        }
    }

    /// Whether it knows what no strategy can: its layers bound what others can reach, and its time means nothing.
    pub fn is_oracle(&self) -> bool {
        self.definition().is_oracle
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
        let definition = self.definition();
        let searches = [
            (beams > 1, "a beam search", definition.no_beams),
            (sampling, "sampling", definition.no_sampling),
            (
                no_repeat_ngram > 0,
                "`no-repeat-ngram`",
                definition.no_sampling,
            ),
        ];
        for (asked, search, reason) in searches {
            if let (true, Some(reason)) = (asked, reason) {
                return Err(StrategyError::Search {
                    strategy: definition.name,
                    search,
                    reason,
                });
            }
        }
        Ok(())
    }

    /// Checks every setting against a model of this depth, before any model is loaded. What is still to be found on
    /// calibration text is no error here.
    ///
    /// # Errors
    /// If a setting is impossible, a target is missing, or the target leaves fewer than two layers.
    pub fn validate(&self, n_layers: usize) -> Result<(), StrategyError> {
        match self.build(n_layers) {
            Ok(_)
            | Err(
                StrategyError::NotCalibrated { .. }
                | StrategyError::NotScored { .. }
                | StrategyError::NeedsReferences { .. },
            ) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// The strategy for a model of this depth.
    ///
    /// # Errors
    /// As [`validate`](Self::validate), and if a threshold or scores are still to be found.
    pub fn build(&self, n_layers: usize) -> Result<Box<dyn Strategy>, StrategyError> {
        let definition = self.definition();
        let (strategy, min) = (definition.name, definition.min_layers);
        if !(min..=MAX_LAYERS).contains(&n_layers) {
            return Err(StrategyError::LayerCount {
                strategy,
                n_layers,
                min,
            });
        }
        self.kind.own().build(&self.asked(n_layers))
    }

    /// What its own settings are given to build from.
    fn asked(&self, n_layers: usize) -> Asked<'_> {
        Asked::new(&self.definition(), &self.common, n_layers)
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
        // A drafting strategy may have a variant of its own: `self-speculative:unified:even`.
        if let (Some(_), Some((draft, nested))) = (self.draft(), found.split_once(':')) {
            self.set_variant(draft)?;
            return self.decider_mut().set_variant(nested);
        }
        let (strategy, variants) = (self.name(), self.variants());
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
        self.kind.own_mut().set_variant(variant, &mut self.common);
        Ok(())
    }
}
