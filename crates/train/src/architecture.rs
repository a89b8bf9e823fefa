//! What a network computes, its weights left out.

use crate::adapter::{AdaptedMatrix, AdapterConfig, BaseType};
use crate::config::ModelShape;
use crate::error::{Result, TrainError};
use serde_json::{Value, json};
use skipbench_model::{
    Activation, Beyond, Biases, Family, LayerKind, ModelConfig, NormPlacement, PositionScheme, Rope,
};
use skipbench_strategy::MAX_LAYERS;

/// Positions of a model whose config names no largest one.
const POSITIONS: usize = 512;

/// What a network computes, its weights left out.
#[derive(Debug, Clone, PartialEq)]
pub struct Architecture {
    config: ModelConfig,
    /// Of a LLaMA that its sizes say all of.
    plain: Option<ModelShape>,
    max_positions: usize,
}

impl Architecture {
    /// That of a new model.
    ///
    /// # Errors
    /// A shape that cannot work.
    pub fn of_shape(shape: &ModelShape) -> Result<Self> {
        shape.check()?;
        let head_dim = shape.head_dim();
        let pairs = (0..head_dim / 2).map(|pair| {
            shape
                .rope_theta
                .powf(-((2 * pair) as f64) / head_dim as f64) as f32
        });
        let config = ModelConfig {
            family: Family::Llama,
            vocab_size: shape.vocab_size,
            d_model: shape.d_model,
            d_embed: shape.d_model,
            n_layers: shape.n_layers,
            n_heads: shape.n_heads,
            n_kv_heads: shape.n_kv_heads,
            head_dim,
            d_ff: shape.d_ff,
            norm_eps: shape.norm_eps,
            max_positions: Some(shape.max_positions),
            positions: vec![PositionScheme::Rope(Rope {
                inv_freq: pairs.collect(),
                beyond: Beyond::Same,
                attention_factor: 1.0,
                max_positions: Some(shape.max_positions),
            })],
            layers: vec![LayerKind::default(); shape.n_layers],
            score_scale: 1.0 / (head_dim as f64).sqrt(),
            score_cap: None,
            logit_cap: None,
            embedding_scale: None,
            activation: Activation::Silu,
            norms: NormPlacement::Before,
            parallel: false,
            tied_head: shape.tied_head,
            biases: Biases::default(),
            dtype: candle_core::DType::F32,
        };
        Ok(Self {
            config,
            plain: Some(shape.clone()),
            max_positions: shape.max_positions,
        })
    }

    /// That of a checkpoint. `rope_theta`: the base that its config names, which tells a LLaMA that its sizes say all of.
    /// `context`: the longest sequence to be trained on, where it is not the longest that the model takes.
    ///
    /// # Errors
    /// More layers than a set of layers holds, a longer context than the model has.
    pub fn of_checkpoint(
        config: ModelConfig,
        rope_theta: Option<f64>,
        context: Option<usize>,
    ) -> Result<Self> {
        if config.n_layers > MAX_LAYERS {
            return Err(TrainError::Config(format!(
                "the model has {} layers; up to {MAX_LAYERS} can be trained",
                config.n_layers
            )));
        }
        let longest = longest(&config);
        let max_positions = match (context, longest) {
            (Some(context), Some(longest)) if context > longest => {
                return Err(TrainError::Config(format!(
                    "`context` is {context}, and this model is trained on sequences of up to {longest} tokens; give at most so many"
                )));
            }
            (Some(0), _) => {
                return Err(TrainError::Config(
                    "`context` is 0; it must be 1 or more".to_owned(),
                ));
            }
            (Some(context), _) => context,
            (None, longest) => longest.unwrap_or(POSITIONS),
        };
        let plain = match context {
            None => plain(&config, rope_theta),
            Some(_) => None,
        };
        Ok(Self {
            config,
            plain,
            max_positions,
        })
    }

    /// Sizes and arithmetic.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// Of a LLaMA that its sizes say all of.
    pub(crate) fn plain(&self) -> Option<&ModelShape> {
        self.plain.as_ref()
    }

    /// Whether it is a LLaMA that its sizes say all of, as new models are.
    pub fn is_plain(&self) -> bool {
        self.plain.is_some()
    }

    /// The longest sequence that is trained on.
    pub fn max_positions(&self) -> usize {
        self.max_positions
    }

    /// What a run is only resumed with; a checkpoint's digest says the rest.
    pub(crate) fn settings(&self) -> serde_json::Result<Value> {
        let config = &self.config;
        match &self.plain {
            Some(shape) => serde_json::to_value(shape),
            None => Ok(json!({
                "family": format!("{:?}", config.family),
                "n-layers": config.n_layers,
                "context": self.max_positions,
            })),
        }
    }

    /// Bytes that the backward pass reads of a step over `positions`, padding included, of which `counted` go through the head.
    /// `recompute`: layers are computed again for it.
    pub fn step_bytes(&self, positions: usize, counted: usize, recompute: bool) -> f64 {
        let config = &self.config;
        let [d, f, kv, q, vocab] = [
            config.d_model,
            config.d_ff,
            config.n_kv_heads * config.head_dim,
            config.n_heads * config.head_dim,
            config.vocab_size,
        ]
        .map(|size| size as f64);
        let layer = 8.0 * d + 2.0 * q + 2.0 * kv + 3.0 * f;
        let layers = config.n_layers as f64;
        let kept = match recompute {
            false => layers * layer,
            true => layers * 4.0 * d + layer,
        };
        4.0 * (positions as f64 * kept + 3.0 * counted as f64 * vocab)
    }

    /// Bytes that training holds whatever the batch, in f32. Of each weight that is trained its value twice, its gradient
    /// twice, two moments and an average; the weights beside an adapter as they are kept, and the largest of them wide; the
    /// tables of rotary positions.
    pub fn state_bytes(&self, adapter: Option<&AdapterConfig>) -> f64 {
        let config = &self.config;
        let tables = 4.0 * (self.max_positions * config.head_dim * config.positions.len()) as f64;
        let matrices = self.matrices().map(|(_, [rows, columns])| rows * columns);
        let layers = config.n_layers as f64 * (matrices.sum::<f64>() + 2.0 * config.d_model as f64);
        let embedding = (config.vocab_size * config.d_embed) as f64;
        let embeddings = if config.tied_head { 1.0 } else { 2.0 };
        let all = layers + embeddings * embedding + config.d_model as f64;
        let Some(adapter) = adapter else {
            return 28.0 * all + tables;
        };
        let adapted = self
            .matrices()
            .filter(|(matrix, _)| adapter.adapts(*matrix));
        let adapted: f64 = adapted.map(|(_, [rows, columns])| rows + columns).sum();
        let adapted = adapted * (config.n_layers * adapter.rank) as f64;
        let width = match adapter.base {
            BaseType::F32 => 4.0,
            BaseType::Q8_0 => 34.0 / 32.0,
            BaseType::Bf16 | BaseType::F16 => 2.0,
            BaseType::Stored => config.dtype.size_in_bytes() as f64,
        };
        28.0 * adapted + width * all + 4.0 * embedding + tables
    }

    /// Rows and columns of the matrices of a layer.
    fn matrices(&self) -> impl Iterator<Item = (AdaptedMatrix, [f64; 2])> {
        let config = &self.config;
        let [d, f, q, kv] = [
            config.d_model,
            config.d_ff,
            config.n_heads * config.head_dim,
            config.n_kv_heads * config.head_dim,
        ]
        .map(|size| size as f64);
        let is_gated = !matches!(config.family, Family::Bloom | Family::GptNeoX | Family::Opt);
        [
            (AdaptedMatrix::Q, [q, d]),
            (AdaptedMatrix::K, [kv, d]),
            (AdaptedMatrix::V, [kv, d]),
            (AdaptedMatrix::O, [d, q]),
            (AdaptedMatrix::Gate, [f, d]),
            (AdaptedMatrix::Up, [f, d]),
            (AdaptedMatrix::Down, [d, f]),
        ]
        .into_iter()
        .filter(move |(matrix, _)| is_gated || *matrix != AdaptedMatrix::Gate)
    }
}

/// The sizes of a LLaMA that they say all of.
fn plain(config: &ModelConfig, rope_theta: Option<f64>) -> Option<ModelShape> {
    let [PositionScheme::Rope(rope)] = &config.positions[..] else {
        return None;
    };
    let theta = rope_theta?;
    let is_plain = config.family == Family::Llama
        && config.head_dim * config.n_heads == config.d_model
        && config.biases == Biases::default()
        && config.activation == Activation::Silu
        && rope.is_plain(theta, config.head_dim);
    let shape = ModelShape {
        vocab_size: config.vocab_size,
        d_model: config.d_model,
        n_layers: config.n_layers,
        n_heads: config.n_heads,
        n_kv_heads: config.n_kv_heads,
        d_ff: config.d_ff,
        rope_theta: theta,
        norm_eps: config.norm_eps,
        max_positions: config.max_positions.unwrap_or(POSITIONS),
        tied_head: config.tied_head,
    };
    (is_plain && shape.check().is_ok()).then_some(shape)
}

/// The longest sequence that a model's positions are made for. Where they turn otherwise in longer sequences, a prompt and its
/// answer would be turned in one way by training and in another by decoding.
fn longest(config: &ModelConfig) -> Option<usize> {
    let schemes = config.positions.iter().filter_map(|scheme| match scheme {
        PositionScheme::Rope(rope) => match &rope.beyond {
            Beyond::Same => rope.max_positions,
            Beyond::Ntk { trained, .. } | Beyond::Long { trained, .. } => Some(*trained),
        },
        PositionScheme::Alibi { .. } | PositionScheme::Learned => None,
    });
    schemes.chain(config.max_positions).min()
}
