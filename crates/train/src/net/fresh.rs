//! New networks.

use super::Net;
use crate::architecture::Architecture;
use crate::assemble::{Source, Trained, assemble};
use crate::config::ModelShape;
use crate::error::{Result, TrainError};
use candle_core::{Device, Tensor};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use skipbench_model::{Matrix, weights};
use std::collections::HashMap;

/// Standard deviation of the initial weights.
const INIT_STD: f64 = 0.02;

/// Name and shape of every weight of a new model, in order.
fn weight_list(shape: &ModelShape) -> Vec<(String, Vec<usize>)> {
    let (d, f) = (shape.d_model, shape.d_ff);
    let kv = shape.n_kv_heads * shape.head_dim();
    let mut list = vec![(
        "model.embed_tokens.weight".to_owned(),
        vec![shape.vocab_size, d],
    )];
    for layer in 0..shape.n_layers {
        let parts = [
            ("input_layernorm", vec![d]),
            ("self_attn.q_proj", vec![d, d]),
            ("self_attn.k_proj", vec![kv, d]),
            ("self_attn.v_proj", vec![kv, d]),
            ("self_attn.o_proj", vec![d, d]),
            ("post_attention_layernorm", vec![d]),
            ("mlp.gate_proj", vec![f, d]),
            ("mlp.up_proj", vec![f, d]),
            ("mlp.down_proj", vec![d, f]),
        ];
        list.extend(
            parts.map(|(name, dims)| (format!("model.layers.{layer}.{name}.weight"), dims)),
        );
    }
    list.push(("model.norm.weight".to_owned(), vec![d]));
    if !shape.tied_head {
        list.push(("lm_head.weight".to_owned(), vec![shape.vocab_size, d]));
    }
    list
}

/// The layers of a new model as data; their norms have the values of `tensors`.
fn parts_of(
    shape: &ModelShape,
    tensors: &HashMap<String, Tensor>,
) -> (weights::Frame, Vec<weights::LayerWeights>) {
    let norm = |name: String| weights::Norm::Rms {
        weight: tensors[&name].clone(),
        eps: shape.norm_eps,
        name,
        add: 0.0,
    };
    let linear = |name: String| {
        let dims = tensors[&name].dims();
        weights::Linear {
            weight: Matrix::whole(name.clone(), dims[0], dims[1]),
            bias: None,
            bias_at: None,
        }
    };
    let layer = |index: usize| {
        let name = |part: &str| format!("model.layers.{index}.{part}.weight");
        let before = |part: &str| weights::Norms {
            before: Some(norm(name(part))),
            ..weights::Norms::default()
        };
        weights::LayerWeights {
            attention_norms: before("input_layernorm"),
            attention: weights::Attention {
                q: linear(name("self_attn.q_proj")),
                k: linear(name("self_attn.k_proj")),
                v: linear(name("self_attn.v_proj")),
                o: linear(name("self_attn.o_proj")),
                q_norm: None,
                k_norm: None,
            },
            mlp_norms: before("post_attention_layernorm"),
            mlp: weights::Mlp {
                gate: Some(linear(name("mlp.gate_proj"))),
                up: linear(name("mlp.up_proj")),
                down: linear(name("mlp.down_proj")),
            },
        }
    };
    let embedding = "model.embed_tokens.weight".to_owned();
    let head = match shape.tied_head {
        true => embedding.clone(),
        false => "lm_head.weight".to_owned(),
    };
    let frame = weights::Frame {
        final_norm: Some(norm("model.norm.weight".to_owned())),
        ..weights::Frame::new(embedding, head)
    };
    (frame, (0..shape.n_layers).map(layer).collect())
}

impl Net {
    /// A new network: normal weights of deviation 0.02, divided by `sqrt(2 n_layers)` where a projection writes to
    /// the residual (GPT-2's rule), norms at one.
    ///
    /// # Errors
    /// A shape that cannot work.
    pub fn new(shape: &ModelShape, seed: u64) -> Result<Self> {
        shape.check()?;
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let residual = 1.0 / (2.0 * shape.n_layers as f64).sqrt();
        let mut tensors = HashMap::new();
        for (name, dims) in weight_list(shape) {
            let len = dims.iter().product();
            let std = if name.contains("o_proj") || name.contains("down_proj") {
                INIT_STD * residual
            } else {
                INIT_STD
            };
            let values: Vec<f32> = if dims.len() == 1 {
                vec![1.0; len]
            } else {
                (0..len).map(|_| (normal(&mut rng) * std) as f32).collect()
            };
            tensors.insert(name, Tensor::from_vec(values, dims, &Device::Cpu)?);
        }
        let architecture = Architecture::of_shape(shape)?;
        let (frame, layers) = parts_of(shape, &tensors);
        let absent =
            |matrix: &Matrix| TrainError::Config(format!("tensor `{}` is missing", matrix.name));
        let source = Source {
            frame: &frame,
            layers: &layers,
            tensor: &|matrix| {
                tensors
                    .get(&matrix.name)
                    .cloned()
                    .ok_or_else(|| absent(matrix))
            },
            keep: &|matrix| Err(absent(matrix)),
        };
        Ok(Self {
            net: assemble(&architecture, &source, Trained::All)?,
            architecture,
            base: None,
            adapter: None,
            again: None,
        })
    }
}

/// A standard normal number (Box-Muller).
fn normal(rng: &mut ChaCha8Rng) -> f64 {
    let radius = (-2.0 * (1.0 - rng.random::<f64>()).ln()).sqrt();
    radius * (2.0 * std::f64::consts::PI * rng.random::<f64>()).cos()
}
