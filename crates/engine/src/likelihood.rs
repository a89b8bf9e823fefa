//! The log-probabilities that a model under a strategy gives to text that is already there.

use crate::error::{EngineError, Result};
use crate::generate::Engine;
use crate::generation::TokenScore;
use crate::options::Options;
use crate::run::Run;
use crate::signal;
use crate::tensors::part_of;
use candle_core::Tensor;
use rayon::prelude::*;
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

impl ScoreMode {
    /// As it is written.
    pub fn name(self) -> &'static str {
        match self {
            Self::AsDecoded => "as-decoded",
            Self::OnePass => "one-pass",
        }
    }
}

impl std::fmt::Display for ScoreMode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// How to score.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ScoreOptions {
    /// Which layers a scored token has behind it.
    pub mode: ScoreMode,
    /// Tokens that a schedule by position is laid over, where that is another number than those of the longest continuation:
    /// the `max-new-tokens` of the generation that is scored.
    pub planned_tokens: Option<usize>,
    /// Whether each token's distribution is compared with the full network's, which takes a pass of it. Its states are held for
    /// the batch, its distributions for some tokens at a time.
    pub against_full: bool,
    /// Give so many likeliest tokens beside each token.
    pub likeliest: usize,
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

impl ScoredText {
    /// A long text in windows that feed at most `window` tokens, as lm-eval rolls them: each token is scored once, the first
    /// behind `beginning`, the first of each later window behind the token in front of it. The last window reaches back as
    /// far as it may.
    ///
    /// ```
    /// # use skipbench_engine::ScoredText;
    /// let windows = ScoredText::rolling(1, &[5, 6, 7, 8, 9], 3);
    /// assert_eq!((&windows[0].context[..], &windows[0].continuation[..]), (&[1][..], &[5, 6, 7][..]));
    /// assert_eq!((&windows[1].context[..], &windows[1].continuation[..]), (&[6, 7][..], &[8, 9][..]));
    /// ```
    pub fn rolling(beginning: u32, ids: &[u32], window: usize) -> Vec<Self> {
        let window = window.max(1);
        let whole = [&[beginning], ids].concat();
        // The token at `whole[index]` is scored behind those in front of it.
        let starts = (1..whole.len()).step_by(window);
        starts
            .map(|first| {
                let end = (first + window).min(whole.len());
                let begin = match first {
                    1 => 0,
                    // The last token is never fed.
                    _ => end - 1 - window,
                };
                Self {
                    context: whole[begin..first].to_vec(),
                    continuation: whole[first..end].to_vec(),
                }
            })
            .collect()
    }
}

/// What the tokens of a continuation got.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Likelihood {
    /// Natural logarithm of the probability of each token.
    pub log_probabilities: Vec<f64>,
    /// Whether each token was the most likely one.
    pub is_likeliest: Vec<bool>,
    /// The likeliest tokens in each token's place with their log-probabilities, as many as were asked for.
    pub likeliest: Vec<Vec<(u32, f64)>>,
    /// Layers run for each token, half a layer for a sub-layer.
    pub layers: Vec<f64>,
    /// Kullback-Leibler divergence of the full network's distribution from the one that each token got, in nats; empty unless it
    /// was asked for ([`ScoreOptions::against_full`]).
    pub divergences: Vec<f64>,
    /// Whether the full network finds the same token likeliest; empty likewise.
    pub same_choice: Vec<bool>,
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
        let mut reader = Reader::new(self.model(), texts, how)?;
        if how.mode == ScoreMode::OnePass {
            let layers = fixed.ok_or(EngineError::NoFixedLayers)?;
            reader.read_in_one_pass(&layers)?;
            return Ok(reader.found);
        }
        let options = Options {
            max_new_tokens: longest,
            planned_tokens: how.planned_tokens,
            ..Options::default()
        };
        let mut run = Run::new(self.model(), &contexts, strategy, &options)?;
        run.score_first(&mut reader)?;
        match fixed {
            Some(layers) => run.score_rest_at_once(&mut reader, &layers)?,
            None => run.score_rest_stepwise(&mut reader)?,
        }
        Ok(reader.found)
    }

    /// Whether rows that generate, or are scored over, different numbers of tokens can share a batch without any of them
    /// noticing: the strategy's decode steps run the same layers whatever those are. `max_new_tokens`: the most of any row.
    ///
    /// # Errors
    /// A strategy that does not suit the model.
    pub fn lengths_mix(&self, strategy: &mut dyn Strategy, max_new_tokens: usize) -> Result<bool> {
        let mut layers = |max_new_tokens| {
            let shape = BatchShape {
                prompt_lens: vec![1],
                n_layers: self.model().sizes().n_layers,
                max_new_tokens,
            };
            fixed_layers(strategy, &shape)
        };
        let (some, more) = (layers(max_new_tokens)?, layers(2 * max_new_tokens + 64)?);
        Ok(some.is_some() && some == more)
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

/// A token of a continuation: its row, its place in the continuation, and where the state in front of it lies.
#[derive(Clone, Copy)]
struct Place {
    row: usize,
    index: usize,
    position: usize,
}

/// Reads tokens off the LM head.
struct Reader<'a> {
    model: &'a dyn CausalLm,
    texts: &'a [ScoredText],
    /// What the full network has in front of each scored token, `[scored tokens, d_model]`, and where those of each row begin.
    full: Option<(Tensor, Vec<usize>)>,
    /// So many likeliest tokens are wanted beside each.
    likeliest: usize,
    found: Vec<Likelihood>,
}

impl<'a> Reader<'a> {
    fn new(model: &'a dyn CausalLm, texts: &'a [ScoredText], how: ScoreOptions) -> Result<Self> {
        let mut reader = Self {
            model,
            texts,
            full: None,
            likeliest: how.likeliest,
            found: vec![Likelihood::default(); texts.len()],
        };
        if how.against_full {
            let layers = LayerSet::full(model.sizes().n_layers);
            let (hidden, places) = reader.in_one_pass(&layers)?;
            let positions: Vec<u32> = places.iter().map(|place| place.position as u32).collect();
            let positions = Tensor::new(positions, hidden.device())?;
            let lengths = texts.iter().map(|text| text.continuation.len());
            let starts = lengths.scan(0, |sum, len| Some(std::mem::replace(sum, *sum + len)));
            reader.full = Some((hidden.index_select(&positions, 0)?, starts.collect()));
        }
        Ok(reader)
    }

    /// Every position through `layers`: states, and which of them stand in front of a scored token.
    fn in_one_pass(&self, layers: &LayerSet) -> Result<(Tensor, Vec<Place>)> {
        let fed: Vec<Vec<u32>> = self
            .texts
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
        let n_layers = self.model.sizes().n_layers;
        let mut cache = self.model.new_cache(fed.len(), vec![0; n_layers])?;
        let hidden = through(self.model, layers, &fed.concat(), &mut cache, &spans)?;
        let mut places = Vec::new();
        let mut start = 0;
        for (row, text) in self.texts.iter().enumerate() {
            let first = start + text.context.len() - 1;
            places.extend((0..text.continuation.len()).map(|index| Place {
                row,
                index,
                position: first + index,
            }));
            start += fed[row].len();
        }
        Ok((hidden, places))
    }

    fn read_in_one_pass(&mut self, layers: &LayerSet) -> Result<()> {
        let (hidden, places) = self.in_one_pass(layers)?;
        self.read_off(&hidden, &places, layers.sub_layers() as f64 / 2.0)
    }

    /// Reads the LM head off the states of `places`, behind which `ran` layers ran.
    fn read_off(&mut self, hidden: &Tensor, places: &[Place], ran: f64) -> Result<()> {
        for some in places.chunks(POSITIONS_AT_ONCE) {
            let positions: Vec<u32> = some.iter().map(|place| place.position as u32).collect();
            let positions = Tensor::new(positions, hidden.device())?;
            let logits = self.model.head(&hidden.index_select(&positions, 0)?)?;
            let tokens: Vec<(usize, usize)> =
                some.iter().map(|place| (place.row, place.index)).collect();
            self.take(&logits, &tokens, &vec![ran; some.len()])?;
        }
        Ok(())
    }

    /// Takes `logits`, `[tokens, vocab_size]`, of (row, place in its continuation), with the layers that ran for each.
    fn take(&mut self, logits: &Tensor, tokens: &[(usize, usize)], ran: &[f64]) -> Result<()> {
        let vocab = logits.dim(1)?;
        let values = logits.flatten_all()?.to_vec1::<f32>()?;
        for (at, some) in tokens.chunks(POSITIONS_AT_ONCE).enumerate() {
            let at = at * POSITIONS_AT_ONCE;
            let full = self.full_logits(some)?;
            let read: Vec<Read> = some
                .par_iter()
                .enumerate()
                .map(|(nth, &(row, index))| {
                    let logits = &values[(at + nth) * vocab..][..vocab];
                    let full = full.as_ref().map(|full| &full[nth * vocab..][..vocab]);
                    Read::of(
                        logits,
                        self.texts[row].continuation[index],
                        self.likeliest,
                        full,
                    )
                })
                .collect();
            for ((&(row, index), read), &layers) in some.iter().zip(read).zip(&ran[at..]) {
                if read.score.log_probability.is_nan() || read.divergence.is_nan() {
                    return Err(EngineError::NotNumbers {
                        what: "logits",
                        row,
                        token: index + 1,
                        layer: None,
                    });
                }
                let found = &mut self.found[row];
                found.log_probabilities.push(read.score.log_probability);
                found.likeliest.push(read.score.likeliest);
                found.is_likeliest.push(read.is_likeliest);
                found.layers.push(layers);
                if self.full.is_some() {
                    found.divergences.push(read.divergence);
                    found.same_choice.push(read.same_choice);
                }
            }
        }
        Ok(())
    }

    /// The full network's logits of the same tokens, where they are asked for: `[tokens, vocab_size]`.
    fn full_logits(&self, tokens: &[(usize, usize)]) -> Result<Option<Vec<f32>>> {
        let Some((states, starts)) = &self.full else {
            return Ok(None);
        };
        let places = tokens
            .iter()
            .map(|&(row, index)| (starts[row] + index) as u32);
        let places = Tensor::new(places.collect::<Vec<u32>>(), states.device())?;
        let logits = self.model.head(&states.index_select(&places, 0)?)?;
        Ok(Some(logits.flatten_all()?.to_vec1::<f32>()?))
    }
}

/// What one token gets.
struct Read {
    score: TokenScore,
    is_likeliest: bool,
    divergence: f64,
    same_choice: bool,
}

impl Read {
    fn of(logits: &[f32], token: u32, most: usize, full: Option<&[f32]>) -> Self {
        // What is no number shows in the probability.
        let likeliest = signal::first_of_largest(logits);
        Self {
            score: signal::score(logits, token, most),
            is_likeliest: likeliest == Some(token as usize),
            divergence: full.map_or(0.0, |full| signal::divergence(full, logits)),
            same_choice: full.is_none_or(|full| signal::first_of_largest(full) == likeliest),
        }
    }
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

impl Run<'_> {
    /// The first token of each continuation, which the prompt's pass gives.
    fn score_first(&mut self, reader: &mut Reader<'_>) -> Result<()> {
        let logits = self.prefill()?;
        let ran = self.prompt_layers().sub_layers() as f64 / 2.0;
        let rows = reader.texts.len();
        let first: Vec<(usize, usize)> = (0..rows).map(|row| (row, 0)).collect();
        reader.take(&logits, &first, &vec![ran; rows])
    }

    /// The other tokens in one pass: where every step runs the same layers, no step reads what another one left out.
    fn score_rest_at_once(&mut self, reader: &mut Reader<'_>, layers: &LayerSet) -> Result<()> {
        let (mut ids, mut spans, mut places) = (Vec::new(), Vec::new(), Vec::new());
        for (row, text) in reader.texts.iter().enumerate() {
            let len = text.continuation.len() - 1;
            if len > 0 {
                spans.push(Span {
                    row,
                    start: text.context.len(),
                    len,
                });
                places.extend((0..len).map(|fed| Place {
                    row,
                    index: fed + 1,
                    position: ids.len() + fed,
                }));
                ids.extend_from_slice(&text.continuation[..len]);
            }
        }
        if ids.is_empty() {
            return Ok(());
        }
        let hidden = through(self.model, layers, &ids, &mut self.cache, &spans)?;
        reader.read_off(&hidden, &places, layers.sub_layers() as f64 / 2.0)
    }

    /// The other tokens step by step, each fed as if it had been chosen.
    fn score_rest_stepwise(&mut self, reader: &mut Reader<'_>) -> Result<()> {
        let texts = reader.texts;
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
            let tokens: Vec<(usize, usize)> =
                decoded.rows.iter().map(|row| (row.row, step)).collect();
            let ran: Vec<f64> = decoded.rows.iter().map(|row| row.layers).collect();
            reader.take(&decoded.logits, &tokens, &ran)?;
        }
        Ok(())
    }
}
