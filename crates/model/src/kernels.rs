//! Products of few rows with a large weight on the CPU, in f32 whatever the weight is kept in.
//!
//! Every output element is reduced in one fixed order that depends on neither the number of rows nor the number
//! of threads nor the type of the weight, so a row's result is bit for bit the same alone and in any batch, and a weight of
//! 16 bits gives what its values give in 32.

use crate::element::Element;
use crate::simd::{Isa, isa};
use crate::threads;
use std::ops::Range;

/// Values of `x` that are kept in the second cache while a weight streams by.
const ROW_VALUES: usize = 1 << 16;

/// Rows of `x` that are kept close at least; a block has a multiple of them.
const ROW_BLOCK: usize = 32;

/// Panels that are kept close while the rows of a block pass over them, so that memory is read once for all of these; a
/// multiple of every tile's.
const PANEL_BLOCK: usize = 12;

/// Rows from which a tile's own weights are fetched ahead: a block has strips of so many, of which all but the first find them in the
/// second cache.
#[cfg(target_arch = "x86_64")]
const TALL: usize = 6;

/// Inputs that they are fetched ahead.
#[cfg(target_arch = "x86_64")]
const AHEAD: usize = 8;

/// Outputs of a panel: one AVX-512 register, two of AVX2.
pub(crate) const PANEL: usize = 16;

/// A weight `[m, k]` laid out for products with few rows: panels of 16 outputs, each `[k, 16]`. One input value is
/// multiplied with 16 weights at a time, so nothing is summed across lanes, and memory is read in order.
pub(crate) struct Panels<T> {
    /// `[panels, k, 16]`; rows beyond `m` are zero.
    pub(crate) data: Vec<T>,
    pub(crate) k: usize,
    pub(crate) m: usize,
}

impl<T: Element> Panels<T> {
    /// `y = x w^T`; `x`: `[n, k]`.
    pub(crate) fn matmul(&self, x: &[f32], y: Columns<'_>) {
        let n = x.len() / self.k;
        assert_eq!(x.len(), n * self.k);
        y.check(n, self.m);
        let product = Product {
            x,
            w: self,
            y: y.values.as_mut_ptr(),
            stride: y.stride,
        };
        let isa = isa();
        let panels = self.m.div_ceil(PANEL);
        threads::split(panels, n * self.m * self.k, |panels| {
            product.panels(isa, panels);
        });
    }
}

/// Columns of a result that a product writes: the first of them of the first row, and all that is behind it.
pub(crate) struct Columns<'a> {
    pub(crate) values: &'a mut [f32],
    /// From a row to the next.
    pub(crate) stride: usize,
}

impl Columns<'_> {
    /// Panics unless `n` rows of `m` columns are there.
    pub(crate) fn check(&self, n: usize, m: usize) {
        assert!(m <= self.stride && self.values.len() + self.stride >= n * self.stride + m);
    }
}

struct Product<'a, T> {
    x: &'a [f32],
    w: &'a Panels<T>,
    y: *mut f32,
    stride: usize,
}

// SAFETY: threads are given disjoint panels, and so disjoint columns of `y`, which outlives the parallel region.
unsafe impl<T: Element> Sync for Product<'_, T> {}

impl<T: Element> Product<'_, T> {
    /// The columns of `panels` for all rows.
    fn panels(&self, isa: Isa, panels: Range<usize>) {
        let n = self.x.len() / self.w.k;
        let block = (ROW_VALUES / self.w.k / ROW_BLOCK).max(1) * ROW_BLOCK;
        for first in (0..n).step_by(block) {
            let rows = first..n.min(first + block);
            for first in panels.clone().step_by(PANEL_BLOCK) {
                self.block(
                    isa,
                    rows.clone(),
                    first..panels.end.min(first + PANEL_BLOCK),
                );
            }
        }
    }

    /// The columns of `panels` for `rows`.
    fn block(&self, isa: Isa, rows: Range<usize>, panels: Range<usize>) {
        match isa {
            // SAFETY: the features were detected; rows and panels lie within x, w and y.
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => unsafe { avx512::block(self, rows, panels) },
            // SAFETY: as above.
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => unsafe { avx2::block(self, rows, panels) },
            Isa::Portable => self.portable(rows, panels),
        }
    }

    fn portable(&self, rows: Range<usize>, panels: Range<usize>) {
        let k = self.w.k;
        for panel in panels {
            let weights = &self.w.data[panel * PANEL * k..][..PANEL * k];
            for row in rows.clone() {
                let mut sums = [0f32; PANEL];
                for (x, weights) in self.x[row * k..][..k].iter().zip(weights.as_chunks().0) {
                    let weights: &[T; PANEL] = weights;
                    for lane in 0..PANEL {
                        sums[lane] += x * weights[lane].widen();
                    }
                }
                // SAFETY: row < n and panel is one of w's.
                unsafe { self.store(row, panel, &sums) };
            }
        }
    }

    /// # Safety
    /// `row` is a row of x, `panel` a panel of w that no other thread works on.
    #[inline(always)]
    unsafe fn store(&self, row: usize, panel: usize, sums: &[f32; PANEL]) {
        let column = panel * PANEL;
        let width = PANEL.min(self.w.m - column);
        // SAFETY: columns up to m of a row lie in y.
        unsafe {
            let to = self.y.add(row * self.stride + column);
            std::ptr::copy_nonoverlapping(sums.as_ptr(), to, width);
        }
    }
}

/// Products for one instruction set, in tiles of `R` rows by `P` panels. Every output is one chain of fused
/// multiply-adds over `k`, in every tile shape.
#[cfg(target_arch = "x86_64")]
macro_rules! tiled_products {
    ($name:ident, $features:literal, $lanes:literal, $zero:ident, $load:ident, $set:ident, $fma:ident, $store:ident,
     [$(($r:literal, $p:literal)),*]) => {
        mod $name {
            use super::{AHEAD, Element, PANEL, Product, TALL};
            use std::arch::x86_64::*;
            use std::ops::Range;

            /// Registers of a panel.
            const V: usize = PANEL / $lanes;

            #[target_feature(enable = $features)]
            unsafe fn tile<T: Element, const R: usize, const P: usize>(
                p: &Product<T>,
                row: usize,
                panel: usize,
            ) {
                let k = p.w.k;
                // SAFETY: the caller keeps row + R rows and panel + P panels within x and w.
                unsafe {
                    let x = p.x.as_ptr().add(row * k);
                    let w = p.w.data.as_ptr().add(panel * PANEL * k);
                    let mut sums = [[[$zero(); V]; P]; R];
                    for at in 0..k {
                        let mut weights = [[$zero(); V]; P];
                        for j in 0..P {
                            // The weights of the next tile: a panel is too short for the processor to foresee its end.
                            let next = w.wrapping_add(((P + j) * k + at) * PANEL);
                            _mm_prefetch::<_MM_HINT_T0>(next.cast());
                            if R >= TALL {
                                let soon = w.wrapping_add((j * k + at + AHEAD) * PANEL);
                                _mm_prefetch::<_MM_HINT_T0>(soon.cast());
                            }
                            for v in 0..V {
                                weights[j][v] = T::$load(w.add((j * k + at) * PANEL + v * $lanes));
                            }
                        }
                        for i in 0..R {
                            let x = $set(*x.add(i * k + at));
                            for j in 0..P {
                                for v in 0..V {
                                    sums[i][j][v] = $fma(x, weights[j][v], sums[i][j][v]);
                                }
                            }
                        }
                    }
                    for i in 0..R {
                        for j in 0..P {
                            let mut out = [0f32; PANEL];
                            for v in 0..V {
                                $store(out.as_mut_ptr().add(v * $lanes), sums[i][j][v]);
                            }
                            p.store(row + i, panel + j, &out);
                        }
                    }
                }
            }

            #[target_feature(enable = $features)]
            unsafe fn strip<T: Element, const R: usize, const P: usize>(
                p: &Product<T>,
                row: usize,
                panels: Range<usize>,
            ) {
                let mut panel = panels.start;
                // SAFETY: tiles stay within `panels`, rows within what the caller was given.
                unsafe {
                    while panel + P <= panels.end {
                        tile::<T, R, P>(p, row, panel);
                        panel += P;
                    }
                    while panel < panels.end {
                        tile::<T, R, 1>(p, row, panel);
                        panel += 1;
                    }
                }
            }

            /// # Safety
            /// The CPU has the features; `rows` lie in `x`, `panels` in `w`.
            #[target_feature(enable = $features)]
            pub(super) unsafe fn block<T: Element>(
                p: &Product<T>,
                rows: Range<usize>,
                panels: Range<usize>,
            ) {
                let mut row = rows.start;
                // SAFETY: each strip takes rows that are left in `rows`.
                unsafe {
                    $(while rows.end - row >= $r {
                        strip::<T, $r, $p>(p, row, panels.clone());
                        row += $r;
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
    load_avx512,
    _mm512_set1_ps,
    _mm512_fmadd_ps,
    _mm512_storeu_ps,
    [(8, 3), (4, 4), (2, 4), (1, 4)]
);

#[cfg(target_arch = "x86_64")]
tiled_products!(
    avx2,
    "avx2,fma,f16c",
    8,
    _mm256_setzero_ps,
    load_avx2,
    _mm256_set1_ps,
    _mm256_fmadd_ps,
    _mm256_storeu_ps,
    [(6, 1), (4, 1), (2, 2), (1, 2)]
);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scratch::Pool;
    use half::{bf16, f16};
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

    fn packed<T: Element>(w: &[f32], k: usize) -> Panels<T> {
        Panels::pack(w.len() / k, k, &Pool::default(), |rows, scratch| {
            scratch.wide.clear();
            let rows = &w[rows.start * k..rows.end * k];
            scratch.wide.extend_from_slice(rows);
            Ok(())
        })
        .unwrap()
    }

    fn product<T: Element>(x: &[f32], w: &[f32], k: usize) -> Vec<f32> {
        let mut y = vec![0.0; x.len() / k * (w.len() / k)];
        let columns = Columns {
            stride: w.len() / k,
            values: &mut y,
        };
        packed::<T>(w, k).matmul(x, columns);
        y
    }

    /// The instruction sets that this machine has.
    fn isas() -> Vec<Isa> {
        let mut isas = vec![Isa::Portable, isa()];
        #[cfg(target_arch = "x86_64")]
        if !matches!(isa(), Isa::Portable) {
            isas.push(Isa::Avx2);
        }
        isas
    }

    /// The product by one instruction set, on one thread.
    fn product_by<T: Element>(isa: Isa, x: &[f32], w: &Panels<T>) -> Vec<f32> {
        let mut y = vec![0.0; x.len() / w.k * w.m];
        let product = Product {
            x,
            w,
            y: y.as_mut_ptr(),
            stride: w.m,
        };
        product.panels(isa, 0..w.m.div_ceil(PANEL));
        y
    }

    /// The bits of the same values in 32 bits, on every instruction set.
    fn narrow_gives_the_bits_of_wide<T: Element>(x: &[f32], w: &[f32], k: usize) {
        let mut narrow = T::zeros(w.len());
        T::narrow(w, &mut narrow);
        let wide: Vec<f32> = narrow.iter().map(|value| value.widen()).collect();
        assert_ne!(wide, w);
        for isa in isas() {
            let found = product_by(isa, x, &packed::<T>(w, k));
            assert_eq!(
                found,
                product_by(isa, x, &packed::<f32>(&wide, k)),
                "{isa:?}"
            );
        }
    }

    proptest! {
        #[test]
        fn a_row_is_the_same_alone_and_in_a_batch(n in 1usize..40, m in 1usize..140, k in 1usize..70, seed: u32) {
            let (x, w) = (values(n * k, seed), values(m * k, seed ^ 7));
            let together = product::<f32>(&x, &w, k);
            for row in 0..n {
                let alone = product::<f32>(&x[row * k..(row + 1) * k], &w, k);
                prop_assert_eq!(&alone[..], &together[row * m..(row + 1) * m]);
            }
        }

        #[test]
        fn products_are_right_on_every_instruction_set(n in 1usize..12, m in 1usize..140, k in 1usize..70, seed: u32) {
            let (x, w) = (values(n * k, seed), values(m * k, seed ^ 7));
            for isa in isas() {
                let y = product_by(isa, &x, &packed::<f32>(&w, k));
                for row in 0..n {
                    for column in 0..m {
                        let exact: f64 = (0..k).map(|i| f64::from(x[row * k + i]) * f64::from(w[column * k + i])).sum();
                        prop_assert!((f64::from(y[row * m + column]) - exact).abs() < 1e-4);
                    }
                }
            }
        }

        #[test]
        fn weights_of_16_bits_give_what_their_values_give(n in 1usize..40, m in 1usize..140, k in 1usize..70, seed: u32) {
            let (x, w) = (values(n * k, seed), values(m * k, seed ^ 7));
            narrow_gives_the_bits_of_wide::<bf16>(&x, &w, k);
            narrow_gives_the_bits_of_wide::<f16>(&x, &w, k);
        }
    }

    #[test]
    fn threads_do_not_change_a_product() {
        let (n, m, k) = (9, 700, 300);
        let (x, w) = (values(n * k, 1), values(m * k, 2));
        let single = product_by(isa(), &x, &packed::<f32>(&w, k));
        assert_eq!(product::<f32>(&x, &w, k), single);
        let single = product_by(isa(), &x, &packed::<bf16>(&w, k));
        assert_eq!(product::<bf16>(&x, &w, k), single);
    }
}
