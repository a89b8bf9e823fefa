//! What the strategies have in common that cut layers out in an order found by scores on calibration text.

use crate::budget::{MIN_KEPT, fastest, kept_layers};
use crate::preset::{self, Preset};
use crate::settings::{Asked, Common, Definition, Settings};
use crate::{LayerSet, Prefill, Scoring, Strategy, StrategyError};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The variant whose order is found by scoring the model at hand.
const MEASURED: &str = "measured";

/// What is the own of a strategy that cuts layers out by their importance.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(inline)]
pub(crate) struct Pruned {
    /// A published order instead of one measured on calibration text; the variants of the short form.
    #[serde(skip_serializing_if = "Option::is_none")]
    preset: Option<String>,
}

/// A way to score layers. Everything else about such a strategy follows.
pub(crate) trait Criterion {
    const NAME: &'static str;
    const ABOUT: &'static str;
    /// Published orders.
    const PRESETS: &'static [Preset<&'static [usize]>] = &[];

    fn pruned(&self) -> &Pruned;
    fn pruned_mut(&mut self) -> &mut Pruned;

    /// What is to be scored so that `drop` of `n_layers` layers can be dropped.
    fn scoring(drop: usize) -> Scoring;
}

impl<T: Criterion> Settings for T {
    fn definition(&self) -> Definition {
        Definition {
            variant_key: Some("preset"),
            order: true,
            // The layers are cut out.
            prefill: Some(Prefill::Skip),
            ..Definition::fixed(T::NAME, T::ABOUT)
        }
    }

    fn variants(&self) -> Vec<&'static str> {
        match T::PRESETS {
            [] => Vec::new(),
            presets => preset::variants(MEASURED, presets),
        }
    }

    fn variant(&self) -> Option<&'static str> {
        match T::PRESETS {
            [] => None,
            presets => Some(preset::variant(MEASURED, presets, &self.pruned().preset)),
        }
    }

    fn set_variant(&mut self, variant: &'static str, _: &mut Common) {
        self.pruned_mut().preset = (variant != MEASURED).then(|| variant.to_owned());
    }

    fn scoring(&self, asked: &Asked<'_>) -> Option<Scoring> {
        let open = asked.order.is_none() && self.pruned().preset.is_none();
        let kept = kept_layers(asked.n_layers, asked.speedup?).ok()?;
        (open && kept < asked.n_layers).then(|| T::scoring(asked.n_layers - kept))
    }

    fn build(&self, asked: &Asked<'_>) -> Result<Box<dyn Strategy>, StrategyError> {
        let count = asked.n_layers - asked.kept()?;
        let order = match (&self.pruned().preset, asked.order) {
            (Some(_), Some(_)) => {
                return Err(asked.wrong("order", "there is a `preset` too; give one of them"));
            }
            (Some(name), None) => Some(*preset::find(asked, T::PRESETS, name)?),
            (None, order) => order,
        };
        let dropped = match order {
            Some(order) => first_of(asked, order, count, 1)?,
            None if count == 0 => &[],
            None => return Err(StrategyError::NotScored { strategy: T::NAME }),
        };
        let kept = (0..asked.n_layers).filter(|layer| !dropped.contains(layer));
        Ok(asked.run(LayerSet::from_layers(kept)))
    }
}

/// The first `count` of `order`, which go. The target counts `parts` of each layer.
pub(crate) fn first_of<'a>(
    asked: &Asked<'_>,
    order: &'a [usize],
    count: usize,
    parts: usize,
) -> Result<&'a [usize], StrategyError> {
    let n_layers = asked.n_layers;
    let setting = |message| asked.wrong("order", message);
    if let Some(layer) = order.iter().find(|&&layer| layer >= n_layers) {
        return Err(setting(format!(
            "there is no layer {layer}; the {n_layers} layers are 0 to {}",
            n_layers - 1
        )));
    }
    if let Some(layer) = (1..order.len()).find(|&at| order[..at].contains(&order[at])) {
        return Err(setting(format!("layer {} is there twice", order[layer])));
    }
    order.get(..count).ok_or_else(|| {
        let all = parts * n_layers;
        setting(format!(
            "it names {} layers, and {count} must go; the largest possible speedup with it is {}",
            order.len(),
            fastest(all, (all - order.len()).max(MIN_KEPT))
        ))
    })
}

#[cfg(test)]
mod tests {
    use crate::{StrategySpec, kept_layers};
    use proptest::prelude::*;

    proptest! {
        /// What a faster target keeps, a slower one keeps too; and what is dropped is the beginning of the order.
        #[test]
        fn sets_are_nested_along_an_order(
            order in (3..=48usize).prop_flat_map(|n| Just((0..n).collect::<Vec<_>>()).prop_shuffle()),
            slow in 1.0..4.0f64,
            more in 1.0..3.0f64,
            name in proptest::sample::select(vec!["block-influence", "angular", "sleb", "perplexity"]),
        ) {
            let n_layers = order.len();
            let fast = slow * more;
            prop_assume!(kept_layers(n_layers, fast).is_ok());
            let spec: StrategySpec = name.parse().unwrap();
            let set = |speedup| {
                let spec = spec.with_target(speedup).with_order(order.clone());
                spec.build(n_layers).unwrap().reachable()
            };
            let (slow_set, fast_set) = (set(slow), set(fast));
            prop_assert!(fast_set.is_subset(&slow_set));
            let kept = kept_layers(n_layers, slow).unwrap();
            prop_assert_eq!(slow_set.len(), kept);
            prop_assert!(order[..n_layers - kept].iter().all(|&layer| !slow_set.contains(layer)));
        }
    }
}
