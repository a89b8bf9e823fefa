//! `bottom`: the lowest layers are skipped.

use crate::budget::required_layers;
use crate::registry::Settings;
use crate::strategy::FixedLayers;
use crate::{LayerSet, Prefill, Strategy, StrategyError};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

const NAME: &str = "bottom";

/// Keeps the topmost K = floor(L / speedup) layers, `L-K..L`, and skips the block below them, layer 0 included:
/// SkipDecode (arXiv 2307.02628) without warm-up layers and with one depth for every position.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct Bottom {
    /// The target speedup.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    speedup: Option<f64>,
    /// Which layers the prompt runs through.
    #[serde(
        default,
        deserialize_with = "crate::strict::named",
        skip_serializing_if = "Prefill::is_full"
    )]
    prefill: Prefill,
}

fn layers(n_layers: usize, kept: usize) -> LayerSet {
    LayerSet::from_layers(n_layers - kept..n_layers)
}

impl Settings for Bottom {
    fn name(&self) -> &'static str {
        NAME
    }

    fn about(&self) -> &'static str {
        "the topmost layers alone"
    }

    fn speedup(&self) -> Option<f64> {
        self.speedup
    }

    fn speedup_mut(&mut self) -> Option<&mut Option<f64>> {
        Some(&mut self.speedup)
    }

    fn validate(&self, n_layers: usize) -> Result<(), StrategyError> {
        required_layers(NAME, n_layers, self.speedup).map(drop)
    }

    fn build(&self, n_layers: usize) -> Result<Box<dyn Strategy>, StrategyError> {
        let kept = required_layers(NAME, n_layers, self.speedup)?;
        Ok(FixedLayers::boxed(
            n_layers,
            layers(n_layers, kept),
            self.prefill,
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_block_at_the_bottom_is_skipped() {
        assert_eq!(layers(12, 5).to_vec(), [7, 8, 9, 10, 11]);
        assert_eq!(layers(12, 12), LayerSet::full(12));
    }
}
