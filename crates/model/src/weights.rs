//! The common decoder layer that every family reduces to. Its matrices are named and stay in their file (`W` is
//! [`Matrix`]) until a form of the layer packs them or makes tensors of them; what else there is knows where it stands.

use crate::config::ModelConfig;
use crate::error::Result;
use crate::matrix::Matrix;
use candle_core::{DType, Tensor};

/// `y = x W^T + b`, `weight`: `[out, in]`, `bias`: `[out]`.
#[derive(Debug, Clone)]
pub struct Linear<W = Matrix> {
    /// `[out, in]`
    pub weight: W,
    /// `[out]`
    pub bias: Option<Tensor>,
    /// Where the bias stands: rows of one column.
    pub bias_at: Option<Matrix>,
}

/// Normalisation over as many channels as `weight` has.
#[derive(Debug, Clone)]
pub enum Norm {
    /// Root mean square norm (arXiv 1910.07467). Where the weight is wider than the state, f32 beside bf16, the norm is
    /// computed in its type.
    Rms {
        /// `[width]`
        weight: Tensor,
        /// Added to the mean square.
        eps: f64,
        /// Hugging Face's name of the weight.
        name: String,
        /// What was added to the numbers there.
        add: f64,
    },
    /// Layer norm (arXiv 1607.06450).
    Layer {
        /// `[width]`
        weight: Tensor,
        /// `[width]`
        bias: Tensor,
        /// Added to the variance.
        eps: f64,
        /// Hugging Face's names of the weight and the bias.
        names: [String; 2],
    },
}

/// Norms around a sub-layer `f`: `x` becomes `sum(x + after(f(before(x))))`; one that is not there changes nothing.
#[derive(Debug, Clone, Default)]
pub struct Norms {
    /// Of what the sub-layer reads.
    pub before: Option<Norm>,
    /// Of what it gives.
    pub after: Option<Norm>,
    /// Of the sum.
    pub sum: Option<Norm>,
}

impl Norms {
    /// A norm in front, as nearly all have it.
    pub(crate) fn before(norm: Norm) -> Self {
        Self {
            before: Some(norm),
            ..Self::default()
        }
    }
}

/// The projections of attention.
#[derive(Debug, Clone)]
pub struct Attention<W = Matrix> {
    /// `[n_heads * head_dim, d_model]`
    pub q: Linear<W>,
    /// `[n_kv_heads * head_dim, d_model]`
    pub k: Linear<W>,
    /// `[n_kv_heads * head_dim, d_model]`
    pub v: Linear<W>,
    /// `[d_model, n_heads * head_dim]`
    pub o: Linear<W>,
    /// Of queries before they are turned: over each head where its weight is `[head_dim]`, over all of them where it is
    /// `[n_heads * head_dim]`.
    pub q_norm: Option<Norm>,
    /// The same of keys.
    pub k_norm: Option<Norm>,
}

/// The feed-forward part: `down(act(gate x) * up x)` (arXiv 2002.05202), or `down(act(up x))` without a gate. `gate`, `up`:
/// `[d_ff, d_model]`, `down`: `[d_model, d_ff]`.
#[derive(Debug, Clone)]
pub struct Mlp<W = Matrix> {
    /// `[d_ff, d_model]`
    pub gate: Option<Linear<W>>,
    /// `[d_ff, d_model]`
    pub up: Linear<W>,
    /// `[d_model, d_ff]`
    pub down: Linear<W>,
}

/// A decoder layer: attention and MLP, each with its norms and added to what it read. The config says the rest.
#[derive(Debug, Clone)]
pub struct LayerWeights<W = Matrix> {
    /// Around attention.
    pub attention_norms: Norms,
    /// The projections of attention.
    pub attention: Attention<W>,
    /// Around the MLP.
    pub mlp_norms: Norms,
    /// The projections of the MLP.
    pub mlp: Mlp<W>,
}

/// What is not a layer. The embedding and the LM head, `[vocab_size, d_embed]` each, stand here by their names in the
/// checkpoint, which are the same where they are tied: they may be half of a model, too much to be there in two forms.
#[derive(Debug, Clone)]
pub struct Frame {
    /// Name of the embedding.
    pub embedding: String,
    /// BLOOM normalises the embedding.
    pub embedding_norm: Option<Norm>,
    /// `[d_model, d_embed]`, where they differ.
    pub project_in: Option<Linear>,
    /// Learned positions, `[max_positions, d_model]`, position 0 first.
    pub positions: Option<Tensor>,
    /// Where those stand.
    pub positions_at: Option<Matrix>,
    /// In front of the head.
    pub final_norm: Option<Norm>,
    /// `[d_embed, d_model]`, where they differ.
    pub project_out: Option<Linear>,
    /// Name of the LM head.
    pub head: String,
}

impl Norm {
    /// Channels that are normalised together.
    pub(crate) fn width(&self) -> usize {
        match self {
            Norm::Rms { weight, .. } | Norm::Layer { weight, .. } => weight.elem_count(),
        }
    }
}

impl<W> Linear<W> {
    /// The projection with its matrix in another form.
    ///
    /// # Errors
    /// What `to` gives.
    pub(crate) fn map<V>(self, to: &impl Fn(W) -> Result<V>) -> Result<Linear<V>> {
        Ok(Linear {
            weight: to(self.weight)?,
            bias: self.bias,
            bias_at: self.bias_at,
        })
    }
}

impl Linear {
    pub(crate) fn elements(&self) -> usize {
        self.weight.elements() + self.bias.as_ref().map_or(0, Tensor::elem_count)
    }
}

impl<W> LayerWeights<W> {
    /// The layer with its matrices in another form.
    ///
    /// # Errors
    /// What `to` gives.
    pub(crate) fn map<V>(self, to: &impl Fn(W) -> Result<V>) -> Result<LayerWeights<V>> {
        let (attention, mlp) = (self.attention, self.mlp);
        Ok(LayerWeights {
            attention_norms: self.attention_norms,
            attention: Attention {
                q: attention.q.map(to)?,
                k: attention.k.map(to)?,
                v: attention.v.map(to)?,
                o: attention.o.map(to)?,
                q_norm: attention.q_norm,
                k_norm: attention.k_norm,
            },
            mlp_norms: self.mlp_norms,
            mlp: Mlp {
                gate: mlp.gate.map(|gate| gate.map(to)).transpose()?,
                up: mlp.up.map(to)?,
                down: mlp.down.map(to)?,
            },
        })
    }
}

impl LayerWeights {
    /// Number of weights of the MLP's projections (norms left out: they are under a thousandth).
    pub(crate) fn mlp_elements(&self) -> usize {
        let Mlp { gate, up, down } = &self.mlp;
        gate.as_ref().map_or(0, Linear::elements) + up.elements() + down.elements()
    }

    /// Its projections, in the order in which they are computed.
    pub(crate) fn linears(&self) -> impl Iterator<Item = &Linear> {
        let (attention, mlp) = (&self.attention, &self.mlp);
        let linears = [&attention.q, &attention.k, &attention.v, &attention.o];
        let linears = linears.into_iter().chain(&mlp.gate);
        linears.chain([&mlp.up, &mlp.down])
    }

    /// Number of weights of attention's projections.
    pub(crate) fn attention_elements(&self) -> usize {
        let Attention { q, k, v, o, .. } = &self.attention;
        [q, k, v, o].map(Linear::elements).iter().sum()
    }
}

impl Frame {
    /// An embedding and an LM head with nothing around them.
    pub fn new(embedding: String, head: String) -> Self {
        Self {
            embedding,
            embedding_norm: None,
            project_in: None,
            positions: None,
            positions_at: None,
            final_norm: None,
            project_out: None,
            head,
        }
    }

    /// `[vocab_size, d_embed]`
    pub fn embedding(&self, config: &ModelConfig) -> Matrix {
        Matrix::whole(&self.embedding, config.vocab_size, config.d_embed)
    }

    /// `[vocab_size, d_embed]`
    pub fn head(&self, config: &ModelConfig) -> Matrix {
        Matrix::whole(&self.head, config.vocab_size, config.d_embed)
    }

    /// Whether the LM head is the embedding.
    pub(crate) fn is_tied(&self) -> bool {
        self.embedding == self.head
    }

    /// Number of weights between the last layer and the logits.
    pub(crate) fn head_elements(&self, config: &ModelConfig) -> usize {
        config.vocab_size * config.d_embed + self.project_out.as_ref().map_or(0, Linear::elements)
    }

    /// Gives the norm of the embedding the element type of the state that it works on.
    pub(crate) fn with_state_of(mut self, dtype: DType) -> Result<Self> {
        if let Some(Norm::Layer { weight, bias, .. }) = &mut self.embedding_norm {
            (*weight, *bias) = (weight.to_dtype(dtype)?, bias.to_dtype(dtype)?);
        }
        Ok(self)
    }
}
