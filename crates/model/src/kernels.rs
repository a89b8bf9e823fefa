//! f32 kernels of the fused CPU layer: products of few rows with a large weight, attention over the cache,
//! norms and activations.
//!
//! Every output element is reduced in one fixed order that depends on neither the number of rows nor the number
//! of threads, so a row's result is bit for bit the same alone and in any batch.

use crate::simd::{Isa, dot, exp, isa, multiply_add};
use crate::vectorised;
use rayon::prelude::*;
use std::ops::Range;

/// Multiply-adds below which a product stays on one thread: waking a second one costs some ten microseconds.
const PARALLEL_MULTIPLY_ADDS: usize = 1 << 19;

/// Rows of `x` that are kept close while a weight streams by.
const ROW_BLOCK: usize = 32;

/// `y = x w^T`; `x`: `[n, k]`, `w`: `[m, k]`, `y`: `[n, m]`.
pub(crate) fn matmul(x: &[f32], w: &[f32], k: usize, y: &mut [f32]) {
    let (n, m) = (x.len() / k, w.len() / k);
    assert_eq!((x.len(), w.len(), y.len()), (n * k, m * k, n * m));
    let isa = isa();
    let product = Product {
        x,
        w,
        k,
        m,
        y: y.as_mut_ptr(),
    };
    let threads = rayon::current_num_threads();
    if n * m * k < PARALLEL_MULTIPLY_ADDS || threads == 1 {
        product.columns(isa, 0..m);
        return;
    }
    // Whole tiles per thread; the last takes what is left.
    let share = m.div_ceil(threads).next_multiple_of(8);
    let product = &product;
    (0..m.div_ceil(share))
        .into_par_iter()
        .for_each(|part| product.columns(isa, part * share..m.min((part + 1) * share)));
}

struct Product<'a> {
    x: &'a [f32],
    w: &'a [f32],
    k: usize,
    m: usize,
    y: *mut f32,
}

// SAFETY: threads are given disjoint column ranges of `y`, which outlives the parallel region.
unsafe impl Sync for Product<'_> {}

impl Product<'_> {
    /// Columns `range` of `y`, for all rows of `x`.
    fn columns(&self, isa: Isa, range: Range<usize>) {
        let n = self.x.len() / self.k;
        for first in (0..n).step_by(ROW_BLOCK) {
            let rows = first..n.min(first + ROW_BLOCK);
            match isa {
                // SAFETY: the features were detected; row and column ranges lie within x, w and y.
                #[cfg(target_arch = "x86_64")]
                Isa::Avx512 => unsafe { avx512::block(self, rows, range.clone()) },
                // SAFETY: as above.
                #[cfg(target_arch = "x86_64")]
                Isa::Avx2 => unsafe { avx2::block(self, rows, range.clone()) },
                Isa::Portable => self.portable(rows, range.clone()),
            }
        }
    }

    fn portable(&self, rows: Range<usize>, columns: Range<usize>) {
        for column in columns {
            let w = &self.w[column * self.k..][..self.k];
            for row in rows.clone() {
                let sum = dot::<false>(&self.x[row * self.k..][..self.k], w);
                // SAFETY: row < n and column < m, so the element lies in y; no other thread writes it.
                unsafe { *self.y.add(row * self.m + column) = sum };
            }
        }
    }
}

/// Register-tiled products for one instruction set. A tile of `W` weight rows by `X` input rows keeps one
/// accumulator per output, so the order of the sum is the same in every tile shape.
#[cfg(target_arch = "x86_64")]
macro_rules! tiled_products {
    ($name:ident, $features:literal, $lanes:literal, $zero:ident, $load:ident, $fma:ident, $sum:path,
     [$(($x:literal, $w:literal)),*]) => {
        mod $name {
            use super::Product;
            use std::arch::x86_64::*;
            use std::ops::Range;

            #[target_feature(enable = $features)]
            unsafe fn tile<const W: usize, const X: usize>(p: &Product, row: usize, column: usize) {
                let k = p.k;
                // SAFETY: the caller keeps row + X <= n and column + W <= m.
                unsafe {
                    let x = p.x.as_ptr().add(row * k);
                    let w = p.w.as_ptr().add(column * k);
                    let mut sums = [[$zero(); X]; W];
                    let mut at = 0;
                    while at + $lanes <= k {
                        for i in 0..W {
                            let weight = $load(w.add(i * k + at));
                            for j in 0..X {
                                sums[i][j] = $fma(weight, $load(x.add(j * k + at)), sums[i][j]);
                            }
                        }
                        at += $lanes;
                    }
                    for i in 0..W {
                        for j in 0..X {
                            let mut sum = $sum(sums[i][j]);
                            for rest in at..k {
                                sum += *w.add(i * k + rest) * *x.add(j * k + rest);
                            }
                            *p.y.add((row + j) * p.m + column + i) = sum;
                        }
                    }
                }
            }

            #[target_feature(enable = $features)]
            unsafe fn strip<const W: usize, const X: usize>(
                p: &Product,
                row: usize,
                columns: Range<usize>,
            ) {
                let mut column = columns.start;
                // SAFETY: tiles stay within `columns`, rows within what the caller was given.
                unsafe {
                    while column + W <= columns.end {
                        tile::<W, X>(p, row, column);
                        column += W;
                    }
                    while column < columns.end {
                        tile::<1, X>(p, row, column);
                        column += 1;
                    }
                }
            }

            /// # Safety
            /// The CPU has the features; `rows` lie in `x`, `columns` in `w`.
            #[target_feature(enable = $features)]
            pub(super) unsafe fn block(p: &Product, rows: Range<usize>, columns: Range<usize>) {
                let mut row = rows.start;
                // SAFETY: each strip takes rows that are left in `rows`.
                unsafe {
                    $(while row + $x <= rows.end {
                        strip::<$w, $x>(p, row, columns.clone());
                        row += $x;
                    })*
                }
                debug_assert_eq!(row, rows.end);
            }
        }
    };
}

#[cfg(target_arch = "x86_64")]
tiled_products!(
    avx512,
    "avx512f,fma",
    16,
    _mm512_setzero_ps,
    _mm512_loadu_ps,
    _mm512_fmadd_ps,
    _mm512_reduce_add_ps,
    [(8, 3), (4, 4), (2, 8), (1, 8)]
);

#[cfg(target_arch = "x86_64")]
tiled_products!(
    avx2,
    "avx2,fma",
    8,
    _mm256_setzero_ps,
    _mm256_loadu_ps,
    _mm256_fmadd_ps,
    super::sum_256,
    [(4, 3), (2, 4), (1, 8)]
);

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn sum_256(x: std::arch::x86_64::__m256) -> f32 {
    use std::arch::x86_64::*;
    let half = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps::<1>(x));
    let quarter = _mm_add_ps(half, _mm_movehl_ps(half, half));
    _mm_cvtss_f32(_mm_add_ss(quarter, _mm_shuffle_ps::<1>(quarter, quarter)))
}

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
    /// `out = silu(gate) * up`; `gate_up`: `[n, 2 f]` with the gate first, `out`: `[n, f]`.
    fn swiglu(gate_up: &[f32], f: usize, out: &mut [f32]) = swiglu_body
}

#[inline(always)]
fn swiglu_body<const FMA: bool>(gate_up: &[f32], f: usize, out: &mut [f32]) {
    for (pair, out) in gate_up.chunks_exact(2 * f).zip(out.chunks_exact_mut(f)) {
        let (gate, up) = pair.split_at(f);
        for ((out, gate), up) in out.iter_mut().zip(gate).zip(up) {
            *out = gate / (1.0 + exp::<FMA>(-gate)) * up;
        }
    }
}

vectorised! {
    /// GELU in its tanh form, in place.
    fn gelu(x: &mut [f32]) = gelu_body
}

#[inline(always)]
fn gelu_body<const FMA: bool>(x: &mut [f32]) {
    const SQRT_2_OVER_PI: f32 = 0.797_884_6;
    for x in x {
        let inner = SQRT_2_OVER_PI * *x * (1.0 + 0.044_715 * *x * *x);
        // 0.5 (1 + tanh(u)) = 1 / (1 + exp(-2u))
        *x /= 1.0 + exp::<FMA>(-2.0 * inner);
    }
}

/// One row's keys and values: `[n_kv_heads, stride, head_dim]`, of which a query reads the first positions.
#[derive(Clone, Copy)]
pub(crate) struct KeysValues<'a> {
    pub(crate) k: &'a [f32],
    pub(crate) v: &'a [f32],
    /// Positions allocated per head.
    pub(crate) stride: usize,
}

vectorised! {
    /// Attention of one token to positions `0..len`. `q`, `out`: `[n_heads, head_dim]`; `slopes`: ALiBi, one
    /// per head, or empty; `scores`: scratch of at least `len`.
    fn attend(q: &[f32], kv: KeysValues<'_>, len: usize, head_dim: usize, group: usize, slopes: &[f32], scores: &mut [f32], out: &mut [f32]) = attend_body
}

#[expect(clippy::too_many_arguments, reason = "a kernel over plain slices")]
#[inline(always)]
fn attend_body<const FMA: bool>(
    q: &[f32],
    kv: KeysValues<'_>,
    len: usize,
    head_dim: usize,
    group: usize,
    slopes: &[f32],
    scores: &mut [f32],
    out: &mut [f32],
) {
    let scale = 1.0 / (head_dim as f32).sqrt();
    let heads = q.chunks_exact(head_dim).zip(out.chunks_exact_mut(head_dim));
    for (head, (q, out)) in heads.enumerate() {
        let base = head / group * kv.stride * head_dim;
        let keys = &kv.k[base..base + len * head_dim];
        let values = &kv.v[base..base + len * head_dim];
        let scores = &mut scores[..len];
        let slope = slopes.get(head).copied().unwrap_or(0.0);
        let mut largest = f32::NEG_INFINITY;
        for (position, (score, key)) in scores
            .iter_mut()
            .zip(keys.chunks_exact(head_dim))
            .enumerate()
        {
            *score = dot::<FMA>(q, key) * scale + slope * position as f32;
            largest = largest.max(*score);
        }
        let mut sum = 0.0;
        for score in scores.iter_mut() {
            *score = exp::<FMA>(*score - largest);
            sum += *score;
        }
        out.fill(0.0);
        for (score, value) in scores.iter().zip(values.chunks_exact(head_dim)) {
            for (out, value) in out.iter_mut().zip(value) {
                *out = multiply_add::<FMA>(*score, *value, *out);
            }
        }
        let scale = 1.0 / sum;
        out.iter_mut().for_each(|out| *out *= scale);
    }
}

/// RoPE in place on `x`: `[heads, head_dim]` with `cos`, `sin`: `[head_dim / 2]`.
pub(crate) fn rotate(x: &mut [f32], cos: &[f32], sin: &[f32]) {
    let half = cos.len();
    for head in x.chunks_exact_mut(2 * half) {
        let (low, high) = head.split_at_mut(half);
        for i in 0..half {
            let (a, b) = (low[i], high[i]);
            low[i] = a * cos[i] - b * sin[i];
            high[i] = b * cos[i] + a * sin[i];
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn values(len: usize, seed: u32) -> Vec<f32> {
        let mut state = seed.wrapping_mul(2_654_435_761).max(1);
        (0..len)
            .map(|_| {
                state ^= state << 13;
                state ^= state >> 17;
                state ^= state << 5;
                state as f32 / u32::MAX as f32 * 2.0 - 1.0
            })
            .collect()
    }

    proptest! {
        #[test]
        fn a_row_is_the_same_alone_and_in_a_batch(n in 1usize..40, m in 1usize..40, k in 1usize..70, seed: u32) {
            let (x, w) = (values(n * k, seed), values(m * k, seed ^ 7));
            let mut together = vec![0.0; n * m];
            matmul(&x, &w, k, &mut together);
            for row in 0..n {
                let mut alone = vec![0.0; m];
                matmul(&x[row * k..(row + 1) * k], &w, k, &mut alone);
                prop_assert_eq!(&alone[..], &together[row * m..(row + 1) * m]);
            }
        }

        #[test]
        fn products_are_right_on_every_instruction_set(n in 1usize..12, m in 1usize..20, k in 1usize..70, seed: u32) {
            let (x, w) = (values(n * k, seed), values(m * k, seed ^ 7));
            let mut isas = vec![Isa::Portable];
            #[cfg(target_arch = "x86_64")]
            {
                isas.push(isa());
                if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
                    isas.push(Isa::Avx2);
                }
            }
            for isa in isas {
                let mut y = vec![0.0; n * m];
                Product { x: &x, w: &w, k, m, y: y.as_mut_ptr() }.columns(isa, 0..m);
                for row in 0..n {
                    for column in 0..m {
                        let exact: f64 = (0..k).map(|i| f64::from(x[row * k + i]) * f64::from(w[column * k + i])).sum();
                        prop_assert!((f64::from(y[row * m + column]) - exact).abs() < 1e-4);
                    }
                }
            }
        }
    }

    #[test]
    fn threads_do_not_change_a_product() {
        let (n, m, k) = (9, 700, 300);
        let (x, w) = (values(n * k, 1), values(m * k, 2));
        let mut parallel = vec![0.0; n * m];
        matmul(&x, &w, k, &mut parallel);
        let mut single = vec![0.0; n * m];
        let product = Product {
            x: &x,
            w: &w,
            k,
            m,
            y: single.as_mut_ptr(),
        };
        product.columns(isa(), 0..m);
        assert_eq!(parallel, single);
    }
}
