//! The LLaMA network as trained: whole sequences, with gradients.

use crate::attention::{Attention, Rope};
use crate::config::ModelShape;
use crate::data::{Batch, Depths, Fill, Runs};
use crate::error::{Result, TrainError};
use crate::ops::{Blend, RmsNorm, SwiGlu, to_vec};
use candle_core::{DType, Device, Tensor, Var};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use std::collections::{BTreeSet, HashMap};
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

/// A batch that has run through layers.
pub(crate) struct Run {
    /// States before the final norm by the number of layers below them, `[rows * seq, d_model]`: the last, and those asked for.
    pub(crate) states: HashMap<usize, Tensor>,
    /// What ran, layer by layer.
    pub(crate) ran: Vec<LayerUse>,
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

    /// Runs `batch`, each of its tokens through the sub-layers that `depths` names, or through all, and keeps the state
    /// below each layer that is in `keep`. Without `tracked` no gradient will flow, and nothing is kept for one.
    ///
    /// # Errors
    /// A batch that has more positions than the model; depths of another batch.
    pub(crate) fn run(
        &self,
        batch: &Batch,
        depths: Option<&Depths>,
        keep: &BTreeSet<usize>,
        tracked: bool,
    ) -> Result<Run> {
        self.check(batch)?;
        depths.map_or(Ok(()), |depths| batch.check(depths))?;
        let mut state = self.embed(batch)?;
        // Where a token has left while its state goes on for the keys and values: what it left with.
        let mut left = state.clone();
        let mut states = HashMap::new();
        let mut ran = Vec::new();
        for layer in 0..self.shape.n_layers {
            if !tracked {
                (state, left) = (state.detach(), left.detach());
            }
            if keep.contains(&layer) {
                states.insert(layer, left.clone());
            }
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
        let last = if tracked { left } else { left.detach() };
        states.insert(self.shape.n_layers, last);
        Ok(Run { states, ran })
    }

    /// What the LM head makes of `states`, `[n, d_model]`, behind the final norm: `[n, vocab_size]`.
    pub(crate) fn logits(&self, states: &Tensor) -> Result<Tensor> {
        let normed = self.norm(states, "model.norm.weight")?;
        let head = match self.shape.tied_head {
            true => "model.embed_tokens.weight",
            false => "lm_head.weight",
        };
        self.linear(&normed, head)
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
    use crate::objective::Step;
    use crate::testing::{LAYERS, batch, check_gradients, gradients, net};
    use skipbench_strategy::LayerSet;

    fn plain(depths: Option<&Depths>) -> Step {
        Step::plain(depths.cloned(), LAYERS)
    }

    /// The layers that `insert` puts into the set of each (row, response token).
    fn depths(fill: Fill, prompt: LayerSet, insert: fn(&mut LayerSet, usize, usize)) -> Depths {
        let set = |row, t| {
            let mut set = LayerSet::empty();
            insert(&mut set, row, t);
            set
        };
        Depths {
            prompts: vec![prompt; 2],
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

    #[test]
    fn gradients_are_the_slopes_of_the_loss() {
        check_gradients(false, &plain(None));
        check_gradients(true, &plain(None));
    }

    #[test]
    fn gradients_are_right_where_layers_are_skipped() {
        let full = LayerSet::full(3);
        check_gradients(false, &plain(Some(&depths(Fill::Passed, full, mixed))));
        let exits = |set: &mut LayerSet, row: usize, t: usize| {
            *set = LayerSet::full(1 + (row + t) % 3);
        };
        check_gradients(false, &plain(Some(&depths(Fill::Passed, full, exits))));
        check_gradients(true, &plain(Some(&depths(Fill::Deferred, full, exits))));
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
        let pass = net.losses(&batch, &plain(Some(&everywhere))).unwrap();
        let use_of = |attention, mlp| LayerUse { attention, mlp };
        assert_eq!(pass.ran, [use_of(10, 10), use_of(0, 10), use_of(10, 0)]);
        let grads = gradients(&net, &plain(Some(&everywhere)));
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
        let pass = net.losses(&batch, &plain(Some(&sometimes))).unwrap();
        assert_eq!(pass.ran, [use_of(6, 6), use_of(6, 7), use_of(6, 6)]);
    }
}
