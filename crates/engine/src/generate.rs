//! Prefill and decode.

use crate::error::{EngineError, Result};
use crate::ledger::Ledger;
use crate::signal;
use candle_core::Tensor;
use skipbench_model::{CausalLm, KvCache, ModelError, Span, token_count};
use skipbench_strategy::{BatchShape, KvFill, Needs, StepPlan, Strategy, Verdict};
use std::time::Instant;

/// How far to generate.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Options {
    /// Largest number of generated tokens per row, the end of sequence included.
    pub max_new_tokens: usize,
    /// Ids that end a row. Empty: every row gets exactly `max_new_tokens` (fixed-length mode, for timing).
    pub eos_ids: Vec<u32>,
    /// Tokens that a schedule by position is laid over, where that is another number: a timing pass that stops early
    /// must still run the layers of the whole answer's first part.
    pub planned_tokens: Option<usize>,
}

/// What one row got.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RowOutput {
    /// Generated ids, without the prompt, ending with the end-of-sequence id where one was generated.
    pub tokens: Vec<u32>,
    /// Layers run for each generated token.
    pub layers: Vec<usize>,
}

/// What one batch got, and what it cost.
#[derive(Debug, Clone, Default)]
pub struct Generation {
    /// One per prompt, in order.
    pub rows: Vec<RowOutput>,
    /// Seconds until the first token of every row (TTFT).
    pub prefill_s: f64,
    /// Seconds of each decode step.
    pub step_s: Vec<f64>,
    /// Bytes of the KV cache.
    pub peak_kv_bytes: u64,
    /// Bytes that the decode steps read.
    pub ledger: Ledger,
}

impl Generation {
    /// Seconds of all decode steps.
    pub fn decode_s(&self) -> f64 {
        self.step_s.iter().sum()
    }

    /// Tokens that the decode steps generated: all but the first of each row.
    pub fn decoded_tokens(&self) -> usize {
        self.rows
            .iter()
            .map(|row| row.tokens.len().saturating_sub(1))
            .sum()
    }
}

/// Runs a model under a strategy.
#[derive(Clone, Copy)]
pub struct Engine<'a> {
    model: &'a dyn CausalLm,
}

impl<'a> Engine<'a> {
    /// An engine for `model`.
    pub fn new(model: &'a dyn CausalLm) -> Self {
        Self { model }
    }

    /// The model it drives.
    pub fn model(&self) -> &'a dyn CausalLm {
        self.model
    }

    /// Greedily continues `prompts` (token ids), a row each.
    ///
    /// # Errors
    /// An empty batch or prompt, a prompt that does not fit with its new tokens, a strategy that does not suit the
    /// model, logits that are not finite.
    pub fn generate(
        &self,
        prompts: &[Vec<u32>],
        strategy: &mut dyn Strategy,
        options: &Options,
    ) -> Result<Generation> {
        self.check(prompts, options)?;
        let shape = BatchShape {
            prompt_lens: prompts.iter().map(Vec::len).collect(),
            n_layers: self.model.sizes().n_layers,
            max_new_tokens: options.planned_tokens.unwrap_or(options.max_new_tokens),
        };
        strategy.begin(&shape)?;
        let mut run = Run {
            model: self.model,
            needs: strategy.needs(),
            cache: self.cache(&shape, strategy, options)?,
            out: Generation {
                rows: vec![RowOutput::default(); prompts.len()],
                ..Generation::default()
            },
        };
        run.out.peak_kv_bytes = run.cache.bytes();

        let clock = Clock::start(self.model)?;
        let first = run.prefill(prompts)?;
        run.out.prefill_s = clock.stop(self.model)?;
        let mut live = run.accept((0..prompts.len()).zip(first), shape.n_layers, options);

        let mut step = 1;
        while !live.is_empty() && step < options.max_new_tokens {
            let clock = Clock::start(self.model)?;
            let decoded = match strategy.draft_length() {
                Some(length) => run.speculate(prompts, &live, length, strategy, options)?,
                None => run.step(prompts, &live, step, strategy)?,
            };
            run.out.step_s.push(clock.stop(self.model)?);
            live = run.accept_each(decoded, options);
            step += 1;
        }
        Ok(run.out)
    }

    /// Whether [`Engine::generate`] can take these prompts.
    ///
    /// # Errors
    /// An empty batch or prompt, a prompt that does not fit with its new tokens.
    pub fn check(&self, prompts: &[Vec<u32>], options: &Options) -> Result<()> {
        if prompts.is_empty() {
            return Err(EngineError::EmptyBatch);
        }
        if options.max_new_tokens == 0 {
            return Err(EngineError::NoTokens);
        }
        let limit = self.model.sizes().max_positions;
        for (row, prompt) in prompts.iter().enumerate() {
            if prompt.is_empty() {
                return Err(ModelError::EmptyPrompt { row }.into());
            }
            // The last generated token is never fed back, so it needs no position.
            let needed = prompt.len() + options.max_new_tokens - 1;
            if let Some(limit) = limit.filter(|&limit| needed > limit) {
                return Err(ModelError::TooLong { row, needed, limit }.into());
            }
        }
        Ok(())
    }

    /// Room for the longest row in the layers that decode steps may run, none in the others.
    fn cache(
        &self,
        shape: &BatchShape,
        strategy: &dyn Strategy,
        options: &Options,
    ) -> Result<KvCache> {
        let longest = shape.prompt_lens.iter().max().copied().unwrap_or(0);
        let reachable = strategy.reachable();
        let decodes = options.max_new_tokens > 1;
        let capacity = (0..shape.n_layers)
            .map(|layer| match decodes && reachable.contains(layer) {
                true => longest + options.max_new_tokens - 1,
                false => 0,
            })
            .collect();
        Ok(self.model.new_cache(shape.prompt_lens.len(), capacity)?)
    }
}

/// One call of [`Engine::generate`].
pub(crate) struct Run<'a> {
    pub(crate) model: &'a dyn CausalLm,
    needs: Needs,
    pub(crate) cache: KvCache,
    pub(crate) out: Generation,
}

/// A token of a row and the layers it took.
pub(crate) struct Decoded {
    pub(crate) row: usize,
    pub(crate) token: u32,
    pub(crate) layers: usize,
}

impl Run<'_> {
    /// All layers over all prompts; the first token of each row.
    fn prefill(&mut self, prompts: &[Vec<u32>]) -> Result<Vec<u32>> {
        let spans = Span::prompts(prompts.iter().map(Vec::len));
        let mut hidden = self.model.embed(&prompts.concat())?;
        for layer in 0..self.model.sizes().n_layers {
            hidden = self.model.layer(layer, &hidden, &mut self.cache, &spans)?;
        }
        let mut last = 0;
        let ends: Vec<usize> = spans
            .iter()
            .map(|span| {
                last += span.len;
                last - 1
            })
            .collect();
        signal::argmax(&self.model.head(&select(&hidden, &ends)?)?)
    }

    /// The next token of every row that is live.
    fn step(
        &mut self,
        prompts: &[Vec<u32>],
        live: &[usize],
        step: usize,
        strategy: &mut dyn Strategy,
    ) -> Result<Vec<Decoded>> {
        let spans: Vec<Span> = live
            .iter()
            .map(|&row| Span::token(row, prompts[row].len() + step - 1))
            .collect();
        let ids: Vec<u32> = live.iter().map(|&row| self.last_token(row)).collect();
        self.out.ledger.step(self.model.sizes(), &spans);
        let plan = strategy.plan(step);
        self.decode(&ids, &spans, &plan, strategy)
    }

    pub(crate) fn last_token(&self, row: usize) -> u32 {
        self.out.rows[row].tokens.last().copied().unwrap_or(0)
    }

    /// What follows each of `ids`, which stand at `spans`: the plan's layers, but for rows that exit before the last.
    pub(crate) fn decode(
        &mut self,
        ids: &[u32],
        spans: &[Span],
        plan: &StepPlan,
        strategy: &mut dyn Strategy,
    ) -> Result<Vec<Decoded>> {
        let sizes = self.model.sizes();
        let mut hidden = self.model.embed(ids)?;
        let mut spans = spans.to_vec();
        let mut decoded = Vec::with_capacity(spans.len());
        // States that still need the head: rows, layers run, and `[rows, d_model]`.
        let mut waiting: Vec<(Vec<Span>, usize, Tensor)> = Vec::new();
        let last = plan.layers.iter().last();
        for (done, layer) in plan.layers.iter().enumerate() {
            let before = hidden;
            hidden = self.model.layer(layer, &before, &mut self.cache, &spans)?;
            self.out.ledger.layer(sizes, &spans);
            let (Some(signal), true) = (self.needs.signal, plan.checks.contains(layer)) else {
                continue;
            };
            if Some(layer) == last {
                continue;
            }
            let logits = match signal.needs_head() {
                true => Some(self.head(&hidden)?),
                false => None,
            };
            let values = match &logits {
                Some(logits) => signal::from_logits(signal, logits)?,
                None => signal::cosine(&before, &hidden)?,
            };
            let verdicts = spans
                .iter()
                .zip(values)
                .map(|(span, value)| strategy.observe(layer, span.row, value) == Verdict::Exit);
            let (exits, stays): (Vec<_>, Vec<_>) =
                verdicts.enumerate().partition(|(_, exit)| *exit);
            if exits.is_empty() {
                continue;
            }
            let exits: Vec<usize> = exits.into_iter().map(|(index, _)| index).collect();
            let stays: Vec<usize> = stays.into_iter().map(|(index, _)| index).collect();
            let leaving: Vec<Span> = exits.iter().map(|&index| spans[index]).collect();
            let state = select(&hidden, &exits)?;
            self.fill(layer, &state, &leaving, plan, stays.is_empty())?;
            match logits {
                // The head was read for the check; its vote is the token.
                Some(logits) => {
                    let tokens = signal::argmax(&select(&logits, &exits)?)?;
                    decoded.extend(leaving.iter().zip(tokens).map(|(span, token)| Decoded {
                        row: span.row,
                        token,
                        layers: done + 1,
                    }));
                }
                None => waiting.push((leaving, done + 1, state)),
            }
            spans = stays.iter().map(|&index| spans[index]).collect();
            if spans.is_empty() {
                break;
            }
            hidden = select(&hidden, &stays)?;
        }
        if !spans.is_empty() {
            waiting.push((spans, plan.layers.len(), hidden));
        }
        self.vote(waiting, &mut decoded)?;
        decoded.sort_by_key(|decoded| decoded.row);
        Ok(decoded)
    }

    /// One pass of the LM head over all states that wait for it.
    fn vote(
        &mut self,
        waiting: Vec<(Vec<Span>, usize, Tensor)>,
        decoded: &mut Vec<Decoded>,
    ) -> Result<()> {
        let states: Vec<&Tensor> = waiting.iter().map(|(_, _, state)| state).collect();
        let states = match states[..] {
            [] => return Ok(()),
            [one] => one.clone(),
            _ => Tensor::cat(&states, 0)?,
        };
        let mut tokens = signal::argmax(&self.head(&states)?)?.into_iter();
        for (spans, layers, _) in &waiting {
            for (span, token) in spans.iter().zip(&mut tokens) {
                decoded.push(Decoded {
                    row: span.row,
                    token,
                    layers: *layers,
                });
            }
        }
        Ok(())
    }

    pub(crate) fn head(&mut self, hidden: &Tensor) -> Result<Tensor> {
        self.out.ledger.head(self.model.sizes());
        Ok(self.model.head(hidden)?)
    }

    /// Gives rows that leave after `layer` keys and values in the layers they skip.
    fn fill(
        &mut self,
        layer: usize,
        state: &Tensor,
        leaving: &[Span],
        plan: &StepPlan,
        all_leave: bool,
    ) -> Result<()> {
        debug_assert_eq!(state.dim(0)?, token_count(leaving));
        // Under `none` a later read of the hole is refused by the cache.
        if self.needs.kv_fill == KvFill::Propagate {
            for skipped in plan.layers.iter().filter(|&next| next > layer) {
                self.model
                    .fill_kv(skipped, state, &mut self.cache, leaving)?;
                // Rows that stay may still read the whole layer; its bytes are counted there.
                if all_leave {
                    self.out.ledger.fill(self.model.sizes());
                }
            }
        }
        Ok(())
    }

    /// Records a token of each row; gives the rows that go on.
    fn accept(
        &mut self,
        tokens: impl IntoIterator<Item = (usize, u32)>,
        layers: usize,
        options: &Options,
    ) -> Vec<usize> {
        let decoded = tokens
            .into_iter()
            .map(|(row, token)| Decoded { row, token, layers })
            .collect();
        self.accept_each(decoded, options)
    }

    /// Records tokens, those of a row one after the other; gives the rows that go on.
    fn accept_each(&mut self, decoded: Vec<Decoded>, options: &Options) -> Vec<usize> {
        let mut live = Vec::with_capacity(decoded.len());
        for Decoded { row, token, layers } in decoded {
            let output = &mut self.out.rows[row];
            output.tokens.push(token);
            output.layers.push(layers);
            let ended =
                options.eos_ids.contains(&token) || output.tokens.len() == options.max_new_tokens;
            match (ended, live.last() == Some(&row)) {
                (true, true) => drop(live.pop()),
                (false, false) => live.push(row),
                _ => {}
            }
        }
        live
    }
}

/// Rows `indices` of `x`: `[rows, _]`.
fn select(x: &Tensor, indices: &[usize]) -> Result<Tensor> {
    if indices.len() == x.dim(0)? {
        return Ok(x.clone());
    }
    let indices: Vec<u32> = indices.iter().map(|&index| index as u32).collect();
    Ok(x.index_select(&Tensor::new(indices, x.device())?, 0)?)
}

/// Wall-clock time with the device idle at both ends.
struct Clock(Instant);

impl Clock {
    fn start(model: &dyn CausalLm) -> Result<Self> {
        model.device().synchronize()?;
        Ok(Self(Instant::now()))
    }

    fn stop(self, model: &dyn CausalLm) -> Result<f64> {
        model.device().synchronize()?;
        Ok(self.0.elapsed().as_secs_f64())
    }
}
