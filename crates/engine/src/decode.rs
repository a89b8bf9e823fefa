//! One decode step: each row through its layers, exits, and what becomes of the layers that it skips.

use crate::error::{EngineError, Result};
use crate::generate::Run;
use crate::signal;
use crate::skipped::Ghost;
use crate::trace::TokenTrace;
use candle_core::Tensor;
use skipbench_model::{Part, Span};
use skipbench_strategy::{ExitSignal, KvFill, LayerSet, StepPlan, Strategy, Verdict};

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
pub(crate) struct Row {
    pub(crate) span: Span,
    pub(crate) set: LayerSet,
    ran: LayerSet,
    /// Layers run for earlier positions of the row, since this one needed them, or ahead of later ones that may.
    made_up: usize,
    confidence: Option<f64>,
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
            self.check_deferred(&set)?;
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
            self.leave(layer, &state, &leaving, &mut ghosts, !stays.is_empty())?;
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
        for ghost in &ghosts {
            let mut left = done.iter_mut().flat_map(|done| &mut done.rows);
            if let Some((row, _)) = left.find(|(row, _)| row.span.row == ghost.span.row) {
                row.made_up += ghost.ahead;
            }
        }
        self.settle(ghosts)?;
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

    /// Layers that are made up for later are whole, and none is left out in between.
    fn check_deferred(&self, layers: &LayerSet) -> Result<()> {
        let all = LayerSet::full(self.model.sizes().n_layers);
        match self.needs.kv_fill == KvFill::Deferred && *layers != all {
            true => Err(EngineError::Search {
                option: "kv-fill",
                message: "`deferred` is for tokens that leave on a way through all layers, and this strategy plans fewer; use another"
                    .to_owned(),
            }),
            false => Ok(()),
        }
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
            }
            let (mut output, made_up) = self.advance(layer, part, &input, &spans)?;
            for (&index, &made_up) in chosen.iter().zip(&made_up) {
                let row = &mut rows[index];
                row.made_up += made_up;
                self.needed(layer, row.span.row);
                if part.has_attention() {
                    row.ran.insert_attention(layer);
                }
                if part.has_mlp() {
                    row.ran.insert_mlp(layer);
                }
            }
            if !along.is_empty() {
                for (place, &index) in (chosen.len()..).zip(&along) {
                    let state = output.narrow(0, place, 1)?;
                    self.ran_along(layer, part, &mut ghosts[index], state, made_up[place]);
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
