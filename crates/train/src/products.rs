//! Products of matrices of many rows, on all threads: what training spends its time on.
//!
//! Every output is summed in one order, which depends on the sizes alone and not on the threads.

use gemm::Parallelism;
#[cfg(target_arch = "x86_64")]
use skipbench_model::simd::{Isa, isa};

/// A matrix as it lies in memory: element `(row, column)` is at `row * rows + column * columns`.
#[derive(Clone, Copy)]
struct Strided<'a> {
    values: &'a [f32],
    rows: usize,
    columns: usize,
}

/// Sizes of a product: `[m, k]` times `[k, n]`.
#[derive(Clone, Copy)]
struct Sizes {
    m: usize,
    k: usize,
    n: usize,
}

/// `x w^T` or, with `back`, `x w`; `w`: `[rows, columns]`, `x`: `[n, columns]` or `[n, rows]`.
pub(crate) fn product(x: &[f32], w: &[f32], [rows, columns]: [usize; 2], back: bool) -> Vec<f32> {
    let (x, w, sizes) = operands(x, w, [rows, columns], back);
    of(x, w, sizes)
}

fn operands<'a>(
    x: &'a [f32],
    w: &'a [f32],
    [rows, columns]: [usize; 2],
    back: bool,
) -> (Strided<'a>, Strided<'a>, Sizes) {
    let (k, n) = match back {
        true => (rows, columns),
        false => (columns, rows),
    };
    let m = x.len() / k.max(1);
    assert!(x.len() == m * k && w.len() == rows * columns);
    let x = Strided {
        values: x,
        rows: k,
        columns: 1,
    };
    let w = match back {
        true => Strided {
            values: w,
            rows: columns,
            columns: 1,
        },
        false => Strided {
            values: w,
            rows: 1,
            columns,
        },
    };
    (x, w, Sizes { m, k, n })
}

/// `x^T y` of `x`: `[rows, m]` and `y`: `[rows, n]`.
pub(crate) fn transposed_product(x: &[f32], y: &[f32], [m, n]: [usize; 2]) -> Vec<f32> {
    let k = x.len() / m.max(1);
    assert!(x.len() == k * m && y.len() == k * n);
    let x = Strided {
        values: x,
        rows: 1,
        columns: m,
    };
    let y = Strided {
        values: y,
        rows: n,
        columns: 1,
    };
    of(x, y, Sizes { m, k, n })
}

/// Adds `x w^T` or, with `back`, `x w` to `y`, as [`product`] reads them.
pub(crate) fn add_product(
    y: &mut [f32],
    x: &[f32],
    w: &[f32],
    [rows, columns]: [usize; 2],
    back: bool,
) {
    let (x, w, sizes) = operands(x, w, [rows, columns], back);
    assert!(y.len() == sizes.m * sizes.n);
    onto(y, x, w, sizes, true);
}

/// `[m, n]`
fn of(a: Strided<'_>, b: Strided<'_>, sizes: Sizes) -> Vec<f32> {
    #[cfg(target_arch = "x86_64")]
    if matches!(isa(), Isa::Avx512) && sizes.n >= blocked::NR && sizes.m >= blocked::MR {
        return blocked::product(a, b, sizes);
    }
    let mut c = vec![0.0; sizes.m * sizes.n];
    onto(&mut c, a, b, sizes, false);
    c
}

/// Into `c`, `[m, n]`, or added to it.
fn onto(c: &mut [f32], a: Strided<'_>, b: Strided<'_>, Sizes { m, k, n }: Sizes, adds: bool) {
    let parallelism = match rayon::current_num_threads() {
        1 => Parallelism::None,
        threads => Parallelism::Rayon(threads),
    };
    // SAFETY: the callers' assertions say that a and b hold so much, and c has m rows of n.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            c.as_mut_ptr(),
            1,
            n as isize,
            adds,
            a.values.as_ptr(),
            a.columns as isize,
            a.rows as isize,
            b.values.as_ptr(),
            b.columns as isize,
            b.rows as isize,
            f32::from(u8::from(adds)),
            1.0,
            false,
            false,
            false,
            parallelism,
        );
    }
}

/// In blocks that stay in the caches, with AVX-512 (the `gemm` crate that candle builds has AVX2 alone). As in Goto and van de
/// Geijn, "Anatomy of high-performance matrix multiplication", ACM TOMS 34(3), 2008.
#[cfg(target_arch = "x86_64")]
mod blocked {
    use super::{Sizes, Strided};
    use rayon::prelude::*;
    use std::arch::x86_64::*;
    use std::ops::Range;

    /// Rows and columns of a tile of the result: 24 registers of sums.
    pub(super) const MR: usize = 8;
    pub(super) const NR: usize = 48;
    /// Terms that are summed at a time: a tile's strip of the left matrix stays in the first cache, its panel of the right one
    /// in the second.
    const KC: usize = 320;
    /// Rows of the left matrix that are packed at a time by a thread.
    const MC: usize = 96;
    /// Columns of the right matrix that are packed at a time.
    const NC: usize = 48 * 64;

    /// A result that threads write disjoint rows of.
    struct Rows(*mut f32);
    // SAFETY: each thread writes rows of its own, and the matrix outlives the parallel region.
    unsafe impl Sync for Rows {}

    pub(super) fn product(a: Strided<'_>, b: Strided<'_>, sizes: Sizes) -> Vec<f32> {
        let Sizes { m, k, n } = sizes;
        let mut c = vec![0f32; m * n];
        let rows = Rows(c.as_mut_ptr());
        // As even as whole strips allow, so that no thread is left with the rest.
        let threads = rayon::current_num_threads();
        let blocks = m.div_ceil(MC).next_multiple_of(threads);
        let height = m.div_ceil(blocks).next_multiple_of(MR);
        let mut panels = Vec::new();
        for columns in (0..n).step_by(NC).map(|first| first..n.min(first + NC)) {
            for terms in (0..k).step_by(KC).map(|first| first..k.min(first + KC)) {
                pack_panels(b, terms.clone(), columns.clone(), &mut panels);
                let panels = &panels;
                (0..m.div_ceil(height)).into_par_iter().for_each(|block| {
                    let block = block * height..m.min((block + 1) * height);
                    let strips = pack_strips(a, block.clone(), terms.clone());
                    let tiles = Tiles {
                        strips: &strips,
                        panels,
                        terms: terms.len(),
                        adds: terms.start > 0,
                        n,
                    };
                    // SAFETY: the caller has seen that the processor has AVX-512; the rows of the block are this thread's, and
                    // they and the columns lie within the result.
                    unsafe { tiles.run(&rows, block, columns.clone()) };
                });
            }
        }
        c
    }

    /// Columns of `b` in panels of `NR`, each `[terms, NR]`; columns beyond the last are zero.
    fn pack_panels(
        b: Strided<'_>,
        terms: Range<usize>,
        columns: Range<usize>,
        panels: &mut Vec<f32>,
    ) {
        let count = columns.len().div_ceil(NR);
        panels.resize(count * terms.len() * NR, 0.0);
        let len = terms.len() * NR;
        panels
            .par_chunks_mut(len)
            .enumerate()
            .for_each(|(panel, to)| {
                let first = columns.start + panel * NR;
                let width = NR.min(columns.end - first);
                if b.columns == 1 {
                    for (term, to) in terms.clone().zip(to.chunks_exact_mut(NR)) {
                        let from = &b.values[term * b.rows + first..][..width];
                        to[..width].copy_from_slice(from);
                        to[width..].fill(0.0);
                    }
                    return;
                }
                for column in 0..NR {
                    let from = (first + column) * b.columns;
                    for (at, term) in terms.clone().enumerate() {
                        to[at * NR + column] = match column < width {
                            true => b.values[from + term * b.rows],
                            false => 0.0,
                        };
                    }
                }
            });
    }

    /// Rows of `a` in strips of `MR`, each `[terms, MR]`; rows beyond the last are zero.
    fn pack_strips(a: Strided<'_>, rows: Range<usize>, terms: Range<usize>) -> Vec<f32> {
        let count = rows.len().div_ceil(MR);
        let mut strips = vec![0.0; count * terms.len() * MR];
        for (strip, to) in strips.chunks_exact_mut(terms.len() * MR).enumerate() {
            let first = rows.start + strip * MR;
            let height = MR.min(rows.end - first);
            for row in 0..height {
                let from = (first + row) * a.rows;
                for (at, term) in terms.clone().enumerate() {
                    to[at * MR + row] = a.values[from + term * a.columns];
                }
            }
        }
        strips
    }

    struct Tiles<'a> {
        strips: &'a [f32],
        panels: &'a [f32],
        terms: usize,
        /// To what is there already.
        adds: bool,
        /// Columns of the result.
        n: usize,
    }

    impl Tiles<'_> {
        /// # Safety
        /// The processor has AVX-512F; `rows` and `columns` lie in `c`, and no other thread has these rows.
        #[target_feature(enable = "avx512f")]
        unsafe fn run(&self, c: &Rows, rows: Range<usize>, columns: Range<usize>) {
            let panels = self.panels.chunks_exact(self.terms * NR);
            for (panel, right) in panels.enumerate() {
                let column = columns.start + panel * NR;
                let width = NR.min(columns.end - column);
                for (strip, left) in self.strips.chunks_exact(self.terms * MR).enumerate() {
                    let row = rows.start + strip * MR;
                    let height = MR.min(rows.end - row);
                    // SAFETY: the caller's; a tile that hangs over is written to a buffer first.
                    unsafe {
                        let to = c.0.add(row * self.n + column);
                        if height == MR && width == NR {
                            tile(left, right, self.terms, to, self.n, self.adds);
                            continue;
                        }
                        let mut whole = [0f32; MR * NR];
                        tile(left, right, self.terms, whole.as_mut_ptr(), NR, false);
                        for row in 0..height {
                            let to = std::slice::from_raw_parts_mut(to.add(row * self.n), width);
                            let sums = to.iter_mut().zip(&whole[row * NR..]);
                            match self.adds {
                                true => sums.for_each(|(to, sum)| *to += sum),
                                false => sums.for_each(|(to, sum)| *to = *sum),
                            }
                        }
                    }
                }
            }
        }
    }

    /// `[MR, NR]` at `to`, whose rows are `stride` apart, of a strip and a panel.
    ///
    /// # Safety
    /// The processor has AVX-512F, `left` and `right` have so many terms, and the tile lies at `to`.
    #[target_feature(enable = "avx512f")]
    unsafe fn tile(
        left: &[f32],
        right: &[f32],
        terms: usize,
        to: *mut f32,
        stride: usize,
        adds: bool,
    ) {
        const V: usize = NR / 16;
        let mut sums = [[_mm512_setzero_ps(); V]; MR];
        let (mut a, mut b) = (left.as_ptr(), right.as_ptr());
        // SAFETY: the caller's.
        unsafe {
            for _ in 0..terms {
                let weights = [
                    _mm512_loadu_ps(b),
                    _mm512_loadu_ps(b.add(16)),
                    _mm512_loadu_ps(b.add(32)),
                ];
                for (i, sums) in sums.iter_mut().enumerate() {
                    let x = _mm512_set1_ps(*a.add(i));
                    for (sum, weights) in sums.iter_mut().zip(weights) {
                        *sum = _mm512_fmadd_ps(x, weights, *sum);
                    }
                }
                a = a.add(MR);
                b = b.add(NR);
            }
            for (i, sums) in sums.iter().enumerate() {
                for (v, sum) in sums.iter().enumerate() {
                    let to = to.add(i * stride + v * 16);
                    let sum = match adds {
                        true => _mm512_add_ps(*sum, _mm512_loadu_ps(to)),
                        false => *sum,
                    };
                    _mm512_storeu_ps(to, sum);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_matrix_is_read_along_its_rows_and_its_columns() {
        // [2, 3]
        let w = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0];
        assert_eq!(product(&[1.0, 0.0, 2.0], &w, [2, 3], false), [7.0, 16.0]);
        assert_eq!(
            product(&[1.0, 2.0, 0.0, 1.0], &w, [2, 3], true),
            [9.0, 12.0, 15.0, 4.0, 5.0, 6.0]
        );
        assert_eq!(
            transposed_product(&[1.0, 2.0, 0.0, 1.0], &w, [2, 3]),
            [1.0, 2.0, 3.0, 6.0, 9.0, 12.0]
        );
        let mut sum = [1.0, 2.0, 3.0];
        add_product(&mut sum, &[1.0, 2.0], &w, [2, 3], true);
        assert_eq!(sum, [10.0, 14.0, 18.0]);
    }

    /// Whole blocks and what hangs over on every side.
    #[test]
    fn blocks_of_all_sizes_are_right() {
        let matrix = |rows: usize, columns: usize, seed: usize| -> Vec<f32> {
            let value = |at: usize| ((at * 7 + seed * 13) % 31) as f32 / 16.0 - 0.9;
            (0..rows * columns).map(value).collect()
        };
        for [m, k, n] in [
            [8, 1, 48],
            [9, 5, 49],
            [64, 320, 96],
            [101, 321, 143],
            [200, 650, 50],
            [33, 7, 3100],
        ] {
            let (a, b) = (matrix(m, k, 1), matrix(n, k, 2));
            let sum = |row: usize, column: usize| -> f64 {
                let terms = a[row * k..][..k].iter().zip(&b[column * k..][..k]);
                terms.map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
            };
            let turned = |x: &[f32], rows: usize, columns: usize| -> Vec<f32> {
                let place = |at: usize| x[at % rows * columns + at / rows];
                (0..rows * columns).map(place).collect()
            };
            let found = [
                product(&a, &b, [n, k], false),
                product(&a, &turned(&b, n, k), [k, n], true),
                transposed_product(&turned(&a, m, k), &turned(&b, n, k), [m, n]),
            ];
            for found in found {
                for (at, found) in found.iter().enumerate() {
                    let wanted = sum(at / n, at % n);
                    let apart = (f64::from(*found) - wanted).abs();
                    assert!(apart < 1e-3, "{m} x {k} x {n} at {at}: {found} {wanted}");
                }
            }
        }
    }
}
