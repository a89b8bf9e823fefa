//! `self-speculative`: some of the layers draft, all of them verify (Draft & Verify, Zhang et al. 2023, arXiv 2309.08168;
//! LayerSkip, Elhoushi et al. 2024, arXiv 2404.16710).

use super::Kind;
use crate::budget::Number;
use crate::settings::{Asked, Common, Definition, Settings};
use crate::{
    BatchShape, DraftLimit, LayerSet, Needs, Prefill, StepPlan, Strategy, StrategyError,
    StrategySpec, Verdict, Verification,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

const MAX_DRAFT: usize = 64;
/// The setting of LayerSkip's released code for Llama-2-7B: the lowest quarter of the layers drafts six tokens at a time.
const LAYERSKIP: &str = "layerskip";

/// The drafting strategy proposes tokens, then one pass of all layers over them says which the full network would have
/// chosen: greedy output is the full network's, token for token. Drafts share the KV cache: the prompt runs through all layers,
/// whatever the drafting strategy says, and of what drafting wrote, the verification replaces only what the full network would
/// not have written. The lowest layers that a draft ran without a gap are not run again (LayerSkip). The target speedup is
/// that of the drafting strategy.
///
/// The variant `layerskip` is `{draft: top@4, draft-length: 6}`, as LayerSkip's released code runs Llama-2-7B. Draft & Verify's
/// released code has `{draft: "drop-list:llama-2-13b", draft-length: 8, stop-below: 0.8, adaptive: true}`, and a list for
/// each of its models.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct SelfSpeculative {
    /// The strategy that drafts.
    draft: Box<StrategySpec>,
    /// The most tokens drafted before each verification; where to begin if `adaptive` without `stop-below`.
    draft_length: usize,
    /// A row drafts no further behind a token that its draft gives a lower probability than this, in 0..1.
    #[serde(skip_serializing_if = "Option::is_none")]
    stop_below: Option<f64>,
    /// Drafts grow where they stand and shrink where they fall. Without `stop-below` by their length: two tokens more after
    /// drafts that stand as a whole, one fewer after others, the heuristic schedule of transformers' assisted generation.
    /// With it by that probability: it rises by a thousandth while fewer than nine tenths of the drafted tokens stand, a moving
    /// average, and falls by as much while more do and drafts end early, as in Draft & Verify's released code.
    adaptive: bool,
}

impl Default for SelfSpeculative {
    fn default() -> Self {
        Self {
            draft: Box::new(StrategySpec::unified()),
            draft_length: 4,
            stop_below: None,
            adaptive: false,
        }
    }
}

impl SelfSpeculative {
    /// The strategy that drafts.
    pub(crate) fn draft(&self) -> &StrategySpec {
        &self.draft
    }

    pub(crate) fn draft_mut(&mut self) -> &mut StrategySpec {
        &mut self.draft
    }

    fn check(&self, asked: &Asked<'_>) -> Result<(), StrategyError> {
        let draft = &*self.draft;
        let wrong = |key, message: String| Err(asked.wrong(key, message));
        if !draft.definition().drafts {
            let drafts = drafts().collect::<Vec<_>>().join(", ");
            return wrong(
                "draft",
                format!("`{}` cannot draft; {drafts} can", draft.name()),
            );
        }
        if draft.members().is_some() {
            let message = format!(
                "`{draft}` stands for several strategies, and one drafts; leave out `seeds` and give a `seed`"
            );
            return wrong("draft", message);
        }
        if matches!(&draft.kind, Kind::EarlyExit(own) if own.goes_by_position()) {
            let message = format!(
                "`{draft}` goes by the position, and the rows of a batch draft at different ones; leave that setting out"
            );
            return wrong("draft", message);
        }
        if !(1..=MAX_DRAFT).contains(&self.draft_length) {
            let message = format!("{} is outside 1 to {MAX_DRAFT}", self.draft_length);
            return wrong("draft-length", message);
        }
        match self.stop_below.filter(|p| !(0.0..=1.0).contains(p)) {
            Some(bad) => wrong("stop-below", format!("{} is outside 0 to 1", Number(bad))),
            None => Ok(()),
        }
    }
}

/// The strategies that may draft.
fn drafts() -> impl Iterator<Item = &'static str> {
    let definitions = Kind::all().into_iter().map(|kind| kind.own().definition());
    definitions
        .filter(|definition| definition.drafts)
        .map(|definition| definition.name)
}

impl Settings for SelfSpeculative {
    fn definition(&self) -> Definition {
        Definition {
            variant_key: Some("draft"),
            no_beams: Some("a draft is verified against one greedy continuation"),
            no_sampling: Some("a draft is verified against the most likely tokens"),
            ..Definition::new(
                "self-speculative",
                "some layers draft, all verify: the tokens of the full network (LayerSkip, arXiv 2404.16710)",
            )
        }
    }

    fn variants(&self) -> Vec<&'static str> {
        drafts().chain([LAYERSKIP]).collect()
    }

    fn variant(&self) -> Option<&'static str> {
        Some(self.draft.name())
    }

    fn set_variant(&mut self, variant: &'static str, _: &mut Common) {
        let (variant, target) = match variant {
            LAYERSKIP => {
                self.draft_length = 6;
                ("top", Some(4.0))
            }
            _ => (variant, self.draft.target_speedup()),
        };
        if let Ok(named) = StrategySpec::named(variant) {
            *self.draft = match target {
                Some(target) => named.with_target(target),
                None => named,
            };
        }
    }

    fn build(&self, asked: &Asked<'_>) -> Result<Box<dyn Strategy>, StrategyError> {
        self.check(asked)?;
        let first = DraftLimit {
            tokens: self.draft_length,
            least_probability: self.stop_below.unwrap_or(0.0),
        };
        Ok(Box::new(Speculation {
            n_layers: asked.n_layers,
            draft: self.draft.build(asked.n_layers)?,
            first,
            limit: first,
            rule: match (self.adaptive, self.stop_below) {
                (false, _) => Rule::Fixed,
                (true, None) => Rule::Length,
                (true, Some(_)) => Rule::Probability { standing: 0.0 },
            },
        }))
    }
}

/// The drafting strategy with the limit of its drafts.
struct Speculation {
    n_layers: usize,
    draft: Box<dyn Strategy>,
    first: DraftLimit,
    limit: DraftLimit,
    rule: Rule,
}

/// How the limit of drafts follows from what becomes of them.
enum Rule {
    Fixed,
    Length,
    Probability {
        /// Moving average of the share of drafted tokens that stand.
        standing: f64,
    },
}

impl Rule {
    fn follow(&mut self, limit: &mut DraftLimit, outcome: Verification) {
        let Verification {
            rows,
            drafted,
            accepted,
        } = outcome;
        match self {
            _ if drafted == 0 => {}
            Rule::Fixed => {}
            Rule::Length => {
                limit.tokens = match accepted == drafted {
                    true => (limit.tokens + 2).min(MAX_DRAFT),
                    false => limit.tokens.saturating_sub(1).max(1),
                };
            }
            // `auto_parameters` of the released code: 0.5, 0.9, 0.01 and 0.9.
            Rule::Probability { standing } => {
                *standing = 0.5 * *standing + 0.5 * accepted as f64 / drafted as f64;
                let step = match *standing < 0.9 {
                    true => 0.01,
                    false if drafted == rows * limit.tokens => 0.0,
                    false => -0.01,
                };
                let moved = limit.least_probability + (1.0 - 0.9) * step;
                limit.least_probability = moved.clamp(0.0, 1.0);
            }
        }
    }
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
        self.limit = self.first;
        if let Rule::Probability { standing } = &mut self.rule {
            *standing = 0.0;
        }
        self.draft.begin(shape)
    }

    fn plan(&mut self, step: usize) -> StepPlan {
        self.draft.plan(step)
    }

    fn observe(&mut self, layer: usize, row: usize, signal: f64) -> Verdict {
        self.draft.observe(layer, row, signal)
    }

    fn verdict(&self, layer: usize, row: usize, signal: f64) -> Verdict {
        self.draft.verdict(layer, row, signal)
    }

    fn draft(&self) -> Option<DraftLimit> {
        Some(self.limit)
    }

    fn verified(&mut self, outcome: Verification) {
        self.rule.follow(&mut self.limit, outcome);
    }

    /// All: the verification runs them.
    fn reachable(&self) -> LayerSet {
        LayerSet::full(self.n_layers)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::begun;

    #[test]
    fn the_length_follows_what_stands() {
        let mut strategy = begun("self-speculative:top@2 {adaptive: true}", 8, 8);
        let tokens = |strategy: &mut Box<dyn Strategy>, drafted, accepted| {
            strategy.verified(outcome(drafted, accepted));
            strategy.draft().unwrap().tokens
        };
        assert_eq!(tokens(&mut strategy, 4, 4), 6);
        assert_eq!(tokens(&mut strategy, 6, 5), 5);
        assert_eq!(tokens(&mut strategy, 0, 0), 5, "nothing was drafted");
        for _ in 0..9 {
            tokens(&mut strategy, 3, 0);
        }
        assert_eq!(tokens(&mut strategy, 1, 0), 1);
        let shape = BatchShape {
            prompt_lens: vec![1],
            n_layers: 8,
            max_new_tokens: 8,
        };
        strategy.begin(&shape).unwrap();
        assert_eq!(strategy.draft().unwrap().tokens, 4);
        assert_eq!(strategy.plan(1).layers.to_vec(), [0, 1, 2, 3]);
    }

    fn outcome(drafted: usize, accepted: usize) -> Verification {
        Verification {
            rows: 1,
            drafted,
            accepted,
        }
    }

    #[test]
    fn the_probability_follows_what_stands() {
        let text = "self-speculative:top@2 {draft-length: 8, stop-below: 0.8, adaptive: true}";
        let mut strategy = begun(text, 8, 8);
        let least = |strategy: &dyn Strategy| strategy.draft().unwrap().least_probability;
        let close = |a: f64, b: f64| assert!((a - b).abs() < 1e-12, "{a} is not {b}");
        // Averages of 0.5, 0.75 and 0.875 are below 0.9.
        for expected in [0.801, 0.802, 0.803] {
            strategy.verified(outcome(4, 4));
            close(least(strategy.as_ref()), expected);
        }
        // 0.9375: enough stand, and the draft ended before its length.
        strategy.verified(outcome(4, 4));
        close(least(strategy.as_ref()), 0.802);
        strategy.verified(outcome(8, 8));
        close(least(strategy.as_ref()), 0.802);
        assert_eq!(strategy.draft().unwrap().tokens, 8);
        let wrong: StrategySpec = text.replace("0.8", "1.5").parse().unwrap();
        let error = wrong.validate(8).unwrap_err().to_string();
        assert!(error.contains("`stop-below`") && error.contains("1.5 is outside 0 to 1"));
    }

    #[test]
    fn the_setting_of_layerskip() {
        let spec: StrategySpec = "self-speculative:layerskip".parse().unwrap();
        assert_eq!(spec.to_string(), "self-speculative:top@4 {draft-length: 6}");
        let layers = spec.explain(32, 8).unwrap().layers;
        assert_eq!(layers, (0..8).collect::<Vec<_>>());
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
        let nested: StrategySpec = "self-speculative:unified:even@3".parse().unwrap();
        assert_eq!(
            nested.to_string(),
            "self-speculative@3 {draft: unified:even@3}"
        );
        assert_eq!(nested.to_string().parse(), Ok(nested));
        assert!(
            "self-speculative:unified:evn@3"
                .parse::<StrategySpec>()
                .is_err()
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
        let decaying = r#"{"self-speculative": {"draft": "early-exit:calm@2"}}"#;
        let decaying: StrategySpec = serde_json::from_str(decaying).unwrap();
        let error = decaying.validate(8).unwrap_err().to_string();
        assert!(error.contains("goes by the position"), "{error}");
        let fast: StrategySpec = "self-speculative:top@9".parse().unwrap();
        assert!(fast.validate(8).is_err());
    }
}
