//! Weights in blocks of 32 with a scale each, in the layout that the products of [`crate::int8`] read.

use crate::error::Result;
use crate::kernels::PANEL;
use crate::quantise;
use crate::scratch::{Pool, Scratch};
use candle_core::quantized::GgmlDType;
use half::f16;
use rayon::prelude::*;
use std::alloc::{Layout, alloc_zeroed, handle_alloc_error};
use std::marker::PhantomData;
use std::ops::Range;

/// Weights of a block, and activations that are quantised together.
pub(crate) const BLOCK: usize = 32;

/// A kind of block, by what its codes mean: a weight is `scale * (code - OFFSET) + min`.
pub(crate) trait Kind: Send + Sync + 'static {
    /// What llama.cpp calls it.
    const TYPE: GgmlDType;
    /// Bits of a code: 8, signed, or 4, unsigned. As many lines hold the codes of a block of a panel.
    const BITS: usize;
    const OFFSET: i32;
    /// Whether there is a minimum beside the scale.
    const HAS_MIN: bool;

    /// Appends blocks of these values, whose number is one of whole blocks, as llama.cpp rounds them.
    fn quantise(values: &[f32], blocks: &mut Vec<u8>);
}

pub(crate) struct Q8_0;
pub(crate) struct Q4_0;
pub(crate) struct Q4_1;

impl Kind for Q8_0 {
    const TYPE: GgmlDType = GgmlDType::Q8_0;
    const BITS: usize = 8;
    const OFFSET: i32 = 0;
    const HAS_MIN: bool = false;

    fn quantise(values: &[f32], blocks: &mut Vec<u8>) {
        quantise::to_q8_0(values, blocks);
    }
}

impl Kind for Q4_0 {
    const TYPE: GgmlDType = GgmlDType::Q4_0;
    const BITS: usize = 4;
    const OFFSET: i32 = 8;
    const HAS_MIN: bool = false;

    fn quantise(values: &[f32], blocks: &mut Vec<u8>) {
        quantise::to_q4_0(values, blocks);
    }
}

impl Kind for Q4_1 {
    const TYPE: GgmlDType = GgmlDType::Q4_1;
    const BITS: usize = 4;
    const OFFSET: i32 = 0;
    const HAS_MIN: bool = true;

    fn quantise(values: &[f32], blocks: &mut Vec<u8>) {
        quantise::to_q4_1(values, blocks);
    }
}

/// Codes of 16 outputs for 4 inputs (8 bits) or for 8 (4 bits): four bytes an output.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub(crate) struct Line(pub(crate) [u8; 4 * PANEL]);

impl Line {
    /// So many lines of zeros, of memory that is not touched before it is written to, so that the threads that fill it do that.
    fn zeros(count: usize) -> Vec<Self> {
        let Ok(layout) = Layout::array::<Self>(count) else {
            return vec![Self([0; 4 * PANEL]); count];
        };
        if layout.size() == 0 {
            return Vec::new();
        }
        // SAFETY: the layout is that of the array and not empty; zeros are lines.
        unsafe {
            let lines = alloc_zeroed(layout).cast::<Self>();
            if lines.is_null() {
                handle_alloc_error(layout);
            }
            Vec::from_raw_parts(lines, count, count)
        }
    }
}

/// A weight `[m, k]` in panels of 16 outputs.
pub(crate) struct BlockPanels<K> {
    /// `[panels, k / 32, BITS]`. Byte `4 o + t` of a line `j` is the code of output `o` for input `4 j + t` of its block; of
    /// 4 bits the lower half is that for input `8 j + t` and the upper half that for `8 j + 4 + t`.
    pub(crate) lines: Vec<Line>,
    /// `[panels, k / 32]`; those of outputs beyond `m` are zero.
    pub(crate) scales: Vec<[f16; PANEL]>,
    /// As the scales, where there are any.
    pub(crate) mins: Vec<[f16; PANEL]>,
    pub(crate) k: usize,
    pub(crate) m: usize,
    kind: PhantomData<K>,
}

/// Values that a thread packs at a time.
const PACKED_AT_A_TIME: usize = 1 << 16;

/// Bytes of scale and minimum in front of the codes of a block in a file.
const fn head_bytes<K: Kind>() -> usize {
    2 + 2 * K::HAS_MIN as usize
}

/// Bytes of a block in a file.
const fn block_bytes<K: Kind>() -> usize {
    head_bytes::<K>() + BLOCK * K::BITS / 8
}

impl<K: Kind> BlockPanels<K> {
    /// Packs `m` rows of `k` weights; `read` leaves blocks of rows in the scratch, as llama.cpp's files hold them.
    ///
    /// # Errors
    /// What `read` gives.
    pub(crate) fn pack(
        m: usize,
        k: usize,
        pool: &Pool,
        read: impl Fn(Range<usize>, &mut Scratch) -> Result<()> + Sync,
    ) -> Result<Self> {
        let (panels, blocks) = (m.div_ceil(PANEL), k / BLOCK);
        let none = [f16::ZERO; PANEL];
        let mut packed = Self {
            lines: Line::zeros(panels * blocks * K::BITS),
            scales: vec![none; panels * blocks],
            mins: vec![none; if K::HAS_MIN { panels * blocks } else { 0 }],
            k,
            m,
            kind: PhantomData,
        };
        // Panels of a part.
        let height = (PACKED_AT_A_TIME / (PANEL * k)).max(1);
        let mut mins = packed.mins.chunks_mut(height * blocks);
        let parts: Vec<_> = packed
            .lines
            .chunks_mut(height * blocks * K::BITS)
            .zip(packed.scales.chunks_mut(height * blocks))
            .map(|(lines, scales)| (lines, scales, mins.next().unwrap_or_default()))
            .collect();
        let parts = parts.into_par_iter().enumerate();
        parts.try_for_each(|(part, (lines, scales, mins))| -> Result<()> {
            let first = part * height * PANEL;
            pool.with(|scratch| {
                read(first..m.min(first + height * PANEL), scratch)?;
                scatter::<K>(&scratch.blocks, blocks, lines, scales, mins);
                Ok(())
            })
        })?;
        Ok(packed)
    }

    /// Appends the weights of an output.
    pub(crate) fn row(&self, row: usize, values: &mut Vec<f32>) {
        let (panel, lane) = (row / PANEL, row % PANEL);
        let blocks = self.k / BLOCK;
        for at in panel * blocks..(panel + 1) * blocks {
            let scale = self.scales[at][lane].to_f32();
            let min = self.mins.get(at).map_or(0.0, |mins| mins[lane].to_f32());
            let lines = &self.lines[at * K::BITS..][..K::BITS];
            let weight = |code: i32| scale * (code - K::OFFSET) as f32 + min;
            values.extend((0..BLOCK).map(|input| weight(code::<K>(lines, lane, input))));
        }
    }
}

/// Puts rows of so many blocks, as llama.cpp's files hold them, into panels.
fn scatter<K: Kind>(
    rows: &[u8],
    blocks: usize,
    lines: &mut [Line],
    scales: &mut [[f16; PANEL]],
    mins: &mut [[f16; PANEL]],
) {
    let rows = rows.chunks_exact(blocks * block_bytes::<K>());
    for (row, bytes) in rows.enumerate() {
        let (panel, lane) = (row / PANEL, row % PANEL);
        let found = bytes.chunks_exact(block_bytes::<K>());
        for (at, block) in (panel * blocks..).zip(found) {
            let number = |from: usize| f16::from_le_bytes([block[from], block[from + 1]]);
            scales[at][lane] = number(0);
            if K::HAS_MIN {
                mins[at][lane] = number(2);
            }
            let lines = &mut lines[at * K::BITS..][..K::BITS];
            for (line, codes) in lines.iter_mut().zip(codes::<K>(block)) {
                line.0[4 * lane..][..4].copy_from_slice(&codes.to_le_bytes());
            }
        }
    }
}

/// What an output has in each line of a block, `BITS` of them, of a block as llama.cpp's files hold it.
#[inline(always)]
fn codes<K: Kind>(block: &[u8]) -> [u32; 8] {
    let codes = block[head_bytes::<K>()..].as_chunks().0;
    let four = |at: usize| u32::from_le_bytes(codes[at]);
    if K::BITS == 8 {
        return std::array::from_fn(four);
    }
    // Input `i` of the first 16 is in the lower half of byte `i`, input `16 + i` in its upper half.
    const LOW: u32 = 0x0f0f_0f0f;
    let low = |at: usize| four(at) & LOW | (four(at + 1) & LOW) << 4;
    let high = |at: usize| four(at) >> 4 & LOW | four(at + 1) & !LOW;
    [low(0), low(2), high(0), high(2), 0, 0, 0, 0]
}

/// The code of an output for an input of a block of a panel.
#[inline(always)]
pub(crate) fn code<K: Kind>(lines: &[Line], lane: usize, input: usize) -> i32 {
    let byte = |line: usize| lines[line].0[4 * lane + input % 4];
    match (K::BITS, input / 4 % 2) {
        (8, _) => i32::from(byte(input / 4) as i8),
        (_, 0) => i32::from(byte(input / 8) & 15),
        (_, _) => i32::from(byte(input / 8) >> 4),
    }
}
