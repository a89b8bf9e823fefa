//! Low-rank adapters (LoRA, arXiv 2106.09685) in the folder form of PEFT, added to the weights of a checkpoint as they are read.

use crate::config::ConfigFile;
use crate::error::{ModelError, Result};
use crate::safetensors_file::SafetensorsFile;
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// The file in the folder of an adapter that says which checkpoint it was made for.
pub const ADAPTER_BASE: &str = "base.json";

const CONFIG: &str = "adapter_config.json";
const WEIGHTS: &str = "adapter_model.safetensors";
/// What PEFT puts in front of the names of the model that it wraps.
const PREFIX: &str = "base_model.model.";

/// An adapter that has been read.
pub(crate) struct Adapter {
    path: PathBuf,
    /// By the name of the module, as transformers calls it in a model with an LM head.
    modules: BTreeMap<String, LowRank>,
}

/// `scale * B A`, to be added to a matrix `[rows, columns]`.
pub(crate) struct LowRank {
    /// `[rank, columns]`
    a: Vec<f32>,
    /// `[rows, rank]`
    b: Vec<f32>,
    shape: [usize; 2],
    rank: usize,
    scale: f32,
}

impl Adapter {
    /// Reads the folder of an adapter.
    ///
    /// # Errors
    /// A folder that holds none, or one of a kind that adds more than a product of two matrices.
    pub(crate) fn open(dir: &Path) -> Result<Self> {
        let config = dir.join(CONFIG);
        if !config.is_file() {
            return Err(ModelError::NotACheckpoint {
                dir: dir.to_path_buf(),
                missing: CONFIG.to_owned(),
            });
        }
        let config = ConfigFile::read(&config)?;
        refuse_others(&config)?;
        let rank = config.usize("r")?;
        let alpha = config.positive_or("lora_alpha", 8.0)?;
        let scale = match config.bool_or("use_rslora", false)? {
            true => alpha / (rank as f64).sqrt(),
            false => alpha / rank as f64,
        };
        let path = dir.join(WEIGHTS);
        if !path.is_file() {
            return Err(ModelError::NotACheckpoint {
                dir: dir.to_path_buf(),
                missing: WEIGHTS.to_owned(),
            });
        }
        let file = SafetensorsFile::open(&path)?;
        let mut modules = BTreeMap::new();
        for name in file.names() {
            let module = name.strip_prefix(PREFIX).and_then(|name| {
                let halves = [".lora_A.weight", ".lora_B.weight"];
                halves.iter().find_map(|half| name.strip_suffix(half))
            });
            let Some(module) = module else {
                return Err(damaged(
                    &path,
                    format!("`{name}` is no half of a low-rank adapter of PEFT's"),
                ));
            };
            if !modules.contains_key(module) {
                let low = LowRank::read(&file, &path, module, rank, scale as f32)?;
                modules.insert(module.to_owned(), low);
            }
        }
        Ok(Self { path, modules })
    }

    /// What is added to the weight of a module.
    pub(crate) fn of(&self, module: &str, shape: &[usize]) -> Result<Option<&LowRank>> {
        let Some(low) = self.modules.get(module) else {
            return Ok(None);
        };
        match low.shape == *shape {
            true => Ok(Some(low)),
            false => Err(damaged(
                &self.path,
                format!(
                    "the adapter of `{module}` is for a matrix of {:?}, and the model's is {shape:?}; it is of another model",
                    low.shape
                ),
            )),
        }
    }

    /// Refuses an adapter of modules that the model does not have.
    pub(crate) fn check<'a>(&self, modules: impl Iterator<Item = &'a str>) -> Result<()> {
        let known: std::collections::BTreeSet<&str> = modules.collect();
        match self
            .modules
            .keys()
            .find(|module| !known.contains(module.as_str()))
        {
            None => Ok(()),
            Some(module) => Err(damaged(
                &self.path,
                format!(
                    "the model has no matrix `{module}` of a layer to adapt; the adapter is of another model"
                ),
            )),
        }
    }
}

impl LowRank {
    fn read(
        file: &SafetensorsFile,
        path: &Path,
        module: &str,
        rank: usize,
        scale: f32,
    ) -> Result<Self> {
        let half = |half: &str| -> Result<(Vec<f32>, [usize; 2])> {
            let name = format!("{PREFIX}{module}.lora_{half}.weight");
            let missing = || damaged(path, format!("`{name}` is missing"));
            let (shape, place) = file.find(&name).ok_or_else(missing)?;
            let place = place.map_err(|dtype| {
                damaged(
                    path,
                    format!("`{name}` is {dtype}, which is no plain number"),
                )
            })?;
            let &[rows, columns] = shape else {
                return Err(damaged(
                    path,
                    format!("`{name}` is no matrix but {shape:?}"),
                ));
            };
            let mut bytes = vec![0; place.stored.bytes(rows * columns)];
            place.read(0, &mut bytes)?;
            Ok((place.stored.widen(&bytes)?, [rows, columns]))
        };
        let ((a, [rank_a, columns]), (b, [rows, rank_b])) = (half("A")?, half("B")?);
        match rank_a == rank && rank_b == rank {
            true => Ok(Self {
                a,
                b,
                shape: [rows, columns],
                rank,
                scale,
            }),
            false => Err(damaged(
                path,
                format!(
                    "the adapter of `{module}` has the ranks {rank_a} and {rank_b}, and `r` is {rank}"
                ),
            )),
        }
    }

    /// Adds its row `row` to that of the matrix.
    pub(crate) fn add(&self, row: usize, values: &mut [f32]) {
        let columns = self.shape[1];
        let factors = &self.b[row * self.rank..][..self.rank];
        for (factor, a) in factors.iter().zip(self.a.chunks_exact(columns)) {
            let factor = factor * self.scale;
            for (value, a) in values.iter_mut().zip(a) {
                *value += factor * a;
            }
        }
    }
}

/// Refuses what is more than a product of two matrices.
fn refuse_others(config: &ConfigFile) -> Result<()> {
    let kind = config.get("peft_type").and_then(Value::as_str);
    if kind != Some("LORA") {
        return Err(config.error(format!(
            "`peft_type` is {}; only LORA is read",
            kind.unwrap_or("not given")
        )));
    }
    let is_empty = |value: &Value| match value {
        Value::Bool(set) => !set,
        Value::Array(list) => list.is_empty(),
        Value::Object(map) => map.is_empty(),
        Value::String(text) => text == "none" || text.is_empty(),
        _ => false,
    };
    for key in [
        "use_dora",
        "bias",
        "fan_in_fan_out",
        "modules_to_save",
        "rank_pattern",
        "alpha_pattern",
        "lora_bias",
        "layer_replication",
        "trainable_token_indices",
    ] {
        if let Some(value) = config.get(key).filter(|value| !is_empty(value)) {
            return Err(config.error(format!(
                "`{key}` is {value}; only adapters that add a product of two matrices to each weight, of one rank, are read"
            )));
        }
    }
    Ok(())
}

fn damaged(path: &Path, message: String) -> ModelError {
    ModelError::Damaged {
        path: path.to_path_buf(),
        message,
    }
}
