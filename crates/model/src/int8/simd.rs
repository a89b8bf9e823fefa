//! What a tile does with registers, by the same names on each instruction set.

use std::arch::x86_64::*;

/// 16 outputs a register, byte products.
pub(super) mod vnni {
    use super::*;

    #[inline]
    #[target_feature(enable = "avx512f")]
    pub(in crate::int8) fn zero() -> __m512 {
        _mm512_setzero_ps()
    }

    #[inline]
    #[target_feature(enable = "avx512f")]
    pub(in crate::int8) fn zero_int() -> __m512i {
        _mm512_setzero_si512()
    }

    #[inline]
    #[target_feature(enable = "avx512f")]
    pub(in crate::int8) fn set(x: f32) -> __m512 {
        _mm512_set1_ps(x)
    }

    #[inline]
    #[target_feature(enable = "avx512f")]
    pub(in crate::int8) fn set_int(x: i32) -> __m512i {
        _mm512_set1_epi32(x)
    }

    #[inline]
    #[target_feature(enable = "avx512f")]
    pub(in crate::int8) fn times(a: __m512, b: __m512) -> __m512 {
        _mm512_mul_ps(a, b)
    }

    #[inline]
    #[target_feature(enable = "avx512f")]
    pub(in crate::int8) fn plus(a: __m512, b: __m512) -> __m512 {
        _mm512_add_ps(a, b)
    }

    #[inline]
    #[target_feature(enable = "avx512f")]
    pub(in crate::int8) fn to_float(x: __m512i) -> __m512 {
        _mm512_cvtepi32_ps(x)
    }

    /// 64 codes.
    ///
    /// # Safety
    /// They lie at `at`.
    #[inline]
    #[target_feature(enable = "avx512f")]
    pub(in crate::int8) unsafe fn load_codes(at: *const u8) -> __m512i {
        // SAFETY: the caller's.
        unsafe { _mm512_loadu_si512(at.cast()) }
    }

    /// The lower and the upper halves of bytes.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    pub(in crate::int8) fn nibbles(codes: __m512i) -> (__m512i, __m512i) {
        let lower = _mm512_set1_epi8(15);
        let upper = _mm512_srli_epi16::<4>(codes);
        (
            _mm512_and_si512(codes, lower),
            _mm512_and_si512(upper, lower),
        )
    }

    /// 16 numbers of 16 bits, widened.
    ///
    /// # Safety
    /// They lie at `at`.
    #[inline]
    #[target_feature(enable = "avx512f")]
    pub(in crate::int8) unsafe fn load_halves(at: *const u16) -> __m512 {
        // SAFETY: the caller's.
        _mm512_cvtph_ps(unsafe { _mm256_loadu_si256(at.cast()) })
    }

    /// The same four codes of a row for each output.
    ///
    /// # Safety
    /// They lie at `at`.
    #[inline]
    #[target_feature(enable = "avx512f")]
    pub(in crate::int8) unsafe fn four_codes(at: *const i8) -> __m512i {
        // SAFETY: the caller's.
        _mm512_set1_epi32(unsafe { at.cast::<i32>().read_unaligned() })
    }

    /// `sum + (w + 128) x` of four signed codes each: byte products take one side without a sign.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
    pub(in crate::int8) fn dot8(sum: __m512i, w: __m512i, x: __m512i) -> __m512i {
        let w = _mm512_xor_si512(w, _mm512_set1_epi8(-128));
        _mm512_dpbusd_epi32(sum, w, x)
    }

    /// `sum + w x` of four codes each, those of `w` without a sign.
    #[inline]
    #[target_feature(enable = "avx512f,avx512vnni")]
    pub(in crate::int8) fn dot4(sum: __m512i, w: __m512i, x: __m512i) -> __m512i {
        _mm512_dpbusd_epi32(sum, w, x)
    }

    /// # Safety
    /// 16 numbers can be written at `at`.
    #[inline]
    #[target_feature(enable = "avx512f")]
    pub(in crate::int8) unsafe fn store(at: *mut f32, x: __m512) {
        // SAFETY: the caller's.
        unsafe { _mm512_storeu_ps(at, x) }
    }
}

/// 8 outputs a register; pairs of products are summed in 16 bits, which they fit in.
pub(super) mod avx2 {
    use super::*;

    #[inline]
    #[target_feature(enable = "avx2")]
    pub(in crate::int8) fn zero() -> __m256 {
        _mm256_setzero_ps()
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    pub(in crate::int8) fn zero_int() -> __m256i {
        _mm256_setzero_si256()
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    pub(in crate::int8) fn set(x: f32) -> __m256 {
        _mm256_set1_ps(x)
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    pub(in crate::int8) fn set_int(x: i32) -> __m256i {
        _mm256_set1_epi32(x)
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    pub(in crate::int8) fn times(a: __m256, b: __m256) -> __m256 {
        _mm256_mul_ps(a, b)
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    pub(in crate::int8) fn plus(a: __m256, b: __m256) -> __m256 {
        _mm256_add_ps(a, b)
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    pub(in crate::int8) fn to_float(x: __m256i) -> __m256 {
        _mm256_cvtepi32_ps(x)
    }

    /// 32 codes.
    ///
    /// # Safety
    /// They lie at `at`.
    #[inline]
    #[target_feature(enable = "avx2")]
    pub(in crate::int8) unsafe fn load_codes(at: *const u8) -> __m256i {
        // SAFETY: the caller's.
        unsafe { _mm256_loadu_si256(at.cast()) }
    }

    /// The lower and the upper halves of bytes.
    #[inline]
    #[target_feature(enable = "avx2")]
    pub(in crate::int8) fn nibbles(codes: __m256i) -> (__m256i, __m256i) {
        let lower = _mm256_set1_epi8(15);
        let upper = _mm256_srli_epi16::<4>(codes);
        (
            _mm256_and_si256(codes, lower),
            _mm256_and_si256(upper, lower),
        )
    }

    /// 8 numbers of 16 bits, widened.
    ///
    /// # Safety
    /// They lie at `at`.
    #[inline]
    #[target_feature(enable = "avx2,f16c")]
    pub(in crate::int8) unsafe fn load_halves(at: *const u16) -> __m256 {
        // SAFETY: the caller's.
        _mm256_cvtph_ps(unsafe { _mm_loadu_si128(at.cast()) })
    }

    /// The same four codes of a row for each output.
    ///
    /// # Safety
    /// They lie at `at`.
    #[inline]
    #[target_feature(enable = "avx2")]
    pub(in crate::int8) unsafe fn four_codes(at: *const i8) -> __m256i {
        // SAFETY: the caller's.
        _mm256_set1_epi32(unsafe { at.cast::<i32>().read_unaligned() })
    }

    /// `sum + w x` of four signed codes each. The sign of `w` goes to `x`, whose codes are no less than -127; a pair of
    /// products is then at most 2 x 128 x 127, which 16 bits hold.
    #[inline]
    #[target_feature(enable = "avx2")]
    pub(in crate::int8) fn dot8(sum: __m256i, w: __m256i, x: __m256i) -> __m256i {
        dot4(sum, _mm256_abs_epi8(w), _mm256_sign_epi8(x, w))
    }

    /// `sum + w x` of four codes each, those of `w` without a sign.
    #[inline]
    #[target_feature(enable = "avx2")]
    pub(in crate::int8) fn dot4(sum: __m256i, w: __m256i, x: __m256i) -> __m256i {
        let pairs = _mm256_maddubs_epi16(w, x);
        let fours = _mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
        _mm256_add_epi32(sum, fours)
    }

    /// # Safety
    /// 8 numbers can be written at `at`.
    #[inline]
    #[target_feature(enable = "avx2")]
    pub(in crate::int8) unsafe fn store(at: *mut f32, x: __m256) {
        // SAFETY: the caller's.
        unsafe { _mm256_storeu_ps(at, x) }
    }
}
