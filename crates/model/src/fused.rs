//! The decoder layer as one piece of plain f32 code for the CPU. Same arithmetic as
//! [`crate::composed`], without its allocations, transposes and copies.

use crate::batch::Span;
use crate::cache_layer::{LayerKv, Storage};
use crate::config::{ModelConfig, PositionScheme};
use crate::decoder::Part;
use crate::error::Result;
use crate::kernels::{self, KeysValues, Packed};
use crate::tables::SpanTables;
use crate::weights::{Frame, LayerWeights, Linear, Mlp, Norm};
use candle_core::{Device, Tensor};
use rayon::prelude::*;

/// Query-key products below which attention stays on one thread.
const PARALLEL_ATTENTION: usize = 1 << 17;

pub(crate) struct FusedLayer {
    attention_norm: FusedNorm,
    /// `[q_width, d_model]`
    q: FusedLinear,
    /// K and V stacked: `[2 kv_width, d_model]`. Apart from Q, since a skipped layer may need them alone.
    kv: FusedLinear,
    o: FusedLinear,
    mlp_norm: FusedNorm,
    /// Gate and up stacked, or BLOOM's first projection.
    up: FusedLinear,
    gated: bool,
    down: FusedLinear,
    heads: Heads,
}

#[derive(Clone)]
struct Heads {
    n_heads: usize,
    n_kv_heads: usize,
    head_dim: usize,
    /// `[head_dim / 2]`, empty without RoPE.
    inv_freq: Vec<f32>,
    /// `[n_heads]`, empty without ALiBi.
    slopes: Vec<f32>,
}

struct FusedLinear {
    weight: Packed,
    bias: Option<Vec<f32>>,
}

enum FusedNorm {
    Rms {
        weight: Vec<f32>,
        eps: f32,
    },
    Layer {
        weight: Vec<f32>,
        bias: Vec<f32>,
        eps: f32,
    },
}

/// Final norm and LM head.
pub(crate) struct FusedHead {
    norm: FusedNorm,
    weight: FusedLinear,
}

impl FusedLayer {
    pub(crate) fn new(weights: &LayerWeights, config: &ModelConfig) -> Result<Self> {
        let (up, gated, down) = match &weights.mlp {
            Mlp::SwiGlu { gate, up, down } => (FusedLinear::stack(&[gate, up])?, true, down),
            Mlp::Gelu { up, down } => (FusedLinear::stack(&[up])?, false, down),
        };
        let (inv_freq, slopes) = match &config.positions {
            PositionScheme::Rope { inv_freq } => (inv_freq.clone(), Vec::new()),
            PositionScheme::Alibi { slopes } => (Vec::new(), slopes.clone()),
        };
        Ok(Self {
            attention_norm: FusedNorm::new(&weights.attention_norm)?,
            q: FusedLinear::stack(&[&weights.q])?,
            kv: FusedLinear::stack(&[&weights.k, &weights.v])?,
            o: FusedLinear::stack(&[&weights.o])?,
            mlp_norm: FusedNorm::new(&weights.mlp_norm)?,
            up,
            gated,
            down: FusedLinear::stack(&[down])?,
            heads: Heads {
                n_heads: config.n_heads,
                n_kv_heads: config.n_kv_heads,
                head_dim: config.head_dim,
                inv_freq,
                slopes,
            },
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
        let shape = hidden.shape().clone();
        let mut hidden = hidden.flatten_all()?.to_vec1::<f32>()?;
        let mut normed = vec![0.0; hidden.len()];
        if part.has_attention() {
            self.attention(&mut hidden, &mut normed, kv, tables, spans)?;
        }
        if part.has_mlp() {
            self.mlp(&mut hidden, &mut normed);
        }
        Ok(Tensor::from_vec(hidden, shape, &Device::Cpu)?)
    }

    /// Adds attention to `hidden`: `[tokens, d_model]`; `normed` is scratch of the same size.
    fn attention(
        &self,
        hidden: &mut [f32],
        normed: &mut [f32],
        kv: &mut LayerKv,
        tables: &mut SpanTables,
        spans: &[Span],
    ) -> Result<()> {
        self.attention_norm.apply(hidden, normed);
        let mut q = self.q.apply(normed);
        let heads = &self.heads;
        heads.rotate(&mut q, heads.q_width(), heads.n_heads, tables);
        let fresh = self.project_kv(normed, tables);
        let attended = if kv.capacity > 0 {
            self.heads.write(&fresh, kv, spans);
            self.heads.attend(&q, kv, spans)
        } else {
            // No later step reads this layer: keys and values live for this call only.
            let (mut scratch, spans) = self.heads.scratch(spans)?;
            self.heads.write(&fresh, &mut scratch, &spans);
            self.heads.attend(&q, &scratch, &spans)
        };
        add(hidden, &self.o.apply(&attended));
        Ok(())
    }

    /// Adds the MLP to `hidden`: `[tokens, d_model]`; `normed` is scratch of the same size.
    fn mlp(&self, hidden: &mut [f32], normed: &mut [f32]) {
        self.mlp_norm.apply(hidden, normed);
        let mut up = self.up.apply(normed);
        let inner = if self.gated {
            let width = self.up.out_width() / 2;
            let mut inner = vec![0.0; up.len() / 2];
            kernels::swiglu(&up, width, &mut inner);
            inner
        } else {
            kernels::gelu(&mut up);
            up
        };
        add(hidden, &self.down.apply(&inner));
    }

    /// Keys and values only.
    pub(crate) fn fill_kv(
        &self,
        hidden: &Tensor,
        kv: &mut LayerKv,
        tables: &mut SpanTables,
        spans: &[Span],
    ) -> Result<()> {
        if kv.capacity == 0 {
            return Ok(());
        }
        let hidden = hidden.flatten_all()?.to_vec1::<f32>()?;
        let mut normed = vec![0.0; hidden.len()];
        self.attention_norm.apply(&hidden, &mut normed);
        let fresh = self.project_kv(&normed, tables);
        self.heads.write(&fresh, kv, spans);
        Ok(())
    }

    /// Keys, rotated, and values: `[tokens, 2 kv_width]`.
    fn project_kv(&self, normed: &[f32], tables: &mut SpanTables) -> Vec<f32> {
        let mut fresh = self.kv.apply(normed);
        let heads = &self.heads;
        heads.rotate(&mut fresh, 2 * heads.kv_width(), heads.n_kv_heads, tables);
        fresh
    }
}

impl Heads {
    fn q_width(&self) -> usize {
        self.n_heads * self.head_dim
    }

    fn kv_width(&self) -> usize {
        self.n_kv_heads * self.head_dim
    }

    /// Rotates the first `heads` heads of each token of `x`: `[tokens, width]`.
    fn rotate(&self, x: &mut [f32], width: usize, heads: usize, tables: &mut SpanTables) {
        if self.inv_freq.is_empty() {
            return;
        }
        let half = self.inv_freq.len();
        let turns = tables.turns(&self.inv_freq);
        let turns = turns
            .cos
            .chunks_exact(half)
            .zip(turns.sin.chunks_exact(half));
        for (token, (cos, sin)) in x.chunks_exact_mut(width).zip(turns) {
            kernels::rotate(&mut token[..heads * self.head_dim], cos, sin);
        }
    }

    /// Writes keys and values, `fresh`: `[tokens, 2 kv_width]`, to the spans' slots.
    fn write(&self, fresh: &[f32], layer: &mut LayerKv, spans: &[Span]) {
        let capacity = layer.capacity;
        let Storage::Host { k, v } = &mut layer.storage else {
            unreachable!("a fused layer is given the cache that its model made");
        };
        let slots = spans
            .iter()
            .flat_map(|span| (span.start..span.start + span.len).map(|at| (span.row, at)));
        for (token, (row, position)) in fresh.chunks_exact(2 * self.kv_width()).zip(slots) {
            let (keys, values) = token.split_at(self.kv_width());
            for head in 0..self.n_kv_heads {
                let from = head * self.head_dim..(head + 1) * self.head_dim;
                let to = ((row * self.n_kv_heads + head) * capacity + position) * self.head_dim;
                k[to..to + self.head_dim].copy_from_slice(&keys[from.clone()]);
                v[to..to + self.head_dim].copy_from_slice(&values[from]);
            }
        }
    }

    /// Attention of every token; `q` and the result: `[tokens, q_width]`.
    fn attend(&self, q: &[f32], layer: &LayerKv, spans: &[Span]) -> Vec<f32> {
        let Storage::Host { k, v } = &layer.storage else {
            unreachable!("a fused layer is given the cache that its model made");
        };
        let q_width = self.q_width();
        let row_len = self.kv_width() * layer.capacity;
        let slots: Vec<(usize, usize)> = spans
            .iter()
            .flat_map(|span| (span.start..span.start + span.len).map(|at| (span.row, at)))
            .collect();
        let mut out = vec![0.0; slots.len() * q_width];
        let token = |scores: &mut Vec<f32>, index: usize, out: &mut [f32]| {
            let (row, position) = slots[index];
            let kv = KeysValues {
                k: &k[row * row_len..(row + 1) * row_len],
                v: &v[row * row_len..(row + 1) * row_len],
                stride: layer.capacity,
                len: position + 1,
                head_dim: self.head_dim,
                masked: layer.masked(row, position + 1),
            };
            scores.resize(layer.capacity, 0.0);
            kernels::attend(
                &q[index * q_width..(index + 1) * q_width],
                kv,
                self.n_heads / self.n_kv_heads,
                &self.slopes,
                scores,
                out,
            );
        };
        let products: usize = slots.iter().map(|(_, position)| position * q_width).sum();
        if products < PARALLEL_ATTENTION {
            let mut scores = Vec::new();
            for (index, out) in out.chunks_exact_mut(q_width).enumerate() {
                token(&mut scores, index, out);
            }
        } else {
            out.par_chunks_exact_mut(q_width)
                .enumerate()
                .for_each_init(Vec::new, |scores, (index, out)| token(scores, index, out));
        }
        out
    }

    /// Room for `spans` alone, which are whole prompts, and where they stand in it.
    fn scratch(&self, spans: &[Span]) -> Result<(LayerKv, Vec<Span>)> {
        let spans = Span::prompts(spans.iter().map(|span| span.len));
        let longest = spans.iter().map(|span| span.len).max().unwrap_or(0);
        let storage = Storage::Host {
            k: Vec::new(),
            v: Vec::new(),
        };
        let mut layer = LayerKv::new(spans.len(), longest, storage);
        layer.grow(longest, (self.n_kv_heads, self.head_dim))?;
        Ok((layer, spans))
    }
}

impl FusedLinear {
    /// Projections of the same input as one, so that a step reads its input once.
    fn stack(parts: &[&Linear]) -> Result<Self> {
        let in_width = parts[0].weight.dim(1)?;
        let mut weight = Vec::new();
        let mut bias = Vec::new();
        for part in parts {
            weight.extend(part.weight.flatten_all()?.to_vec1::<f32>()?);
            if let Some(part) = &part.bias {
                bias.extend(part.to_vec1::<f32>()?);
            }
        }
        let weight = Packed::new(&weight, in_width);
        Ok(Self {
            bias: (bias.len() == weight.out_width()).then_some(bias),
            weight,
        })
    }

    fn out_width(&self) -> usize {
        self.weight.out_width()
    }

    /// `x`: `[tokens, in_width]` to `[tokens, out_width]`.
    fn apply(&self, x: &[f32]) -> Vec<f32> {
        let mut y = vec![0.0; x.len() / self.weight.in_width() * self.out_width()];
        self.weight.matmul(x, &mut y);
        if let Some(bias) = &self.bias {
            for y in y.chunks_exact_mut(self.out_width()) {
                add(y, bias);
            }
        }
        y
    }
}

impl FusedNorm {
    fn new(norm: &Norm) -> Result<Self> {
        Ok(match norm {
            Norm::Rms { weight, eps } => FusedNorm::Rms {
                weight: weight.to_vec1()?,
                eps: *eps as f32,
            },
            Norm::Layer { weight, bias, eps } => FusedNorm::Layer {
                weight: weight.to_vec1()?,
                bias: bias.to_vec1()?,
                eps: *eps as f32,
            },
        })
    }

    fn apply(&self, x: &[f32], out: &mut [f32]) {
        match self {
            FusedNorm::Rms { weight, eps } => kernels::rms_norm(x, weight, *eps, out),
            FusedNorm::Layer { weight, bias, eps } => {
                kernels::layer_norm(x, weight, bias, *eps, out);
            }
        }
    }
}

impl FusedHead {
    pub(crate) fn new(frame: &Frame) -> Result<Self> {
        let head = Linear {
            weight: frame.head.clone(),
            bias: None,
        };
        Ok(Self {
            norm: FusedNorm::new(&frame.final_norm)?,
            weight: FusedLinear::stack(&[&head])?,
        })
    }

    /// Logits `[tokens, vocab_size]` of `hidden`: `[tokens, d_model]`.
    pub(crate) fn forward(&self, hidden: &Tensor) -> Result<Tensor> {
        let tokens = hidden.dim(0)?;
        let hidden = hidden.flatten_all()?.to_vec1::<f32>()?;
        let mut normed = vec![0.0; hidden.len()];
        self.norm.apply(&hidden, &mut normed);
        let logits = self.weight.apply(&normed);
        let shape = (tokens, self.weight.out_width());
        Ok(Tensor::from_vec(logits, shape, &Device::Cpu)?)
    }
}

fn add(sum: &mut [f32], term: &[f32]) {
    for (sum, term) in sum.iter_mut().zip(term) {
        *sum += term;
    }
}
