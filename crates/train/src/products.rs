//! Products of matrices of many rows, on all threads: what training spends its time on.
//!
//! Every output is summed in one order, which depends on the sizes alone and not on the threads.

#[cfg(target_arch = "x86_64")]
mod blocked;

use gemm::Parallelism;
#[cfg(target_arch = "x86_64")]
use skipbench_model::simd::{Isa, isa};
use skipbench_model::threads;

/// A matrix as it lies in memory: element `(row, column)` is at `row * rows + column * columns`.
#[derive(Clone, Copy)]
pub(crate) struct Strided<'a> {
    values: &'a [f32],
    rows: usize,
    columns: usize,
}

impl<'a> Strided<'a> {
    /// Rows of `width` values, one behind the other.
    pub(crate) fn rows_of(values: &'a [f32], width: usize) -> Self {
        Self {
            values,
            rows: width,
            columns: 1,
        }
    }

    /// Its transpose.
    pub(crate) fn turned(self) -> Self {
        Self {
            rows: self.columns,
            columns: self.rows,
            ..self
        }
    }

    /// Values that a matrix of so many rows and columns reaches over.
    fn reach(&self, rows: usize, columns: usize) -> usize {
        match rows.min(columns) {
            0 => 0,
            _ => (rows - 1) * self.rows + (columns - 1) * self.columns + 1,
        }
    }
}

/// Sizes of a product: `[m, k]` times `[k, n]`.
#[derive(Clone, Copy)]
pub(crate) struct Sizes {
    pub(crate) m: usize,
    pub(crate) k: usize,
    pub(crate) n: usize,
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
    let w = Strided::rows_of(w, columns);
    let w = if back { w } else { w.turned() };
    (Strided::rows_of(x, k), w, Sizes { m, k, n })
}

/// `x^T y` of `x`: `[rows, m]` and `y`: `[rows, n]`.
pub(crate) fn transposed_product(x: &[f32], y: &[f32], [m, n]: [usize; 2]) -> Vec<f32> {
    let k = x.len() / m.max(1);
    assert!(x.len() == k * m && y.len() == k * n);
    let (x, y) = (Strided::rows_of(x, m), Strided::rows_of(y, n));
    of(x.turned(), y, Sizes { m, k, n })
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
    onto(y, x, w, sizes, true, threads::count());
}

/// `a b` into `c`, or added to it, on this thread alone: for products that many are computed of side by side.
pub(crate) fn alone(c: &mut [f32], a: Strided<'_>, b: Strided<'_>, sizes: Sizes, adds: bool) {
    onto(c, a, b, sizes, adds, 1);
}

/// `[m, n]`
fn of(a: Strided<'_>, b: Strided<'_>, sizes: Sizes) -> Vec<f32> {
    let (len, threads) = (sizes.m * sizes.n, threads::count());
    #[cfg(target_arch = "x86_64")]
    if matches!(isa(), Isa::Avx512) && blocked::suits(sizes) {
        let mut c = Vec::with_capacity(len);
        check(a, b, sizes);
        // SAFETY: the features were detected, the sizes checked, and every element is written.
        unsafe {
            blocked::product(c.as_mut_ptr(), a, b, sizes, false, threads);
            c.set_len(len);
        }
        return c;
    }
    let mut c = vec![0.0; len];
    onto(&mut c, a, b, sizes, false, threads);
    c
}

fn check(a: Strided<'_>, b: Strided<'_>, Sizes { m, k, n }: Sizes) {
    assert!(a.values.len() >= a.reach(m, k) && b.values.len() >= b.reach(k, n));
}

/// Into `c`, `[m, n]`, or added to it.
fn onto(c: &mut [f32], a: Strided<'_>, b: Strided<'_>, sizes: Sizes, adds: bool, threads: usize) {
    let Sizes { m, k, n } = sizes;
    assert!(c.len() == m * n);
    check(a, b, sizes);
    #[cfg(target_arch = "x86_64")]
    if matches!(isa(), Isa::Avx512) && blocked::suits(sizes) {
        // SAFETY: the features were detected and the sizes checked.
        return unsafe { blocked::product(c.as_mut_ptr(), a, b, sizes, adds, threads) };
    }
    let parallelism = match threads {
        1 => Parallelism::None,
        threads => Parallelism::Rayon(threads),
    };
    // SAFETY: all three hold so much.
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
            [40, 600, 16],
            [24, 1200, 30],
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
            let mut added = product(&a, &b, [n, k], false);
            added.iter_mut().for_each(|sum| *sum = -*sum);
            add_product(&mut added, &a, &b, [n, k], false);
            assert!(added.iter().all(|left| left.abs() < 1e-3));
            let mut by_one = vec![7.0; m * n];
            let (rows, columns) = (Strided::rows_of(&a, k), Strided::rows_of(&b, k));
            alone(
                &mut by_one,
                rows,
                columns.turned(),
                Sizes { m, k, n },
                false,
            );
            let found = [
                by_one,
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
