//! One decode step: each row through its layers, exits, and what becomes of the layers that it skips.

use crate::error::{EngineError, Result};
use crate::generate::Run;
use crate::signal;
use crate::trace::TokenTrace;
use candle_core::Tensor;
use skipbench_model::{Part, Provenance, Span};
use skipbench_strategy::{BatchMode, ExitSignal, KvFill, LayerSet, StepPlan, Strategy, Verdict};

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

/// A position that a row left before its last layer, under [`KvFill::Deferred`].
#[derive(Clone)]
pub(crate) struct Pending {
    /// The layer that it runs next.
    next: usize,
    /// `[1, d_model]`.
    state: Tensor,
}

/// How far a row's drafts are the full network's own computation.
pub(crate) struct Exact {
    /// Layers, from the lowest up, that ran for every token drafted so far: their keys and values are exact, and so is the
    /// state behind them.
    layers: usize,
    /// Of each token that was fed: the layers that need not run again, no more than for the token before it, and the state
    /// behind them, `[1, d_model]`.
    pub(crate) states: Vec<(usize, Tensor)>,
}

impl Exact {
    /// Before anything is drafted.
    pub(crate) fn all(n_layers: usize) -> Self {
        Self {
            layers: n_layers,
            states: Vec::new(),
        }
    }
}

/// A row on its way through the layers.
struct Row {
    span: Span,
    set: LayerSet,
    ran: LayerSet,
    /// Layers run for earlier positions of the row, since this one needed them.
    made_up: usize,
    confidence: Option<f64>,
}

/// A row that is done and goes on for nothing, under [`BatchMode::Sync`].
struct Ghost {
    span: Span,
    set: LayerSet,
    /// `[1, d_model]`: the exit state, or where `deferred` brings it.
    state: Tensor,
    exit: usize,
    /// The last layer that it ran.
    last: usize,
}

/// Rows that have what they need: their logits, or the state `[rows, d_model]` that the LM head still has to read.
struct Done {
    rows: Vec<(Row, Option<usize>)>,
    logits: Option<Tensor>,
    state: Tensor,
}

impl Run<'_> {
    /// Logits behind each of `ids`, which stand at `spans`.
    pub(crate) fn decode(
        &mut self,
        ids: &[u32],
        spans: &[Span],
        plan: &StepPlan,
        strategy: &mut dyn Strategy,
    ) -> Result<Step> {
        self.check_reachable(&plan.layers)?;
        if let Some(agreement) = self.needs.oracle {
            return self.decode_oracle(ids, spans, plan, agreement);
        }
        let mut rows: Vec<Row> = Vec::with_capacity(spans.len());
        for &span in spans {
            let set = strategy.row_layers(span.row).unwrap_or(plan.layers);
            self.check_reachable(&set)?;
            rows.push(Row {
                span,
                set,
                ran: LayerSet::empty(),
                made_up: 0,
                confidence: None,
            });
        }
        let n_layers = self.model.sizes().n_layers;
        let mut hidden = self.model.embed(ids)?;
        let mut ghosts: Vec<Ghost> = Vec::new();
        let mut done: Vec<Done> = Vec::new();
        let last = plan.layers.iter().last();
        self.limit_exact(&rows, leading_layers(&plan.layers, n_layers));
        for layer in 0..n_layers {
            self.keep_exact(layer, &hidden, &rows)?;
            let before = hidden;
            hidden = self.run_layer(layer, &before, &mut rows, &mut ghosts)?;
            self.fill_passed(layer, &hidden, &rows)?;
            let (Some(signal), true) = (self.needs.signal, plan.checks.contains(layer)) else {
                continue;
            };
            if Some(layer) == last {
                continue;
            }
            let (exits, logits) =
                self.check(layer, signal, (&before, &hidden), &mut rows, strategy)?;
            if exits.is_empty() {
                continue;
            }
            let mut stays = Vec::new();
            let mut leaving = Vec::new();
            for (index, row) in rows.into_iter().enumerate() {
                match exits.contains(&index) {
                    true => leaving.push(row),
                    false => stays.push((index, row)),
                }
            }
            let state = select(&hidden, &exits)?;
            self.limit_exact(&leaving, layer + 1);
            self.keep_exact(layer + 1, &state, &leaving)?;
            self.leave(
                layer,
                &state,
                &leaving,
                plan,
                &mut ghosts,
                !stays.is_empty(),
            )?;
            done.push(Done {
                rows: leaving.into_iter().map(|row| (row, Some(layer))).collect(),
                logits: match &logits {
                    Some(logits) => Some(select(logits, &exits)?),
                    None => None,
                },
                state,
            });
            let kept: Vec<usize> = stays.iter().map(|(index, _)| *index).collect();
            rows = stays.into_iter().map(|(_, row)| row).collect();
            if rows.is_empty() {
                break;
            }
            hidden = select(&hidden, &kept)?;
        }
        self.settle(ghosts, plan)?;
        if !rows.is_empty() {
            self.keep_exact(n_layers, &hidden, &rows)?;
            done.push(Done {
                rows: rows.into_iter().map(|row| (row, None)).collect(),
                logits: None,
                state: hidden,
            });
        }
        self.gather(done)
    }

    /// Of a draft by `rows`, no more than the lowest `layers` are what the full network computes.
    fn limit_exact(&mut self, rows: &[Row], layers: usize) {
        for row in rows {
            if let Some(exact) = self.exact.get_mut(row.span.row) {
                exact.layers = exact.layers.min(layers);
            }
        }
    }

    /// Keeps the state in front of `layer`, `hidden`: `[rows.len(), d_model]`, of rows whose draft is exact up to there.
    fn keep_exact(&mut self, layer: usize, hidden: &Tensor, rows: &[Row]) -> Result<()> {
        for (index, row) in rows.iter().enumerate() {
            if let Some(exact) = self.exact.get_mut(row.span.row)
                && exact.layers == layer
            {
                exact.states.push((layer, hidden.narrow(0, index, 1)?));
            }
        }
        Ok(())
    }

    /// Refuses layers that have no cache because nobody said that they would run.
    fn check_reachable(&self, layers: &LayerSet) -> Result<()> {
        if layers.is_subset(&self.reachable) {
            return Ok(());
        }
        let missing = |layer: &usize| !LayerSet::from_layers([*layer]).is_subset(&self.reachable);
        let layer = layers.iter().find(missing).unwrap_or_default();
        Err(EngineError::NotReachable { layer })
    }

    /// Each row's part of a layer; rows that skip it keep their state.
    fn run_layer(
        &mut self,
        layer: usize,
        hidden: &Tensor,
        rows: &mut [Row],
        ghosts: &mut [Ghost],
    ) -> Result<Tensor> {
        let mut outputs: Vec<(Vec<usize>, Tensor)> = Vec::new();
        let mut passing: Vec<usize> = (0..rows.len()).collect();
        for part in [Part::Whole, Part::Attention, Part::Mlp] {
            let chosen: Vec<usize> = (0..rows.len())
                .filter(|&index| part_of(&rows[index].set, layer) == Some(part))
                .collect();
            if chosen.is_empty() {
                continue;
            }
            passing.retain(|index| !chosen.contains(index));
            let mut spans: Vec<Span> = chosen.iter().map(|&index| rows[index].span).collect();
            let mut input = select(hidden, &chosen)?;
            let along: Vec<usize> = (0..ghosts.len())
                .filter(|&index| part_of(&ghosts[index].set, layer) == Some(part))
                .collect();
            if !along.is_empty() {
                spans.extend(along.iter().map(|&index| ghosts[index].span));
                let states = along.iter().map(|&index| &ghosts[index].state);
                let inputs: Vec<&Tensor> = [&input].into_iter().chain(states).collect();
                input = Tensor::cat(&inputs, 0)?;
                self.out.ledger.waste(along.len());
            }
            let (mut output, made_up) = self.advance(layer, part, &input, &spans)?;
            for (&index, made_up) in chosen.iter().zip(made_up) {
                let row = &mut rows[index];
                row.made_up += made_up;
                if part.has_attention() {
                    row.ran.insert_attention(layer);
                }
                if part.has_mlp() {
                    row.ran.insert_mlp(layer);
                }
            }
            if !along.is_empty() {
                for (offset, &index) in along.iter().enumerate() {
                    let ghost = &mut ghosts[index];
                    ghost.last = layer;
                    if self.needs.kv_fill == KvFill::Deferred {
                        ghost.state = output.narrow(0, chosen.len() + offset, 1)?;
                    }
                }
                output = output.narrow(0, 0, chosen.len())?;
            }
            if chosen.len() == rows.len() {
                return Ok(output);
            }
            outputs.push((chosen, output));
        }
        if outputs.is_empty() {
            return Ok(hidden.clone());
        }
        if !passing.is_empty() {
            let state = select(hidden, &passing)?;
            outputs.push((passing, state));
        }
        in_order(&outputs)
    }

    /// One part of a layer over single tokens, together with the earlier positions of their rows that wait for it;
    /// gives the tokens' states and how many positions each brought along.
    fn advance(
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
            let output = self
                .model
                .layer_part(layer, part, input, &mut self.cache, spans)?;
            self.out.ledger.layer(sizes, part, spans);
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
        let states = Tensor::cat(&inputs, 0)?;
        let output = self
            .model
            .layer_part(layer, part, &states, &mut self.cache, &joint)?;
        self.out.ledger.layer(sizes, part, &joint);
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

    /// Under a KV fill, keys and values of a layer that rows pass by on their way to higher ones.
    fn fill_passed(&mut self, layer: usize, hidden: &Tensor, rows: &[Row]) -> Result<()> {
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

    /// Asks the strategy about each row after a check layer; gives those that exit, and the logits where they were needed.
    fn check(
        &mut self,
        layer: usize,
        signal: ExitSignal,
        (before, after): (&Tensor, &Tensor),
        rows: &mut [Row],
        strategy: &mut dyn Strategy,
    ) -> Result<(Vec<usize>, Option<Tensor>)> {
        let logits = match signal.needs_head() {
            true => {
                self.out.ledger.check(self.model.sizes(), rows.len());
                Some(self.model.head(after)?)
            }
            false => None,
        };
        let values = match &logits {
            Some(logits) => signal::from_logits(signal, logits)?,
            None => signal::cosine(before, after)?,
        };
        let mut exits = Vec::new();
        for (index, (row, value)) in rows.iter_mut().zip(values).enumerate() {
            // A row that passed the layer by has nothing new to say.
            if part_of(&row.set, layer).is_none() {
                continue;
            }
            row.confidence = Some(value);
            if strategy.observe(layer, row.span.row, value) == Verdict::Exit {
                exits.push(index);
            }
        }
        Ok((exits, logits))
    }

    /// Rows leave after `layer` in `state`: `[leaving.len(), d_model]`.
    fn leave(
        &mut self,
        layer: usize,
        state: &Tensor,
        leaving: &[Row],
        plan: &StepPlan,
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
                });
            }
            return Ok(());
        }
        let spans: Vec<Span> = leaving.iter().map(|row| row.span).collect();
        self.fill_above(layer, layer, state, &spans, plan, others_stay)
    }

    /// The layers that rows skip once they have left for good.
    fn settle(&mut self, ghosts: Vec<Ghost>, plan: &StepPlan) -> Result<()> {
        for ghost in ghosts {
            let ran = ghost.exit + 1..=ghost.last;
            if self.needs.kv_fill == KvFill::Propagate {
                // The state stood still, so what the layers wrote is its projection.
                for layer in ran {
                    let Span { row, start, .. } = ghost.span;
                    self.cache.mark(layer, row, start, Provenance::Propagated);
                }
            }
            let spans = [ghost.span];
            self.fill_above(ghost.exit, ghost.last, &ghost.state, &spans, plan, false)?;
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
        plan: &StepPlan,
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
                Ok(())
            }
            fill => {
                let from = match fill {
                    KvFill::Propagate => ran,
                    _ => exit,
                };
                let skipped = plan.layers.iter().filter(|&layer| layer > from);
                for layer in skipped.filter(|&layer| plan.layers.has_attention(layer)) {
                    self.fill(layer, state, spans, others_stay)?;
                }
                Ok(())
            }
        }
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
        match self.needs.kv_fill {
            // Under `none` a later read of the hole is refused by the cache.
            KvFill::None | KvFill::Deferred => {}
            KvFill::Propagate => {
                self.model.fill_kv(layer, state, &mut self.cache, spans)?;
                self.out.ledger.project(sizes, spans.len(), weights_read);
            }
            KvFill::Copy => {
                self.cache.copy_below(layer, spans)?;
                self.out.ledger.copy(sizes, spans.len());
            }
            KvFill::Mask => self.cache.mask(layer, spans)?,
        }
        Ok(())
    }

    /// One pass of the LM head over all states that wait for it, and everything in the order of the rows.
    fn gather(&mut self, done: Vec<Done>) -> Result<Step> {
        let waiting: Vec<&Tensor> = done
            .iter()
            .filter(|done| done.logits.is_none())
            .map(|done| &done.state)
            .collect();
        let mut heads = match waiting[..] {
            [] => None,
            [one] => Some(self.head(one)?),
            _ => Some(self.head(&Tensor::cat(&waiting, 0)?)?),
        };
        let mut pieces: Vec<(Vec<usize>, Tensor)> = Vec::new();
        let mut rows: Vec<Decoded> = Vec::new();
        let mut read = 0;
        for done in done {
            let count = done.rows.len();
            let logits = match (done.logits, &mut heads) {
                (Some(logits), _) => logits,
                (None, Some(heads)) if heads.dim(0)? == count => heads.clone(),
                (None, Some(heads)) => {
                    read += count;
                    heads.narrow(0, read - count, count)?
                }
                (None, None) => unreachable!("states without logits were read above"),
            };
            let rows_here = done.rows.iter().map(|(row, _)| row.span.row);
            pieces.push((rows_here.collect(), logits));
            rows.extend(done.rows.into_iter().map(|(row, exit)| Decoded {
                row: row.span.row,
                layers: row.ran.sub_layers() as f64 / 2.0 + row.made_up as f64,
                trace: TokenTrace {
                    exit_layer: exit,
                    confidence: row.confidence,
                    ..TokenTrace::new(row.ran)
                },
            }));
        }
        rows.sort_by_key(|decoded| decoded.row);
        Ok(Step {
            rows,
            logits: in_order(&pieces)?,
        })
    }

    pub(crate) fn head(&mut self, hidden: &Tensor) -> Result<Tensor> {
        let rows = hidden.dim(0)?;
        self.out.ledger.head(self.model.sizes(), rows);
        Ok(self.model.head(hidden)?)
    }
}

/// How many whole layers a set holds from the lowest up without a gap.
fn leading_layers(set: &LayerSet, n_layers: usize) -> usize {
    (0..n_layers)
        .find(|&layer| !set.contains(layer))
        .unwrap_or(n_layers)
}

/// Which part of a layer a set holds.
pub(crate) fn part_of(set: &LayerSet, layer: usize) -> Option<Part> {
    match (set.has_attention(layer), set.has_mlp(layer)) {
        (true, true) => Some(Part::Whole),
        (true, false) => Some(Part::Attention),
        (false, true) => Some(Part::Mlp),
        (false, false) => None,
    }
}

/// Rows `indices` of `x`: `[rows, _]`.
pub(crate) fn select(x: &Tensor, indices: &[usize]) -> Result<Tensor> {
    let all = indices.len() == x.dim(0)? && indices.iter().enumerate().all(|(a, &b)| a == b);
    if all {
        return Ok(x.clone());
    }
    let indices: Vec<u32> = indices.iter().map(|&index| index as u32).collect();
    Ok(x.index_select(&Tensor::new(indices, x.device())?, 0)?)
}

/// The rows of all pieces, (key of each row, `[rows, _]`), by ascending key.
fn in_order(pieces: &[(Vec<usize>, Tensor)]) -> Result<Tensor> {
    let tensors: Vec<&Tensor> = pieces.iter().map(|(_, tensor)| tensor).collect();
    let joined = match tensors[..] {
        [one] => one.clone(),
        _ => Tensor::cat(&tensors, 0)?,
    };
    let mut order: Vec<(usize, usize)> = pieces
        .iter()
        .flat_map(|(keys, _)| keys.iter().copied())
        .enumerate()
        .map(|(place, key)| (key, place))
        .collect();
    order.sort_unstable();
    let places: Vec<usize> = order.into_iter().map(|(_, place)| place).collect();
    select(&joined, &places)
}
