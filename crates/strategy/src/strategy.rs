//! The interface between a strategy, which decides, and the engine, which computes.

use crate::{
    Agreement, BatchMode, ExitCheck, ExitSignal, KvFill, LayerSet, Prefill, PromptSignal,
    StrategyError,
};

/// What a strategy asks of the engine. The default asks for nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Needs {
    /// The signal that the engine computes after each layer of [`StepPlan::checks`]; `None` if
    /// the strategy decides without looking at the tokens.
    pub signal: Option<ExitSignal>,
    /// What of the LM head a check reads.
    pub check: ExitCheck,
    /// How holes in the KV cache are filled.
    pub kv_fill: KvFill,
    /// Which layers the prompt runs through.
    pub prefill: Prefill,
    /// What becomes of rows that are done with a step before others are.
    pub batch_mode: BatchMode,
    /// What it wants to know of each prompt, for [`Strategy::observe_prompt`].
    pub prompt_signal: Option<PromptSignal>,
    /// The strategy is an oracle: all layers run, and a token is said to have needed only those up to the check at which
    /// its state already voted for it.
    pub oracle: Option<Agreement>,
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

/// How far a self-speculative strategy drafts before all layers verify.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct DraftLimit {
    /// The most tokens that a row drafts.
    pub tokens: usize,
    /// A row drafts no further behind a token that its draft gives a lower probability than this, in 0..1; 0 for no such limit.
    pub least_probability: f64,
}

/// What one verification found, over all rows that took part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verification {
    /// Rows that had drafts verified.
    pub rows: usize,
    /// Tokens that they had drafted.
    pub drafted: usize,
    /// Of these, the ones that stand.
    pub accepted: usize,
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
/// gives token 0) unless [`Needs::prefill`] says otherwise, and then for each further token calls [`plan`](Self::plan)
/// once and [`observe`](Self::observe) for every row that reaches a check.
pub trait Strategy: Send {
    /// What the engine must compute for this strategy; the same at every call.
    fn needs(&self) -> Needs;

    /// Starts a batch and forgets the one before.
    ///
    /// # Errors
    /// If the strategy cannot serve such a batch, as when it was built for another model.
    fn begin(&mut self, shape: &BatchShape) -> Result<(), StrategyError>;

    /// Takes what [`Needs::prompt_signal`] asked for, for each row after the prefill.
    fn observe_prompt(&mut self, row: usize, signal: &[f64]) {
        let _ = (row, signal);
    }

    /// The layers of one decode step, for all rows.
    ///
    /// `step` is the index of the generated token that this step produces. Token 0 comes from the prefill, so the first call
    /// is for step 1.
    fn plan(&mut self, step: usize) -> StepPlan;

    /// The layers of `row`, where they are not those of the plan; the plan then holds the layers of all rows together.
    fn row_layers(&self, row: usize) -> Option<LayerSet> {
        let _ = row;
        None
    }

    /// Takes the signal of `row` after `layer`, and says whether the row goes on. Called only for
    /// a layer in [`StepPlan::checks`]. The rows of a beam search take each other's places from one step to the next, so a
    /// strategy that remembers rows from step to step cannot run under one.
    fn observe(&mut self, layer: usize, row: usize, signal: f64) -> Verdict {
        let _ = (layer, row, signal);
        Verdict::Continue
    }

    /// What [`observe`](Self::observe) would say, of a strategy that remembers nothing of it.
    fn verdict(&self, layer: usize, row: usize, signal: f64) -> Verdict {
        let _ = (layer, row, signal);
        Verdict::Continue
    }

    /// How far it drafts before all layers verify in one pass; `None` for a strategy whose tokens stand.
    fn draft(&self) -> Option<DraftLimit> {
        None
    }

    /// Takes the outcome of a verification.
    fn verified(&mut self, outcome: Verification) {
        let _ = outcome;
    }

    /// The union of the layers that any step may run, so that the KV cache allocates nothing for
    /// the rest. Known after [`begin`](Self::begin).
    fn reachable(&self) -> LayerSet;
}

/// A strategy that runs the same layers at every step: all the static ones.
#[derive(Clone, Debug)]
pub(crate) struct FixedLayers {
    pub(crate) n_layers: usize,
    pub(crate) layers: LayerSet,
    pub(crate) prefill: Prefill,
}

impl Strategy for FixedLayers {
    fn needs(&self) -> Needs {
        Needs {
            prefill: self.prefill,
            ..Needs::default()
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

/// A strategy that chooses the layers of each row once, from what the prefill says of its prompt. Its holes are never read.
pub(crate) struct ByPrompt<F> {
    pub(crate) n_layers: usize,
    pub(crate) signal: PromptSignal,
    /// The layers of a prompt by its signal; `None` where the signal is not what was asked for.
    pub(crate) choose: F,
    /// The layers of a row until its prompt is known.
    pub(crate) before: LayerSet,
    pub(crate) reachable: LayerSet,
    /// The layers of each row of the batch.
    pub(crate) rows: Vec<LayerSet>,
}

impl<F: Fn(&[f64]) -> Option<LayerSet> + Send> Strategy for ByPrompt<F> {
    fn needs(&self) -> Needs {
        Needs {
            prompt_signal: Some(self.signal),
            ..Needs::default()
        }
    }

    fn begin(&mut self, shape: &BatchShape) -> Result<(), StrategyError> {
        self.rows = vec![self.before; shape.prompt_lens.len()];
        check_same_model(self.n_layers, shape)
    }

    fn observe_prompt(&mut self, row: usize, signal: &[f64]) {
        if let (Some(layers), Some(row)) = ((self.choose)(signal), self.rows.get_mut(row)) {
            *row = layers;
        }
    }

    fn plan(&mut self, _step: usize) -> StepPlan {
        let rows = self.rows.iter();
        StepPlan::fixed(rows.fold(LayerSet::empty(), |all, row| all.union(*row)))
    }

    fn row_layers(&self, row: usize) -> Option<LayerSet> {
        self.rows.get(row).copied()
    }

    fn reachable(&self) -> LayerSet {
        self.reachable
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
