//! How far drafts are the full network's own computation, so that a verification need not repeat it.

use crate::error::Result;
use crate::step::Row;
use candle_core::Tensor;

/// Of each row of the cache, while drafts are made; empty otherwise.
#[derive(Default)]
pub(crate) struct Exact(Vec<ExactRow>);

struct ExactRow {
    /// Layers, from the lowest up, that ran for every token drafted so far: their keys and values are exact, and so is the
    /// state behind them.
    layers: usize,
    states: Vec<(usize, Tensor)>,
}

impl Exact {
    /// Before anything is drafted.
    pub(crate) fn all(rows: usize, n_layers: usize) -> Self {
        let row = |_| ExactRow {
            layers: n_layers,
            states: Vec::new(),
        };
        Self((0..rows).map(row).collect())
    }

    /// Of a draft by `rows`, no more than the lowest `layers` are what the full network computes.
    pub(crate) fn limit(&mut self, rows: &[Row], layers: usize) {
        for row in rows {
            if let Some(exact) = self.0.get_mut(row.span.row) {
                exact.layers = exact.layers.min(layers);
            }
        }
    }

    /// Keeps the state in front of `layer`, `hidden`: `[rows.len(), d_model]`, of rows whose draft is exact up to there.
    pub(crate) fn keep(&mut self, layer: usize, hidden: &Tensor, rows: &[Row]) -> Result<()> {
        for (index, row) in rows.iter().enumerate() {
            if let Some(exact) = self.0.get_mut(row.span.row)
                && exact.layers == layer
            {
                exact.states.push((layer, hidden.narrow(0, index, 1)?));
            }
        }
        Ok(())
    }

    /// Of each token of `row` that was fed: the layers that need not run again, no more than for the token before it, and
    /// the state behind them, `[1, d_model]`.
    pub(crate) fn take(&mut self, row: usize) -> Vec<(usize, Tensor)> {
        let exact = self.0.get_mut(row);
        exact.map_or_else(Vec::new, |exact| std::mem::take(&mut exact.states))
    }
}
