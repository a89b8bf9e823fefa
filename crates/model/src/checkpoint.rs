//! A checkpoint: a Hugging Face folder or a GGUF file, and which file holds which tensor.

use crate::config::ConfigFile;
use crate::element::Element;
use crate::error::{ModelError, Result};
use crate::gguf::{self, Gguf};
use crate::memory;
use crate::safetensors_file::SafetensorsFile;
use candle_core::{DType, Device, Tensor};
use half::{bf16, f16};
use rayon::prelude::*;
use safetensors::Dtype;
use std::ops::Range;
use std::path::{Path, PathBuf};

/// Values that are unpacked at a time: the wide ones stay small beside a tensor, and in the cache of a core.
pub(crate) const CHUNK: usize = 1 << 17;

/// Tensors under Hugging Face's names, read on demand and converted to one dtype and device.
pub(crate) struct Checkpoint {
    path: PathBuf,
    weights: Weights,
    dtype: DType,
    device: Device,
}

enum Weights {
    Safetensors(Vec<SafetensorsFile>),
    Gguf(Gguf),
}

impl Checkpoint {
    pub(crate) fn open(model: &Path, dtype: DType, device: &Device) -> Result<Self> {
        let weights = match gguf::is_gguf(model) {
            true => Weights::Gguf(Gguf::open(model)?),
            false => Weights::open(model)?,
        };
        Ok(Self {
            path: model.to_path_buf(),
            weights,
            dtype,
            device: device.clone(),
        })
    }

    /// The element type that tensors are given in.
    pub(crate) fn dtype(&self) -> DType {
        self.dtype
    }

    pub(crate) fn has(&self, name: &str) -> bool {
        match &self.weights {
            Weights::Safetensors(files) => files.iter().any(|file| file.find(name).is_some()),
            Weights::Gguf(gguf) => gguf.has(name),
        }
    }

    /// The tensor `name`, checked against the shape that the config implies.
    pub(crate) fn tensor(&self, name: &str, expected: &[usize]) -> Result<Tensor> {
        fn tensor<T: Element>(from: &Checkpoint, name: &str, shape: &[usize]) -> Result<Tensor> {
            let all = 0..shape.first().copied().unwrap_or(0);
            let values = from.rows::<T>(name, shape, all)?;
            Ok(Tensor::from_vec(values, shape, &Device::Cpu)?)
        }
        let tensor = match self.dtype {
            DType::BF16 => tensor::<bf16>(self, name, expected)?,
            DType::F16 => tensor::<f16>(self, name, expected)?,
            dtype => tensor::<f32>(self, name, expected)?.to_dtype(dtype)?,
        };
        Ok(tensor.to_device(&self.device)?)
    }

    /// Rows of the tensor `name`, whose shape is checked as a whole; rows are what the first dimension counts.
    pub(crate) fn rows<T: Element>(
        &self,
        name: &str,
        expected: &[usize],
        rows: Range<usize>,
    ) -> Result<Vec<T>> {
        let range = || {
            let columns: usize = expected.iter().skip(1).product();
            rows.start * columns..rows.end * columns
        };
        match &self.weights {
            Weights::Safetensors(files) => {
                let mut found = files.iter().map(|file| (file, file.find(name)));
                let found = found.find_map(|(file, info)| Some((file, info?)));
                let shape = found.map(|(_, info)| info.shape.as_slice());
                self.check(name, shape, expected)?;
                let Some((file, info)) = found else {
                    return Err(self.missing(name));
                };
                match info.dtype {
                    Dtype::F64 | Dtype::F32 | Dtype::F16 | Dtype::BF16 => {}
                    other => {
                        return Err(ModelError::Quantized {
                            name: name.to_owned(),
                            dir: self.path.clone(),
                            dtype: format!("{other:?}"),
                        });
                    }
                }
                narrowed(range(), |range| file.values(info, range))
            }
            Weights::Gguf(gguf) => {
                self.check(name, gguf.shape(name), expected)?;
                gguf.rows(name, range())
            }
        }
    }

    /// Whether two matrices of the same shape hold the same numbers.
    pub(crate) fn same(&self, one: &str, other: &str, shape: [usize; 2]) -> Result<bool> {
        let height = (CHUNK / shape[1].max(1)).max(1);
        for first in (0..shape[0]).step_by(height) {
            let rows = first..shape[0].min(first + height);
            let one = self.rows::<f32>(one, &shape, rows.clone())?;
            if one != self.rows::<f32>(other, &shape, rows)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn missing(&self, name: &str) -> ModelError {
        ModelError::MissingTensor {
            name: name.to_owned(),
            dir: self.path.clone(),
        }
    }

    fn check(&self, name: &str, found: Option<&[usize]>, expected: &[usize]) -> Result<()> {
        let found = found.ok_or_else(|| self.missing(name))?;
        if found == expected {
            return Ok(());
        }
        Err(ModelError::TensorShape {
            name: name.to_owned(),
            dir: self.path.clone(),
            found: found.to_vec(),
            expected: expected.to_vec(),
        })
    }
}

/// The values of `range`, read and narrowed a chunk at a time.
///
/// # Errors
/// What `read` gives, or memory that cannot be had.
pub(crate) fn narrowed<T: Element>(
    range: Range<usize>,
    read: impl Fn(Range<usize>) -> Result<Vec<f32>> + Sync,
) -> Result<Vec<T>> {
    let bytes = range.len() as u128 * size_of::<T>() as u128;
    memory::require("a tensor", bytes, "what else runs on the machine")?;
    let mut values = T::zeros(range.len());
    let chunks = values.par_chunks_mut(CHUNK).enumerate();
    chunks.try_for_each(|(index, to)| -> Result<()> {
        let first = range.start + index * CHUNK;
        T::narrow(&read(first..first + to.len())?, to);
        Ok(())
    })?;
    Ok(values)
}

impl Weights {
    fn open(dir: &Path) -> Result<Self> {
        let paths = weight_files(dir)?;
        let files = paths.iter().map(|path| SafetensorsFile::open(path));
        Ok(Self::Safetensors(files.collect::<Result<_>>()?))
    }
}

/// `model.safetensors`, or the shards that `model.safetensors.index.json` names.
///
/// # Errors
/// A folder with neither, an index that cannot be read or names a file that is not there.
pub fn weight_files(dir: &Path) -> Result<Vec<PathBuf>> {
    let single = dir.join("model.safetensors");
    if single.is_file() {
        return Ok(vec![single]);
    }
    let index = dir.join("model.safetensors.index.json");
    if !index.is_file() {
        return Err(ModelError::NotACheckpoint {
            dir: dir.to_path_buf(),
            missing: "model.safetensors".to_owned(),
        });
    }
    let malformed = |message: String| ModelError::Config {
        path: index.clone(),
        message,
    };
    let json = ConfigFile::read(&index)?;
    let map = json
        .get("weight_map")
        .and_then(|map| map.as_object())
        .ok_or_else(|| malformed("key `weight_map` is missing".to_owned()))?;
    let mut shards = Vec::new();
    for (tensor, file) in map {
        let file = file
            .as_str()
            .filter(|name| Path::new(name).file_name() == Some(name.as_ref()))
            .ok_or_else(|| {
                malformed(format!(
                    "`weight_map.{tensor}` does not name a file of this folder"
                ))
            })?;
        shards.push(dir.join(file));
    }
    shards.sort();
    shards.dedup();
    match shards.iter().find(|path| !path.is_file()) {
        Some(path) => Err(ModelError::NotACheckpoint {
            dir: dir.to_path_buf(),
            missing: path.file_name().map_or_else(String::new, |name| {
                format!("{} (named by the index)", name.to_string_lossy())
            }),
        }),
        None if shards.is_empty() => Err(malformed("`weight_map` names no file".to_owned())),
        None => Ok(shards),
    }
}
