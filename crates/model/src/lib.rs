//! What one layer of a decoder-only language model computes.
//!
//! # Overview
//!
//! [`Decoder`] is a checkpoint loaded from a Hugging Face folder or a GGUF file, of one of the families of [`Family`]. It
//! implements [`CausalLm`], through which the engine runs it a layer at a time, in any order and leaving out
//! any layer, over a ragged batch ([`Span`]) with a [`KvCache`] that is addressed by absolute position.
//!
//! A family only knows its tensor names and config keys; all families share one layer, which data describes: which norms
//! there are, how positions enter, what a token sees ([`ModelConfig`]). That layer exists in two forms behind the same call: composed from candle operations (any device and dtype)
//! and fused for a CPU, where it runs several times as fast and computes in f32 whatever the weights are kept in.

mod added_tokens;
mod attend;
mod batch;
mod blocks;
mod cache;
mod cache_layer;
mod causal_lm;
mod checkpoint;
mod composed;
mod config;
mod decoder;
mod element;
mod error;
mod families;
mod form;
mod fused;
mod gguf;
mod host_kv;
mod hub;
mod int8;
mod kept;
mod kernels;
mod lora;
mod matrix;
mod memory;
mod mock;
pub mod ops;
mod packed;
mod parts;
mod pointwise;
mod quantise;
mod rope;
mod safetensors_file;
mod scratch;
mod shape;
mod shortlist;
pub mod simd;
mod sizes;
mod source;
mod stored;
mod tables;
pub mod threads;
mod tokenizer;
mod weight_bytes;
pub mod weights;

pub use batch::{Span, positions, token_count};
pub use cache::{CacheShape, HoleReads, KvCache, Provenance};
pub use causal_lm::{CausalLm, Part};
pub use checkpoint::weight_files;
pub use config::{
    Activation, Biases, LayerKind, ModelConfig, NormPlacement, PositionScheme, config_json,
};
pub use decoder::{Backend, Decoder};
pub use error::{ModelError, Result};
pub use families::Family;
pub use form::WeightType;
pub use host_kv::KvType;
pub use hub::{Hub, HubFile, Snapshot};
pub use kept::KeptMatrix;
pub use lora::ADAPTER_BASE;
pub use matrix::Matrix;
pub use memory::human;
pub use mock::MockModel;
pub use parts::Parts;
pub use rope::{Beyond, Rope};
pub use shape::{Shape, ShapeTokenizer};
pub use shortlist::Shortlist;
pub use simd::instruction_set;
pub use sizes::{LayerBytes, ModelSizes};
pub use source::{HubDataFile, HubName, ModelSource};
pub use tokenizer::{ByteTokenizer, SpecialTokens, TextTokenizer, Tokenize};
