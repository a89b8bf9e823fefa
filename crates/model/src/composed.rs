//! The decoder layer composed from candle operations: any device, any dtype, and the form that the fused
//! layers are tested against.

use crate::batch::{Span, positions};
use crate::cache_layer::{LayerKv, Storage};
use crate::config::{ModelConfig, PositionScheme};
use crate::decoder::Part;
use crate::error::Result;
use crate::weights::{LayerWeights, Linear, Mlp, Norm};
use candle_core::{D, DType, Device, Tensor};

pub(crate) struct ComposedLayer {
    weights: LayerWeights,
    n_heads: usize,
    n_kv_heads: usize,
    head_dim: usize,
    position: Position,
}

enum Position {
    /// `[head_dim / 2]`, f32.
    Rope(Tensor),
    /// `[n_kv_heads, group, 1, 1]`, f32: a slope per query head.
    Alibi(Tensor),
}

impl ComposedLayer {
    pub(crate) fn new(
        weights: LayerWeights,
        config: &ModelConfig,
        device: &Device,
    ) -> Result<Self> {
        let group = config.n_heads / config.n_kv_heads;
        let position = match &config.positions {
            PositionScheme::Rope { inv_freq } => {
                Position::Rope(Tensor::new(inv_freq.as_slice(), device)?)
            }
            PositionScheme::Alibi { slopes } => {
                Position::Alibi(Tensor::new(slopes.as_slice(), device)?.reshape((
                    config.n_kv_heads,
                    group,
                    1,
                    1,
                ))?)
            }
        };
        Ok(Self {
            weights,
            n_heads: config.n_heads,
            n_kv_heads: config.n_kv_heads,
            head_dim: config.head_dim,
            position,
        })
    }

    /// `hidden`: `[tokens, d_model]` in and out.
    pub(crate) fn forward(
        &self,
        part: Part,
        hidden: &Tensor,
        kv: &mut LayerKv,
        spans: &[Span],
    ) -> Result<Tensor> {
        let attended = match part.has_attention() {
            true => &self.attention(hidden, kv, spans)?,
            false => hidden,
        };
        match part.has_mlp() {
            true => self.mlp(attended),
            false => Ok(attended.clone()),
        }
    }

    fn attention(&self, hidden: &Tensor, kv: &LayerKv, spans: &[Span]) -> Result<Tensor> {
        let weights = &self.weights;
        let normed = norm(&weights.attention_norm, hidden)?;
        let tokens = hidden.dim(0)?;
        let q = linear(&weights.q, &normed)?.reshape((tokens, self.n_heads, self.head_dim))?;
        let q = self.rotate(&q, spans)?;
        let (k, v) = self.project_kv(&normed, spans)?;
        self.write(&k, &v, kv, spans)?;
        let decode = spans.iter().all(|span| span.len == 1) && kv.capacity > 0;
        let attended = if decode {
            self.attend_tokens(&q, kv, spans)?
        } else {
            self.attend_spans(&q, &k, &v, kv, spans)?
        };
        Ok((hidden + linear(&weights.o, &attended)?)?)
    }

    fn mlp(&self, hidden: &Tensor) -> Result<Tensor> {
        let normed = norm(&self.weights.mlp_norm, hidden)?;
        let out = match &self.weights.mlp {
            Mlp::SwiGlu { gate, up, down } => {
                let gated = candle_nn::ops::silu(&linear(gate, &normed)?)?;
                linear(down, &(gated * linear(up, &normed)?)?)?
            }
            Mlp::Gelu { up, down } => linear(down, &linear(up, &normed)?.gelu()?)?,
        };
        Ok((hidden + out)?)
    }

    pub(crate) fn fill_kv(&self, hidden: &Tensor, kv: &mut LayerKv, spans: &[Span]) -> Result<()> {
        let normed = norm(&self.weights.attention_norm, hidden)?;
        let (k, v) = self.project_kv(&normed, spans)?;
        self.write(&k, &v, kv, spans)
    }

    /// Keys (rotated) and values: `[tokens, n_kv_heads, head_dim]`.
    fn project_kv(&self, normed: &Tensor, spans: &[Span]) -> Result<(Tensor, Tensor)> {
        let shape = (normed.dim(0)?, self.n_kv_heads, self.head_dim);
        let k = linear(&self.weights.k, normed)?.reshape(shape)?;
        let v = linear(&self.weights.v, normed)?.reshape(shape)?;
        Ok((self.rotate(&k, spans)?, v))
    }

    /// RoPE on `x`: `[tokens, heads, head_dim]`, channel `i` paired with `i + head_dim / 2`.
    fn rotate(&self, x: &Tensor, spans: &[Span]) -> Result<Tensor> {
        let Position::Rope(inv_freq) = &self.position else {
            return Ok(x.clone());
        };
        let positions: Vec<f32> = positions(spans).map(|position| position as f32).collect();
        let angles = Tensor::new(positions, x.device())?
            .unsqueeze(1)?
            .broadcast_mul(&inv_freq.unsqueeze(0)?)?;
        let cos = angles.cos()?.to_dtype(x.dtype())?;
        let sin = angles.sin()?.to_dtype(x.dtype())?;
        // candle's kernel takes [batch, heads, seq, head_dim]; a batch of one with tokens as the sequence.
        let x = x.transpose(0, 1)?.contiguous()?.unsqueeze(0)?;
        let rotated = candle_nn::rotary_emb::rope(&x, &cos, &sin)?;
        Ok(rotated.squeeze(0)?.transpose(0, 1)?.contiguous()?)
    }

    /// Writes `[tokens, n_kv_heads, head_dim]` to each span's absolute positions.
    fn write(&self, k: &Tensor, v: &Tensor, kv: &LayerKv, spans: &[Span]) -> Result<()> {
        let Storage::Device { k: keys, v: values } = &kv.storage else {
            unreachable!("a composed layer is given the cache that its model made");
        };
        if kv.capacity == 0 {
            return Ok(());
        }
        let mut first = 0;
        for span in spans {
            for (store, fresh) in [(keys, k), (values, v)] {
                let fresh = fresh.narrow(0, first, span.len)?.transpose(0, 1)?;
                store
                    .get(span.row)?
                    .slice_set(&fresh.contiguous()?, 1, span.start)?;
            }
            first += span.len;
        }
        Ok(())
    }

    /// One new token per row, all rows in one batched product. `q`: `[rows, n_heads, head_dim]`; the result
    /// is `[rows, n_heads * head_dim]`.
    fn attend_tokens(&self, q: &Tensor, kv: &LayerKv, spans: &[Span]) -> Result<Tensor> {
        let Storage::Device { k, v } = &kv.storage else {
            unreachable!("a composed layer is given the cache that its model made");
        };
        let longest = spans.iter().map(|span| span.start + 1).max().unwrap_or(1);
        let select = |store: &Tensor| -> Result<Tensor> {
            let all_rows = spans.len() == store.dim(0)?
                && spans
                    .iter()
                    .enumerate()
                    .all(|(index, span)| span.row == index);
            let rows = if all_rows {
                store.clone()
            } else {
                let rows: Vec<u32> = spans.iter().map(|span| span.row as u32).collect();
                store.index_select(&Tensor::new(rows, store.device())?, 0)?
            };
            Ok(rows.narrow(2, 0, longest)?.contiguous()?)
        };
        let (k, v) = (select(k)?, select(v)?);
        let rows = spans.len();
        let group = self.n_heads / self.n_kv_heads;
        let q = q.reshape((rows, self.n_kv_heads, group, self.head_dim))?;
        let scores = (q.matmul(&k.t()?)? * self.scale())?.to_dtype(DType::F32)?;
        // [rows, n_kv_heads, group, longest] as [rows, n_kv_heads, group, 1, longest] for the slopes.
        let scores = scores.unsqueeze(3)?;
        let queries: Vec<(usize, usize)> = spans
            .iter()
            .map(|span| (span.row, span.start + 1))
            .collect();
        let bias = kv.mask(&queries, longest, q.device())?;
        let bias = bias.reshape((rows, 1, 1, 1, longest))?;
        let scores = self.add_alibi(&scores, longest)?.broadcast_add(&bias)?;
        let weights = candle_nn::ops::softmax_last_dim(&scores)?
            .squeeze(3)?
            .to_dtype(v.dtype())?;
        Ok(weights
            .matmul(&v)?
            .reshape((rows, self.n_heads * self.head_dim))?)
    }

    /// Whole spans, one at a time, each attending to its row up to itself.
    fn attend_spans(
        &self,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        kv: &LayerKv,
        spans: &[Span],
    ) -> Result<Tensor> {
        let group = self.n_heads / self.n_kv_heads;
        let mut outputs = Vec::with_capacity(spans.len());
        let mut first = 0;
        for span in spans {
            let len = span.start + span.len;
            let (k, v) = if kv.capacity == 0 {
                let fresh =
                    |x: &Tensor| x.narrow(0, first, span.len)?.transpose(0, 1)?.contiguous();
                (fresh(k)?, fresh(v)?)
            } else {
                let Storage::Device { k, v } = &kv.storage else {
                    unreachable!("a composed layer is given the cache that its model made");
                };
                let row = |x: &Tensor| x.get(span.row)?.narrow(1, 0, len)?.contiguous();
                (row(k)?, row(v)?)
            };
            // [span, n_kv_heads, group, head_dim] -> [n_kv_heads, group * span, head_dim]
            let q = q
                .narrow(0, first, span.len)?
                .reshape((span.len, self.n_kv_heads, group, self.head_dim))?
                .permute((1, 2, 0, 3))?
                .reshape((self.n_kv_heads, group * span.len, self.head_dim))?;
            let scores = (q.matmul(&k.t()?)? * self.scale())?
                .to_dtype(DType::F32)?
                .reshape((1, self.n_kv_heads, group, span.len, len))?;
            let queries: Vec<(usize, usize)> = (0..span.len)
                .map(|i| (span.row, span.start + i + 1))
                .collect();
            let bias = kv.mask(&queries, len, q.device())?;
            let bias = bias.reshape((1, 1, 1, span.len, len))?;
            let scores = self.add_alibi(&scores, len)?.broadcast_add(&bias)?;
            let weights = candle_nn::ops::softmax_last_dim(&scores)?
                .reshape((self.n_kv_heads, group * span.len, len))?
                .to_dtype(v.dtype())?;
            outputs.push(
                weights
                    .matmul(&v)?
                    .reshape((self.n_kv_heads, group, span.len, self.head_dim))?
                    .permute((2, 0, 1, 3))?
                    .reshape((span.len, self.n_heads * self.head_dim))?,
            );
            first += span.len;
        }
        Ok(Tensor::cat(&outputs, 0)?)
    }

    /// Adds `slope * key position` to `scores`: `[_, n_kv_heads, group, _, len]`. The distance form differs by
    /// a constant per query, which softmax does not see.
    fn add_alibi(&self, scores: &Tensor, len: usize) -> Result<Tensor> {
        let Position::Alibi(slopes) = &self.position else {
            return Ok(scores.clone());
        };
        let keys = Tensor::arange(0f32, len as f32, scores.device())?.reshape((1, 1, 1, len))?;
        let bias = slopes.broadcast_mul(&keys)?.unsqueeze(0)?;
        Ok(scores.broadcast_add(&bias)?)
    }

    fn scale(&self) -> f64 {
        1.0 / (self.head_dim as f64).sqrt()
    }
}

/// `x`: `[tokens, in]` to `[tokens, out]`.
fn linear(linear: &Linear, x: &Tensor) -> Result<Tensor> {
    let y = x.matmul(&linear.weight.t()?)?;
    match &linear.bias {
        None => Ok(y),
        Some(bias) => Ok(y.broadcast_add(bias)?),
    }
}

/// Normalises `[tokens, d_model]` over the last dimension.
pub(crate) fn norm(norm: &Norm, x: &Tensor) -> Result<Tensor> {
    match norm {
        Norm::Rms { weight, eps } => Ok(candle_nn::ops::rms_norm(x, weight, *eps as f32)?),
        Norm::Layer { weight, bias, eps } => {
            // In f32 with the mean taken first: candle's fused kernel uses the difference of squares,
            // which loses digits when the mean is large.
            let x32 = x.to_dtype(DType::F32)?;
            let centred = x32.broadcast_sub(&x32.mean_keepdim(D::Minus1)?)?;
            let variance = centred.sqr()?.mean_keepdim(D::Minus1)?;
            let normed = centred.broadcast_div(&(variance + *eps)?.sqrt()?)?;
            Ok(normed
                .to_dtype(x.dtype())?
                .broadcast_mul(weight)?
                .broadcast_add(bias)?)
        }
    }
}
