//! The YAML config of a training run.

use super::data::{DataEntry, Source, pick};
use super::depths::DepthEntry;
use super::objective::{Distil, Objective, Recipe, Size};
use super::start::shape_of;
use crate::digest::CheckpointDigest;
use crate::experiment;
use crate::models;
use anyhow::{Context, bail};
use candle_core::DType;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use skipbench_train::{ModelShape, Net, TrainConfig, Trainer, train_tokenizer};
use std::path::{Path, PathBuf};
use tokenizers::Tokenizer;

/// Texts that a tokenizer is trained on.
const TOKENIZER_TEXTS: u64 = 20_000;

/// An element type that a checkpoint is written in.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum WrittenType {
    F32,
    Bf16,
    F16,
}

impl From<WrittenType> for DType {
    fn from(written: WrittenType) -> Self {
        match written {
            WrittenType::F32 => DType::F32,
            WrittenType::Bf16 => DType::BF16,
            WrittenType::F16 => DType::F16,
        }
    }
}

/// A training config as written by a user. Relative paths are taken from the YAML file's folder.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct TrainFile {
    /// Hugging Face folder that the result is written to; its `training` sub-folder holds the unfinished run.
    pub(super) out: PathBuf,
    /// Shape of a new model; leave out to start from `start-from`.
    #[serde(default)]
    shape: Option<ModelShape>,
    /// Hugging Face folder or hub:owner/name to fine-tune; its tokenizer is kept.
    #[serde(default)]
    start_from: Option<PathBuf>,
    /// Where the pairs come from.
    data: Vec<DataEntry>,
    /// Schedule and optimizer.
    pub(super) train: TrainConfig,
    /// Layers that responses run; leave out for full depth.
    #[serde(default)]
    depths: Option<DepthEntry>,
    /// What is trained; the last layer's cross-entropy if it is left out.
    #[serde(default)]
    objective: Recipe,
    /// What the whole network teaches the layers that run; leave out for nothing.
    #[serde(default)]
    distil: Option<Distil>,
    /// Element type of the written weights.
    #[serde(default)]
    pub(super) dtype: Option<WrittenType>,
    /// The YAML file, for errors to name.
    #[serde(skip)]
    path: PathBuf,
}

impl TrainFile {
    /// # Errors
    /// A file that cannot be read or does not parse, and what can be refused without reading another.
    pub(super) fn read(path: &Path) -> anyhow::Result<Self> {
        let text = std::fs::read_to_string(path)
            .with_context(|| format!("cannot read {}", path.display()))?;
        let mut file: TrainFile = experiment::parse_yaml(&text, path)?;
        file.path = path.to_path_buf();
        file.check().with_context(|| path.display().to_string())?;
        let base = path.parent().unwrap_or(Path::new(""));
        file.out = base.join(&file.out);
        if let Some(start) = &mut file.start_from {
            *start = models::fetch(&models::join(base, start))
                .with_context(|| format!("{}: `start-from`", path.display()))?;
        }
        for data in &mut file.data {
            for path in [&mut data.source, &mut data.reference]
                .into_iter()
                .flatten()
            {
                *path = base.join(&*path);
            }
        }
        file.check_paths()?;
        Ok(file)
    }

    fn check(&self) -> anyhow::Result<()> {
        match (&self.shape, &self.start_from) {
            (Some(shape), None) => shape.check()?,
            (None, Some(_)) => {}
            _ => bail!("give either `shape` or `start-from`"),
        }
        if self.out.as_os_str().is_empty() {
            bail!("`out` is empty; it is the folder that the result is written to");
        }
        let weight: u64 = self.data.iter().map(|data| u64::from(data.weight)).sum();
        if weight == 0 {
            bail!("`data` is empty, or all its weights are 0");
        }
        if weight > u64::from(u32::MAX) {
            bail!(
                "the weights of `data` add up to {weight}, more than {}",
                u32::MAX
            );
        }
        Ok(self.train.check()?)
    }

    /// Refuses to write over what the run starts from.
    fn check_paths(&self) -> anyhow::Result<()> {
        let same = |a: &Path, b: &Path| match (a.canonicalize(), b.canonicalize()) {
            (Ok(a), Ok(b)) => a == b,
            _ => a == b,
        };
        match &self.start_from {
            Some(start) if same(start, &self.out) => bail!(
                "{}: `out` and `start-from` are the same folder, {}; use another `out`",
                self.path.display(),
                start.display()
            ),
            _ => Ok(()),
        }
    }

    /// Shape of the model, new or started from.
    ///
    /// # Errors
    /// A checkpoint that cannot be read or trained.
    pub(super) fn shape(&self) -> anyhow::Result<ModelShape> {
        let shape = match (&self.start_from, &self.shape) {
            (Some(dir), _) => shape_of(dir)?,
            (None, Some(shape)) => shape.clone(),
            (None, None) => bail!("give either `shape` or `start-from`"),
        };
        shape.check()?;
        Ok(shape)
    }

    /// What is trained, resolved for a model of this depth.
    ///
    /// # Errors
    /// A setting that is impossible, a strategy that cannot be trained.
    pub(super) fn objective(&self, n_layers: usize) -> anyhow::Result<Objective> {
        let size = Size {
            n_layers,
            steps: self.train.steps,
            seed: self.train.seed,
        };
        let (depths, distil) = (self.depths.as_ref(), self.distil.as_ref());
        Objective::resolve(&self.objective, depths, distil, size)
            .with_context(|| self.path.display().to_string())
    }

    /// # Errors
    /// An entry that names no source, a file that cannot be read.
    pub(super) fn sources(&self) -> anyhow::Result<Vec<Source>> {
        let open = |(index, entry)| {
            Source::open(entry).with_context(|| format!("{}: `data[{index}]`", self.path.display()))
        };
        self.data.iter().enumerate().map(open).collect()
    }

    /// What the result depends on besides the schedule and the shape: contents, not paths.
    ///
    /// # Errors
    /// A checkpoint to start from that cannot be read.
    pub(super) fn context(&self, sources: &[Source]) -> anyhow::Result<Map<String, Value>> {
        let start = match &self.start_from {
            Some(dir) => {
                let digest = CheckpointDigest::of(dir)?;
                json!({"weights": digest.weights, "tokenizer": digest.tokenizer, "config": digest.config})
            }
            None => Value::Null,
        };
        let data: Vec<Value> = sources.iter().map(Source::identity).collect();
        let mut context = Map::from_iter([
            ("start-from".to_owned(), start),
            ("data".to_owned(), data.into()),
            ("depths".to_owned(), serde_json::to_value(&self.depths)?),
        ]);
        // A run of the time before there were objectives is one without, and goes on.
        if self.objective != Recipe::default() {
            let objective = serde_json::to_value(&self.objective)?;
            context.insert("objective".to_owned(), objective);
        }
        if let Some(distil) = &self.distil {
            context.insert("distil".to_owned(), serde_json::to_value(distil)?);
        }
        Ok(context)
    }

    /// The tokenizer of the model to start from, or one trained on the data and kept with the unfinished run.
    ///
    /// # Errors
    /// A file that cannot be read or written, a tokenizer with more tokens than the model.
    pub(super) fn tokenizer(
        &self,
        sources: &[Source],
        work: &Path,
        shape: &ModelShape,
    ) -> anyhow::Result<Tokenizer> {
        let kept = work.join("tokenizer.json");
        let tokenizer = match &self.start_from {
            Some(start) => load_tokenizer(&start.join("tokenizer.json"))?,
            None if Trainer::is_unfinished(work) && kept.is_file() => load_tokenizer(&kept)?,
            None => {
                let mut texts = Vec::new();
                for index in 0..TOKENIZER_TEXTS {
                    let (prompt, response) = pick(sources, index, self.train.seed).pair(index)?;
                    texts.extend([prompt, response]);
                }
                let trained = train_tokenizer(texts.into_iter(), shape.vocab_size)?;
                let json = trained.to_string(true).map_err(anyhow::Error::from_boxed)?;
                skipbench_fs::write_whole(&kept, json.as_bytes())?;
                trained
            }
        };
        let largest = tokenizer.get_vocab(true).into_values().max().unwrap_or(0);
        if largest as usize >= shape.vocab_size {
            bail!(
                "the tokenizer's largest id is {largest}, but the model has {} embeddings; make `vocab-size` larger",
                shape.vocab_size
            );
        }
        Ok(tokenizer)
    }

    /// The network that a new run starts with.
    ///
    /// # Errors
    /// Weights that cannot be read.
    pub(super) fn net(&self, shape: &ModelShape) -> anyhow::Result<Net> {
        Ok(match &self.start_from {
            Some(dir) => Net::load(shape, dir)?,
            None => Net::new(shape, self.train.seed)?,
        })
    }
}

fn load_tokenizer(path: &Path) -> anyhow::Result<Tokenizer> {
    Tokenizer::from_file(path).map_err(|error| anyhow::anyhow!("{}: {error}", path.display()))
}
