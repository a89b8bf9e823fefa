//! `self-speculative`: some of the layers draft, all of them verify (Draft & Verify, Zhang et al. 2023, arXiv 2309.08168;
//! LayerSkip, Elhoushi et al. 2024, arXiv 2404.16710).

use crate::budget::{MIN_KEPT, check_depth};
use crate::registry::Settings;
use crate::{
    BatchMode, BatchShape, Knob, LayerSet, Needs, Prefill, Scoring, StepPlan, Strategy,
    StrategyError, StrategySpec, Verdict,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

const NAME: &str = "self-speculative";
const MAX_DRAFT: usize = 64;
/// Strategies that may draft: those whose layers do not depend on the position, since rows of a batch move on by
/// different numbers of tokens.
const DRAFTS: [&str; 14] = [
    "unified",
    "top",
    "bottom",
    "middle",
    "random",
    "every-other",
    "drop-list",
    "block-influence",
    "angular",
    "sleb",
    "perplexity",
    "sublayer-drop",
    "early-exit",
    "shallow-deep",
];

/// The drafting strategy proposes tokens, then one pass of all layers over them says which the full network would have
/// chosen: greedy output is the full network's, token for token. Drafts share the KV cache, and what they wrote is
/// replaced by the verification. The prompt runs through all layers, whatever the drafting strategy says. The target speedup is that of the drafting strategy.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct SelfSpeculative {
    /// The strategy that drafts.
    draft: Box<StrategySpec>,
    /// Tokens drafted before each verification; where to begin if `adaptive`.
    draft_length: usize,
    /// Two tokens more after a draft that stands as a whole, one fewer after another: the heuristic schedule of
    /// transformers' assisted generation.
    adaptive: bool,
}

impl Default for SelfSpeculative {
    fn default() -> Self {
        Self {
            draft: Box::new(StrategySpec::unified()),
            draft_length: 4,
            adaptive: false,
        }
    }
}

impl Settings for SelfSpeculative {
    fn name(&self) -> &'static str {
        NAME
    }

    fn about(&self) -> &'static str {
        "some layers draft, all verify: the tokens of the full network (LayerSkip, arXiv 2404.16710)"
    }

    fn variants(&self) -> Vec<&'static str> {
        DRAFTS.to_vec()
    }

    fn variant(&self) -> Option<&'static str> {
        Some(self.draft.name())
    }

    fn set_variant(&mut self, variant: &'static str) {
        let target = self.draft.target_speedup();
        if let Ok(named) = StrategySpec::named(variant) {
            *self.draft = match target {
                Some(target) => named.with_target(target),
                None => named,
            };
        }
    }

    fn speedup(&self) -> Option<f64> {
        self.draft.target_speedup()
    }

    fn speedup_mut(&mut self) -> Option<&mut Option<f64>> {
        self.draft.speedup_mut()
    }

    fn threshold(&self) -> Option<f64> {
        self.draft.threshold()
    }

    fn threshold_mut(&mut self) -> Option<&mut Option<f64>> {
        self.draft.threshold_mut()
    }

    fn draft(&self) -> Option<&StrategySpec> {
        Some(&self.draft)
    }

    fn knob(&self) -> Option<Knob> {
        self.draft.knob()
    }

    fn scoring(&self, n_layers: usize) -> Option<Scoring> {
        self.draft.scoring(n_layers)
    }

    fn order_mut(&mut self) -> Option<&mut Option<Vec<usize>>> {
        self.draft.order_mut()
    }

    fn batch_mode(&self) -> BatchMode {
        self.draft.batch_mode()
    }

    fn no_beams(&self) -> Option<&'static str> {
        Some("a draft is verified against one greedy continuation")
    }

    fn no_sampling(&self) -> Option<&'static str> {
        Some("a draft is verified against the most likely tokens")
    }

    fn validate(&self, n_layers: usize) -> Result<(), StrategyError> {
        check_depth(NAME, n_layers, MIN_KEPT)?;
        let setting = |key, message| StrategyError::Setting {
            strategy: NAME,
            key,
            message,
        };
        if !DRAFTS.contains(&self.draft.name()) {
            return Err(setting(
                "draft",
                format!(
                    "`{}` cannot draft; {} can",
                    self.draft.name(),
                    DRAFTS.join(", ")
                ),
            ));
        }
        if !(1..=MAX_DRAFT).contains(&self.draft_length) {
            return Err(setting(
                "draft-length",
                format!("{} is outside 1 to {MAX_DRAFT}", self.draft_length),
            ));
        }
        self.draft.validate(n_layers)
    }

    fn build(&self, n_layers: usize) -> Result<Box<dyn Strategy>, StrategyError> {
        self.validate(n_layers)?;
        Ok(Box::new(Speculation {
            n_layers,
            draft: self.draft.build(n_layers)?,
            first_length: self.draft_length,
            length: self.draft_length,
            adaptive: self.adaptive,
        }))
    }
}

/// The drafting strategy with the length of its drafts.
struct Speculation {
    n_layers: usize,
    draft: Box<dyn Strategy>,
    first_length: usize,
    length: usize,
    adaptive: bool,
}

impl Strategy for Speculation {
    /// The verification needs all layers of the prompt, and drafts are hardly ever right without them.
    fn needs(&self) -> Needs {
        Needs {
            prefill: Prefill::Full,
            ..self.draft.needs()
        }
    }

    fn begin(&mut self, shape: &BatchShape) -> Result<(), StrategyError> {
        self.length = self.first_length;
        self.draft.begin(shape)
    }

    fn plan(&mut self, step: usize) -> StepPlan {
        self.draft.plan(step)
    }

    fn observe(&mut self, layer: usize, row: usize, signal: f64) -> Verdict {
        self.draft.observe(layer, row, signal)
    }

    fn draft_length(&self) -> Option<usize> {
        Some(self.length)
    }

    fn verified(&mut self, drafted: usize, accepted: usize) {
        if self.adaptive {
            self.length = match accepted == drafted {
                true => (self.length + 2).min(MAX_DRAFT),
                false => self.length.saturating_sub(1).max(1),
            };
        }
    }

    /// All: the verification runs them.
    fn reachable(&self) -> LayerSet {
        LayerSet::full(self.n_layers)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_length_follows_what_stands() {
        let settings = SelfSpeculative {
            draft: Box::new("top@2".parse().unwrap()),
            adaptive: true,
            ..SelfSpeculative::default()
        };
        let mut strategy = settings.build(8).unwrap();
        strategy.verified(4, 4);
        assert_eq!(strategy.draft_length(), Some(6));
        strategy.verified(6, 5);
        assert_eq!(strategy.draft_length(), Some(5));
        for _ in 0..9 {
            strategy.verified(3, 0);
        }
        assert_eq!(strategy.draft_length(), Some(1));
        let shape = BatchShape {
            prompt_lens: vec![1],
            n_layers: 8,
            max_new_tokens: 8,
        };
        strategy.begin(&shape).unwrap();
        assert_eq!(strategy.draft_length(), Some(4));
        assert_eq!(strategy.plan(1).layers.to_vec(), [0, 1, 2, 3]);
    }

    #[test]
    fn short_and_long_form() {
        let short: StrategySpec = "self-speculative:early-exit@2".parse().unwrap();
        let long: StrategySpec =
            serde_json::from_str(r#"{"self-speculative": {"draft": "early-exit@2"}}"#).unwrap();
        assert_eq!(short, long);
        assert_eq!(short.to_string(), "self-speculative:early-exit@2");
        let long: StrategySpec = serde_json::from_str(
            r#"{"self-speculative": {"draft": "early-exit:cosine@2", "adaptive": true}}"#,
        )
        .unwrap();
        assert_eq!(
            long.to_string(),
            "self-speculative:early-exit@2 {draft: early-exit:cosine@2, adaptive: true}"
        );
        assert!(short.knob().is_some());
        assert_eq!(
            short.with_threshold(0.5).draft().unwrap().threshold(),
            Some(0.5)
        );
        for wrong in ["full", "skip-decode@2", "self-speculative:top@2"] {
            let spec: StrategySpec = serde_json::from_str(&format!(
                r#"{{"self-speculative": {{"draft": "{wrong}"}}}}"#
            ))
            .unwrap();
            assert!(
                spec.validate(8)
                    .unwrap_err()
                    .to_string()
                    .contains("cannot draft")
            );
        }
        let fast: StrategySpec = "self-speculative:top@9".parse().unwrap();
        assert!(fast.validate(8).is_err());
    }
}
