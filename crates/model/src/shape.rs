//! Models that are a shape alone: the sizes of a published one and random weights, made where they are computed with. Their
//! speed is that of the real one; what they say means nothing.

use crate::config::ConfigFile;
use crate::error::{ModelError, Result};
use crate::safetensors_file::{Origin, Place};
use crate::stored::Stored;
use crate::tokenizer::Tokenize;
use candle_core::{DType, Device, Tensor};
use serde_json::{Map, Value, json};
use std::path::{Path, PathBuf};

/// What the path of such a model begins with; its name or its settings as JSON follow.
const SCHEME: &str = "shape:";

/// Standard deviation of random weights, as most models are initialised with.
const DEVIATION: f64 = 0.02;

/// The sizes of a model, as `config.json` has them.
#[derive(Debug, Clone, PartialEq)]
pub struct Shape {
    name: String,
    settings: Map<String, Value>,
}

impl Shape {
    /// The shapes that have a name.
    pub const NAMES: [&'static str; 5] = [
        "bloomz-7b1",
        "llama-2-7b",
        "llama-3.1-8b",
        "qwen3-8b",
        "smollm2-135m",
    ];

    /// A shape by its name.
    ///
    /// # Errors
    /// A name that is none, with those that there are.
    pub fn named(name: &str) -> Result<Self> {
        let settings = published(name).ok_or_else(|| ModelError::UnknownShape {
            name: name.to_owned(),
            known: Self::NAMES.join(", "),
        })?;
        Ok(Self {
            name: name.to_owned(),
            settings,
        })
    }

    /// A shape by keys of `config.json`; where one of them is `like`, they are laid over the shape of that name.
    ///
    /// # Errors
    /// `like` names no shape.
    pub fn of_settings(mut settings: Map<String, Value>) -> Result<Self> {
        let Some(like) = settings.shift_remove("like") else {
            let name = settings.get("model_type").and_then(Value::as_str);
            return Ok(Self {
                name: name.unwrap_or("model").to_owned(),
                settings,
            });
        };
        let name = like
            .as_str()
            .map_or_else(|| like.to_string(), str::to_owned);
        let base = Self::named(&name)?;
        let name = match settings.is_empty() {
            true => base.name,
            false => format!("like {name}"),
        };
        let mut all = base.settings;
        all.extend(settings);
        Ok(Self {
            name,
            settings: all,
        })
    }

    /// The shape that stands in the path of a model; `None` where it is one of a folder or a file.
    ///
    /// # Errors
    /// A name that is none.
    pub fn of(model: &Path) -> Result<Option<Self>> {
        let text = model.to_str().and_then(|text| text.strip_prefix(SCHEME));
        let Some(text) = text else { return Ok(None) };
        match serde_json::from_str(text) {
            Ok(Value::Object(settings)) => Self::of_settings(settings).map(Some),
            _ => Self::named(text).map(Some),
        }
    }

    /// What stands for it where a model is named by a path.
    pub fn path(&self) -> PathBuf {
        let is_published = published(&self.name).as_ref() == Some(&self.settings);
        PathBuf::from(match is_published {
            true => format!("{SCHEME}{}", self.name),
            false => format!("{SCHEME}{}", Value::Object(self.settings.clone())),
        })
    }

    /// What it is called.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its keys and values, as `config.json` has them.
    pub fn settings(&self) -> &Map<String, Value> {
        &self.settings
    }

    pub(crate) fn config_file(&self) -> ConfigFile {
        let name = format!("the shape {}", self.name);
        ConfigFile::of(Path::new(&name), Value::Object(self.settings.clone()))
    }
}

/// Sizes as the `config.json` of the published checkpoint says them.
fn published(name: &str) -> Option<Map<String, Value>> {
    let llama = |sizes: Value| {
        let mut config = json!({"model_type": "llama", "rms_norm_eps": 1e-5, "dtype": "bfloat16"});
        if let (Value::Object(config), Value::Object(sizes)) = (&mut config, sizes) {
            config.extend(sizes);
        }
        config
    };
    let config = match name {
        "bloomz-7b1" => json!({
            "model_type": "bloom", "hidden_size": 4096, "n_layer": 30, "n_head": 32, "vocab_size": 250_880,
            "layer_norm_epsilon": 1e-5, "dtype": "float16",
        }),
        "llama-2-7b" => llama(json!({
            "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32,
            "num_key_value_heads": 32, "vocab_size": 32000, "max_position_embeddings": 4096, "dtype": "float16",
        })),
        "llama-3.1-8b" => llama(json!({
            "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
            "num_key_value_heads": 8, "vocab_size": 128_256, "max_position_embeddings": 131_072,
            "rope_theta": 500_000.0,
            "rope_scaling": {
                "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                "original_max_position_embeddings": 8192,
            },
        })),
        "qwen3-8b" => json!({
            "model_type": "qwen3", "hidden_size": 4096, "intermediate_size": 12288, "num_hidden_layers": 36,
            "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151_936,
            "max_position_embeddings": 40960, "rope_theta": 1e6, "rms_norm_eps": 1e-6, "dtype": "bfloat16",
        }),
        "smollm2-135m" => llama(json!({
            "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9,
            "num_key_value_heads": 3, "vocab_size": 49152, "max_position_embeddings": 8192,
            "rope_theta": 100_000.0, "tie_word_embeddings": true,
        })),
        _ => return None,
    };
    match config {
        Value::Object(settings) => Some(settings),
        _ => None,
    }
}

/// Numbers of a tensor of such a model, which lie in no file: f32 as a file would hold them.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Made {
    /// Of the random numbers; each tensor has its own.
    seed: u64,
    /// What all of them are, where they are not random: norms begin as ones and biases as zeros.
    constant: Option<f32>,
}

impl Made {
    /// The tensor `name`.
    pub(crate) fn of(name: &str, shape: &[usize]) -> Self {
        let seed = name.bytes().fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        });
        let one = if name.ends_with("bias") { 0.0 } else { 1.0 };
        Self {
            seed,
            constant: (shape.len() == 1).then_some(one),
        }
    }

    /// An LM head of its own is written only where it is not tied, which the config says.
    pub(crate) fn has(name: &str) -> bool {
        !matches!(name, "lm_head.weight" | "embed_out.weight")
    }

    pub(crate) fn place(self) -> Place<'static> {
        Place {
            origin: Origin::Made(self),
            stored: Stored::F32,
        }
    }

    /// Bytes of the tensor from byte `from` of it on, both of whole numbers: the same whichever part is asked for.
    pub(crate) fn fill(self, from: usize, bytes: &mut [u8]) {
        let width = size_of::<f32>();
        for (at, value) in bytes.chunks_exact_mut(width).enumerate() {
            value.copy_from_slice(&self.value(from / width + at).to_le_bytes());
        }
    }

    fn value(self, at: usize) -> f32 {
        self.constant
            .unwrap_or_else(|| uniform(self.seed, at as u64))
    }

    /// The tensor made on a device, with the device's own random numbers.
    pub(crate) fn tensor(self, shape: &[usize], dtype: DType, device: &Device) -> Result<Tensor> {
        let made = match self.constant {
            Some(value) => Tensor::full(value, shape, device)?,
            None => Tensor::randn(0f32, DEVIATION as f32, shape, device)?,
        };
        Ok(made.to_dtype(dtype)?)
    }
}

/// A number of mean 0 and the deviation of weights: the `at`-th of SplitMix64.
fn uniform(seed: u64, at: u64) -> f32 {
    let mut mixed = seed.wrapping_add(at.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    let share = (mixed ^ (mixed >> 31)) as u32 as f32 / u32::MAX as f32;
    (2.0 * share - 1.0) * (DEVIATION * 3f64.sqrt()) as f32
}

/// Bytes of text to a token, as in an English text with most vocabularies.
const TOKEN_BYTES: usize = 4;

/// Stands for the tokenizer of a model that is a shape alone: so many tokens as a text would have, none of which ends an
/// answer, and no text of its own.
#[derive(Debug)]
pub struct ShapeTokenizer {
    vocab_size: u32,
}

impl ShapeTokenizer {
    /// Of a vocabulary of this size, one at least.
    pub fn new(vocab_size: usize) -> Self {
        let vocab_size = u32::try_from(vocab_size).unwrap_or(u32::MAX).max(1);
        Self { vocab_size }
    }
}

impl Tokenize for ShapeTokenizer {
    fn encode_with(&self, text: &str, _: bool) -> Result<Vec<u32>> {
        let id = |bytes: &[u8]| {
            let hash = bytes.iter().fold(7u32, |hash, &byte| {
                hash.wrapping_mul(31).wrapping_add(u32::from(byte))
            });
            hash % self.vocab_size
        };
        Ok(text.as_bytes().chunks(TOKEN_BYTES).map(id).collect())
    }

    fn decode(&self, _: &[u32]) -> Result<String> {
        Ok(String::new())
    }

    fn eos_ids(&self) -> &[u32] {
        &[]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ModelConfig;

    #[test]
    fn named_shapes_have_the_sizes_of_the_published_models() {
        // Parameters as counted of the published checkpoints.
        for (name, parameters) in [
            ("bloomz-7b1", 7_069_016_064),
            ("llama-2-7b", 6_738_415_616),
            ("llama-3.1-8b", 8_030_261_248),
            ("qwen3-8b", 8_190_735_360),
            ("smollm2-135m", 134_515_008u64),
        ] {
            let shape = Shape::named(name).unwrap();
            let config = ModelConfig::open(&shape.path()).unwrap();
            // Matrices alone: norms and biases are under a thousandth.
            let gates = if name == "bloomz-7b1" { 2 } else { 3 };
            let kv = 2 * config.n_kv_heads * config.head_dim;
            let q = 2 * config.n_heads * config.head_dim;
            let layer = config.d_model * (q + kv + gates * config.d_ff);
            let tables = if config.tied_head { 1 } else { 2 };
            let found = config.n_layers * layer + tables * config.vocab_size * config.d_model;
            let share = found as f64 / parameters as f64;
            assert!((0.999..=1.0).contains(&share), "{name}: {found}");
        }
        assert!(Shape::NAMES.iter().all(|name| published(name).is_some()));
    }

    #[test]
    fn a_shape_is_named_by_a_path_and_found_again() {
        let settings = json!({"like": "smollm2-135m", "num_hidden_layers": 4});
        let Value::Object(settings) = settings else {
            unreachable!()
        };
        let small = Shape::of_settings(settings).unwrap();
        let again = Shape::of(&small.path()).unwrap().unwrap();
        assert_eq!(again.settings(), small.settings());
        let named = Shape::named("llama-2-7b").unwrap();
        assert_eq!(named.path(), Path::new("shape:llama-2-7b"));
        assert_eq!(Shape::of(&named.path()).unwrap(), Some(named));
        assert_eq!(Shape::of(Path::new("models/shape")).unwrap(), None);
        let message = Shape::of(Path::new("shape:gpt-5")).unwrap_err().to_string();
        assert!(
            message.contains("gpt-5") && message.contains("bloomz-7b1"),
            "{message}"
        );
    }

    #[test]
    fn weights_are_the_same_in_whatever_parts_they_are_made() {
        let values = |name: &str, shape: &[usize], from: usize, count: usize| {
            let mut bytes = vec![0; 4 * count];
            let place = Made::of(name, shape).place();
            place.read(4 * from, &mut bytes).unwrap();
            place.stored.widen(&bytes).unwrap()
        };
        let shape = [40, 1000];
        let all = values("a.weight", &shape, 0, 40_000);
        assert_eq!(
            all[12_345..30_000],
            values("a.weight", &shape, 12_345, 17_655)
        );
        assert_ne!(all, values("b.weight", &shape, 0, 40_000));
        let mean = all.iter().sum::<f32>() / all.len() as f32;
        let square = all.iter().map(|value| value * value).sum::<f32>() / all.len() as f32;
        assert!(mean.abs() < 5e-4, "{mean}");
        assert!(
            (f64::from(square).sqrt() / DEVIATION - 1.0).abs() < 0.02,
            "{square}"
        );
        assert_eq!(values("norm.weight", &[2], 0, 2), [1.0, 1.0]);
        assert_eq!(values("q.bias", &[2], 0, 2), [0.0, 0.0]);
    }
}
