//! Differentiable operations fused for the CPU. candle's own fused norms and activations have no backward pass, and
//! composed ones cost a pass over memory per operation.

use candle_core::{
    CpuStorage, CustomOp1, CustomOp2, DType, Error, Layout, Result, Shape, Storage, Tensor,
};
use parking_lot::{MappedRwLockReadGuard, RwLockReadGuard};
use skipbench_model::simd::{dot, exp, exp_below, largest};
use skipbench_model::threads::SideBySide;
use skipbench_model::vectorised;
use std::ops::Deref;

/// The contiguous f32 data behind a storage.
pub(crate) fn floats<'a>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [f32]> {
    let data = storage.as_slice::<f32>()?;
    match layout.contiguous_offsets() {
        Some((start, end)) => Ok(&data[start..end]),
        None => Err(Error::Msg(
            "a fused operation needs contiguous input".to_owned(),
        )),
    }
}

/// A copy of a tensor's data.
pub(crate) fn to_vec(tensor: &Tensor) -> Result<Vec<f32>> {
    tensor.flatten_all()?.to_vec1()
}

/// A tensor's values, lent where they lie one behind the other.
pub(crate) enum Values<'a> {
    Lent(MappedRwLockReadGuard<'a, [f32]>),
    Own(Vec<f32>),
}

impl Deref for Values<'_> {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        match self {
            Self::Lent(values) => values,
            Self::Own(values) => values,
        }
    }
}

pub(crate) fn values(tensor: &Tensor) -> Result<Values<'_>> {
    let (storage, layout) = tensor.storage_and_layout();
    let lent = RwLockReadGuard::try_map(storage, |storage| match storage {
        Storage::Cpu(storage) => floats(storage, layout).ok(),
        _ => None,
    });
    match lent {
        Ok(lent) => Ok(Values::Lent(lent)),
        Err(storage) => {
            drop(storage);
            Ok(Values::Own(to_vec(tensor)?))
        }
    }
}

/// Rows handed to a thread at a time.
pub(crate) const ROWS: usize = 64;

/// The sum of `parts`, `[len]` each, which does not depend on the threads that made them.
pub(crate) fn add_in_order(parts: Vec<Vec<f32>>, len: usize) -> Vec<f32> {
    parts.into_iter().fold(vec![0.0; len], |mut sum, part| {
        sum.iter_mut()
            .zip(part)
            .for_each(|(sum, part)| *sum += part);
        sum
    })
}

/// `x / rms(x) * weight`; `x`: `[rows, d]`, `weight`: `[d]`.
pub(crate) struct RmsNorm {
    pub(crate) eps: f32,
}

impl CustomOp2 for RmsNorm {
    fn name(&self) -> &'static str {
        "train-rms-norm"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        weight: &CpuStorage,
        weight_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (x, weight) = (floats(x, x_layout)?, floats(weight, weight_layout)?);
        let d = weight.len();
        let mut y = vec![0.0; x.len()];
        y.chunks_mut(ROWS * d)
            .zip(x.chunks(ROWS * d))
            .on_all_threads(|(y, x)| rms_norm(x, weight, self.eps, y));
        Ok((CpuStorage::F32(y), x_layout.shape().clone()))
    }

    fn bwd(
        &self,
        x: &Tensor,
        weight: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let (xs, weights, grads) = (values(x)?, values(weight)?, values(grad)?);
        let d = weights.len();
        let mut dx = vec![0.0; xs.len()];
        let dw = dx
            .chunks_mut(ROWS * d)
            .zip(xs.chunks(ROWS * d).zip(grads.chunks(ROWS * d)))
            .map_on_all_threads(|(dx, (x, grad))| {
                let mut dw = vec![0.0; d];
                rms_norm_grad(x, &weights, grad, self.eps, dx, &mut dw);
                dw
            });
        let dw = add_in_order(dw, d);
        Ok((
            Some(Tensor::from_vec(dx, x.shape(), x.device())?),
            Some(Tensor::from_vec(dw, weight.shape(), x.device())?),
        ))
    }
}

vectorised! {
    fn rms_norm(x: &[f32], weight: &[f32], eps: f32, y: &mut [f32]) = rms_norm_body
}

#[inline(always)]
fn rms_norm_body<const FMA: bool>(x: &[f32], weight: &[f32], eps: f32, y: &mut [f32]) {
    let d = weight.len();
    for (x, y) in x.chunks_exact(d).zip(y.chunks_exact_mut(d)) {
        let scale = 1.0 / (dot::<FMA>(x, x) / d as f32 + eps).sqrt();
        for ((y, x), weight) in y.iter_mut().zip(x).zip(weight) {
            *y = x * scale * weight;
        }
    }
}

vectorised! {
    /// With s = 1 / rms(x): dx = s (g w - x s^2 mean(g w x)), dw = sum of g x s.
    fn rms_norm_grad(x: &[f32], weight: &[f32], grad: &[f32], eps: f32, dx: &mut [f32], dw: &mut [f32]) = rms_norm_grad_body
}

#[inline(always)]
fn rms_norm_grad_body<const FMA: bool>(
    x: &[f32],
    weight: &[f32],
    grad: &[f32],
    eps: f32,
    dx: &mut [f32],
    dw: &mut [f32],
) {
    let d = weight.len();
    let rows = x.chunks_exact(d).zip(grad.chunks_exact(d));
    for ((x, grad), dx) in rows.zip(dx.chunks_exact_mut(d)) {
        let scale = 1.0 / (dot::<FMA>(x, x) / d as f32 + eps).sqrt();
        for i in 0..d {
            dx[i] = grad[i] * weight[i];
            dw[i] += grad[i] * x[i] * scale;
        }
        let mean = dot::<FMA>(dx, x) / d as f32 * scale * scale;
        for i in 0..d {
            dx[i] = scale * (dx[i] - x[i] * mean);
        }
    }
}

/// `silu(gate) * up`, both `[rows, d_ff]`.
pub(crate) struct SwiGlu;

impl CustomOp2 for SwiGlu {
    fn name(&self) -> &'static str {
        "train-swiglu"
    }

    fn cpu_fwd(
        &self,
        gate: &CpuStorage,
        gate_layout: &Layout,
        up: &CpuStorage,
        up_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (gate, up) = (floats(gate, gate_layout)?, floats(up, up_layout)?);
        let mut y = vec![0.0; gate.len()];
        let chunk = ROWS * 256;
        y.chunks_mut(chunk)
            .zip(gate.chunks(chunk).zip(up.chunks(chunk)))
            .on_all_threads(|(y, (gate, up))| swiglu(gate, up, y));
        Ok((CpuStorage::F32(y), gate_layout.shape().clone()))
    }

    fn bwd(
        &self,
        gate: &Tensor,
        up: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let (gates, ups, grads) = (values(gate)?, values(up)?, values(grad)?);
        let (mut d_gate, mut d_up) = (vec![0.0; gates.len()], vec![0.0; gates.len()]);
        let chunk = ROWS * 256;
        d_gate
            .chunks_mut(chunk)
            .zip(d_up.chunks_mut(chunk))
            .zip(gates.chunks(chunk).zip(ups.chunks(chunk)))
            .zip(grads.chunks(chunk))
            .on_all_threads(|(((d_gate, d_up), (gate, up)), grad)| {
                swiglu_grad(gate, up, grad, d_gate, d_up);
            });
        Ok((
            Some(Tensor::from_vec(d_gate, gate.shape(), gate.device())?),
            Some(Tensor::from_vec(d_up, up.shape(), up.device())?),
        ))
    }
}

vectorised! {
    fn swiglu(gate: &[f32], up: &[f32], y: &mut [f32]) = swiglu_body
}

#[inline(always)]
fn swiglu_body<const FMA: bool>(gate: &[f32], up: &[f32], y: &mut [f32]) {
    for ((y, gate), up) in y.iter_mut().zip(gate).zip(up) {
        *y = gate / (1.0 + exp::<FMA>(-gate)) * up;
    }
}

vectorised! {
    fn swiglu_grad(gate: &[f32], up: &[f32], grad: &[f32], d_gate: &mut [f32], d_up: &mut [f32]) = swiglu_grad_body
}

#[inline(always)]
fn swiglu_grad_body<const FMA: bool>(
    gate: &[f32],
    up: &[f32],
    grad: &[f32],
    d_gate: &mut [f32],
    d_up: &mut [f32],
) {
    let len = grad.len();
    let (gate, up) = (&gate[..len], &up[..len]);
    let (d_gate, d_up) = (&mut d_gate[..len], &mut d_up[..len]);
    for i in 0..len {
        let sigmoid = 1.0 / (1.0 + exp::<FMA>(-gate[i]));
        let silu = gate[i] * sigmoid;
        d_up[i] = grad[i] * silu;
        d_gate[i] = grad[i] * up[i] * (sigmoid + silu * (1.0 - sigmoid));
    }
}

/// Mean cross-entropy of `logits`: `[rows, vocab_size]` against one target id per row.
pub(crate) struct CrossEntropy {
    pub(crate) targets: Vec<u32>,
}

impl CustomOp1 for CrossEntropy {
    fn name(&self) -> &'static str {
        "train-cross-entropy"
    }

    fn cpu_fwd(&self, logits: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let logits = floats(logits, layout)?;
        let vocab = logits.len() / self.targets.len();
        let losses: Vec<f64> = logits
            .chunks_exact(vocab)
            .zip(&self.targets)
            .map_on_all_threads(|(logits, &target)| {
                let (largest, sum) = exp_sum(logits);
                f64::from(largest + sum.ln() - logits[target as usize])
            });
        let mean = losses.iter().sum::<f64>() / losses.len() as f64;
        Ok((CpuStorage::F32(vec![mean as f32]), Shape::from(())))
    }

    fn bwd(&self, logits: &Tensor, _: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let scale = grad.to_dtype(DType::F32)?.to_scalar::<f32>()? / self.targets.len() as f32;
        let vocab = logits.dim(1)?;
        let mut values = to_vec(logits)?;
        values
            .chunks_exact_mut(vocab)
            .zip(&self.targets)
            .on_all_threads(|(logits, &target)| {
                softmax(logits, scale);
                logits[target as usize] -= scale;
            });
        Ok(Some(Tensor::from_vec(
            values,
            logits.shape(),
            logits.device(),
        )?))
    }
}

vectorised! {
    /// The largest value, and the sum of `exp(x - largest)`.
    fn exp_sum(x: &[f32]) -> (f32, f32) = exp_sum_body
}

#[inline(always)]
fn exp_sum_body<const FMA: bool>(x: &[f32]) -> (f32, f32) {
    let largest = largest(x);
    let mut sum = 0.0;
    // A part at a time, so that nothing as long as the vocabulary is written.
    let mut part = [0.0; 256];
    for x in x.chunks(part.len()) {
        let part = &mut part[..x.len()];
        part.copy_from_slice(x);
        sum += exp_below::<FMA>(part, largest);
    }
    (largest, sum)
}

vectorised! {
    /// `scale * softmax(x)` in place.
    fn softmax(x: &mut [f32], scale: f32) = softmax_body
}

#[inline(always)]
pub(crate) fn softmax_body<const FMA: bool>(x: &mut [f32], scale: f32) {
    let largest = largest(x);
    let scale = scale / exp_below::<FMA>(x, largest);
    for x in x {
        *x *= scale;
    }
}

/// Row by row the first argument where `runs`, else the second; both `[rows, d]`. The gradient goes the same way.
pub(crate) struct Blend {
    pub(crate) runs: Vec<bool>,
}

impl Blend {
    fn keep(&self, x: &mut [f32], kept: bool) {
        let d = x.len() / self.runs.len();
        for (x, runs) in x.chunks_exact_mut(d).zip(&self.runs) {
            if *runs != kept {
                x.fill(0.0);
            }
        }
    }
}

impl CustomOp2 for Blend {
    fn name(&self) -> &'static str {
        "train-blend"
    }

    fn cpu_fwd(
        &self,
        new: &CpuStorage,
        layout: &Layout,
        old: &CpuStorage,
        old_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (new, old) = (floats(new, layout)?, floats(old, old_layout)?);
        let d = new.len() / self.runs.len();
        let mut y = new.to_vec();
        for (row, runs) in self.runs.iter().enumerate() {
            if !runs {
                let row = row * d..(row + 1) * d;
                y[row.clone()].copy_from_slice(&old[row]);
            }
        }
        Ok((CpuStorage::F32(y), layout.shape().clone()))
    }

    fn bwd(
        &self,
        _: &Tensor,
        _: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let mut new = to_vec(grad)?;
        let mut old = new.clone();
        self.keep(&mut new, true);
        self.keep(&mut old, false);
        Ok((
            Some(Tensor::from_vec(new, grad.shape(), grad.device())?),
            Some(Tensor::from_vec(old, grad.shape(), grad.device())?),
        ))
    }
}
