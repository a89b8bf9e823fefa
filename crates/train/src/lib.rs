//! Pre-training of small LLaMA models and skip-aware fine-tuning, in candle on the CPU.
//!
//! [`Trainer`] takes pairs of token ids (prompt, response), a [`ModelShape`], and a [`objective::Step`] for each batch: which
//! sub-layers its tokens run ([`Depths`]), and which losses are added up. A skipped sub-layer passes its input on. It
//! checkpoints, resumes exactly, and writes an ordinary Hugging Face folder.

mod attention;
mod checkpoint;
mod config;
mod data;
mod error;
mod export;
mod net;
pub mod objective;
mod ops;
mod optimizer;
mod settings;
#[cfg(test)]
mod testing;
mod tokenizer;
mod trainer;

pub use config::{LossOn, ModelShape, OptimizerConfig, TrainConfig};
pub use data::{Batch, Depths, Fill, Pair};
pub use error::{Result, TrainError};
pub use net::{LayerUse, Net};
pub use settings::{differences, of_run as settings_of_run};
pub use tokenizer::{BOS, EOS, PAD, train_tokenizer};
pub use trainer::{StepReport, Trainer};
