//! `every-other`: every second layer.

use crate::settings::{Asked, Definition, Settings};
use crate::{LayerSet, Strategy, StrategyError};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Keeps the layers of even index and the last: the pruning that LayerDrop (Fan et al. 2020, arXiv 1909.11556) recommends
/// at half depth, and the set that SWIFT (arXiv 2410.06916) begins its search with. Takes no target.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct EveryOther {}

impl Settings for EveryOther {
    fn definition(&self) -> Definition {
        Definition {
            speedup: false,
            ..Definition::fixed(
                "every-other",
                "every second layer and the last (LayerDrop, arXiv 1909.11556)",
            )
        }
    }

    fn build(&self, asked: &Asked<'_>) -> Result<Box<dyn Strategy>, StrategyError> {
        Ok(asked.run(layers(asked.n_layers)))
    }
}

fn layers(n_layers: usize) -> LayerSet {
    LayerSet::from_layers((0..n_layers).step_by(2).chain([n_layers - 1]))
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
