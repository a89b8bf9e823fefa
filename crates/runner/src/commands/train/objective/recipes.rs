//! The named objectives of a training config and their settings, with what their papers say as defaults.

use serde::de::{Error, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::json;
use skipbench_strategy::{did_you_mean, nearest};
use skipbench_train::objective::Measure;
use skipbench_train::objective::drops::Per;
use skipbench_train::objective::exits::{Curriculum, ExitWeights};
use std::fmt;

/// An objective: its name alone, or a map from its name to its settings.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Recipe {
    /// The last layer's cross-entropy, under the layers of `depths` where they are given.
    Plain(Plain),
    /// Unified Layer Skipping (arXiv 2404.06954).
    Unified(Unified),
    /// SkipDecode (arXiv 2307.02628).
    SkipDecode(SkipDecode),
    /// A loss at every exit (CALM, arXiv 2207.07061).
    EarlyExit(EarlyExit),
    /// LayerSkip (arXiv 2404.16710).
    LayerSkip(LayerSkip),
    /// LayerDrop (arXiv 1909.11556).
    LayerDrop(LayerDrop),
    /// Stochastic depth with intermediate losses (arXiv 2106.09216).
    PruningOnDemand(PruningOnDemand),
    /// A depth drawn for each batch (arXiv 2105.00812).
    LayerConsistency(LayerConsistency),
}

/// Settings of `plain`: none.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Plain {}

/// Settings of `unified`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct Unified {
    /// The target of all batches.
    pub(super) speedup: Option<f64>,
    /// Targets, one of which is drawn for each batch.
    pub(super) speedups: Vec<f64>,
    /// Which layers are kept.
    pub(super) rule: String,
    /// Percent of batches at full depth.
    pub(super) full_percent: u32,
    /// Weight of the whole network's cross-entropy: the released code's `full_layers_pred_loss_rate`.
    pub(super) full_loss: f64,
    /// Weight of one minus the cosine between the states that kept layers read in both passes: the released code's
    /// `skip_full_layers_sim_loss_rate`.
    pub(super) state_cosine: f64,
}

impl Default for Unified {
    fn default() -> Self {
        Self {
            speedup: None,
            speedups: Vec::new(),
            rule: "published".to_owned(),
            full_percent: 0,
            full_loss: 0.0,
            state_cosine: 0.0,
        }
    }
}

/// Settings of `skip-decode`; those of its schedule are the strategy's.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct SkipDecode {
    /// The target of all batches.
    pub(super) speedup: Option<f64>,
    /// Targets, one of which is drawn for each batch.
    pub(super) speedups: Vec<f64>,
    /// Layers at the bottom that every step runs; one if it is not given.
    pub(super) warmup_layers: Option<usize>,
    /// Layers of the first step, instead of what follows from the target; only with `min-layers`.
    pub(super) max_layers: Option<usize>,
    /// Layers of the last step, instead of what follows from the target; only with `max-layers`.
    pub(super) min_layers: Option<usize>,
    /// Tokens over which the depth falls; those of the longest answer of the batch if it is not given.
    pub(super) schedule_length: Option<usize>,
    /// Percent of batches at full depth.
    pub(super) full_percent: u32,
}

/// Settings of `early-exit`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct EarlyExit {
    /// Layers below each exit; all layers if it is not given.
    pub(super) exits: Option<Vec<usize>>,
    /// How the exits are weighed.
    pub(super) weights: ExitWeightsName,
}

impl Default for EarlyExit {
    fn default() -> Self {
        Self {
            exits: None,
            weights: ExitWeightsName::Layer,
        }
    }
}

/// How exits are weighed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum ExitWeightsName {
    /// As much as they have layers below them.
    Layer,
    /// All alike.
    Uniform,
}

impl From<ExitWeightsName> for ExitWeights {
    fn from(name: ExitWeightsName) -> Self {
        match name {
            ExitWeightsName::Layer => Self::ByLayer,
            ExitWeightsName::Uniform => Self::Uniform,
        }
    }
}

/// Settings of `layer-skip`: those of the authors' fine-tuning on TOPv2.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct LayerSkip {
    /// Chance of the last layer to be left out of a pair.
    pub(super) p_max: f64,
    /// How that chance changes over the training.
    pub(super) dropout: DropoutName,
    /// Layers below each exit; all layers if it is not given.
    pub(super) exits: Option<Vec<usize>>,
    /// Scale of the losses below the last layer.
    pub(super) e_scale: f64,
    /// Which exits have a loss at a step.
    pub(super) curriculum: CurriculumName,
    /// Steps in which each exit has one turn; for the rotational curriculum alone.
    pub(super) rotation: Option<usize>,
}

impl Default for LayerSkip {
    fn default() -> Self {
        Self {
            p_max: 0.2,
            dropout: DropoutName::Constant,
            exits: None,
            e_scale: 1.0,
            curriculum: CurriculumName::Gradual,
            rotation: None,
        }
    }
}

/// How the chances of layers change over the training.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum DropoutName {
    /// Not at all: for a checkpoint that was trained before.
    Constant,
    /// From none to all of it: for a new model.
    Rising,
}

/// Which exits have a loss at a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum CurriculumName {
    /// All of them.
    None,
    /// Some, in turn.
    Rotational,
    /// From the last one down.
    Gradual,
}

impl CurriculumName {
    /// With the turns of a rotation.
    pub(super) fn with(self, every: usize) -> Curriculum {
        match self {
            Self::None => Curriculum::None,
            Self::Rotational => Curriculum::Rotational { every },
            Self::Gradual => Curriculum::Gradual,
        }
    }
}

/// Settings of `layer-drop`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct LayerDrop {
    /// Chance of each layer to be left out.
    pub(super) p: f64,
    /// What a draw holds for.
    pub(super) per: Per,
}

impl Default for LayerDrop {
    fn default() -> Self {
        Self {
            p: 0.2,
            per: Per::Batch,
        }
    }
}

/// Settings of `pruning-on-demand`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct PruningOnDemand {
    /// Chance of the last layer to be left out; lower layers have less, linearly.
    pub(super) p: f64,
    /// What a draw holds for.
    pub(super) per: Per,
    /// Layers below each intermediate loss; every quarter of the layers if it is not given.
    pub(super) exits: Option<Vec<usize>>,
    /// What the intermediate losses weigh together.
    pub(super) weight: f64,
}

impl Default for PruningOnDemand {
    fn default() -> Self {
        Self {
            p: 0.3,
            per: Per::Batch,
            exits: None,
            weight: 0.3,
        }
    }
}

/// Settings of `layer-consistency`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct LayerConsistency {
    /// Fewest layers that a batch runs.
    pub(super) min_layers: usize,
}

impl Default for LayerConsistency {
    fn default() -> Self {
        Self { min_layers: 1 }
    }
}

/// What the whole network teaches the layers that a batch runs, beside any objective.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct Distil {
    /// Weight of the objective's cross-entropies.
    pub(super) cross_entropy: f64,
    /// Weight of the divergence of each exit's distribution from the whole network's.
    pub(super) logits: f64,
    /// What both logits are divided by.
    pub(super) temperature: f64,
    /// Weight of the distance between the states that the layers of a batch write in both passes.
    pub(super) states: f64,
    /// How states are compared.
    pub(super) measure: Measure,
}

impl Default for Distil {
    fn default() -> Self {
        Self {
            cross_entropy: 1.0,
            logits: 0.5,
            temperature: 1.0,
            states: 0.0,
            measure: Measure::SquaredError,
        }
    }
}

impl Recipe {
    const NAMES: [&str; 8] = [
        "plain",
        "unified",
        "skip-decode",
        "early-exit",
        "layer-skip",
        "layer-drop",
        "pruning-on-demand",
        "layer-consistency",
    ];

    pub(crate) fn name(&self) -> &'static str {
        Self::NAMES[match self {
            Self::Plain(_) => 0,
            Self::Unified(_) => 1,
            Self::SkipDecode(_) => 2,
            Self::EarlyExit(_) => 3,
            Self::LayerSkip(_) => 4,
            Self::LayerDrop(_) => 5,
            Self::PruningOnDemand(_) => 6,
            Self::LayerConsistency(_) => 7,
        }]
    }
}

impl Default for Recipe {
    fn default() -> Self {
        Self::Plain(Plain::default())
    }
}

impl<'de> Deserialize<'de> for Recipe {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(RecipeVisitor)
    }
}

struct RecipeVisitor;

impl<'de> Visitor<'de> for RecipeVisitor {
    type Value = Recipe;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an objective: its name, or a map such as `layer-drop: {p: 0.2}`")
    }

    fn visit_str<E: Error>(self, name: &str) -> Result<Recipe, E> {
        serde_json::from_value(json!({name: null})).map_err(E::custom)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Recipe, A::Error> {
        fn settings<'de, T: Deserialize<'de> + Default, A: MapAccess<'de>>(
            map: &mut A,
        ) -> Result<T, A::Error> {
            Ok(map.next_value::<Option<T>>()?.unwrap_or_default())
        }
        let Some(name) = map.next_key::<String>()? else {
            return Err(A::Error::custom("an objective is missing its name"));
        };
        let recipe = match name.as_str() {
            "plain" => Recipe::Plain(settings(&mut map)?),
            "unified" => Recipe::Unified(settings(&mut map)?),
            "skip-decode" => Recipe::SkipDecode(settings(&mut map)?),
            "early-exit" => Recipe::EarlyExit(settings(&mut map)?),
            "layer-skip" => Recipe::LayerSkip(settings(&mut map)?),
            "layer-drop" => Recipe::LayerDrop(settings(&mut map)?),
            "pruning-on-demand" => Recipe::PruningOnDemand(settings(&mut map)?),
            "layer-consistency" => Recipe::LayerConsistency(settings(&mut map)?),
            _ => {
                return Err(A::Error::custom(format_args!(
                    "unknown objective `{name}`{}; there are {}",
                    did_you_mean(nearest(&name, Recipe::NAMES)),
                    Recipe::NAMES.join(", ")
                )));
            }
        };
        match map.next_key::<String>()? {
            None => Ok(recipe),
            Some(second) => Err(A::Error::custom(format_args!(
                "an objective is one name with its settings below it, but `{second}` stands beside `{name}`"
            ))),
        }
    }
}
