//! What can go wrong while drawing a report.

use skipbench_metrics::MetricError;
use skipbench_record::RecordError;
use std::path::PathBuf;

/// An error of this crate.
#[derive(Debug, thiserror::Error)]
pub enum ReportError {
    /// A folder cannot be made.
    #[error("cannot write to {}", path.display())]
    Folder {
        /// The folder.
        path: PathBuf,
        /// The operating system's answer.
        source: std::io::Error,
    },
    /// A file cannot be written; the error names it.
    #[error(transparent)]
    Write(#[from] std::io::Error),
    /// The folder of a run cannot be read or written.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// Answers cannot be scored.
    #[error("{cell} cannot be scored")]
    Score {
        /// Name of the cell.
        cell: String,
        /// Why.
        source: MetricError,
    },
    /// A table could not be made.
    #[error("table: {0}")]
    Frame(#[from] polars_core::error::PolarsError),
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

/// Result of this crate.
pub type Result<T> = std::result::Result<T, ReportError>;
