//! A loaded model, a layer at a time.

use crate::batch::{Span, token_count};
use crate::cache::{CacheShape, KvCache, Provenance};
use crate::checkpoint::Checkpoint;
use crate::composed::{self, ComposedLayer};
use crate::config::ModelConfig;
use crate::error::{ModelError, Result};
use crate::fused::{FusedHead, FusedLayer};
use crate::memory;
use crate::weights::Frame;
use candle_core::{DType, Device, Tensor};
use std::path::Path;

/// A decoder-only language model that can be run one layer at a time.
///
/// `hidden` is always `[tokens, d_model]`: the spans of the step laid end to end.
pub trait CausalLm: Send + Sync {
    /// Shapes and sizes.
    fn sizes(&self) -> &ModelSizes;

    /// Where the tensors live.
    fn device(&self) -> &Device;

    /// An empty cache that may grow to `capacity[layer]` positions per row.
    ///
    /// # Errors
    /// The device has not enough memory.
    fn new_cache(&self, rows: usize, capacity: Vec<usize>) -> Result<KvCache>;

    /// Embeds token ids: `[tokens, d_model]`.
    ///
    /// # Errors
    /// An id outside the vocabulary.
    fn embed(&self, ids: &[u32]) -> Result<Tensor>;

    /// Runs `part` of layer `index` over `hidden`. Attention writes the keys and values of `spans` to the cache.
    ///
    /// # Errors
    /// The cache has no room, or attention would read a hole.
    fn layer_part(
        &self,
        index: usize,
        part: Part,
        hidden: &Tensor,
        cache: &mut KvCache,
        spans: &[Span],
    ) -> Result<Tensor>;

    /// Runs both sub-layers of layer `index`.
    ///
    /// # Errors
    /// As [`layer_part`](Self::layer_part).
    fn layer(
        &self,
        index: usize,
        hidden: &Tensor,
        cache: &mut KvCache,
        spans: &[Span],
    ) -> Result<Tensor> {
        self.layer_part(index, Part::Whole, hidden, cache, spans)
    }

    /// Writes only the keys and values that layer `index` projects from `hidden`: CALM's state propagation
    /// for a layer that `spans` skip (arXiv 2207.07061, section 3.4).
    ///
    /// # Errors
    /// The cache has no room.
    fn fill_kv(
        &self,
        index: usize,
        hidden: &Tensor,
        cache: &mut KvCache,
        spans: &[Span],
    ) -> Result<()>;

    /// Final norm and LM head: f32 logits `[tokens, vocab_size]`.
    ///
    /// # Errors
    /// A failed tensor operation.
    fn head(&self, hidden: &Tensor) -> Result<Tensor>;
}

/// What to run of a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Part {
    /// Attention, then the MLP.
    Whole,
    /// `x += attention(norm(x))` alone.
    Attention,
    /// `x += mlp(norm(x))` alone: reads and writes no cache.
    Mlp,
}

impl Part {
    /// Whether attention is in it.
    pub const fn has_attention(self) -> bool {
        matches!(self, Part::Whole | Part::Attention)
    }

    /// Whether the MLP is in it.
    pub const fn has_mlp(self) -> bool {
        matches!(self, Part::Whole | Part::Mlp)
    }
}

/// What the ledger and the cache need to know of a model.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelSizes {
    /// Decoder layers.
    pub n_layers: usize,
    /// Width of the hidden state.
    pub d_model: usize,
    /// Size of the vocabulary.
    pub vocab_size: usize,
    /// Key-value heads.
    pub n_kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Largest number of positions, where there is one.
    pub max_positions: Option<usize>,
    /// Query heads times the width of a head.
    pub q_width: usize,
    /// Weights of one layer's attention.
    pub attention_weights: u64,
    /// Of these, the weights of the key and value projections.
    pub kv_projection_weights: u64,
    /// Weights of one layer's MLP.
    pub mlp_weights: u64,
    /// Weights of the LM head.
    pub head_weights: u64,
    /// Bytes of a weight, and of an element of the KV cache.
    pub element_bytes: u64,
}

impl ModelSizes {
    /// Weights of a part of one layer.
    pub fn part_weights(&self, part: Part) -> u64 {
        match part {
            Part::Whole => self.attention_weights + self.mlp_weights,
            Part::Attention => self.attention_weights,
            Part::Mlp => self.mlp_weights,
        }
    }

    /// Bytes of one position's keys and values in one layer.
    pub fn kv_position_bytes(&self) -> u64 {
        (2 * self.n_kv_heads * self.head_dim) as u64 * self.element_bytes
    }
}

/// Which form of the layer to run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Backend {
    /// Fused for f32 on a CPU, composed elsewhere.
    #[default]
    Auto,
    /// Composed from candle operations everywhere.
    Composed,
}

enum Layers {
    Composed(Vec<ComposedLayer>),
    Fused {
        layers: Vec<FusedLayer>,
        head: FusedHead,
    },
}

/// A checkpoint of one of the supported families.
pub struct Decoder {
    config: ModelConfig,
    sizes: ModelSizes,
    device: Device,
    dtype: DType,
    frame: Frame,
    layers: Layers,
}

impl Decoder {
    /// Loads a Hugging Face folder or a `.gguf` file. `dtype` `None` takes the file's own on a GPU and f32 on a CPU, where
    /// narrower types are widened at each call and only cost time.
    ///
    /// # Errors
    /// A file that is missing, damaged or of an unknown architecture; a tensor that is missing or of another
    /// shape than the config says.
    pub fn load(
        model: &Path,
        device: &Device,
        dtype: Option<DType>,
        backend: Backend,
    ) -> Result<Self> {
        let config = ModelConfig::open(model)?;
        let dtype = dtype.unwrap_or(match device {
            Device::Cpu => DType::F32,
            _ => config.dtype,
        });
        let checkpoint = Checkpoint::open(model, dtype, device)?;
        let frame = config.family.frame(&checkpoint, &config)?;
        let fused =
            backend == Backend::Auto && matches!(device, Device::Cpu) && dtype == DType::F32;
        let mut sizes = ModelSizes {
            n_layers: config.n_layers,
            d_model: config.d_model,
            vocab_size: config.vocab_size,
            n_kv_heads: config.n_kv_heads,
            head_dim: config.head_dim,
            max_positions: config.max_positions,
            q_width: config.n_heads * config.head_dim,
            attention_weights: 0,
            kv_projection_weights: 0,
            mlp_weights: 0,
            head_weights: frame.head.elem_count() as u64,
            element_bytes: dtype.size_in_bytes() as u64,
        };
        let mut composed_layers = Vec::new();
        let mut fused_layers = Vec::new();
        for index in 0..config.n_layers {
            let weights = config.family.layer(&checkpoint, &config, index)?;
            sizes.attention_weights = weights.attention_elements() as u64;
            sizes.kv_projection_weights = 2 * weights.k.weight.elem_count() as u64;
            sizes.mlp_weights = weights.mlp_elements() as u64;
            if fused {
                fused_layers.push(FusedLayer::new(&weights, &config)?);
            } else {
                composed_layers.push(ComposedLayer::new(weights, &config, device)?);
            }
        }
        let layers = if fused {
            Layers::Fused {
                layers: fused_layers,
                head: FusedHead::new(&frame)?,
            }
        } else {
            Layers::Composed(composed_layers)
        };
        Ok(Self {
            config,
            sizes,
            device: device.clone(),
            dtype,
            frame,
            layers,
        })
    }

    /// The parsed `config.json`.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// Element type that the weights were loaded in.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Refuses a pass whose intermediate values, `per_token` of `tokens` and `more`, do not fit in memory.
    fn require(&self, tokens: usize, per_token: usize, more: u128) -> Result<()> {
        if !self.device.is_cpu() {
            return Ok(());
        }
        let values = (tokens as u128).saturating_mul(per_token as u128);
        let bytes = values.saturating_add(more).saturating_mul(4);
        memory::require(
            "the values between layers",
            bytes,
            "the batch size, or shorten the prompts",
        )
    }

    /// Refuses `spans` for which a layer's intermediate values do not fit in memory.
    fn require_layer(&self, spans: &[Span]) -> Result<()> {
        let config = &self.config;
        let attention = (2 * config.n_heads + 2 * config.n_kv_heads) * config.head_dim;
        let per_token = 4 * config.d_model + attention + 3 * config.d_ff;
        let scores =
            |span: &Span| (span.len as u128).saturating_mul((span.start + span.len) as u128);
        let scores = match &self.layers {
            // Scores, their softmax and one copy on the way, of one span at a time.
            Layers::Composed(_) => spans.iter().map(scores).max().unwrap_or(0),
            Layers::Fused { .. } => 0,
        };
        let scores = scores.saturating_mul(3 * config.n_heads as u128);
        self.require(token_count(spans), per_token, scores)
    }
}

impl CausalLm for Decoder {
    fn sizes(&self) -> &ModelSizes {
        &self.sizes
    }

    fn device(&self) -> &Device {
        &self.device
    }

    fn new_cache(&self, rows: usize, capacity: Vec<usize>) -> Result<KvCache> {
        let shape = CacheShape {
            rows,
            n_kv_heads: self.config.n_kv_heads,
            head_dim: self.config.head_dim,
            capacity,
        };
        match &self.layers {
            Layers::Composed(_) => KvCache::device(shape, self.dtype, &self.device),
            Layers::Fused { .. } => Ok(KvCache::host(shape)),
        }
    }

    fn embed(&self, ids: &[u32]) -> Result<Tensor> {
        if let Some(&id) = ids
            .iter()
            .find(|&&id| id as usize >= self.config.vocab_size)
        {
            return Err(ModelError::TokenOutOfRange {
                id,
                vocab_size: self.config.vocab_size,
            });
        }
        self.require(ids.len(), 2 * self.config.d_model, 0)?;
        let ids = Tensor::new(ids, &self.device)?;
        let hidden = self.frame.embedding.index_select(&ids, 0)?;
        match &self.frame.embedding_norm {
            None => Ok(hidden),
            Some(norm) => composed::norm(norm, &hidden),
        }
    }

    fn layer_part(
        &self,
        index: usize,
        part: Part,
        hidden: &Tensor,
        cache: &mut KvCache,
        spans: &[Span],
    ) -> Result<Tensor> {
        debug_assert_eq!(hidden.dims(), [token_count(spans), self.config.d_model]);
        self.require_layer(spans)?;
        if part.has_attention() {
            cache.claim(index, spans, Provenance::Computed)?;
        }
        let (kv, tables) = cache.layer_mut(index, spans);
        match &self.layers {
            Layers::Composed(layers) => layers[index].forward(part, hidden, kv, tables, spans),
            Layers::Fused { layers, .. } => layers[index].forward(part, hidden, kv, tables, spans),
        }
    }

    fn fill_kv(
        &self,
        index: usize,
        hidden: &Tensor,
        cache: &mut KvCache,
        spans: &[Span],
    ) -> Result<()> {
        cache.claim(index, spans, Provenance::Propagated)?;
        let (kv, tables) = cache.layer_mut(index, spans);
        match &self.layers {
            Layers::Composed(layers) => layers[index].fill_kv(hidden, kv, tables, spans),
            Layers::Fused { layers, .. } => layers[index].fill_kv(hidden, kv, tables, spans),
        }
    }

    fn head(&self, hidden: &Tensor) -> Result<Tensor> {
        // Who reads logits on the host copies them once or twice.
        self.require(hidden.dim(0)?, 3 * self.config.vocab_size, 0)?;
        match &self.layers {
            Layers::Fused { head, .. } => head.forward(hidden),
            Layers::Composed(_) => {
                let normed = composed::norm(&self.frame.final_norm, hidden)?;
                let logits = normed.matmul(&self.frame.head.t()?)?;
                Ok(logits.to_dtype(DType::F32)?)
            }
        }
    }
}
