//! What the unit tests of strategies share.

use crate::{BatchShape, Strategy, StrategySpec};

/// A strategy at the beginning of a batch of eight rows.
pub(crate) fn begun(spec: &str, n_layers: usize, max_new_tokens: usize) -> Box<dyn Strategy> {
    let spec: StrategySpec = spec.parse().unwrap();
    let mut strategy = spec.build(n_layers).unwrap();
    let shape = BatchShape {
        prompt_lens: vec![3; 8],
        n_layers,
        max_new_tokens,
    };
    strategy.begin(&shape).unwrap();
    strategy
}
