//! Weights in blocks of 32 with a scale each, in the layout that the products of [`crate::int8`] read.

use crate::error::Result;
use crate::kernels::PANEL;
use candle_core::quantized::GgmlDType;
use half::f16;
use rayon::prelude::*;
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
}

pub(crate) struct Q8_0;
pub(crate) struct Q4_0;
pub(crate) struct Q4_1;

impl Kind for Q8_0 {
    const TYPE: GgmlDType = GgmlDType::Q8_0;
    const BITS: usize = 8;
    const OFFSET: i32 = 0;
    const HAS_MIN: bool = false;
}

impl Kind for Q4_0 {
    const TYPE: GgmlDType = GgmlDType::Q4_0;
    const BITS: usize = 4;
    const OFFSET: i32 = 8;
    const HAS_MIN: bool = false;
}

impl Kind for Q4_1 {
    const TYPE: GgmlDType = GgmlDType::Q4_1;
    const BITS: usize = 4;
    const OFFSET: i32 = 0;
    const HAS_MIN: bool = true;
}

/// Codes of 16 outputs for 4 inputs (8 bits) or for 8 (4 bits): four bytes an output.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub(crate) struct Line(pub(crate) [u8; 4 * PANEL]);

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
const PACKED_AT_A_TIME: usize = 1 << 18;

/// Bytes of scale and minimum in front of the codes of a block in a file.
const fn head_bytes<K: Kind>() -> usize {
    2 + 2 * K::HAS_MIN as usize
}

/// Bytes of a block in a file.
const fn block_bytes<K: Kind>() -> usize {
    head_bytes::<K>() + BLOCK * K::BITS / 8
}

impl<K: Kind> BlockPanels<K> {
    /// Packs `m` rows of `k` weights; `read` gives blocks of rows as llama.cpp's files hold them.
    ///
    /// # Errors
    /// What `read` gives.
    pub(crate) fn pack(
        m: usize,
        k: usize,
        read: impl Fn(Range<usize>) -> Result<Vec<u8>> + Sync,
    ) -> Result<Self> {
        let (panels, blocks) = (m.div_ceil(PANEL), k / BLOCK);
        let none = [f16::ZERO; PANEL];
        let mut packed = Self {
            lines: vec![Line([0; 4 * PANEL]); panels * blocks * K::BITS],
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
            let rows = read(first..m.min(first + height * PANEL))?;
            let rows = rows.chunks_exact(blocks * block_bytes::<K>());
            for (row, bytes) in rows.enumerate() {
                let (panel, lane) = (row / PANEL, row % PANEL);
                let found = bytes.chunks_exact(block_bytes::<K>());
                for (at, block) in found
                    .enumerate()
                    .map(|(b, block)| (panel * blocks + b, block))
                {
                    let number = |from: usize| f16::from_le_bytes([block[from], block[from + 1]]);
                    scales[at][lane] = number(0);
                    if K::HAS_MIN {
                        mins[at][lane] = number(2);
                    }
                    let codes = &block[head_bytes::<K>()..];
                    let lines = &mut lines[at * K::BITS..][..K::BITS];
                    for (j, line) in lines.iter_mut().enumerate() {
                        for t in 0..4 {
                            line.0[4 * lane + t] = match K::BITS {
                                8 => codes[4 * j + t],
                                _ => nibble(codes, 8 * j + t) | nibble(codes, 8 * j + 4 + t) << 4,
                            };
                        }
                    }
                }
            }
            Ok(())
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

/// The code of input `input` of a block that lies as in llama.cpp's files.
fn nibble(codes: &[u8], input: usize) -> u8 {
    match input < BLOCK / 2 {
        true => codes[input] & 15,
        false => codes[input - BLOCK / 2] >> 4,
    }
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
