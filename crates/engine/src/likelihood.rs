//! The log-probabilities that a model under a strategy gives to text that is already there.

use crate::error::{EngineError, Result};
use crate::generate::Engine;
use crate::options::Options;
use crate::run::Run;
use crate::signal;
use crate::tensors::part_of;
use candle_core::Tensor;
use serde::{Deserialize, Serialize};
use skipbench_model::{CausalLm, KvCache, ModelError, Span};
use skipbench_strategy::{BatchShape, LayerSet, Strategy};

/// Which layers a scored token has behind it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ScoreMode {
    /// Those that would have run had the token been generated: the context as a prompt, each token of the continuation as a
    /// decode step, with its skipped layers, KV fills and exits.
    #[default]
    AsDecoded,
    /// The strategy's layers at every position, the context's too, as papers on pruning report. A strategy that decides token
    /// by token has no such layers.
    OnePass,
}

/// How to score.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ScoreOptions {
    /// Which layers a scored token has behind it.
    pub mode: ScoreMode,
    /// Tokens that a schedule by position is laid over, where that is another number than those of the longest continuation:
    /// the `max-new-tokens` of the generation that is scored.
    pub planned_tokens: Option<usize>,
}

/// A text and what stands in front of it, as token ids; neither is empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ScoredText {
    /// What stands in front.
    pub context: Vec<u32>,
    /// What is scored.
    pub continuation: Vec<u32>,
}

impl ScoredText {
    /// A long text in windows of at most `window` tokens that begin `stride` apart, as the guide of transformers does it. Each
    /// token is scored once, behind what its window holds in front of it. The first token of all is not scored, and where the
    /// stride is as long as the window, the first of each window is not either: nothing stands in front of it.
    ///
    /// ```
    /// # use skipbench_engine::ScoredText;
    /// let windows = ScoredText::windows(&[5, 6, 7, 8, 9], 4, 2);
    /// assert_eq!(windows[0].continuation, [6, 7, 8]);
    /// assert_eq!((&windows[1].context[..], &windows[1].continuation[..]), (&[7, 8][..], &[9][..]));
    /// ```
    pub fn windows(ids: &[u32], window: usize, stride: usize) -> Vec<Self> {
        let (mut found, mut scored) = (Vec::new(), 0);
        for begin in (0..ids.len()).step_by(stride.max(1)) {
            let end = begin.saturating_add(window).min(ids.len());
            let first = scored.max(begin + 1);
            if first < end {
                found.push(Self {
                    context: ids[begin..first].to_vec(),
                    continuation: ids[first..end].to_vec(),
                });
            }
            scored = end;
            if end == ids.len() {
                break;
            }
        }
        found
    }
}

/// What the tokens of a continuation got.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Likelihood {
    /// Natural logarithm of the probability of each token.
    pub log_probabilities: Vec<f64>,
    /// Whether each token was the most likely one.
    pub is_likeliest: Vec<bool>,
    /// Layers run for each token, half a layer for a sub-layer.
    pub layers: Vec<f64>,
}

impl Likelihood {
    /// Natural logarithm of the probability of the whole continuation.
    pub fn sum(&self) -> f64 {
        self.log_probabilities.iter().sum()
    }

    /// Whether greedy decoding would have given the continuation.
    pub fn is_greedy(&self) -> bool {
        self.is_likeliest.iter().all(|&likeliest| likeliest)
    }

    fn push(&mut self, logits: &[f32], token: u32, layers: f64) {
        let likeliest = signal::likeliest(logits);
        self.log_probabilities
            .push(signal::log_probability(logits, token));
        self.is_likeliest.push(likeliest == Some(token));
        self.layers.push(layers);
    }
}

/// Positions whose logits are held at once: at 256k tokens of vocabulary they take 64 MiB.
const POSITIONS_AT_ONCE: usize = 64;

impl Engine<'_> {
    /// Scores each continuation behind its context, all in one batch. A self-speculative strategy scores as the full network,
    /// which verifies its drafts.
    ///
    /// # Errors
    /// An empty batch, context or continuation, a text that does not fit, a strategy that has no layers of its own in
    /// [`ScoreMode::OnePass`], logits that are not numbers.
    pub fn score(
        &self,
        texts: &[ScoredText],
        strategy: &mut dyn Strategy,
        how: ScoreOptions,
    ) -> Result<Vec<Likelihood>> {
        let longest = self.check_scored(texts, how.mode)?;
        let contexts: Vec<Vec<u32>> = texts.iter().map(|text| text.context.clone()).collect();
        let n_layers = self.model().sizes().n_layers;
        let shape = BatchShape {
            prompt_lens: contexts.iter().map(Vec::len).collect(),
            n_layers,
            max_new_tokens: how.planned_tokens.unwrap_or(longest),
        };
        let fixed = fixed_layers(strategy, &shape)?;
        if how.mode == ScoreMode::OnePass {
            let layers = fixed.ok_or(EngineError::NoFixedLayers)?;
            return score_in_one_pass(self.model(), texts, &layers);
        }
        let options = Options {
            max_new_tokens: longest,
            planned_tokens: how.planned_tokens,
            ..Options::default()
        };
        let mut run = Run::new(self.model(), &contexts, strategy, &options)?;
        let mut found = run.score_first(texts)?;
        match fixed {
            Some(layers) => run.score_rest_at_once(texts, &layers, &mut found)?,
            None => run.score_rest_stepwise(texts, &mut found)?,
        }
        Ok(found)
    }

    /// Whether [`Engine::score`] can take these texts; gives the length of the longest continuation.
    ///
    /// # Errors
    /// An empty batch, context or continuation, a text that does not fit or cannot be decoded in one go.
    pub fn check_scored(&self, texts: &[ScoredText], mode: ScoreMode) -> Result<usize> {
        for (row, text) in texts.iter().enumerate() {
            if text.continuation.is_empty() {
                return Err(EngineError::NothingToScore { row });
            }
            if text.context.is_empty() {
                return Err(ModelError::EmptyPrompt { row }.into());
            }
            // The last token is never fed.
            let (context, behind) = (text.context.len(), text.continuation.len() - 1);
            match mode {
                ScoreMode::AsDecoded => self.check_length(row, context, behind)?,
                ScoreMode::OnePass => self.check_length(row, context + behind, 0)?,
            }
        }
        let lengths = texts.iter().map(|text| text.continuation.len());
        lengths.max().ok_or(EngineError::EmptyBatch)
    }
}

/// The layers of every decode step, where they are the same at each step and for each row, whatever the tokens are. All of
/// them where drafts are verified by all.
fn fixed_layers(strategy: &mut dyn Strategy, shape: &BatchShape) -> Result<Option<LayerSet>> {
    strategy.begin(shape)?;
    if strategy.draft().is_some() {
        return Ok(Some(LayerSet::full(shape.n_layers)));
    }
    let needs = strategy.needs();
    if needs.signal.is_some() || needs.prompt_signal.is_some() || needs.oracle.is_some() {
        return Ok(None);
    }
    let first = strategy.plan(1);
    let rows = 0..shape.prompt_lens.len();
    let same = (2..shape.max_new_tokens.max(3)).all(|step| strategy.plan(step) == first)
        && rows
            .into_iter()
            .all(|row| strategy.row_layers(row).is_none());
    Ok((same && first.checks == LayerSet::empty()).then_some(first.layers))
}

/// Every position through `layers`.
fn score_in_one_pass(
    model: &dyn CausalLm,
    texts: &[ScoredText],
    layers: &LayerSet,
) -> Result<Vec<Likelihood>> {
    let fed: Vec<Vec<u32>> = texts
        .iter()
        .map(|text| {
            [
                &text.context[..],
                &text.continuation[..text.continuation.len() - 1],
            ]
            .concat()
        })
        .collect();
    let spans = Span::prompts(fed.iter().map(Vec::len));
    let mut cache = model.new_cache(texts.len(), vec![0; model.sizes().n_layers])?;
    let hidden = through(model, layers, &fed.concat(), &mut cache, &spans)?;
    let mut found = vec![Likelihood::default(); texts.len()];
    let mut behind = Vec::new();
    let mut start = 0;
    for (row, text) in texts.iter().enumerate() {
        let first = start + text.context.len() - 1;
        let tokens = text.continuation.iter().enumerate();
        behind.extend(tokens.map(|(index, &token)| (first + index, row, token)));
        start += fed[row].len();
    }
    let ran = layers.sub_layers() as f64 / 2.0;
    read_off(model, &hidden, &behind, ran, &mut found)?;
    check_numbers(&found)?;
    Ok(found)
}

/// The state behind each of `ids`: `[tokens, d_model]`.
fn through(
    model: &dyn CausalLm,
    layers: &LayerSet,
    ids: &[u32],
    cache: &mut KvCache,
    spans: &[Span],
) -> Result<Tensor> {
    let mut hidden = model.embed(ids, spans)?;
    for layer in layers.iter() {
        if let Some(part) = part_of(layers, layer) {
            hidden = model.layer_part(layer, part, &hidden, cache, spans)?;
        }
    }
    Ok(hidden)
}

/// Reads the LM head for each of `behind`, (position in `hidden`, row, the token that comes next).
fn read_off(
    model: &dyn CausalLm,
    hidden: &Tensor,
    behind: &[(usize, usize, u32)],
    ran: f64,
    found: &mut [Likelihood],
) -> Result<()> {
    for some in behind.chunks(POSITIONS_AT_ONCE) {
        let positions: Vec<u32> = some.iter().map(|&(position, ..)| position as u32).collect();
        let positions = Tensor::new(positions, hidden.device())?;
        let logits = model.head(&hidden.index_select(&positions, 0)?)?;
        let vocab = logits.dim(1)?;
        let values = logits.flatten_all()?.to_vec1::<f32>()?;
        for (&(_, row, token), logits) in some.iter().zip(values.chunks_exact(vocab)) {
            found[row].push(logits, token, ran);
        }
    }
    Ok(())
}

fn check_numbers(found: &[Likelihood]) -> Result<()> {
    for (row, likelihood) in found.iter().enumerate() {
        let bad = |log_probability: &f64| log_probability.is_nan();
        if let Some(token) = likelihood.log_probabilities.iter().position(bad) {
            return Err(EngineError::NotNumbers {
                what: "logits",
                row,
                token: token + 1,
                layer: None,
            });
        }
    }
    Ok(())
}

impl Run<'_> {
    /// The first token of each continuation, which the prompt's pass gives.
    fn score_first(&mut self, texts: &[ScoredText]) -> Result<Vec<Likelihood>> {
        let logits = self.prefill()?.to_vec2::<f32>()?;
        let ran = self.prompt_layers().sub_layers() as f64 / 2.0;
        let mut found = vec![Likelihood::default(); texts.len()];
        for ((logits, text), found) in logits.iter().zip(texts).zip(&mut found) {
            found.push(logits, text.continuation[0], ran);
        }
        check_numbers(&found)?;
        Ok(found)
    }

    /// The other tokens in one pass: where every step runs the same layers, no step reads what another one left out.
    fn score_rest_at_once(
        &mut self,
        texts: &[ScoredText],
        layers: &LayerSet,
        found: &mut [Likelihood],
    ) -> Result<()> {
        let (mut ids, mut spans, mut behind) = (Vec::new(), Vec::new(), Vec::new());
        for (row, text) in texts.iter().enumerate() {
            let len = text.continuation.len() - 1;
            if len > 0 {
                spans.push(Span {
                    row,
                    start: text.context.len(),
                    len,
                });
                let next = text.continuation[1..].iter().enumerate();
                behind.extend(next.map(|(index, &token)| (ids.len() + index, row, token)));
                ids.extend_from_slice(&text.continuation[..len]);
            }
        }
        if ids.is_empty() {
            return Ok(());
        }
        let hidden = through(self.model, layers, &ids, &mut self.cache, &spans)?;
        let ran = layers.sub_layers() as f64 / 2.0;
        read_off(self.model, &hidden, &behind, ran, found)?;
        check_numbers(found)
    }

    /// The other tokens step by step, each fed as if it had been chosen.
    fn score_rest_stepwise(
        &mut self,
        texts: &[ScoredText],
        found: &mut [Likelihood],
    ) -> Result<()> {
        for step in 1..self.options.max_new_tokens {
            let live: Vec<usize> = (0..texts.len())
                .filter(|&row| step < texts[row].continuation.len())
                .collect();
            let spans: Vec<Span> = live
                .iter()
                .map(|&row| Span::token(row, texts[row].context.len() + step - 1))
                .collect();
            let ids: Vec<u32> = live
                .iter()
                .map(|&row| texts[row].continuation[step - 1])
                .collect();
            let plan = self.strategy.plan(step);
            let decoded = self.decode(&ids, &spans, &plan)?;
            let logits = decoded.logits.to_vec2::<f32>()?;
            for (row, logits) in decoded.rows.iter().zip(&logits) {
                found[row.row].push(logits, texts[row.row].continuation[step], row.layers);
            }
            check_numbers(found)?;
        }
        Ok(())
    }
}
