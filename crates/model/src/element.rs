//! The types that weights, keys and values are kept in. Whatever the type, arithmetic is in f32: a weight is widened on its way from memory to
//! the registers, which loses nothing (LayerCast, arXiv 2506.09501).

use candle_core::WithDType;
use half::slice::HalfFloatSliceExt;
use half::vec::HalfBitsVecExt;
use half::{bf16, f16};
#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::*;

/// A type that weights, keys or values are kept in.
pub(crate) trait Element: WithDType + Default {
    /// So many zeros, of memory that is not touched before it is written to.
    fn zeros(len: usize) -> Vec<Self>;

    /// Rounds each value to the nearest, ties to even.
    fn narrow(values: &[f32], to: &mut [Self]);

    /// The same number.
    fn widen(self) -> f32;

    /// The same numbers; `AVX2`: by registers, where the CPU is one of x86-64.
    ///
    /// # Safety
    /// The CPU has AVX2 and F16C if it is one of x86-64 and `AVX2` is set.
    #[inline(always)]
    unsafe fn lanes<const AVX2: bool>(values: &[Self; 16]) -> [f32; 16] {
        #[cfg(target_arch = "x86_64")]
        if AVX2 {
            let mut wide = [0f32; 16];
            // SAFETY: 8 values each; the features are the caller's.
            unsafe {
                _mm256_storeu_ps(wide.as_mut_ptr(), Self::load_avx2(values.as_ptr()));
                _mm256_storeu_ps(
                    wide[8..].as_mut_ptr(),
                    Self::load_avx2(values[8..].as_ptr()),
                );
            }
            return wide;
        }
        values.map(Self::widen)
    }

    /// 16 numbers from `at` on.
    ///
    /// # Safety
    /// 16 lie there, and the CPU has AVX-512F.
    #[cfg(target_arch = "x86_64")]
    unsafe fn load_avx512(at: *const Self) -> __m512;

    /// 8 numbers from `at` on.
    ///
    /// # Safety
    /// 8 lie there, and the CPU has AVX2 and F16C.
    #[cfg(target_arch = "x86_64")]
    unsafe fn load_avx2(at: *const Self) -> __m256;
}

impl Element for f32 {
    fn zeros(len: usize) -> Vec<Self> {
        vec![0.0; len]
    }

    fn narrow(values: &[f32], to: &mut [Self]) {
        to.copy_from_slice(values);
    }

    #[inline(always)]
    fn widen(self) -> f32 {
        self
    }

    #[inline(always)]
    unsafe fn lanes<const AVX2: bool>(values: &[Self; 16]) -> [f32; 16] {
        *values
    }

    #[cfg(target_arch = "x86_64")]
    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn load_avx512(at: *const Self) -> __m512 {
        // SAFETY: the caller's.
        unsafe { _mm512_loadu_ps(at) }
    }

    #[cfg(target_arch = "x86_64")]
    #[inline]
    #[target_feature(enable = "avx2,f16c")]
    unsafe fn load_avx2(at: *const Self) -> __m256 {
        // SAFETY: the caller's.
        unsafe { _mm256_loadu_ps(at) }
    }
}

impl Element for bf16 {
    fn zeros(len: usize) -> Vec<Self> {
        vec![0u16; len].reinterpret_into()
    }

    fn narrow(values: &[f32], to: &mut [Self]) {
        to.convert_from_f32_slice(values);
    }

    #[inline(always)]
    fn widen(self) -> f32 {
        self.to_f32()
    }

    #[cfg(target_arch = "x86_64")]
    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn load_avx512(at: *const Self) -> __m512 {
        // SAFETY: the caller's.
        let bits = unsafe { _mm256_loadu_si256(at.cast()) };
        // A bf16 is the upper half of an f32.
        _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(bits)))
    }

    #[cfg(target_arch = "x86_64")]
    #[inline]
    #[target_feature(enable = "avx2,f16c")]
    unsafe fn load_avx2(at: *const Self) -> __m256 {
        // SAFETY: the caller's.
        let bits = unsafe { _mm_loadu_si128(at.cast()) };
        _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(bits)))
    }
}

impl Element for f16 {
    fn zeros(len: usize) -> Vec<Self> {
        vec![0u16; len].reinterpret_into()
    }

    fn narrow(values: &[f32], to: &mut [Self]) {
        to.convert_from_f32_slice(values);
    }

    #[inline(always)]
    fn widen(self) -> f32 {
        self.to_f32()
    }

    #[cfg(target_arch = "x86_64")]
    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn load_avx512(at: *const Self) -> __m512 {
        // SAFETY: the caller's.
        _mm512_cvtph_ps(unsafe { _mm256_loadu_si256(at.cast()) })
    }

    #[cfg(target_arch = "x86_64")]
    #[inline]
    #[target_feature(enable = "avx2,f16c")]
    unsafe fn load_avx2(at: *const Self) -> __m256 {
        // SAFETY: the caller's.
        _mm256_cvtph_ps(unsafe { _mm_loadu_si128(at.cast()) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every number of 16 bits comes out of the registers as `half` converts it.
    fn all_are_widened_alike<T: Element>(of: impl Fn(u16) -> T) {
        let all: Vec<T> = (0..=u16::MAX).map(of).collect();
        let wanted: Vec<f32> = all.iter().map(|x| x.widen()).collect();
        let same = |found: &[f32], wanted: &[f32]| {
            let mut pairs = found.iter().zip(wanted);
            pairs.all(|(a, b)| a.to_bits() == b.to_bits() || a.is_nan() && b.is_nan())
        };
        #[cfg(target_arch = "x86_64")]
        if is_x86_feature_detected!("avx512f") {
            for (values, wanted) in all.chunks(16).zip(wanted.chunks(16)) {
                let mut found = [0f32; 16];
                // SAFETY: the feature was detected; 16 values on both sides.
                unsafe { _mm512_storeu_ps(found.as_mut_ptr(), T::load_avx512(values.as_ptr())) };
                assert!(same(&found, wanted), "{found:?} {wanted:?}");
            }
        }
        #[cfg(target_arch = "x86_64")]
        if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("f16c") {
            for (values, wanted) in all.chunks(8).zip(wanted.chunks(8)) {
                let mut found = [0f32; 8];
                // SAFETY: the features were detected; 8 values on both sides.
                unsafe { _mm256_storeu_ps(found.as_mut_ptr(), T::load_avx2(values.as_ptr())) };
                assert!(same(&found, wanted), "{found:?} {wanted:?}");
            }
        }
        let mut back = T::zeros(all.len());
        T::narrow(&wanted, &mut back);
        let back: Vec<f32> = back.into_iter().map(T::widen).collect();
        assert!(same(&back, &wanted));
    }

    #[test]
    fn registers_widen_as_half_does() {
        all_are_widened_alike(bf16::from_bits);
        all_are_widened_alike(f16::from_bits);
    }
}
