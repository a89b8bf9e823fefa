//! A network as trained: whole sequences, with gradients.

mod fresh;
mod written;

use crate::adapter::AdapterConfig;
use crate::again::{Again, Found, Half};
use crate::architecture::Architecture;
use crate::assemble::{Assembled, Source, Trained, Variables, assemble, check_matrices};
use crate::data::{Batch, Depths, Fill, Runs};
use crate::error::{Result, TrainError};
use crate::ops::{Blend, CrossEntropy, to_vec};
use candle_core::{Device, Tensor, TensorId, Var};
use skipbench_model::{ModelConfig, Parts, WeightType};
use std::collections::{BTreeSet, HashMap};
use std::path::Path;
use std::sync::Arc;

/// Tokens whose logits are there at once, where no gradients are.
const ROWS_OF_LOGITS: usize = 256;

/// What is trained under its Hugging Face names, in a fixed order, and beside it what stays as it is.
pub struct Net {
    architecture: Architecture,
    net: Assembled,
    /// The checkpoint that it was made from, and its adapters where those alone are trained.
    base: Option<Parts>,
    adapter: Option<AdapterConfig>,
    again: Option<Recomputing>,
}

/// What parts of layers that are computed again go by.
struct Recomputing {
    found: Arc<Found>,
    /// Has the gradients of layers asked for where their input has none.
    mark: Var,
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

impl Net {
    /// The network of a checkpoint, a Hugging Face folder or a `.gguf` file, that has `architecture`. All its weights are
    /// trained, in f32; or those of an adapter alone, which begin where the seed says.
    ///
    /// # Errors
    /// A checkpoint that cannot be read or is another one, weights that are no numbers together.
    pub fn load(
        architecture: &Architecture,
        model: &Path,
        adapter: Option<(&AdapterConfig, u64)>,
    ) -> Result<Self> {
        let base = Parts::open(model)?;
        if base.config() != architecture.config() {
            return Err(TrainError::Checkpoint {
                path: model.to_path_buf(),
                message: "is not the checkpoint any more that it was when the run began".to_owned(),
            });
        }
        let (frame, layers) = (base.frame(), base.layers());
        if base.config().tied_head && frame.embedding != frame.head {
            return Err(TrainError::Checkpoint {
                path: model.to_path_buf(),
                message: format!(
                    "`tie_word_embeddings` is true in config.json, but `{}` is not the embedding; set it to false",
                    frame.head
                ),
            });
        }
        let keep = adapter.map_or(WeightType::F32, |(adapter, _)| adapter.base.into());
        let source = Source {
            frame,
            layers,
            tensor: &|matrix| Ok(base.tensor(matrix)?),
            keep: &|matrix| Ok(base.keep(matrix, keep)?),
        };
        let trained = match adapter {
            None => Trained::All,
            Some((adapter, seed)) => Trained::Adapters(adapter, seed),
        };
        Ok(Self {
            architecture: architecture.clone(),
            net: assemble(architecture, &source, trained)?,
            base: Some(base),
            adapter: adapter.map(|(adapter, _)| adapter.clone()),
            again: None,
        })
    }

    /// Refuses an adapter that a checkpoint cannot have, before any of its matrices is read.
    ///
    /// # Errors
    /// As of [`load`](Self::load).
    pub fn check_adapter(model: &Path, adapter: &AdapterConfig) -> Result<()> {
        check_matrices(Parts::open(model)?.layers(), adapter)
    }

    /// The same, whose layers are computed a second time for their gradients if `on`, so that only the states between them are
    /// kept until then (arXiv 1604.06174).
    ///
    /// # Errors
    /// A failed tensor operation.
    pub fn recomputing(self, on: bool) -> Result<Self> {
        let again = match on {
            false => None,
            true => Some(Recomputing {
                found: Arc::default(),
                mark: Var::new(0f32, &Device::Cpu)?,
            }),
        };
        Ok(Self { again, ..self })
    }

    /// Gradients of weights that candle has not collected, since their layers were computed again.
    pub(crate) fn take_found(&self) -> HashMap<TensorId, Tensor> {
        let again = self.again.as_ref();
        again.map_or_else(HashMap::new, |again| again.found.take())
    }

    /// What it computes.
    pub fn architecture(&self) -> &Architecture {
        &self.architecture
    }

    /// Its sizes.
    pub fn shape(&self) -> &ModelConfig {
        self.architecture.config()
    }

    /// Names of what is trained, in a fixed order.
    pub fn names(&self) -> &[String] {
        &self.variables().names
    }

    /// A trained weight by name.
    pub(crate) fn var(&self, name: &str) -> &Var {
        &self.variables().vars[name]
    }

    fn variables(&self) -> &Variables {
        &self.net.variables
    }

    /// Numbers that are trained.
    pub fn trained(&self) -> usize {
        let vars = self.names().iter().map(|name| self.var(name));
        vars.map(|var| var.elem_count()).sum()
    }

    /// Bytes of the weights beside them, as they are kept.
    pub fn kept_bytes(&self) -> usize {
        let net = &self.net;
        let of_layers = net.layers.iter().flat_map(|layer| {
            let linears = [&layer.q, &layer.k, &layer.v, &layer.o];
            let linears = linears.into_iter().chain(&layer.gate);
            linears.chain([&layer.up, &layer.down])
        });
        let linears = of_layers.chain(&net.project_in).chain(&net.project_out);
        let linears: usize = linears.map(|linear| linear.weight.kept_bytes()).sum();
        let head = match self.shape().tied_head {
            true => 0,
            false => net.head.kept_bytes(),
        };
        linears + net.embedding.kept_bytes() + head
    }

    /// The adapters, where those alone are trained.
    pub(crate) fn adapter(&self) -> Option<&AdapterConfig> {
        self.adapter.as_ref()
    }

    /// The configuration of the checkpoint that was started from.
    ///
    /// # Errors
    /// There is none, or it cannot be read.
    pub(crate) fn base_config(&self) -> Result<serde_json::Value> {
        match &self.base {
            Some(base) => Ok(base.config_json()?),
            None => Err(TrainError::Config(
                "a new model has no configuration to go on with".to_owned(),
            )),
        }
    }

    /// A name of what is trained within a model that has an LM head, as transformers calls it.
    pub(crate) fn module_name(&self, name: &str) -> String {
        match &self.base {
            Some(base) => base.module_name(name),
            None => name.to_owned(),
        }
    }

    /// Mean cross-entropy of the tokens of a batch that count, and their number, without gradients.
    ///
    /// # Errors
    /// A batch that has more positions than the model; depths of another batch.
    pub fn loss_of(&self, batch: &Batch, depths: Option<&Depths>) -> Result<(f64, usize)> {
        let run = self.run(batch, depths, &BTreeSet::new(), false)?;
        let counted = Tensor::new(batch.counted.as_slice(), &Device::Cpu)?;
        let last = &run.states[&self.net.layers.len()];
        let mut sum = 0.0;
        // The logits of all are the largest thing there is.
        for first in (0..batch.counted.len()).step_by(ROWS_OF_LOGITS) {
            let rows = ROWS_OF_LOGITS.min(batch.counted.len() - first);
            let states = last.index_select(&counted.narrow(0, first, rows)?, 0)?;
            let loss = self.logits(&states)?.detach().apply_op1(CrossEntropy {
                targets: batch.targets[first..first + rows].to_vec(),
            })?;
            sum += f64::from(loss.to_scalar::<f32>()?) * rows as f64;
        }
        let count = batch.counted.len();
        Ok((sum / count.max(1) as f64, count))
    }

    /// Cosine of the output of each sub-layer to its input, mean over the tokens of each prompt, at full depth:
    /// `[row][2 * n_layers]`, attention of layer 0, MLP of layer 0, attention of layer 1, and so on (AdaSkip,
    /// arXiv 2501.02336).
    ///
    /// # Errors
    /// A batch that has more positions than the model.
    pub fn prompt_similarity(&self, batch: &Batch) -> Result<Vec<Vec<f64>>> {
        self.check(batch)?;
        let d = self.shape().d_model;
        let mut similarity = vec![Vec::new(); batch.rows];
        let mut state = self.embed(batch)?.detach();
        for layer in 0..self.net.layers.len() {
            let input = state.clone();
            for is_mlp in [false, true] {
                let new = match is_mlp {
                    false => self.attention(layer, &state, batch.seq)?,
                    true => self.mlp(layer, &state, &input)?,
                }
                .detach();
                let cosines = cosines(&to_vec(&state)?, &to_vec(&new)?, d);
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
        let longest = self.architecture.max_positions();
        if batch.seq > longest {
            return Err(TrainError::Config(format!(
                "a pair of {} tokens does not fit into `max-positions` {longest}",
                batch.seq + 1,
            )));
        }
        let vocab_size = self.shape().vocab_size;
        let mut tokens = batch.inputs.iter().chain(&batch.targets);
        match tokens.find(|token| **token as usize >= vocab_size) {
            Some(token) => Err(TrainError::Config(format!(
                "token {token} is outside the vocabulary of {vocab_size}"
            ))),
            None => Ok(()),
        }
    }

    fn embed(&self, batch: &Batch) -> Result<Tensor> {
        let net = &self.net;
        let mut state = net.embedding.rows(&batch.inputs)?;
        if let Some(scale) = self.shape().embedding_scale {
            state = (state * scale)?;
        }
        if let Some(norm) = &net.embedding_norm {
            state = norm.apply(&state)?;
        }
        if let Some(project) = &net.project_in {
            state = project.apply(&state)?;
        }
        if let Some(table) = &net.positions {
            let places: Vec<u32> = (0..batch.rows).flat_map(|_| 0..batch.seq as u32).collect();
            state = (state + table.index_select(&Tensor::new(places, &Device::Cpu)?, 0)?)?;
        }
        Ok(state)
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
        for layer in 0..self.net.layers.len() {
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
            let input = state.clone();
            if depths.is_some_and(|depths| depths.fill == Fill::Deferred) {
                let attended = self.attention(layer, &state, batch.seq)?;
                state = self.mlp(layer, &attended, &input)?;
                left = blend(mlp.0, &left, || Ok(state.clone()))?;
            } else {
                state = blend(attention.0, &state, || {
                    self.attention(layer, &state, batch.seq)
                })?;
                state = blend(mlp.0, &state, || self.mlp(layer, &state, &input))?;
                left = state.clone();
            }
        }
        let last = if tracked { left } else { left.detach() };
        states.insert(self.net.layers.len(), last);
        Ok(Run { states, ran })
    }

    /// The state behind attention; `state`: `[rows * seq, d_model]`.
    fn attention(&self, layer: usize, state: &Tensor, seq: usize) -> Result<Tensor> {
        let half = Half::Attention { seq };
        self.half(layer, half, state, state)
    }

    /// The state behind the MLP. `input`: what the layer read, which the MLP reads too where it stands beside attention.
    fn mlp(&self, layer: usize, state: &Tensor, input: &Tensor) -> Result<Tensor> {
        let read = match self.shape().parallel {
            true => input,
            false => state,
        };
        self.half(layer, Half::Mlp, state, read)
    }

    fn half(&self, layer: usize, half: Half, state: &Tensor, input: &Tensor) -> Result<Tensor> {
        let layer = &self.net.layers[layer];
        match (&self.again, half) {
            (Some(again), half) => {
                let op = Again {
                    layer: Arc::clone(layer),
                    half,
                    found: Arc::clone(&again.found),
                };
                Ok(state.apply_op3(input, &again.mark, op)?)
            }
            (None, Half::Attention { seq }) => layer.attend(state, seq),
            (None, Half::Mlp) => layer.feed(state, input),
        }
    }

    /// Final norm and LM head: `[tokens, vocab_size]` of `hidden`: `[tokens, d_model]`.
    pub(crate) fn logits(&self, hidden: &Tensor) -> Result<Tensor> {
        let net = &self.net;
        let mut state = hidden.clone();
        if let Some(norm) = &net.final_norm {
            state = norm.apply(&state)?;
        }
        if let Some(project) = &net.project_out {
            state = project.apply(&state)?;
        }
        let logits = net.head.apply(&state)?;
        match self.shape().logit_cap {
            None => Ok(logits),
            Some(cap) => Ok(((logits / cap)?.tanh()? * cap)?),
        }
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
