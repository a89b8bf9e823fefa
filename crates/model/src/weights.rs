//! The common decoder layer that every family reduces to.

use candle_core::Tensor;

/// `y = x W^T + b`, `weight`: `[out, in]`, `bias`: `[out]`.
#[derive(Debug, Clone)]
pub(crate) struct Linear {
    pub(crate) weight: Tensor,
    pub(crate) bias: Option<Tensor>,
}

/// Normalisation over the last dimension; `weight`, `bias`: `[d_model]`.
#[derive(Debug, Clone)]
pub(crate) enum Norm {
    /// Root mean square norm (arXiv 1910.07467).
    Rms { weight: Tensor, eps: f64 },
    /// Layer norm (arXiv 1607.06450).
    Layer {
        weight: Tensor,
        bias: Tensor,
        eps: f64,
    },
}

/// The feed-forward part; `gate`, `up`: `[d_ff, d_model]`, `down`: `[d_model, d_ff]`.
#[derive(Debug, Clone)]
pub(crate) enum Mlp {
    /// `down(silu(gate x) * up x)` (arXiv 2002.05202).
    SwiGlu {
        gate: Linear,
        up: Linear,
        down: Linear,
    },
    /// `down(gelu(up x))` with the tanh form of GELU, as BLOOM was trained.
    Gelu { up: Linear, down: Linear },
}

/// A pre-norm decoder layer: `x += o(attention(norm(x)))`, then `x += mlp(norm(x))`.
#[derive(Debug, Clone)]
pub(crate) struct LayerWeights {
    pub(crate) attention_norm: Norm,
    /// `[n_heads * head_dim, d_model]`
    pub(crate) q: Linear,
    /// `[n_kv_heads * head_dim, d_model]`
    pub(crate) k: Linear,
    /// `[n_kv_heads * head_dim, d_model]`
    pub(crate) v: Linear,
    /// `[d_model, n_heads * head_dim]`
    pub(crate) o: Linear,
    pub(crate) mlp_norm: Norm,
    pub(crate) mlp: Mlp,
}

/// What is not a layer. `embedding`, `head`: `[vocab, d_model]`.
#[derive(Debug, Clone)]
pub(crate) struct Frame {
    pub(crate) embedding: Tensor,
    /// BLOOM normalises the embedding.
    pub(crate) embedding_norm: Option<Norm>,
    pub(crate) final_norm: Norm,
    pub(crate) head: Tensor,
}

impl Linear {
    fn elements(&self) -> usize {
        self.weight.elem_count() + self.bias.as_ref().map_or(0, Tensor::elem_count)
    }
}

impl LayerWeights {
    /// Number of weights of the MLP's projections (norms left out: they are under a thousandth).
    pub(crate) fn mlp_elements(&self) -> usize {
        match &self.mlp {
            Mlp::SwiGlu { gate, up, down } => gate.elements() + up.elements() + down.elements(),
            Mlp::Gelu { up, down } => up.elements() + down.elements(),
        }
    }

    /// Number of weights of attention's projections.
    pub(crate) fn attention_elements(&self) -> usize {
        let projections = [&self.q, &self.k, &self.v, &self.o];
        projections.map(Linear::elements).iter().sum()
    }
}
