//! Pre-training of small LLaMA models and skip-aware fine-tuning of checkpoints of all families, in candle on the CPU.
//!
//! [`Trainer`] takes pairs of token ids (prompt, response), a [`ModelShape`], and a [`objective::Step`] for each batch: which
//! sub-layers its tokens run ([`Depths`]), and which losses are added up. A skipped sub-layer passes its input on. It
//! checkpoints, resumes exactly, and writes an ordinary Hugging Face folder, or an adapter in PEFT's form.

mod activation;
mod adapter;
mod again;
mod architecture;
mod assemble;
mod attention;
mod checkpoint;
mod config;
mod data;
mod error;
mod export;
#[cfg(test)]
mod family_tests;
mod layer;
mod layer_norm;
mod net;
pub mod objective;
mod ops;
mod optimizer;
mod products;
mod settings;
#[cfg(test)]
mod testing;
mod tokenizer;
mod trainer;
mod weight;

pub use adapter::{AdaptedMatrix, AdapterConfig, BaseType};
pub use architecture::Architecture;
pub use config::{LossOn, ModelShape, OptimizerConfig, Schedule, TrainConfig};
pub use data::{Batch, Depths, Fill, Pair};
pub use error::{Result, TrainError};
pub use export::Export;
pub use net::{LayerUse, Net};
pub use settings::{differences, of_run as settings_of_run};
pub use tokenizer::{BOS, EOS, PAD, train_tokenizer};
pub use trainer::{StepReport, Trainer};
