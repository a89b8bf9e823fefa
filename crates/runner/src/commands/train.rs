//! `skipbench train`.

use crate::load::FilePairs;
use crate::{experiment, progress};
use anyhow::{Context, bail};
use clap::Args;
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::Deserialize;
use skipbench_model::{Biases, ModelConfig};
use skipbench_report::LossSeries;
use skipbench_strategy::{BatchShape, LayerSet, StrategySpec};
use skipbench_tasks::{Split, Task};
use skipbench_train::{
    Batch, Control, EOS, ModelShape, Net, Pair, TrainConfig, Trainer, train_tokenizer,
};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};
use tokenizers::Tokenizer;

/// Steps whose pairs are drawn together and sorted by length, so that a batch holds little padding.
const WINDOW: u64 = 8;

/// Texts that a tokenizer is trained on.
const TOKENIZER_TEXTS: u64 = 20_000;

/// Arguments of `skipbench train`.
#[derive(Debug, Args)]
pub struct TrainArgs {
    /// YAML config of the run
    config: PathBuf,
    /// Stop after this many minutes with a checkpoint; the same command resumes
    #[arg(long)]
    minutes: Option<f64>,
}

/// A training config as written by a user. Relative paths are taken from the YAML file's folder.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct TrainFile {
    /// Hugging Face folder that the result is written to; its `training` sub-folder holds the unfinished run.
    out: PathBuf,
    /// Shape of a new model; leave out to start from `start-from`.
    #[serde(default)]
    shape: Option<ModelShape>,
    /// Hugging Face folder to fine-tune; its tokenizer is kept.
    #[serde(default)]
    start_from: Option<PathBuf>,
    /// Where the pairs come from.
    data: Vec<DataEntry>,
    /// Schedule and optimizer.
    train: TrainConfig,
    /// Layers that responses run; leave out for full depth.
    #[serde(default)]
    depths: Option<DepthEntry>,
    /// Element type of the written weights.
    #[serde(default)]
    dtype: Option<experiment::DtypeName>,
    /// What determines the batches besides `train`, as written: a run is only resumed with the same.
    #[serde(skip)]
    context: String,
}

/// A source of pairs.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct DataEntry {
    /// A built-in task.
    #[serde(default)]
    builtin: Option<String>,
    /// Source texts, a line each (`.gz` too).
    #[serde(default)]
    source: Option<PathBuf>,
    /// Reference texts, a line each.
    #[serde(default)]
    reference: Option<PathBuf>,
    /// How a source becomes a prompt; `{source}` stands for it.
    #[serde(default)]
    prompt: Option<String>,
    /// Share of the pairs, relative to the other sources.
    #[serde(default = "one")]
    weight: u32,
}

/// A depth drawn for each batch.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct DepthEntry {
    /// Strategies, one of which is drawn for each batch.
    strategies: Vec<StrategySpec>,
    /// Speedups, one of which is drawn for each batch.
    speedups: Vec<f64>,
    /// Percent of batches at full depth.
    #[serde(default)]
    full_percent: u32,
}

fn one() -> u32 {
    1
}

/// Trains, or goes on with what was cut off.
///
/// # Errors
/// A config that does not parse or cannot work, data that cannot be read, a folder that cannot be written.
pub fn run(args: TrainArgs) -> anyhow::Result<ExitCode> {
    let file = TrainFile::read(&args.config)?;
    let sources = Source::open_all(&file.data)?;
    let work = file.out.join("training");
    std::fs::create_dir_all(&work).with_context(|| format!("cannot write {}", work.display()))?;
    let tokenizer = file.tokenizer(&sources, &work)?;
    let net = file.net(&tokenizer)?;
    let n_layers = net.shape().n_layers;
    if let Some(depths) = &file.depths {
        depths.check(n_layers)?;
    }
    let mut trainer = Trainer::new(&work, &file.train, &file.context, net)?;
    let bar = progress::bar(file.train.steps, "training");
    bar.set_position(trainer.step());
    let mut pairs = PairSource::new(
        sources,
        tokenizer.clone(),
        file.train.batch_size,
        file.train.seed,
    )?;
    let deadline = args
        .minutes
        .map(|minutes| Instant::now() + Duration::from_secs_f64(minutes * 60.0));
    let mut smooth: Option<f64> = None;
    let mut failed = None;
    trainer
        .run(
            |step| {
                let pairs = pairs.batch(step).unwrap_or_else(|error| {
                    failed.get_or_insert(error);
                    Vec::new()
                });
                let depths = file
                    .depths
                    .as_ref()
                    .and_then(|depths| depths.draw(step, file.train.seed, n_layers, &pairs));
                (Batch::new(&pairs, file.train.loss_on), depths)
            },
            |done| {
                let loss = f64::from(done.loss);
                let mean = smooth.map_or(loss, |mean| 0.98 * mean + 0.02 * loss);
                smooth = Some(mean);
                bar.set_position(done.step);
                bar.set_message(format!(
                    "loss {mean:.4}, {:.0} tokens/s",
                    done.tokens as f64 / done.step_s
                ));
                match deadline {
                    Some(deadline) if Instant::now() >= deadline => Control::Stop,
                    _ => Control::Continue,
                }
            },
        )
        .map_err(|error| failed.take().unwrap_or_else(|| error.into()))?;
    bar.finish_and_clear();
    draw_loss(&work)?;
    trainer.export(
        &file.out,
        &tokenizer,
        file.dtype.map_or(candle_core::DType::F32, Into::into),
    )?;
    let finished = trainer.step() == file.train.steps;
    tracing::info!(
        "{} after {} of {} steps: {}",
        if finished { "finished" } else { "stopped" },
        trainer.step(),
        file.train.steps,
        file.out.display()
    );
    Ok(ExitCode::SUCCESS)
}

/// `loss.csv` as a plot beside it.
fn draw_loss(work: &Path) -> anyhow::Result<()> {
    let path = work.join("loss.csv");
    let text = std::fs::read_to_string(&path)
        .with_context(|| format!("cannot read {}", path.display()))?;
    let points = text
        .lines()
        .skip(1)
        .filter_map(|line| {
            let mut cells = line.split(',');
            Some((cells.next()?.parse().ok()?, cells.next()?.parse().ok()?))
        })
        .collect();
    let series = LossSeries {
        name: "training loss".to_owned(),
        points,
    };
    skipbench_report::loss_plot(&work.join("loss.svg"), &[series])?;
    Ok(())
}

impl TrainFile {
    fn read(path: &Path) -> anyhow::Result<Self> {
        let text = std::fs::read_to_string(path)
            .with_context(|| format!("cannot read {}", path.display()))?;
        let mut file: TrainFile = experiment::parse_yaml(&text, path)?;
        file.context = format!("{:?} {:?} {:?}", file.start_from, file.data, file.depths);
        let base = path.parent().unwrap_or(Path::new(""));
        file.out = base.join(&file.out);
        if let Some(start) = &mut file.start_from {
            *start = base.join(&*start);
        }
        for data in &mut file.data {
            for path in [&mut data.source, &mut data.reference]
                .into_iter()
                .flatten()
            {
                *path = base.join(&*path);
            }
        }
        match (&file.shape, &file.start_from) {
            (Some(_), None) | (None, Some(_)) => {}
            _ => bail!("{}: give either `shape` or `start-from`", path.display()),
        }
        if file.data.iter().map(|data| data.weight).sum::<u32>() == 0 {
            bail!(
                "{}: `data` is empty, or all its weights are 0",
                path.display()
            );
        }
        Ok(file)
    }

    /// The tokenizer of the model to start from, or one trained once on the data and kept with the run.
    fn tokenizer(&self, sources: &[Source], work: &Path) -> anyhow::Result<Tokenizer> {
        let load = |path: &Path| {
            Tokenizer::from_file(path)
                .map_err(|error| anyhow::anyhow!("{}: {error}", path.display()))
        };
        if let Some(start) = &self.start_from {
            return load(&start.join("tokenizer.json"));
        }
        let path = work.join("tokenizer.json");
        if path.is_file() {
            return load(&path);
        }
        let vocab_size = self.shape.as_ref().map_or(0, |shape| shape.vocab_size);
        let mut texts = Vec::new();
        for index in 0..TOKENIZER_TEXTS {
            let source = pick(sources, index, self.train.seed);
            let (prompt, response) = source.pair(index);
            texts.extend([prompt, response]);
        }
        let tokenizer = train_tokenizer(texts.into_iter(), vocab_size)?;
        tokenizer
            .save(&path, true)
            .map_err(|error| anyhow::anyhow!("{}: {error}", path.display()))?;
        Ok(tokenizer)
    }

    fn net(&self, tokenizer: &Tokenizer) -> anyhow::Result<Net> {
        let net = match (&self.start_from, &self.shape) {
            (Some(dir), _) => Net::load(&shape_of(dir)?, dir)?,
            (None, Some(shape)) => Net::new(shape, self.train.seed)?,
            (None, None) => bail!("give either `shape` or `start-from`"),
        };
        let largest = tokenizer.get_vocab(true).into_values().max().unwrap_or(0);
        if largest as usize >= net.shape().vocab_size {
            bail!(
                "the tokenizer's largest id is {largest}, but the model has {} embeddings",
                net.shape().vocab_size
            );
        }
        Ok(net)
    }
}

/// Shape of a LLaMA folder that this trainer wrote.
fn shape_of(dir: &Path) -> anyhow::Result<ModelShape> {
    let path = dir.join("config.json");
    let config = ModelConfig::read(&path)?;
    let text = std::fs::read_to_string(&path)?;
    let json: serde_json::Value = serde_json::from_str(&text)?;
    if config.head_dim * config.n_heads != config.d_model
        || config.family != skipbench_model::Family::Llama
        || config.biases != Biases::default()
    {
        bail!(
            "{}: only LLaMA models without biases, whose heads fill the hidden size, can be fine-tuned",
            path.display()
        );
    }
    Ok(ModelShape {
        vocab_size: config.vocab_size,
        d_model: config.d_model,
        n_layers: config.n_layers,
        n_heads: config.n_heads,
        n_kv_heads: config.n_kv_heads,
        d_ff: config.d_ff,
        rope_theta: json["rope_theta"].as_f64().unwrap_or(10_000.0),
        norm_eps: config.norm_eps,
        max_positions: config.max_positions.unwrap_or(512),
        tied_head: config.tied_head,
    })
}

impl DepthEntry {
    fn check(&self, n_layers: usize) -> anyhow::Result<()> {
        for spec in &self.strategies {
            for &speedup in &self.speedups {
                let spec = spec.with_target(speedup);
                spec.validate(n_layers)
                    .with_context(|| format!("strategy `{spec}`"))?;
            }
        }
        if self.strategies.is_empty() || self.speedups.is_empty() {
            bail!("`depths` needs at least one strategy and one speedup");
        }
        Ok(())
    }

    /// Which layers the responses of a batch run; `None` for full depth.
    fn draw(
        &self,
        step: u64,
        seed: u64,
        n_layers: usize,
        pairs: &[Pair],
    ) -> Option<Box<dyn Fn(usize, usize, usize) -> bool>> {
        let mut rng =
            ChaCha8Rng::seed_from_u64(seed ^ 0xdee9_0000 ^ step.wrapping_mul(0x9e37_79b9));
        if rng.random_range(0..100) < self.full_percent {
            return None;
        }
        let spec = &self.strategies[rng.random_range(0..self.strategies.len())];
        let speedup = self.speedups[rng.random_range(0..self.speedups.len())];
        let longest = pairs.iter().map(|pair| pair.response.len()).max()?;
        if spec.name() == "early-exit" {
            // Where a token will exit is not known in training: depths around the mean that the speedup asks for.
            let mean = n_layers as f64 / speedup;
            let exits: Vec<Vec<usize>> = pairs
                .iter()
                .map(|pair| {
                    let spread = (mean - 2.0).max(0.0).min(n_layers as f64 - mean);
                    let depth = |rng: &mut ChaCha8Rng| {
                        let at = mean + spread * (2.0 * rng.random::<f64>() - 1.0);
                        (at.round() as usize).clamp(2, n_layers)
                    };
                    pair.response.iter().map(|_| depth(&mut rng)).collect()
                })
                .collect();
            return Some(Box::new(move |layer, row, t| layer < exits[row][t]));
        }
        let mut strategy = spec.with_target(speedup).build(n_layers).ok()?;
        let shape = BatchShape {
            prompt_lens: pairs.iter().map(|pair| pair.prompt.len()).collect(),
            n_layers,
            max_new_tokens: longest,
        };
        strategy.begin(&shape).ok()?;
        let sets: Vec<LayerSet> = (0..longest).map(|t| strategy.plan(t).layers).collect();
        Some(Box::new(move |layer, _, t| sets[t].contains(layer)))
    }
}

/// An open source of pairs.
enum Source {
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
    fn open_all(entries: &[DataEntry]) -> anyhow::Result<Vec<Source>> {
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

    fn weight(&self) -> u32 {
        match self {
            Source::Builtin { weight, .. } | Source::Files { weight, .. } => *weight,
        }
    }

    /// Prompt and response texts of the `index`-th draw. The response begins with the space that separates it.
    fn pair(&self, index: u64) -> (String, String) {
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
fn pick(sources: &[Source], index: u64, seed: u64) -> &Source {
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
struct PairSource {
    sources: Vec<Source>,
    tokenizer: Tokenizer,
    eos: u32,
    batch_size: usize,
    seed: u64,
    window: Option<(u64, Vec<Vec<Pair>>)>,
}

impl PairSource {
    fn new(
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

    fn batch(&mut self, step: u64) -> anyhow::Result<Vec<Pair>> {
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
