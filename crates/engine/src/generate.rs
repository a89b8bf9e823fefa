//! Prefill and decode.

use crate::beam::Beam;
use crate::decode::{Decoded, Exact, part_of, select};
use crate::error::{EngineError, Result};
use crate::generation::{Generation, RowOutput};
use crate::ngram;
use crate::select::{Chooser, Sampling};
use crate::signal;
use crate::skipped::Pending;
use crate::trace::TokenTrace;
use candle_core::Tensor;
use skipbench_model::{CausalLm, KvCache, ModelError, Part, Span};
use skipbench_strategy::{
    BatchMode, BatchShape, KvFill, LayerSet, Needs, Prefill, PromptSignal, Strategy,
};
use std::time::Instant;

/// How far to generate, and how to search.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Options {
    /// Largest number of generated tokens per row, the end of sequence included.
    pub max_new_tokens: usize,
    /// Ids that end a row. Empty: every row gets exactly `max_new_tokens` (fixed-length mode, for timing).
    pub eos_ids: Vec<u32>,
    /// Tokens that a schedule by position is laid over, where that is another number: a timing pass that stops early
    /// must still run the layers of the whole answer's first part.
    pub planned_tokens: Option<usize>,
    /// Draw tokens instead of taking the likeliest.
    pub sampling: Option<Sampling>,
    /// Search with several beams.
    pub beam: Option<Beam>,
    /// No n-gram of this length, prompt included, occurs twice; 0 for no such rule.
    pub no_repeat_ngram: usize,
    /// Keep a [`TokenTrace`] of each token.
    pub trace: bool,
    /// Compare the KV cache with that of a full-depth replay at the end.
    pub audit: bool,
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

    /// Continues `prompts` (token ids), a row each.
    ///
    /// # Errors
    /// An empty batch or prompt, a prompt that does not fit with its new tokens, a strategy that does not suit the
    /// model or the search, logits that are not finite.
    pub fn generate(
        &self,
        prompts: &[Vec<u32>],
        strategy: &mut dyn Strategy,
        options: &Options,
    ) -> Result<Generation> {
        self.check(prompts, options)?;
        check_search(strategy, options)?;
        let beams = options.beam.map_or(1, |beam| beam.beams);
        let shape = BatchShape {
            prompt_lens: prompts
                .iter()
                .flat_map(|prompt| vec![prompt.len(); beams])
                .collect(),
            n_layers: self.model.sizes().n_layers,
            max_new_tokens: options.planned_tokens.unwrap_or(options.max_new_tokens),
        };
        strategy.begin(&shape)?;
        let rows = shape.prompt_lens.len();
        let reachable = strategy.reachable();
        if let Some(layer) = reachable.iter().find(|&layer| layer >= shape.n_layers) {
            return Err(EngineError::NotReachable { layer });
        }
        let needs = strategy.needs();
        let mut run = Run {
            model: self.model,
            needs,
            reachable,
            cache: self.cache(&shape, strategy, options)?,
            pending: (0..rows).map(|_| Vec::new()).collect(),
            ahead: match (needs.batch_mode, needs.kv_fill) {
                (BatchMode::Sync, KvFill::Deferred) => vec![vec![0; shape.n_layers]; rows],
                _ => Vec::new(),
            },
            exact: Vec::new(),
            out: Generation {
                rows: vec![RowOutput::default(); prompts.len()],
                ..Generation::default()
            },
        };
        run.out.peak_kv_bytes = run.cache.bytes();
        match options.beam {
            Some(beam) => run.search(prompts, beam, strategy, options)?,
            None => run.continue_each(prompts, strategy, options)?,
        }
        run.out.hole_reads = run.cache.hole_reads();
        // What was never needed after all.
        run.out.ledger.waste(run.ahead.iter().flatten().sum());
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

    /// Room for the longest row in the layers whose attention decode steps may run, none in the others.
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
            .map(|layer| match decodes && reachable.has_attention(layer) {
                true => longest + options.max_new_tokens - 1,
                false => 0,
            })
            .collect();
        Ok(self.model.new_cache(shape.prompt_lens.len(), capacity)?)
    }
}

/// Refuses options that do not go together or with the strategy.
fn check_search(strategy: &dyn Strategy, options: &Options) -> Result<()> {
    let wrong = |option: &'static str, message: &str| {
        Err(EngineError::Search {
            option,
            message: message.to_owned(),
        })
    };
    if let Some(sampling) = &options.sampling {
        sampling.check()?;
        if options.beam.is_some() {
            return wrong(
                "beams",
                "a beam search draws nothing; leave out the sampling or the beams",
            );
        }
    }
    if let Some(beam) = options.beam {
        beam.check()?;
        if options.trace || options.audit {
            return wrong(
                "trace",
                "a beam search has no one way through the layers to trace; use one beam",
            );
        }
    }
    let one_continuation = strategy.draft().is_some() || strategy.needs().oracle.is_some();
    if one_continuation && options.beam.is_some() {
        return wrong(
            "beams",
            "this strategy follows one greedy continuation; use one beam",
        );
    }
    if one_continuation && options.sampling.is_some() {
        return wrong(
            "temperature",
            "this strategy follows the likeliest tokens; decode greedily",
        );
    }
    if one_continuation && options.no_repeat_ngram > 0 {
        return wrong(
            "no-repeat-ngram",
            "this strategy is held to the full network's own tokens; leave the rule out",
        );
    }
    Ok(())
}

/// One call of [`Engine::generate`].
pub(crate) struct Run<'a> {
    pub(crate) model: &'a dyn CausalLm,
    pub(crate) needs: Needs,
    /// The layers that the strategy has announced.
    pub(crate) reachable: LayerSet,
    pub(crate) cache: KvCache,
    /// Per row of the cache, in the order of their positions.
    pub(crate) pending: Vec<Vec<Pending>>,
    /// Per row of the cache and layer: positions that the layer ran ahead of need since the row itself last ran it; empty
    /// unless rows wait and layers are deferred.
    pub(crate) ahead: Vec<Vec<u64>>,
    /// Per row of the cache, while drafts are made; empty otherwise.
    pub(crate) exact: Vec<Exact>,
    pub(crate) out: Generation,
}

/// A token of a row and how it came to be.
pub(crate) struct Chosen {
    pub(crate) row: usize,
    pub(crate) token: u32,
    pub(crate) layers: f64,
    pub(crate) trace: TokenTrace,
}

impl Chosen {
    pub(crate) fn new(decoded: Decoded, token: u32) -> Self {
        Self {
            row: decoded.row,
            token,
            layers: decoded.layers,
            trace: decoded.trace,
        }
    }
}

impl Run<'_> {
    /// Greedy or drawn tokens: one continuation for each prompt.
    fn continue_each(
        &mut self,
        prompts: &[Vec<u32>],
        strategy: &mut dyn Strategy,
        options: &Options,
    ) -> Result<()> {
        let mut chooser = Chooser::new(options.sampling.as_ref(), prompts.len());
        let clock = Clock::start(self.model)?;
        let logits = self.prefill(prompts, 1, strategy)?;
        let first = self.choose(
            &logits,
            (0..prompts.len()).collect(),
            prompts,
            &mut chooser,
            options,
        )?;
        self.out.prefill_s = clock.stop(self.model)?;
        let ran = self.prompt_layers(strategy);
        let first = first
            .into_iter()
            .enumerate()
            .map(|(row, token)| Chosen {
                row,
                token,
                layers: ran.sub_layers() as f64 / 2.0,
                trace: TokenTrace::new(ran),
            })
            .collect();
        let mut live = self.accept(first, options);

        let mut step = 1;
        while !live.is_empty() && step < options.max_new_tokens {
            let clock = Clock::start(self.model)?;
            let chosen = match strategy.draft() {
                Some(limit) => self.speculate(prompts, &live, limit, strategy, options)?,
                None => self.step(prompts, &live, step, strategy, &mut chooser, options)?,
            };
            self.out.step_s.push(clock.stop(self.model)?);
            live = self.accept(chosen, options);
            step += 1;
        }
        if strategy.draft().is_some() {
            self.charge_full(prompts);
        }
        if options.trace {
            self.trace_provenance(prompts);
        }
        if options.audit {
            self.audit(prompts)?;
        }
        Ok(())
    }

    /// The layers that the prompt runs through.
    fn prompt_layers(&self, strategy: &dyn Strategy) -> LayerSet {
        match self.needs.prefill {
            Prefill::Full => LayerSet::full(self.model.sizes().n_layers),
            Prefill::Skip => strategy.reachable(),
        }
    }

    /// The prompts through their layers; logits behind each: `[prompts, vocab_size]`. Prompt `i` is row `i * stride` of
    /// the cache.
    pub(crate) fn prefill(
        &mut self,
        prompts: &[Vec<u32>],
        stride: usize,
        strategy: &mut dyn Strategy,
    ) -> Result<Tensor> {
        let mut spans = Span::prompts(prompts.iter().map(Vec::len));
        for span in &mut spans {
            span.row *= stride;
        }
        let layers = self.prompt_layers(strategy);
        let by_part = self.needs.prompt_signal == Some(PromptSignal::Similarity);
        let mut similarity = vec![Vec::new(); prompts.len()];
        let mut hidden = self.model.embed(&prompts.concat())?;
        for layer in layers.iter() {
            let parts = match (part_of(&layers, layer), by_part) {
                (Some(Part::Whole), true) => vec![Part::Attention, Part::Mlp],
                (Some(part), _) => vec![part],
                (None, _) => Vec::new(),
            };
            for part in parts {
                let before = hidden;
                hidden = self
                    .model
                    .layer_part(layer, part, &before, &mut self.cache, &spans)?;
                if by_part {
                    let cosines = signal::cosine(&before, &hidden)?;
                    let mut cosines = cosines.into_iter();
                    for (span, values) in spans.iter().zip(&mut similarity) {
                        let sum: f64 = cosines.by_ref().take(span.len).sum();
                        values.push(sum / span.len as f64);
                    }
                }
            }
        }
        let mut last = 0;
        let ends: Vec<usize> = spans
            .iter()
            .map(|span| {
                last += span.len;
                last - 1
            })
            .collect();
        let logits = self.model.head(&select(&hidden, &ends)?)?;
        let signals = match self.needs.prompt_signal {
            None => return Ok(logits),
            Some(PromptSignal::Similarity) => similarity,
            Some(PromptSignal::Confidence(signal)) => {
                let values = signal::from_logits(signal, &logits)?;
                values.into_iter().map(|value| vec![value]).collect()
            }
        };
        for (prompt, signal) in signals.iter().enumerate() {
            for row in prompt * stride..(prompt + 1) * stride {
                strategy.observe_prompt(row, signal);
            }
        }
        Ok(logits)
    }

    /// The next token of every row that is live.
    fn step(
        &mut self,
        prompts: &[Vec<u32>],
        live: &[usize],
        step: usize,
        strategy: &mut dyn Strategy,
        chooser: &mut Chooser,
        options: &Options,
    ) -> Result<Vec<Chosen>> {
        let spans: Vec<Span> = live
            .iter()
            .map(|&row| Span::token(row, prompts[row].len() + step - 1))
            .collect();
        let ids: Vec<u32> = live.iter().map(|&row| self.last_token(row)).collect();
        self.out.ledger.step(self.model.sizes(), &spans);
        let plan = strategy.plan(step);
        let step = self.decode(&ids, &spans, &plan, strategy)?;
        let rows = step.rows.iter().map(|decoded| decoded.row).collect();
        let tokens = self.choose(&step.logits, rows, prompts, chooser, options)?;
        let chosen = step.rows.into_iter().zip(tokens);
        Ok(chosen
            .map(|(decoded, token)| Chosen::new(decoded, token))
            .collect())
    }

    /// A token of each of `rows` from `logits`: `[rows.len(), vocab_size]`.
    fn choose(
        &self,
        logits: &Tensor,
        rows: Vec<usize>,
        prompts: &[Vec<u32>],
        chooser: &mut Chooser,
        options: &Options,
    ) -> Result<Vec<u32>> {
        if options.no_repeat_ngram == 0 {
            return chooser.choose(&rows, logits);
        }
        let vocab = logits.dim(1)?;
        let mut values = logits.flatten_all()?.to_vec1::<f32>()?;
        for (&row, values) in rows.iter().zip(values.chunks_exact_mut(vocab)) {
            let sequence = [&prompts[row][..], &self.out.rows[row].tokens].concat();
            for banned in ngram::banned(&sequence, options.no_repeat_ngram) {
                values[banned as usize] = f32::NEG_INFINITY;
            }
        }
        let logits = Tensor::from_vec(values, logits.shape().clone(), logits.device())?;
        chooser.choose(&rows, &logits)
    }

    pub(crate) fn last_token(&self, row: usize) -> u32 {
        self.out.rows[row].tokens.last().copied().unwrap_or(0)
    }

    /// Records tokens, those of a row one after the other; gives the rows that go on.
    fn accept(&mut self, chosen: Vec<Chosen>, options: &Options) -> Vec<usize> {
        let mut live = Vec::with_capacity(chosen.len());
        for Chosen {
            row,
            token,
            layers,
            trace,
        } in chosen
        {
            let output = &mut self.out.rows[row];
            output.tokens.push(token);
            output.layers.push(layers);
            if options.trace {
                output.trace.push(trace);
            }
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

    /// What the cache holds at the position behind which each token was chosen.
    fn trace_provenance(&mut self, prompts: &[Vec<u32>]) {
        let n_layers = self.model.sizes().n_layers;
        for (row, prompt) in prompts.iter().enumerate() {
            for (index, trace) in self.out.rows[row].trace.iter_mut().enumerate() {
                let position = prompt.len() + index - 1;
                trace.kv = (0..n_layers)
                    .map(|layer| self.cache.provenance(layer, row, position).letter())
                    .collect();
            }
        }
    }
}

/// Wall-clock time with the device idle at both ends.
pub(crate) struct Clock(Instant);

impl Clock {
    pub(crate) fn start(model: &dyn CausalLm) -> Result<Self> {
        model.device().synchronize()?;
        Ok(Self(Instant::now()))
    }

    pub(crate) fn stop(self, model: &dyn CausalLm) -> Result<f64> {
        model.device().synchronize()?;
        Ok(self.0.elapsed().as_secs_f64())
    }
}
