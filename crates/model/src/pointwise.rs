//! Norms, activations and rotations of the fused CPU layer, in f32. A token's result depends on no other token.

use crate::config::Activation;
use crate::simd::{dot, exp, multiply_add};
use crate::vectorised;

vectorised! {
    /// Root mean square norm of each row of `x`: `[n, d]`.
    fn rms_norm(x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) = rms_norm_body
}

#[inline(always)]
fn rms_norm_body<const FMA: bool>(x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
    let d = weight.len();
    for (x, out) in x.chunks_exact(d).zip(out.chunks_exact_mut(d)) {
        let scale = 1.0 / (dot::<FMA>(x, x) / d as f32 + eps).sqrt();
        for ((out, x), weight) in out.iter_mut().zip(x).zip(weight) {
            *out = x * scale * weight;
        }
    }
}

vectorised! {
    /// Layer norm of each row of `x`: `[n, d]`.
    fn layer_norm(x: &[f32], weight: &[f32], bias: &[f32], eps: f32, out: &mut [f32]) = layer_norm_body
}

#[inline(always)]
fn layer_norm_body<const FMA: bool>(
    x: &[f32],
    weight: &[f32],
    bias: &[f32],
    eps: f32,
    out: &mut [f32],
) {
    let d = weight.len();
    for (x, out) in x.chunks_exact(d).zip(out.chunks_exact_mut(d)) {
        let mean = x.iter().sum::<f32>() / d as f32;
        for (out, x) in out.iter_mut().zip(x) {
            *out = x - mean;
        }
        let scale = 1.0 / (dot::<FMA>(out, out) / d as f32 + eps).sqrt();
        for ((out, weight), bias) in out.iter_mut().zip(weight).zip(bias) {
            *out = *out * scale * weight + bias;
        }
    }
}

vectorised! {
    /// `out = act(gate) * up`; `gate_up`: `[n, 2 f]` with the gate first, `out`: `[n, f]`.
    fn gated(activation: Activation, gate_up: &[f32], f: usize, out: &mut [f32]) = gated_body
}

#[inline(always)]
fn gated_body<const FMA: bool>(activation: Activation, gate_up: &[f32], f: usize, out: &mut [f32]) {
    match activation {
        Activation::Silu => gated_by(silu::<FMA>, gate_up, f, out),
        Activation::Gelu => gated_by(gelu::<FMA>, gate_up, f, out),
        Activation::GeluTanh => gated_by(gelu_tanh::<FMA>, gate_up, f, out),
        Activation::Relu => gated_by(relu, gate_up, f, out),
    }
}

#[inline(always)]
fn gated_by(act: impl Fn(f32) -> f32, gate_up: &[f32], f: usize, out: &mut [f32]) {
    for (pair, out) in gate_up.chunks_exact(2 * f).zip(out.chunks_exact_mut(f)) {
        let (gate, up) = pair.split_at(f);
        for ((out, gate), up) in out.iter_mut().zip(gate).zip(up) {
            *out = act(*gate) * up;
        }
    }
}

vectorised! {
    /// `act(x)` in place.
    fn activate(activation: Activation, x: &mut [f32]) = activate_body
}

#[inline(always)]
fn activate_body<const FMA: bool>(activation: Activation, x: &mut [f32]) {
    match activation {
        Activation::Silu => x.iter_mut().for_each(|x| *x = silu::<FMA>(*x)),
        Activation::Gelu => x.iter_mut().for_each(|x| *x = gelu::<FMA>(*x)),
        Activation::GeluTanh => x.iter_mut().for_each(|x| *x = gelu_tanh::<FMA>(*x)),
        Activation::Relu => x.iter_mut().for_each(|x| *x = relu(*x)),
    }
}

#[inline(always)]
fn silu<const FMA: bool>(x: f32) -> f32 {
    x / (1.0 + exp::<FMA>(-x))
}

#[inline(always)]
fn gelu<const FMA: bool>(x: f32) -> f32 {
    0.5 * x * (1.0 + erf::<FMA>(x * std::f32::consts::FRAC_1_SQRT_2))
}

#[inline(always)]
fn gelu_tanh<const FMA: bool>(x: f32) -> f32 {
    const SQRT_2_OVER_PI: f32 = 0.797_884_6;
    let inner = SQRT_2_OVER_PI * x * (1.0 + 0.044_715 * x * x);
    // 0.5 (1 + tanh(u)) = 1 / (1 + exp(-2u))
    x / (1.0 + exp::<FMA>(-2.0 * inner))
}

#[inline(always)]
fn relu(x: f32) -> f32 {
    // What is no number stays none.
    if x < 0.0 { 0.0 } else { x }
}

/// The error function by the ratio of polynomials that XLA and Eigen use in f32, within 5e-7.
#[inline(always)]
fn erf<const FMA: bool>(x: f32) -> f32 {
    let x = x.clamp(-4.0, 4.0);
    let square = x * x;
    let mut above = -2.726_142e-10;
    for coefficient in [
        2.770_681_4e-8,
        -2.101_024e-6,
        -5.692_506_5e-5,
        -7.349_906_3e-4,
        -2.954_599_8e-3,
        -1.609_603_3e-2,
    ] {
        above = multiply_add::<FMA>(above, square, coefficient);
    }
    let mut below = -1.456_607_2e-5;
    for coefficient in [
        -2.133_740_6e-4,
        -1.682_827e-3,
        -7.373_329_2e-3,
        -1.426_473_9e-2,
    ] {
        below = multiply_add::<FMA>(below, square, coefficient);
    }
    x * above / below
}

vectorised! {
    /// `cap * tanh(x / cap)` in place.
    fn soft_cap(x: &mut [f32], cap: f32) = soft_cap_body
}

#[inline(always)]
pub(crate) fn soft_cap_body<const FMA: bool>(x: &mut [f32], cap: f32) {
    let twice = 2.0 / cap;
    for x in x {
        // tanh(u) = 1 - 2 / (1 + exp(2u))
        *x = cap - 2.0 * cap / (1.0 + exp::<FMA>(*x * twice));
    }
}

/// RoPE in place on `x`: `[heads, head_dim]` with `cos`, `sin`: `[pairs]`. Of each head the first `2 pairs` channels turn.
pub(crate) fn rotate(x: &mut [f32], head_dim: usize, cos: &[f32], sin: &[f32]) {
    let pairs = cos.len();
    for head in x.chunks_exact_mut(head_dim) {
        let (low, high) = head.split_at_mut(pairs);
        for i in 0..pairs {
            let (a, b) = (low[i], high[i]);
            low[i] = a * cos[i] - b * sin[i];
            high[i] = b * cos[i] + a * sin[i];
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::cpu::erf::erf_f64;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn erf_and_tanh_are_right_to_the_last_digits(x in -9f32..9.0, cap in 1f32..60.0) {
            for found in [erf::<true>(x), erf::<false>(x)] {
                prop_assert!((f64::from(found) - erf_f64(f64::from(x))).abs() < 5e-7, "{found}");
            }
            let mut capped = [x];
            soft_cap(&mut capped, cap);
            let wanted = f64::from(cap) * f64::from(x / cap).tanh();
            prop_assert!((f64::from(capped[0]) - wanted).abs() < f64::from(cap) * 3e-7);
        }
    }
}
