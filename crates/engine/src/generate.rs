//! Prefill and decode, to the end of every row.

use crate::error::{EngineError, Result};
use crate::generation::{Generation, RowOutput, TokenScore};
use crate::laps::Lap;
use crate::ngram;
use crate::options::Options;
use crate::run::{Clock, Run};
use crate::select::Chooser;
use crate::signal;
use crate::step::Chosen;
use crate::trace::TokenTrace;
use candle_core::Tensor;
use skipbench_model::{CausalLm, ModelError, Span};
use skipbench_strategy::Strategy;
use std::ops::ControlFlow;

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

    /// Continues `prompts` (token ids), a row each.
    ///
    /// # Errors
    /// An empty batch or prompt, a prompt that does not fit with its new tokens, a strategy that does not suit the
    /// model or the search, logits that are not numbers.
    pub fn generate(
        &self,
        prompts: &[Vec<u32>],
        strategy: &mut dyn Strategy,
        options: &Options,
    ) -> Result<Generation> {
        self.check(prompts, options)?;
        options.check(strategy)?;
        let mut run = Run::new(self.model, prompts, strategy, options)?;
        match options.beam {
            Some(beam) => run.search(beam)?,
            None => run.continue_each()?,
        }
        Ok(run.finish())
    }

    /// Continues `prompts`, each with options of its own, as when several people ask. `listener` takes what a row has so far
    /// after each of its tokens, and says whether the row goes on; one that does not has [`End::Length`](crate::End::Length).
    /// A schedule by position is laid over the longest of the rows, unless `planned_tokens` says otherwise:
    /// [`Engine::lengths_mix`] tells whether rows of other lengths may share a batch.
    ///
    /// # Errors
    /// As [`Engine::generate`]; options that are not one for each prompt, or that a row cannot have for itself.
    pub fn generate_each(
        &self,
        prompts: &[Vec<u32>],
        options: &[Options],
        strategy: &mut dyn Strategy,
        listener: &mut dyn FnMut(usize, &RowOutput) -> ControlFlow<()>,
    ) -> Result<Generation> {
        if prompts.len() != options.len() {
            return Err(EngineError::Search {
                option: "options",
                message: format!("{} for {} prompts", options.len(), prompts.len()),
            });
        }
        if prompts.is_empty() {
            return Err(EngineError::EmptyBatch);
        }
        let mut batch = Options::default();
        for (row, (prompt, options)) in prompts.iter().zip(options).enumerate() {
            options.check_row()?;
            options.check(strategy)?;
            self.check_row(row, prompt, options)?;
            batch.max_new_tokens = batch.max_new_tokens.max(options.max_new_tokens);
            batch.planned_tokens = batch.planned_tokens.max(options.planned_tokens);
        }
        let mut run = Run::new(self.model, prompts, strategy, &batch)?;
        run.rows = Some(options);
        run.listener = Some(listener);
        run.continue_each()?;
        Ok(run.finish())
    }

    /// Whether [`Engine::generate`] can take these prompts.
    ///
    /// # Errors
    /// An empty batch or prompt, a prompt that does not fit with its new tokens.
    pub fn check(&self, prompts: &[Vec<u32>], options: &Options) -> Result<()> {
        if prompts.is_empty() {
            return Err(EngineError::EmptyBatch);
        }
        for (row, prompt) in prompts.iter().enumerate() {
            self.check_row(row, prompt, options)?;
        }
        Ok(())
    }

    fn check_row(&self, row: usize, prompt: &[u32], options: &Options) -> Result<()> {
        if options.max_new_tokens == 0 {
            return Err(EngineError::NoTokens);
        }
        // The last generated token is never fed back, so it needs no position.
        self.check_length(row, prompt.len(), options.max_new_tokens - 1)
    }

    /// Whether the model has positions for a prompt and the tokens that are fed behind it, one by one.
    pub(crate) fn check_length(&self, row: usize, prompt: usize, fed_behind: usize) -> Result<()> {
        if prompt == 0 {
            return Err(ModelError::EmptyPrompt { row }.into());
        }
        let needed = prompt.saturating_add(fed_behind);
        let sizes = self.model.sizes();
        if let Some(limit) = sizes.max_positions.filter(|&limit| needed > limit) {
            return Err(ModelError::TooLong { row, needed, limit }.into());
        }
        let switch = sizes.switch_length;
        if let Some(limit) = switch.filter(|&limit| prompt <= limit && needed > limit) {
            return Err(ModelError::Switch {
                row,
                prompt,
                needed,
                limit,
            }
            .into());
        }
        Ok(())
    }
}

impl Run<'_> {
    /// Greedy or drawn tokens: one continuation for each prompt.
    fn continue_each(&mut self) -> Result<()> {
        let rows: Vec<usize> = (0..self.prompts.len()).collect();
        // What has options of its own draws from its own stream, whatever its place in the batch.
        let own = self.rows.is_some();
        let mut chooser = Chooser::new(rows.iter().map(|&row| {
            let stream = if own { 0 } else { row as u64 };
            (self.asked(row).sampling.as_ref(), stream)
        }));
        let clock = Clock::start(self.model)?;
        let logits = self.prefill()?;
        let tokens = self.choose(&logits, &rows, &mut chooser)?;
        let scores = self.scores(&rows, &tokens, &logits)?;
        self.out.prefill_s = clock.stop_idle();
        let ran = self.prompt_layers();
        let chosen = rows.into_iter().zip(tokens).zip(scores);
        let first = chosen.map(|((row, token), score)| Chosen {
            row,
            token,
            score,
            layers: ran.sub_layers() as f64 / 2.0,
            trace: TokenTrace::new(ran),
        });
        let mut live = self.accept(first.collect())?;

        let mut step = 1;
        while !live.is_empty() && step < self.options.max_new_tokens {
            let clock = Clock::resume();
            self.laps.start(self.model);
            let chosen = match self.strategy.draft() {
                Some(limit) => self.speculate(&live, limit)?,
                None => self.step(&live, step, &mut chooser)?,
            };
            self.out.step_s.push(clock.stop_idle());
            live = self.accept(chosen)?;
            step += 1;
        }
        if self.strategy.draft().is_some() {
            self.charge_full();
        }
        if self.options.trace {
            self.trace_provenance();
        }
        if self.options.audit {
            self.audit()?;
        }
        Ok(())
    }

    /// The next token of every row that is live.
    fn step(&mut self, live: &[usize], step: usize, chooser: &mut Chooser) -> Result<Vec<Chosen>> {
        let spans: Vec<Span> = live
            .iter()
            .map(|&row| Span::token(row, self.prompts[row].len() + step - 1))
            .collect();
        let ids: Vec<u32> = live.iter().map(|&row| self.last_token(row)).collect();
        self.out.ledger.step(self.model.sizes(), &spans);
        let plan = self.strategy.plan(step);
        let step = self.decode(&ids, &spans, &plan)?;
        self.laps.end(Lap::Rows);
        let tokens = self.choose(&step.logits, live, chooser)?;
        let scores = self.scores(live, &tokens, &step.logits)?;
        let chosen = step.rows.into_iter().zip(tokens).zip(scores);
        Ok(chosen
            .map(|((decoded, token), score)| Chosen::new(decoded, token, score))
            .collect())
    }

    /// The log-probability of each of `tokens` in `logits`, `[rows.len(), vocab_size]`, where its row asks for it.
    pub(crate) fn scores(
        &self,
        rows: &[usize],
        tokens: &[u32],
        logits: &Tensor,
    ) -> Result<Vec<Option<TokenScore>>> {
        let asked = rows.iter().map(|&row| self.asked(row).log_probabilities);
        if asked.clone().all(|likeliest| likeliest.is_none()) {
            return Ok(rows.iter().map(|_| None).collect());
        }
        let mut asked = asked.zip(tokens);
        signal::each_row(logits, |logits| {
            let (likeliest, &token) = asked.next()?;
            Some(signal::score(logits, token, likeliest?))
        })
    }

    /// A token of each of `rows` from `logits`: `[rows.len(), vocab_size]`.
    fn choose(&self, logits: &Tensor, rows: &[usize], chooser: &mut Chooser) -> Result<Vec<u32>> {
        let places = rows.iter().map(|&row| {
            let sequence = self.prompts[row].len() + self.out.rows[row].tokens.len();
            (row, sequence - 1)
        });
        let n = self.options.no_repeat_ngram;
        if n == 0 && !chooser.draws() {
            return self.numbers(signal::argmax(logits)?, places, None);
        }
        let mut logits = signal::each_row(logits, <[f32]>::to_vec)?;
        let likeliest = logits.iter().map(|logits| signal::likeliest(logits));
        let mut likeliest = self.numbers(likeliest.collect(), places, None)?;
        if n > 0 {
            for ((&row, logits), likeliest) in rows.iter().zip(&mut logits).zip(&mut likeliest) {
                let sequence = [&self.prompts[row][..], &self.out.rows[row].tokens].concat();
                for banned in ngram::banned(&sequence, n) {
                    logits[banned as usize] = f32::NEG_INFINITY;
                }
                *likeliest = signal::likeliest(logits).ok_or_else(|| EngineError::Search {
                    option: "no-repeat-ngram",
                    message: format!(
                        "every token would repeat {n} tokens of the sequence; allow more"
                    ),
                })?;
            }
        }
        chooser.choose(rows, likeliest, &logits)
    }

    /// Records tokens, those of a row one after the other; gives the rows that go on.
    fn accept(&mut self, chosen: Vec<Chosen>) -> Result<Vec<usize>> {
        let mut live = Vec::with_capacity(chosen.len());
        for chosen in chosen {
            let asked = self.asked(chosen.row);
            let output = &mut self.out.rows[chosen.row];
            output.tokens.push(chosen.token);
            output.layers.push(chosen.layers);
            output.scores.extend(chosen.score);
            if self.options.trace {
                output.trace.push(chosen.trace);
            }
            let end = asked.end(&output.tokens)?;
            output.end = end.unwrap_or_default();
            let left = match &mut self.listener {
                Some(listener) => listener(chosen.row, output).is_break(),
                None => false,
            };
            match (end.is_some() || left, live.last() == Some(&chosen.row)) {
                (true, true) => drop(live.pop()),
                (false, false) => live.push(chosen.row),
                _ => {}
            }
        }
        Ok(live)
    }

    /// What the cache holds at the position behind which each token was chosen.
    fn trace_provenance(&mut self) {
        let n_layers = self.model.sizes().n_layers;
        for (row, prompt) in self.prompts.iter().enumerate() {
            for (index, trace) in self.out.rows[row].trace.iter_mut().enumerate() {
                let position = prompt.len() + index - 1;
                trace.kv = (0..n_layers)
                    .map(|layer| self.cache.provenance(layer, row, position).letter())
                    .collect();
            }
        }
    }
}
