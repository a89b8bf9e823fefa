//! A loaded model, a layer at a time.

use crate::batch::{Span, positions, token_count};
use crate::cache::{CacheShape, KvCache, Provenance};
use crate::causal_lm::{CausalLm, Part};
use crate::checkpoint::Checkpoint;
use crate::composed::{self, ComposedLayer};
use crate::config::ModelConfig;
use crate::error::{ModelError, Result};
use crate::form::WeightType;
use crate::fused::{FusedHead, FusedLayer, FusedLinear};
use crate::host_kv::KvType;
use crate::lora::Adapter;
use crate::matrix::Matrix;
use crate::memory;
use crate::ops;
use crate::packed::Packed;
use crate::shortlist::{Shortlist, likeliest};
use crate::sizes::ModelSizes;
use crate::weight_bytes::WeightBytes;
use crate::weights::{Frame, LayerWeights, Linear};
use candle_core::{DType, Device, Tensor};
use std::path::Path;

/// Which form of the layer to run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Backend {
    /// Fused on a CPU; composed elsewhere.
    #[default]
    Auto,
    /// Composed from candle operations everywhere.
    Composed,
}

enum Layers {
    Composed {
        /// `[vocab_size, d_embed]`
        embedding: Tensor,
        project_in: Option<Linear<Tensor>>,
        layers: Vec<ComposedLayer>,
        project_out: Option<Linear<Tensor>>,
        /// `[vocab_size, d_embed]`
        head: Tensor,
    },
    Fused {
        /// `[vocab_size, d_embed]`; none where the rows of the head embed.
        embedding: Option<Packed>,
        project_in: Option<FusedLinear>,
        layers: Vec<FusedLayer>,
        head: Box<FusedHead>,
    },
}

/// A checkpoint of one of the supported families.
pub struct Decoder {
    config: ModelConfig,
    sizes: ModelSizes,
    device: Device,
    weights: WeightType,
    /// Of the state between layers.
    state_dtype: DType,
    /// Of the KV cache; the type of the state where it is not set.
    kv: Option<KvType>,
    frame: Frame,
    layers: Layers,
}

impl Decoder {
    /// Loads a Hugging Face folder or a `.gguf` file. `weights`, what weights are kept in, is f32 on a CPU and the file's own type
    /// on a GPU where it is `None`. On a CPU the KV cache and everything between products is in f32, whatever the weights are;
    /// products are in f32 too (LayerCast, arXiv 2506.09501), or of 8-bit integers where weights are in blocks. All of it is in
    /// the type of the weights with [`Backend::Composed`].
    ///
    /// # Errors
    /// A file that is missing, damaged or of an unknown architecture; a tensor that is missing or of another
    /// shape than the config says; weights that are larger than memory, or cannot be kept in what was asked for.
    pub fn load(
        model: &Path,
        device: &Device,
        weights: Option<WeightType>,
        backend: Backend,
    ) -> Result<Self> {
        Self::load_adapted(model, None, device, weights, backend)
    }

    /// The same with a low-rank adapter (LoRA, arXiv 2106.09685), a folder in PEFT's form, added to its weights while they are
    /// read.
    ///
    /// # Errors
    /// As of [`load`](Self::load); a folder that holds no adapter of this model, or one of another kind.
    pub fn load_adapted(
        model: &Path,
        adapter: Option<&Path>,
        device: &Device,
        weights: Option<WeightType>,
        backend: Backend,
    ) -> Result<Self> {
        let config = ModelConfig::open(model)?;
        let weights = weights.unwrap_or(match device {
            Device::Cpu => WeightType::F32,
            _ => WeightType::Stored,
        });
        let fused = backend == Backend::Auto && device.is_cpu();
        let (keep, dtype) = match fused {
            true => (weights, weights.beside_matrices()),
            false => weights.composed(config.dtype)?,
        };
        let mut checkpoint = Checkpoint::open(model, keep, dtype, device)?;
        if let Some(adapter) = adapter.map(Adapter::open).transpose()? {
            checkpoint = checkpoint.adapted(adapter, config.family);
        }
        let state_dtype = if fused { DType::F32 } else { dtype };
        let frame = config.family.frame(&checkpoint, &config)?;
        let frame = frame.with_state_of(state_dtype)?;
        let layers = (0..config.n_layers)
            .map(|index| config.family.layer(&checkpoint, &config, index))
            .collect::<Result<Vec<_>>>()?;
        checkpoint.check_adapter(&layers)?;
        let bytes = WeightBytes {
            checkpoint: &checkpoint,
            config: &config,
            frame: &frame,
            layers: &layers,
            state: state_dtype.size_in_bytes() as u64,
            keep,
        };
        if device.is_cpu() {
            bytes.require(model, fused)?;
        }
        let sizes = ModelSizes {
            state_bytes: bytes.state,
            kv_bytes: bytes.state,
            layer_bytes: bytes.of_layers()?,
            head_bytes: bytes.of_head()?,
            screen_bytes: match fused {
                true => frame.head_elements(&config) as u64,
                false => bytes.of_head()?,
            },
            ..sizes(&config, &frame, &layers)
        };
        let layers = match fused {
            true => Layers::fused(&frame, &layers, &config, &checkpoint)?,
            false => Layers::composed(&frame, layers, &config, &checkpoint, device)?,
        };
        Ok(Self {
            config,
            sizes,
            device: device.clone(),
            weights: keep,
            state_dtype,
            kv: None,
            frame,
            layers,
        })
    }

    /// Keeps keys and values in `kv`; where it is `None`, in f32 on a CPU, and in the type of the state with composed layers.
    /// They are rounded when they are written; products with them are what they are without it, of the rounded numbers.
    #[must_use]
    pub fn with_kv_type(mut self, kv: Option<KvType>) -> Self {
        self.kv = kv;
        self.sizes.kv_bytes = self.kv_dtype().size_in_bytes() as u64;
        self
    }

    fn kv_dtype(&self) -> DType {
        self.kv.map_or(self.state_dtype, KvType::dtype)
    }

    /// The parsed `config.json`.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// What the weights are kept in.
    pub fn weights(&self) -> WeightType {
        self.weights
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
        let len = places.len();
        Ok(ops::upload(places, len, &self.device)?)
    }

    /// What the composed LM head reads of `hidden`.
    fn before_head(&self, hidden: &Tensor, project: Option<&Linear<Tensor>>) -> Result<Tensor> {
        let mut state = hidden.clone();
        if let Some(norm) = &self.frame.final_norm {
            state = composed::norm(norm, &state)?;
        }
        if let Some(project) = project {
            state = composed::linear(project, &state)?;
        }
        Ok(state)
    }

    /// Logits as the model gives them, in f32.
    fn capped(&self, logits: &Tensor) -> Result<Tensor> {
        let logits = ops::cast(logits, DType::F32)?;
        match self.config.logit_cap {
            None => Ok(logits),
            Some(cap) => composed::soft_cap(&logits, cap),
        }
    }

    /// Refuses `spans` for which a layer's intermediate values do not fit in memory.
    fn require_layer(&self, spans: &[Span]) -> Result<()> {
        let config = &self.config;
        let attention = (2 * config.n_heads + 2 * config.n_kv_heads) * config.head_dim;
        let per_token = 4 * config.d_model + attention + 3 * config.d_ff;
        let scores = |span: &Span| {
            let queries = span.len.min(composed::QUERIES) as u128;
            queries.saturating_mul((span.start + span.len) as u128)
        };
        let scores = match &self.layers {
            // Scores, their softmax and one copy on the way, of some queries of one span at a time.
            Layers::Composed { .. } => spans.iter().map(scores).max().unwrap_or(0),
            Layers::Fused { .. } => 0,
        };
        let scores = scores.saturating_mul(3 * config.n_heads as u128);
        self.require(token_count(spans), per_token, scores)
    }
}

impl Layers {
    fn fused(
        frame: &Frame,
        layers: &[LayerWeights],
        config: &ModelConfig,
        checkpoint: &Checkpoint,
    ) -> Result<Self> {
        let project_in = frame.project_in.as_ref();
        let project_in = project_in.map(|linear| FusedLinear::stack(&[linear], checkpoint));
        let embedding = match frame.is_tied() {
            true => None,
            false => Some(Packed::read(checkpoint, &[&frame.embedding(config)], true)?),
        };
        let layers = layers.iter().enumerate();
        let layers = layers.map(|(index, layer)| FusedLayer::new(layer, config, index, checkpoint));
        Ok(Self::Fused {
            embedding,
            project_in: project_in.transpose()?,
            layers: layers.collect::<Result<_>>()?,
            head: Box::new(FusedHead::new(frame, config, checkpoint)?),
        })
    }

    fn composed(
        frame: &Frame,
        layers: Vec<LayerWeights>,
        config: &ModelConfig,
        checkpoint: &Checkpoint,
        device: &Device,
    ) -> Result<Self> {
        let tensor = |matrix: Matrix| checkpoint.matrix(&matrix);
        let projection = |linear: &Option<Linear>| -> Result<Option<Linear<Tensor>>> {
            linear.clone().map(|linear| linear.map(&tensor)).transpose()
        };
        let embedding = tensor(frame.embedding(config))?;
        let head = match frame.is_tied() {
            true => embedding.clone(),
            false => tensor(frame.head(config))?,
        };
        let layers = layers.into_iter().enumerate();
        let layers = layers
            .map(|(index, layer)| ComposedLayer::new(layer.map(&tensor)?, config, index, device));
        Ok(Self::Composed {
            embedding,
            project_in: projection(&frame.project_in)?,
            layers: layers.collect::<Result<_>>()?,
            project_out: projection(&frame.project_out)?,
            head,
        })
    }
}

/// Shapes and numbers of weights; what they take is left open.
fn sizes(config: &ModelConfig, frame: &Frame, layers: &[LayerWeights]) -> ModelSizes {
    let last = layers.last();
    let of_last = |count: &dyn Fn(&LayerWeights) -> usize| last.map_or(0, count) as u64;
    ModelSizes {
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
        attention_weights: of_last(&LayerWeights::attention_elements),
        kv_projection_weights: of_last(&|layer| 2 * layer.attention.k.weight.elements()),
        mlp_weights: of_last(&LayerWeights::mlp_elements),
        head_weights: frame.head_elements(config) as u64,
        layer_bytes: Vec::new(),
        head_bytes: 0,
        screen_bytes: 0,
        state_bytes: 0,
        kv_bytes: 0,
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
            Layers::Composed { .. } => KvCache::device(shape, self.kv_dtype(), &self.device),
            Layers::Fused { .. } => Ok(KvCache::host(shape, self.kv.unwrap_or(KvType::F32))),
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
        let mut hidden = match &self.layers {
            Layers::Fused {
                embedding, head, ..
            } => embedding.as_ref().unwrap_or(head.weight()).rows(ids)?,
            Layers::Composed { embedding, .. } => {
                let ids = ops::upload(ids.to_vec(), ids.len(), &self.device)?;
                ops::rows(embedding, &ids)?
            }
        };
        if let Some(scale) = self.config.embedding_scale {
            hidden = ops::map(&hidden, |hidden| hidden * scale)?;
        }
        if let Some(norm) = &frame.embedding_norm {
            hidden = composed::norm(norm, &hidden)?;
        }
        hidden = match &self.layers {
            Layers::Fused {
                project_in: Some(project),
                ..
            } => project.forward(&hidden)?,
            Layers::Composed {
                project_in: Some(project),
                ..
            } => composed::linear(project, &hidden)?,
            _ => hidden,
        };
        if let Some(table) = &frame.positions {
            let places = self.places(spans, table.dim(0)?)?;
            let places = ops::cast(&ops::rows(table, &places)?, self.state_dtype)?;
            hidden = ops::zip(&hidden, &places, |a, b| a + b)?;
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
            Layers::Composed {
                project_out, head, ..
            } => {
                let state = self.before_head(hidden, project_out.as_ref())?;
                self.capped(&ops::product(&state, &head.t()?)?)
            }
        }
    }

    fn shortlists(&self, hidden: &Tensor, count: usize) -> Result<Vec<Shortlist>> {
        match &self.layers {
            Layers::Fused { head, .. } => head.shortlists(hidden, count),
            Layers::Composed { head, .. } => {
                let lists = likeliest(&self.head(hidden)?, count)?;
                let ids = lists.concat();
                let len = ids.len();
                let rows = ops::rows(head, &ops::upload(ids, len, &self.device)?)?;
                let mut end = 0;
                let lists = lists.into_iter().map(|ids| {
                    end += ids.len();
                    let rows = rows.narrow(0, end - ids.len(), ids.len())?;
                    Ok(Shortlist::of_tensor(ids, rows))
                });
                lists.collect()
            }
        }
    }

    fn head_of(&self, hidden: &Tensor, lists: &[&Shortlist]) -> Result<Tensor> {
        match &self.layers {
            Layers::Fused { head, .. } => head.forward_of(hidden, lists),
            Layers::Composed {
                project_out, head, ..
            } => {
                let rows: Vec<&Tensor> = lists.iter().filter_map(|list| list.tensor()).collect();
                let rows = ops::cat(&rows, 0)?.reshape((lists.len(), (), head.dim(1)?))?;
                let state = self.before_head(hidden, project_out.as_ref())?;
                let logits = ops::product(&state.unsqueeze(1)?, &rows.transpose(1, 2)?)?;
                self.capped(&logits.squeeze(1)?)
            }
        }
    }
}
