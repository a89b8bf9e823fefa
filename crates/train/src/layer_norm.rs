//! Layer norm (arXiv 1607.06450) with its backward pass, fused for the CPU.

use crate::ops::{ROWS, add_in_order, floats, values};
use candle_core::{CpuStorage, CustomOp3, Layout, Result, Shape, Tensor};
use skipbench_model::simd::dot;
use skipbench_model::threads::SideBySide;
use skipbench_model::vectorised;

/// `(x - mean(x)) / sqrt(variance(x) + eps) * weight + bias`; `x`: `[rows, d]`, `weight` and `bias`: `[d]`.
pub(crate) struct LayerNorm {
    pub(crate) eps: f32,
}

impl CustomOp3 for LayerNorm {
    fn name(&self) -> &'static str {
        "train-layer-norm"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        weight: &CpuStorage,
        weight_layout: &Layout,
        bias: &CpuStorage,
        bias_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (x, weight) = (floats(x, x_layout)?, floats(weight, weight_layout)?);
        let bias = floats(bias, bias_layout)?;
        let d = weight.len();
        let mut y = vec![0.0; x.len()];
        y.chunks_mut(ROWS * d)
            .zip(x.chunks(ROWS * d))
            .on_all_threads(|(y, x)| layer_norm(x, weight, bias, self.eps, y));
        Ok((CpuStorage::F32(y), x_layout.shape().clone()))
    }

    fn bwd(
        &self,
        x: &Tensor,
        weight: &Tensor,
        bias: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let (xs, weights, grads) = (values(x)?, values(weight)?, values(grad)?);
        let d = weights.len();
        let mut dx = vec![0.0; xs.len()];
        let parts = dx
            .chunks_mut(ROWS * d)
            .zip(xs.chunks(ROWS * d).zip(grads.chunks(ROWS * d)))
            .map_on_all_threads(|(dx, (x, grad))| {
                let mut sums = vec![0.0; 2 * d];
                layer_norm_grad(x, &weights, grad, self.eps, dx, &mut sums);
                sums
            });
        let mut dw = add_in_order(parts, 2 * d);
        let db = dw.split_off(d);
        Ok((
            Some(Tensor::from_vec(dx, x.shape(), x.device())?),
            Some(Tensor::from_vec(dw, weight.shape(), x.device())?),
            Some(Tensor::from_vec(db, bias.shape(), x.device())?),
        ))
    }
}

/// Mean of a row, and one over its deviation.
#[inline(always)]
fn statistics(x: &[f32], eps: f32) -> (f32, f32) {
    let len = x.len() as f32;
    let mean = x.iter().sum::<f32>() / len;
    let squares: f32 = x.iter().map(|x| (x - mean) * (x - mean)).sum();
    (mean, 1.0 / (squares / len + eps).sqrt())
}

vectorised! {
    fn layer_norm(x: &[f32], weight: &[f32], bias: &[f32], eps: f32, y: &mut [f32]) = layer_norm_body
}

#[inline(always)]
fn layer_norm_body<const FMA: bool>(
    x: &[f32],
    weight: &[f32],
    bias: &[f32],
    eps: f32,
    y: &mut [f32],
) {
    let d = weight.len();
    for (x, y) in x.chunks_exact(d).zip(y.chunks_exact_mut(d)) {
        let (mean, scale) = statistics(x, eps);
        for i in 0..d {
            y[i] = (x[i] - mean) * scale * weight[i] + bias[i];
        }
    }
}

vectorised! {
    /// With n = (x - mean) s, s one over the deviation, and h = g w: dx = s (h - mean(h) - n mean(h n)), dw = sum of g n,
    /// db = sum of g. `sums`: dw and db, one behind the other.
    fn layer_norm_grad(x: &[f32], weight: &[f32], grad: &[f32], eps: f32, dx: &mut [f32], sums: &mut [f32]) = layer_norm_grad_body
}

#[inline(always)]
fn layer_norm_grad_body<const FMA: bool>(
    x: &[f32],
    weight: &[f32],
    grad: &[f32],
    eps: f32,
    dx: &mut [f32],
    sums: &mut [f32],
) {
    let d = weight.len();
    let (dw, db) = sums.split_at_mut(d);
    let mut normed = vec![0.0; d];
    let rows = x.chunks_exact(d).zip(grad.chunks_exact(d));
    for ((x, grad), dx) in rows.zip(dx.chunks_exact_mut(d)) {
        let (mean, scale) = statistics(x, eps);
        for i in 0..d {
            normed[i] = (x[i] - mean) * scale;
            dx[i] = grad[i] * weight[i];
            dw[i] += grad[i] * normed[i];
            db[i] += grad[i];
        }
        let along = dot::<FMA>(dx, &normed) / d as f32;
        let mean = dx.iter().sum::<f32>() / d as f32;
        for i in 0..d {
            dx[i] = scale * (dx[i] - mean - normed[i] * along);
        }
    }
}
