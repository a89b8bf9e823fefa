//! The LLaMA network as trained: whole sequences, with gradients.

use crate::attention::{Attention, Rope};
use crate::config::ModelShape;
use crate::data::{Batch, Depths, Fill, Runs};
use crate::error::{Result, TrainError};
use crate::ops::{Blend, CrossEntropy, RmsNorm, SwiGlu, to_vec};
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

/// What a forward pass gives.
#[derive(Debug)]
pub struct Pass {
    /// Mean cross-entropy of the counted tokens: a scalar with gradients.
    pub loss: Tensor,
    /// What ran, layer by layer.
    pub ran: Vec<LayerUse>,
}

/// Tokens of a batch, padding left out, that ran the parts of a layer.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LayerUse {
    /// Tokens that ran its attention.
    pub attention: usize,
    /// Tokens that ran its MLP.
    pub mlp: usize,
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
        let ends = ["model.embed_tokens.weight", "lm_head.weight"].map(|name| tensors.get(name));
        if let ([Some(embedding), Some(head)], true) = (ends, shape.tied_head)
            && (embedding.dims() != head.dims()
                || embedding.ne(head)?.max_all()?.to_scalar::<u8>()? > 0)
        {
            let message = "`tie_word_embeddings` is true in config.json, but `lm_head.weight` is not the embedding; set it to false"
                .to_owned();
            return Err(TrainError::Checkpoint { path, message });
        }
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

    /// Runs `batch`, each of its tokens through the sub-layers that `depths` names, or through all.
    ///
    /// # Errors
    /// A batch that has more positions than the model, or counts no token; depths of another batch.
    pub fn pass(&self, batch: &Batch, depths: Option<&Depths>) -> Result<Pass> {
        self.check(batch)?;
        if batch.counted.is_empty() {
            return Err(TrainError::Config(
                "a batch has no response token to learn from".to_owned(),
            ));
        }
        let (hidden, ran) = self.hidden(batch, depths)?;
        // Only the positions that count go through the head.
        let counted = Tensor::new(batch.counted.as_slice(), &Device::Cpu)?;
        let hidden = hidden.index_select(&counted, 0)?;
        let hidden = self.norm(&hidden, "model.norm.weight")?;
        let head = match self.shape.tied_head {
            true => "model.embed_tokens.weight",
            false => "lm_head.weight",
        };
        let logits = self.linear(&hidden, head)?;
        let loss = logits.apply_op1(CrossEntropy {
            targets: batch.targets.clone(),
        })?;
        Ok(Pass { loss, ran })
    }

    /// Cosine of the output of each sub-layer to its input, mean over the tokens of each prompt, at full depth:
    /// `[row][2 * n_layers]`, attention of layer 0, MLP of layer 0, attention of layer 1, and so on (AdaSkip,
    /// arXiv 2501.02336).
    ///
    /// # Errors
    /// A batch that has more positions than the model.
    pub fn prompt_similarity(&self, batch: &Batch) -> Result<Vec<Vec<f64>>> {
        self.check(batch)?;
        let mut similarity = vec![Vec::new(); batch.rows];
        let mut state = self.embed(batch)?.detach();
        for layer in 0..self.shape.n_layers {
            for is_mlp in [false, true] {
                let new = match is_mlp {
                    false => self.attention(layer, &state, batch.seq)?,
                    true => self.mlp(layer, &state)?,
                }
                .detach();
                let cosines = cosines(&to_vec(&state)?, &to_vec(&new)?, self.shape.d_model);
                for (row, &len) in batch.prompt_lens().iter().enumerate() {
                    let prompt = &cosines[row * batch.seq..][..len.min(batch.seq)];
                    similarity[row].push(prompt.iter().sum::<f64>() / prompt.len().max(1) as f64);
                }
                state = new;
            }
        }
        Ok(similarity)
    }

    fn check(&self, batch: &Batch) -> Result<()> {
        if batch.seq > self.shape.max_positions {
            return Err(TrainError::Config(format!(
                "a pair of {} tokens does not fit into `max-positions` {}",
                batch.seq + 1,
                self.shape.max_positions
            )));
        }
        let mut tokens = batch.inputs.iter().chain(&batch.targets);
        match tokens.find(|token| **token as usize >= self.shape.vocab_size) {
            Some(token) => Err(TrainError::Config(format!(
                "token {token} is outside the vocabulary of {}",
                self.shape.vocab_size
            ))),
            None => Ok(()),
        }
    }

    fn embed(&self, batch: &Batch) -> Result<Tensor> {
        let ids = Tensor::new(batch.inputs.as_slice(), &Device::Cpu)?;
        Ok(self
            .var("model.embed_tokens.weight")
            .index_select(&ids, 0)?)
    }

    /// Hidden states before the final norm, `[rows * seq, d_model]`, and what ran.
    fn hidden(&self, batch: &Batch, depths: Option<&Depths>) -> Result<(Tensor, Vec<LayerUse>)> {
        depths.map_or(Ok(()), |depths| batch.check(depths))?;
        let mut state = self.embed(batch)?;
        // Where a token has left while its state goes on for the keys and values: what it left with.
        let mut left = state.clone();
        let mut ran = Vec::new();
        for layer in 0..self.shape.n_layers {
            let [attention, mlp] = match depths {
                None => [(Runs::All, batch.tokens()), (Runs::All, batch.tokens())],
                Some(depths) => [
                    batch.tokens_where(depths, |layers| layers.has_attention(layer)),
                    batch.tokens_where(depths, |layers| layers.has_mlp(layer)),
                ],
            };
            ran.push(LayerUse {
                attention: attention.1,
                mlp: mlp.1,
            });
            if depths.is_some_and(|depths| depths.fill == Fill::Deferred) {
                let attended = self.attention(layer, &state, batch.seq)?;
                state = self.mlp(layer, &attended)?;
                left = blend(mlp.0, &left, || Ok(state.clone()))?;
            } else {
                state = blend(attention.0, &state, || {
                    self.attention(layer, &state, batch.seq)
                })?;
                state = blend(mlp.0, &state, || self.mlp(layer, &state))?;
                left = state.clone();
            }
        }
        Ok((left, ran))
    }

    /// `x + attention(norm(x))`; `hidden`: `[rows * seq, d_model]`.
    fn attention(&self, layer: usize, hidden: &Tensor, seq: usize) -> Result<Tensor> {
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
        Ok((hidden + self.linear(&attended, &name("self_attn.o_proj"))?)?)
    }

    /// `x + mlp(norm(x))`; `hidden`: `[rows * seq, d_model]`.
    fn mlp(&self, layer: usize, hidden: &Tensor) -> Result<Tensor> {
        let name = |part: &str| format!("model.layers.{layer}.{part}.weight");
        let normed = self.norm(hidden, &name("post_attention_layernorm"))?;
        let gate = self.linear(&normed, &name("mlp.gate_proj"))?;
        let up = self.linear(&normed, &name("mlp.up_proj"))?;
        let inner = gate.apply_op2(&up, SwiGlu)?;
        Ok((hidden + self.linear(&inner, &name("mlp.down_proj"))?)?)
    }

    fn norm(&self, x: &Tensor, name: &str) -> Result<Tensor> {
        let eps = self.shape.norm_eps as f32;
        Ok(x.apply_op2(self.var(name), RmsNorm { eps })?)
    }

    fn linear(&self, x: &Tensor, name: &str) -> Result<Tensor> {
        Ok(x.matmul(&self.var(name).t()?)?)
    }
}

/// `new()` for the tokens that run, `old` for the others; `[rows * seq, d_model]`. What nobody runs is not computed.
fn blend(runs: Runs, old: &Tensor, new: impl FnOnce() -> Result<Tensor>) -> Result<Tensor> {
    match runs {
        Runs::All => new(),
        Runs::None => Ok(old.clone()),
        Runs::Some(runs) => Ok(new()?.apply_op2(old, Blend { runs })?),
    }
}

/// Of each row of `a` and `b`, both `[rows, d]`.
fn cosines(a: &[f32], b: &[f32], d: usize) -> Vec<f64> {
    let dot = |a: &[f32], b: &[f32]| -> f64 {
        let products = a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b));
        products.sum()
    };
    a.chunks_exact(d)
        .zip(b.chunks_exact(d))
        .map(|(a, b)| dot(a, b) / (dot(a, a) * dot(b, b)).sqrt().max(f64::MIN_POSITIVE))
        .collect()
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
    use skipbench_strategy::LayerSet;

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

    /// The layers that `insert` puts into the set of each (row, response token).
    fn depths(fill: Fill, prompt: LayerSet, insert: fn(&mut LayerSet, usize, usize)) -> Depths {
        let set = |row, t| {
            let mut set = LayerSet::empty();
            insert(&mut set, row, t);
            set
        };
        Depths {
            prompt,
            responses: [4, 2]
                .iter()
                .enumerate()
                .map(|(row, &len)| (1..len).map(|t| set(row, t)).collect())
                .collect(),
            fill,
        }
    }

    /// Whole layers, and of others the attention or the MLP alone.
    fn mixed(set: &mut LayerSet, row: usize, t: usize) {
        for layer in 0..3 {
            match (layer + row + t) % 4 {
                0 => set.insert(layer),
                1 => set.insert_attention(layer),
                2 => set.insert_mlp(layer),
                _ => {}
            }
        }
    }

    /// The slope of the loss along the gradient of each weight, against the difference quotient.
    fn check_gradients(tied_head: bool, depths: Option<&Depths>) {
        let net = net(tied_head);
        let batch = batch();
        let loss = |net: &Net| {
            f64::from(
                net.pass(&batch, depths)
                    .unwrap()
                    .loss
                    .to_scalar::<f32>()
                    .unwrap(),
            )
        };
        let grads = net.pass(&batch, depths).unwrap().loss.backward().unwrap();
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
        let full = LayerSet::full(3);
        check_gradients(false, Some(&depths(Fill::Passed, full, mixed)));
        let exits = |set: &mut LayerSet, row: usize, t: usize| {
            *set = LayerSet::full(1 + (row + t) % 3);
        };
        check_gradients(false, Some(&depths(Fill::Passed, full, exits)));
        check_gradients(true, Some(&depths(Fill::Deferred, full, exits)));
    }

    #[test]
    fn what_ran_is_counted_and_what_nobody_runs_has_no_gradient() {
        let net = net(false);
        let batch = batch();
        let mut cut = LayerSet::full(3);
        cut.remove_attention(1);
        cut.remove_mlp(2);
        let everywhere = depths(Fill::Passed, cut, |set, _, _| {
            set.insert(0);
            set.insert_mlp(1);
            set.insert_attention(2);
        });
        let pass = net.pass(&batch, Some(&everywhere)).unwrap();
        let use_of = |attention, mlp| LayerUse { attention, mlp };
        assert_eq!(pass.ran, [use_of(10, 10), use_of(0, 10), use_of(10, 0)]);
        let grads = pass.loss.backward().unwrap();
        for name in net.names() {
            let is_cut = [
                "layers.1.self_attn",
                "layers.1.input",
                "layers.2.mlp",
                "layers.2.post",
            ]
            .iter()
            .any(|part| name.contains(part));
            assert_eq!(grads.get(net.var(name)).is_none(), is_cut, "{name}");
        }
        let sometimes = depths(Fill::Passed, LayerSet::full(3), |set, row, t| {
            if row == 0 && t == 2 {
                set.insert_mlp(1);
            }
        });
        let pass = net.pass(&batch, Some(&sometimes)).unwrap();
        assert_eq!(pass.ran, [use_of(6, 6), use_of(6, 7), use_of(6, 6)]);
    }
}
