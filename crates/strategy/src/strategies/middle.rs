//! `middle`: one block in the middle is skipped.

use crate::settings::{Asked, Definition, Settings};
use crate::{LayerSet, Strategy, StrategyError};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Keeps K = floor(L / speedup) layers, half of them at each end, and skips the one contiguous block between; the
/// lower end has the odd layer. Both the first and the last layer always run: the contiguous counterpart of `unified`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Middle {}

impl Settings for Middle {
    fn definition(&self) -> Definition {
        Definition::fixed("middle", "both ends, without the block in the middle")
    }

    fn build(&self, asked: &Asked<'_>) -> Result<Box<dyn Strategy>, StrategyError> {
        asked.fixed(layers)
    }
}

fn layers(n_layers: usize, kept: usize) -> LayerSet {
    let above = kept / 2;
    LayerSet::from_layers((0..kept - above).chain(n_layers - above..n_layers))
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
