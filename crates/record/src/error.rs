//! What can be wrong with the folder of a run.

use std::path::{Path, PathBuf};

/// An error of this crate.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// A file or folder cannot be read or written.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// `read` or `write`.
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The operating system's answer.
        source: std::io::Error,
    },
    /// A newer skipbench wrote it.
    #[error(
        "{} has format version {found}, and this skipbench reads up to {known}; use the skipbench that wrote it, or another folder (--out)",
        path.display()
    )]
    Newer {
        /// The file, with the line where it has lines.
        path: PathBuf,
        /// Its version.
        found: u64,
        /// The newest version that is known here.
        known: u32,
    },
    /// An older skipbench wrote it.
    #[error(
        "{} was written by an older skipbench and cannot be read any more; move the folder away or give another one (--out), and run the experiment again",
        path.display()
    )]
    Older {
        /// The file.
        path: PathBuf,
    },
    /// Another process writes to the folder.
    #[error("another skipbench is writing to {}; wait for it, or give another folder (--out)", dir.display())]
    Locked {
        /// The folder.
        dir: PathBuf,
    },
    /// The folder belongs to another experiment.
    #[error(
        "{} holds the results of experiment `{found}`, not of `{wanted}`; give another folder (--out), or move this one away",
        dir.display()
    )]
    OtherExperiment {
        /// The folder.
        dir: PathBuf,
        /// The experiment that it belongs to.
        found: String,
        /// The experiment that was to be written.
        wanted: String,
    },
    /// The folder is an archive, which is not written to.
    #[error("{} holds an archived run; `skipbench report` reads it, and `run` needs another folder (--out)", dir.display())]
    Archived {
        /// The folder.
        dir: PathBuf,
    },
    /// The folder that is to become an archive holds something else.
    #[error("{} holds something else than an archive of this experiment; give an empty folder", dir.display())]
    Taken {
        /// The folder.
        dir: PathBuf,
    },
    /// The folder is not that of a run.
    #[error("{} holds no run: {missing} is missing; `skipbench run EXPERIMENT.yaml --out {}` makes one", dir.display(), dir.display())]
    NoRun {
        /// The folder.
        dir: PathBuf,
        /// The file that should be there.
        missing: &'static str,
    },
    /// A file that is read as a whole is not what it should be.
    #[error("{} is not the {what} of a run: {reason}", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What it should be.
        what: &'static str,
        /// What is wrong with it.
        reason: String,
    },
}

impl RecordError {
    pub(crate) fn read(path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        Self::io("read", path)
    }

    pub(crate) fn write(path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        Self::io("write", path)
    }

    fn io(action: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_path_buf();
        move |source| Self::Io {
            action,
            path,
            source,
        }
    }
}

/// Result of this crate.
pub(crate) type Result<T> = std::result::Result<T, RecordError>;
