//! The element types of GGUF tensors.

use crate::stored::Stored;
use candle_core::quantized::GgmlDType;

/// How the values of a tensor are packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct BlockType(GgmlDType);

/// Number in the file and name of every type that is read.
const READ: [(u32, GgmlDType, &str); 13] = [
    (0, GgmlDType::F32, "F32"),
    (1, GgmlDType::F16, "F16"),
    (30, GgmlDType::BF16, "BF16"),
    (8, GgmlDType::Q8_0, "Q8_0"),
    (2, GgmlDType::Q4_0, "Q4_0"),
    (3, GgmlDType::Q4_1, "Q4_1"),
    (6, GgmlDType::Q5_0, "Q5_0"),
    (7, GgmlDType::Q5_1, "Q5_1"),
    (10, GgmlDType::Q2K, "Q2_K"),
    (11, GgmlDType::Q3K, "Q3_K"),
    (12, GgmlDType::Q4K, "Q4_K"),
    (13, GgmlDType::Q5K, "Q5_K"),
    (14, GgmlDType::Q6K, "Q6_K"),
];

/// Names of types that llama.cpp has beside these.
const OTHERS: [(u32, &str); 20] = [
    (9, "Q8_1"),
    (15, "Q8_K"),
    (16, "IQ2_XXS"),
    (17, "IQ2_XS"),
    (18, "IQ3_XXS"),
    (19, "IQ1_S"),
    (20, "IQ4_NL"),
    (21, "IQ3_S"),
    (22, "IQ2_S"),
    (23, "IQ4_XS"),
    (24, "I8"),
    (25, "I16"),
    (26, "I32"),
    (27, "I64"),
    (28, "F64"),
    (29, "IQ1_M"),
    (34, "TQ1_0"),
    (35, "TQ2_0"),
    (39, "MXFP4"),
    (40, "NVFP4"),
];

impl BlockType {
    /// The type with this number, or the name of one that is not read.
    pub(crate) fn of(code: u32) -> Result<Self, String> {
        if let Some((_, dtype, _)) = READ.iter().find(|(known, ..)| *known == code) {
            return Ok(Self(*dtype));
        }
        let other = OTHERS.iter().find(|(known, _)| *known == code);
        Err(other.map_or_else(|| format!("number {code}"), |(_, name)| format!("`{name}`")))
    }

    /// The names of all types that are read.
    pub(crate) fn names() -> String {
        let names: Vec<&str> = READ.iter().map(|(_, _, name)| *name).collect();
        names.join(", ")
    }

    pub(crate) fn name(self) -> &'static str {
        let entry = READ.iter().find(|(_, dtype, _)| *dtype == self.0);
        entry.map_or("unknown", |(_, _, name)| name)
    }

    /// candle's name for it.
    pub(crate) fn dtype(self) -> GgmlDType {
        self.0
    }

    pub(crate) fn stored(self) -> Stored {
        Stored::of(self.0)
    }

    /// Values of a block.
    pub(crate) fn elements(self) -> usize {
        self.0.block_size()
    }

    /// Bytes of a block.
    pub(crate) fn bytes(self) -> usize {
        self.0.type_size()
    }
}
