//! How the numbers of a tensor lie in a file, of safetensors or GGUF.

use crate::blocks::{Kind, Q8_0};
use crate::error::Result;
use crate::quantise;
use candle_core::quantized::{GgmlDType, QStorage, QTensor};
use candle_core::{Device, Storage};
use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};
use std::borrow::Cow;

/// The type of a tensor's numbers: blocks of one or more, each of so many bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stored {
    F64,
    F32,
    F16,
    Bf16,
    /// Packed by llama.cpp.
    Quantised(GgmlDType),
}

impl Stored {
    pub(crate) const fn of(dtype: GgmlDType) -> Self {
        match dtype {
            GgmlDType::F32 => Stored::F32,
            GgmlDType::F16 => Stored::F16,
            GgmlDType::BF16 => Stored::Bf16,
            packed => Stored::Quantised(packed),
        }
    }

    /// Values of a block.
    pub(crate) fn elements(self) -> usize {
        match self {
            Stored::Quantised(dtype) => dtype.block_size(),
            _ => 1,
        }
    }

    /// Bytes of so many values, which are whole blocks.
    pub(crate) fn bytes(self, values: usize) -> usize {
        match self {
            Stored::F64 => 8 * values,
            Stored::F32 => 4 * values,
            Stored::F16 | Stored::Bf16 => 2 * values,
            Stored::Quantised(dtype) => values / dtype.block_size() * dtype.type_size(),
        }
    }

    /// The values of whole blocks.
    ///
    /// # Errors
    /// What candle says of the blocks.
    pub(crate) fn widen(self, bytes: &[u8]) -> Result<Vec<f32>> {
        let mut values = Vec::new();
        self.widen_to(bytes, &mut values)?;
        Ok(values)
    }

    /// Appends the values of whole blocks.
    ///
    /// # Errors
    /// What candle says of the blocks.
    pub(crate) fn widen_to(self, bytes: &[u8], values: &mut Vec<f32>) -> Result<()> {
        match self {
            Stored::F64 => {
                let numbers = bytes.as_chunks().0.iter();
                values.extend(numbers.map(|bytes| f64::from_le_bytes(*bytes) as f32));
            }
            Stored::F32 => {
                let numbers = bytes.as_chunks().0.iter();
                values.extend(numbers.map(|bytes| f32::from_le_bytes(*bytes)));
            }
            Stored::F16 => widen_halves(bytes, values, f16::from_le_bytes),
            Stored::Bf16 => widen_halves(bytes, values, bf16::from_le_bytes),
            Stored::Quantised(GgmlDType::Q8_0) => quantise::of_q8_0(bytes, values),
            Stored::Quantised(GgmlDType::Q4_0) => quantise::of_q4_0(bytes, values),
            Stored::Quantised(GgmlDType::Q4_1) => quantise::of_q4_1(bytes, values),
            Stored::Quantised(dtype) => {
                let count = bytes.len() / dtype.type_size() * dtype.block_size();
                let packed = QStorage::from_data(Cow::Borrowed(bytes), &Device::Cpu, dtype)?;
                let wide = QTensor::new(packed, count)?.dequantize(&Device::Cpu)?;
                let (storage, _) = wide.storage_and_layout();
                if let Storage::Cpu(wide) = &*storage {
                    values.extend_from_slice(wide.as_slice()?);
                }
            }
        }
        Ok(())
    }

    /// Bytes of `to` with the values of these blocks; of blocks, Q8_0 alone can be asked for.
    ///
    /// # Errors
    /// What candle says of the blocks.
    pub(crate) fn convert(self, bytes: &[u8], to: Stored) -> Result<Vec<u8>> {
        fn each<const N: usize>(values: &[f32], bytes: impl Fn(f32) -> [u8; N]) -> Vec<u8> {
            values.iter().flat_map(|value| bytes(*value)).collect()
        }
        if self == to {
            return Ok(bytes.to_vec());
        }
        let mut wide = self.widen(bytes)?;
        Ok(match to {
            Stored::F64 => each(&wide, |value| f64::from(value).to_le_bytes()),
            Stored::F32 => each(&wide, f32::to_le_bytes),
            Stored::F16 => each(&wide, |value| f16::from_f32(value).to_le_bytes()),
            Stored::Bf16 => each(&wide, |value| bf16::from_f32(value).to_le_bytes()),
            Stored::Quantised(_) => {
                let mut blocks = Vec::new();
                self.requantise::<Q8_0>(bytes, &mut wide, &mut blocks)?;
                blocks
            }
        })
    }

    /// Appends blocks of `K` with the values of these blocks, rounded as llama.cpp rounds them; `wide` is overwritten. From
    /// Q4_K to Q4_1 the codes stay as they are, and the scale and the minimum of a block are rounded to f16.
    ///
    /// # Errors
    /// What candle says of the blocks.
    pub(crate) fn requantise<K: Kind>(
        self,
        bytes: &[u8],
        wide: &mut Vec<f32>,
        blocks: &mut Vec<u8>,
    ) -> Result<()> {
        match (self, K::TYPE) {
            (Stored::Quantised(dtype), to) if dtype == to => blocks.extend_from_slice(bytes),
            (Stored::Quantised(GgmlDType::Q4K), GgmlDType::Q4_1) => q4_1_of_q4_k(bytes, blocks),
            _ => {
                wide.clear();
                self.widen_to(bytes, wide)?;
                K::quantise(wide, blocks);
            }
        }
        Ok(())
    }
}

/// Numbers of 16 bits, many at a time: a single one has to ask what the processor can do.
fn widen_halves<T: Copy + Default>(
    bytes: &[u8],
    values: &mut Vec<f32>,
    number: impl Fn([u8; 2]) -> T,
) where
    [T]: HalfFloatSliceExt,
{
    const AT_A_TIME: usize = 256;
    let mut halves = [T::default(); AT_A_TIME];
    let mut wide = [0f32; AT_A_TIME];
    for bytes in bytes.as_chunks().0.chunks(AT_A_TIME) {
        let halves = &mut halves[..bytes.len()];
        for (half, bytes) in halves.iter_mut().zip(bytes) {
            *half = number(*bytes);
        }
        halves.convert_to_f32_slice(&mut wide[..bytes.len()]);
        values.extend_from_slice(&wide[..bytes.len()]);
    }
}

/// A block of Q4_K is eight of 32 weights `d * scale * code - dmin * min`: `d` and `dmin` in f16, eight scales and minima
/// of 6 bits in 12 bytes, and the codes of two blocks in 32 bytes, one in the lower halves and one in the upper ones.
fn q4_1_of_q4_k(bytes: &[u8], blocks: &mut Vec<u8>) {
    const SCALES: usize = 4;
    const CODES: usize = SCALES + 12;
    const BYTES: usize = CODES + 128;
    for super_block in bytes.as_chunks::<BYTES>().0 {
        let number =
            |at: usize| f16::from_le_bytes([super_block[at], super_block[at + 1]]).to_f32();
        let (d, d_min) = (number(0), number(2));
        let scales = &super_block[SCALES..CODES];
        for block in 0..8 {
            // The upper bits of the last four stand above those of the first four.
            let (scale, min) = match block {
                0..4 => (scales[block] & 63, scales[block + 4] & 63),
                _ => (
                    scales[block + 4] & 15 | scales[block - 4] >> 6 << 4,
                    scales[block + 4] >> 4 | scales[block] >> 6 << 4,
                ),
            };
            blocks.extend(f16::from_f32(d * f32::from(scale)).to_le_bytes());
            blocks.extend(f16::from_f32(-d_min * f32::from(min)).to_le_bytes());
            let codes = &super_block[CODES + block / 2 * 32..][..32];
            let code = |at: usize| codes[at] >> (block % 2 * 4) & 15;
            blocks.extend((0..16).map(|at| code(at) | code(at + 16) << 4));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::blocks::{Q4_0, Q4_1, Q8_0};
    use candle_core::Tensor;

    /// Weights of all sizes, as random bits would be.
    fn values(len: usize) -> Vec<f32> {
        let wave = |index: usize| (index as f32 * 0.7).sin() * (0.02 + (index / 32) as f32 * 0.01);
        (0..len).map(wave).collect()
    }

    fn quantised(values: &[f32], dtype: GgmlDType) -> Vec<u8> {
        let values = Tensor::new(values, &Device::Cpu).unwrap();
        let blocks = QTensor::quantize(&values, dtype).unwrap();
        blocks.data().unwrap().into_owned()
    }

    fn requantised<K: Kind>(from: GgmlDType, bytes: &[u8]) -> Vec<u8> {
        let mut blocks = Vec::new();
        let from = Stored::Quantised(from);
        from.requantise::<K>(bytes, &mut Vec::new(), &mut blocks)
            .unwrap();
        blocks
    }

    #[test]
    fn codes_of_q4_k_stay_as_they_are() {
        let bytes = quantised(&values(1024), GgmlDType::Q4K);
        let found = Stored::Quantised(GgmlDType::Q4K);
        let wanted = found.widen(&bytes).unwrap();
        let blocks = requantised::<Q4_1>(GgmlDType::Q4K, &bytes);
        let found = Stored::Quantised(GgmlDType::Q4_1).widen(&blocks).unwrap();
        assert_eq!(found.len(), wanted.len());
        for (found, wanted) in found.chunks(32).zip(wanted.chunks(32)) {
            let largest = wanted.iter().fold(0f32, |max, x| max.max(x.abs()));
            for (found, wanted) in found.iter().zip(wanted) {
                // Twice the half of a last bit of f16, of numbers of up to twice the largest.
                assert!((found - wanted).abs() < largest * 2e-3, "{found} {wanted}");
            }
        }
    }

    #[test]
    fn what_is_in_blocks_already_is_not_rounded_again() {
        fn stays<K: Kind>() {
            let bytes = quantised(&values(256), K::TYPE);
            assert_eq!(bytes, requantised::<K>(K::TYPE, &bytes));
        }
        stays::<Q8_0>();
        stays::<Q4_0>();
        stays::<Q4_1>();
    }

    /// Numbers of 16 bits in whatever number there are.
    #[test]
    fn every_half_is_widened() {
        let bits: Vec<u16> = (0..999).map(|at| at * 65).collect();
        let bytes: Vec<u8> = bits.iter().flat_map(|bits| bits.to_le_bytes()).collect();
        let same = |stored: Stored, wanted: &dyn Fn(u16) -> f32| {
            let found = stored.widen(&bytes).unwrap();
            let wanted: Vec<f32> = bits.iter().map(|bits| wanted(*bits)).collect();
            let bits = |values: &[f32]| values.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
            assert_eq!(bits(&found), bits(&wanted), "{stored:?}");
        };
        same(Stored::F16, &|bits| f16::from_bits(bits).to_f32());
        same(Stored::Bf16, &|bits| bf16::from_bits(bits).to_f32());
    }
}
