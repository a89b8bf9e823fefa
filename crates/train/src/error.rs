//! What can go wrong while training.

use std::path::PathBuf;

/// An error of this crate.
#[derive(Debug, thiserror::Error)]
pub enum TrainError {
    /// A file cannot be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The operating system's answer.
        source: std::io::Error,
    },
    /// The shape or the schedule cannot work.
    #[error("training config: {0}")]
    Config(String),
    /// A checkpoint is damaged or belongs to another run.
    #[error("{}: {message}", path.display())]
    Checkpoint {
        /// The file.
        path: PathBuf,
        /// What is wrong, and what to do.
        message: String,
    },
    /// The model to start from cannot be used.
    #[error(transparent)]
    Model(#[from] skipbench_model::ModelError),
    /// The tokenizer cannot be trained or written.
    #[error("tokenizer: {0}")]
    Tokenizer(String),
    /// The training has blown up.
    #[error(
        "the {what} at step {step} is {value}; lower the learning rate (the last checkpoint is from before)"
    )]
    Diverged {
        /// Optimizer step.
        step: u64,
        /// What is no longer a number.
        what: &'static str,
        /// Its value.
        value: f64,
    },
    /// A tensor operation failed.
    #[error("tensor operation failed: {0}")]
    Tensor(#[from] candle_core::Error),
}

impl TrainError {
    pub(crate) fn io(path: &std::path::Path) -> impl FnOnce(std::io::Error) -> TrainError {
        let path = path.to_path_buf();
        move |source| TrainError::Io { path, source }
    }
}

/// Result of this crate.
pub type Result<T> = std::result::Result<T, TrainError>;
