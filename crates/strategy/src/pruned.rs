//! What the strategies have in common that cut layers out in an order found by scores on calibration text.

use crate::budget::{MIN_KEPT, fastest, kept_layers, required_layers};
use crate::preset::{self, Preset};
use crate::registry::Settings;
use crate::strategy::FixedLayers;
use crate::{LayerSet, Prefill, Scoring, Strategy, StrategyError};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The variant whose order is found by scoring the model at hand.
pub(crate) const MEASURED: &str = "measured";

/// Settings of a strategy that cuts layers out by their importance.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct Pruned {
    /// The target speedup: floor(L / speedup) layers are kept.
    #[serde(skip_serializing_if = "Option::is_none")]
    speedup: Option<f64>,
    /// A published order instead of one measured on calibration text; the variants of the short form.
    #[serde(skip_serializing_if = "Option::is_none")]
    preset: Option<String>,
    /// Layers in the order in which they are dropped, the least important first, instead of one measured.
    #[serde(skip_serializing_if = "Option::is_none")]
    order: Option<Vec<usize>>,
    /// Which layers the prompt runs through; `skip` if not given, since the layers are cut out.
    #[serde(deserialize_with = "crate::strict::named")]
    prefill: Prefill,
}

impl Default for Pruned {
    fn default() -> Self {
        Self {
            speedup: None,
            preset: None,
            order: None,
            prefill: Prefill::Skip,
        }
    }
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
    fn name(&self) -> &'static str {
        T::NAME
    }

    fn about(&self) -> &'static str {
        T::ABOUT
    }

    fn variants(&self) -> Vec<&'static str> {
        match T::PRESETS {
            [] => Vec::new(),
            presets => preset::variants(MEASURED, presets),
        }
    }

    fn variant(&self) -> Option<&'static str> {
        let preset = self.pruned().preset.as_deref();
        let named = T::PRESETS.iter().find(|known| Some(known.name) == preset);
        match T::PRESETS {
            [] => None,
            _ => Some(named.map_or(MEASURED, |preset| preset.name)),
        }
    }

    fn set_variant(&mut self, variant: &'static str) {
        self.pruned_mut().preset = (variant != MEASURED).then(|| variant.to_owned());
    }

    fn speedup(&self) -> Option<f64> {
        self.pruned().speedup
    }

    fn speedup_mut(&mut self) -> Option<&mut Option<f64>> {
        Some(&mut self.pruned_mut().speedup)
    }

    fn order_mut(&mut self) -> Option<&mut Option<Vec<usize>>> {
        Some(&mut self.pruned_mut().order)
    }

    fn scoring(&self, n_layers: usize) -> Option<Scoring> {
        let pruned = self.pruned();
        if pruned.order.is_some() || pruned.preset.is_some() {
            return None;
        }
        let kept = kept_layers(n_layers, pruned.speedup?).ok()?;
        (kept < n_layers).then(|| T::scoring(n_layers - kept))
    }

    fn validate(&self, n_layers: usize) -> Result<(), StrategyError> {
        let kept = required_layers(T::NAME, n_layers, self.pruned().speedup)?;
        match order::<T>(self.pruned(), n_layers)? {
            Some(order) => first_of(T::NAME, order, n_layers, n_layers - kept, 1).map(drop),
            None => Ok(()),
        }
    }

    fn build(&self, n_layers: usize) -> Result<Box<dyn Strategy>, StrategyError> {
        self.validate(n_layers)?;
        let kept = required_layers(T::NAME, n_layers, self.pruned().speedup)?;
        let dropped = match order::<T>(self.pruned(), n_layers)? {
            Some(order) => first_of(T::NAME, order, n_layers, n_layers - kept, 1)?,
            None if kept == n_layers => &[],
            None => return Err(StrategyError::NotScored { strategy: T::NAME }),
        };
        let layers = LayerSet::from_layers((0..n_layers).filter(|layer| !dropped.contains(layer)));
        Ok(FixedLayers::boxed(n_layers, layers, self.pruned().prefill))
    }
}

/// The order that is given, where one is.
fn order<T: Criterion>(
    pruned: &Pruned,
    n_layers: usize,
) -> Result<Option<&[usize]>, StrategyError> {
    match (&pruned.preset, &pruned.order) {
        (Some(_), Some(_)) => Err(StrategyError::Setting {
            strategy: T::NAME,
            key: "order",
            message: "there is a `preset` too; give one of them".to_owned(),
        }),
        (None, order) => Ok(order.as_deref()),
        (Some(name), None) => {
            preset::find(T::NAME, T::PRESETS, name, n_layers).map(|order| Some(*order))
        }
    }
}

/// The first `count` of `order`, which go. The target counts `parts` of each layer.
pub(crate) fn first_of<'a>(
    strategy: &'static str,
    order: &'a [usize],
    n_layers: usize,
    count: usize,
    parts: usize,
) -> Result<&'a [usize], StrategyError> {
    let setting = |message| StrategyError::Setting {
        strategy,
        key: "order",
        message,
    };
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
