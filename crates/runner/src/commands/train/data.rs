//! Where the pairs of a training run come from.

use crate::load::FilePairs;
use anyhow::{Context, bail};
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::Deserialize;
use skipbench_tasks::{Split, Task};
use skipbench_train::{EOS, Pair};
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
    /// How a source becomes a prompt; `{source}` stands for it.
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
        pairs: FilePairs,
        prompt: String,
        weight: u32,
    },
}

impl Source {
    pub(super) fn open_all(entries: &[DataEntry]) -> anyhow::Result<Vec<Source>> {
        entries.iter().map(Source::open).collect()
    }

    fn open(entry: &DataEntry) -> anyhow::Result<Self> {
        let weight = entry.weight;
        match (&entry.builtin, &entry.source, &entry.reference) {
            (Some(name), None, None) => Ok(Source::Builtin {
                task: name.parse()?,
                weight,
            }),
            (None, Some(source), Some(reference)) => Ok(Source::Files {
                pairs: FilePairs::read(source, reference)?,
                prompt: entry
                    .prompt
                    .clone()
                    .unwrap_or_else(|| Task::Translation.prompt_template().to_owned()),
                weight,
            }),
            _ => {
                bail!("an entry of `data` is either `builtin` or has both `source` and `reference`")
            }
        }
    }

    pub(super) fn weight(&self) -> u32 {
        match self {
            Source::Builtin { weight, .. } | Source::Files { weight, .. } => *weight,
        }
    }

    /// Prompt and response texts of the `index`-th draw. The response begins with the space that separates it.
    pub(super) fn pair(&self, index: u64) -> (String, String) {
        match self {
            Source::Builtin { task, .. } => {
                let example = skipbench_tasks::example(
                    *task,
                    Split::Train,
                    skipbench_tasks::DEFAULT_SEED,
                    index,
                );
                (
                    task.prompt(&example.source),
                    format!(" {}", example.reference),
                )
            }
            Source::Files { pairs, prompt, .. } => {
                let (source, reference) = pairs.shuffled(index);
                (prompt.replace("{source}", source), format!(" {reference}"))
            }
        }
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
    window: Option<(u64, Vec<Vec<Pair>>)>,
}

impl PairSource {
    pub(super) fn new(
        sources: Vec<Source>,
        tokenizer: Tokenizer,
        batch_size: usize,
        seed: u64,
    ) -> anyhow::Result<Self> {
        let eos = tokenizer
            .token_to_id(EOS)
            .with_context(|| format!("the tokenizer has no `{EOS}` token"))?;
        Ok(Self {
            sources,
            tokenizer,
            eos,
            batch_size,
            seed,
            window: None,
        })
    }

    pub(super) fn batch(&mut self, step: u64) -> anyhow::Result<Vec<Pair>> {
        let window = step / WINDOW;
        if self.window.as_ref().map(|(index, _)| *index) != Some(window) {
            self.window = Some((window, self.draw(window)?));
        }
        let batches = self.window.as_ref().map(|(_, batches)| batches);
        Ok(batches
            .and_then(|batches| batches.get((step % WINDOW) as usize))
            .cloned()
            .unwrap_or_default())
    }

    fn draw(&self, window: u64) -> anyhow::Result<Vec<Vec<Pair>>> {
        let count = WINDOW * self.batch_size as u64;
        let mut pairs = (window * count..(window + 1) * count)
            .map(|index| {
                let (prompt, response) = pick(&self.sources, index, self.seed).pair(index);
                let encode = |text: &str, special: bool| {
                    self.tokenizer
                        .encode(text, special)
                        .map(|encoding| encoding.get_ids().to_vec())
                        .map_err(|error| anyhow::anyhow!("cannot tokenize {text:?}: {error}"))
                };
                let mut response = encode(&response, false)?;
                response.push(self.eos);
                Ok(Pair {
                    prompt: encode(&prompt, true)?,
                    response,
                })
            })
            .collect::<anyhow::Result<Vec<Pair>>>()?;
        pairs.sort_by_key(|pair| pair.prompt.len() + pair.response.len());
        let mut batches: Vec<Vec<Pair>> = pairs
            .chunks(self.batch_size)
            .map(<[Pair]>::to_vec)
            .collect();
        batches.shuffle(&mut ChaCha8Rng::seed_from_u64(self.seed ^ window));
        Ok(batches)
    }
}
