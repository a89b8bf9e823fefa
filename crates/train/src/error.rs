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
    /// A file cannot be written; the source names it.
    #[error(transparent)]
    Write(#[from] std::io::Error),
    /// The shape, the schedule or a batch cannot work.
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
        "the {what} at step {step} is {value}, and {}; lower `learning-rate` or `clip-norm` and train anew in another folder",
        last_checkpoint(*.kept)
    )]
    Diverged {
        /// The update that failed, counted from 1.
        step: u64,
        /// What is no longer a number.
        what: &'static str,
        /// Its value.
        value: f64,
        /// Updates in the last checkpoint that was written.
        kept: Option<u64>,
    },
    /// A network is to be exported before its training has ended.
    #[error("training stands at step {step} of {steps}; only a finished network is exported")]
    Unfinished {
        /// Updates done.
        step: u64,
        /// Updates of the whole training.
        steps: u64,
    },
    /// A tensor operation failed.
    #[error("tensor operation failed: {}", first_line(.0))]
    Tensor(#[from] candle_core::Error),
}

impl TrainError {
    pub(crate) fn io(path: &std::path::Path) -> impl FnOnce(std::io::Error) -> TrainError {
        let path = path.to_path_buf();
        move |source| TrainError::Io { path, source }
    }
}

fn last_checkpoint(step: Option<u64>) -> String {
    match step {
        Some(step) => format!("the checkpoint of step {step} is kept"),
        None => "no checkpoint was written yet".to_owned(),
    }
}

/// What candle says; a backtrace may stand behind the first line.
pub(crate) fn first_line(error: &candle_core::Error) -> String {
    error
        .to_string()
        .lines()
        .next()
        .unwrap_or_default()
        .to_owned()
}

/// Result of this crate.
pub type Result<T> = std::result::Result<T, TrainError>;
