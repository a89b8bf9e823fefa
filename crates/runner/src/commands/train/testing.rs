//! What the tests of this command share.

use skipbench_train::{ModelShape, Net};

/// A tiny network of so many layers.
pub(super) fn net(n_layers: usize) -> Net {
    let shape = ModelShape {
        vocab_size: 16,
        d_model: 8,
        n_layers,
        n_heads: 2,
        n_kv_heads: 1,
        d_ff: 12,
        rope_theta: 100.0,
        norm_eps: 1e-5,
        max_positions: 64,
        tied_head: true,
    };
    Net::new(&shape, 5).unwrap()
}
