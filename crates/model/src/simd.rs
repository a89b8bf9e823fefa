//! Plain loops compiled once per instruction set, chosen at run time.

use crate::element::Element;

/// An instruction set that kernels are compiled for.
#[derive(Debug, Clone, Copy)]
pub enum Isa {
    /// AVX-512F.
    #[cfg(target_arch = "x86_64")]
    Avx512,
    /// AVX2 with fused multiply-add and conversion of f16.
    #[cfg(target_arch = "x86_64")]
    Avx2,
    /// Whatever the build targets.
    Portable,
}

/// The best instruction set of this processor.
pub fn isa() -> Isa {
    #[cfg(target_arch = "x86_64")]
    {
        if is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("fma") {
            return Isa::Avx512;
        }
        let has_fma = is_x86_feature_detected!("fma");
        if is_x86_feature_detected!("avx2") && has_fma && is_x86_feature_detected!("f16c") {
            return Isa::Avx2;
        }
    }
    Isa::Portable
}

/// The instruction set that the kernels of this crate use on this processor. On a GPU, and where layers are composed,
/// candle's kernels do the work.
pub fn instruction_set() -> &'static str {
    match isa() {
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 => "avx512f+fma",
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => "avx2+fma",
        Isa::Portable => "portable",
    }
}

/// Runs `$body` compiled for the best instruction set there is; `FMA` tells the body whether fused
/// multiply-adds are cheap.
#[macro_export]
macro_rules! vectorised {
    ($(#[$doc:meta])* fn $name:ident($($arg:ident: $type:ty),* $(,)?) $(-> $ret:ty)? = $body:ident) => {
        $(#[$doc])*
        pub(crate) fn $name($($arg: $type),*) $(-> $ret)? {
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx512f,avx2,fma")]
            fn avx512($($arg: $type),*) $(-> $ret)? { $body::<true>($($arg),*) }
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma")]
            fn avx2($($arg: $type),*) $(-> $ret)? { $body::<true>($($arg),*) }
            match $crate::simd::isa() {
                // SAFETY: the features were detected.
                #[cfg(target_arch = "x86_64")]
                $crate::simd::Isa::Avx512 => unsafe { avx512($($arg),*) },
                // SAFETY: the features were detected.
                #[cfg(target_arch = "x86_64")]
                $crate::simd::Isa::Avx2 => unsafe { avx2($($arg),*) },
                $crate::simd::Isa::Portable => $body::<false>($($arg),*),
            }
        }
    };
}

const LANES: usize = 16;

/// `a * b + c`, fused where `FMA` says that this is cheap.
#[inline(always)]
pub fn multiply_add<const FMA: bool>(a: f32, b: f32, c: f32) -> f32 {
    if FMA { a.mul_add(b, c) } else { a * b + c }
}

/// Inner product in one fixed order. `FMA`: as [`multiply_add`] takes it.
#[inline(always)]
pub fn dot<const FMA: bool>(a: &[f32], b: &[f32]) -> f32 {
    dot_with::<FMA, f32>(a, b)
}

/// The same with numbers that are widened on their way.
#[inline(always)]
pub(crate) fn dot_with<const FMA: bool, T: Element>(a: &[f32], b: &[T]) -> f32 {
    let mut sums = [0f32; LANES];
    let (a_body, a_tail) = a.as_chunks::<LANES>();
    let (b_body, b_tail) = b.as_chunks::<LANES>();
    for (a, b) in a_body.iter().zip(b_body) {
        // SAFETY: `FMA` is given where the features were detected.
        let b = unsafe { T::lanes::<FMA>(b) };
        for lane in 0..LANES {
            sums[lane] = multiply_add::<FMA>(a[lane], b[lane], sums[lane]);
        }
    }
    let mut width = LANES / 2;
    while width > 0 {
        for lane in 0..width {
            sums[lane] += sums[lane + width];
        }
        width /= 2;
    }
    a_tail
        .iter()
        .zip(b_tail)
        .fold(sums[0], |sum, (a, b)| sum + a * b.widen())
}

/// The largest number; negative infinity where there is none.
#[inline(always)]
pub fn largest(x: &[f32]) -> f32 {
    let larger = |a: f32, b: f32| if a > b { a } else { b };
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let (body, tail) = x.as_chunks::<LANES>();
    for x in body {
        for lane in 0..LANES {
            lanes[lane] = larger(x[lane], lanes[lane]);
        }
    }
    lanes
        .iter()
        .chain(tail)
        .fold(f32::NEG_INFINITY, |max, &x| larger(x, max))
}

/// Makes `exp(x - largest)` of each number and gives their sum, in one fixed order.
#[inline(always)]
pub fn exp_below<const FMA: bool>(x: &mut [f32], largest: f32) -> f32 {
    let mut lanes = [0f32; LANES];
    let (body, tail) = x.as_chunks_mut::<LANES>();
    for x in body {
        for lane in 0..LANES {
            x[lane] = exp::<FMA>(x[lane] - largest);
            lanes[lane] += x[lane];
        }
    }
    let mut sum = lanes.iter().sum::<f32>();
    for x in tail {
        *x = exp::<FMA>(*x - largest);
        sum += *x;
    }
    sum
}

/// Added to a number below 2^22 it leaves the nearest whole one in the last bits, ties to even.
const WHOLE: f32 = 12_582_912.0;

/// `exp` by range reduction and a degree-6 polynomial (Cephes `expf`), within 2 units in the last place between -87 and 88, and
/// what it is there beyond. Unlike the library's it vectorises: it neither rounds nor converts to integers by instructions that
/// some processors have for one number only.
#[inline(always)]
pub fn exp<const FMA: bool>(x: f32) -> f32 {
    let x = x.clamp(-87.0, 88.0);
    let shifted = multiply_add::<FMA>(x, std::f32::consts::LOG2_E, WHOLE);
    let n = shifted - WHOLE;
    let r = multiply_add::<FMA>(n, -0.693_359_4, x);
    let r = multiply_add::<FMA>(n, 2.121_944_4e-4, r);
    let mut p = 1.987_569_1e-4;
    for coefficient in [
        1.398_2e-3,
        8.333_452e-3,
        4.166_579_6e-2,
        1.666_666_5e-1,
        5e-1,
    ] {
        p = multiply_add::<FMA>(p, r, coefficient);
    }
    let value = multiply_add::<FMA>(p, r * r, r + 1.0);
    // The whole number stands in the last bits of `shifted`; all above them are shifted out.
    value * f32::from_bits(shifted.to_bits().wrapping_add(127) << 23)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn exp_is_within_two_ulps(x in -87f32..88.0) {
            let exact = f64::from(x).exp();
            for value in [exp::<true>(x), exp::<false>(x)] {
                prop_assert!((f64::from(value) / exact - 1.0).abs() < 2.5e-7, "{value} {exact}");
            }
        }
    }

    /// Where the exponent of two changes, and beyond the ends.
    #[test]
    fn exp_holds_at_its_seams() {
        for n in -125..=126 {
            let seam = (f64::from(n) + 0.5) * std::f64::consts::LN_2;
            for ulps in -3..=3 {
                let seam = seam as f32;
                let x = f32::from_bits(seam.to_bits().wrapping_add_signed(ulps));
                let exact = f64::from(x).exp();
                for value in [exp::<true>(x), exp::<false>(x)] {
                    let error = (f64::from(value) / exact - 1.0).abs();
                    assert!(error < 2.5e-7, "{x}: {value} {exact}");
                }
            }
        }
        assert_eq!(exp::<true>(0.0), 1.0);
        for exp in [exp::<true>, exp::<false>] {
            assert!(exp(f32::NAN).is_nan());
            assert_eq!(exp(f32::NEG_INFINITY), exp(-87.0));
            assert_eq!(exp(f32::INFINITY), exp(88.0));
            assert!(exp(-87.0) > 0.0 && exp(88.0).is_finite());
        }
    }
}
