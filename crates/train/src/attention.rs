//! Causal grouped-query attention over whole sequences, fused, with its backward pass: positions by RoPE or ALiBi, windows,
//! soft caps.

use crate::ops::{floats, to_vec};
use candle_core::{CpuStorage, CustomOp3, Layout, Result, Shape, Tensor};
use rayon::prelude::*;
use skipbench_model::Rope as Frequencies;
use skipbench_model::simd::{dot, exp, multiply_add};
use skipbench_model::vectorised;
use std::sync::Arc;

/// `q`: `[rows * seq, n_heads * head_dim]`, `k` and `v`: `[rows * seq, n_kv_heads * head_dim]`, straight from their
/// projections; the output has the shape of `q`.
#[derive(Clone)]
pub(crate) struct Attention {
    pub(crate) seq: usize,
    pub(crate) n_heads: usize,
    pub(crate) n_kv_heads: usize,
    pub(crate) head_dim: usize,
    /// Factor of the products of queries and keys.
    pub(crate) scale: f32,
    /// `cap * tanh(score / cap)` of scores (arXiv 2408.00118).
    pub(crate) cap: Option<f32>,
    /// Positions that a token sees, its own among them.
    pub(crate) window: Option<usize>,
    /// `None` where queries and keys do not turn.
    pub(crate) rope: Option<Arc<Rope>>,
    /// ALiBi's slope of each query head (arXiv 2108.12409).
    pub(crate) slopes: Option<Arc<[f32]>>,
}

/// Cosines and sines of the channels that turn, `[positions, half]`: channel `i` together with channel `i + half`.
pub(crate) struct Rope {
    cos: Vec<f32>,
    sin: Vec<f32>,
    half: usize,
}

impl Rope {
    /// Whole heads turn with nothing but a base.
    pub(crate) fn plain(positions: usize, head_dim: usize, theta: f64) -> Self {
        let half = head_dim / 2;
        let angles = (0..positions).flat_map(|position| {
            (0..half).map(move |pair| {
                position as f64 * theta.powf(-((2 * pair) as f64) / head_dim as f64)
            })
        });
        Self {
            cos: angles.clone().map(|angle| angle.cos() as f32).collect(),
            sin: angles.map(|angle| angle.sin() as f32).collect(),
            half,
        }
    }

    /// As a checkpoint's layers turn in sequences up to the trained length.
    pub(crate) fn of(frequencies: &Frequencies, positions: usize) -> Self {
        let factor = frequencies.attention_factor;
        let (mut cos, mut sin) = (Vec::new(), Vec::new());
        for position in 0..positions {
            for freq in &frequencies.inv_freq {
                let (s, c) = (position as f32 * freq).sin_cos();
                cos.push(c * factor);
                sin.push(s * factor);
            }
        }
        let half = frequencies.inv_freq.len();
        Self { cos, sin, half }
    }

    /// Turns `x`: `[seq, head_dim]` in place; `sign` -1 turns back. With an attention factor it stretches too, both ways: what
    /// is turned back is a gradient.
    #[inline(always)]
    fn rotate(&self, x: &mut [f32], head_dim: usize, sign: f32) {
        let half = self.half;
        for (position, x) in x.chunks_exact_mut(head_dim).enumerate() {
            let at = position * half..(position + 1) * half;
            let (cos, sin) = (&self.cos[at.clone()], &self.sin[at]);
            let (low, high) = x[..2 * half].split_at_mut(half);
            for i in 0..half {
                let (a, b) = (low[i], high[i]);
                low[i] = a * cos[i] - sign * b * sin[i];
                high[i] = b * cos[i] + sign * a * sin[i];
            }
        }
    }
}

impl Attention {
    fn q_width(&self) -> usize {
        self.n_heads * self.head_dim
    }

    fn kv_width(&self) -> usize {
        self.n_kv_heads * self.head_dim
    }

    #[inline(always)]
    fn rotate(&self, x: &mut [f32], sign: f32) {
        if let Some(rope) = &self.rope {
            rope.rotate(x, self.head_dim, sign);
        }
    }

    /// The first key that the query at `position` sees.
    fn first_seen(&self, position: usize) -> usize {
        match self.window {
            None => 0,
            Some(window) => (position + 1).saturating_sub(window),
        }
    }

    /// Attention weights of the query at `position` over the keys from the first that it sees up to its own, into `weights`.
    /// `capped` gets the scores behind the cap, where there is one.
    #[inline(always)]
    fn weights<const FMA: bool>(
        &self,
        head: usize,
        q: &[f32],
        k: &[f32],
        weights: &mut [f32],
        capped: &mut [f32],
    ) {
        for (weight, key) in weights.iter_mut().zip(k.chunks_exact(q.len())) {
            *weight = dot::<FMA>(q, key) * self.scale;
        }
        if let Some(cap) = self.cap {
            for (weight, capped) in weights.iter_mut().zip(capped) {
                *weight = cap * (*weight / cap).tanh();
                *capped = *weight;
            }
        }
        if let Some(slopes) = &self.slopes {
            let slope = slopes[head];
            for (back, weight) in weights.iter_mut().rev().enumerate() {
                *weight -= slope * back as f32;
            }
        }
        softmax::<FMA>(weights);
    }
}

impl CustomOp3 for Attention {
    fn name(&self) -> &'static str {
        "train-attention"
    }

    fn cpu_fwd(
        &self,
        q: &CpuStorage,
        q_layout: &Layout,
        k: &CpuStorage,
        k_layout: &Layout,
        v: &CpuStorage,
        v_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (q, k, v) = (
            floats(q, q_layout)?,
            floats(k, k_layout)?,
            floats(v, v_layout)?,
        );
        let mut out = vec![0.0; q.len()];
        let (q_row, kv_row) = (self.seq * self.q_width(), self.seq * self.kv_width());
        out.par_chunks_exact_mut(q_row)
            .zip(q.par_chunks_exact(q_row))
            .zip(k.par_chunks_exact(kv_row).zip(v.par_chunks_exact(kv_row)))
            .for_each(|((out, q), (k, v))| forward(self, q, k, v, out));
        Ok((CpuStorage::F32(out), q_layout.shape().clone()))
    }

    fn bwd(
        &self,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let (qs, ks, vs, grads) = (to_vec(q)?, to_vec(k)?, to_vec(v)?, to_vec(grad)?);
        let (mut dq, mut dk, mut dv) = (
            vec![0.0; qs.len()],
            vec![0.0; ks.len()],
            vec![0.0; vs.len()],
        );
        let (q_row, kv_row) = (self.seq * self.q_width(), self.seq * self.kv_width());
        dq.par_chunks_exact_mut(q_row)
            .zip(dk.par_chunks_exact_mut(kv_row))
            .zip(dv.par_chunks_exact_mut(kv_row))
            .enumerate()
            .for_each(|(row, ((dq, dk), dv))| {
                let (q, kv) = (
                    row * q_row..(row + 1) * q_row,
                    row * kv_row..(row + 1) * kv_row,
                );
                backward(
                    self,
                    [&qs[q.clone()], &ks[kv.clone()], &vs[kv], &grads[q]],
                    [dq, dk, dv],
                );
            });
        let tensor = |data: Vec<f32>, like: &Tensor| -> Result<Option<Tensor>> {
            Ok(Some(Tensor::from_vec(data, like.shape(), like.device())?))
        };
        Ok((tensor(dq, q)?, tensor(dk, k)?, tensor(dv, v)?))
    }
}

/// Head `head` of `x`: `[seq, width]` as `[seq, head_dim]`.
#[inline(always)]
fn gather(x: &[f32], width: usize, head: usize, out: &mut [f32], head_dim: usize) {
    for (x, out) in x.chunks_exact(width).zip(out.chunks_exact_mut(head_dim)) {
        out.copy_from_slice(&x[head * head_dim..(head + 1) * head_dim]);
    }
}

/// Adds `[seq, head_dim]` to head `head` of `out`: `[seq, width]`.
#[inline(always)]
fn scatter_add(x: &[f32], out: &mut [f32], width: usize, head: usize, head_dim: usize) {
    for (x, out) in x.chunks_exact(head_dim).zip(out.chunks_exact_mut(width)) {
        let out = &mut out[head * head_dim..(head + 1) * head_dim];
        out.iter_mut().zip(x).for_each(|(out, x)| *out += x);
    }
}

#[inline(always)]
fn axpy<const FMA: bool>(a: f32, x: &[f32], y: &mut [f32]) {
    for (x, y) in x.iter().zip(y) {
        *y = multiply_add::<FMA>(a, *x, *y);
    }
}

#[inline(always)]
fn softmax<const FMA: bool>(weights: &mut [f32]) {
    let mut largest = f32::NEG_INFINITY;
    for weight in weights.iter() {
        largest = largest.max(*weight);
    }
    let mut sum = 0.0;
    for weight in weights.iter_mut() {
        *weight = exp::<FMA>(*weight - largest);
        sum += *weight;
    }
    for weight in weights {
        *weight /= sum;
    }
}

vectorised! {
    fn forward(shape: &Attention, q: &[f32], k: &[f32], v: &[f32], out: &mut [f32]) = forward_body
}

#[inline(always)]
fn forward_body<const FMA: bool>(
    shape: &Attention,
    q: &[f32],
    k: &[f32],
    v: &[f32],
    out: &mut [f32],
) {
    let (seq, d) = (shape.seq, shape.head_dim);
    let group = shape.n_heads / shape.n_kv_heads;
    let (mut qh, mut kh, mut vh, mut oh) = (
        vec![0.0; seq * d],
        vec![0.0; seq * d],
        vec![0.0; seq * d],
        vec![0.0; seq * d],
    );
    let (mut weights, mut capped) = (vec![0.0; seq], vec![0.0; seq]);
    for head in 0..shape.n_heads {
        if head % group == 0 {
            gather(k, shape.kv_width(), head / group, &mut kh, d);
            gather(v, shape.kv_width(), head / group, &mut vh, d);
            shape.rotate(&mut kh, 1.0);
        }
        gather(q, shape.q_width(), head, &mut qh, d);
        shape.rotate(&mut qh, 1.0);
        oh.fill(0.0);
        for (position, (q, o)) in qh.chunks_exact(d).zip(oh.chunks_exact_mut(d)).enumerate() {
            let first = shape.first_seen(position);
            let weights = &mut weights[..=position - first];
            shape.weights::<FMA>(head, q, &kh[first * d..], weights, &mut capped);
            for (weight, value) in weights.iter().zip(vh[first * d..].chunks_exact(d)) {
                axpy::<FMA>(*weight, value, o);
            }
        }
        scatter_add(&oh, out, shape.q_width(), head, d);
    }
}

vectorised! {
    /// `inputs`: q, k, v and the gradient of the output; `grads`: of q, k and v. The weights are computed again
    /// rather than kept: a pass over them is cheaper than the memory.
    fn backward(shape: &Attention, inputs: [&[f32]; 4], grads: [&mut [f32]; 3]) = backward_body
}

#[inline(always)]
fn backward_body<const FMA: bool>(shape: &Attention, inputs: [&[f32]; 4], grads: [&mut [f32]; 3]) {
    let [q, k, v, grad] = inputs;
    let [dq, dk, dv] = grads;
    let (seq, d) = (shape.seq, shape.head_dim);
    let group = shape.n_heads / shape.n_kv_heads;
    let buffer = || vec![0f32; seq * d];
    let (mut qh, mut kh, mut vh, mut gh) = (buffer(), buffer(), buffer(), buffer());
    let (mut dqh, mut dkh, mut dvh) = (buffer(), buffer(), buffer());
    let buffer = || vec![0f32; seq];
    let (mut weights, mut capped, mut dw) = (buffer(), buffer(), buffer());
    for head in 0..shape.n_heads {
        if head % group == 0 {
            gather(k, shape.kv_width(), head / group, &mut kh, d);
            gather(v, shape.kv_width(), head / group, &mut vh, d);
            shape.rotate(&mut kh, 1.0);
            dkh.fill(0.0);
            dvh.fill(0.0);
        }
        gather(q, shape.q_width(), head, &mut qh, d);
        gather(grad, shape.q_width(), head, &mut gh, d);
        shape.rotate(&mut qh, 1.0);
        dqh.fill(0.0);
        for position in 0..seq {
            let at = position * d..(position + 1) * d;
            let (q, g) = (&qh[at.clone()], &gh[at.clone()]);
            let first = shape.first_seen(position);
            let weights = &mut weights[..=position - first];
            shape.weights::<FMA>(head, q, &kh[first * d..], weights, &mut capped);
            let mut inner = 0.0;
            for (key, weight) in weights.iter().enumerate() {
                let key_at = (first + key) * d..(first + key + 1) * d;
                dw[key] = dot::<FMA>(g, &vh[key_at.clone()]);
                inner += weight * dw[key];
                axpy::<FMA>(*weight, g, &mut dvh[key_at]);
            }
            for (key, weight) in weights.iter().enumerate() {
                let key_at = (first + key) * d..(first + key + 1) * d;
                let mut score = weight * (dw[key] - inner) * shape.scale;
                if let Some(cap) = shape.cap {
                    // The slope of the cap where the score stands.
                    score *= 1.0 - (capped[key] / cap) * (capped[key] / cap);
                }
                axpy::<FMA>(score, &kh[key_at.clone()], &mut dqh[at.clone()]);
                axpy::<FMA>(score, q, &mut dkh[key_at]);
            }
        }
        shape.rotate(&mut dqh, -1.0);
        scatter_add(&dqh, dq, shape.q_width(), head, d);
        if (head + 1) % group == 0 {
            shape.rotate(&mut dkh, -1.0);
            scatter_add(&dkh, dk, shape.kv_width(), head / group, d);
            scatter_add(&dvh, dv, shape.kv_width(), head / group, d);
        }
    }
}
