//! Hashes of what a result depends on: every byte of a checkpoint, and the texts of a task.

use crate::models::DownloadFile;
use anyhow::Context;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use skipbench_model::Shape;
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// SHA-256 of the parts of a checkpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct CheckpointDigest {
    /// All weight files.
    pub(crate) weights: String,
    /// The tokenizer's files.
    pub(crate) tokenizer: String,
    /// The configuration.
    pub(crate) config: String,
}

impl CheckpointDigest {
    /// Hashes a checkpoint folder or a GGUF file, which is all three parts. The hash of a large file is remembered by path,
    /// size and time of change.
    ///
    /// # Errors
    /// A folder or file that cannot be read.
    pub(crate) fn of(model: &Path) -> anyhow::Result<Self> {
        Self::with(model, &[])
    }

    /// As [`of`](Self::of) of a folder whose `absent` files are yet to be downloaded.
    ///
    /// # Errors
    /// As [`of`](Self::of).
    pub(crate) fn with(model: &Path, absent: &[DownloadFile]) -> anyhow::Result<Self> {
        if let Some(shape) = Shape::of(model)? {
            // Its weights follow from its sizes.
            let digest = of_texts([serde_json::to_string(shape.settings())?.as_str()]);
            return Ok(Self {
                weights: digest.clone(),
                tokenizer: digest.clone(),
                config: digest,
            });
        }
        let mut memory = Memory::load();
        if model.is_file() {
            let digest = memory.file(model)?;
            memory.save();
            return Ok(Self {
                weights: digest.clone(),
                tokenizer: digest.clone(),
                config: digest,
            });
        }
        let mut found = Vec::new();
        for path in files(model)? {
            let name = path.file_name().unwrap_or_default();
            if part(&name.to_string_lossy()).is_some() {
                found.push((name.to_os_string(), memory.file(&path)?));
            }
        }
        memory.save();
        found.extend(absent.iter().map(|file| {
            // Without a hash the size is all that is known; the file gets another name of its own then.
            let digest = file.sha256.clone();
            let digest = digest.unwrap_or_else(|| format!("{:?} bytes", file.bytes));
            (OsString::from(&file.name), digest)
        }));
        found.sort();
        let mut parts = [Sha256::new(), Sha256::new(), Sha256::new()];
        for (name, digest) in found {
            let Some(part) = part(&name.to_string_lossy()) else {
                continue;
            };
            let hash = &mut parts[part];
            hash.update((name.len() as u64).to_le_bytes());
            hash.update(name.as_encoded_bytes());
            hash.update(digest);
        }
        let [weights, tokenizer, config] = parts.map(|hash| format!("{:x}", hash.finalize()));
        Ok(Self {
            weights,
            tokenizer,
            config,
        })
    }
}

/// Which part of a checkpoint a file belongs to: 0 weights, 1 tokenizer, 2 configuration.
fn part(name: &str) -> Option<usize> {
    let of_tokenizer = ["token", "vocab", "merges", "chat_template"];
    if [".safetensors", ".gguf", ".bin"]
        .iter()
        .any(|end| name.ends_with(end))
    {
        Some(0)
    } else if of_tokenizer.iter().any(|word| name.contains(word)) {
        Some(1)
    } else {
        name.ends_with(".json").then_some(2)
    }
}

fn files(dir: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let read = || format!("cannot read {}", dir.display());
    let mut paths = std::fs::read_dir(dir)
        .with_context(read)?
        .map(|entry| entry.map(|entry| entry.path()))
        .collect::<Result<Vec<_>, _>>()
        .with_context(read)?;
    paths.retain(|path| path.is_file());
    paths.sort();
    Ok(paths)
}

/// Hash of texts, each with its length, so that no two lists of texts share one.
pub(crate) fn of_texts<'a>(texts: impl IntoIterator<Item = &'a str>) -> String {
    let mut hash = Sha256::new();
    for text in texts {
        hash.update((text.len() as u64).to_le_bytes());
        hash.update(text);
    }
    format!("{:x}", hash.finalize())
}

/// Hashes of large files from earlier runs.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Memory {
    files: BTreeMap<String, Remembered>,
    #[serde(skip)]
    changed: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Remembered {
    len: u64,
    /// Nanoseconds since 1970.
    modified: u64,
    digest: String,
}

/// Smaller files are hashed anew each time.
const WORTH_REMEMBERING: u64 = 1 << 20;
/// A file that was changed this recently may be changed again without a new time.
const SETTLED: Duration = Duration::from_secs(2);

impl Memory {
    fn path() -> Option<PathBuf> {
        let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
        let home = || std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache"));
        let cache = cache.filter(|path| path.is_absolute()).or_else(home)?;
        Some(cache.join("skipbench").join("digests.json"))
    }

    /// What earlier runs remembered; nothing where that cannot be read.
    fn load() -> Self {
        let bytes = Self::path().and_then(|path| std::fs::read(path).ok());
        bytes
            .and_then(|bytes| serde_json::from_slice(&bytes).ok())
            .unwrap_or_default()
    }

    /// Nothing is lost where it cannot be written: the next run hashes again.
    fn save(&self) {
        let Some(path) = Self::path().filter(|_| self.changed) else {
            return;
        };
        let saved = path
            .parent()
            .map_or(Ok(()), std::fs::create_dir_all)
            .and_then(|()| skipbench_fs::write_whole(&path, &serde_json::to_vec(self)?));
        if let Err(error) = saved {
            tracing::debug!("hashes are not remembered: {error}");
        }
    }

    fn file(&mut self, path: &Path) -> anyhow::Result<String> {
        let failed = || format!("cannot read {}", path.display());
        let mut file = File::open(path).with_context(failed)?;
        let metadata = file.metadata().with_context(failed)?;
        let modified = metadata.modified().ok();
        let nanoseconds = modified.and_then(|time| time.duration_since(UNIX_EPOCH).ok());
        let modified_ns = nanoseconds.map_or(0, |time| time.as_nanos() as u64);
        let key = std::fs::canonicalize(path).with_context(failed)?;
        let key = key.to_string_lossy().into_owned();
        if let Some(known) = self.files.get(&key)
            && (known.len, known.modified) == (metadata.len(), modified_ns)
        {
            return Ok(known.digest.clone());
        }
        let digest = of_reader(&mut file).with_context(failed)?;
        let settled = modified.is_some_and(|time| {
            SystemTime::now()
                .duration_since(time)
                .is_ok_and(|age| age > SETTLED)
        });
        if metadata.len() >= WORTH_REMEMBERING && settled {
            let remembered = Remembered {
                len: metadata.len(),
                modified: modified_ns,
                digest: digest.clone(),
            };
            self.files.insert(key, remembered);
            self.changed = true;
        }
        Ok(digest)
    }
}

fn of_reader(reader: &mut impl Read) -> std::io::Result<String> {
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        match reader.read(&mut buffer)? {
            0 => return Ok(format!("{:x}", hash.finalize())),
            len => hash.update(&buffer[..len]),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_counts() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("model.safetensors");
        let mut bytes: Vec<u8> = (0..5u32 << 20).map(|i| i as u8).collect();
        std::fs::write(&path, &bytes).unwrap();
        std::fs::write(dir.path().join("config.json"), "{}").unwrap();
        let before = CheckpointDigest::of(dir.path()).unwrap();
        bytes[2 << 20] ^= 1;
        std::fs::write(&path, &bytes).unwrap();
        let after = CheckpointDigest::of(dir.path()).unwrap();
        assert_ne!(before.weights, after.weights);
        assert_eq!(
            (before.config, before.tokenizer),
            (after.config, after.tokenizer)
        );
    }

    #[test]
    fn a_file_that_is_yet_to_come_counts_as_if_it_were_there() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("config.json"), "{}").unwrap();
        let absent = |sha256: &str| DownloadFile {
            name: "model.safetensors".to_owned(),
            bytes: Some(3),
            sha256: Some(sha256.to_owned()),
        };
        // SHA-256 of "abc".
        let known = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        let before = CheckpointDigest::with(dir.path(), &[absent(known)]).unwrap();
        let other = CheckpointDigest::with(dir.path(), &[absent("00")]).unwrap();
        std::fs::write(dir.path().join("model.safetensors"), "abc").unwrap();
        assert_eq!(before, CheckpointDigest::of(dir.path()).unwrap());
        assert_ne!(before, other);
    }

    #[test]
    fn a_single_file_is_all_parts() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.gguf");
        std::fs::write(&path, "abc").unwrap();
        let before = CheckpointDigest::of(&path).unwrap();
        std::fs::write(&path, "abd").unwrap();
        let after = CheckpointDigest::of(&path).unwrap();
        assert_ne!(before.weights, after.weights);
        assert_ne!(before.tokenizer, after.tokenizer);
    }

    #[test]
    fn a_hash_is_remembered_by_path_size_and_time() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("model.safetensors");
        std::fs::write(&path, vec![7; 2 << 20]).unwrap();
        let long_ago = SystemTime::now() - Duration::from_secs(60);
        let set_time = |time| {
            File::options()
                .write(true)
                .open(&path)
                .unwrap()
                .set_modified(time)
        };
        set_time(long_ago).unwrap();
        let mut memory = Memory::default();
        let digest = memory.file(&path).unwrap();
        let (_, known) = memory.files.iter_mut().next().unwrap();
        assert_eq!(known.digest, digest);
        known.digest = "remembered".to_owned();
        assert_eq!(memory.file(&path).unwrap(), "remembered");
        set_time(long_ago + Duration::from_secs(1)).unwrap();
        assert_eq!(memory.file(&path).unwrap(), digest);
    }

    #[test]
    fn texts_are_kept_apart() {
        assert_ne!(of_texts(["ab", "c"]), of_texts(["a", "bc"]));
    }
}
