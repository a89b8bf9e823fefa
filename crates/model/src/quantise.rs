//! Numbers to blocks of 32 and back, as llama.cpp's `quantize_row_*_ref` and `dequantize_row_*` have them, bit for bit.

use crate::blocks::BLOCK;
use crate::vectorised;
use half::f16;

vectorised! {
    /// Appends blocks of 34 bytes: the scale, the largest size over 127, and 32 codes of 8 bits.
    fn to_q8_0(values: &[f32], blocks: &mut Vec<u8>) = to_q8_0_body
}

#[inline(always)]
fn to_q8_0_body<const FMA: bool>(values: &[f32], blocks: &mut Vec<u8>) {
    for values in values.as_chunks::<BLOCK>().0 {
        let scale = largest_size(values) / 127.0;
        let inverse = inverse(scale);
        let mut block = [0; 2 + BLOCK];
        block[..2].copy_from_slice(&f16::from_f32(scale).to_le_bytes());
        for (code, value) in block[2..].iter_mut().zip(values) {
            *code = (value * inverse).round().clamp(-128.0, 127.0) as i32 as u8;
        }
        blocks.extend_from_slice(&block);
    }
}

vectorised! {
    /// Appends blocks of 18 bytes: the scale, minus an eighth of the value that is farthest from zero, and codes of 4 bits.
    fn to_q4_0(values: &[f32], blocks: &mut Vec<u8>) = to_q4_0_body
}

#[inline(always)]
fn to_q4_0_body<const FMA: bool>(values: &[f32], blocks: &mut Vec<u8>) {
    for values in values.as_chunks::<BLOCK>().0 {
        let size = largest_size(values);
        // The first of those that are equally far.
        let farthest = values.iter().find(|value| value.abs() == size);
        let scale = farthest.copied().unwrap_or(0.0) / -8.0;
        let inverse = inverse(scale);
        let mut block = [0; 2 + BLOCK / 2];
        block[..2].copy_from_slice(&f16::from_f32(scale).to_le_bytes());
        halves(values, &mut block[2..], |value| value * inverse + 8.5);
        blocks.extend_from_slice(&block);
    }
}

vectorised! {
    /// Appends blocks of 20 bytes: the scale, a fifteenth of the range, the minimum, and codes of 4 bits.
    fn to_q4_1(values: &[f32], blocks: &mut Vec<u8>) = to_q4_1_body
}

#[inline(always)]
fn to_q4_1_body<const FMA: bool>(values: &[f32], blocks: &mut Vec<u8>) {
    for values in values.as_chunks::<BLOCK>().0 {
        let (mut lowest, mut highest) = ([f32::INFINITY; 8], [f32::NEG_INFINITY; 8]);
        for values in values.as_chunks::<8>().0 {
            for lane in 0..8 {
                lowest[lane] = smaller(values[lane], lowest[lane]);
                highest[lane] = larger(values[lane], highest[lane]);
            }
        }
        let mut range = [lowest[0], highest[0]];
        for lane in 1..8 {
            range = [
                smaller(lowest[lane], range[0]),
                larger(highest[lane], range[1]),
            ];
        }
        let [lowest, highest] = range;
        let scale = (highest - lowest) / 15.0;
        let inverse = inverse(scale);
        let mut block = [0; 4 + BLOCK / 2];
        block[..2].copy_from_slice(&f16::from_f32(scale).to_le_bytes());
        block[2..4].copy_from_slice(&f16::from_f32(lowest).to_le_bytes());
        halves(values, &mut block[4..], |value| {
            (value - lowest) * inverse + 0.5
        });
        blocks.extend_from_slice(&block);
    }
}

/// Two codes of 4 bits a byte: those of the first 16 values in the lower halves.
#[inline(always)]
fn halves(values: &[f32; BLOCK], codes: &mut [u8], code: impl Fn(f32) -> f32) {
    let code = |value: f32| (code(value) as i32).clamp(0, 15) as u8;
    let (low, high) = values.split_at(BLOCK / 2);
    for (codes, (low, high)) in codes.iter_mut().zip(low.iter().zip(high)) {
        *codes = code(*low) | code(*high) << 4;
    }
}

/// The largest absolute value, what is no number left out.
#[inline(always)]
fn largest_size(values: &[f32; BLOCK]) -> f32 {
    let mut sizes = [0f32; 8];
    for values in values.as_chunks::<8>().0 {
        for lane in 0..8 {
            sizes[lane] = larger(values[lane].abs(), sizes[lane]);
        }
    }
    let mut largest = 0.0;
    for size in sizes {
        largest = larger(size, largest);
    }
    largest
}

/// No comparison with what is no number holds: the second stays.
#[inline(always)]
fn larger(a: f32, b: f32) -> f32 {
    if a > b { a } else { b }
}

#[inline(always)]
fn smaller(a: f32, b: f32) -> f32 {
    if a < b { a } else { b }
}

#[inline(always)]
fn inverse(scale: f32) -> f32 {
    if scale == 0.0 { 0.0 } else { 1.0 / scale }
}

vectorised! {
    /// Appends the values of blocks of Q8_0.
    fn of_q8_0(blocks: &[u8], values: &mut Vec<f32>) = of_q8_0_body
}

#[inline(always)]
fn of_q8_0_body<const FMA: bool>(blocks: &[u8], values: &mut Vec<f32>) {
    for block in blocks.as_chunks::<{ 2 + BLOCK }>().0 {
        let scale = number(block, 0);
        let mut wide = [0f32; BLOCK];
        for (wide, code) in wide.iter_mut().zip(&block[2..]) {
            *wide = f32::from(*code as i8) * scale;
        }
        values.extend_from_slice(&wide);
    }
}

vectorised! {
    /// Appends the values of blocks of Q4_0.
    fn of_q4_0(blocks: &[u8], values: &mut Vec<f32>) = of_q4_0_body
}

#[inline(always)]
fn of_q4_0_body<const FMA: bool>(blocks: &[u8], values: &mut Vec<f32>) {
    for block in blocks.as_chunks::<{ 2 + BLOCK / 2 }>().0 {
        let scale = number(block, 0);
        let wide = wide_of(&block[2..], |code| (code - 8.0) * scale);
        values.extend_from_slice(&wide);
    }
}

vectorised! {
    /// Appends the values of blocks of Q4_1.
    fn of_q4_1(blocks: &[u8], values: &mut Vec<f32>) = of_q4_1_body
}

#[inline(always)]
fn of_q4_1_body<const FMA: bool>(blocks: &[u8], values: &mut Vec<f32>) {
    for block in blocks.as_chunks::<{ 4 + BLOCK / 2 }>().0 {
        let (scale, lowest) = (number(block, 0), number(block, 2));
        let wide = wide_of(&block[4..], |code| code * scale + lowest);
        values.extend_from_slice(&wide);
    }
}

/// What a block's codes of 4 bits stand for.
#[inline(always)]
fn wide_of(codes: &[u8], value: impl Fn(f32) -> f32) -> [f32; BLOCK] {
    let mut wide = [0f32; BLOCK];
    let (low, high) = wide.split_at_mut(BLOCK / 2);
    for (codes, (low, high)) in codes.iter().zip(low.iter_mut().zip(high)) {
        *low = value(f32::from(codes & 15));
        *high = value(f32::from(codes >> 4));
    }
    wide
}

#[inline(always)]
fn number(block: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([block[at], block[at + 1]]).to_f32()
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::quantized::{GgmlDType, QTensor};
    use candle_core::{Device, Tensor};
    use proptest::prelude::*;

    /// By candle, whose code is llama.cpp's put into Rust: blocks, and the values that they stand for.
    fn of_peer(values: &[f32], dtype: GgmlDType) -> (Vec<u8>, Vec<f32>) {
        let values = Tensor::new(values, &Device::Cpu).unwrap();
        let blocks = QTensor::quantize(&values, dtype).unwrap();
        let wide = blocks.dequantize(&Device::Cpu).unwrap().to_vec1().unwrap();
        (blocks.data().unwrap().into_owned(), wide)
    }

    type Quantiser = fn(&[f32], &mut Vec<u8>);
    type Unpacker = fn(&[u8], &mut Vec<f32>);

    const KINDS: [(GgmlDType, Quantiser, Unpacker); 3] = [
        (GgmlDType::Q8_0, to_q8_0, of_q8_0),
        (GgmlDType::Q4_0, to_q4_0, of_q4_0),
        (GgmlDType::Q4_1, to_q4_1, of_q4_1),
    ];

    fn assert_as_the_peer(values: &[f32]) {
        for (dtype, quantise, unpack) in KINDS {
            let (wanted, wide) = of_peer(values, dtype);
            let (mut blocks, mut found) = (vec![7], vec![7.0]);
            quantise(values, &mut blocks);
            assert_eq!(blocks[1..], wanted, "{dtype:?} {values:?}");
            unpack(&wanted, &mut found);
            assert_eq!(found[1..], wide, "{dtype:?}");
        }
    }

    proptest! {
        #[test]
        fn blocks_are_those_of_the_peer(
            values in proptest::collection::vec(-3f32..3.0, 96),
            size in -30i32..8,
        ) {
            let values: Vec<f32> = values.iter().map(|x| x * (size as f32).exp2()).collect();
            assert_as_the_peer(&values);
        }

        /// Halves of a step, where rounding turns: ties go away from zero.
        #[test]
        fn ties_are_those_of_the_peer(
            halves in proptest::collection::vec(-252i32..=252, 32),
            ulps in proptest::collection::vec(-2i32..=2, 32),
        ) {
            let near = |(half, ulps): (&i32, &i32)| {
                let value = *half as f32 / 2.0;
                f32::from_bits(value.to_bits().saturating_add_signed(*ulps))
            };
            let mut values: Vec<f32> = halves.iter().zip(&ulps).map(near).collect();
            values.retain(|value| value.is_finite());
            values.resize(32, 0.0);
            values[5] = 127.0;
            assert_as_the_peer(&values);
        }
    }

    #[test]
    fn what_is_no_number_is_taken_as_the_peer_takes_it() {
        let mut values = [0.5f32; 64];
        assert_as_the_peer(&[0.0; 32]);
        values[3] = f32::NAN;
        values[40] = -1.0;
        assert_as_the_peer(&values);
        assert_as_the_peer(&[f32::MIN_POSITIVE; 32]);
    }
}
