//! `skipbench train`.

mod data;
mod depths;

use crate::{experiment, progress};
use anyhow::{Context, bail};
use clap::Args;
use data::{DataEntry, PairSource, Source, pick};
use depths::DepthEntry;
use serde::Deserialize;
use skipbench_model::{Biases, ModelConfig, PositionScheme};
use skipbench_report::LossSeries;
use skipbench_train::{Batch, Control, ModelShape, Net, TrainConfig, Trainer, train_tokenizer};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};
use tokenizers::Tokenizer;

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
        let weight: u64 = file.data.iter().map(|data| u64::from(data.weight)).sum();
        if weight == 0 {
            bail!(
                "{}: `data` is empty, or all its weights are 0",
                path.display()
            );
        }
        if weight > u64::from(u32::MAX) {
            bail!(
                "{}: the weights of `data` add up to {weight}, more than {}",
                path.display(),
                u32::MAX
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
    let rope_theta = json["rope_theta"]
        .as_f64()
        .or_else(|| json["rope_parameters"]["rope_theta"].as_f64())
        .unwrap_or(10_000.0);
    if !is_plain_rope(&config, rope_theta) {
        bail!(
            "{}: only LLaMA models without RoPE scaling can be fine-tuned",
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
        rope_theta,
        norm_eps: config.norm_eps,
        max_positions: config.max_positions.unwrap_or(512),
        tied_head: config.tied_head,
    })
}

/// Whether the positions are rotary with nothing but this base.
fn is_plain_rope(config: &ModelConfig, theta: f64) -> bool {
    let PositionScheme::Rope { inv_freq } = &config.positions else {
        return false;
    };
    inv_freq.iter().enumerate().all(|(pair, &found)| {
        let plain = theta.powf(-2.0 * pair as f64 / config.head_dim as f64);
        (f64::from(found) / plain - 1.0).abs() < 1e-5
    })
}
