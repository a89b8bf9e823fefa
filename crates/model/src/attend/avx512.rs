//! The products of attention in registers of 16 lanes, bit for bit those of [`super`].

use super::{Block, LANES, Products, Scoring, Scratch, body, products_body};
use crate::element::Element;
use std::arch::x86_64::*;

#[target_feature(enable = "avx512f,avx2,fma")]
pub(super) fn attend<T: Element>(block: &Block<'_, T>, how: &Scoring, scratch: &mut Scratch) {
    body::<T, Avx512, true, 4, 4>(block, how, scratch);
}

/// For [`attend`] alone, which is called where the features are.
struct Avx512;

impl Products for Avx512 {
    #[inline(always)]
    fn with_keys<T: Element>(q: &[f32], keys: &[T], out: &mut [f32]) {
        // SAFETY: the features are there.
        unsafe { products(q, keys, out) }
    }

    #[inline(always)]
    fn add_values<T: Element, const R: usize, const C: usize>(
        weights: [&[f32]; R],
        values: &[T],
        head_dim: usize,
        column: usize,
        out: &mut [f32],
    ) {
        // SAFETY: the features are there.
        unsafe { add::<T, R, C>(weights, values, head_dim, column, out) }
    }
}

/// As [`super::add_columns`], bit for bit.
#[target_feature(enable = "avx512f,avx2,fma")]
#[expect(
    clippy::needless_range_loop,
    reason = "counted loops of constant length stay in registers"
)]
fn add<T: Element, const R: usize, const C: usize>(
    weights: [&[f32]; R],
    values: &[T],
    head_dim: usize,
    column: usize,
    out: &mut [f32],
) {
    let positions = values.len() / head_dim;
    assert!(weights.iter().all(|weights| weights.len() == positions));
    assert!(column + C * LANES <= head_dim && out.len() == R * head_dim);
    let mut sums = [[_mm512_setzero_ps(); C]; R];
    // SAFETY: so many registers lie in a row of `out` and in a value behind `column`, and a weight for each position.
    unsafe {
        let out = out.as_mut_ptr().add(column);
        for row in 0..R {
            for register in 0..C {
                sums[row][register] = _mm512_loadu_ps(out.add(row * head_dim + register * LANES));
            }
        }
        for at in 0..positions {
            let value = values.as_ptr().add(at * head_dim + column);
            let mut registers = [_mm512_setzero_ps(); C];
            for register in 0..C {
                registers[register] = T::load_avx512(value.add(register * LANES));
            }
            for row in 0..R {
                let weight = _mm512_set1_ps(*weights[row].as_ptr().add(at));
                for register in 0..C {
                    sums[row][register] =
                        _mm512_fmadd_ps(weight, registers[register], sums[row][register]);
                }
            }
        }
        for row in 0..R {
            for register in 0..C {
                let to = out.add(row * head_dim + register * LANES);
                _mm512_storeu_ps(to, sums[row][register]);
            }
        }
    }
}

/// As [`products_body`], bit for bit, for 16 keys at a time.
#[inline]
#[target_feature(enable = "avx512f,avx2,fma")]
fn products<T: Element>(q: &[f32], keys: &[T], out: &mut [f32]) {
    let width = q.len();
    if !width.is_multiple_of(LANES) {
        return products_body::<true, T>(q, keys, out);
    }
    let mut blocks = keys.chunks_exact(LANES * width);
    let (outs, tail) = out.as_chunks_mut::<LANES>();
    for (keys, out) in blocks.by_ref().zip(outs) {
        // The order in which the sums below come out right.
        const KEYS: [usize; LANES] = [0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15];
        let mut sums = [_mm512_setzero_ps(); LANES];
        for at in (0..width).step_by(LANES) {
            // SAFETY: 16 of the width are left in the query and in each of the 16 keys.
            unsafe {
                let q = _mm512_loadu_ps(q.as_ptr().add(at));
                for i in 0..LANES {
                    let key = T::load_avx512(keys.as_ptr().add(KEYS[i] * width + at));
                    sums[i] = _mm512_fmadd_ps(q, key, sums[i]);
                }
            }
        }
        let sum = across(sums);
        // SAFETY: 16 values.
        unsafe { _mm512_storeu_ps(out.as_mut_ptr(), sum) };
    }
    products_body::<true, T>(q, blocks.remainder(), tail);
}

/// The sum over each register, in the order of [`dot`](crate::simd::dot).
#[inline]
#[target_feature(enable = "avx512f,avx2,fma")]
fn across(s: [__m512; LANES]) -> __m512 {
    let mut eight = [_mm512_setzero_ps(); 8];
    for (i, sum) in eight.iter_mut().enumerate() {
        let (a, b) = (s[2 * i], s[2 * i + 1]);
        let low = _mm512_shuffle_f32x4::<0b01_00_01_00>(a, b);
        *sum = _mm512_add_ps(low, _mm512_shuffle_f32x4::<0b11_10_11_10>(a, b));
    }
    let mut four = [_mm512_setzero_ps(); 4];
    for (i, sum) in four.iter_mut().enumerate() {
        let (a, b) = (eight[2 * i], eight[2 * i + 1]);
        let low = _mm512_shuffle_f32x4::<0b10_00_10_00>(a, b);
        *sum = _mm512_add_ps(low, _mm512_shuffle_f32x4::<0b11_01_11_01>(a, b));
    }
    let mut two = [_mm512_setzero_ps(); 2];
    for (i, sum) in two.iter_mut().enumerate() {
        let (a, b) = (four[2 * i], four[2 * i + 1]);
        let low = _mm512_shuffle_ps::<0b01_00_01_00>(a, b);
        *sum = _mm512_add_ps(low, _mm512_shuffle_ps::<0b11_10_11_10>(a, b));
    }
    let low = _mm512_shuffle_ps::<0b10_00_10_00>(two[0], two[1]);
    _mm512_add_ps(low, _mm512_shuffle_ps::<0b11_01_11_01>(two[0], two[1]))
}
