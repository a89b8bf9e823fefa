//! Sizes of a model.

use crate::causal_lm::Part;

/// What the ledger and the cache need to know of a model.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelSizes {
    /// Decoder layers.
    pub n_layers: usize,
    /// Width of the hidden state.
    pub d_model: usize,
    /// Size of the vocabulary.
    pub vocab_size: usize,
    /// Key-value heads.
    pub n_kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Largest number of positions, where there is one.
    pub max_positions: Option<usize>,
    /// Tokens up to which a row must stay that has not begun above ([`ModelConfig::switch_length`](crate::ModelConfig)).
    pub switch_length: Option<usize>,
    /// Positions that a token sees in each layer, its own among them; layers that are not in it see all.
    pub windows: Vec<Option<usize>>,
    /// Whether attention and MLP of a layer read the same state: the whole is `x + attention(x) + mlp(x)`.
    pub parallel: bool,
    /// Query heads times the width of a head.
    pub q_width: usize,
    /// Weights of one layer's attention.
    pub attention_weights: u64,
    /// Of these, the weights of the key and value projections.
    pub kv_projection_weights: u64,
    /// Weights of one layer's MLP.
    pub mlp_weights: u64,
    /// Weights of the LM head.
    pub head_weights: u64,
    /// Bytes read to draw a list of the likeliest tokens ([`CausalLm::shortlists`](crate::CausalLm::shortlists)).
    pub screen_bytes: u64,
    /// Bytes of the weights of each layer, as they are kept in memory.
    pub layer_bytes: Vec<LayerBytes>,
    /// Bytes of the LM head.
    pub head_bytes: u64,
    /// Bytes of an element of the state between layers.
    pub state_bytes: u64,
    /// Bytes of an element of the KV cache.
    pub kv_bytes: u64,
}

/// Bytes of the weights of one layer.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LayerBytes {
    /// Of attention.
    pub attention: u64,
    /// Of these, the key and value projections.
    pub kv_projection: u64,
    /// Of the MLP.
    pub mlp: u64,
}

impl ModelSizes {
    /// Weights of a part of one layer.
    pub fn part_weights(&self, part: Part) -> u64 {
        match part {
            Part::Whole => self.attention_weights + self.mlp_weights,
            Part::Attention => self.attention_weights,
            Part::Mlp => self.mlp_weights,
        }
    }

    /// Bytes of the weights of a part of layer `index`.
    pub fn part_bytes(&self, index: usize, part: Part) -> u64 {
        let layer = self.layer_bytes.get(index).copied().unwrap_or_default();
        match part {
            Part::Whole => layer.attention + layer.mlp,
            Part::Attention => layer.attention,
            Part::Mlp => layer.mlp,
        }
    }

    /// Bytes of the key and value projections of layer `index`.
    pub fn kv_projection_bytes(&self, index: usize) -> u64 {
        self.layer_bytes
            .get(index)
            .map_or(0, |layer| layer.kv_projection)
    }

    /// The first position that a token at `position` sees in `layer`.
    pub fn first_seen(&self, layer: usize, position: usize) -> usize {
        match self.windows.get(layer) {
            Some(Some(window)) => (position + 1).saturating_sub(*window),
            _ => 0,
        }
    }

    /// Bytes of one position's keys and values in one layer.
    pub fn kv_position_bytes(&self) -> u64 {
        (2 * self.n_kv_heads * self.head_dim) as u64 * self.kv_bytes
    }
}
