//! Pre-training of small LLaMA models and skip-aware fine-tuning, in candle on the CPU.
//!
//! [`Trainer`] takes pairs of token ids (prompt, response), a [`ModelShape`], and, for skip-aware training, a
//! [`Depths`] per batch: which layers each response token runs. Prompts always run all layers, as in the recipe of
//! arXiv 2404.06954; a skipped layer passes its input on. It checkpoints, resumes exactly, and writes an ordinary
//! Hugging Face folder.

mod attention;
mod checkpoint;
mod config;
mod data;
mod error;
mod export;
mod net;
mod ops;
mod optimizer;
mod tokenizer;
mod trainer;

pub use config::{LossOn, ModelShape, OptimizerConfig, TrainConfig};
pub use data::{Batch, Depths, Pair};
pub use error::{Result, TrainError};
pub use net::Net;
pub use tokenizer::{BOS, EOS, PAD, train_tokenizer};
pub use trainer::{Control, StepReport, Trainer};
