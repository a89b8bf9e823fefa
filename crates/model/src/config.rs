//! `config.json` of a Hugging Face checkpoint, in its v4 and its v5 form.

use crate::error::{ModelError, Result};
use crate::families::Family;
use crate::gguf::{self, Gguf};
use crate::rope::{Beyond, Rope, RopeDefaults};
use crate::shape::Shape;
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
    /// Width of the embedding and of what the LM head reads; `d_model` but for some OPT.
    pub d_embed: usize,
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
    /// The ways in which positions enter the model; layers may differ in theirs.
    pub positions: Vec<PositionScheme>,
    /// How attention of each layer looks back, `[n_layers]`.
    pub layers: Vec<LayerKind>,
    /// Factor of the products of queries and keys.
    pub score_scale: f64,
    /// `cap * tanh(score / cap)` of attention scores (arXiv 2408.00118).
    pub score_cap: Option<f64>,
    /// The same of logits.
    pub logit_cap: Option<f64>,
    /// Factor of embeddings on their way into the first layer.
    pub embedding_scale: Option<f64>,
    /// Activation function of the MLP.
    pub activation: Activation,
    /// Where the norms of a layer stand.
    pub norms: NormPlacement,
    /// Whether attention and MLP of a layer read the same input, `x + attention(x) + mlp(x)`, rather than one after the other.
    pub parallel: bool,
    /// Whether the LM head is the embedding.
    pub tied_head: bool,
    /// Which projections add a bias.
    pub biases: Biases,
    /// Element type of the weights in the file.
    pub dtype: DType,
}

/// `config.json` of a folder, or what would say the same of a `.gguf` file.
///
/// # Errors
/// A file that cannot be read.
pub fn config_json(model: &Path) -> Result<Value> {
    if let Some(shape) = Shape::of(model)? {
        return Ok(shape.config_file().into_value());
    }
    match gguf::is_gguf(model) {
        true => Gguf::open(model)?.config(),
        false => Ok(ConfigFile::read(&model.join("config.json"))?.into_value()),
    }
}

/// How attention of a layer looks back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct LayerKind {
    /// Positions that a token sees, its own among them; all up to it where there is none.
    pub window: Option<usize>,
    /// Place in [`ModelConfig::positions`].
    pub positions: usize,
}

/// Where the norms of attention and MLP stand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NormPlacement {
    /// In front: `x + f(norm(x))`.
    Before,
    /// Behind: `x + norm(f(x))`.
    After,
    /// On both sides: `x + norm(f(norm(x)))`.
    Around,
    /// Behind the sum: `norm(x + f(x))`.
    Sum,
}

/// Activation function of an MLP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    /// `x sigmoid(x)` (arXiv 1702.03118).
    Silu,
    /// `x Phi(x)` with the normal distribution's Phi (arXiv 1606.08415).
    Gelu,
    /// The same with its tanh approximation.
    GeluTanh,
    /// `max(x, 0)`.
    Relu,
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

/// How positions enter the model.
#[derive(Debug, Clone, PartialEq)]
pub enum PositionScheme {
    /// Queries and keys are turned.
    Rope(Rope),
    /// Attention with linear biases (arXiv 2108.12409): one slope per head.
    Alibi {
        /// `[n_heads]`.
        slopes: Vec<f32>,
    },
    /// A learned vector for each position is added to the embedding.
    Learned,
}

/// Far beyond the deepest model.
const MAX_LAYERS: usize = 10_000;

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

    pub(crate) fn into_value(self) -> Value {
        self.value
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

    /// A number of layers, which is never so large that a list of them could not be held.
    pub(crate) fn n_layers(&self, key: &str) -> Result<usize> {
        let n_layers = self.usize(key)?;
        match n_layers <= MAX_LAYERS {
            true => Ok(n_layers),
            false => Err(self.error(format!("key `{key}` is {n_layers}; no model has so many"))),
        }
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

    /// The object of RoPE parameters: `rope_scaling` (v4), or `rope_parameters` (v5).
    pub(crate) fn rope_parameters(&self) -> Result<Option<&Value>> {
        for key in ["rope_scaling", "rope_parameters"] {
            match self.get(key) {
                Some(Value::Object(object)) if object.is_empty() => {}
                Some(object @ Value::Object(_)) => return Ok(Some(object)),
                Some(other) => {
                    return Err(self.error(format!("key `{key}` must be an object, got {other}")));
                }
                None => {}
            }
        }
        Ok(None)
    }

    /// An activation function by its name in transformers.
    pub(crate) fn activation(&self, key: &str, default: Activation) -> Result<Activation> {
        let Some(value) = self.get(key) else {
            return Ok(default);
        };
        match value.as_str() {
            Some("silu" | "swish") => Ok(Activation::Silu),
            Some("gelu" | "gelu_python") => Ok(Activation::Gelu),
            Some("gelu_new" | "gelu_pytorch_tanh" | "gelu_python_tanh" | "gelu_fast") => Ok(Activation::GeluTanh),
            Some("relu") => Ok(Activation::Relu),
            _ => Err(self.error(format!(
                "{key} {value} is not supported; silu, gelu, gelu_new, gelu_pytorch_tanh and relu are"
            ))),
        }
    }

    /// `head_dim`, or what `default` says, or the hidden size divided among the heads.
    pub(crate) fn head_dim(
        &self,
        d_model: usize,
        n_heads: usize,
        default: Option<usize>,
    ) -> Result<usize> {
        match (self.get("head_dim"), default) {
            (Some(_), _) => self.usize("head_dim"),
            (None, Some(default)) => Ok(default),
            (None, None) if d_model.is_multiple_of(n_heads) => Ok(d_model / n_heads),
            (None, None) => Err(self.error(format!(
                "hidden_size {d_model} does not divide into {n_heads} heads and `head_dim` is not given"
            ))),
        }
    }

    /// `sliding_window`, or `default` where the key is not there at all; `null` means none.
    pub(crate) fn window(&self, default: Option<usize>) -> Result<Option<usize>> {
        match self.value.get("sliding_window") {
            None => Ok(default),
            Some(Value::Null) => Ok(None),
            Some(_) => self.usize("sliding_window").map(Some),
        }
    }

    /// The cap of a tanh, or `default` where the key is not there at all; `null` means none.
    pub(crate) fn cap(&self, key: &str, default: Option<f64>) -> Result<Option<f64>> {
        match self.value.get(key) {
            None => Ok(default),
            Some(Value::Null) => Ok(None),
            Some(_) => self.positive_or(key, 1.0).map(Some),
        }
    }

    /// A positive number.
    pub(crate) fn positive_or(&self, key: &str, default: f64) -> Result<f64> {
        let number = self.f64_or(key, default)?;
        match number > 0.0 {
            true => Ok(number),
            false => Err(self.error(format!("key `{key}` must be positive, got {number}"))),
        }
    }

    /// The window of each layer: `window` in those that `layer_types` calls sliding. Where that list is not given, `slides` says
    /// which they are.
    pub(crate) fn windows(
        &self,
        n_layers: usize,
        window: Option<usize>,
        slides: impl Fn(usize) -> bool,
    ) -> Result<Vec<Option<usize>>> {
        let Some(types) = self.get("layer_types") else {
            return Ok((0..n_layers)
                .map(|layer| window.filter(|_| slides(layer)))
                .collect());
        };
        let types = types.as_array().filter(|types| types.len() == n_layers).ok_or_else(|| {
            self.error(format!("key `layer_types` must be a list with the kind of each of the {n_layers} layers"))
        })?;
        types
            .iter()
            .map(|kind| match (kind.as_str(), window) {
                (Some("full_attention" | "attention"), _) => Ok(None),
                (Some("sliding_attention"), Some(window)) => Ok(Some(window)),
                (Some("sliding_attention"), None) => Err(self
                    .error("`layer_types` has sliding layers, but there is no `sliding_window`")),
                _ => Err(self.error(format!(
                    "layer type {kind} is not supported; full_attention and sliding_attention are"
                ))),
            })
            .collect()
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

    /// The configuration of a model: `config.json` of a Hugging Face folder, the metadata of a `.gguf` file, or a [`Shape`].
    ///
    /// # Errors
    /// A path that holds no model; as [`read`](Self::read).
    pub fn open(model: &Path) -> Result<Self> {
        if let Some(shape) = Shape::of(model)? {
            return Self::of(&shape.config_file());
        }
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

    /// Sizes by the names that most families use, and the plainest form of everything else: attention over all positions, no
    /// biases, one sub-layer after the other. A family changes what it does otherwise, and says its positions.
    pub(crate) fn plain(
        file: &ConfigFile,
        family: Family,
        d_ff: usize,
        head_dim: Option<usize>,
    ) -> Result<Self> {
        let d_model = file.usize("hidden_size")?;
        let n_heads = file.usize("num_attention_heads")?;
        let n_layers = file.n_layers("num_hidden_layers")?;
        let head_dim = file.head_dim(d_model, n_heads, head_dim)?;
        Ok(Self {
            family,
            vocab_size: file.usize("vocab_size")?,
            d_model,
            d_embed: d_model,
            n_layers,
            n_heads,
            n_kv_heads: file.usize_or("num_key_value_heads", Some(n_heads))?,
            head_dim,
            d_ff,
            norm_eps: file.f64_or("rms_norm_eps", 1e-6)?,
            max_positions: None,
            positions: Vec::new(),
            layers: vec![LayerKind::default(); n_layers],
            score_scale: 1.0 / (head_dim as f64).sqrt(),
            score_cap: None,
            logit_cap: None,
            embedding_scale: None,
            activation: file.activation("hidden_act", Activation::Silu)?,
            norms: NormPlacement::Before,
            parallel: false,
            tied_head: file.bool_or("tie_word_embeddings", false)?,
            biases: Biases::default(),
            dtype: file.dtype()?,
        })
    }

    /// The same with rotary positions as the config's RoPE parameters say, in all layers.
    pub(crate) fn with_rope(mut self, file: &ConfigFile) -> Result<Self> {
        let defaults = RopeDefaults::of(file, self.head_dim)?;
        let rope = Rope::read(file, file.rope_parameters()?, defaults)?;
        self.max_positions = rope.max_positions;
        self.positions = vec![PositionScheme::Rope(rope)];
        Ok(self)
    }

    /// Gives each layer its window.
    pub(crate) fn with_windows(mut self, windows: Vec<Option<usize>>) -> Self {
        for (layer, window) in self.layers.iter_mut().zip(windows) {
            layer.window = window;
        }
        self
    }

    /// Width of all queries of a token.
    pub(crate) fn q_width(&self) -> usize {
        self.n_heads * self.head_dim
    }

    /// Width of all keys of a token.
    pub(crate) fn kv_width(&self) -> usize {
        self.n_kv_heads * self.head_dim
    }

    /// Tokens up to which a sequence must stay that has not begun above: LongRoPE turns all its keys otherwise from there on.
    pub fn switch_length(&self) -> Option<usize> {
        self.positions.iter().find_map(|scheme| match scheme {
            PositionScheme::Rope(rope) => match &rope.beyond {
                Beyond::Long { trained, .. } => Some(*trained),
                _ => None,
            },
            _ => None,
        })
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
    fn a_zero_size_is_refused_by_name() {
        let message = file(r#"{"hidden_size": 0}"#)
            .usize("hidden_size")
            .unwrap_err()
            .to_string();
        assert!(message.contains("hidden_size"), "{message}");
    }
}
