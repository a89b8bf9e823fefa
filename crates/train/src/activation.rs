//! Activation functions of an MLP with their backward pass, fused for the CPU. SiLU with a gate, which nearly all have, is
//! [`crate::ops::SwiGlu`].

use crate::ops::{floats, to_vec, values};
use candle_core::{CpuStorage, CustomOp1, CustomOp2, Layout, Result, Shape, Tensor};
use skipbench_model::Activation;
use skipbench_model::simd::exp;
use skipbench_model::threads::SideBySide;
use skipbench_model::vectorised;

/// Values handed to a thread at a time.
const CHUNK: usize = 1 << 14;

/// `f(x)` of each value.
pub(crate) struct Activate(pub(crate) Activation);

/// `f(gate) * up`, both of one shape.
pub(crate) struct Gated(pub(crate) Activation);

impl CustomOp1 for Activate {
    fn name(&self) -> &'static str {
        "train-activation"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let x = floats(x, layout)?;
        let mut y = vec![0.0; x.len()];
        y.chunks_mut(CHUNK)
            .zip(x.chunks(CHUNK))
            .on_all_threads(|(y, x)| activate(self.0, x, y));
        Ok((CpuStorage::F32(y), layout.shape().clone()))
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let (xs, mut grads) = (values(x)?, to_vec(grad)?);
        grads
            .chunks_mut(CHUNK)
            .zip(xs.chunks(CHUNK))
            .on_all_threads(|(grad, x)| times_slope(self.0, x, grad));
        Ok(Some(Tensor::from_vec(grads, x.shape(), x.device())?))
    }
}

impl CustomOp2 for Gated {
    fn name(&self) -> &'static str {
        "train-gated-activation"
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
        y.chunks_mut(CHUNK)
            .zip(gate.chunks(CHUNK).zip(up.chunks(CHUNK)))
            .on_all_threads(|(y, (gate, up))| {
                activate(self.0, gate, y);
                y.iter_mut().zip(up).for_each(|(y, up)| *y *= up);
            });
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
        d_gate
            .chunks_mut(CHUNK)
            .zip(d_up.chunks_mut(CHUNK))
            .zip(gates.chunks(CHUNK).zip(ups.chunks(CHUNK)))
            .zip(grads.chunks(CHUNK))
            .on_all_threads(|(((d_gate, d_up), (gate, up)), grad)| {
                activate(self.0, gate, d_up);
                d_up.iter_mut()
                    .zip(grad)
                    .for_each(|(d_up, grad)| *d_up *= grad);
                let products = d_gate.iter_mut().zip(grad).zip(up);
                products.for_each(|((d_gate, grad), up)| *d_gate = grad * up);
                times_slope(self.0, gate, d_gate);
            });
        Ok((
            Some(Tensor::from_vec(d_gate, gate.shape(), gate.device())?),
            Some(Tensor::from_vec(d_up, up.shape(), up.device())?),
        ))
    }
}

vectorised! {
    fn activate(activation: Activation, x: &[f32], y: &mut [f32]) = activate_body
}

#[inline(always)]
fn activate_body<const FMA: bool>(activation: Activation, x: &[f32], y: &mut [f32]) {
    let all = x.iter().zip(y);
    match activation {
        Activation::Silu => all.for_each(|(x, y)| *y = x * sigmoid::<FMA>(*x)),
        Activation::Gelu => all.for_each(|(x, y)| *y = x * phi(*x)),
        Activation::GeluTanh => {
            all.for_each(|(x, y)| *y = 0.5 * x * (1.0 + tanh::<FMA>(inner(*x))));
        }
        Activation::Relu => all.for_each(|(x, y)| *y = x.max(0.0)),
    }
}

vectorised! {
    /// Multiplies each gradient with the slope where `x` stands.
    fn times_slope(activation: Activation, x: &[f32], grad: &mut [f32]) = times_slope_body
}

#[inline(always)]
fn times_slope_body<const FMA: bool>(activation: Activation, x: &[f32], grad: &mut [f32]) {
    let all = x.iter().zip(grad);
    match activation {
        Activation::Silu => all.for_each(|(x, grad)| {
            let sigmoid = sigmoid::<FMA>(*x);
            *grad *= sigmoid * (1.0 + x * (1.0 - sigmoid));
        }),
        Activation::Gelu => all.for_each(|(x, grad)| {
            let density = exp::<FMA>(-0.5 * x * x) * INVERSE_SQRT_2_PI;
            *grad *= phi(*x) + x * density;
        }),
        Activation::GeluTanh => all.for_each(|(x, grad)| {
            let tanh = tanh::<FMA>(inner(*x));
            let slope = SQRT_2_OVER_PI * (1.0 + 3.0 * CUBIC * x * x);
            *grad *= 0.5 * (1.0 + tanh) + 0.5 * x * (1.0 - tanh * tanh) * slope;
        }),
        Activation::Relu => all.for_each(|(x, grad)| *grad *= f32::from(u8::from(*x > 0.0))),
    }
}

const SQRT_2_OVER_PI: f32 = 0.797_884_6;
const INVERSE_SQRT_2_PI: f32 = 0.398_942_3;
/// Of GELU's tanh approximation (arXiv 1606.08415).
const CUBIC: f32 = 0.044_715;

#[inline(always)]
fn inner(x: f32) -> f32 {
    SQRT_2_OVER_PI * (x + CUBIC * x * x * x)
}

#[inline(always)]
fn sigmoid<const FMA: bool>(x: f32) -> f32 {
    1.0 / (1.0 + exp::<FMA>(-x))
}

#[inline(always)]
fn tanh<const FMA: bool>(x: f32) -> f32 {
    1.0 - 2.0 / (1.0 + exp::<FMA>(2.0 * x))
}

/// The normal distribution's.
#[inline(always)]
fn phi(x: f32) -> f32 {
    0.5 * (1.0 + candle_core::cpu::erf::erf_f32(x * std::f32::consts::FRAC_1_SQRT_2))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slopes_are_those_of_the_values() {
        let values = |activation, at: f32| {
            let mut y = [0.0];
            activate(activation, &[at], &mut y);
            f64::from(y[0])
        };
        for activation in [
            Activation::Silu,
            Activation::Gelu,
            Activation::GeluTanh,
            Activation::Relu,
        ] {
            for at in [-3.0, -0.7, 0.3, 1.1, 4.0f32] {
                let h = 1e-2;
                let slope = (values(activation, at + h) - values(activation, at - h))
                    / (2.0 * f64::from(h));
                let mut grad = [2.0];
                times_slope(activation, &[at], &mut grad);
                let apart = (f64::from(grad[0]) - 2.0 * slope).abs();
                assert!(apart < 2e-3, "{activation:?} at {at}: {} {slope}", grad[0]);
            }
        }
        assert!((values(Activation::Gelu, 1.0) - 0.841_345).abs() < 1e-5);
        assert!((values(Activation::GeluTanh, 1.0) - 0.841_192).abs() < 1e-5);
        assert!((values(Activation::Silu, 1.0) - 0.731_059).abs() < 1e-5);
    }
}
