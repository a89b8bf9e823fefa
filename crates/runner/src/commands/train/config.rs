//! The YAML config of a training run.

use super::data::{DataEntry, Source, TooLong, pick};
use super::depths::DepthEntry;
use super::objective::{Distil, Objective, Recipe, Size};
use super::start::{Start, Words};
use super::validation::ValidationEntry;
use crate::digest::CheckpointDigest;
use crate::experiment::Limit;
use crate::models;
use crate::yaml::Document;
use anyhow::{Context, bail};
use candle_core::DType;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use skipbench_train::{
    AdapterConfig, Architecture, Export, ModelShape, Net, TrainConfig, Trainer, train_tokenizer,
};
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

/// What is written of a trained adapter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum ExportForm {
    /// The adapter alone, in PEFT's folder form.
    Adapter,
    /// The whole model with the adapter added to its weights, as a Hugging Face folder.
    Merged,
}

/// A training config as written by a user. Relative paths are taken from the YAML file's folder.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct TrainFile {
    /// Folder that the result is written to; its `training` sub-folder holds the unfinished run.
    pub(super) out: PathBuf,
    /// Shape of a new model; leave out to start from `start-from`.
    #[serde(default)]
    shape: Option<ModelShape>,
    /// Hugging Face folder, `.gguf` file or hub:owner/name to fine-tune; its tokenizer is kept.
    #[serde(default)]
    start_from: Option<PathBuf>,
    /// Longest sequence that is trained on; if not given, what the model has positions for.
    #[serde(default)]
    context: Option<usize>,
    /// Train a low-rank adapter alone, over weights that stay as they are.
    #[serde(default)]
    pub(super) adapter: Option<AdapterConfig>,
    /// What is written of it.
    #[serde(default)]
    export: Option<ExportForm>,
    /// Where the pairs come from.
    data: Vec<DataEntry>,
    /// What becomes of a pair that is longer than the context.
    #[serde(default)]
    pub(super) too_long: TooLong,
    /// Schedule and optimizer.
    pub(super) train: TrainConfig,
    /// Losses on other pairs while the run goes on.
    #[serde(default)]
    pub(super) validation: Option<ValidationEntry>,
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
        let document = Document::read(path, &[])?;
        let mut file: TrainFile = document.to()?;
        file.path = path.to_path_buf();
        file.check().with_context(|| path.display().to_string())?;
        file.out = document.folder_of("out").join(&file.out);
        if let Some(start) = &mut file.start_from {
            *start = models::join(document.folder_of("start-from"), start);
        }
        resolve(&mut file.data, "data", &document);
        if let Some(validation) = &mut file.validation {
            resolve(&mut validation.data, "validation.data", &document);
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
        if let Some(adapter) = &self.adapter {
            adapter.check()?;
        }
        if let Some(validation) = &self.validation {
            validation.check()?;
        }
        let needs = [
            (
                "context",
                self.context.is_some(),
                self.start_from.is_some(),
                "start-from",
            ),
            (
                "adapter",
                self.adapter.is_some(),
                self.start_from.is_some(),
                "start-from",
            ),
            (
                "export",
                self.export.is_some(),
                self.adapter.is_some(),
                "adapter",
            ),
        ];
        if let Some((key, _, _, of)) = needs.iter().find(|(_, is_set, has, _)| *is_set && !has) {
            bail!("`{key}` has no effect without `{of}`; leave it out");
        }
        if self.out.as_os_str().is_empty() {
            bail!("`out` is empty; it is the folder that the result is written to");
        }
        DataEntry::check_weights(&self.data, "data")?;
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

    /// The checkpoint that is started from.
    ///
    /// # Errors
    /// A model that cannot be had or trained.
    pub(super) fn start(&self) -> anyhow::Result<Option<Start>> {
        let open = |model: &PathBuf| {
            Start::open(model, self.context)
                .with_context(|| format!("{}: `start-from`", self.path.display()))
        };
        self.start_from.as_ref().map(open).transpose()
    }

    /// What the model computes, new or started from.
    ///
    /// # Errors
    /// A shape that cannot work.
    pub(super) fn architecture(&self, start: Option<&Start>) -> anyhow::Result<Architecture> {
        Ok(match (start, &self.shape) {
            (Some(start), _) => start.architecture.clone(),
            (None, Some(shape)) => Architecture::of_shape(shape)?,
            (None, None) => bail!("give either `shape` or `start-from`"),
        })
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

    /// What the result depends on besides the schedule and the shape: contents, not paths. `start`: of the checkpoint that is
    /// started from.
    ///
    /// # Errors
    /// A source of validation that cannot be read.
    pub(super) fn context(
        &self,
        sources: &[Source],
        start: Option<&CheckpointDigest>,
    ) -> anyhow::Result<Map<String, Value>> {
        let start = start.map_or(Value::Null, |digest| {
            json!({"weights": digest.weights, "tokenizer": digest.tokenizer, "config": digest.config})
        });
        let mut data: Vec<Value> = sources.iter().map(Source::identity).collect();
        if self.too_long != TooLong::Refuse {
            // Which pairs there are depends on it.
            for data in &mut data {
                data["too-long"] = serde_json::to_value(self.too_long)?;
            }
        }
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
        if let Some(validation) = &self.validation
            && let Some(identity) = validation.identity()?
        {
            context.insert("validation".to_owned(), identity);
        }
        if let Some(adapter) = &self.adapter {
            context.insert("adapter".to_owned(), serde_json::to_value(adapter)?);
            context.insert("export".to_owned(), serde_json::to_value(self.form())?);
        }
        Ok(context)
    }

    fn form(&self) -> ExportForm {
        self.export.unwrap_or(ExportForm::Adapter)
    }

    /// The tokenizer of the model to start from, or one trained on the data and kept with the unfinished run.
    ///
    /// # Errors
    /// A file that cannot be read or written, a tokenizer with more tokens than the model.
    pub(super) fn words(
        &self,
        sources: &[Source],
        work: &Path,
        start: Option<&Start>,
    ) -> anyhow::Result<Words> {
        let words = match (start, &self.shape) {
            (Some(start), _) => start.words()?,
            (None, Some(shape)) => {
                Words::own(self.new_tokenizer(sources, work, shape.vocab_size)?)?
            }
            (None, None) => bail!("give either `shape` or `start-from`"),
        };
        if let Some(tokenizer) = words.as_own() {
            let largest = tokenizer.get_vocab(true).into_values().max().unwrap_or(0);
            let vocab_size = self.architecture(start)?.config().vocab_size;
            if largest as usize >= vocab_size {
                bail!(
                    "the tokenizer's largest id is {largest}, but the model has {vocab_size} embeddings; make `vocab-size` larger"
                );
            }
        }
        Ok(words)
    }

    fn new_tokenizer(
        &self,
        sources: &[Source],
        work: &Path,
        vocab_size: usize,
    ) -> anyhow::Result<Tokenizer> {
        let kept = work.join("tokenizer.json");
        if Trainer::is_unfinished(work) && kept.is_file() {
            return load_tokenizer(&kept);
        }
        let mut texts = Vec::new();
        for index in 0..TOKENIZER_TEXTS {
            let (prompt, response) = pick(sources, index, self.train.seed).pair(index)?;
            texts.extend([prompt, response]);
        }
        let trained = train_tokenizer(texts.into_iter(), vocab_size)?;
        let json = trained.to_string(true).map_err(anyhow::Error::from_boxed)?;
        skipbench_fs::write_whole(&kept, json.as_bytes())?;
        Ok(trained)
    }

    /// The network that a new run starts with.
    ///
    /// # Errors
    /// Weights that cannot be read.
    pub(super) fn net(&self, start: Option<&Start>) -> anyhow::Result<Net> {
        let adapter = self.adapter.as_ref();
        Ok(match (start, &self.shape) {
            (Some(start), _) => Net::load(
                &start.architecture,
                &start.path,
                adapter.map(|adapter| (adapter, self.train.seed)),
            )?,
            (None, Some(shape)) => Net::new(shape, self.train.seed)?,
            (None, None) => bail!("give either `shape` or `start-from`"),
        })
    }

    /// What is written at the end.
    ///
    /// # Errors
    /// A checkpoint that cannot go on as a folder.
    pub(super) fn finished<'a>(
        &self,
        words: &'a Words,
        start: Option<(&Start, &CheckpointDigest)>,
    ) -> anyhow::Result<Export<'a>> {
        let dtype = self.dtype.map_or(DType::F32, Into::into);
        let adapted = self.adapter.is_some().then(|| self.form());
        let start = match (start, words.as_own(), adapted) {
            (Some((start, digest)), _, Some(ExportForm::Adapter)) => {
                return Ok(Export::Adapter {
                    base: start.name.clone(),
                    digest: json!({"weights": digest.weights, "config": digest.config}),
                    dtype,
                });
            }
            (_, Some(tokenizer), None)
                if self.architecture(start.map(|(start, _)| start))?.is_plain() =>
            {
                return Ok(Export::Model { tokenizer, dtype });
            }
            (Some((start, _)), ..) => start,
            (None, ..) => bail!("give either `shape` or `start-from`"),
        };
        let beside = match words.as_given() {
            Some(tokenizer) => start.files_beside(tokenizer)?,
            None => start.files()?,
        };
        Ok(Export::Tuned { beside, dtype })
    }
}

/// Makes the paths of data independent of the folder of their file. A task takes all of its items unless it says how many.
fn resolve(data: &mut [DataEntry], key: &str, document: &Document) {
    for (index, data) in data.iter_mut().enumerate() {
        let files = [
            ("source", &mut data.source),
            ("reference", &mut data.reference),
        ];
        for (name, path) in files {
            if let Some(path) = path {
                *path = document
                    .folder_of(&format!("{key}.{index}.{name}"))
                    .join(&*path);
            }
        }
        let Some(task) = &mut data.task else {
            continue;
        };
        let key = format!("{key}.{index}.task");
        if !document.has(&format!("{key}.prompts")) {
            task.prompts = Limit::All;
        }
        // What thresholds would be calibrated on is not read.
        task.calibration = None;
        task.resolve(|name| document.folder_of(&format!("{key}.{name}")).to_path_buf());
    }
}

fn load_tokenizer(path: &Path) -> anyhow::Result<Tokenizer> {
    Tokenizer::from_file(path).map_err(|error| anyhow::anyhow!("{}: {error}", path.display()))
}
