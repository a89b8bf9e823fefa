//! `middle`: one block in the middle is skipped.

use crate::budget::required_layers;
use crate::registry::Settings;
use crate::strategy::FixedLayers;
use crate::{LayerSet, Prefill, Strategy, StrategyError};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

const NAME: &str = "middle";

/// Keeps K = floor(L / speedup) layers, half of them at each end, and skips the one contiguous block between; the
/// lower end has the odd layer. Both the first and the last layer always run: the contiguous counterpart of `unified`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct Middle {
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
    let above = kept / 2;
    LayerSet::from_layers((0..kept - above).chain(n_layers - above..n_layers))
}

impl Settings for Middle {
    fn name(&self) -> &'static str {
        NAME
    }

    fn about(&self) -> &'static str {
        "both ends, without the block in the middle"
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
    fn the_block_in_the_middle_is_skipped() {
        assert_eq!(layers(12, 5).to_vec(), [0, 1, 2, 10, 11]);
        assert_eq!(layers(12, 6).to_vec(), [0, 1, 2, 9, 10, 11]);
        assert_eq!(layers(12, 2).to_vec(), [0, 11]);
        assert_eq!(layers(12, 12), LayerSet::full(12));
    }
}
