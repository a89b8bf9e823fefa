//! `config.json` of a Hugging Face checkpoint, in its v4 and its v5 form.

use crate::error::{ModelError, Result};
use crate::families::Family;
use crate::gguf::{self, Gguf};
use candle_core::DType;
use serde_json::Value;
use std::path::{Path, PathBuf};

/// Everything the shapes and the arithmetic of a model follow from.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelConfig {
    /// Model family.
    pub family: Family,
    /// Rows of the embedding and of the LM head.
    pub vocab_size: usize,
    /// Width of the hidden state.
    pub d_model: usize,
    /// Decoder layers.
    pub n_layers: usize,
    /// Query heads.
    pub n_heads: usize,
    /// Key-value heads (fewer than `n_heads` under grouped-query attention, arXiv 2305.13245).
    pub n_kv_heads: usize,
    /// Width of a head; need not be `d_model / n_heads`.
    pub head_dim: usize,
    /// Width of the MLP.
    pub d_ff: usize,
    /// Added to the variance in the norms.
    pub norm_eps: f64,
    /// Largest number of positions, where the scheme has one.
    pub max_positions: Option<usize>,
    /// How positions enter attention.
    pub positions: PositionScheme,
    /// Whether the LM head is the embedding.
    pub tied_head: bool,
    /// Which projections add a bias.
    pub biases: Biases,
    /// Element type of the weights in the file.
    pub dtype: DType,
}

/// Which projections of a layer add a bias.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Biases {
    /// Q, K and V.
    pub qkv: bool,
    /// The attention output.
    pub attention_out: bool,
    /// The projections of the MLP.
    pub mlp: bool,
}

/// How positions enter attention.
#[derive(Debug, Clone, PartialEq)]
pub enum PositionScheme {
    /// Rotary embedding (arXiv 2104.09864): inverse frequencies, one per pair of channels.
    Rope {
        /// `[head_dim / 2]`, after any scaling.
        inv_freq: Vec<f32>,
    },
    /// Attention with linear biases (arXiv 2108.12409): one slope per head.
    Alibi {
        /// `[n_heads]`.
        slopes: Vec<f32>,
    },
}

/// Read access to one JSON object with errors that name file and key.
pub(crate) struct ConfigFile {
    pub(crate) path: PathBuf,
    value: Value,
}

impl ConfigFile {
    pub(crate) fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).map_err(|source| ModelError::Read {
            path: path.to_path_buf(),
            source,
        })?;
        // transformers refuses a byte-order mark; nothing is lost by reading on behind it.
        let text = text.strip_prefix('\u{feff}').unwrap_or(&text);
        let value = serde_json::from_str(text).map_err(|error| ModelError::Config {
            path: path.to_path_buf(),
            message: format!("not valid JSON: {error}"),
        })?;
        Ok(Self::of(path, value))
    }

    /// An object that stands in for a file; errors name `path`.
    pub(crate) fn of(path: &Path, value: Value) -> Self {
        Self {
            path: path.to_path_buf(),
            value,
        }
    }

    pub(crate) fn error(&self, message: impl Into<String>) -> ModelError {
        ModelError::Config {
            path: self.path.clone(),
            message: message.into(),
        }
    }

    /// The value under a key, `null` counting as absent.
    pub(crate) fn get(&self, key: &str) -> Option<&Value> {
        self.value.get(key).filter(|value| !value.is_null())
    }

    /// All of it, where it is an object.
    pub(crate) fn object(&self) -> Option<&serde_json::Map<String, Value>> {
        self.value.as_object()
    }

    pub(crate) fn usize(&self, key: &str) -> Result<usize> {
        self.usize_or(key, None)
    }

    pub(crate) fn usize_or(&self, key: &str, default: Option<usize>) -> Result<usize> {
        match (self.get(key), default) {
            (None, Some(default)) => Ok(default),
            (None, None) => Err(self.error(format!("key `{key}` is missing"))),
            (Some(value), _) => value
                .as_u64()
                .filter(|&n| n > 0 && n <= u64::from(u32::MAX))
                .map(|n| n as usize)
                .ok_or_else(|| {
                    self.error(format!(
                        "key `{key}` must be a positive integer, got {value}"
                    ))
                }),
        }
    }

    pub(crate) fn f64_or(&self, key: &str, default: f64) -> Result<f64> {
        match self.get(key) {
            None => Ok(default),
            Some(value) => value
                .as_f64()
                .ok_or_else(|| self.error(format!("key `{key}` must be a number, got {value}"))),
        }
    }

    pub(crate) fn bool_or(&self, key: &str, default: bool) -> Result<bool> {
        match self.get(key) {
            None => Ok(default),
            Some(value) => value.as_bool().ok_or_else(|| {
                self.error(format!("key `{key}` must be true or false, got {value}"))
            }),
        }
    }

    /// Weights that are packed in a way of their own would be read as numbers that they are not.
    fn refuse_quantized(&self) -> Result<()> {
        let keys = ["quantization_config", "compression_config"];
        let Some((key, value)) = keys.into_iter().find_map(|key| Some((key, self.get(key)?)))
        else {
            return Ok(());
        };
        let method = value.get("quant_method").and_then(Value::as_str);
        Err(self.error(format!(
            "`{key}` says that the weights are quantised ({}), which is not read; use the checkpoint that they were made from, or a GGUF file of it",
            method.unwrap_or("by a method that is not named")
        )))
    }

    /// `dtype` (v5) or `torch_dtype` (v4); f32 where neither is given.
    pub(crate) fn dtype(&self) -> Result<DType> {
        let name = self.get("dtype").or_else(|| self.get("torch_dtype"));
        match name.map(|value| value.as_str().unwrap_or_default()) {
            None | Some("float32") => Ok(DType::F32),
            Some("bfloat16") => Ok(DType::BF16),
            Some("float16") => Ok(DType::F16),
            Some(other) => Err(self.error(format!(
                "dtype `{other}` is not supported; float32, bfloat16 and float16 are"
            ))),
        }
    }

    /// Inverse RoPE frequencies from `rope_theta` + `rope_scaling` (v4) or `rope_parameters` (v5).
    pub(crate) fn rope(&self, head_dim: usize) -> Result<PositionScheme> {
        if !head_dim.is_multiple_of(2) {
            return Err(self.error(format!("head size {head_dim} is odd; RoPE turns pairs")));
        }
        let parameters = self.get("rope_parameters");
        let scaling = parameters.or_else(|| self.get("rope_scaling"));
        let theta = match parameters.and_then(|value| value.get("rope_theta")) {
            Some(theta) => theta
                .as_f64()
                .ok_or_else(|| self.error("key `rope_parameters.rope_theta` must be a number"))?,
            None => self.f64_or("rope_theta", 10_000.0)?,
        };
        let mut inv_freq: Vec<f64> = (0..head_dim / 2)
            .map(|pair| theta.powf(-((2 * pair) as f64) / head_dim as f64))
            .collect();
        let kind = scaling
            .and_then(|value| value.get("rope_type").or_else(|| value.get("type")))
            .and_then(Value::as_str)
            .unwrap_or("default");
        match (kind, scaling) {
            ("default", _) => {}
            ("linear", Some(scaling)) => {
                let factor = self.rope_number(scaling, "factor")?;
                inv_freq.iter_mut().for_each(|freq| *freq /= factor);
            }
            ("llama3", Some(scaling)) => self.scale_llama3(&mut inv_freq, scaling)?,
            (other, _) => {
                return Err(self.error(format!(
                    "rope type `{other}` is not supported; default, linear and llama3 are"
                )));
            }
        }
        let inv_freq = inv_freq.into_iter().map(|freq| freq as f32).collect();
        Ok(PositionScheme::Rope { inv_freq })
    }

    /// LLaMA 3.1's scaling: long wavelengths are stretched by `factor`, short ones kept, those
    /// between blended linearly (`_compute_llama3_parameters` of transformers).
    fn scale_llama3(&self, inv_freq: &mut [f64], scaling: &Value) -> Result<()> {
        let factor = self.rope_number(scaling, "factor")?;
        let low = self.rope_number(scaling, "low_freq_factor")?;
        let high = self.rope_number(scaling, "high_freq_factor")?;
        let context = self.rope_number(scaling, "original_max_position_embeddings")?;
        if high <= low {
            return Err(self.error("rope: `high_freq_factor` must be above `low_freq_factor`"));
        }
        for freq in inv_freq {
            let wavelength = 2.0 * std::f64::consts::PI / *freq;
            let blend = ((context / wavelength - low) / (high - low)).clamp(0.0, 1.0);
            *freq = (1.0 - blend) * *freq / factor + blend * *freq;
        }
        Ok(())
    }

    fn rope_number(&self, scaling: &Value, key: &str) -> Result<f64> {
        scaling
            .get(key)
            .and_then(Value::as_f64)
            .filter(|number| *number > 0.0)
            .ok_or_else(|| self.error(format!("rope parameters lack a positive `{key}`")))
    }
}

impl ModelConfig {
    /// Reads `config.json`.
    ///
    /// # Errors
    /// A missing or malformed file, an unknown architecture, a key that is absent or out of range.
    pub fn read(path: &Path) -> Result<Self> {
        Self::of(&ConfigFile::read(path)?)
    }

    /// The configuration of a model: `config.json` of a Hugging Face folder, or the metadata of a `.gguf` file.
    ///
    /// # Errors
    /// A path that holds no model; as [`read`](Self::read).
    pub fn open(model: &Path) -> Result<Self> {
        if gguf::is_gguf(model) {
            let gguf = Gguf::open(model)?;
            return Self::of(&ConfigFile::of(model, gguf.config()?));
        }
        let path = model.join("config.json");
        if !path.is_file() {
            return Err(ModelError::NotACheckpoint {
                dir: model.to_path_buf(),
                missing: "config.json".to_owned(),
            });
        }
        Self::read(&path)
    }

    /// The same from an object that is read already.
    pub(crate) fn of(file: &ConfigFile) -> Result<Self> {
        file.refuse_quantized()?;
        let config = Family::detect(file)?.config(file)?;
        if config.n_heads % config.n_kv_heads != 0 {
            return Err(file.error(format!(
                "{} query heads cannot share {} key-value heads",
                config.n_heads, config.n_kv_heads
            )));
        }
        Ok(config)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(json: &str) -> ConfigFile {
        ConfigFile::of(
            Path::new("config.json"),
            serde_json::from_str(json).unwrap(),
        )
    }

    #[test]
    fn both_forms_of_rope_settings_agree() {
        let v4 = file(
            r#"{"rope_theta": 5e5, "rope_scaling": {"rope_type": "llama3", "factor": 8.0,
                "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64}}"#,
        );
        let v5 = file(
            r#"{"rope_parameters": {"rope_theta": 5e5, "rope_type": "llama3", "factor": 8.0,
                "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64}}"#,
        );
        assert_eq!(v4.rope(16).unwrap(), v5.rope(16).unwrap());
    }

    #[test]
    fn an_unknown_rope_type_is_named() {
        let yarn = file(r#"{"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}"#);
        let message = yarn.rope(16).unwrap_err().to_string();
        assert!(message.contains("`yarn`"), "{message}");
    }

    #[test]
    fn a_zero_size_is_refused_by_name() {
        let message = file(r#"{"hidden_size": 0}"#)
            .usize("hidden_size")
            .unwrap_err()
            .to_string();
        assert!(message.contains("hidden_size"), "{message}");
    }
}
