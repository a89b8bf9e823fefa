//! Products in blocks that stay in the caches, with AVX-512 (the `gemm` crate that candle builds has AVX2 alone). As in Goto and van de
//! Geijn, "Anatomy of high-performance matrix multiplication", ACM TOMS 34(3), 2008.

use super::{Sizes, Strided};
use skipbench_model::threads::SideBySide;
use std::arch::x86_64::*;
use std::ops::Range;

/// Rows of a tile of the result.
const MR: usize = 8;
/// Columns of a register.
const LANES: usize = 16;
/// Registers of columns of the widest tile: 24 of sums.
const WIDEST: usize = 3;
/// The most terms that are summed at a time: a tile's strip of the left matrix stays in the first cache, its panel of the right
/// one in the second.
const KC: usize = 576;
/// Terms that are fetched ahead into the first cache: of a panel, which comes from the second, and of a strip, half of which it holds.
const AHEAD: usize = 8;
/// Rows of the left matrix that are packed at a time by a thread.
const MC: usize = 96;
/// The most columns of the right matrix that are packed at a time.
const NC: usize = 48 * 64;

/// A result that threads write disjoint rows of.
struct Rows(*mut f32);
// SAFETY: each thread writes rows of its own, and the matrix outlives the parallel region.
unsafe impl Sync for Rows {}

/// Whether a product has enough of both to fill tiles.
pub(super) fn suits(Sizes { m, k, n }: Sizes) -> bool {
    m >= MR && n >= 8 && k > 0
}

/// `a b` to `c`, `[m, n]`, or added to what is there, on so many threads.
///
/// # Safety
/// The processor has AVX-512F and AVX, the matrices are as large as `sizes` says, and `c` has room for the result.
pub(super) unsafe fn product(
    c: *mut f32,
    a: Strided<'_>,
    b: Strided<'_>,
    sizes: Sizes,
    adds: bool,
    threads: usize,
) {
    let Sizes { m, k, n } = sizes;
    // The width of tiles that leaves the fewest columns over.
    let registers = (1..=WIDEST)
        .rev()
        .min_by_key(|registers| n.next_multiple_of(registers * LANES))
        .unwrap_or(WIDEST);
    let rows = Rows(c);
    // As even as whole strips allow, so that no thread is left with the rest.
    let blocks = m.div_ceil(MC).next_multiple_of(threads);
    let height = m.div_ceil(blocks).next_multiple_of(MR);
    let parts_of_k = k.div_ceil(k.div_ceil(KC));
    let mut panels = Vec::new();
    for columns in parts(n, NC) {
        for terms in parts(k, parts_of_k) {
            pack_panels(b, &terms, &columns, registers * LANES, threads, &mut panels);
            let block = |block: usize| {
                let block = block * height..m.min((block + 1) * height);
                let strips = pack_strips(a, &block, &terms);
                let tiles = Tiles {
                    strips: &strips,
                    panels: &panels,
                    terms: terms.len(),
                    registers,
                    adds: adds || terms.start > 0,
                    n,
                };
                // SAFETY: the caller's; the rows of the block are this thread's, and they and the columns lie within the result.
                unsafe { tiles.run(&rows, block, columns.clone()) };
            };
            let blocks = 0..m.div_ceil(height);
            match threads {
                1 => blocks.for_each(block),
                _ => blocks.on_all_threads(block),
            }
        }
    }
}

/// `0..len` in ranges of at most `part`.
fn parts(len: usize, part: usize) -> impl Iterator<Item = Range<usize>> {
    (0..len)
        .step_by(part)
        .map(move |first| first..len.min(first + part))
}

/// Columns of `b` in panels of `width`, each `[terms, width]`; columns beyond the last are zero.
fn pack_panels(
    b: Strided<'_>,
    terms: &Range<usize>,
    columns: &Range<usize>,
    width: usize,
    threads: usize,
    panels: &mut Vec<f32>,
) {
    let len = terms.len() * width;
    panels.resize(columns.len().div_ceil(width) * len, 0.0);
    let pack = |(panel, to): (usize, &mut [f32])| {
        let first = columns.start + panel * width;
        let lanes = first..columns.end.min(first + width);
        pack(b.turned(), lanes, terms, width, to);
    };
    match threads {
        1 => panels.chunks_mut(len).enumerate().for_each(pack),
        _ => panels.chunks_mut(len).enumerate().on_all_threads(pack),
    }
}

/// Rows of `a` in strips of `MR`, each `[terms, MR]`; rows beyond the last are zero.
fn pack_strips(a: Strided<'_>, rows: &Range<usize>, terms: &Range<usize>) -> Vec<f32> {
    let len = terms.len() * MR;
    let mut strips = vec![0.0; rows.len().div_ceil(MR) * len];
    for (strip, to) in strips.chunks_exact_mut(len).enumerate() {
        let first = rows.start + strip * MR;
        let lanes = first..rows.end.min(first + MR);
        pack(a, lanes, terms, MR, to);
    }
    strips
}

/// Rows `lanes` of `from`, up to `width` of them, as `[terms, width]`; lanes beyond the last are zero.
fn pack(
    from: Strided<'_>,
    lanes: Range<usize>,
    terms: &Range<usize>,
    width: usize,
    to: &mut [f32],
) {
    let count = lanes.len();
    if count < width {
        to.fill(0.0);
    }
    let whole_lanes = count / 8 * 8;
    if from.rows == 1 {
        for (term, to) in terms.clone().zip(to.chunks_exact_mut(width)) {
            let at = term * from.columns + lanes.start;
            let from = &from.values[at..at + count];
            let (from, rest) = from.as_chunks::<8>();
            let (to, to_rest) = to[..count].as_chunks_mut::<8>();
            // Eight at a time, which is an instruction where a copy of any length is a call.
            to.iter_mut().zip(from).for_each(|(to, from)| *to = *from);
            to_rest.copy_from_slice(rest);
        }
        return;
    }
    let whole_terms = terms.len() / 8 * 8;
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
            assert!(last < from.values.len() && (term + 7) * width + lane + 8 <= to.len());
            // SAFETY: AVX-512 brings AVX; the last element of either square was seen to lie within its matrix.
            unsafe {
                let values = from.values.as_ptr().add(place(lane, term));
                let to = to.as_mut_ptr().add(term * width + lane);
                turn_8x8(values, from.rows, to, width);
            }
        }
    }
    for lane in 0..count {
        let rest = if lane < squares { whole_terms } else { 0 };
        for term in rest..terms.len() {
            to[term * width + lane] = from.values[place(lane, term)];
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
    /// Of columns of a panel.
    registers: usize,
    /// To what is there already.
    adds: bool,
    /// Columns of the result.
    n: usize,
}

impl Tiles<'_> {
    /// # Safety
    /// The processor has AVX-512F; `rows` and `columns` lie in `c`, and no other thread has these rows.
    unsafe fn run(&self, c: &Rows, rows: Range<usize>, columns: Range<usize>) {
        // SAFETY: the caller's.
        unsafe {
            match self.registers {
                1 => self.run_wide::<1>(c, rows, columns),
                2 => self.run_wide::<2>(c, rows, columns),
                _ => self.run_wide::<WIDEST>(c, rows, columns),
            }
        }
    }

    /// # Safety
    /// As of [`run`](Self::run); panels have `V` registers of columns.
    #[target_feature(enable = "avx512f")]
    unsafe fn run_wide<const V: usize>(&self, c: &Rows, rows: Range<usize>, columns: Range<usize>) {
        let wide = V * LANES;
        let panels = self.panels.chunks_exact(self.terms * wide);
        for (panel, right) in panels.enumerate() {
            let column = columns.start + panel * wide;
            let width = wide.min(columns.end - column);
            for (strip, left) in self.strips.chunks_exact(self.terms * MR).enumerate() {
                let row = rows.start + strip * MR;
                let height = MR.min(rows.end - row);
                // SAFETY: the caller's; a tile that hangs over is written to a buffer first.
                unsafe {
                    let to = c.0.add(row * self.n + column);
                    if height == MR && width == wide {
                        tile::<V>(left, right, self.terms, to, self.n, self.adds);
                        continue;
                    }
                    let mut whole = [0f32; MR * WIDEST * LANES];
                    tile::<V>(left, right, self.terms, whole.as_mut_ptr(), wide, false);
                    for row in 0..height {
                        for column in 0..width {
                            let to = to.add(row * self.n + column);
                            let sum = whole[row * wide + column];
                            match self.adds {
                                true => *to += sum,
                                false => to.write(sum),
                            }
                        }
                    }
                }
            }
        }
    }
}

/// `[MR, V * LANES]` at `to`, whose rows are `stride` apart, of a strip and a panel.
///
/// # Safety
/// The processor has AVX-512F, `left` and `right` have so many terms, and the tile lies at `to`.
#[target_feature(enable = "avx512f")]
unsafe fn tile<const V: usize>(
    left: &[f32],
    right: &[f32],
    terms: usize,
    to: *mut f32,
    stride: usize,
    adds: bool,
) {
    let mut sums = [[_mm512_setzero_ps(); V]; MR];
    let (mut a, mut b) = (left.as_ptr(), right.as_ptr());
    // SAFETY: the caller's.
    unsafe {
        for _ in 0..terms {
            // A fetch beyond the end reads nothing.
            for v in 0..V {
                let ahead = b.wrapping_add((AHEAD * V + v) * LANES);
                _mm_prefetch::<_MM_HINT_T0>(ahead.cast());
            }
            _mm_prefetch::<_MM_HINT_T0>(a.wrapping_add(2 * AHEAD * MR).cast());
            let weights: [__m512; V] = std::array::from_fn(|v| _mm512_loadu_ps(b.add(v * LANES)));
            for (i, sums) in sums.iter_mut().enumerate() {
                let x = _mm512_set1_ps(*a.add(i));
                for (sum, weights) in sums.iter_mut().zip(weights) {
                    *sum = _mm512_fmadd_ps(x, weights, *sum);
                }
            }
            a = a.add(MR);
            b = b.add(V * LANES);
        }
        for (i, sums) in sums.iter().enumerate() {
            for (v, sum) in sums.iter().enumerate() {
                let to = to.add(i * stride + v * LANES);
                let sum = match adds {
                    true => _mm512_add_ps(*sum, _mm512_loadu_ps(to)),
                    false => *sum,
                };
                _mm512_storeu_ps(to, sum);
            }
        }
    }
}
