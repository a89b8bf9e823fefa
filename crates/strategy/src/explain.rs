//! What a strategy does, in numbers, without a model.

use crate::budget::MAX_STEPS;
use crate::{BatchShape, StrategyError, StrategySpec};
use serde::Serialize;

/// The layers that a strategy runs in a model of a given depth.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Explanation {
    /// The strategy's short form.
    pub strategy: String,
    /// Its variant, where it has variants.
    pub variant: Option<&'static str>,
    /// Layers of the model.
    pub n_layers: usize,
    /// The speedup that was asked for.
    pub target_speedup: Option<f64>,
    /// Every layer that some decode step may run, ascending.
    pub layers: Vec<usize>,
    /// Mean number of layers per decode step; `None` if it depends on the tokens.
    pub layers_per_step: Option<f64>,
    /// `n_layers / layers_per_step`: the speedup if a layer were all that costs time.
    pub layer_speedup: Option<f64>,
    /// What each step runs, for a strategy whose layers depend on the position; empty for the others.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub steps: Vec<StepRange>,
    /// Where the layers only draft: the tokens drafted before all layers verify them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub draft_length: Option<usize>,
    /// The layers after which a token may exit; empty if it cannot.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub checks: Vec<usize>,
}

/// Consecutive decode steps that run the same layers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct StepRange {
    /// The first step, counted as in [`Strategy::plan`](crate::Strategy::plan): the index of the token it produces.
    pub first: usize,
    /// The last step, inclusive.
    pub last: usize,
    /// The layers of each of them, ascending.
    pub layers: Vec<usize>,
}

impl Explanation {
    pub(crate) fn of(
        spec: &StrategySpec,
        n_layers: usize,
        max_new_tokens: usize,
    ) -> Result<Self, StrategyError> {
        spec.validate(n_layers)?;
        if let Some(draft) = spec.draft() {
            let whole = spec.with_threshold(0.5).build(n_layers)?;
            return Ok(Self {
                strategy: spec.to_string(),
                variant: spec.variant(),
                draft_length: whole.draft_length(),
                // What the drafts gain depends on how many of them stand.
                layers_per_step: None,
                layer_speedup: None,
                ..Self::of(draft, n_layers, max_new_tokens)?
            });
        }
        // The layers and checks of a strategy that is still to be calibrated do not depend on the knob.
        let built = spec
            .knob()
            .map_or_else(|| spec.clone(), |knob| spec.with_threshold(knob.hi));
        let mut strategy = built.build(n_layers)?;
        strategy.begin(&BatchShape {
            prompt_lens: vec![1],
            n_layers,
            max_new_tokens,
        })?;

        // Token 0 comes from the prefill; a run of one token is explained by the step that would follow.
        let last_step = max_new_tokens.saturating_sub(1).clamp(1, MAX_STEPS);
        let mut steps: Vec<StepRange> = Vec::new();
        let mut checks = Vec::new();
        let mut total = 0;
        for step in 1..=last_step {
            let plan = strategy.plan(step);
            let layers = plan.layers.to_vec();
            total += layers.len();
            checks = plan.checks.to_vec();
            match steps.last_mut() {
                Some(range) if range.layers == layers => range.last = step,
                _ => steps.push(StepRange {
                    first: step,
                    last: step,
                    layers,
                }),
            }
        }
        if steps.len() == 1 {
            steps.clear();
        }
        let layers_per_step = checks.is_empty().then(|| total as f64 / last_step as f64);
        Ok(Self {
            strategy: spec.to_string(),
            variant: spec.variant(),
            n_layers,
            target_speedup: spec.target_speedup(),
            layers: strategy.reachable().to_vec(),
            layers_per_step,
            layer_speedup: layers_per_step.map(|layers| n_layers as f64 / layers),
            steps,
            draft_length: None,
            checks,
        })
    }
}
