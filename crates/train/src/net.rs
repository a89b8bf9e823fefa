//! The LLaMA network as trained: whole sequences, with gradients.

use crate::attention::{Attention, Rope};
use crate::config::ModelShape;
use crate::data::{Batch, Depths};
use crate::error::{Result, TrainError};
use crate::ops::{Blend, CrossEntropy, RmsNorm, SwiGlu};
use candle_core::{DType, Device, Tensor, Var};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

/// Standard deviation of the initial weights.
const INIT_STD: f64 = 0.02;

/// Weights under their Hugging Face names, in a fixed order.
pub struct Net {
    shape: ModelShape,
    names: Vec<String>,
    vars: HashMap<String, Var>,
    rope: Arc<Rope>,
}

/// Name and shape of every weight, in order.
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
        Self::from_tensors(shape, tensors)
    }

    /// The network of a Hugging Face LLaMA folder that has `shape`.
    ///
    /// # Errors
    /// A folder that cannot be read, or weights of another shape.
    pub fn load(shape: &ModelShape, dir: &Path) -> Result<Self> {
        shape.check()?;
        let path = dir.join("model.safetensors");
        let tensors = candle_core::safetensors::load(&path, &Device::Cpu).map_err(|error| {
            TrainError::Checkpoint {
                path: path.clone(),
                message: format!("cannot be loaded: {error}"),
            }
        })?;
        Self::from_tensors(shape, tensors).map_err(|error| match error {
            TrainError::Config(message) => TrainError::Checkpoint { path, message },
            other => other,
        })
    }

    pub(crate) fn from_tensors(
        shape: &ModelShape,
        mut tensors: HashMap<String, Tensor>,
    ) -> Result<Self> {
        let mut names = Vec::new();
        let mut vars = HashMap::new();
        for (name, dims) in weight_list(shape) {
            let tensor = tensors
                .remove(&name)
                .ok_or_else(|| TrainError::Config(format!("tensor `{name}` is missing")))?;
            if tensor.dims() != dims {
                return Err(TrainError::Config(format!(
                    "tensor `{name}` has shape {:?}, the model shape calls for {dims:?}",
                    tensor.dims()
                )));
            }
            let var = Var::from_tensor(&tensor.to_dtype(DType::F32)?.contiguous()?)?;
            vars.insert(name.clone(), var);
            names.push(name);
        }
        Ok(Self {
            rope: Arc::new(Rope::new(
                shape.max_positions,
                shape.head_dim(),
                shape.rope_theta,
            )),
            shape: shape.clone(),
            names,
            vars,
        })
    }

    /// The shape of the model.
    pub fn shape(&self) -> &ModelShape {
        &self.shape
    }

    /// Names of the weights, in a fixed order.
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// A weight by name.
    pub(crate) fn var(&self, name: &str) -> &Var {
        &self.vars[name]
    }

    /// Mean cross-entropy of the counted tokens of `batch`: a scalar with gradients.
    ///
    /// # Errors
    /// A batch that has more positions than the model, or counts no token.
    pub fn loss(&self, batch: &Batch, depths: Option<Depths<'_>>) -> Result<Tensor> {
        if batch.seq > self.shape.max_positions {
            return Err(TrainError::Config(format!(
                "a pair of {} tokens does not fit into `max-positions` {}",
                batch.seq + 1,
                self.shape.max_positions
            )));
        }
        if batch.counted.is_empty() {
            return Err(TrainError::Config(
                "a batch has no response token to learn from".to_owned(),
            ));
        }
        let hidden = self.hidden(batch, depths)?;
        // Only the positions that count go through the head.
        let counted = Tensor::new(batch.counted.as_slice(), &Device::Cpu)?;
        let hidden = hidden.index_select(&counted, 0)?;
        let hidden = self.norm(&hidden, "model.norm.weight")?;
        let head = match self.shape.tied_head {
            true => "model.embed_tokens.weight",
            false => "lm_head.weight",
        };
        let logits = self.linear(&hidden, head)?;
        Ok(logits.apply_op1(CrossEntropy {
            targets: batch.targets.clone(),
        })?)
    }

    /// Hidden states before the final norm: `[rows * seq, d_model]`.
    pub(crate) fn hidden(&self, batch: &Batch, depths: Option<Depths<'_>>) -> Result<Tensor> {
        let ids = Tensor::new(batch.inputs.as_slice(), &Device::Cpu)?;
        let mut hidden = self
            .var("model.embed_tokens.weight")
            .index_select(&ids, 0)?;
        for layer in 0..self.shape.n_layers {
            let new = self.layer(layer, &hidden, batch.seq)?;
            let mask = depths.and_then(|depths| batch.mask(layer, depths));
            hidden = match mask {
                None => new,
                Some(runs) => new.apply_op2(&hidden, Blend { runs })?,
            };
        }
        Ok(hidden)
    }

    fn layer(&self, layer: usize, hidden: &Tensor, seq: usize) -> Result<Tensor> {
        let name = |part: &str| format!("model.layers.{layer}.{part}.weight");
        let attention = Attention {
            seq,
            n_heads: self.shape.n_heads,
            n_kv_heads: self.shape.n_kv_heads,
            head_dim: self.shape.head_dim(),
            rope: Arc::clone(&self.rope),
        };
        let normed = self.norm(hidden, &name("input_layernorm"))?;
        let q = self.linear(&normed, &name("self_attn.q_proj"))?;
        let k = self.linear(&normed, &name("self_attn.k_proj"))?;
        let v = self.linear(&normed, &name("self_attn.v_proj"))?;
        let attended = q.apply_op3(&k, &v, attention)?;
        let hidden = (hidden + self.linear(&attended, &name("self_attn.o_proj"))?)?;

        let normed = self.norm(&hidden, &name("post_attention_layernorm"))?;
        let gate = self.linear(&normed, &name("mlp.gate_proj"))?;
        let up = self.linear(&normed, &name("mlp.up_proj"))?;
        let inner = gate.apply_op2(&up, SwiGlu)?;
        Ok((&hidden + self.linear(&inner, &name("mlp.down_proj"))?)?)
    }

    fn norm(&self, x: &Tensor, name: &str) -> Result<Tensor> {
        let eps = self.shape.norm_eps as f32;
        Ok(x.apply_op2(self.var(name), RmsNorm { eps })?)
    }

    fn linear(&self, x: &Tensor, name: &str) -> Result<Tensor> {
        Ok(x.matmul(&self.var(name).t()?)?)
    }
}

/// A standard normal number (Box-Muller).
fn normal(rng: &mut ChaCha8Rng) -> f64 {
    let radius = (-2.0 * (1.0 - rng.random::<f64>()).ln()).sqrt();
    radius * (2.0 * std::f64::consts::PI * rng.random::<f64>()).cos()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::LossOn;
    use crate::data::Pair;
    use crate::ops::to_vec;

    fn shape(tied_head: bool) -> ModelShape {
        ModelShape {
            vocab_size: 11,
            d_model: 8,
            n_layers: 3,
            n_heads: 2,
            n_kv_heads: 1,
            d_ff: 12,
            rope_theta: 100.0,
            norm_eps: 1e-5,
            max_positions: 16,
            tied_head,
        }
    }

    fn batch() -> Batch {
        let pairs = [
            ([1, 5, 6, 3].to_vec(), [7, 4, 9, 2].to_vec()),
            ([1, 8].to_vec(), [10, 2].to_vec()),
        ]
        .map(|(prompt, response)| Pair { prompt, response });
        Batch::new(&pairs, LossOn::All)
    }

    /// A network far enough from zero that every part of it matters.
    fn net(tied_head: bool) -> Net {
        let net = Net::new(&shape(tied_head), 3).unwrap();
        for name in net.names() {
            let var = net.var(name);
            let scaled = match var.rank() {
                1 => (var.as_tensor() * 0.9).unwrap(),
                _ => (var.as_tensor() * 20.0).unwrap(),
            };
            var.set(&scaled).unwrap();
        }
        net
    }

    /// The slope of the loss along the gradient of each weight, against the difference quotient.
    fn check_gradients(tied_head: bool, depths: Option<Depths<'_>>) {
        let net = net(tied_head);
        let batch = batch();
        let loss = |net: &Net| {
            f64::from(
                net.loss(&batch, depths)
                    .unwrap()
                    .to_scalar::<f32>()
                    .unwrap(),
            )
        };
        let grads = net.loss(&batch, depths).unwrap().backward().unwrap();
        for name in net.names() {
            let var = net.var(name);
            let grad = grads.get(var).unwrap();
            let norm = to_vec(grad)
                .unwrap()
                .iter()
                .map(|g| g * g)
                .sum::<f32>()
                .sqrt();
            assert!(norm > 1e-4, "{name} has no gradient");
            let direction = (grad / f64::from(norm)).unwrap();
            let start = var.as_tensor().copy().unwrap();
            let at = |step: f64| {
                var.set(&(&start + (&direction * step).unwrap()).unwrap())
                    .unwrap();
                loss(&net)
            };
            let h = 0.01;
            let slope = (at(h) - at(-h)) / (2.0 * h);
            var.set(&start).unwrap();
            let apart = (slope - f64::from(norm)).abs();
            assert!(
                apart < 0.02 * f64::from(norm) + 2e-4,
                "{name}: slope {slope}, gradient {norm}"
            );
        }
    }

    #[test]
    fn gradients_are_the_slopes_of_the_loss() {
        check_gradients(false, None);
        check_gradients(true, None);
    }

    #[test]
    fn gradients_are_right_where_layers_are_skipped() {
        check_gradients(false, Some(&|layer, row, t| (layer + row + t) % 3 != 0));
    }
}
