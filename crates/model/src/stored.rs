//! How the numbers of a tensor lie in a file, of safetensors or GGUF.

use crate::error::Result;
use candle_core::quantized::{GgmlDType, QStorage, QTensor};
use candle_core::{Device, Tensor};
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
        fn each<const N: usize>(bytes: &[u8], value: impl Fn([u8; N]) -> f32) -> Vec<f32> {
            let (values, _) = bytes.as_chunks();
            values.iter().map(|bytes| value(*bytes)).collect()
        }
        Ok(match self {
            Stored::F64 => each(bytes, |bytes| f64::from_le_bytes(bytes) as f32),
            Stored::F32 => each(bytes, f32::from_le_bytes),
            Stored::F16 => each(bytes, |bytes| f16::from_le_bytes(bytes).to_f32()),
            Stored::Bf16 => each(bytes, |bytes| bf16::from_le_bytes(bytes).to_f32()),
            Stored::Quantised(dtype) => {
                let values = bytes.len() / dtype.type_size() * dtype.block_size();
                let packed = QStorage::from_data(Cow::Borrowed(bytes), &Device::Cpu, dtype)?;
                let packed = QTensor::new(packed, values)?;
                packed.dequantize(&Device::Cpu)?.to_vec1()?
            }
        })
    }

    /// Blocks of `to` with the values of these blocks, rounded as llama.cpp rounds them. From Q4_K to Q4_1 the codes stay as they
    /// are, and the scale and the minimum of a block are rounded to f16.
    ///
    /// # Errors
    /// What candle says of the blocks.
    pub(crate) fn requantise(self, bytes: Vec<u8>, to: GgmlDType) -> Result<Vec<u8>> {
        match (self, to) {
            (Stored::Quantised(dtype), _) if dtype == to => Ok(bytes),
            (Stored::Quantised(GgmlDType::Q4K), GgmlDType::Q4_1) => Ok(q4_1_of_q4_k(&bytes)),
            _ => {
                let values = Tensor::new(self.widen(&bytes)?, &Device::Cpu)?;
                Ok(QTensor::quantize(&values, to)?.data()?.into_owned())
            }
        }
    }
}

/// A block of Q4_K is eight of 32 weights `d * scale * code - dmin * min`: `d` and `dmin` in f16, eight scales and minima
/// of 6 bits in 12 bytes, and the codes of two blocks in 32 bytes, one in the lower halves and one in the upper ones.
fn q4_1_of_q4_k(bytes: &[u8]) -> Vec<u8> {
    const SCALES: usize = 4;
    const CODES: usize = SCALES + 12;
    const BYTES: usize = CODES + 128;
    let mut blocks = Vec::with_capacity(bytes.len() / BYTES * 8 * 20);
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
    blocks
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Weights of all sizes, as random bits would be.
    fn values(len: usize) -> Vec<f32> {
        let wave = |index: usize| (index as f32 * 0.7).sin() * (0.02 + (index / 32) as f32 * 0.01);
        (0..len).map(wave).collect()
    }

    fn quantised(values: &[f32], dtype: GgmlDType) -> Vec<u8> {
        let bytes: Vec<u8> = values.iter().flat_map(|x| x.to_le_bytes()).collect();
        Stored::F32.requantise(bytes, dtype).unwrap()
    }

    #[test]
    fn codes_of_q4_k_stay_as_they_are() {
        let bytes = quantised(&values(1024), GgmlDType::Q4K);
        let found = Stored::Quantised(GgmlDType::Q4K);
        let wanted = found.widen(&bytes).unwrap();
        let blocks = found.requantise(bytes, GgmlDType::Q4_1).unwrap();
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
        for dtype in [GgmlDType::Q8_0, GgmlDType::Q4_0, GgmlDType::Q4_1] {
            let bytes = quantised(&values(256), dtype);
            let again = Stored::Quantised(dtype)
                .requantise(bytes.clone(), dtype)
                .unwrap();
            assert_eq!(bytes, again);
        }
    }
}
