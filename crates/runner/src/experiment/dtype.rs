//! What weights and the KV cache are kept in, as experiments and commands name it.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use skipbench_model::{KvType, WeightType};

/// What the weights of a model are kept in.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema, clap::ValueEnum,
)]
#[serde(rename_all = "snake_case")]
#[value(rename_all = "snake_case")]
pub enum DtypeName {
    /// 32 bits.
    F32,
    /// Brain float, 16 bits.
    Bf16,
    /// IEEE half, 16 bits.
    F16,
    /// Blocks of 32 weights of 8 bits with a scale: 8.5 bits a weight. CPU only.
    #[serde(rename = "q8_0")]
    #[value(name = "q8_0")]
    Q8_0,
    /// Blocks of 32 weights of 4 bits with a scale and a minimum: 5 bits a weight. Embedding and LM head are in q8_0. CPU only.
    #[serde(rename = "q4_1")]
    #[value(name = "q4_1")]
    Q4_1,
    /// Blocks of 32 weights of 4 bits with a scale: 4.5 bits a weight. Embedding and LM head are in q8_0. CPU only.
    #[serde(rename = "q4_0")]
    #[value(name = "q4_0")]
    Q4_0,
    /// What the file has, matrix by matrix. Of the types of a GGUF file that are not among these, Q4_K becomes q4_1 with the same
    /// codes, and others become q8_0.
    Stored,
}

impl From<DtypeName> for WeightType {
    fn from(name: DtypeName) -> WeightType {
        match name {
            DtypeName::F32 => WeightType::F32,
            DtypeName::Bf16 => WeightType::Bf16,
            DtypeName::F16 => WeightType::F16,
            DtypeName::Q8_0 => WeightType::Q8_0,
            DtypeName::Q4_1 => WeightType::Q4_1,
            DtypeName::Q4_0 => WeightType::Q4_0,
            DtypeName::Stored => WeightType::Stored,
        }
    }
}

/// What keys and values are kept in.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema, clap::ValueEnum,
)]
#[serde(rename_all = "snake_case")]
#[value(rename_all = "snake_case")]
pub enum KvDtypeName {
    /// 32 bits.
    F32,
    /// Brain float, 16 bits.
    Bf16,
    /// IEEE half, 16 bits: finer, and infinite from 65,520 on.
    F16,
}

impl From<KvDtypeName> for KvType {
    fn from(name: KvDtypeName) -> KvType {
        match name {
            KvDtypeName::F32 => KvType::F32,
            KvDtypeName::Bf16 => KvType::Bf16,
            KvDtypeName::F16 => KvType::F16,
        }
    }
}
