//! `adaskip`: the sub-layers of an answer follow from what they did to its prompt (AdaSkip, He et al. 2025,
//! arXiv 2501.02336).

use crate::budget::{MIN_KEPT, check_depth, check_speedup};
use crate::registry::Settings;
use crate::strategy::check_same_model;
use crate::{BatchShape, LayerSet, Needs, PromptSignal, StepPlan, Strategy, StrategyError};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

const NAME: &str = "adaskip";

/// The prefill gives the cosine of each sub-layer's output to its input over the prompt; those that change it least are
/// skipped in decoding, floor(2 L / speedup) of the 2 L staying. Each row of a batch has its own.
///
/// Of AdaSkip this is the choice of sub-layers, made for each prompt. The released code takes the mean over its first
/// requests, scales the state where it skips, and skips more MLPs while it decodes; none of that is done here.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct Adaskip {
    /// The target speedup, counted in sub-layers.
    #[serde(skip_serializing_if = "Option::is_none")]
    speedup: Option<f64>,
}

impl Adaskip {
    fn kept(&self, n_layers: usize) -> Result<usize, StrategyError> {
        check_depth(NAME, n_layers, MIN_KEPT)?;
        let missing = StrategyError::MissingSpeedup { strategy: NAME };
        let speedup = self.speedup.ok_or(missing)?;
        check_speedup(speedup)?;
        let kept = (2.0 * n_layers as f64 / speedup + 1e-9).floor() as usize;
        if kept < 2 * MIN_KEPT {
            return Err(StrategyError::TooFast {
                speedup,
                kept: kept / 2,
                n_layers,
            });
        }
        Ok(kept)
    }
}

impl Settings for Adaskip {
    fn name(&self) -> &'static str {
        NAME
    }

    fn about(&self) -> &'static str {
        "the sub-layers that change a prompt least are skipped in its answer (AdaSkip, arXiv 2501.02336)"
    }

    fn speedup(&self) -> Option<f64> {
        self.speedup
    }

    fn speedup_mut(&mut self) -> Option<&mut Option<f64>> {
        Some(&mut self.speedup)
    }

    fn validate(&self, n_layers: usize) -> Result<(), StrategyError> {
        self.kept(n_layers).map(drop)
    }

    fn build(&self, n_layers: usize) -> Result<Box<dyn Strategy>, StrategyError> {
        Ok(Box::new(Similar {
            n_layers,
            kept: self.kept(n_layers)?,
            rows: Vec::new(),
        }))
    }
}

struct Similar {
    n_layers: usize,
    /// Sub-layers.
    kept: usize,
    rows: Vec<LayerSet>,
}

impl Strategy for Similar {
    fn needs(&self) -> Needs {
        Needs {
            prompt_signal: Some(PromptSignal::Similarity),
            ..Needs::default()
        }
    }

    fn begin(&mut self, shape: &BatchShape) -> Result<(), StrategyError> {
        self.rows = vec![LayerSet::full(self.n_layers); shape.prompt_lens.len()];
        check_same_model(self.n_layers, shape)
    }

    fn observe_prompt(&mut self, row: usize, signal: &[f64]) {
        let mut order: Vec<usize> = (0..signal.len().min(2 * self.n_layers)).collect();
        // The most similar first; of equals the deeper, which fewer others build on.
        order.sort_by(|&a, &b| signal[b].total_cmp(&signal[a]).then(b.cmp(&a)));
        let skipped = order.len().saturating_sub(self.kept);
        let mut layers = LayerSet::full(self.n_layers);
        for &sub_layer in &order[..skipped] {
            match sub_layer % 2 {
                0 => layers.remove_attention(sub_layer / 2),
                _ => layers.remove_mlp(sub_layer / 2),
            }
        }
        if row < self.rows.len() {
            self.rows[row] = layers;
        }
    }

    fn plan(&mut self, _step: usize) -> StepPlan {
        StepPlan::fixed(
            self.rows
                .iter()
                .fold(LayerSet::empty(), |all, row| all.union(*row)),
        )
    }

    fn row_layers(&self, row: usize) -> Option<LayerSet> {
        self.rows.get(row).copied()
    }

    fn reachable(&self) -> LayerSet {
        LayerSet::full(self.n_layers)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::{Just, Strategy as _, prop, prop_assert, prop_assert_eq, proptest};

    #[test]
    fn the_most_similar_sub_layers_go() {
        let settings = Adaskip { speedup: Some(1.5) };
        let mut strategy = settings.build(3).unwrap();
        let shape = BatchShape {
            prompt_lens: vec![1, 1],
            n_layers: 3,
            max_new_tokens: 4,
        };
        strategy.begin(&shape).unwrap();
        strategy.observe_prompt(0, &[0.1, 0.9, 0.2, 0.3, 0.95, 0.4]);
        strategy.observe_prompt(1, &[0.5; 6]);
        let set = |row| format!("{:?}", strategy.row_layers(row).unwrap());
        assert_eq!(set(0), "{0a, 1, 2m}");
        assert_eq!(set(1), "{0, 1}");
        assert!(Adaskip { speedup: Some(3.0) }.validate(4).is_err());
        assert!(Adaskip { speedup: Some(2.0) }.validate(4).is_ok());
    }

    proptest! {
        #[test]
        fn every_row_keeps_as_many_and_drops_the_most_similar(
            (n_layers, signal) in (2..=32usize).prop_flat_map(|n| (Just(n), prop::collection::vec(-1.0..1.0f64, 2 * n))),
            share in 0.0..1.0f64,
        ) {
            let speedup = 1.0 + share * (n_layers as f64 / 2.0 - 1.0);
            let mut strategy = Adaskip { speedup: Some(speedup) }.build(n_layers).unwrap();
            let shape = BatchShape { prompt_lens: vec![1, 1], n_layers, max_new_tokens: 4 };
            strategy.begin(&shape).unwrap();
            strategy.observe_prompt(1, &signal);
            let set = strategy.row_layers(1).unwrap();
            let kept = (2.0 * n_layers as f64 / speedup + 1e-9).floor() as usize;
            prop_assert_eq!(set.sub_layers(), kept);
            let has = |sub: usize| match sub % 2 {
                0 => set.has_attention(sub / 2),
                _ => set.has_mlp(sub / 2),
            };
            let of = |wanted: bool| (0..2 * n_layers).filter(move |&sub| has(sub) == wanted).map(|sub| signal[sub]);
            let most_kept = of(true).fold(f64::NEG_INFINITY, f64::max);
            prop_assert!(of(false).all(|dropped| dropped >= most_kept));
            prop_assert!(set.is_subset(&strategy.plan(1).layers));
            prop_assert_eq!(strategy.row_layers(0).unwrap(), LayerSet::full(n_layers));
        }
    }
}
