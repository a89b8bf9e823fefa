//! A checkpoint: a Hugging Face folder or a GGUF file, and which file holds which tensor.

use crate::config::ConfigFile;
use crate::error::{ModelError, Result};
use crate::gguf::{self, Gguf};
use candle_core::safetensors::MmapedSafetensors;
use candle_core::{DType, Device, Tensor};
use safetensors::Dtype;
use std::path::{Path, PathBuf};

/// Tensors under Hugging Face's names, read on demand and converted to one dtype and device.
pub(crate) struct Checkpoint {
    path: PathBuf,
    weights: Weights,
    dtype: DType,
    device: Device,
}

enum Weights {
    Safetensors(MmapedSafetensors),
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

    pub(crate) fn has(&self, name: &str) -> bool {
        match &self.weights {
            Weights::Safetensors(files) => files.get(name).is_ok(),
            Weights::Gguf(gguf) => gguf.has(name),
        }
    }

    /// The tensor `name`, checked against the shape that the config implies.
    pub(crate) fn tensor(&self, name: &str, expected: &[usize]) -> Result<Tensor> {
        let missing = || ModelError::MissingTensor {
            name: name.to_owned(),
            dir: self.path.clone(),
        };
        let check = |found: &[usize]| match found == expected {
            true => Ok(()),
            false => Err(ModelError::TensorShape {
                name: name.to_owned(),
                dir: self.path.clone(),
                found: found.to_vec(),
                expected: expected.to_vec(),
            }),
        };
        match &self.weights {
            Weights::Safetensors(files) => {
                let view = files.get(name).map_err(|_| missing())?;
                check(view.shape())?;
                match view.dtype() {
                    Dtype::F64 | Dtype::F32 | Dtype::F16 | Dtype::BF16 => {}
                    other => {
                        return Err(ModelError::Quantized {
                            name: name.to_owned(),
                            dir: self.path.clone(),
                            dtype: format!("{other:?}"),
                        });
                    }
                }
                Ok(files.load(name, &self.device)?.to_dtype(self.dtype)?)
            }
            Weights::Gguf(gguf) => {
                check(gguf.shape(name).ok_or_else(missing)?)?;
                let values = Tensor::from_vec(gguf.tensor(name)?, expected, &Device::Cpu)?;
                Ok(values.to_dtype(self.dtype)?.to_device(&self.device)?)
            }
        }
    }
}

impl Weights {
    fn open(dir: &Path) -> Result<Self> {
        let paths = weight_files(dir)?;
        for path in &paths {
            check_complete(path)?;
        }
        // SAFETY: the files are mapped read-only; like every mmap reader this one relies on nobody
        // truncating a checkpoint while it is being loaded.
        let files = unsafe { MmapedSafetensors::multi(&paths) }?;
        Ok(Self::Safetensors(files))
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

/// A truncated download is the commonest damage; the header knows how long the file must be.
fn check_complete(path: &Path) -> Result<()> {
    use std::io::Read;
    let damaged = |message: String| ModelError::Damaged {
        path: path.to_path_buf(),
        message,
    };
    let read = |source| ModelError::Read {
        path: path.to_path_buf(),
        source,
    };
    let mut file = std::fs::File::open(path).map_err(read)?;
    let found = file.metadata().map_err(read)?.len();
    let mut length = [0; 8];
    file.read_exact(&mut length)
        .map_err(|_| damaged(format!("{found} bytes, shorter than its own header")))?;
    let header_len = u64::from_le_bytes(length);
    if header_len > found.saturating_sub(8) {
        return Err(damaged(format!(
            "the header claims {header_len} bytes, the file has {found}"
        )));
    }
    let mut header = vec![0; header_len as usize];
    file.read_exact(&mut header).map_err(read)?;
    let header: serde_json::Value = serde_json::from_slice(&header)
        .map_err(|error| damaged(format!("the header is not JSON: {error}")))?;
    let data_end = header
        .as_object()
        .into_iter()
        .flatten()
        .filter_map(|(_, tensor)| tensor.get("data_offsets")?.get(1)?.as_u64())
        .max()
        .unwrap_or(0);
    let expected = data_end.saturating_add(8 + header_len);
    if found < expected {
        return Err(damaged(format!(
            "truncated: {found} bytes of the {expected} that its header calls for"
        )));
    }
    Ok(())
}
