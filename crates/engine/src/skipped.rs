//! What becomes of the layers that a row skips: filled in the cache, deferred to a later step, or run for nothing while
//! others go on.

use crate::error::Result;
use crate::laps::Lap;
use crate::run::{Pending, Run};
use crate::step::Row;
use crate::tensors::select;
use candle_core::Tensor;
use skipbench_model::{Part, Provenance, Span, ops};
use skipbench_strategy::{BatchMode, KvFill, LayerSet};

/// A row that is done and goes on with the others, under [`BatchMode::Sync`].
pub(crate) struct Ghost {
    pub(crate) span: Span,
    pub(crate) set: LayerSet,
    /// `[1, d_model]`: the exit state, or where `deferred` brings it.
    pub(crate) state: Tensor,
    exit: usize,
    /// The last layer that it ran.
    last: usize,
    /// Layers run so that they need not be made up for later, under [`KvFill::Deferred`].
    pub(crate) ahead: usize,
}

impl Run<'_> {
    /// Under a KV fill, keys and values of a layer that rows pass by on their way to higher ones. `hidden`: `[rows.len(), d_model]`.
    pub(crate) fn fill_passed(
        &mut self,
        layer: usize,
        hidden: &Tensor,
        rows: &[Row],
    ) -> Result<()> {
        if matches!(self.needs.kv_fill, KvFill::None | KvFill::Deferred)
            || !self.cache.has_layer(layer)
        {
            return Ok(());
        }
        let passing: Vec<usize> = (0..rows.len())
            .filter(|&index| !rows[index].set.has_attention(layer))
            .collect();
        if passing.is_empty() {
            return Ok(());
        }
        let spans: Vec<Span> = passing.iter().map(|&index| rows[index].span).collect();
        let state = select(hidden, &passing)?;
        self.fill(layer, &state, &spans, passing.len() < rows.len())
    }

    /// Rows leave after `layer` in `state`: `[leaving.len(), d_model]`.
    pub(crate) fn leave(
        &mut self,
        layer: usize,
        state: &Tensor,
        leaving: &[Row],
        ghosts: &mut Vec<Ghost>,
        others_stay: bool,
    ) -> Result<()> {
        if self.needs.batch_mode == BatchMode::Sync && others_stay {
            for (index, row) in leaving.iter().enumerate() {
                ghosts.push(Ghost {
                    span: row.span,
                    set: row.set,
                    state: state.narrow(0, index, 1)?,
                    exit: layer,
                    last: layer,
                    ahead: 0,
                });
            }
            return Ok(());
        }
        let spans: Vec<Span> = leaving.iter().map(|row| row.span).collect();
        self.fill_above(layer, layer, state, &spans, others_stay)
    }

    /// A part of a layer ran for a row that was done, which came out in `state` and brought `made_up` earlier positions along.
    pub(crate) fn ran_along(
        &mut self,
        layer: usize,
        part: Part,
        ghost: &mut Ghost,
        state: Tensor,
        made_up: usize,
    ) {
        ghost.last = layer;
        if self.needs.kv_fill == KvFill::Deferred {
            ghost.state = state;
            ghost.ahead += made_up + 1;
            self.ahead[ghost.span.row][layer] += made_up as u64 + 1;
            return;
        }
        self.out.ledger.waste(1);
        if part.has_attention() {
            // Its result is thrown away, so no hole that it read did any harm.
            self.cache.discount_reads(layer, ghost.span);
        }
    }

    /// A row itself runs a layer, and reads all that ran ahead there.
    pub(crate) fn needed(&mut self, layer: usize, row: usize) {
        if let Some(ahead) = self.ahead.get_mut(row) {
            ahead[layer] = 0;
        }
    }

    /// The layers that rows skip once they have left for good.
    pub(crate) fn settle(&mut self, ghosts: Vec<Ghost>) -> Result<()> {
        for ghost in ghosts {
            let Span { row, start, .. } = ghost.span;
            for layer in ghost.exit + 1..=ghost.last {
                match self.needs.kv_fill {
                    // The state stood still, so what the layers wrote is its projection.
                    KvFill::Propagate if ghost.set.has_attention(layer) => {
                        self.cache.mark(layer, row, start, Provenance::Propagated);
                    }
                    KvFill::Propagate if self.reachable.has_attention(layer) => {
                        self.fill(layer, &ghost.state, &[ghost.span], false)?;
                    }
                    KvFill::Propagate => {}
                    KvFill::None => self.cache.truncate_layer(layer, row, start),
                    KvFill::Copy | KvFill::Mask | KvFill::Deferred => {}
                }
            }
            self.fill_above(ghost.exit, ghost.last, &ghost.state, &[ghost.span], false)?;
        }
        Ok(())
    }

    /// Fills the layers above an exit. `ran` is the last layer that ran all the same.
    fn fill_above(
        &mut self,
        exit: usize,
        ran: usize,
        state: &Tensor,
        spans: &[Span],
        others_stay: bool,
    ) -> Result<()> {
        match self.needs.kv_fill {
            KvFill::Deferred => {
                for (index, span) in spans.iter().enumerate() {
                    if ran + 1 < self.model.sizes().n_layers {
                        self.pending[span.row].push(Pending {
                            next: ran + 1,
                            state: state.narrow(0, index, 1)?,
                        });
                    }
                }
            }
            fill => {
                let from = match fill {
                    KvFill::Propagate => ran,
                    _ => exit,
                };
                // A layer that this step does not plan may be one of the next.
                let reachable = self.reachable;
                for layer in reachable.iter().filter(|&layer| layer > from) {
                    if reachable.has_attention(layer) {
                        self.fill(layer, state, spans, others_stay)?;
                    }
                }
            }
        }
        Ok(())
    }

    /// Keys and values of a layer that rows skip. `weights_read`: other rows run the layer.
    pub(crate) fn fill(
        &mut self,
        layer: usize,
        state: &Tensor,
        spans: &[Span],
        weights_read: bool,
    ) -> Result<()> {
        let sizes = self.model.sizes();
        self.laps.end(Lap::Rows);
        match self.needs.kv_fill {
            // Under `none` a later read of the hole is refused by the cache.
            KvFill::None | KvFill::Deferred => {}
            KvFill::Propagate => {
                self.model.fill_kv(layer, state, &mut self.cache, spans)?;
                let ledger = &mut self.out.ledger;
                ledger.project(sizes, layer, spans.len(), weights_read);
            }
            KvFill::Copy => {
                self.cache.copy_below(layer, spans)?;
                self.out.ledger.copy(sizes, spans.len());
            }
            KvFill::Mask => self.cache.mask(layer, spans)?,
        }
        self.laps.end(Lap::KvFill);
        Ok(())
    }

    /// One part of a layer over single tokens, together with the earlier positions of their rows that wait for it;
    /// gives the tokens' states and how many positions each brought along.
    pub(crate) fn advance(
        &mut self,
        layer: usize,
        part: Part,
        input: &Tensor,
        spans: &[Span],
    ) -> Result<(Tensor, Vec<usize>)> {
        let sizes = self.model.sizes();
        let waiting: Vec<usize> = spans
            .iter()
            .map(|span| {
                self.pending[span.row]
                    .iter()
                    .filter(|p| p.next == layer)
                    .count()
            })
            .collect();
        if waiting.iter().all(|&count| count == 0) {
            self.laps.end(Lap::Rows);
            let output = self
                .model
                .layer_part(layer, part, input, &mut self.cache, spans)?;
            self.laps.end(Lap::Layers);
            self.out.ledger.layer(sizes, layer, part, spans);
            return Ok((output, waiting));
        }
        let mut inputs = Vec::new();
        let mut joint = Vec::new();
        for (index, (span, &count)) in spans.iter().zip(&waiting).enumerate() {
            let states = self.pending[span.row].iter().filter(|p| p.next == layer);
            inputs.extend(states.map(|pending| pending.state.clone()));
            inputs.push(input.narrow(0, index, 1)?);
            joint.push(Span {
                row: span.row,
                start: span.start - count,
                len: count + 1,
            });
        }
        let states = ops::cat(&inputs, 0)?;
        self.laps.end(Lap::Rows);
        let output = self
            .model
            .layer_part(layer, part, &states, &mut self.cache, &joint)?;
        self.laps.end(Lap::Layers);
        self.out.ledger.layer(sizes, layer, part, &joint);
        let mut tokens = Vec::with_capacity(spans.len());
        let mut at = 0;
        for (span, &count) in spans.iter().zip(&waiting) {
            let pending = &mut self.pending[span.row];
            let waiting = pending.iter_mut().filter(|pending| pending.next == layer);
            for (behind, pending) in waiting.enumerate() {
                pending.state = output.narrow(0, at + behind, 1)?;
                pending.next += 1;
                let position = span.start - count + behind;
                self.cache
                    .mark(layer, span.row, position, Provenance::Deferred);
            }
            pending.retain(|pending| pending.next < sizes.n_layers);
            at += count + 1;
            tokens.push(at - 1);
        }
        Ok((select(&output, &tokens)?, waiting))
    }
}
