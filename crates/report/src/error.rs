//! What can go wrong while writing a report.

use std::path::{Path, PathBuf};

/// An error of this crate.
#[derive(Debug, thiserror::Error)]
pub enum ReportError {
    /// A file cannot be written.
    #[error("cannot write {}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The operating system's answer.
        source: std::io::Error,
    },
    /// A table could not be made.
    #[error("table: {0}")]
    Frame(#[from] polars::error::PolarsError),
    /// A plot could not be drawn.
    #[error("plot `{name}`: {message}")]
    Plot {
        /// The plot.
        name: String,
        /// What went wrong.
        message: String,
    },
    /// The HTML template failed.
    #[error("report.html: {0}")]
    Html(#[from] minijinja::Error),
}

impl ReportError {
    pub(crate) fn io(path: &Path) -> impl FnOnce(std::io::Error) -> ReportError {
        let path = path.to_path_buf();
        move |source| ReportError::Io { path, source }
    }
}

/// Result of this crate.
pub type Result<T> = std::result::Result<T, ReportError>;
