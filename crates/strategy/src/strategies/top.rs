//! `top`: the topmost layers are skipped.

use crate::settings::{Asked, Definition, Settings};
use crate::{LayerSet, Strategy, StrategyError};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Keeps the lowest K = floor(L / speedup) layers, `0..K`, and skips the block above them, the last layer included:
/// a static early exit at a depth that the target fixes, as the "early exit" baseline of AdaSkip drops the last layers in
/// decoding. (The simple baseline of Gromov et al., arXiv 2403.17887, keeps the last layer; this one does not.)
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Top {}

impl Settings for Top {
    fn definition(&self) -> Definition {
        Definition::fixed("top", "the lowest layers alone: a static early exit")
    }

    fn build(&self, asked: &Asked<'_>) -> Result<Box<dyn Strategy>, StrategyError> {
        asked.fixed(layers)
    }
}

fn layers(_n_layers: usize, kept: usize) -> LayerSet {
    LayerSet::full(kept)
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
