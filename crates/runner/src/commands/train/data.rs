//! Where the pairs of a training run come from.

use crate::digest::of_texts;
use crate::load::FilePairs;
use anyhow::{Context, bail};
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::Deserialize;
use serde_json::{Value, json};
use skipbench_prompts::PromptTemplate;
use skipbench_tasks::{Split, Task};
use skipbench_train::{EOS, Pair, TrainConfig};
use std::path::PathBuf;
use tokenizers::Tokenizer;

/// Steps whose pairs are drawn together and sorted by length, so that a batch holds little padding.
const WINDOW: u64 = 8;

/// A source of pairs.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct DataEntry {
    /// A built-in task.
    #[serde(default)]
    pub(super) builtin: Option<String>,
    /// Source texts, a line each (`.gz` too).
    #[serde(default)]
    pub(super) source: Option<PathBuf>,
    /// Reference texts, a line each.
    #[serde(default)]
    pub(super) reference: Option<PathBuf>,
    /// How a source becomes a prompt; `{{ source }}` stands for it.
    #[serde(default)]
    pub(super) prompt: Option<String>,
    /// Share of the pairs, relative to the other sources.
    #[serde(default = "one")]
    pub(super) weight: u32,
}

fn one() -> u32 {
    1
}

/// An open source of pairs.
pub(super) enum Source {
    Builtin {
        task: Task,
        weight: u32,
    },
    Files {
        /// Of the source texts, for errors to name.
        path: PathBuf,
        pairs: FilePairs,
        /// `None` for that of the built-in translation.
        prompt: Option<Box<PromptTemplate>>,
        weight: u32,
    },
}

impl Source {
    /// # Errors
    /// An entry that names no source or a setting that its source does not take, a file that cannot be read.
    pub(super) fn open(entry: &DataEntry) -> anyhow::Result<Self> {
        let weight = entry.weight;
        match (&entry.builtin, &entry.source, &entry.reference) {
            (Some(name), None, None) => {
                if entry.prompt.is_some() {
                    bail!("`prompt` has no effect: `builtin` tasks have their own; leave it out");
                }
                Ok(Source::Builtin {
                    task: name.parse()?,
                    weight,
                })
            }
            (None, Some(source), Some(reference)) => {
                let prompt = entry
                    .prompt
                    .as_deref()
                    .map(PromptTemplate::new)
                    .transpose()?
                    .map(Box::new);
                if let Some(prompt) = &prompt {
                    prompt.check(["source"])?;
                }
                Ok(Source::Files {
                    path: source.clone(),
                    pairs: FilePairs::read(source, reference)?,
                    prompt,
                    weight,
                })
            }
            _ => bail!("give either `builtin`, or both `source` and `reference`"),
        }
    }

    /// What its pairs depend on.
    pub(super) fn identity(&self) -> Value {
        match self {
            Source::Builtin { task, weight } => json!({"builtin": task.name(), "weight": weight}),
            Source::Files {
                pairs,
                prompt,
                weight,
                ..
            } => {
                let texts = pairs
                    .first(usize::MAX)
                    .flat_map(|(source, reference)| [source, reference]);
                let prompt = prompt
                    .as_ref()
                    .map_or(Task::Translation.prompt_template(), |prompt| {
                        prompt.source()
                    });
                json!({"texts": of_texts(texts), "prompt": prompt, "weight": weight})
            }
        }
    }

    pub(super) fn weight(&self) -> u32 {
        match self {
            Source::Builtin { weight, .. } | Source::Files { weight, .. } => *weight,
        }
    }

    /// Prompt and response texts of the `index`-th draw. The response begins with the space that separates it.
    ///
    /// # Errors
    /// A template that fails on a source.
    pub(super) fn pair(&self, index: u64) -> anyhow::Result<(String, String)> {
        match self {
            Source::Builtin { task, .. } => {
                let example = skipbench_tasks::example(
                    *task,
                    Split::Train,
                    skipbench_tasks::DEFAULT_SEED,
                    index,
                );
                self.texts((&example.source, &example.reference))
            }
            Source::Files { pairs, .. } => self.texts(pairs.shuffled(index)),
        }
    }

    /// Prompt and response of a pair of texts.
    fn texts(&self, (source, reference): (&str, &str)) -> anyhow::Result<(String, String)> {
        let prompt = match self {
            Source::Builtin { task, .. } => task.prompt(source),
            Source::Files { prompt: None, .. } => Task::Translation.prompt(source),
            Source::Files {
                prompt: Some(template),
                ..
            } => {
                let source = ("source".to_owned(), Value::from(source));
                template.render(&[source].into_iter().collect())?
            }
        };
        Ok((prompt, format!(" {reference}")))
    }
}

/// The source of the `index`-th pair, by weight.
pub(super) fn pick(sources: &[Source], index: u64, seed: u64) -> &Source {
    // The stream is drawn in 32 bits: the shipped checkpoints are its results.
    let total: u32 = sources.iter().map(Source::weight).sum();
    let mut rng =
        ChaCha8Rng::seed_from_u64(seed.wrapping_add(index.wrapping_mul(0x9e37_79b9_7f4a_7c15)));
    let mut at = rng.random_range(0..total.max(1));
    for source in sources {
        if at < source.weight() {
            return source;
        }
        at -= source.weight();
    }
    &sources[0]
}

/// Tokenized batches, a function of the step alone.
pub(super) struct PairSource {
    sources: Vec<Source>,
    tokenizer: Tokenizer,
    eos: u32,
    batch_size: usize,
    seed: u64,
    /// The window that is at hand, and its batches.
    window: Option<u64>,
    batches: Vec<Vec<Pair>>,
}

impl PairSource {
    pub(super) fn new(
        sources: Vec<Source>,
        tokenizer: Tokenizer,
        config: &TrainConfig,
    ) -> anyhow::Result<Self> {
        let eos = tokenizer
            .token_to_id(EOS)
            .with_context(|| format!("the tokenizer has no `{EOS}` token"))?;
        Ok(Self {
            sources,
            tokenizer,
            eos,
            batch_size: config.batch_size,
            seed: config.seed,
            window: None,
            batches: Vec::new(),
        })
    }

    /// Refuses files with a pair that has more tokens than the model has positions: it would be met after hours.
    ///
    /// # Errors
    /// Such a pair, by file and line.
    pub(super) fn check_fit(&self, max_positions: usize) -> anyhow::Result<()> {
        for source in &self.sources {
            let Source::Files { path, pairs, .. } = source else {
                continue;
            };
            for (line, texts) in pairs.first(usize::MAX).enumerate() {
                let pair = self.encode(&source.texts(texts)?)?;
                // The last token is only predicted.
                let tokens = pair.prompt.len() + pair.response.len();
                if tokens > max_positions + 1 {
                    bail!(
                        "{}: line {} and its reference are {tokens} tokens, more than `max-positions` {max_positions} allows; \
                         shorten or drop the pair",
                        path.display(),
                        line + 1
                    );
                }
            }
        }
        Ok(())
    }

    /// The pairs of a step.
    ///
    /// # Errors
    /// A text that the tokenizer does not take.
    pub(super) fn batch(&mut self, step: u64) -> anyhow::Result<&[Pair]> {
        let window = step / WINDOW;
        if self.window != Some(window) {
            self.batches = self.draw(window)?;
            self.window = Some(window);
        }
        Ok(&self.batches[(step % WINDOW) as usize])
    }

    /// The [`WINDOW`] batches of a window.
    fn draw(&self, window: u64) -> anyhow::Result<Vec<Vec<Pair>>> {
        let count = WINDOW * self.batch_size as u64;
        let mut pairs = (window * count..(window + 1) * count)
            .map(|index| self.encode(&pick(&self.sources, index, self.seed).pair(index)?))
            .collect::<anyhow::Result<Vec<Pair>>>()?;
        pairs.sort_by_key(|pair| pair.prompt.len() + pair.response.len());
        let mut batches: Vec<Vec<Pair>> = pairs
            .chunks(self.batch_size)
            .map(<[Pair]>::to_vec)
            .collect();
        batches.shuffle(&mut ChaCha8Rng::seed_from_u64(self.seed ^ window));
        Ok(batches)
    }

    fn encode(&self, (prompt, response): &(String, String)) -> anyhow::Result<Pair> {
        let encode = |text: &str, special: bool| {
            self.tokenizer
                .encode(text, special)
                .map(|encoding| encoding.get_ids().to_vec())
                .map_err(|error| anyhow::anyhow!("cannot tokenize {text:?}: {error}"))
        };
        let mut response = encode(response, false)?;
        response.push(self.eos);
        Ok(Pair {
            prompt: encode(prompt, true)?,
            response,
        })
    }
}
