//! The decoder layer composed from candle operations: any device, any dtype, and the form that the fused
//! layers are tested against.

use crate::batch::Span;
use crate::cache_layer::{LayerKv, Storage};
use crate::config::{ModelConfig, PositionScheme};
use crate::decoder::Part;
use crate::error::Result;
use crate::tables::SpanTables;
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
        tables: &mut SpanTables,
        spans: &[Span],
    ) -> Result<Tensor> {
        let attended = match part.has_attention() {
            true => &self.attention(hidden, kv, tables, spans)?,
            false => hidden,
        };
        match part.has_mlp() {
            true => self.mlp(attended),
            false => Ok(attended.clone()),
        }
    }

    fn attention(
        &self,
        hidden: &Tensor,
        kv: &LayerKv,
        tables: &mut SpanTables,
        spans: &[Span],
    ) -> Result<Tensor> {
        let weights = &self.weights;
        let normed = norm(&weights.attention_norm, hidden)?;
        let tokens = hidden.dim(0)?;
        let q = linear(&weights.q, &normed)?.reshape((tokens, self.n_heads, self.head_dim))?;
        let q = self.rotate(&q, tables)?;
        let (k, v) = self.project_kv(&normed, tables)?;
        self.write(&k, &v, kv, spans)?;
        let decode = spans.iter().all(|span| span.len == 1) && kv.capacity > 0;
        let attended = if decode {
            self.attend_tokens(&q, kv, tables, spans)?
        } else {
            self.attend_spans((&q, &k, &v), kv, tables, spans)?
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

    pub(crate) fn fill_kv(
        &self,
        hidden: &Tensor,
        kv: &mut LayerKv,
        tables: &mut SpanTables,
        spans: &[Span],
    ) -> Result<()> {
        let normed = norm(&self.weights.attention_norm, hidden)?;
        let (k, v) = self.project_kv(&normed, tables)?;
        self.write(&k, &v, kv, spans)
    }

    /// Keys (rotated) and values: `[tokens, n_kv_heads, head_dim]`.
    fn project_kv(&self, normed: &Tensor, tables: &mut SpanTables) -> Result<(Tensor, Tensor)> {
        let shape = (normed.dim(0)?, self.n_kv_heads, self.head_dim);
        let k = linear(&self.weights.k, normed)?.reshape(shape)?;
        let v = linear(&self.weights.v, normed)?.reshape(shape)?;
        Ok((self.rotate(&k, tables)?, v))
    }

    /// RoPE on `x`: `[tokens, heads, head_dim]`, channel `i` paired with `i + head_dim / 2`.
    fn rotate(&self, x: &Tensor, tables: &mut SpanTables) -> Result<Tensor> {
        let Position::Rope(inv_freq) = &self.position else {
            return Ok(x.clone());
        };
        let (cos, sin) = tables.rope(inv_freq, x.dtype())?;
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
    fn attend_tokens(
        &self,
        q: &Tensor,
        kv: &LayerKv,
        tables: &mut SpanTables,
        spans: &[Span],
    ) -> Result<Tensor> {
        let Storage::Device { k, v } = &kv.storage else {
            unreachable!("a composed layer is given the cache that its model made");
        };
        let longest = spans.iter().map(|span| span.start + 1).max().unwrap_or(1);
        let all_rows = spans.len() == k.dim(0)?
            && spans
                .iter()
                .enumerate()
                .all(|(index, span)| span.row == index);
        let mut select = |store: &Tensor| -> Result<Tensor> {
            let rows = match all_rows {
                true => store.clone(),
                false => store.index_select(&tables.rows(store.device())?, 0)?,
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
        let mask = tables.token_mask(kv, q.device())?;
        let mask = mask.reshape((rows, 1, 1, 1, longest))?;
        let scores = self.add_alibi(&scores, longest, tables)?;
        let scores = scores.broadcast_add(&mask)?;
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
        (q, k, v): (&Tensor, &Tensor, &Tensor),
        kv: &LayerKv,
        tables: &mut SpanTables,
        spans: &[Span],
    ) -> Result<Tensor> {
        let group = self.n_heads / self.n_kv_heads;
        let mut outputs = Vec::with_capacity(spans.len());
        let mut first = 0;
        for &span in spans {
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
            let mask = tables.span_mask(span, kv, q.device())?;
            let scores = self.add_alibi(&scores, len, tables)?;
            let scores = scores.broadcast_add(&mask)?;
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

    /// Adds the bias of `len` keys to `scores`: `[_, n_kv_heads, group, _, len]`.
    fn add_alibi(&self, scores: &Tensor, len: usize, tables: &mut SpanTables) -> Result<Tensor> {
        let Position::Alibi(slopes) = &self.position else {
            return Ok(scores.clone());
        };
        let bias = tables.alibi(slopes)?.narrow(4, 0, len)?;
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
