//! A network made of the parts of a checkpoint: what is trained becomes variables, what is not is kept as it is.

use crate::adapter::{AdaptedMatrix, AdapterConfig, first_values};
use crate::architecture::Architecture;
use crate::attention::{Attention, Rope};
use crate::error::{Result, TrainError};
use crate::layer::Layer;
use crate::weight::{Linear, LowRank, Norm, Norms, Weight};
use candle_core::{DType, Device, Tensor, Var};
use skipbench_model::{KeptMatrix, Matrix, PositionScheme, weights};
use std::collections::HashMap;
use std::sync::Arc;

/// The parts of a checkpoint, wherever they lie.
pub(crate) struct Source<'a> {
    pub(crate) frame: &'a weights::Frame,
    pub(crate) layers: &'a [weights::LayerWeights],
    /// A matrix in f32.
    pub(crate) tensor: &'a dyn Fn(&Matrix) -> Result<Tensor>,
    /// A matrix as it is kept.
    pub(crate) keep: &'a dyn Fn(&Matrix) -> Result<KeptMatrix>,
}

/// What is trained.
#[derive(Clone, Copy)]
pub(crate) enum Trained<'a> {
    /// Every weight.
    All,
    /// Adapters alone; their first values follow from a seed.
    Adapters(&'a AdapterConfig, u64),
}

/// A network without its variables' names.
pub(crate) struct Assembled {
    pub(crate) variables: Variables,
    pub(crate) embedding: Weight,
    pub(crate) embedding_norm: Option<Norm>,
    pub(crate) project_in: Option<Linear>,
    /// `[max_positions, d_model]`
    pub(crate) positions: Option<Tensor>,
    pub(crate) layers: Vec<Arc<Layer>>,
    pub(crate) final_norm: Option<Norm>,
    pub(crate) project_out: Option<Linear>,
    pub(crate) head: Weight,
}

/// What is trained, by name and in a fixed order.
#[derive(Default)]
pub(crate) struct Variables {
    pub(crate) names: Vec<String>,
    pub(crate) vars: HashMap<String, Var>,
    /// Of each name, where its values stand in a checkpoint.
    pub(crate) homes: Vec<Home>,
}

/// Where the values of a variable stand in a checkpoint.
pub(crate) enum Home {
    /// Rows of a matrix; a vector is one of one column. `add`: what was added to the numbers there.
    Rows { rows: Matrix, add: f64 },
    /// The first half of the adapter of a matrix, which the second follows.
    Lower(Matrix),
    /// The second.
    Upper,
}

impl Variables {
    fn add(&mut self, name: String, tensor: &Tensor, home: Home) -> Result<Var> {
        let var = Var::from_tensor(&tensor.to_dtype(DType::F32)?.contiguous()?)?;
        self.vars.insert(name.clone(), var.clone());
        self.names.push(name);
        self.homes.push(home);
        Ok(var)
    }
}

/// Makes the network of `architecture`.
///
/// # Errors
/// A tensor that cannot be read; a matrix to be adapted that is not there, or is one with others that are not.
pub(crate) fn assemble(
    architecture: &Architecture,
    source: &Source<'_>,
    trained: Trained<'_>,
) -> Result<Assembled> {
    let config = architecture.config();
    if let Trained::Adapters(adapter, _) = trained {
        check_matrices(source.layers, adapter)?;
    }
    let ropes: Vec<Option<Arc<Rope>>> = config
        .positions
        .iter()
        .map(|scheme| match (scheme, architecture.plain()) {
            (PositionScheme::Rope(_), Some(shape)) => Some(Arc::new(Rope::plain(
                shape.max_positions,
                shape.head_dim(),
                shape.rope_theta,
            ))),
            (PositionScheme::Rope(rope), None) => {
                Some(Arc::new(Rope::of(rope, architecture.max_positions())))
            }
            (PositionScheme::Alibi { .. } | PositionScheme::Learned, _) => None,
        })
        .collect();
    let mut assembly = Assembly {
        source,
        trained,
        variables: Variables::default(),
        shared: HashMap::new(),
    };
    let frame = source.frame;
    let embedding = assembly.weight(&frame.embedding(config))?;
    let embedding_norm = assembly.norm(&frame.embedding_norm)?;
    let project_in = assembly.projection(&frame.project_in)?;
    let positions = match (&frame.positions, &frame.positions_at) {
        (Some(table), Some(rows)) => Some(assembly.vector(table, rows.clone(), 0.0)?),
        _ => None,
    };
    let mut layers = Vec::new();
    for (index, parts) in source.layers.iter().enumerate() {
        let kind = config.layers[index];
        let slopes = match &config.positions[kind.positions] {
            PositionScheme::Alibi { slopes } => Some(slopes.as_slice().into()),
            _ => None,
        };
        let attention = Attention {
            seq: 0,
            n_heads: config.n_heads,
            n_kv_heads: config.n_kv_heads,
            head_dim: config.head_dim,
            scale: score_scale(config.score_scale, config.head_dim),
            cap: config.score_cap.map(|cap| cap as f32),
            window: kind.window,
            rope: ropes[kind.positions].clone(),
            slopes,
        };
        let layer = assembly.layer(parts, attention, config.activation)?;
        layers.push(Arc::new(layer));
    }
    Ok(Assembled {
        embedding,
        embedding_norm,
        project_in,
        positions,
        layers,
        final_norm: assembly.norm(&frame.final_norm)?,
        project_out: assembly.projection(&frame.project_out)?,
        head: assembly.weight(&frame.head(config))?,
        variables: assembly.variables,
    })
}

/// The factor of scores. What divides by the root of the width does so in f32, as it always has: shipped checkpoints are results
/// of that.
fn score_scale(scale: f64, head_dim: usize) -> f32 {
    match scale == 1.0 / (head_dim as f64).sqrt() {
        true => 1.0 / (head_dim as f32).sqrt(),
        false => scale as f32,
    }
}

/// Refuses a matrix to be adapted that layers do not have, and one that is one tensor with others that are not to be adapted.
///
/// # Errors
/// One of these.
pub(crate) fn check_matrices(
    layers: &[weights::LayerWeights],
    adapter: &AdapterConfig,
) -> Result<()> {
    adapter.check()?;
    let Some(layer) = layers.first() else {
        return Ok(());
    };
    let all = matrices(layer);
    if let Some(matrices) = &adapter.matrices {
        let there = |matrix: &&AdaptedMatrix| all.iter().any(|(name, _)| name == *matrix);
        if let Some(absent) = matrices.iter().find(|matrix| !there(matrix)) {
            return Err(TrainError::Config(format!(
                "`adapter.matrices` names `{}`, which layers of this model do not have; they have {}",
                absent.name(),
                list(all.iter().map(|(name, _)| *name))
            )));
        }
    }
    for (name, linear) in all.iter().filter(|(name, _)| adapter.adapts(*name)) {
        let whole = &linear.weight.name;
        let together = all.iter().filter(|(_, other)| other.weight.name == *whole);
        let together: Vec<AdaptedMatrix> = together.map(|(name, _)| *name).collect();
        if together.iter().any(|other| !adapter.adapts(*other)) {
            return Err(TrainError::Config(format!(
                "`adapter.matrices` names `{}`, but {} are one tensor of this model; name all of them or none",
                name.name(),
                list(together.into_iter())
            )));
        }
    }
    if let Some((name, linear)) = all.iter().find(|(name, linear)| {
        adapter.adapts(*name) && adapter.rank > linear.weight.rows().min(linear.weight.columns())
    }) {
        return Err(TrainError::Config(format!(
            "`adapter.rank` is {}, more than the {} rows and {} columns of `{}` allow",
            adapter.rank,
            linear.weight.rows(),
            linear.weight.columns(),
            name.name()
        )));
    }
    Ok(())
}

fn list(names: impl Iterator<Item = AdaptedMatrix>) -> String {
    let names: Vec<String> = names.map(|name| format!("`{}`", name.name())).collect();
    names.join(", ")
}

/// The matrices of a layer that may have an adapter.
fn matrices(layer: &weights::LayerWeights) -> Vec<(AdaptedMatrix, &weights::Linear)> {
    let (attention, mlp) = (&layer.attention, &layer.mlp);
    let gate = mlp.gate.as_ref().map(|gate| (AdaptedMatrix::Gate, gate));
    [
        (AdaptedMatrix::Q, &attention.q),
        (AdaptedMatrix::K, &attention.k),
        (AdaptedMatrix::V, &attention.v),
        (AdaptedMatrix::O, &attention.o),
    ]
    .into_iter()
    .chain(gate)
    .chain([
        (AdaptedMatrix::Up, &mlp.up),
        (AdaptedMatrix::Down, &mlp.down),
    ])
    .collect()
}

struct Assembly<'a> {
    source: &'a Source<'a>,
    trained: Trained<'a>,
    variables: Variables,
    /// Whole matrices that are there already: a tied head is the embedding.
    shared: HashMap<String, Weight>,
}

impl Assembly<'_> {
    /// A variable's name: the tensor's, and where it begins in one that holds several.
    fn name(rows: &Matrix) -> String {
        match rows.is_whole() {
            true => rows.name.clone(),
            false => format!("{}@{}", rows.name, rows.place(0)),
        }
    }

    fn weight(&mut self, matrix: &Matrix) -> Result<Weight> {
        let name = Self::name(matrix);
        if let Some(weight) = self.shared.get(&name) {
            return Ok(weight.clone());
        }
        let weight = match self.trained {
            Trained::All => {
                let tensor = (self.source.tensor)(matrix)?;
                let home = Home::Rows {
                    rows: matrix.clone(),
                    add: 0.0,
                };
                Weight::Trained(self.variables.add(name.clone(), &tensor, home)?)
            }
            Trained::Adapters(..) => Weight::Kept(Arc::new((self.source.keep)(matrix)?)),
        };
        self.shared.insert(name, weight.clone());
        Ok(weight)
    }

    /// A bias, the weight of a norm, or a table.
    fn vector(&mut self, tensor: &Tensor, rows: Matrix, add: f64) -> Result<Tensor> {
        Ok(match self.trained {
            Trained::All => {
                let name = Self::name(&rows);
                let var = self.variables.add(name, tensor, Home::Rows { rows, add })?;
                var.as_tensor().clone()
            }
            Trained::Adapters(..) => tensor.to_dtype(DType::F32)?.contiguous()?,
        })
    }

    fn projection(&mut self, linear: &Option<weights::Linear>) -> Result<Option<Linear>> {
        let plain = |linear| self.linear(linear, None);
        linear.as_ref().map(plain).transpose()
    }

    fn linear(
        &mut self,
        linear: &weights::Linear,
        matrix: Option<AdaptedMatrix>,
    ) -> Result<Linear> {
        let weight = self.weight(&linear.weight)?;
        let bias = match (&linear.bias, &linear.bias_at) {
            (Some(bias), Some(rows)) => Some(self.vector(bias, rows.clone(), 0.0)?),
            _ => None,
        };
        let adapter = match (self.trained, matrix) {
            (Trained::Adapters(adapter, seed), Some(matrix)) if adapter.adapts(matrix) => {
                Some(self.low_rank(&linear.weight, adapter, seed)?)
            }
            _ => None,
        };
        Ok(Linear {
            weight,
            bias,
            adapter,
        })
    }

    /// The adapter of a whole matrix, and which rows of it are those of `matrix`.
    fn low_rank(&mut self, matrix: &Matrix, adapter: &AdapterConfig, seed: u64) -> Result<LowRank> {
        let whole = Matrix::whole(matrix.name.clone(), matrix.whole[0], matrix.whole[1]);
        let [lower, upper] = adapter_names(&whole.name);
        if !self.variables.vars.contains_key(&lower) {
            let (rank, [rows, columns]) = (adapter.rank, whole.whole);
            let (a, b) = first_values(&whole.name, seed, rank, whole.whole);
            let a = Tensor::from_vec(a, (rank, columns), &Device::Cpu)?;
            let b = Tensor::from_vec(b, (rows, rank), &Device::Cpu)?;
            self.variables.add(lower.clone(), &a, Home::Lower(whole))?;
            self.variables.add(upper.clone(), &b, Home::Upper)?;
        }
        let half = |name: &str| self.variables.vars[name].as_tensor().clone();
        let rows = match matrix.is_whole() {
            true => None,
            false => {
                let rows: Vec<u32> = (0..matrix.rows())
                    .map(|row| matrix.place(row) as u32)
                    .collect();
                Some(Tensor::new(rows, &Device::Cpu)?)
            }
        };
        Ok(LowRank {
            a: half(&lower),
            b: half(&upper),
            rows,
            scale: adapter.scale(),
        })
    }

    fn norm(&mut self, norm: &Option<weights::Norm>) -> Result<Option<Norm>> {
        let Some(norm) = norm else {
            return Ok(None);
        };
        let at = |name: &String, tensor: &Tensor| Matrix::whole(name, tensor.elem_count(), 1);
        Ok(Some(match norm {
            weights::Norm::Rms {
                weight,
                eps,
                name,
                add,
            } => Norm::Rms {
                weight: self.vector(weight, at(name, weight), *add)?,
                eps: *eps as f32,
            },
            weights::Norm::Layer {
                weight,
                bias,
                eps,
                names: [of_weight, of_bias],
            } => Norm::Layer {
                weight: self.vector(weight, at(of_weight, weight), 0.0)?,
                bias: self.vector(bias, at(of_bias, bias), 0.0)?,
                eps: *eps as f32,
            },
        }))
    }

    /// The layer; variables come in the order in which the layer computes, which is the order of a LLaMA's checkpoints here.
    fn layer(
        &mut self,
        parts: &weights::LayerWeights,
        attention: Attention,
        activation: skipbench_model::Activation,
    ) -> Result<Layer> {
        use AdaptedMatrix::{Down, Gate, K, O, Q, Up, V};
        let weights::Attention {
            q,
            k,
            v,
            o,
            q_norm,
            k_norm,
        } = &parts.attention;
        let first = self.variables.names.len();
        let before_attention = self.norm(&parts.attention_norms.before)?;
        let q = self.linear(q, Some(Q))?;
        let k = self.linear(k, Some(K))?;
        let v = self.linear(v, Some(V))?;
        let q_norm = self.norm(q_norm)?;
        let k_norm = self.norm(k_norm)?;
        let o = self.linear(o, Some(O))?;
        let attention_norms = self.norms(before_attention, &parts.attention_norms)?;
        let before_mlp = self.norm(&parts.mlp_norms.before)?;
        let gate = match &parts.mlp.gate {
            Some(gate) => Some(self.linear(gate, Some(Gate))?),
            None => None,
        };
        let up = self.linear(&parts.mlp.up, Some(Up))?;
        let down = self.linear(&parts.mlp.down, Some(Down))?;
        let mlp_norms = self.norms(before_mlp, &parts.mlp_norms)?;
        let names = self.variables.names[first..].iter();
        Ok(Layer {
            variables: names
                .map(|name| self.variables.vars[name].clone())
                .collect(),
            attention_norms,
            q,
            k,
            v,
            o,
            q_norm,
            k_norm,
            attention,
            gate,
            up,
            down,
            mlp_norms,
            activation,
        })
    }

    fn norms(&mut self, before: Option<Norm>, parts: &weights::Norms) -> Result<Norms> {
        Ok(Norms {
            before,
            after: self.norm(&parts.after)?,
            sum: self.norm(&parts.sum)?,
        })
    }
}

/// Names of the two halves of the adapter of a matrix.
pub(crate) fn adapter_names(matrix: &str) -> [String; 2] {
    let module = matrix.strip_suffix(".weight").unwrap_or(matrix);
    ["A", "B"].map(|half| format!("{module}.lora_{half}.weight"))
}
