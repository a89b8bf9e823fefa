//! Models as a command line or an experiment names them: what is on the hub is fetched to its cache first.

use crate::progress;
use anyhow::Context;
use serde::Serialize;
use skipbench_model::{Hub, HubDataFile, HubFile, ModelSource, Shape, Snapshot, human};
use std::io::Write;
use std::path::{Path, PathBuf};

/// What `plan` says of a model that is not on this machine yet.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Download {
    /// The model, as it was named.
    pub(crate) model: String,
    /// What is missing.
    pub(crate) files: Vec<DownloadFile>,
    /// The sum of their sizes, where the hub says them.
    pub(crate) bytes: Option<u64>,
}

/// A file that is not on this machine yet.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct DownloadFile {
    pub(crate) name: String,
    pub(crate) bytes: Option<u64>,
    #[serde(skip)]
    pub(crate) sha256: Option<String>,
}

/// The folder or file of a model, and what of it is missing there.
#[derive(Debug, Clone)]
pub(crate) struct Located {
    pub(crate) path: PathBuf,
    /// What a table calls it if it has no name of its own.
    pub(crate) name: String,
    pub(crate) download: Option<Download>,
}

/// The folder or file of a model, downloaded if it is not here yet.
///
/// # Errors
/// A name that is none, a repository that cannot be had.
pub(crate) fn fetch(model: &Path) -> anyhow::Result<PathBuf> {
    Ok(locate(model, |_| true)?.path)
}

/// The folder or file of a model with its settings and its tokenizer, which are small; its weights are only looked at.
///
/// # Errors
/// As [`fetch`].
pub(crate) fn look(model: &Path) -> anyhow::Result<Located> {
    locate(model, |file| !Snapshot::is_weights(file))
}

/// [`fetch`] with what it says of the model.
///
/// # Errors
/// As [`fetch`].
pub(crate) fn fetch_located(model: &Path) -> anyhow::Result<Located> {
    locate(model, |_| true)
}

fn locate(model: &Path, wanted: impl Fn(&HubFile) -> bool) -> anyhow::Result<Located> {
    match ModelSource::of(model)? {
        ModelSource::Path(path) => Ok(Located {
            name: name_of(&path),
            path,
            download: None,
        }),
        ModelSource::Hub(name) => {
            let snapshot = Hub::from_env().look(&name)?;
            snapshot.fetch(wanted, |message| {
                // Nobody is left to tell if stderr is gone.
                let _ = writeln!(progress::Stderr, "{message}");
            })?;
            let files: Vec<DownloadFile> = snapshot
                .absent()
                .map(|file| DownloadFile {
                    name: file.name.clone(),
                    bytes: file.bytes,
                    sha256: file.sha256.clone(),
                })
                .collect();
            let download = (!files.is_empty()).then(|| Download {
                model: name.to_string(),
                bytes: files.iter().map(|file| file.bytes).sum(),
                files,
            });
            Ok(Located {
                path: snapshot.folder().to_path_buf(),
                name: name.short().to_owned(),
                download,
            })
        }
    }
}

/// The name of a folder, or of a file without its ending, which says nothing of the model.
fn name_of(path: &Path) -> String {
    if let Ok(Some(shape)) = Shape::of(path) {
        return shape.name().to_owned();
    }
    let name = match path.is_file() {
        true => path.file_stem(),
        false => path.file_name(),
    };
    let name = name.map(|name| name.to_string_lossy().into_owned());
    name.unwrap_or_else(|| "model".to_owned())
}

/// A file of a task, downloaded where it is one of a data set of the hub and not here yet.
///
/// # Errors
/// A name that is none, a data set that cannot be had.
pub(crate) fn fetch_data(path: &Path) -> anyhow::Result<PathBuf> {
    match HubDataFile::of(path)? {
        None => Ok(path.to_path_buf()),
        Some(file) => Ok(Hub::from_env().data_file(&file, |message| {
            let _ = writeln!(progress::Stderr, "{message}");
        })?),
    }
}

/// A path of a task's file, taken from the folder of its experiment; a name of the hub is none.
pub(crate) fn join_data(folder: &Path, path: &Path) -> PathBuf {
    match path.to_str().is_some_and(|text| text.starts_with("hub:")) {
        true => path.to_path_buf(),
        false => folder.join(path),
    }
}

/// A path of an experiment, taken from the folder of its file; a name of the hub is none.
pub(crate) fn join(folder: &Path, model: &Path) -> PathBuf {
    match ModelSource::of(model) {
        Ok(ModelSource::Path(path)) => folder.join(path),
        // What is no name either is refused where the model is opened.
        Ok(ModelSource::Hub(_)) | Err(_) => model.to_path_buf(),
    }
}

/// A path of the current folder as a file in `folder` writes it: [`join`] gives what it stands for.
///
/// # Errors
/// A file that is not there.
pub(crate) fn from_folder(folder: &Path, path: &Path) -> anyhow::Result<PathBuf> {
    let is_here = folder.as_os_str().is_empty() || folder == Path::new(".");
    match ModelSource::of(path) {
        Ok(ModelSource::Hub(_)) => Ok(path.to_path_buf()),
        _ if is_here || path.is_absolute() => Ok(path.to_path_buf()),
        _ => std::fs::canonicalize(path).with_context(|| format!("cannot read {}", path.display())),
    }
}

impl Download {
    /// `Would download hub:owner/name: 2 files, 1.2 GiB (model-00001-of-00002.safetensors 600.0 MiB, …)`.
    pub(crate) fn text(&self) -> String {
        let size = |bytes: Option<u64>| {
            bytes.map_or_else(
                || "of unknown size".to_owned(),
                |bytes| human(u128::from(bytes)),
            )
        };
        let files: Vec<String> = self
            .files
            .iter()
            .map(|file| format!("{} {}", file.name, size(file.bytes)))
            .collect();
        format!(
            "Would download {}: {} {}, {} ({})",
            self.model,
            self.files.len(),
            if self.files.len() == 1 {
                "file"
            } else {
                "files"
            },
            size(self.bytes),
            files.join(", ")
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_of_the_hub_stays_what_it_is() {
        let join = |model: &str| join(Path::new("experiments/a"), Path::new(model));
        assert_eq!(join("../m"), Path::new("experiments/a/../m"));
        assert_eq!(join("x.gguf"), Path::new("experiments/a/x.gguf"));
        assert_eq!(join("/m"), Path::new("/m"));
        assert_eq!(join("hub:a/b@c"), Path::new("hub:a/b@c"));
        assert_eq!(join("hub:../x"), Path::new("hub:../x"));
    }

    #[test]
    fn what_would_be_downloaded_is_said_with_its_size() {
        let file = |name: &str, bytes| DownloadFile {
            name: name.to_owned(),
            bytes,
            sha256: None,
        };
        let download = Download {
            model: "hub:a/b".to_owned(),
            files: vec![file("x", Some(1 << 20)), file("y", Some(3 << 20))],
            bytes: Some(4 << 20),
        };
        assert_eq!(
            download.text(),
            "Would download hub:a/b: 2 files, 4.0 MiB (x 1.0 MiB, y 3.0 MiB)"
        );
    }
}
