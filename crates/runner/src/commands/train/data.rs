//! Where the pairs of a training run come from.

use super::start::{Start, Words};
use super::task::TaskPairs;
use crate::digest::of_texts;
use crate::experiment::TaskEntry;
use crate::load::{FilePairs, Order};
use crate::task::TaskData;
use anyhow::{Context, bail};
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use skipbench_model::Tokenize;
use skipbench_prompts::PromptTemplate;
use skipbench_tasks::{Split, Task};
use skipbench_train::{Pair, TrainConfig};
use std::path::PathBuf;

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
    /// A task as experiments have it: the keys of one, or the path of a file with them.
    #[serde(default)]
    pub(super) task: Option<Box<TaskEntry>>,
    /// Share of the pairs, relative to the other sources.
    #[serde(default = "one")]
    pub(super) weight: u32,
}

fn one() -> u32 {
    1
}

impl DataEntry {
    /// Refuses shares that nothing can be drawn by; `key` is what messages call the list.
    ///
    /// # Errors
    /// All of them are 0, or their sum is too large.
    pub(super) fn check_weights(entries: &[Self], key: &str) -> anyhow::Result<()> {
        let weight: u64 = entries.iter().map(|data| u64::from(data.weight)).sum();
        if weight == 0 {
            bail!("`{key}` is empty, or all its weights are 0");
        }
        if weight > u64::from(u32::MAX) {
            bail!(
                "the weights of `{key}` add up to {weight}, more than {}",
                u32::MAX
            );
        }
        Ok(())
    }
}

/// What becomes of a pair that is longer than the context.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum TooLong {
    /// The run is refused before it begins.
    #[default]
    Refuse,
    /// The end of its answer is cut off; without any of that it is left out.
    Cut,
    /// It is left out.
    LeaveOut,
}

/// What was done to a pair so that it fits.
enum Fitted {
    /// Nothing.
    Whole,
    /// The end of its answer was cut off.
    Cut,
    /// It does not fit, and is left out.
    Out,
    /// It does not fit, which is to be refused.
    Refused,
}

impl TooLong {
    /// Makes a pair fit into `longest` tokens if it may.
    fn fit(self, pair: &mut Pair, longest: usize) -> Fitted {
        match self {
            _ if pair.prompt.len() + pair.response.len() <= longest => Fitted::Whole,
            Self::Refuse => Fitted::Refused,
            Self::Cut if pair.prompt.len() < longest => {
                pair.response.truncate(longest - pair.prompt.len());
                Fitted::Cut
            }
            Self::Cut | Self::LeaveOut => Fitted::Out,
        }
    }
}

/// An open source of pairs.
pub(super) struct Source {
    texts: Texts,
    weight: u32,
}

/// Where its texts are.
enum Texts {
    Builtin(Task),
    Files {
        /// Of the source texts, for errors to name.
        path: PathBuf,
        pairs: FilePairs,
        /// `None` for that of the built-in translation.
        prompt: Option<Box<PromptTemplate>>,
    },
    Task(Box<TaskPairs>),
}

impl Source {
    /// # Errors
    /// An entry that names no source or a setting that its source does not take, a file that cannot be read.
    pub(super) fn open(entry: &DataEntry) -> anyhow::Result<Self> {
        let texts = match (&entry.builtin, &entry.source, &entry.reference, &entry.task) {
            (Some(name), None, None, None) => {
                if entry.prompt.is_some() {
                    bail!("`prompt` has no effect: `builtin` tasks have their own; leave it out");
                }
                Texts::Builtin(name.parse()?)
            }
            (None, Some(source), Some(reference), None) => {
                let prompt = entry
                    .prompt
                    .as_deref()
                    .map(PromptTemplate::new)
                    .transpose()?
                    .map(Box::new);
                if let Some(prompt) = &prompt {
                    prompt.check(["source"])?;
                }
                Texts::Files {
                    path: source.clone(),
                    pairs: FilePairs::read(source, reference)?,
                    prompt,
                }
            }
            (None, None, None, Some(task)) => {
                if entry.prompt.is_some() {
                    bail!("`prompt` of a task is one of its keys: `task: {{prompt: ...}}`");
                }
                Texts::Task(Box::new(open_task(task)?))
            }
            _ => bail!("give either `builtin`, or both `source` and `reference`, or a `task`"),
        };
        Ok(Self {
            texts,
            weight: entry.weight,
        })
    }

    /// What its pairs depend on.
    pub(super) fn identity(&self) -> Value {
        let mut identity = match &self.texts {
            Texts::Builtin(task) => json!({"builtin": task.name()}),
            Texts::Files { pairs, prompt, .. } => {
                let texts = pairs
                    .first(usize::MAX)
                    .flat_map(|(source, reference)| [source, reference]);
                let prompt = prompt
                    .as_ref()
                    .map_or(Task::Translation.prompt_template(), |prompt| {
                        prompt.source()
                    });
                json!({"texts": of_texts(texts), "prompt": prompt})
            }
            Texts::Task(task) => task.identity(),
        };
        identity["weight"] = self.weight.into();
        identity
    }

    /// Prompt and response texts of the `index`-th draw. The response begins with what separates it.
    ///
    /// # Errors
    /// A template that fails on a source.
    pub(super) fn pair(&self, index: u64) -> anyhow::Result<(String, String)> {
        match &self.texts {
            Texts::Builtin(task) => {
                let example = skipbench_tasks::example(
                    *task,
                    Split::Train,
                    skipbench_tasks::DEFAULT_SEED,
                    index,
                );
                Ok((
                    task.prompt(&example.source),
                    format!(" {}", example.reference),
                ))
            }
            Texts::Files { pairs, prompt, .. } => of_files(prompt, pairs.shuffled(index)),
            Texts::Task(task) => task.texts(index),
        }
    }

    /// What it is called in messages.
    fn name(&self) -> String {
        match &self.texts {
            Texts::Builtin(task) => task.name().to_owned(),
            Texts::Files { path, .. } => path.display().to_string(),
            Texts::Task(task) => task.name().to_owned(),
        }
    }
}

/// Prompt and response of a source and its reference.
fn of_files(
    prompt: &Option<Box<PromptTemplate>>,
    (source, reference): (&str, &str),
) -> anyhow::Result<(String, String)> {
    let prompt = match prompt {
        None => Task::Translation.prompt(source),
        Some(template) => {
            let source = ("source".to_owned(), Value::from(source));
            template.render(&[source].into_iter().collect())?
        }
    };
    Ok((prompt, format!(" {reference}")))
}

fn open_task(entry: &TaskEntry) -> anyhow::Result<TaskPairs> {
    entry
        .check_alone()
        .map_err(|error| anyhow::anyhow!("`task`: {error}"))?;
    let task = TaskData::open(entry).map_err(|failed| match failed.key {
        "" => failed.error.context("`task`"),
        key => failed.error.context(format!("`task.{key}`")),
    })?;
    let few_shot = entry.few_shot.as_ref();
    let delimiter = few_shot.and_then(|few_shot| few_shot.delimiter.clone());
    Ok(TaskPairs::new(task, delimiter))
}

/// The place of the source of the `index`-th pair, by weight.
fn pick_place(weights: impl Iterator<Item = u32> + Clone, index: u64, seed: u64) -> usize {
    // The stream is drawn in 32 bits: the shipped checkpoints are its results.
    let total: u32 = weights.clone().sum();
    let mut rng =
        ChaCha8Rng::seed_from_u64(seed.wrapping_add(index.wrapping_mul(0x9e37_79b9_7f4a_7c15)));
    let mut at = rng.random_range(0..total.max(1));
    for (place, weight) in weights.enumerate() {
        if at < weight {
            return place;
        }
        at -= weight;
    }
    0
}

/// The source of the `index`-th pair, by weight.
pub(super) fn pick(sources: &[Source], index: u64, seed: u64) -> &Source {
    let weights = sources.iter().map(|source| source.weight);
    &sources[pick_place(weights, index, seed)]
}

/// Tokenized batches, a function of the step alone.
pub(super) struct PairSource<'a> {
    draws: Vec<(Draw, u32)>,
    fits: Vec<Fit>,
    words: &'a Words,
    batch_size: usize,
    seed: u64,
    /// Tokens of a pair; the last is only predicted.
    longest: usize,
    too_long: TooLong,
    /// The window that is at hand, and its batches.
    window: Option<u64>,
    batches: Vec<Vec<Pair>>,
}

/// What pairs are drawn from.
enum Draw {
    /// Texts without an end, tokenized when they are drawn.
    Texts(Source),
    /// Pairs that fit, in shuffled order.
    Pairs { pairs: Vec<Pair>, order: Order },
}

/// How many pairs of a source are as long as the context lets them be.
pub(super) struct Fit {
    name: String,
    pairs: usize,
    cut: usize,
    left_out: usize,
    /// Tokens of those that are kept.
    tokens: usize,
}

impl Fit {
    /// `dialogsum: 12460 pairs of 214 tokens in the mean, 3 cut, 1 left out`.
    pub(super) fn text(&self) -> String {
        let mean = self.tokens as f64 / self.pairs.max(1) as f64;
        let mut text = format!(
            "{}: {} pairs of {mean:.0} tokens in the mean",
            self.name, self.pairs
        );
        for (count, what) in [(self.cut, "cut"), (self.left_out, "left out")] {
            if count > 0 {
                text += &format!(", {count} {what}");
            }
        }
        text
    }
}

impl<'a> PairSource<'a> {
    /// Tokenizes what is read whole, and sees to what has more tokens than the model has positions: it would be met after
    /// hours.
    ///
    /// # Errors
    /// A text that the tokenizer does not take; a pair that is too long, by file and line, where that is to be refused.
    pub(super) fn new(
        sources: Vec<Source>,
        words: &'a Words,
        start: Option<&Start>,
        config: &TrainConfig,
        max_positions: usize,
        too_long: TooLong,
    ) -> anyhow::Result<Self> {
        let mut fits = Vec::new();
        let mut draws = Vec::new();
        for source in sources {
            let weight = source.weight;
            let draw = match all_of(&source, words, start)? {
                None => Draw::Texts(source),
                Some(all) => {
                    let (pairs, fit) = fitting(&source, all, max_positions, too_long)?;
                    let order = Order::new(pairs.len());
                    fits.push(fit);
                    Draw::Pairs { pairs, order }
                }
            };
            draws.push((draw, weight));
        }
        Ok(Self {
            draws,
            fits,
            words,
            batch_size: config.batch_size,
            seed: config.seed,
            longest: max_positions + 1,
            too_long,
            window: None,
            batches: Vec::new(),
        })
    }

    /// How the sources that have an end fit.
    pub(super) fn fits(&self) -> &[Fit] {
        &self.fits
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

    /// The first `count` pairs of the stream.
    ///
    /// # Errors
    /// As of [`batch`](Self::batch).
    pub(super) fn first(&self, count: u64) -> anyhow::Result<Vec<Pair>> {
        (0..count).map(|index| self.pair(index)).collect()
    }

    /// The [`WINDOW`] batches of a window.
    fn draw(&self, window: u64) -> anyhow::Result<Vec<Vec<Pair>>> {
        let count = WINDOW * self.batch_size as u64;
        let mut pairs = (window * count..(window + 1) * count)
            .map(|index| self.pair(index))
            .collect::<anyhow::Result<Vec<Pair>>>()?;
        pairs.sort_by_key(|pair| pair.prompt.len() + pair.response.len());
        let mut batches: Vec<Vec<Pair>> = pairs
            .chunks(self.batch_size)
            .map(<[Pair]>::to_vec)
            .collect();
        batches.shuffle(&mut ChaCha8Rng::seed_from_u64(self.seed ^ window));
        Ok(batches)
    }

    fn pair(&self, index: u64) -> anyhow::Result<Pair> {
        let weights = self.draws.iter().map(|(_, weight)| *weight);
        match &self.draws[pick_place(weights, index, self.seed)].0 {
            Draw::Texts(source) => self.drawn(source, index),
            Draw::Pairs { pairs, order } => Ok(pairs[order.at(index)].clone()),
        }
    }

    /// A pair of a source without an end; another one in the place of one that is left out.
    fn drawn(&self, source: &Source, index: u64) -> anyhow::Result<Pair> {
        for draw in 0..DRAWS {
            let mut pair = encode(self.words, &source.pair(index + (draw << 40))?)?;
            match self.too_long.fit(&mut pair, self.longest) {
                // One that is to be refused is refused with its step.
                Fitted::Whole | Fitted::Cut | Fitted::Refused => return Ok(pair),
                Fitted::Out => {}
            }
        }
        bail!(
            "{}: none of {DRAWS} pairs fits into {} positions; give a longer `context`",
            source.name(),
            self.longest - 1
        )
    }
}

/// How often another pair is drawn for one that does not fit.
const DRAWS: u64 = 64;

/// All pairs of a source in file order; `None` for one without an end.
fn all_of(
    source: &Source,
    words: &Words,
    start: Option<&Start>,
) -> anyhow::Result<Option<Vec<Pair>>> {
    match &source.texts {
        Texts::Builtin(_) => Ok(None),
        Texts::Files { pairs, prompt, .. } => {
            let all = pairs.first(usize::MAX);
            let all = all.map(|texts| encode(words, &of_files(prompt, texts)?));
            all.collect::<anyhow::Result<_>>().map(Some)
        }
        Texts::Task(task) => {
            let pairs = task.pairs(words, start);
            pairs.with_context(|| source.name()).map(Some)
        }
    }
}

/// The pairs that fit, or are cut so that they do.
fn fitting(
    source: &Source,
    all: Vec<Pair>,
    max_positions: usize,
    too_long: TooLong,
) -> anyhow::Result<(Vec<Pair>, Fit)> {
    // The last token is only predicted.
    let longest = max_positions + 1;
    let mut fit = Fit {
        name: source.name(),
        pairs: 0,
        cut: 0,
        left_out: 0,
        tokens: 0,
    };
    let mut kept = Vec::with_capacity(all.len());
    for (index, mut pair) in all.into_iter().enumerate() {
        match too_long.fit(&mut pair, longest) {
            Fitted::Whole => {}
            Fitted::Cut => fit.cut += 1,
            Fitted::Out => {
                fit.left_out += 1;
                continue;
            }
            Fitted::Refused => {
                let place = match &source.texts {
                    Texts::Task(task) => task.place(index).to_owned(),
                    _ => format!("line {}", index + 1),
                };
                bail!(
                    "{}: {place} and its reference are {} tokens, more than `max-positions` {max_positions} allows; \
                     shorten or drop the pair, or set `too-long: cut` or `too-long: leave-out`",
                    fit.name,
                    pair.prompt.len() + pair.response.len()
                );
            }
        }
        fit.tokens += pair.prompt.len() + pair.response.len();
        kept.push(pair);
    }
    fit.pairs = kept.len();
    match kept.is_empty() {
        true => bail!(
            "{}: none of its {} pairs fits into {max_positions} positions; give a longer `context`",
            fit.name,
            fit.left_out
        ),
        false => Ok((kept, fit)),
    }
}

/// A prompt and its answer, with the token that ends it.
///
/// # Errors
/// A text that the tokenizer does not take.
pub(super) fn encode(words: &Words, (prompt, response): &(String, String)) -> anyhow::Result<Pair> {
    let mut response = words.encode_with(response, false)?;
    response.push(words.end()?);
    Ok(Pair {
        prompt: words.encode_with(prompt, true)?,
        response,
    })
}
