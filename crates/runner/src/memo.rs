//! What long work has found so far, kept beside the results, so that a run that was cut off does not look for it again.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use skipbench_record::{Identity, Log, RecordError};
use std::collections::HashMap;
use std::path::Path;

/// Values by what they depend on. One that was not opened in a folder forgets them at the end.
#[derive(Debug, Default)]
pub(crate) struct Memo {
    log: Option<Log>,
    known: HashMap<String, Value>,
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
        let (log, warning) = Log::open(&dir.join("calibration.jsonl"), |line: Line| {
            known.insert(line.key, line.value);
        })?;
        if let Some(warning) = warning {
            tracing::warn!("{warning}");
        }
        Ok(Self {
            log: Some(log),
            known,
        })
    }

    /// The value that was found for this, if it was.
    pub(crate) fn get<T: DeserializeOwned>(&self, of: &Identity) -> Option<T> {
        let value = self.known.get(&of.id())?;
        serde_json::from_value(value.clone()).ok()
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
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_found_outlives_the_process() {
        let dir = tempfile::tempdir().unwrap();
        let of = |setting: f64| Identity::default().with("threshold", setting);
        let mut memo = Memo::open(dir.path()).unwrap();
        memo.put(&of(0.5), "layers".to_owned(), 7.25).unwrap();
        drop(memo);
        let memo = Memo::open(dir.path()).unwrap();
        assert_eq!(memo.get::<f64>(&of(0.5)), Some(7.25));
        assert_eq!(memo.get::<f64>(&of(0.25)), None);
    }
}
