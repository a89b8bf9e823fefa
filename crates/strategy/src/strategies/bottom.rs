//! `bottom`: the lowest layers are skipped.

use crate::settings::{Asked, Definition, Settings};
use crate::{LayerSet, Strategy, StrategyError};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Keeps the topmost K = floor(L / speedup) layers, `L-K..L`, and skips the block below them, layer 0 included:
/// SkipDecode (arXiv 2307.02628) without warm-up layers and with one depth for every position.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Bottom {}

impl Settings for Bottom {
    fn definition(&self) -> Definition {
        Definition::fixed("bottom", "the topmost layers alone")
    }

    fn build(&self, asked: &Asked<'_>) -> Result<Box<dyn Strategy>, StrategyError> {
        asked.fixed(layers)
    }
}

fn layers(n_layers: usize, kept: usize) -> LayerSet {
    LayerSet::from_layers(n_layers - kept..n_layers)
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
