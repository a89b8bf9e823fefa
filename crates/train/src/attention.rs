//! Causal grouped-query attention with RoPE over whole sequences, fused, with its backward pass.

use crate::ops::{floats, to_vec};
use candle_core::{CpuStorage, CustomOp3, Layout, Result, Shape, Tensor};
use rayon::prelude::*;
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
    pub(crate) rope: Arc<Rope>,
}

/// Cosines and sines, `[positions, head_dim / 2]`.
pub(crate) struct Rope {
    cos: Vec<f32>,
    sin: Vec<f32>,
    half: usize,
}

impl Rope {
    pub(crate) fn new(positions: usize, head_dim: usize, theta: f64) -> Self {
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

    /// Turns `x`: `[seq, head_dim]` in place; `sign` -1 turns back.
    #[inline(always)]
    fn rotate(&self, x: &mut [f32], sign: f32) {
        let half = self.half;
        for (position, x) in x.chunks_exact_mut(2 * half).enumerate() {
            let at = position * half..(position + 1) * half;
            let (cos, sin) = (&self.cos[at.clone()], &self.sin[at]);
            let (low, high) = x.split_at_mut(half);
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

/// Attention weights of the query at `position` over keys `0..=position`, into `weights`.
#[inline(always)]
fn weights_of<const FMA: bool>(q: &[f32], k: &[f32], scale: f32, weights: &mut [f32]) {
    let mut largest = f32::NEG_INFINITY;
    for (weight, key) in weights.iter_mut().zip(k.chunks_exact(q.len())) {
        *weight = dot::<FMA>(q, key) * scale;
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
    let scale = 1.0 / (d as f32).sqrt();
    let (mut qh, mut kh, mut vh, mut oh) = (
        vec![0.0; seq * d],
        vec![0.0; seq * d],
        vec![0.0; seq * d],
        vec![0.0; seq * d],
    );
    let mut weights = vec![0.0; seq];
    for head in 0..shape.n_heads {
        if head % group == 0 {
            gather(k, shape.kv_width(), head / group, &mut kh, d);
            gather(v, shape.kv_width(), head / group, &mut vh, d);
            shape.rope.rotate(&mut kh, 1.0);
        }
        gather(q, shape.q_width(), head, &mut qh, d);
        shape.rope.rotate(&mut qh, 1.0);
        oh.fill(0.0);
        for (position, (q, o)) in qh.chunks_exact(d).zip(oh.chunks_exact_mut(d)).enumerate() {
            let weights = &mut weights[..=position];
            weights_of::<FMA>(q, &kh, scale, weights);
            for (weight, value) in weights.iter().zip(vh.chunks_exact(d)) {
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
    let scale = 1.0 / (d as f32).sqrt();
    let buffer = || vec![0f32; seq * d];
    let (mut qh, mut kh, mut vh, mut gh) = (buffer(), buffer(), buffer(), buffer());
    let (mut dqh, mut dkh, mut dvh) = (buffer(), buffer(), buffer());
    let (mut weights, mut dw) = (vec![0f32; seq], vec![0f32; seq]);
    for head in 0..shape.n_heads {
        if head % group == 0 {
            gather(k, shape.kv_width(), head / group, &mut kh, d);
            gather(v, shape.kv_width(), head / group, &mut vh, d);
            shape.rope.rotate(&mut kh, 1.0);
            dkh.fill(0.0);
            dvh.fill(0.0);
        }
        gather(q, shape.q_width(), head, &mut qh, d);
        gather(grad, shape.q_width(), head, &mut gh, d);
        shape.rope.rotate(&mut qh, 1.0);
        dqh.fill(0.0);
        for position in 0..seq {
            let at = position * d..(position + 1) * d;
            let (q, g) = (&qh[at.clone()], &gh[at.clone()]);
            let weights = &mut weights[..=position];
            weights_of::<FMA>(q, &kh, scale, weights);
            let mut inner = 0.0;
            for (key, weight) in weights.iter().enumerate() {
                let key_at = key * d..(key + 1) * d;
                dw[key] = dot::<FMA>(g, &vh[key_at.clone()]);
                inner += weight * dw[key];
                axpy::<FMA>(*weight, g, &mut dvh[key_at]);
            }
            for (key, weight) in weights.iter().enumerate() {
                let key_at = key * d..(key + 1) * d;
                let score = weight * (dw[key] - inner) * scale;
                axpy::<FMA>(score, &kh[key_at.clone()], &mut dqh[at.clone()]);
                axpy::<FMA>(score, q, &mut dkh[key_at]);
            }
        }
        shape.rope.rotate(&mut dqh, -1.0);
        scatter_add(&dqh, dq, shape.q_width(), head, d);
        if (head + 1) % group == 0 {
            shape.rope.rotate(&mut dkh, -1.0);
            scatter_add(&dkh, dk, shape.kv_width(), head / group, d);
            scatter_add(&dvh, dv, shape.kv_width(), head / group, d);
        }
    }
}
