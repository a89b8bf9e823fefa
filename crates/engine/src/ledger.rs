//! The bytes and floating-point operations that decoding took, and the speedup that they allow.

use serde::{Deserialize, Serialize};
use skipbench_model::{ModelSizes, Part, Span, token_count};
use skipbench_strategy::ExitCheck;
use std::ops::{Add, AddAssign};

/// Memory traffic and arithmetic.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cost {
    /// Bytes of weights and KV cache read (and written, where a cache entry is copied).
    pub bytes: u64,
    /// Floating-point operations, a multiply-add being two; norms, activations and softmax are left out.
    pub flops: u64,
}

impl Add for Cost {
    type Output = Cost;

    fn add(self, other: Cost) -> Cost {
        Cost {
            bytes: self.bytes + other.bytes,
            flops: self.flops + other.flops,
        }
    }
}

impl AddAssign for Cost {
    fn add_assign(&mut self, other: Cost) {
        *self = *self + other;
    }
}

/// What the decode steps of one run cost by what they did, next to what the full network takes for the same tokens.
/// Decoding is bound by reading weights and cache, so the ratio of bytes bounds the speedup: the LM head, exit checks and
/// KV filling are paid by the strategy and shrink it (arXiv 2404.06954 reports 1.76x for a nominal 2x).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ledger {
    /// Weights of the layers and the products with them.
    pub layers: Cost,
    /// Keys and values read, and the products of attention.
    pub kv_read: Cost,
    /// The LM head, for tokens.
    pub head: Cost,
    /// The LM head, or what of it is read, for exit checks.
    pub checks: Cost,
    /// Keys and values made up for skipped layers.
    pub kv_fill: Cost,
    /// Of all that, what drafting took.
    pub draft: Cost,
    /// Of all that, what verifying drafts took.
    pub verify: Cost,
    /// What the full network takes.
    pub full: Cost,
    /// (token, layer) pairs that ran, a sub-layer alone being one too.
    pub row_layers: u64,
    /// Of these, the ones that rows ran which were done already, waiting for deeper ones.
    pub wasted_row_layers: u64,
    #[serde(skip)]
    phase: Phase,
}

/// What the costs at hand are for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum Phase {
    #[default]
    Decode,
    Draft,
    Verify,
}

impl Ledger {
    /// Everything that the strategy took.
    pub fn total(&self) -> Cost {
        self.layers + self.kv_read + self.head + self.checks + self.kv_fill
    }

    /// The largest speedup that the bytes allow; `None` where nothing was decoded.
    pub fn bound_speedup(&self) -> Option<f64> {
        let bytes = self.total().bytes;
        (bytes > 0).then(|| self.full.bytes as f64 / bytes as f64)
    }

    /// Adds another run's costs.
    pub fn add(&mut self, other: &Ledger) {
        self.layers += other.layers;
        self.kv_read += other.kv_read;
        self.head += other.head;
        self.checks += other.checks;
        self.kv_fill += other.kv_fill;
        self.draft += other.draft;
        self.verify += other.verify;
        self.full += other.full;
        self.row_layers += other.row_layers;
        self.wasted_row_layers += other.wasted_row_layers;
    }

    /// The part of it that falls to `count` of `all` equal answers.
    #[must_use]
    pub fn share(&self, count: u64, all: u64) -> Ledger {
        let part =
            |value: u64| (u128::from(value) * u128::from(count) / u128::from(all.max(1))) as u64;
        let cost = |cost: Cost| Cost {
            bytes: part(cost.bytes),
            flops: part(cost.flops),
        };
        Ledger {
            layers: cost(self.layers),
            kv_read: cost(self.kv_read),
            head: cost(self.head),
            checks: cost(self.checks),
            kv_fill: cost(self.kv_fill),
            draft: cost(self.draft),
            verify: cost(self.verify),
            full: cost(self.full),
            row_layers: part(self.row_layers),
            wasted_row_layers: part(self.wasted_row_layers),
            phase: self.phase,
        }
    }

    pub(crate) fn enter(&mut self, phase: Phase) {
        self.phase = phase;
    }

    /// A step begins: what the full network would take for it.
    pub(crate) fn step(&mut self, sizes: &ModelSizes, spans: &[Span]) {
        for index in 0..sizes.n_layers {
            let layer = part(sizes, index, Part::Whole, token_count(spans));
            self.full += layer + attention(sizes, index, spans);
        }
        self.full += head(sizes, token_count(spans));
    }

    /// A part of layer `index` ran for `spans`; its weights are read once for all of them.
    pub(crate) fn layer(&mut self, sizes: &ModelSizes, index: usize, part: Part, spans: &[Span]) {
        let cost = self::part(sizes, index, part, token_count(spans));
        self.layers += cost;
        self.attribute(cost);
        if part.has_attention() {
            let cost = attention(sizes, index, spans);
            self.kv_read += cost;
            self.attribute(cost);
        }
        self.row_layers += token_count(spans) as u64;
    }

    /// The LM head was read for the tokens of so many rows.
    pub(crate) fn head(&mut self, sizes: &ModelSizes, rows: usize) {
        let cost = head(sizes, rows);
        self.head += cost;
        self.attribute(cost);
    }

    /// The LM head was read to decide whether so many rows exit.
    pub(crate) fn check(&mut self, sizes: &ModelSizes, rows: usize) {
        let cost = head(sizes, rows);
        self.checks += cost;
        self.attribute(cost);
    }

    /// The LM head, or a coarse copy of it, was read to draw a list of tokens for each of so many rows, and the head's rows of
    /// these tokens were taken.
    pub(crate) fn draw_lists(&mut self, sizes: &ModelSizes, rows: usize) {
        let tokens = (rows * ExitCheck::CANDIDATES) as u64;
        let cost = Cost {
            bytes: sizes.screen_bytes + tokens * sizes.head_bytes / sizes.vocab_size as u64,
            flops: 2 * sizes.head_weights * rows as u64,
        };
        self.checks += cost;
        self.attribute(cost);
    }

    /// A list of tokens, in the element type of the state, was read to decide whether a row exits, for so many rows.
    pub(crate) fn check_lists(&mut self, sizes: &ModelSizes, rows: usize) {
        let weights = (rows * ExitCheck::CANDIDATES * sizes.d_model) as u64;
        let cost = Cost {
            bytes: weights * sizes.state_bytes,
            flops: 2 * weights,
        };
        self.checks += cost;
        self.attribute(cost);
    }

    /// Keys and values were projected for so many rows that skip layer `index`. Where other rows run the layer, its weights are
    /// read anyway.
    pub(crate) fn project(
        &mut self,
        sizes: &ModelSizes,
        index: usize,
        rows: usize,
        weights_read: bool,
    ) {
        let bytes = match weights_read {
            true => 0,
            false => sizes.kv_projection_bytes(index),
        };
        let cost = weights(bytes, sizes.kv_projection_weights, rows);
        self.kv_fill += cost;
        self.attribute(cost);
    }

    /// Keys and values of so many positions were copied: read and written.
    pub(crate) fn copy(&mut self, sizes: &ModelSizes, positions: usize) {
        let cost = Cost {
            bytes: 2 * positions as u64 * sizes.kv_position_bytes(),
            flops: 0,
        };
        self.kv_fill += cost;
        self.attribute(cost);
    }

    pub(crate) fn waste(&mut self, row_layers: u64) {
        self.wasted_row_layers += row_layers;
    }

    fn attribute(&mut self, cost: Cost) {
        match self.phase {
            Phase::Decode => {}
            Phase::Draft => self.draft += cost,
            Phase::Verify => self.verify += cost,
        }
    }
}

/// `count` weights of so many bytes in all are read once and multiplied with so many tokens.
fn weights(bytes: u64, count: u64, tokens: usize) -> Cost {
    Cost {
        bytes,
        flops: 2 * count * tokens as u64,
    }
}

/// The weights of a part of layer `index`.
fn part(sizes: &ModelSizes, index: usize, part: Part, tokens: usize) -> Cost {
    let bytes = sizes.part_bytes(index, part);
    weights(bytes, sizes.part_weights(part), tokens)
}

/// The LM head.
fn head(sizes: &ModelSizes, tokens: usize) -> Cost {
    weights(sizes.head_bytes, sizes.head_weights, tokens)
}

/// Each row's cache is read once per span; each of its tokens attends to all positions up to itself that its layer's window
/// shows.
fn attention(sizes: &ModelSizes, layer: usize, spans: &[Span]) -> Cost {
    let (mut positions, mut products) = (0, 0);
    for span in spans {
        let end = span.start + span.len;
        positions += end - sizes.first_seen(layer, span.start);
        let seen = (span.start..end).map(|at| at + 1 - sizes.first_seen(layer, at));
        products += seen.sum::<usize>();
    }
    Cost {
        bytes: positions as u64 * sizes.kv_position_bytes(),
        flops: 4 * (products * sizes.q_width) as u64,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use skipbench_model::{CausalLm, MockModel};

    /// By hand: tokens at 5 and 6 see 3 to 5 and 4 to 6 of a window of three, and everything elsewhere.
    #[test]
    fn a_window_bounds_what_is_read() {
        let mut sizes = MockModel::new(2, 10).sizes().clone();
        sizes.windows = vec![Some(3), None];
        let span = [Span {
            row: 0,
            start: 5,
            len: 2,
        }];
        let (slides, sees_all) = (attention(&sizes, 0, &span), attention(&sizes, 1, &span));
        assert_eq!(slides.bytes, 4 * sizes.kv_position_bytes());
        assert_eq!(sees_all.bytes, 7 * sizes.kv_position_bytes());
        assert_eq!((slides.flops, sees_all.flops), (4 * 6, 4 * 13));
        let mut ledger = Ledger::default();
        ledger.step(&sizes, &span);
        ledger.layer(&sizes, 0, Part::Attention, &span);
        assert_eq!(ledger.kv_read, slides);
        let layers = part(&sizes, 0, Part::Whole, 2) + part(&sizes, 1, Part::Whole, 2);
        assert_eq!(ledger.full, layers + head(&sizes, 2) + slides + sees_all);
    }

    /// A layer of the mock has 25 weights, which may lie in memory in whatever they are kept in; five positions hold a key and a
    /// value of 32 bits each.
    #[test]
    fn each_layer_has_bytes_of_its_own_beside_the_cache() {
        let mut sizes = MockModel::new(2, 10).sizes().clone();
        sizes.layer_bytes[1].attention = 20;
        sizes.layer_bytes[1].kv_projection = 3;
        sizes.layer_bytes[1].mlp = 16;
        sizes.head_bytes = 13;
        let mut ledger = Ledger::default();
        ledger.layer(&sizes, 1, Part::Whole, &[Span::token(0, 4)]);
        assert_eq!(ledger.layers, weights(20 + 16, 25, 1));
        assert_eq!(ledger.kv_read.bytes, 5 * 2 * 4);
        ledger.layer(&sizes, 0, Part::Mlp, &[Span::token(0, 4)]);
        assert_eq!(ledger.layers.bytes, 20 + 16 + 60);
        ledger.project(&sizes, 1, 2, false);
        assert_eq!(ledger.kv_fill, weights(3, 2, 2));
        ledger.project(&sizes, 0, 2, true);
        assert_eq!(ledger.kv_fill, weights(3, 2, 4));
        ledger.check(&sizes, 1);
        assert_eq!(ledger.checks.bytes, 13);
    }
}
