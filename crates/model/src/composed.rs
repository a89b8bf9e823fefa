//! The decoder layer composed from candle operations: any device, any dtype, and the form that the fused
//! layers are tested against.

use crate::batch::Span;
use crate::cache_layer::{LayerKv, Storage};
use crate::causal_lm::Part;
use crate::config::{Activation, ModelConfig, PositionScheme};
use crate::error::Result;
use crate::ops;
use crate::rope::Rope;
use crate::tables::SpanTables;
use crate::weights::{LayerWeights, Linear, Norm, Norms};
use candle_core::{D, DType, Device, Tensor};
use std::ops::Range;

pub(crate) struct ComposedLayer {
    weights: LayerWeights<Tensor>,
    n_heads: usize,
    n_kv_heads: usize,
    head_dim: usize,
    position: Position,
    score_scale: f64,
    score_cap: Option<f64>,
    activation: Activation,
    parallel: bool,
}

enum Position {
    /// With its place among the model's schemes.
    Rope(usize, Rope),
    /// `[n_kv_heads, group, 1, 1]`, f32: a slope per query head.
    Alibi(Tensor),
    /// The embedding knows them.
    Embedded,
}

impl ComposedLayer {
    pub(crate) fn new(
        weights: LayerWeights<Tensor>,
        config: &ModelConfig,
        index: usize,
        device: &Device,
    ) -> Result<Self> {
        let group = config.n_heads / config.n_kv_heads;
        let scheme = config.layers[index].positions;
        let position = match &config.positions[scheme] {
            PositionScheme::Rope(rope) => Position::Rope(scheme, rope.clone()),
            PositionScheme::Alibi { slopes } => {
                Position::Alibi(Tensor::new(slopes.as_slice(), device)?.reshape((
                    config.n_kv_heads,
                    group,
                    1,
                    1,
                ))?)
            }
            PositionScheme::Learned => Position::Embedded,
        };
        Ok(Self {
            weights,
            n_heads: config.n_heads,
            n_kv_heads: config.n_kv_heads,
            head_dim: config.head_dim,
            position,
            score_scale: config.score_scale,
            score_cap: config.score_cap,
            activation: config.activation,
            parallel: config.parallel,
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
        let weights = &self.weights;
        let mut state = hidden.clone();
        if part.has_attention() {
            let output = self.attention(hidden, kv, tables, spans)?;
            state = join(&weights.attention_norms, &state, output)?;
        }
        if part.has_mlp() {
            let input = if self.parallel { hidden } else { &state };
            let output = self.mlp(input)?;
            state = join(&weights.mlp_norms, &state, output)?;
        }
        Ok(state)
    }

    /// What attention adds to `hidden`: `[tokens, d_model]`.
    fn attention(
        &self,
        hidden: &Tensor,
        kv: &LayerKv,
        tables: &mut SpanTables,
        spans: &[Span],
    ) -> Result<Tensor> {
        let weights = &self.weights.attention;
        let normed = before(&self.weights.attention_norms, hidden)?;
        let q = linear(&weights.q, &normed)?;
        let q = self.rotate(
            &self.heads(&q, weights.q_norm.as_ref(), self.n_heads)?,
            tables,
        )?;
        let (k, v) = self.project_kv(&normed, tables)?;
        self.write(&k, &v, kv, tables, spans)?;
        let attended = if single_tokens(spans) && kv.capacity > 0 {
            self.attend_tokens(&q, kv, tables, spans)?
        } else {
            self.attend_spans((&q, &k, &v), kv, tables, spans)?
        };
        linear(&weights.o, &attended)
    }

    /// What the MLP adds to `hidden`: `[tokens, d_model]`.
    fn mlp(&self, hidden: &Tensor) -> Result<Tensor> {
        let weights = &self.weights.mlp;
        let normed = before(&self.weights.mlp_norms, hidden)?;
        let up = linear(&weights.up, &normed)?;
        let inner = match &weights.gate {
            Some(gate) => ops::zip(&self.activate(&linear(gate, &normed)?)?, &up, |a, b| a * b)?,
            None => self.activate(&up)?,
        };
        linear(&weights.down, &inner)
    }

    fn activate(&self, x: &Tensor) -> Result<Tensor> {
        let activation = match self.activation {
            Activation::Silu => candle_nn::ops::silu,
            Activation::Gelu => Tensor::gelu_erf,
            Activation::GeluTanh => Tensor::gelu,
            Activation::Relu => Tensor::relu,
        };
        Ok(ops::map(x, activation)?)
    }

    pub(crate) fn fill_kv(
        &self,
        hidden: &Tensor,
        kv: &mut LayerKv,
        tables: &mut SpanTables,
        spans: &[Span],
    ) -> Result<()> {
        let normed = before(&self.weights.attention_norms, hidden)?;
        let (k, v) = self.project_kv(&normed, tables)?;
        self.write(&k, &v, kv, tables, spans)
    }

    /// Keys (rotated) and values: `[tokens, n_kv_heads, head_dim]`.
    fn project_kv(&self, normed: &Tensor, tables: &mut SpanTables) -> Result<(Tensor, Tensor)> {
        let weights = &self.weights.attention;
        let k = linear(&weights.k, normed)?;
        let k = self.heads(&k, weights.k_norm.as_ref(), self.n_kv_heads)?;
        let v = linear(&weights.v, normed)?;
        let v = self.heads(&v, None, self.n_kv_heads)?;
        Ok((self.rotate(&k, tables)?, v))
    }

    /// `x`: `[tokens, heads * head_dim]`, normalised over as many channels as the norm has weights, to `[tokens, heads, head_dim]`.
    fn heads(&self, x: &Tensor, over: Option<&Norm>, heads: usize) -> Result<Tensor> {
        let shape = (x.dim(0)?, heads, self.head_dim);
        let Some(over) = over else {
            return Ok(x.reshape(shape)?);
        };
        let width = over.width();
        let x = norm(over, &x.reshape((x.elem_count() / width, width))?)?;
        Ok(x.reshape(shape)?)
    }

    /// RoPE on `x`: `[tokens, heads, head_dim]`, channel `i` paired with `i + pairs`.
    fn rotate(&self, x: &Tensor, tables: &mut SpanTables) -> Result<Tensor> {
        let Position::Rope(scheme, rope) = &self.position else {
            return Ok(x.clone());
        };
        let (cos, sin) = tables.rope(*scheme, rope, x.dtype(), x.device())?;
        let turns = 2 * rope.inv_freq.len();
        // candle's kernel takes [batch, tokens, heads, head_dim].
        let turned = ops::packed(&x.narrow(2, 0, turns)?)?.unsqueeze(0)?;
        let turned = ops::fused(|| candle_nn::rotary_emb::rope_thd(&turned, &cos, &sin))?;
        let turned = turned.squeeze(0)?;
        match self.head_dim - turns {
            0 => Ok(turned),
            rest => Ok(ops::cat(&[turned, x.narrow(2, turns, rest)?], 2)?),
        }
    }

    /// Writes `[tokens, n_kv_heads, head_dim]` to each span's absolute positions.
    fn write(
        &self,
        k: &Tensor,
        v: &Tensor,
        kv: &LayerKv,
        tables: &mut SpanTables,
        spans: &[Span],
    ) -> Result<()> {
        let Storage::Device { k: keys, v: values } = &kv.storage else {
            unreachable!("a composed layer is given the cache that its model made");
        };
        if kv.capacity == 0 {
            return Ok(());
        }
        for (store, fresh) in [(keys, k), (values, v)] {
            let fresh = ops::cast(fresh, store.dtype())?;
            match tables.are_one_each() {
                true => write_tokens(store, &fresh, tables)?,
                false => write_spans(store, &fresh, spans)?,
            }
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
        let first = spans.iter().map(|span| kv.first_seen(span.start));
        let first = first.min().unwrap_or(0);
        let seen = longest - first;
        let n_rows = k.dim(0)?;
        // The products read the cache where it lies.
        let mut select = |store: &Tensor| -> Result<Tensor> {
            let rows = match tables.rows(n_rows, store.device())? {
                None => store.clone(),
                Some(rows) => ops::rows(store, &rows)?,
            };
            Ok(ops::cast(&rows.narrow(2, first, seen)?, q.dtype())?)
        };
        let (k, v) = (select(k)?, select(v)?);
        let rows = spans.len();
        let group = self.n_heads / self.n_kv_heads;
        let q = q.reshape((rows, self.n_kv_heads, group, self.head_dim))?;
        // [rows, n_kv_heads, group, seen] as [rows, n_kv_heads, group, 1, seen] for the slopes.
        let scores = self.scores(&q, &k)?.unsqueeze(3)?;
        let mut scores = self.add_alibi(&scores, first..longest, tables)?;
        if let Some(mask) = tables.token_mask(kv, q.device())? {
            let mask = mask.narrow(1, first, seen)?;
            let mask = mask.unsqueeze(1)?.unsqueeze(1)?.unsqueeze(1)?;
            scores = ops::zip(&scores, &mask, Tensor::broadcast_add)?;
        }
        let weights = ops::fused(|| candle_nn::ops::softmax_last_dim(&scores))?;
        let weights = ops::cast(&weights.squeeze(3)?, v.dtype())?;
        let attended = ops::product(&weights, &v)?;
        Ok(attended.reshape((rows, self.n_heads * self.head_dim))?)
    }

    /// Whole spans, some queries at a time, each attending to its row up to itself.
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
        for (span, place) in spans.iter().flat_map(pieces) {
            let len = span.start + span.len;
            let from = kv.first_seen(span.start);
            let seen = len - from;
            let Storage::Device { k: keys, v: values } = &kv.storage else {
                unreachable!("a composed layer is given the cache that its model made");
            };
            let (k, v) = if kv.capacity == 0 {
                // The whole prompt stands here, from its first token on. It is rounded as what is kept would be.
                let begin = first + from - place;
                let fresh = |x: &Tensor| -> Result<Tensor> {
                    let x = ops::packed(&x.narrow(0, begin, seen)?.transpose(0, 1)?)?;
                    Ok(ops::cast(&ops::cast(&x, keys.dtype())?, q.dtype())?)
                };
                (fresh(k)?, fresh(v)?)
            } else {
                let row = |x: &Tensor| -> Result<Tensor> {
                    let x = x.get(span.row)?.narrow(1, from, seen)?;
                    Ok(ops::cast(&x, q.dtype())?)
                };
                (row(keys)?, row(values)?)
            };
            // [span, n_kv_heads, group, head_dim] -> [n_kv_heads, group * span, head_dim]
            let q = q
                .narrow(0, first, span.len)?
                .reshape((span.len, self.n_kv_heads, group, self.head_dim))?
                .permute((1, 2, 0, 3))?;
            let q = ops::reshape(&q, (self.n_kv_heads, group * span.len, self.head_dim))?;
            let scores =
                self.scores(&q, &k)?
                    .reshape((1, self.n_kv_heads, group, span.len, seen))?;
            let mask = tables.span_mask(span, kv, q.device())?;
            let mask = mask.narrow(1, from, seen)?;
            let scores = self.add_alibi(&scores, from..len, tables)?;
            let scores = ops::zip(&scores, &mask, Tensor::broadcast_add)?;
            let weights = ops::fused(|| candle_nn::ops::softmax_last_dim(&scores))?.reshape((
                self.n_kv_heads,
                group * span.len,
                seen,
            ))?;
            let attended = ops::product(&ops::cast(&weights, v.dtype())?, &v)?
                .reshape((self.n_kv_heads, group, span.len, self.head_dim))?
                .permute((2, 0, 1, 3))?;
            outputs.push(ops::reshape(
                &attended,
                (span.len, self.n_heads * self.head_dim),
            )?);
            first += span.len;
        }
        Ok(ops::cat(&outputs, 0)?)
    }

    /// Scaled and capped products of queries and keys, in f32: `[_, queries, keys]`.
    fn scores(&self, q: &Tensor, k: &Tensor) -> Result<Tensor> {
        let scores = ops::map(&ops::product(q, &k.t()?)?, |x| x * self.score_scale)?;
        let scores = ops::cast(&scores, DType::F32)?;
        match self.score_cap {
            None => Ok(scores),
            Some(cap) => soft_cap(&scores, cap),
        }
    }

    /// Adds the bias of `keys` to `scores`: `[_, n_kv_heads, group, _, keys.len()]`.
    fn add_alibi(
        &self,
        scores: &Tensor,
        keys: Range<usize>,
        tables: &mut SpanTables,
    ) -> Result<Tensor> {
        let Position::Alibi(slopes) = &self.position else {
            return Ok(scores.clone());
        };
        let bias = tables.alibi(slopes)?.narrow(4, keys.start, keys.len())?;
        Ok(ops::zip(scores, &bias, Tensor::broadcast_add)?)
    }
}

/// Queries whose scores are there at once.
pub(crate) const QUERIES: usize = 256;

/// A span in parts of so many queries, each with its place in the span.
fn pieces(span: &Span) -> impl Iterator<Item = (Span, usize)> + use<> {
    let span = *span;
    (0..span.len).step_by(QUERIES).map(move |place| {
        let piece = Span {
            row: span.row,
            start: span.start + place,
            len: QUERIES.min(span.len - place),
        };
        (piece, place)
    })
}

/// Whether each row goes on by one token.
fn single_tokens(spans: &[Span]) -> bool {
    spans.iter().all(|span| span.len == 1)
}

/// One token for some of the rows, in one kernel; `fresh`: `[spans, n_kv_heads, head_dim]`, `store`: `[rows, n_kv_heads,
/// capacity, head_dim]`.
fn write_tokens(store: &Tensor, fresh: &Tensor, tables: &mut SpanTables) -> Result<()> {
    let (n_rows, heads, _, head_dim) = store.dims4()?;
    let fresh = match tables.sources(n_rows, store.device())? {
        None => fresh.clone(),
        Some(sources) => ops::rows(fresh, &sources)?,
    };
    let slots = tables.slots((n_rows, heads, head_dim), store.device())?;
    Ok(ops::scatter(store, &slots, &fresh.unsqueeze(2)?, 2)?)
}

/// Spans one by one; `fresh`: `[tokens, n_kv_heads, head_dim]`.
fn write_spans(store: &Tensor, fresh: &Tensor, spans: &[Span]) -> Result<()> {
    let mut first = 0;
    for span in spans {
        let fresh = fresh.narrow(0, first, span.len)?.transpose(0, 1)?;
        ops::write(&store.get(span.row)?, &ops::packed(&fresh)?, 1, span.start)?;
        first += span.len;
    }
    Ok(())
}

/// `cap * tanh(x / cap)`.
pub(crate) fn soft_cap(x: &Tensor, cap: f64) -> Result<Tensor> {
    let x = ops::map(x, |x| x / cap)?;
    Ok(ops::map(&ops::map(&x, Tensor::tanh)?, |x| x * cap)?)
}

/// What a sub-layer reads.
fn before(norms: &Norms, x: &Tensor) -> Result<Tensor> {
    match &norms.before {
        None => Ok(x.clone()),
        Some(before) => norm(before, x),
    }
}

/// Adds what a sub-layer gave to the state in front of it.
fn join(norms: &Norms, state: &Tensor, output: Tensor) -> Result<Tensor> {
    let output = match &norms.after {
        None => output,
        Some(after) => norm(after, &output)?,
    };
    let sum = ops::zip(state, &output, |a, b| a + b)?;
    match &norms.sum {
        None => Ok(sum),
        Some(over) => norm(over, &sum),
    }
}

/// `x`: `[tokens, in]` to `[tokens, out]`.
pub(crate) fn linear(linear: &Linear<Tensor>, x: &Tensor) -> Result<Tensor> {
    let y = ops::product(x, &linear.weight.t()?)?;
    match &linear.bias {
        None => Ok(y),
        Some(bias) => Ok(ops::zip(&y, bias, Tensor::broadcast_add)?),
    }
}

/// Normalises `[_, width]` over the last dimension.
pub(crate) fn norm(norm: &Norm, x: &Tensor) -> Result<Tensor> {
    match norm {
        Norm::Rms { weight, eps, .. } => {
            let wide = ops::cast(x, weight.dtype())?;
            let normed = ops::fused(|| candle_nn::ops::rms_norm(&wide, weight, *eps as f32))?;
            Ok(ops::cast(&normed, x.dtype())?)
        }
        Norm::Layer {
            weight, bias, eps, ..
        } => {
            // In f32 with the mean taken first: candle's fused kernel uses the difference of squares,
            // which loses digits when the mean is large.
            let x32 = ops::cast(x, DType::F32)?;
            let centred = ops::zip(&x32, &mean(&x32)?, Tensor::broadcast_sub)?;
            let variance = mean(&ops::map(&centred, Tensor::sqr)?)?;
            let variance = ops::map(&variance, |variance| variance + *eps)?;
            let deviation = ops::map(&variance, Tensor::sqrt)?;
            let normed = ops::zip(&centred, &deviation, Tensor::broadcast_div)?;
            let normed = ops::cast(&normed, x.dtype())?;
            let scaled = ops::zip(&normed, weight, Tensor::broadcast_mul)?;
            Ok(ops::zip(&scaled, bias, Tensor::broadcast_add)?)
        }
    }
}

/// Of the last dimension: `[_, width]` to `[_, 1]`.
fn mean(x: &Tensor) -> Result<Tensor> {
    let scale = 1.0 / x.dim(D::Minus1)? as f64;
    let sum = ops::reduce(x, |x| x.sum_keepdim(D::Minus1))?;
    Ok(ops::map(&sum, |sum| sum * scale)?)
}
