//! What can be wrong with a strategy, and what to do about it.

use crate::MAX_LAYERS;
use crate::budget::Number;

/// An error of this crate: what is wrong, and what would work.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum StrategyError {
    /// No strategy has this name.
    #[error("unknown strategy `{found}`{}; known: {known}", did_you_mean(*.nearest))]
    UnknownStrategy {
        /// What was asked for.
        found: String,
        /// The most similar name, if one is similar.
        nearest: Option<&'static str>,
        /// All names.
        known: String,
    },
    /// The strategy has no such variant.
    #[error("unknown variant `{found}` of `{strategy}`{}; known: {known}", did_you_mean(*.nearest))]
    UnknownVariant {
        /// The strategy.
        strategy: &'static str,
        /// What was asked for.
        found: String,
        /// The most similar name, if one is similar.
        nearest: Option<&'static str>,
        /// All variants of the strategy.
        known: String,
    },
    /// A variant was given to a strategy that has none.
    #[error("`{strategy}` has no variants, but `{found}` was given; leave it out")]
    NoVariants {
        /// The strategy.
        strategy: &'static str,
        /// What was asked for.
        found: String,
    },
    /// A text is not of the form `name[:variant][@speedup]`.
    #[error(
        "cannot read strategy `{text}`: {reason} (the form is name[:variant][@speedup], as in unified:even@3)"
    )]
    ShortForm {
        /// The text.
        text: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A target that is no speedup.
    #[error("speedup {} is not possible: it must be a finite number of at least 1", Number(*.found))]
    Speedup {
        /// What was asked for.
        found: f64,
    },
    /// The strategy cannot choose its layers without a target.
    #[error(
        "`{strategy}` needs a target: write {strategy}@2, or `speedup: 2` among its settings, or a list of speedups in the experiment"
    )]
    MissingSpeedup {
        /// The strategy.
        strategy: &'static str,
    },
    /// The target leaves fewer than two layers.
    #[error(
        "speedup {} leaves {kept} of {n_layers} layers, and at least 2 must run; the largest possible speedup for {n_layers} layers is {max}",
        Number(*.speedup),
        max = *n_layers as f64 / 2.0
    )]
    TooFast {
        /// What was asked for.
        speedup: f64,
        /// Layers that it leaves.
        kept: usize,
        /// Layers of the model.
        n_layers: usize,
    },
    /// A model on which no layer can be chosen.
    #[error("`{strategy}` needs a model of {min} to {max} layers, not {n_layers}", max = MAX_LAYERS)]
    LayerCount {
        /// The strategy.
        strategy: &'static str,
        /// Layers of the model.
        n_layers: usize,
        /// The fewest with which the strategy works.
        min: usize,
    },
    /// A setting has a value that cannot work.
    #[error("`{key}` of `{strategy}`: {message}")]
    Setting {
        /// The strategy.
        strategy: &'static str,
        /// The setting as an experiment spells it.
        key: &'static str,
        /// What is wrong, and what would work.
        message: String,
    },
    /// A dynamic strategy has a target, but the knob that would meet it has not been found.
    #[error(
        "`{strategy}` has no threshold: calibrate it to its target speedup first (`skipbench run` does), or give `threshold` among its settings"
    )]
    NotCalibrated {
        /// The strategy.
        strategy: &'static str,
    },
    /// The layers are chosen by scores that have not been computed.
    #[error(
        "`{strategy}` has no scores: they are computed on calibration text first (`skipbench run` and `generate` do), or give `order` among its settings"
    )]
    NotScored {
        /// The strategy.
        strategy: &'static str,
    },
    /// An oracle that looks at the references.
    #[error(
        "`{strategy}` picks by the score of each answer, so it needs references: run it in an experiment (`skipbench run`)"
    )]
    NeedsReferences {
        /// The strategy.
        strategy: &'static str,
    },
    /// A search that the strategy cannot run under.
    #[error(
        "`{strategy}` cannot run under {search}: {reason}; use plain greedy decoding, or another strategy"
    )]
    Search {
        /// The strategy.
        strategy: &'static str,
        /// A beam search, sampling or forbidden n-grams.
        search: &'static str,
        /// Why.
        reason: &'static str,
    },
    /// A strategy of another crate that cannot be taken.
    #[error("cannot register strategy `{name}`: {reason}")]
    CannotRegister {
        /// Its name.
        name: String,
        /// Why.
        reason: &'static str,
    },
    /// What a strategy of another crate says about its settings.
    #[error("`{strategy}`: {message}")]
    Other {
        /// The strategy.
        strategy: &'static str,
        /// What is wrong, and what would work.
        message: String,
    },
    /// A batch of another model than the strategy was built for.
    #[error(
        "this strategy was built for {built_for} layers and cannot run a model with {found}; build it again for that model"
    )]
    OtherModel {
        /// Layers that it was built for.
        built_for: usize,
        /// Layers of the batch.
        found: usize,
    },
}

/// ` (did you mean ...?)` for what [`nearest`] found, or nothing.
pub fn did_you_mean(nearest: Option<&str>) -> String {
    nearest.map_or_else(String::new, |name| format!(" (did you mean `{name}`?)"))
}

/// The candidate most similar to what was typed, unless none is similar: what a "did you mean" offers.
///
/// ```
/// # use skipbench_strategy::nearest;
/// assert_eq!(nearest("speedpu", ["seed", "speedup"]), Some("speedup"));
/// assert_eq!(nearest("zzz", ["seed", "speedup"]), None);
/// ```
pub fn nearest<'a>(typed: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    const SIMILAR: f64 = 0.5;
    let typed = typed.to_lowercase();
    candidates
        .into_iter()
        .map(|name| (strsim::normalized_damerau_levenshtein(&typed, name), name))
        .filter(|(score, _)| *score >= SIMILAR)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, name)| name)
}
