//! What long work has found so far, kept beside the results, so that a run that was cut off does not look for it again.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use skipbench_record::{Identity, Log, RecordError};
use std::collections::HashMap;
use std::fs::{File, OpenOptions, TryLockError};
use std::path::{Path, PathBuf};

/// Name of the file in the folder of a run.
const FILE: &str = "calibration.jsonl";

/// Values by what they depend on. One that was not opened in a folder forgets them at the end.
///
/// Several processes may share what they find: each writes to a file of its own and reads those of the others, and
/// [`find`](Self::find) has one process look for a value and the others wait for it.
#[derive(Debug, Default)]
pub(crate) struct Memo {
    log: Option<Log>,
    known: HashMap<String, Value>,
    shared: Option<Shared>,
}

/// Where others keep what they find.
#[derive(Debug)]
struct Shared {
    /// The folders in it are runs, this one among them.
    folder: PathBuf,
}

/// The right to look for a value that nobody has found, held against other processes until it is dropped.
#[derive(Debug, Default)]
pub(crate) struct Claim {
    held: Option<(File, PathBuf)>,
}

impl Claim {
    /// The value has been put: whoever comes now finds it, so the file is not needed any more.
    pub(crate) fn settle(self) {
        if let Some((_, path)) = &self.held {
            // One that stays is empty and hurts nobody.
            let _ = std::fs::remove_file(path);
        }
    }
}

#[derive(Debug, Serialize, Deserialize)]
struct Line {
    /// [`Identity::id`] of what the value depends on.
    key: String,
    /// What it is, for a person who reads the file.
    about: String,
    value: Value,
}

impl Memo {
    /// The memo of a run's folder.
    ///
    /// # Errors
    /// A file that cannot be read or written.
    pub(crate) fn open(dir: &Path) -> Result<Self, RecordError> {
        let mut known = HashMap::new();
        let (log, warning) = Log::open(&dir.join(FILE), |line: Line| {
            known.insert(line.key, line.value);
        })?;
        if let Some(warning) = warning {
            tracing::warn!("{warning}");
        }
        Ok(Self {
            log: Some(log),
            known,
            shared: None,
        })
    }

    /// The same, which also knows what the runs whose folders lie in `folder` find, now and later.
    pub(crate) fn shared_in(mut self, folder: &Path) -> Self {
        self.shared = Some(Shared {
            folder: folder.to_path_buf(),
        });
        self.read_others();
        self
    }

    /// The value that was found for this, if it was.
    pub(crate) fn get<T: DeserializeOwned>(&self, of: &Identity) -> Option<T> {
        let value = self.known.get(&of.id())?;
        serde_json::from_value(value.clone()).ok()
    }

    /// The value that was found for this, by whomever; else the claim to look for it. Where another process looks for it
    /// now, this one waits. A process takes one claim at a time.
    ///
    /// # Errors
    /// The claim, where nobody has found the value.
    pub(crate) fn find<T: DeserializeOwned>(&mut self, of: &Identity) -> Result<T, Claim> {
        if let Some(found) = self.get(of) {
            return Ok(found);
        }
        let Some(shared) = &self.shared else {
            return Err(Claim::default());
        };
        let claim = shared.claim(&of.id()).unwrap_or_else(|error| {
            // Two processes that find the same thing cost time and nothing else.
            tracing::debug!("what is found is not waited for: {error}");
            Claim::default()
        });
        self.read_others();
        let Some(found) = self.get(of) else {
            return Err(claim);
        };
        claim.settle();
        Ok(found)
    }

    /// Keeps a value, on the disk too.
    ///
    /// # Errors
    /// A full or missing disk.
    pub(crate) fn put(
        &mut self,
        of: &Identity,
        about: String,
        value: impl Serialize,
    ) -> anyhow::Result<()> {
        let line = Line {
            key: of.id(),
            about,
            value: serde_json::to_value(value)?,
        };
        if let Some(log) = &mut self.log {
            log.append(std::slice::from_ref(&line))?;
        }
        self.known.insert(line.key, line.value);
        Ok(())
    }

    fn read_others(&mut self) {
        let folders = self.shared.as_ref().map(Shared::folders);
        for folder in folders.unwrap_or_default() {
            let read = Log::read(&folder.join(FILE), |line: Line| {
                self.known.entry(line.key).or_insert(line.value);
            });
            if let Err(error) = read {
                tracing::warn!("{error}; what it holds is found again");
            }
        }
    }
}

impl Shared {
    fn folders(&self) -> Vec<PathBuf> {
        // One that cannot be read tells nothing, and what it holds is found again.
        let entries = std::fs::read_dir(&self.folder).into_iter().flatten();
        entries
            .filter_map(|entry| Some(entry.ok()?.path()))
            .collect()
    }

    /// Takes the file of a value, which is locked by whoever looks for it.
    fn claim(&self, key: &str) -> std::io::Result<Claim> {
        let claims = self.folder.join(".claims");
        std::fs::create_dir_all(&claims)?;
        let path = claims.join(key);
        let file = OpenOptions::new().append(true).create(true).open(&path)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                tracing::info!("another process is finding what is needed here; waiting for it");
                file.lock()?;
            }
            Err(TryLockError::Error(error)) => return Err(error),
        }
        Ok(Claim {
            held: Some((file, path)),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(setting: f64) -> Identity {
        Identity::default().with("threshold", setting)
    }

    #[test]
    fn what_was_found_outlives_the_process() {
        let dir = tempfile::tempdir().unwrap();
        let mut memo = Memo::open(dir.path()).unwrap();
        memo.put(&of(0.5), "layers".to_owned(), 7.25).unwrap();
        drop(memo);
        let memo = Memo::open(dir.path()).unwrap();
        assert_eq!(memo.get::<f64>(&of(0.5)), Some(7.25));
        assert_eq!(memo.get::<f64>(&of(0.25)), None);
    }

    #[test]
    fn of_several_who_need_a_value_one_looks_for_it() {
        let dir = tempfile::tempdir().unwrap();
        let folders = ["a", "b", "c", "d"].map(|name| dir.path().join(name));
        let looked = std::sync::atomic::AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for own in &folders {
                std::fs::create_dir(own).unwrap();
                let mut memo = Memo::open(own).unwrap().shared_in(dir.path());
                let looked = &looked;
                scope.spawn(move || {
                    for setting in [0.25, 0.5] {
                        let found = memo.find::<f64>(&of(setting)).unwrap_or_else(|claim| {
                            looked.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
                            // As long as it takes the others to come and wait.
                            std::thread::sleep(std::time::Duration::from_millis(50));
                            memo.put(&of(setting), String::new(), 2.0 * setting)
                                .unwrap();
                            claim.settle();
                            2.0 * setting
                        });
                        assert_eq!(found, 2.0 * setting);
                    }
                });
            }
        });
        assert_eq!(looked.into_inner(), 2);
        assert_eq!(
            std::fs::read_dir(dir.path().join(".claims"))
                .unwrap()
                .count(),
            0
        );
    }

    #[test]
    fn whoever_fails_to_find_a_value_leaves_it_to_the_next() {
        let dir = tempfile::tempdir().unwrap();
        let memo = |name: &str| {
            let own = dir.path().join(name);
            std::fs::create_dir(&own).unwrap();
            Memo::open(&own).unwrap().shared_in(dir.path())
        };
        let (mut first, mut second) = (memo("a"), memo("b"));
        drop(first.find::<f64>(&of(1.0)).unwrap_err());
        assert!(second.find::<f64>(&of(1.0)).is_err());
    }
}
