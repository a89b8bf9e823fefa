//! What goes into a decode step and what comes out of it.

use crate::generation::TokenScore;
use crate::trace::TokenTrace;
use candle_core::Tensor;
use skipbench_model::{Shortlist, Span};
use skipbench_strategy::LayerSet;

/// A row on its way through the layers.
pub(crate) struct Row {
    pub(crate) span: Span,
    /// The layers that it runs unless it exits.
    pub(crate) set: LayerSet,
    pub(crate) ran: LayerSet,
    /// Layers run for earlier positions of the row, since this one needed them, or ahead of later ones that may.
    pub(crate) made_up: usize,
    pub(crate) confidence: Option<f64>,
    /// The tokens that checks read, where they do not read all.
    pub(crate) list: Option<Shortlist>,
}

impl Row {
    pub(crate) fn new(span: Span, set: LayerSet) -> Self {
        Self {
            span,
            set,
            ran: LayerSet::empty(),
            made_up: 0,
            confidence: None,
            list: None,
        }
    }
}

/// What the rows of a step got, by ascending row.
pub(crate) struct Step {
    pub(crate) rows: Vec<Decoded>,
    /// `[rows.len(), vocab_size]`.
    pub(crate) logits: Tensor,
}

/// How a row came to its logits.
pub(crate) struct Decoded {
    pub(crate) row: usize,
    /// Layers run for it, half a layer for each sub-layer.
    pub(crate) layers: f64,
    pub(crate) trace: TokenTrace,
}

/// A token of a row and how it came to be.
pub(crate) struct Chosen {
    pub(crate) row: usize,
    pub(crate) token: u32,
    pub(crate) score: Option<TokenScore>,
    pub(crate) layers: f64,
    pub(crate) trace: TokenTrace,
}

impl Chosen {
    pub(crate) fn new(decoded: Decoded, token: u32, score: Option<TokenScore>) -> Self {
        Self {
            row: decoded.row,
            token,
            score,
            layers: decoded.layers,
            trace: decoded.trace,
        }
    }
}
