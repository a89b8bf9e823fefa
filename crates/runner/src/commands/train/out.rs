//! The output folder of a training run: what may be replaced there, and the work folder inside.

use anyhow::{Context, bail};
use serde_json::Value;
use skipbench_train::{Trainer, differences};
use std::fs::File;
use std::path::{Path, PathBuf};

/// Holds the unfinished run, its log, and the settings of a finished one.
const WORK: &str = "training";

/// The work folder, taken for this process.
pub(super) struct Work {
    dir: PathBuf,
    _lock: File,
}

impl Work {
    /// Takes the work folder of `out`.
    ///
    /// # Errors
    /// A folder that cannot be written, or that another process works in.
    pub(super) fn open(out: &Path) -> anyhow::Result<Self> {
        let dir = out.join(WORK);
        std::fs::create_dir_all(&dir).with_context(|| format!("cannot write {}", dir.display()))?;
        let Some(lock) = skipbench_fs::lock(&dir)? else {
            bail!(
                "another process is training {}; wait for it, or use another `out`",
                out.display()
            );
        };
        for folder in [out, &dir] {
            skipbench_fs::remove_leftovers(folder)?;
        }
        Ok(Self { dir, _lock: lock })
    }

    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }
}

/// Whether `out` holds what a run with `settings` has finished, and nothing is to be done.
///
/// # Errors
/// A finished checkpoint that these settings did not make, unless `force` lets it be replaced.
pub(super) fn is_finished(out: &Path, settings: &Value, force: bool) -> anyhow::Result<bool> {
    let work = out.join(WORK);
    if out.join("model.safetensors.index.json").exists() {
        bail!(
            "{} holds a checkpoint in several files, which is never replaced; use another `out`",
            out.display()
        );
    }
    // A run that was allowed to begin may go on to its end.
    if force || !has_weights(out) || Trainer::is_unfinished(&work) {
        return Ok(false);
    }
    let reason = match Trainer::finished(&work)? {
        None => "that this command did not make".to_owned(),
        Some(then) => match differences(&then, settings) {
            different if different.is_empty() => return Ok(true),
            different => format!("with other settings: {}", different.join(", ")),
        },
    };
    bail!(
        "{} holds a finished checkpoint {reason}; use another `out`, or --force to replace it once the training has ended",
        out.display()
    );
}

/// Whether there is a checkpoint in the folder.
pub(super) fn has_weights(out: &Path) -> bool {
    let files = ["model.safetensors", "adapter_model.safetensors"];
    files.iter().any(|file| out.join(file).exists())
}
