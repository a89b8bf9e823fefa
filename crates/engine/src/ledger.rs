//! The bytes that decoding had to read, and the speedup that they allow.

use skipbench_model::{ModelSizes, Span};

/// Bytes read by the decode steps of one run, next to those that the full network reads for the same tokens.
/// Decoding is bound by reading weights and cache, so their ratio bounds the speedup: the LM head, exit checks and
/// KV filling are paid by the strategy and shrink it (arXiv 2404.06954 reports 1.76x for a nominal 2x).
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Ledger {
    /// Bytes that the strategy read.
    pub bytes: u64,
    /// Bytes that the full network would have read.
    pub full_bytes: u64,
}

impl Ledger {
    /// The largest speedup that the bytes allow; `None` where nothing was decoded.
    pub fn bound_speedup(&self) -> Option<f64> {
        (self.bytes > 0).then(|| self.full_bytes as f64 / self.bytes as f64)
    }

    /// Adds another run's bytes.
    pub fn add(&mut self, other: Ledger) {
        self.bytes += other.bytes;
        self.full_bytes += other.full_bytes;
    }

    /// A step begins: what the full network would read for it.
    pub(crate) fn step(&mut self, sizes: &ModelSizes, spans: &[Span]) {
        let layer = sizes.layer_bytes + kv_read(sizes, spans);
        self.full_bytes += sizes.n_layers as u64 * layer + sizes.head_bytes;
    }

    /// A layer ran for `spans`; its weights are read once for all of them.
    pub(crate) fn layer(&mut self, sizes: &ModelSizes, spans: &[Span]) {
        self.bytes += sizes.layer_bytes + kv_read(sizes, spans);
    }

    /// The LM head was read.
    pub(crate) fn head(&mut self, sizes: &ModelSizes) {
        self.bytes += sizes.head_bytes;
    }

    /// Keys and values were projected for rows that skip a layer.
    pub(crate) fn fill(&mut self, sizes: &ModelSizes) {
        self.bytes += sizes.kv_projection_bytes;
    }
}

fn kv_read(sizes: &ModelSizes, spans: &[Span]) -> u64 {
    let positions: usize = spans.iter().map(|span| span.start + span.len).sum();
    positions as u64 * sizes.kv_position_bytes
}
