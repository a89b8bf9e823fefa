//! Tensors of a checkpoint by their names under a prefix, in the pieces that families are made of.

use crate::checkpoint::Checkpoint;
use crate::config::ModelConfig;
use crate::error::Result;
use crate::matrix::Matrix;
use crate::weights::{Attention, Linear, Mlp, Norm};
use candle_core::{DType, Tensor};

/// Names that begin the same way.
pub(super) struct Names<'a> {
    checkpoint: &'a Checkpoint,
    prefix: String,
}

impl<'a> Names<'a> {
    /// The first of `prefixes` under which there is a tensor `probe`, which every checkpoint of the family has; the first of
    /// all where there is none. A base model is written without the prefix that it has inside a model with an LM head.
    pub(super) fn base(checkpoint: &'a Checkpoint, prefixes: &[&str], probe: &str) -> Self {
        let there = |prefix: &&&str| checkpoint.has(&format!("{prefix}{probe}"));
        let prefix = prefixes.iter().find(there).or(prefixes.first());
        Self {
            checkpoint,
            prefix: prefix.map_or_else(String::new, |prefix| (*prefix).to_owned()),
        }
    }

    /// Names further down: `part` and a dot.
    pub(super) fn under(&self, part: &str) -> Names<'a> {
        Names {
            checkpoint: self.checkpoint,
            prefix: format!("{}{part}.", self.prefix),
        }
    }

    /// One layer.
    pub(super) fn layer(&self, part: &str, index: usize) -> Names<'a> {
        self.under(&format!("{part}.{index}"))
    }

    /// The whole name of a tensor.
    pub(super) fn full(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }

    pub(super) fn tensor(&self, name: &str, shape: &[usize]) -> Result<Tensor> {
        self.checkpoint
            .tensor(&format!("{}{name}", self.prefix), shape)
    }

    /// A projection from `columns` to `rows`.
    pub(super) fn linear(
        &self,
        name: &str,
        rows: usize,
        columns: usize,
        bias: bool,
    ) -> Result<Linear> {
        let full = |part: &str| self.full(&format!("{name}.{part}"));
        let weight = Matrix::whole(full("weight"), rows, columns);
        self.checkpoint.source_of(&weight)?;
        Ok(Linear {
            weight,
            bias: match bias {
                true => Some(self.tensor(&format!("{name}.bias"), &[rows])?),
                false => None,
            },
            bias_at: bias.then(|| Matrix::whole(full("bias"), rows, 1)),
        })
    }

    pub(super) fn rms_norm(&self, name: &str, width: usize, eps: f64) -> Result<Norm> {
        Ok(Norm::Rms {
            weight: self.tensor(&format!("{name}.weight"), &[width])?,
            eps,
            name: self.full(&format!("{name}.weight")),
            add: 0.0,
        })
    }

    /// A norm that is computed in f32 whatever the element type, by `add + weight`.
    pub(super) fn rms_norm_in_f32(
        &self,
        name: &str,
        width: usize,
        eps: f64,
        add: f64,
    ) -> Result<Norm> {
        let weight = self.tensor(&format!("{name}.weight"), &[width])?;
        Ok(Norm::Rms {
            weight: (weight.to_dtype(DType::F32)? + add)?,
            eps,
            name: self.full(&format!("{name}.weight")),
            add,
        })
    }

    pub(super) fn layer_norm(&self, name: &str, width: usize, eps: f64) -> Result<Norm> {
        Ok(Norm::Layer {
            weight: self.tensor(&format!("{name}.weight"), &[width])?,
            bias: self.tensor(&format!("{name}.bias"), &[width])?,
            eps,
            names: ["weight", "bias"].map(|part| self.full(&format!("{name}.{part}"))),
        })
    }

    /// `q_proj`, `k_proj`, `v_proj` and the output projection `out`.
    pub(super) fn attention(&self, config: &ModelConfig, out: &str) -> Result<Attention> {
        let (d, biases) = (config.d_model, config.biases);
        Ok(Attention {
            q: self.linear("q_proj", config.q_width(), d, biases.qkv)?,
            k: self.linear("k_proj", config.kv_width(), d, biases.qkv)?,
            v: self.linear("v_proj", config.kv_width(), d, biases.qkv)?,
            o: self.linear(out, d, config.q_width(), biases.attention_out)?,
            q_norm: None,
            k_norm: None,
        })
    }

    /// `gate_proj`, `up_proj` and `down_proj`.
    pub(super) fn gated_mlp(&self, config: &ModelConfig) -> Result<Mlp> {
        let (d, f, bias) = (config.d_model, config.d_ff, config.biases.mlp);
        Ok(Mlp {
            gate: Some(self.linear("gate_proj", f, d, bias)?),
            up: self.linear("up_proj", f, d, bias)?,
            down: self.linear("down_proj", d, f, bias)?,
        })
    }

    /// `name`, rows interleaved by head, `[n_heads, (q, k, v), head_dim]`, and the output projection `out`.
    pub(super) fn interleaved_attention(
        &self,
        config: &ModelConfig,
        name: &str,
        out: &str,
    ) -> Result<Attention> {
        let (heads, width, d) = (config.n_heads, config.head_dim, config.d_model);
        let rows = config.q_width();
        let fused = self.linear(name, 3 * rows, d, config.biases.qkv)?;
        let part = |index: usize| -> Result<Linear> {
            let pick = |bias: &Tensor| -> Result<Tensor> {
                let part = bias.reshape((heads, 3, width))?.narrow(1, index, 1)?;
                Ok(part.contiguous()?.reshape(rows)?)
            };
            let place = |whole: &Matrix| whole.pick(index * width, width, 3 * width, rows);
            Ok(Linear {
                weight: place(&fused.weight),
                bias: fused.bias.as_ref().map(pick).transpose()?,
                bias_at: fused.bias_at.as_ref().map(place),
            })
        };
        Ok(Attention {
            q: part(0)?,
            k: part(1)?,
            v: part(2)?,
            o: self.linear(out, d, rows, config.biases.attention_out)?,
            q_norm: None,
            k_norm: None,
        })
    }

    /// Rows of a projection that holds several, one below the other.
    pub(super) fn stacked<const N: usize>(
        &self,
        name: &str,
        rows: [usize; N],
        columns: usize,
        bias: bool,
    ) -> Result<[Linear; N]> {
        let fused = self.linear(name, rows.iter().sum(), columns, bias)?;
        let mut from = 0;
        let mut parts = Vec::with_capacity(N);
        for rows in rows {
            // A copy, so that the whole need not stay for the sake of a part.
            let pick = |bias: &Tensor| bias.narrow(0, from, rows)?.copy();
            let place = |whole: &Matrix| whole.pick(from, rows, rows, rows);
            parts.push(Linear {
                weight: place(&fused.weight),
                bias: fused.bias.as_ref().map(pick).transpose()?,
                bias_at: fused.bias_at.as_ref().map(place),
            });
            from += rows;
        }
        parts
            .try_into()
            .map_err(|_| unreachable!("as many parts as counts of rows"))
    }

    /// Names of the embedding, which stands under this prefix, and of the LM head, which has its full name. Tied ones may be
    /// written once under either name. Where both are there and differ they are not tied, whatever the config says.
    pub(super) fn embedding_and_head(
        &self,
        config: &ModelConfig,
        embedding: &str,
        heads: &[&str],
    ) -> Result<(String, String)> {
        let embedding = format!("{}{embedding}", self.prefix);
        let head = heads.iter().find(|name| self.checkpoint.has(name));
        let has_embedding = self.checkpoint.has(&embedding);
        match (config.tied_head, has_embedding, head) {
            (true, true, None) => Ok((embedding.clone(), embedding)),
            (true, false, Some(&head)) => Ok((head.to_owned(), head.to_owned())),
            (true, true, Some(&head)) => {
                let shape = [config.vocab_size, config.d_embed];
                if self.checkpoint.same(&embedding, head, shape)? {
                    return Ok((embedding.clone(), embedding));
                }
                tracing::warn!(
                    "`tie_word_embeddings` is true, but `{embedding}` and `{head}` differ: both are used as they are"
                );
                Ok((embedding, head.to_owned()))
            }
            _ => {
                let head = head.or(heads.first()).copied().unwrap_or("lm_head.weight");
                Ok((embedding, head.to_owned()))
            }
        }
    }
}
