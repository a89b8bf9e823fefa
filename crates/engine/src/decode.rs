//! One decode step: each row through its layers, exits, and what becomes of the layers that it skips.

use crate::error::{EngineError, Result};
use crate::laps::Lap;
use crate::run::Run;
use crate::signal;
use crate::skipped::Ghost;
use crate::step::{Decoded, Row, Step};
use crate::tensors::{in_order, part_of, select};
use crate::trace::TokenTrace;
use candle_core::Tensor;
use skipbench_model::{Part, Span, ops};
use skipbench_strategy::{ExitCheck, ExitSignal, KvFill, LayerSet, StepPlan, Verdict};

/// All rows of a step on their way.
struct Way {
    /// Those that go on, by ascending row.
    rows: Vec<Row>,
    /// Their state: `[rows.len(), d_model]`.
    hidden: Tensor,
    /// Those that are done and run along.
    ghosts: Vec<Ghost>,
    done: Vec<Done>,
}

/// Rows that have what they need: their logits, or the state `[rows, d_model]` that the LM head still has to read.
struct Done {
    /// With the layer after which it left, where it left before the last.
    rows: Vec<(Row, Option<usize>)>,
    logits: Option<Tensor>,
    state: Tensor,
}

impl Run<'_> {
    /// Logits behind each of `ids`, which stand at `spans`.
    pub(crate) fn decode(&mut self, ids: &[u32], spans: &[Span], plan: &StepPlan) -> Result<Step> {
        self.check_reachable(&plan.layers)?;
        if let Some(agreement) = self.needs.oracle {
            return self.decode_oracle(ids, spans, plan, agreement);
        }
        let mut way = self.begin_rows(ids, spans, plan)?;
        let last = plan.layers.iter().last();
        for layer in 0..self.model.sizes().n_layers {
            let before = self.run_layer(layer, &mut way)?;
            if let Some(signal) = self.needs.signal
                && plan.checks.contains(layer)
                && last != Some(layer)
            {
                self.exits(layer, signal, &before, &mut way)?;
            }
            if way.rows.is_empty() {
                break;
            }
        }
        self.finish_rows(way)
    }

    fn begin_rows(&mut self, ids: &[u32], spans: &[Span], plan: &StepPlan) -> Result<Way> {
        let mut rows = Vec::with_capacity(spans.len());
        for &span in spans {
            let set = self.strategy.row_layers(span.row).unwrap_or(plan.layers);
            self.check_reachable(&set)?;
            self.check_deferred(&set)?;
            rows.push(Row::new(span, set));
        }
        let n_layers = self.model.sizes().n_layers;
        self.exact
            .limit(&rows, leading_layers(&plan.layers, n_layers));
        Ok(Way {
            rows,
            hidden: self.model.embed(ids, spans)?,
            ghosts: Vec::new(),
            done: Vec::new(),
        })
    }

    /// Each row's part of a layer, and keys and values where rows skip it; gives the states in front of it.
    fn run_layer(&mut self, layer: usize, way: &mut Way) -> Result<Tensor> {
        self.exact.keep(layer, &way.hidden, &way.rows)?;
        let after = self.run_parts(layer, way)?;
        self.fill_passed(layer, &after, &way.rows)?;
        Ok(std::mem::replace(&mut way.hidden, after))
    }

    /// Rows that skip the layer keep their state.
    fn run_parts(&mut self, layer: usize, way: &mut Way) -> Result<Tensor> {
        let Way {
            rows,
            hidden,
            ghosts,
            ..
        } = way;
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
                input = ops::cat(&inputs, 0)?;
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

    /// Takes the rows that exit after `layer` out of the way; `before`: the states in front of it.
    fn exits(
        &mut self,
        layer: usize,
        signal: ExitSignal,
        before: &Tensor,
        way: &mut Way,
    ) -> Result<()> {
        let (exits, logits) = self.check(layer, signal, before, way)?;
        if exits.is_empty() {
            return Ok(());
        }
        let (mut kept, mut stays, mut leaving) = (Vec::new(), Vec::new(), Vec::new());
        for (index, row) in std::mem::take(&mut way.rows).into_iter().enumerate() {
            if exits.contains(&index) {
                leaving.push(row);
            } else {
                kept.push(index);
                stays.push(row);
            }
        }
        let state = select(&way.hidden, &exits)?;
        self.exact.limit(&leaving, layer + 1);
        self.exact.keep(layer + 1, &state, &leaving)?;
        self.leave(layer, &state, &leaving, &mut way.ghosts, !stays.is_empty())?;
        way.done.push(Done {
            rows: leaving.into_iter().map(|row| (row, Some(layer))).collect(),
            logits: match &logits {
                Some(logits) => Some(select(logits, &exits)?),
                None => None,
            },
            state,
        });
        if !kept.is_empty() {
            way.hidden = select(&way.hidden, &kept)?;
            way.rows = stays;
        }
        Ok(())
    }

    /// Asks the strategy about each row after a check layer; gives those that exit, and the logits where they were needed.
    fn check(
        &mut self,
        layer: usize,
        signal: ExitSignal,
        before: &Tensor,
        way: &mut Way,
    ) -> Result<(Vec<usize>, Option<Tensor>)> {
        self.laps.end(Lap::Rows);
        let (values, logits) = match (signal.needs_head(), self.needs.check) {
            (false, _) => (signal::cosine(before, &way.hidden)?, None),
            (true, ExitCheck::Candidates) => {
                let values = self.signals_of_lists(layer, signal, &way.hidden, &mut way.rows)?;
                (values, None)
            }
            (true, ExitCheck::Full) => {
                self.out.ledger.check(self.model.sizes(), way.rows.len());
                let logits = self.model.head(&way.hidden)?;
                let values = signal::from_logits(signal, &logits)?;
                (values, Some(logits))
            }
        };
        self.laps.end(Lap::Check);
        let mut exits = Vec::new();
        for (index, (row, value)) in way.rows.iter_mut().zip(values).enumerate() {
            // A row that passed the layer by has nothing new to say.
            if part_of(&row.set, layer).is_none() {
                continue;
            }
            if value.is_nan() {
                let what = if signal.needs_head() {
                    "logits"
                } else {
                    "hidden states"
                };
                return Err(self.not_numbers(what, (row.span.row, row.span.start), Some(layer)));
            }
            row.confidence = Some(value);
            if self.strategy.observe(layer, row.span.row, value) == Verdict::Exit {
                exits.push(index);
            }
        }
        Ok((exits, logits))
    }

    /// Settles what was left behind, and reads the LM head for every row that still waits for it.
    fn finish_rows(&mut self, way: Way) -> Result<Step> {
        let Way {
            rows,
            hidden,
            ghosts,
            mut done,
        } = way;
        for ghost in &ghosts {
            let mut left = done.iter_mut().flat_map(|done| &mut done.rows);
            if let Some((row, _)) = left.find(|(row, _)| row.span.row == ghost.span.row) {
                row.made_up += ghost.ahead;
            }
        }
        self.settle(ghosts)?;
        if !rows.is_empty() {
            self.exact
                .keep(self.model.sizes().n_layers, &hidden, &rows)?;
            done.push(Done {
                rows: rows.into_iter().map(|row| (row, None)).collect(),
                logits: None,
                state: hidden,
            });
        }
        self.gather(done)
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
            _ => Some(self.head(&ops::cat(&waiting, 0)?)?),
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
}

/// How many whole layers a set holds from the lowest up without a gap.
fn leading_layers(set: &LayerSet, n_layers: usize) -> usize {
    (0..n_layers)
        .find(|&layer| !set.contains(layer))
        .unwrap_or(n_layers)
}
