//! One decoder layer as trained. What it computes is data, as in [`skipbench_model`]: which norms stand where, how positions
//! enter, what a token sees.

use crate::activation::{Activate, Gated};
use crate::attention::Attention;
use crate::error::Result;
use crate::ops::SwiGlu;
use crate::weight::{Linear, Norm, Norms};
use candle_core::{Tensor, Var};
use skipbench_model::Activation;

/// A decoder layer. Hidden states are `[rows * seq, d_model]`.
pub(crate) struct Layer {
    pub(crate) attention_norms: Norms,
    pub(crate) q: Linear,
    pub(crate) k: Linear,
    pub(crate) v: Linear,
    pub(crate) o: Linear,
    pub(crate) q_norm: Option<Norm>,
    pub(crate) k_norm: Option<Norm>,
    /// All but the length of the rows.
    pub(crate) attention: Attention,
    pub(crate) mlp_norms: Norms,
    pub(crate) gate: Option<Linear>,
    pub(crate) up: Linear,
    pub(crate) down: Linear,
    pub(crate) activation: Activation,
    /// What of it is trained.
    pub(crate) variables: Vec<Var>,
}

impl Layer {
    /// The state with what attention adds.
    pub(crate) fn attend(&self, state: &Tensor, seq: usize) -> Result<Tensor> {
        let normed = self.attention_norms.read(state)?;
        let heads = |linear: &Linear, norm: &Option<Norm>| -> Result<Tensor> {
            let x = linear.apply(&normed)?;
            norm.as_ref().map_or(Ok(x.clone()), |norm| norm.apply(&x))
        };
        let q = heads(&self.q, &self.q_norm)?;
        let k = heads(&self.k, &self.k_norm)?;
        let v = self.v.apply(&normed)?;
        let attention = Attention {
            seq,
            ..self.attention.clone()
        };
        let attended = q.apply_op3(&k, &v, attention)?;
        self.attention_norms.join(state, self.o.apply(&attended)?)
    }

    /// `state` with what the MLP adds, which reads `input`: the state, but for layers whose sub-layers stand side by side.
    pub(crate) fn feed(&self, state: &Tensor, input: &Tensor) -> Result<Tensor> {
        let normed = self.mlp_norms.read(input)?;
        let inner = match &self.gate {
            Some(gate) => {
                let (gate, up) = (gate.apply(&normed)?, self.up.apply(&normed)?);
                match self.activation {
                    Activation::Silu => gate.apply_op2(&up, SwiGlu)?,
                    other => gate.apply_op2(&up, Gated(other))?,
                }
            }
            None => self
                .up
                .apply(&normed)?
                .apply_op1(Activate(self.activation))?,
        };
        self.mlp_norms.join(state, self.down.apply(&inner)?)
    }
}
