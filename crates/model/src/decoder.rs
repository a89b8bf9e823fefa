//! A loaded model, a layer at a time.

use crate::batch::{Span, positions, token_count};
use crate::cache::{CacheShape, KvCache, Provenance};
use crate::checkpoint::Checkpoint;
use crate::composed::{self, ComposedLayer};
use crate::config::ModelConfig;
use crate::error::{ModelError, Result};
use crate::fused::{FusedHead, FusedLayer, FusedLinear};
use crate::memory;
use crate::packed::Packed;
use crate::sizes::ModelSizes;
use crate::weights::{Frame, LayerWeights};
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

    /// Embeds the token ids of `spans`: `[tokens, d_model]`.
    ///
    /// # Errors
    /// An id outside the vocabulary, or a position that the model has no vector for.
    fn embed(&self, ids: &[u32], spans: &[Span]) -> Result<Tensor>;

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
///
/// Attention followed by the MLP is the whole layer, but for a model whose sub-layers read the same state
/// ([`ModelSizes::parallel`]). Its whole layer is `x + attention(x) + mlp(x)`; a part that is left out of it leaves
/// `x + attention(x)` or `x + mlp(x)`, and one part behind the other is another network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Part {
    /// Attention and the MLP.
    Whole,
    /// Attention alone with its norms, added to the state.
    Attention,
    /// The MLP alone with its norms, added to the state: reads and writes no cache.
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

/// Which form of the layer to run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Backend {
    /// Fused on a CPU, for weights of 32 or 16 bits that all computation widens to f32; composed elsewhere.
    #[default]
    Auto,
    /// Composed from candle operations everywhere.
    Composed,
}

enum Layers {
    Composed {
        layers: Vec<ComposedLayer>,
        /// `[vocab_size, d_embed]`
        head: Tensor,
    },
    Fused {
        /// In front of the layers, as `project_in` of the frame.
        project_in: Option<FusedLinear>,
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
    /// Of the state between layers and of the KV cache.
    state_dtype: DType,
    frame: Frame,
    /// `[vocab_size, d_embed]`; none where the rows of a fused head embed.
    embedding: Option<Tensor>,
    layers: Layers,
}

impl Decoder {
    /// Loads a Hugging Face folder or a `.gguf` file. `dtype`, the type that weights are kept in, is the file's own on a GPU
    /// and f32 on a CPU where it is `None`. On a CPU all computation is in f32, and so is the KV cache, whatever the weights
    /// are (LayerCast, arXiv 2506.09501), but for [`Backend::Composed`], which computes in the type of the weights.
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
        let fused = backend == Backend::Auto && device.is_cpu() && Packed::takes(dtype);
        let state_dtype = if fused { DType::F32 } else { dtype };
        let frame = config.family.frame(&checkpoint, &config)?;
        let frame = frame.with_state_of(state_dtype)?;
        let table = |name: &str| checkpoint.tensor(name, &[config.vocab_size, config.d_embed]);
        let tied = frame.embedding == frame.head;
        let embedding = match fused && tied {
            true => None,
            false => Some(table(&frame.embedding)?),
        };
        let mut sizes = ModelSizes {
            n_layers: config.n_layers,
            d_model: config.d_model,
            vocab_size: config.vocab_size,
            n_kv_heads: config.n_kv_heads,
            head_dim: config.head_dim,
            max_positions: config.max_positions,
            switch_length: config.switch_length(),
            windows: config.layers.iter().map(|layer| layer.window).collect(),
            parallel: config.parallel,
            q_width: config.q_width(),
            attention_weights: 0,
            kv_projection_weights: 0,
            mlp_weights: 0,
            head_weights: frame.head_elements(&config) as u64,
            element_bytes: dtype.size_in_bytes() as u64,
            state_bytes: state_dtype.size_in_bytes() as u64,
        };
        let mut layer = |index: usize| -> Result<LayerWeights> {
            let weights = config.family.layer(&checkpoint, &config, index)?;
            sizes.attention_weights = weights.attention_elements() as u64;
            sizes.kv_projection_weights = 2 * weights.attention.k.weight.elem_count() as u64;
            sizes.mlp_weights = weights.mlp_elements() as u64;
            Ok(weights)
        };
        let indices = 0..config.n_layers;
        let layers = if fused {
            let project_in = frame.project_in.as_ref();
            let project_in = project_in.map(|linear| FusedLinear::stack(&[linear]));
            let head = FusedHead::new(&frame, &config, &checkpoint)?;
            let layers = indices.map(|index| FusedLayer::new(&layer(index)?, &config, index));
            let layers = layers.collect::<Result<_>>()?;
            Layers::Fused {
                project_in: project_in.transpose()?,
                layers,
                head,
            }
        } else {
            let head = match &embedding {
                Some(embedding) if tied => embedding.clone(),
                _ => table(&frame.head)?,
            };
            let layers =
                indices.map(|index| ComposedLayer::new(layer(index)?, &config, index, device));
            let layers = layers.collect::<Result<_>>()?;
            Layers::Composed { layers, head }
        };
        Ok(Self {
            config,
            sizes,
            device: device.clone(),
            dtype,
            state_dtype,
            frame,
            embedding,
            layers,
        })
    }

    /// The parsed `config.json`.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// Element type that the weights are kept in.
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

    /// Where the tokens of `spans` stand, `[tokens]`, all of them below `limit`.
    fn places(&self, spans: &[Span], limit: usize) -> Result<Tensor> {
        if let Some(span) = spans.iter().find(|span| span.start + span.len > limit) {
            return Err(ModelError::TooLong {
                row: span.row,
                needed: span.start + span.len,
                limit,
            });
        }
        let places: Vec<u32> = positions(spans).map(|at| at as u32).collect();
        Ok(Tensor::new(places, &self.device)?)
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
            Layers::Composed { .. } => spans.iter().map(scores).max().unwrap_or(0),
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
            windows: self.sizes.windows.clone(),
        };
        match &self.layers {
            Layers::Composed { .. } => KvCache::device(shape, self.state_dtype, &self.device),
            Layers::Fused { .. } => Ok(KvCache::host(shape)),
        }
    }

    fn embed(&self, ids: &[u32], spans: &[Span]) -> Result<Tensor> {
        debug_assert_eq!(ids.len(), token_count(spans));
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
        let frame = &self.frame;
        let mut hidden = match (&self.embedding, &self.layers) {
            (None, Layers::Fused { head, .. }) => head.rows(ids)?,
            (None, Layers::Composed { head, .. }) | (Some(head), _) => {
                let ids = Tensor::new(ids, &self.device)?;
                head.index_select(&ids, 0)?.to_dtype(self.state_dtype)?
            }
        };
        if let Some(scale) = self.config.embedding_scale {
            hidden = (hidden * scale)?;
        }
        if let Some(norm) = &frame.embedding_norm {
            hidden = composed::norm(norm, &hidden)?;
        }
        if let Some(project) = &frame.project_in {
            hidden = match &self.layers {
                Layers::Fused {
                    project_in: Some(project),
                    ..
                } => project.forward(&hidden)?,
                _ => composed::linear(project, &hidden)?,
            };
        }
        if let Some(table) = &frame.positions {
            let places = self.places(spans, table.dim(0)?)?;
            let places = table.index_select(&places, 0)?;
            hidden = (hidden + places.to_dtype(self.state_dtype)?)?;
        }
        Ok(hidden)
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
            Layers::Composed { layers, .. } => {
                layers[index].forward(part, hidden, kv, tables, spans)
            }
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
            Layers::Composed { layers, .. } => layers[index].fill_kv(hidden, kv, tables, spans),
            Layers::Fused { layers, .. } => layers[index].fill_kv(hidden, kv, tables, spans),
        }
    }

    fn head(&self, hidden: &Tensor) -> Result<Tensor> {
        // Who reads logits on the host copies them once or twice.
        self.require(hidden.dim(0)?, 3 * self.config.vocab_size, 0)?;
        match &self.layers {
            Layers::Fused { head, .. } => head.forward(hidden),
            Layers::Composed { head, .. } => {
                let frame = &self.frame;
                let mut state = hidden.clone();
                if let Some(norm) = &frame.final_norm {
                    state = composed::norm(norm, &state)?;
                }
                if let Some(project) = &frame.project_out {
                    state = composed::linear(project, &state)?;
                }
                let logits = state.matmul(&head.t()?)?.to_dtype(DType::F32)?;
                match self.config.logit_cap {
                    None => Ok(logits),
                    Some(cap) => composed::soft_cap(&logits, cap),
                }
            }
        }
    }
}
