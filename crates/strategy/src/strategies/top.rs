//! `top`: the topmost layers are skipped.

use crate::budget::required_layers;
use crate::registry::Settings;
use crate::strategy::FixedLayers;
use crate::{LayerSet, Prefill, Strategy, StrategyError};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

const NAME: &str = "top";

/// Keeps the lowest K = floor(L / speedup) layers, `0..K`, and skips the block above them, the last layer included:
/// a static early exit at a depth that the target fixes, as the "early exit" baseline of AdaSkip drops the last layers in
/// decoding. (The simple baseline of Gromov et al., arXiv 2403.17887, keeps the last layer; this one does not.)
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct Top {
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

fn layers(_n_layers: usize, kept: usize) -> LayerSet {
    LayerSet::full(kept)
}

impl Settings for Top {
    fn name(&self) -> &'static str {
        NAME
    }

    fn about(&self) -> &'static str {
        "the lowest layers alone: a static early exit"
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
    fn the_block_at_the_top_is_skipped() {
        assert_eq!(layers(12, 5).to_vec(), [0, 1, 2, 3, 4]);
        assert_eq!(layers(12, 12), LayerSet::full(12));
    }
}
