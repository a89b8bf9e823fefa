//! `every-other`: every second layer.

use crate::budget::{MIN_KEPT, check_depth};
use crate::registry::Settings;
use crate::strategy::FixedLayers;
use crate::{LayerSet, Prefill, Strategy, StrategyError};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

const NAME: &str = "every-other";

/// Keeps the layers of even index and the last: the pruning that LayerDrop (Fan et al. 2020, arXiv 1909.11556) recommends
/// at half depth, and the set that SWIFT (arXiv 2410.06916) begins its search with. Takes no target.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct EveryOther {
    /// Which layers the prompt runs through.
    #[serde(
        default,
        deserialize_with = "crate::strict::named",
        skip_serializing_if = "Prefill::is_full"
    )]
    prefill: Prefill,
}

fn layers(n_layers: usize) -> LayerSet {
    LayerSet::from_layers((0..n_layers).step_by(2).chain([n_layers - 1]))
}

impl Settings for EveryOther {
    fn name(&self) -> &'static str {
        NAME
    }

    fn about(&self) -> &'static str {
        "every second layer and the last (LayerDrop, arXiv 1909.11556)"
    }

    fn validate(&self, n_layers: usize) -> Result<(), StrategyError> {
        check_depth(NAME, n_layers, MIN_KEPT)
    }

    fn build(&self, n_layers: usize) -> Result<Box<dyn Strategy>, StrategyError> {
        self.validate(n_layers)?;
        Ok(FixedLayers::boxed(n_layers, layers(n_layers), self.prefill))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn even_layers_and_the_last() {
        assert_eq!(layers(6).to_vec(), [0, 2, 4, 5]);
        assert_eq!(layers(7).to_vec(), [0, 2, 4, 6]);
        assert_eq!(layers(2).to_vec(), [0, 1]);
    }
}
