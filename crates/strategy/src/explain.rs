//! What a strategy does, in numbers, without a model.

use crate::budget::MAX_STEPS;
use crate::{BatchShape, KvFill, LayerSet, Strategy, StrategyError, StrategySpec};
use serde::Serialize;

/// The layers that a strategy runs in a model of a given depth.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Explanation {
    /// The strategy's short form.
    pub strategy: String,
    /// What it does, in a line, with its source.
    pub about: &'static str,
    /// Its variant, where it has variants.
    pub variant: Option<&'static str>,
    /// Layers of the model.
    pub n_layers: usize,
    /// The speedup that was asked for.
    pub target_speedup: Option<f64>,
    /// Every layer that some decode step may run, whole or in part, ascending; empty if they are still to be found.
    pub layers: Vec<usize>,
    /// Of these, the layers whose attention alone runs.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub attention_only: Vec<usize>,
    /// Of these, the layers whose MLP alone runs.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub mlp_only: Vec<usize>,
    /// What has to be known before the layers are: scores on calibration text, or the prompt.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub chosen_by: Option<&'static str>,
    /// Mean number of layers per decode step; `None` if it depends on the tokens.
    pub layers_per_step: Option<f64>,
    /// `n_layers / layers_per_step`: the speedup if a layer were all that costs time.
    pub layer_speedup: Option<f64>,
    /// What each step runs, for a strategy whose layers depend on the position; empty for the others.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub steps: Vec<StepRange>,
    /// Where the layers only draft: the most tokens drafted before all layers verify them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub draft_length: Option<usize>,
    /// The layers after which a token may exit; empty if it cannot.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub checks: Vec<usize>,
    /// What later tokens find where this one skipped a layer; `None` where they never look there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kv_fill: Option<KvFill>,
    /// The sets of which an oracle picks one for each sequence, the fastest first.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub menu: Vec<Vec<usize>>,
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
            let placeholder = with_placeholders(spec, n_layers);
            return Ok(Self {
                strategy: spec.to_string(),
                about: spec.about(),
                variant: spec.variant(),
                draft_length: placeholder
                    .build(n_layers)?
                    .draft()
                    .map(|limit| limit.tokens),
                // What the drafts gain depends on how many of them stand.
                layers_per_step: None,
                layer_speedup: None,
                ..Self::of(draft, n_layers, max_new_tokens)?
            });
        }
        let mut explanation = Self {
            strategy: spec.to_string(),
            about: spec.about(),
            variant: spec.variant(),
            n_layers,
            target_speedup: spec.target_speedup(),
            ..Self::default()
        };
        if let Some(menu) = spec.menu(n_layers) {
            explanation.chosen_by = Some("the score of each answer");
            for entry in menu {
                let layers = Self::of(&entry, n_layers, max_new_tokens)?.layers;
                explanation.layers.extend(&layers);
                explanation.menu.push(layers);
            }
            explanation.layers.sort_unstable();
            explanation.layers.dedup();
            return Ok(explanation);
        }
        let mut strategy = with_placeholders(spec, n_layers).build(n_layers)?;
        strategy.begin(&BatchShape {
            prompt_lens: vec![1],
            n_layers,
            max_new_tokens,
        })?;
        explanation.walk(strategy.as_mut(), max_new_tokens);
        explanation.kv_fill = Some(strategy.needs().kv_fill).filter(|fill| *fill != KvFill::None);
        if strategy.needs().prompt_signal.is_some() {
            explanation.chosen_by = Some("the prompt");
            explanation.layers_per_step = None;
            explanation.layer_speedup = None;
        }
        if spec.wants_expected_length() {
            explanation.chosen_by = Some("the expected length of an answer, here the longest");
        }
        if spec.scoring(n_layers).is_some() {
            explanation.chosen_by = Some("scores on calibration text");
            explanation.layers.clear();
            explanation.attention_only.clear();
            explanation.mlp_only.clear();
        }
        Ok(explanation)
    }

    /// What the steps of one answer run.
    fn walk(&mut self, strategy: &mut dyn Strategy, max_new_tokens: usize) {
        // Token 0 comes from the prefill; a run of one token is explained by the step that would follow.
        let last_step = max_new_tokens.saturating_sub(1).clamp(1, MAX_STEPS);
        let mut sub_layers = 0;
        for step in 1..=last_step {
            let plan = strategy.plan(step);
            let layers = plan.layers.to_vec();
            sub_layers += plan.layers.sub_layers();
            self.checks = plan.checks.to_vec();
            match self.steps.last_mut() {
                Some(range) if range.layers == layers => range.last = step,
                _ => self.steps.push(StepRange {
                    first: step,
                    last: step,
                    layers,
                }),
            }
        }
        if self.steps.len() == 1 {
            self.steps.clear();
        }
        if self.checks.is_empty() {
            let layers_per_step = sub_layers as f64 / 2.0 / last_step as f64;
            self.layers_per_step = Some(layers_per_step);
            self.layer_speedup = Some(self.n_layers as f64 / layers_per_step);
        }
        let reachable = strategy.reachable();
        self.layers = reachable.to_vec();
        let only = |has: fn(&LayerSet, usize) -> bool| {
            let parts = reachable.iter().filter(|&layer| !reachable.contains(layer));
            parts.filter(|&layer| has(&reachable, layer)).collect()
        };
        self.attention_only = only(LayerSet::has_attention);
        self.mlp_only = only(LayerSet::has_mlp);
    }
}

/// The strategy with something in place of what is still to be found, on which the shape of its steps does not depend.
fn with_placeholders(spec: &StrategySpec, n_layers: usize) -> StrategySpec {
    let spec = match spec.knob() {
        Some(knob) => spec.with_threshold(knob.hi),
        None => spec.clone(),
    };
    match spec.scoring(n_layers) {
        Some(_) => spec.with_order((0..n_layers).collect()),
        None => spec,
    }
}
