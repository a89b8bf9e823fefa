//! Products in blocks that stay in the caches, with AVX-512 (the `gemm` crate that candle builds has AVX2 alone). As in Goto and van de
//! Geijn, "Anatomy of high-performance matrix multiplication", ACM TOMS 34(3), 2008.

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
fn pack_panels(b: Strided<'_>, terms: Range<usize>, columns: Range<usize>, panels: &mut Vec<f32>) {
    let len = terms.len() * NR;
    panels.resize(columns.len().div_ceil(NR) * len, 0.0);
    panels
        .par_chunks_mut(len)
        .enumerate()
        .for_each(|(panel, to)| {
            let first = columns.start + panel * NR;
            let lanes = first..columns.end.min(first + NR);
            pack::<NR>(b.turned(), lanes, terms.clone(), to);
        });
}

/// Rows of `a` in strips of `MR`, each `[terms, MR]`; rows beyond the last are zero.
fn pack_strips(a: Strided<'_>, rows: Range<usize>, terms: Range<usize>) -> Vec<f32> {
    let len = terms.len() * MR;
    let mut strips = vec![0.0; rows.len().div_ceil(MR) * len];
    for (strip, to) in strips.chunks_exact_mut(len).enumerate() {
        let first = rows.start + strip * MR;
        let lanes = first..rows.end.min(first + MR);
        pack::<MR>(a, lanes, terms.clone(), to);
    }
    strips
}

/// Rows `lanes` of `from`, up to `W` of them, as `[terms, W]`; lanes beyond the last are zero.
fn pack<const W: usize>(
    from: Strided<'_>,
    lanes: Range<usize>,
    terms: Range<usize>,
    to: &mut [f32],
) {
    let width = lanes.len();
    if from.rows == 1 {
        for (term, to) in terms.zip(to.chunks_exact_mut(W)) {
            let at = term * from.columns + lanes.start;
            to[..width].copy_from_slice(&from.values[at..at + width]);
            to[width..].fill(0.0);
        }
        return;
    }
    if width < W {
        to.fill(0.0);
    }
    let (whole_lanes, whole_terms) = (width / 8 * 8, terms.len() / 8 * 8);
    let place = |lane: usize, term: usize| {
        (lanes.start + lane) * from.rows + (terms.start + term) * from.columns
    };
    let squares = match from.columns {
        1 => whole_lanes,
        _ => 0,
    };
    for lane in (0..squares).step_by(8) {
        for term in (0..whole_terms).step_by(8) {
            let last = place(lane + 7, term + 7);
            assert!(last < from.values.len() && (term + 7) * W + lane + 8 <= to.len());
            // SAFETY: AVX-512 brings AVX; the last element of either square was seen to lie within its matrix.
            unsafe {
                let values = from.values.as_ptr().add(place(lane, term));
                turn_8x8(values, from.rows, to.as_mut_ptr().add(term * W + lane), W);
            }
        }
    }
    for lane in 0..width {
        let rest = if lane < squares { whole_terms } else { 0 };
        for term in rest..terms.len() {
            to[term * W + lane] = from.values[place(lane, term)];
        }
    }
}

/// The transpose of eight rows of eight, which are `stride` and `to_stride` apart.
///
/// # Safety
/// The processor has AVX, and the rows lie at both places.
#[target_feature(enable = "avx")]
unsafe fn turn_8x8(from: *const f32, stride: usize, to: *mut f32, to_stride: usize) {
    // SAFETY: the caller's.
    let rows: [__m256; 8] =
        std::array::from_fn(|row| unsafe { _mm256_loadu_ps(from.add(row * stride)) });
    // Pairs of rows, then fours, then halves: each step doubles how many of a column lie side by side.
    let pairs: [__m256; 8] = std::array::from_fn(|i| {
        let (a, b) = (rows[i / 2 * 2], rows[i / 2 * 2 + 1]);
        match i % 2 {
            0 => _mm256_unpacklo_ps(a, b),
            _ => _mm256_unpackhi_ps(a, b),
        }
    });
    let fours: [__m256; 8] = std::array::from_fn(|i| {
        let (a, b) = (
            pairs[i / 4 * 4 + i % 4 / 2],
            pairs[i / 4 * 4 + i % 4 / 2 + 2],
        );
        match i % 2 {
            0 => _mm256_shuffle_ps::<0x44>(a, b),
            _ => _mm256_shuffle_ps::<0xee>(a, b),
        }
    });
    for column in 0..8 {
        let (a, b) = (fours[column % 4], fours[column % 4 + 4]);
        let turned = match column / 4 {
            0 => _mm256_permute2f128_ps::<0x20>(a, b),
            _ => _mm256_permute2f128_ps::<0x31>(a, b),
        };
        // SAFETY: the caller's.
        unsafe { _mm256_storeu_ps(to.add(column * to_stride), turned) };
    }
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
unsafe fn tile(left: &[f32], right: &[f32], terms: usize, to: *mut f32, stride: usize, adds: bool) {
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
