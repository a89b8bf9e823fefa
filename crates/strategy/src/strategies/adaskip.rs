//! `adaskip`: the sub-layers of an answer follow from what they did to its prompt (AdaSkip, He et al. 2025,
//! arXiv 2501.02336).

use crate::budget::MIN_KEPT;
use crate::settings::{Asked, Definition, Settings};
use crate::strategy::ByPrompt;
use crate::{LayerSet, PromptSignal, Strategy, StrategyError};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The prefill gives the cosine of each sub-layer's output to its input over the prompt; those that change it least are
/// skipped in decoding, floor(2 L / speedup) of the 2 L staying. Each row of a batch has its own.
///
/// Of AdaSkip this is the choice of sub-layers, made for each prompt. The released code takes the mean over its first
/// requests, scales the state where it skips, and skips more MLPs while it decodes; none of that is done here.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Adaskip {}

impl Settings for Adaskip {
    fn definition(&self) -> Definition {
        Definition {
            speedup: true,
            ..Definition::new(
                "adaskip",
                "the sub-layers that change a prompt least are skipped in its answer (AdaSkip, arXiv 2501.02336)",
            )
        }
    }

    fn build(&self, asked: &Asked<'_>) -> Result<Box<dyn Strategy>, StrategyError> {
        let (n_layers, kept) = (asked.n_layers, asked.kept_sub_layers()?);
        if kept < 2 * MIN_KEPT {
            return Err(StrategyError::TooFast {
                speedup: asked.target()?,
                kept: kept / 2,
                n_layers,
            });
        }
        Ok(Box::new(ByPrompt {
            n_layers,
            signal: PromptSignal::Similarity,
            choose: move |signal: &[f64]| Some(without_similar(signal, n_layers, kept)),
            before: LayerSet::full(n_layers),
            reachable: LayerSet::full(n_layers),
            rows: Vec::new(),
        }))
    }
}

/// All but the sub-layers whose output is most like their input, such that `kept` stay.
fn without_similar(similarity: &[f64], n_layers: usize, kept: usize) -> LayerSet {
    let mut order: Vec<usize> = (0..similarity.len().min(2 * n_layers)).collect();
    // The most similar first; of equals the deeper, which fewer others build on.
    order.sort_by(|&a, &b| similarity[b].total_cmp(&similarity[a]).then(b.cmp(&a)));
    let skipped = order.len().saturating_sub(kept);
    let mut layers = LayerSet::full(n_layers);
    for &sub_layer in &order[..skipped] {
        match sub_layer % 2 {
            0 => layers.remove_attention(sub_layer / 2),
            _ => layers.remove_mlp(sub_layer / 2),
        }
    }
    layers
}

#[cfg(test)]
mod tests {
    use crate::{LayerSet, StrategySpec, testing::begun};
    use proptest::prelude::{Just, Strategy as _, prop, prop_assert, prop_assert_eq, proptest};

    #[test]
    fn the_most_similar_sub_layers_go() {
        let mut strategy = begun("adaskip@1.5", 3, 2);
        strategy.observe_prompt(0, &[0.1, 0.9, 0.2, 0.3, 0.95, 0.4]);
        strategy.observe_prompt(1, &[0.5; 6]);
        let set = |row| format!("{:?}", strategy.row_layers(row).unwrap());
        assert_eq!(set(0), "{0a, 1, 2m}");
        assert_eq!(set(1), "{0, 1}");
        let spec: StrategySpec = "adaskip@2".parse().unwrap();
        assert!(spec.validate(4).is_ok() && spec.with_target(3.0).validate(4).is_err());
    }

    proptest! {
        #[test]
        fn every_row_keeps_as_many_and_drops_the_most_similar(
            (n_layers, signal) in (2..=32usize).prop_flat_map(|n| (Just(n), prop::collection::vec(-1.0..1.0f64, 2 * n))),
            share in 0.0..1.0f64,
        ) {
            let speedup = 1.0 + share * (n_layers as f64 / 2.0 - 1.0);
            let mut strategy = begun(&format!("adaskip@{speedup}"), n_layers, 4);
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
