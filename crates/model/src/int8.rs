//! Products of few rows with a weight in blocks of 8 or 4 bits.
//!
//! Activations are quantised row by row in blocks of 32: a scale, the largest absolute value over 127, and codes of 8 bits.
//! Codes are multiplied and summed as integers within a block, exactly; the sums of blocks are scaled and added in f32, in
//! one fixed order and without fused multiply-adds. So a row gives the same bits alone and in any batch, on any number of
//! threads and on every instruction set.

use crate::blocks::{BLOCK, BlockPanels, Kind, code};
use crate::kernels::{Columns, PANEL};
use crate::threads;
use crate::vectorised;
use std::ops::Range;

#[cfg(target_arch = "x86_64")]
mod simd;
#[cfg(test)]
mod tests;

/// Rows whose codes are kept close while a weight streams by.
const ROW_BLOCK: usize = 32;

/// Panels that are kept close while the rows of a block pass over them; a multiple of every tile's.
const PANEL_BLOCK: usize = 12;

/// Rows of activations `[n, k]`.
pub(crate) struct Activations {
    /// `[n, k]`
    codes: Vec<i8>,
    /// `[n, k / 32]`
    scales: Vec<f32>,
    /// The sum of the codes of each block, as the scales.
    sums: Vec<i32>,
}

impl Activations {
    /// Quantises rows whose length is a multiple of 32.
    pub(crate) fn new(x: &[f32]) -> Self {
        let mut quantised = Self {
            codes: vec![0; x.len()],
            scales: vec![0.0; x.len() / BLOCK],
            sums: vec![0; x.len() / BLOCK],
        };
        quantise(x, &mut quantised);
        quantised
    }
}

vectorised! {
    /// Each block of `x` by itself.
    fn quantise(x: &[f32], to: &mut Activations) = quantise_blocks
}

#[inline(always)]
fn quantise_blocks<const FMA: bool>(x: &[f32], to: &mut Activations) {
    // Added to a number below 2^22 it leaves the nearest whole one in the last bits, ties to even.
    const ROUND: f32 = 12_582_912.0;
    let blocks = x.as_chunks::<BLOCK>().0.iter();
    let codes = to.codes.as_chunks_mut::<BLOCK>().0.iter_mut();
    let of_blocks = to.scales.iter_mut().zip(&mut to.sums);
    for ((x, codes), (scale, sum)) in blocks.zip(codes).zip(of_blocks) {
        let (mut largest, mut poison) = ([0f32; 16], [0f32; 16]);
        for half in x.as_chunks::<16>().0 {
            for lane in 0..16 {
                let size = half[lane].abs();
                largest[lane] = if size > largest[lane] {
                    size
                } else {
                    largest[lane]
                };
                // Neither infinities nor what is no number may turn into codes.
                poison[lane] += half[lane] * 0.0;
            }
        }
        let largest = largest
            .iter()
            .fold(0f32, |max, &x| if x > max { x } else { max });
        let poison: f32 = poison.iter().sum();
        *scale = largest / 127.0 + poison;
        let inverse = if largest > 0.0 { 127.0 / largest } else { 0.0 };
        let mut all = 0;
        for (code, x) in codes.iter_mut().zip(x) {
            let rounded = (x * inverse + ROUND).to_bits() as i32 - ROUND.to_bits() as i32;
            *code = rounded as i8;
            all += i32::from(*code);
        }
        *sum = all;
    }
}

/// The instruction sets that these products are compiled for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Isa {
    /// AVX-512 with byte products.
    #[cfg(target_arch = "x86_64")]
    Vnni,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    Portable,
}

fn isa() -> Isa {
    #[cfg(target_arch = "x86_64")]
    {
        let has_512 = is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512bw");
        if has_512 && is_x86_feature_detected!("avx512vnni") {
            return Isa::Vnni;
        }
        if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("f16c") {
            return Isa::Avx2;
        }
    }
    Isa::Portable
}

impl<K: Kind> BlockPanels<K> {
    /// `y = x w^T` of `n` rows.
    pub(crate) fn matmul(&self, x: &Activations, y: Columns<'_>) {
        let n = x.codes.len() / self.k;
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
            product.panels(isa, panels)
        });
    }
}

struct Product<'a, K> {
    x: &'a Activations,
    w: &'a BlockPanels<K>,
    y: *mut f32,
    stride: usize,
}

// SAFETY: threads are given disjoint panels, and so disjoint columns of `y`, which outlives the parallel region.
unsafe impl<K: Kind> Sync for Product<'_, K> {}

impl<K: Kind> Product<'_, K> {
    /// The columns of `panels` for all rows.
    fn panels(&self, isa: Isa, panels: Range<usize>) {
        let n = self.x.codes.len() / self.w.k;
        for first in (0..n).step_by(ROW_BLOCK) {
            let rows = first..n.min(first + ROW_BLOCK);
            for first in panels.clone().step_by(PANEL_BLOCK) {
                let panels = first..panels.end.min(first + PANEL_BLOCK);
                match isa {
                    // SAFETY: the features were detected; rows and panels lie within x, w and y.
                    #[cfg(target_arch = "x86_64")]
                    Isa::Vnni => unsafe { vnni::block(self, rows.clone(), panels) },
                    // SAFETY: as above.
                    #[cfg(target_arch = "x86_64")]
                    Isa::Avx2 => unsafe { avx2::block(self, rows.clone(), panels) },
                    Isa::Portable => self.portable(rows.clone(), panels),
                }
            }
        }
    }

    fn portable(&self, rows: Range<usize>, panels: Range<usize>) {
        let (k, blocks) = (self.w.k, self.w.k / BLOCK);
        for panel in panels {
            for row in rows.clone() {
                let mut sums = [0f32; PANEL];
                for block in 0..blocks {
                    let at = panel * blocks + block;
                    let lines = &self.w.lines[at * K::BITS..][..K::BITS];
                    let codes = &self.x.codes[row * k + block * BLOCK..][..BLOCK];
                    let scale = self.x.scales[row * blocks + block];
                    let sum = self.x.sums[row * blocks + block];
                    for (lane, to) in sums.iter_mut().enumerate() {
                        let products = codes.iter().enumerate();
                        let products = products
                            .map(|(input, &x)| code::<K>(lines, lane, input) * i32::from(x));
                        let whole = products.sum::<i32>() - K::OFFSET * sum;
                        *to += whole as f32 * (self.w.scales[at][lane].to_f32() * scale);
                        if K::HAS_MIN {
                            *to += self.w.mins[at][lane].to_f32() * (scale * sum as f32);
                        }
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

/// Products for one instruction set, in tiles of `R` rows by `P` panels. `$start8`: what was added to codes of 8 bits to make
/// them unsigned.
#[cfg(target_arch = "x86_64")]
macro_rules! tiled_products {
    ($name:ident, $features:literal, $lanes:literal, $start8:literal, [$(($r:literal, $p:literal)),*]) => {
        mod $name {
            use super::{Product, simd::$name::*};
            use crate::blocks::{BLOCK, Kind};
            use crate::kernels::PANEL;
            use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
            use std::ops::Range;

            /// Registers of a panel.
            const V: usize = PANEL / $lanes;

            #[target_feature(enable = $features)]
            unsafe fn tile<K: Kind, const R: usize, const P: usize>(
                p: &Product<K>,
                row: usize,
                panel: usize,
            ) {
                let blocks = p.w.k / BLOCK;
                // SAFETY: the caller keeps row + R rows and panel + P panels within x and w.
                unsafe {
                    let codes = p.x.codes.as_ptr().add(row * p.w.k);
                    let of_rows = row * blocks;
                    let mut sums = [[[zero(); V]; P]; R];
                    for block in 0..blocks {
                        let mut whole = [[[zero_int(); V]; P]; R];
                        for i in 0..R {
                            let offset = if K::BITS == 8 { $start8 } else { K::OFFSET };
                            if offset != 0 {
                                let sum = *p.x.sums.as_ptr().add(of_rows + i * blocks + block);
                                whole[i] = [[set_int(-offset * sum); V]; P];
                            }
                        }
                        let at = |j: usize| (panel + j) * blocks + block;
                        for line in 0..K::BITS {
                            let mut low = [[zero_int(); V]; P];
                            let mut high = [[zero_int(); V]; P];
                            for j in 0..P {
                                let from = p.w.lines.as_ptr().add(at(j) * K::BITS + line).cast::<u8>();
                                // The weights of the next tile: a panel is too short for the processor to foresee its end.
                                let next = from.wrapping_add(P * blocks * K::BITS * 64);
                                _mm_prefetch::<_MM_HINT_T0>(next.cast());
                                for v in 0..V {
                                    let codes = load_codes(from.add(v * 4 * $lanes));
                                    if K::BITS == 8 {
                                        low[j][v] = codes;
                                    } else {
                                        (low[j][v], high[j][v]) = nibbles(codes);
                                    }
                                }
                            }
                            for i in 0..R {
                                let codes = codes.add(i * p.w.k + block * BLOCK + line * (BLOCK / K::BITS));
                                let x = four_codes(codes);
                                if K::BITS == 8 {
                                    for j in 0..P {
                                        for v in 0..V {
                                            whole[i][j][v] = dot8(whole[i][j][v], low[j][v], x);
                                        }
                                    }
                                } else {
                                    let behind = four_codes(codes.add(4));
                                    for j in 0..P {
                                        for v in 0..V {
                                            whole[i][j][v] = dot4(whole[i][j][v], low[j][v], x);
                                            whole[i][j][v] = dot4(whole[i][j][v], high[j][v], behind);
                                        }
                                    }
                                }
                            }
                        }
                        for j in 0..P {
                            for v in 0..V {
                                let scales = p.w.scales.as_ptr().add(at(j)).cast::<u16>().add(v * $lanes);
                                let scales = load_halves(scales);
                                let mins = match K::HAS_MIN {
                                    true => load_halves(p.w.mins.as_ptr().add(at(j)).cast::<u16>().add(v * $lanes)),
                                    false => zero(),
                                };
                                for i in 0..R {
                                    let of_row = of_rows + i * blocks + block;
                                    let scale = *p.x.scales.as_ptr().add(of_row);
                                    let scaled = times(to_float(whole[i][j][v]), times(scales, set(scale)));
                                    sums[i][j][v] = plus(sums[i][j][v], scaled);
                                    if K::HAS_MIN {
                                        let sum = *p.x.sums.as_ptr().add(of_row) as f32;
                                        sums[i][j][v] = plus(sums[i][j][v], times(mins, set(scale * sum)));
                                    }
                                }
                            }
                        }
                    }
                    for i in 0..R {
                        for j in 0..P {
                            let mut out = [0f32; PANEL];
                            for v in 0..V {
                                store(out.as_mut_ptr().add(v * $lanes), sums[i][j][v]);
                            }
                            p.store(row + i, panel + j, &out);
                        }
                    }
                }
            }

            #[target_feature(enable = $features)]
            unsafe fn strip<K: Kind, const R: usize, const P: usize>(
                p: &Product<K>,
                row: usize,
                panels: Range<usize>,
            ) {
                let mut panel = panels.start;
                // SAFETY: tiles stay within `panels`, rows within what the caller was given.
                unsafe {
                    while panel + P <= panels.end {
                        tile::<K, R, P>(p, row, panel);
                        panel += P;
                    }
                    while panel < panels.end {
                        tile::<K, R, 1>(p, row, panel);
                        panel += 1;
                    }
                }
            }

            /// # Safety
            /// The CPU has the features; `rows` lie in `x`, `panels` in `w`.
            #[target_feature(enable = $features)]
            pub(super) unsafe fn block<K: Kind>(
                p: &Product<K>,
                rows: Range<usize>,
                panels: Range<usize>,
            ) {
                let mut row = rows.start;
                // SAFETY: each strip takes rows that are left in `rows`.
                unsafe {
                    $(while rows.end - row >= $r {
                        strip::<K, $r, $p>(p, row, panels.clone());
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
    vnni,
    "avx512f,avx512bw,avx512vnni",
    16,
    128,
    [(4, 3), (2, 4), (1, 4)]
);

#[cfg(target_arch = "x86_64")]
tiled_products!(avx2, "avx2,f16c", 8, 0, [(3, 1), (2, 1), (1, 2)]);
