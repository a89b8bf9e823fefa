//! The interface between a strategy, which decides, and the engine, which computes.

use crate::{LayerSet, StrategyError};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::fmt;

/// How sure the model is of a token after some of its layers: what a dynamic strategy decides on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum ExitSignal {
    /// Probability of the most likely token minus that of the second, in 0..1
    /// (`softmax_diff` of CALM, arXiv 2207.07061). Reads the LM head.
    #[default]
    SoftmaxMargin,
    /// Probability of the most likely token, in 0..1 (CALM, arXiv 2207.07061). Reads the LM head.
    MaxProb,
    /// Entropy of the next-token distribution over its largest value, ln(vocabulary), in 0..1;
    /// low is confident (DeeBERT, arXiv 2004.12993). Reads the LM head.
    Entropy,
    /// Cosine of a layer's output to its input, in -1..1 (`state` of CALM, arXiv 2207.07061).
    /// Reads no LM head, so a check costs almost nothing.
    Cosine,
}

impl ExitSignal {
    /// Every signal, in the order in which help texts list them.
    pub const ALL: [Self; 4] = [
        Self::SoftmaxMargin,
        Self::MaxProb,
        Self::Entropy,
        Self::Cosine,
    ];

    /// Its name in experiments and short forms.
    pub const fn name(self) -> &'static str {
        match self {
            Self::SoftmaxMargin => "softmax-margin",
            Self::MaxProb => "max-prob",
            Self::Entropy => "entropy",
            Self::Cosine => "cosine",
        }
    }

    /// Whether a check reads the LM head: as many weights as several layers in a small model.
    pub const fn needs_head(self) -> bool {
        match self {
            Self::SoftmaxMargin | Self::MaxProb | Self::Entropy => true,
            Self::Cosine => false,
        }
    }
}

impl fmt::Display for ExitSignal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What is done about the keys and values of a (layer, position) that was skipped and that a
/// later position may read: a hole.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum KvFill {
    /// Nothing: a hole is never read, because a later step runs no layer that an earlier one skipped.
    None,
    /// Each skipped layer projects its keys and values from the hidden state at which the row
    /// exited (state propagation of CALM, arXiv 2207.07061). Approximate.
    Propagate,
}

impl KvFill {
    /// Its name in experiments and results.
    pub const fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Propagate => "propagate",
        }
    }
}

impl fmt::Display for KvFill {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What a strategy asks of the engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Needs {
    /// The signal that the engine computes after each layer of [`StepPlan::checks`]; `None` if
    /// the strategy decides without looking at the tokens.
    pub signal: Option<ExitSignal>,
    /// How holes in the KV cache are filled.
    pub kv_fill: KvFill,
}

/// What is known about a batch before its first step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BatchShape {
    /// Prompt tokens of each row; its length is the number of rows.
    pub prompt_lens: Vec<usize>,
    /// Layers of the model.
    pub n_layers: usize,
    /// Tokens that each row may generate, the one from the prefill included.
    pub max_new_tokens: usize,
}

/// What a row does after a check.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Run the next layer of the plan.
    Continue,
    /// Run no further layer for this token.
    Exit,
}

/// The layers of one decode step, known before it starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StepPlan {
    /// The layers that a row runs unless it exits.
    pub layers: LayerSet,
    /// The layers after which the engine computes the signal and calls [`Strategy::observe`].
    pub checks: LayerSet,
}

impl StepPlan {
    /// A plan without checks.
    pub const fn fixed(layers: LayerSet) -> Self {
        Self {
            layers,
            checks: LayerSet::empty(),
        }
    }
}

/// Decides which layers run, and never sees a tensor.
///
/// The engine calls [`begin`](Self::begin) for each batch, runs every layer over the prompt (which
/// gives token 0), and then for each further token calls [`plan`](Self::plan) once and
/// [`observe`](Self::observe) for every row that reaches a check.
pub trait Strategy: Send {
    /// What the engine must compute for this strategy; the same at every call.
    fn needs(&self) -> Needs;

    /// Starts a batch and forgets the one before.
    ///
    /// # Errors
    /// If the strategy cannot serve such a batch, as when it was built for another model.
    fn begin(&mut self, shape: &BatchShape) -> Result<(), StrategyError>;

    /// The layers of one decode step, for all rows.
    ///
    /// `step` is the index of the generated token that this step produces. Token 0 comes from the
    /// prefill (all layers, always), so the first call is for step 1.
    fn plan(&mut self, step: usize) -> StepPlan;

    /// Takes the signal of `row` after `layer`, and says whether the row goes on. Called only for
    /// a layer in [`StepPlan::checks`].
    fn observe(&mut self, layer: usize, row: usize, signal: f64) -> Verdict {
        let _ = (layer, row, signal);
        Verdict::Continue
    }

    /// How many tokens it drafts before all layers verify them in one pass; `None` for a strategy whose tokens stand.
    fn draft_length(&self) -> Option<usize> {
        None
    }

    /// Takes the outcome of a verification, over all rows: how many tokens were drafted, and how many of them stand.
    fn verified(&mut self, drafted: usize, accepted: usize) {
        let _ = (drafted, accepted);
    }

    /// The union of the layers that any step may run, so that the KV cache allocates nothing for
    /// the rest. Known after [`begin`](Self::begin).
    fn reachable(&self) -> LayerSet;
}

/// A strategy that runs the same layers at every step: all the static ones.
#[derive(Clone, Debug)]
pub(crate) struct FixedLayers {
    n_layers: usize,
    layers: LayerSet,
}

impl FixedLayers {
    pub(crate) fn boxed(n_layers: usize, layers: LayerSet) -> Box<dyn Strategy> {
        Box::new(Self { n_layers, layers })
    }
}

impl Strategy for FixedLayers {
    fn needs(&self) -> Needs {
        Needs {
            signal: None,
            kv_fill: KvFill::None,
        }
    }

    fn begin(&mut self, shape: &BatchShape) -> Result<(), StrategyError> {
        check_same_model(self.n_layers, shape)
    }

    fn plan(&mut self, _step: usize) -> StepPlan {
        StepPlan::fixed(self.layers)
    }

    fn reachable(&self) -> LayerSet {
        self.layers
    }
}

/// Refuses a batch of a model with another number of layers than the strategy was built for.
pub(crate) fn check_same_model(n_layers: usize, shape: &BatchShape) -> Result<(), StrategyError> {
    if shape.n_layers == n_layers {
        Ok(())
    } else {
        Err(StrategyError::OtherModel {
            built_for: n_layers,
            found: shape.n_layers,
        })
    }
}
