//! What weights are kept in.

use crate::error::{ModelError, Result};
use crate::stored::Stored;
use candle_core::DType;
use candle_core::quantized::GgmlDType;
use std::fmt;

/// What the weights of a model are kept in. Blocks of 8 and 4 bits are llama.cpp's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WeightType {
    /// 32 bits.
    F32,
    /// Brain float, 16 bits.
    Bf16,
    /// IEEE half, 16 bits.
    F16,
    /// Blocks of 32 weights of 8 bits with a scale: 8.5 bits a weight.
    Q8_0,
    /// Blocks of 32 weights of 4 bits with a scale and a minimum: 5 bits a weight. Embedding and LM head are kept in Q8_0, which
    /// llama.cpp keeps finer too.
    Q4_1,
    /// Blocks of 32 weights of 4 bits with a scale: 4.5 bits a weight. Embedding and LM head as in [`Self::Q4_1`].
    Q4_0,
    /// What the file has, matrix by matrix. Of the types of GGUF that no kernel reads here, Q4_K becomes Q4_1 with the same 4
    /// bits, and others become Q8_0.
    Stored,
}

impl WeightType {
    /// As it is written on a command line.
    pub fn name(self) -> &'static str {
        match self {
            WeightType::F32 => "f32",
            WeightType::Bf16 => "bf16",
            WeightType::F16 => "f16",
            WeightType::Q8_0 => "q8_0",
            WeightType::Q4_1 => "q4_1",
            WeightType::Q4_0 => "q4_0",
            WeightType::Stored => "stored",
        }
    }

    /// Whether all of it is in blocks.
    pub(crate) fn is_quantised(self) -> bool {
        matches!(self, Self::Q8_0 | Self::Q4_1 | Self::Q4_0)
    }

    /// The type of what is no matrix beside matrices that fused layers keep in it.
    pub(crate) fn beside_matrices(self) -> DType {
        match self {
            WeightType::Bf16 => DType::BF16,
            WeightType::F16 => DType::F16,
            _ => DType::F32,
        }
    }

    /// What composed layers keep weights in, which is one type of numbers; `own`: the checkpoint's.
    ///
    /// # Errors
    /// They compute with no blocks.
    pub(crate) fn composed(self, own: DType) -> Result<(Self, DType)> {
        let dtype = match self {
            WeightType::Stored => own,
            dtype if dtype.is_quantised() => return Err(ModelError::NoBlocks { dtype }),
            dtype => dtype.beside_matrices(),
        };
        let keep = match dtype {
            DType::BF16 => WeightType::Bf16,
            DType::F16 => WeightType::F16,
            _ => WeightType::F32,
        };
        Ok((keep, dtype))
    }

    /// What a matrix that lies in a file as `stored` is kept in. `embeds`: it is the embedding or the LM head.
    pub(crate) fn form(self, stored: Stored, embeds: bool) -> Form {
        match self {
            WeightType::F32 => Form::F32,
            WeightType::Bf16 => Form::Bf16,
            WeightType::F16 => Form::F16,
            WeightType::Q8_0 => Form::Q8_0,
            WeightType::Q4_1 | WeightType::Q4_0 if embeds => Form::Q8_0,
            WeightType::Q4_1 => Form::Q4_1,
            WeightType::Q4_0 => Form::Q4_0,
            WeightType::Stored => match stored {
                Stored::F64 | Stored::F32 => Form::F32,
                Stored::F16 => Form::F16,
                Stored::Bf16 => Form::Bf16,
                Stored::Quantised(GgmlDType::Q4_0) => Form::Q4_0,
                Stored::Quantised(GgmlDType::Q4_1 | GgmlDType::Q4K) => Form::Q4_1,
                Stored::Quantised(_) => Form::Q8_0,
            },
        }
    }
}

impl fmt::Display for WeightType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What one matrix is kept in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Form {
    F32,
    Bf16,
    F16,
    Q8_0,
    Q4_1,
    Q4_0,
}

impl Form {
    /// How llama.cpp's files hold it.
    pub(crate) fn stored(self) -> Stored {
        Stored::of(match self {
            Form::F32 => GgmlDType::F32,
            Form::Bf16 => GgmlDType::BF16,
            Form::F16 => GgmlDType::F16,
            Form::Q8_0 => GgmlDType::Q8_0,
            Form::Q4_1 => GgmlDType::Q4_1,
            Form::Q4_0 => GgmlDType::Q4_0,
        })
    }

    /// Bytes of so many values.
    pub(crate) fn bytes(self, values: usize) -> u64 {
        self.stored().bytes(values) as u64
    }
}
