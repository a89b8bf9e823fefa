//! A run as a small folder that stands alone.

use crate::error::{RecordError, Result};
use crate::lines;
use crate::record::{Answer, Prompt};
use crate::run::{Run, RunInfo};
use flate2::Compression;
use flate2::write::GzEncoder;
use serde::Serialize;
use std::collections::HashSet;
use std::io::Write;
use std::path::Path;

impl Run {
    /// Whether the folder is an archive.
    pub fn is_archive(&self) -> bool {
        is_archive(&self.dir)
    }

    /// Writes the run to a folder of its own, compressed: `run.json`, and the records that count with their answers and
    /// texts. [`Run::read`] reads it; the same run always gives the same bytes.
    ///
    /// # Errors
    /// A folder that holds anything but an archive of the same experiment, or that cannot be written.
    pub fn archive(&self, dir: &Path) -> std::result::Result<(), RecordError> {
        std::fs::create_dir_all(dir).map_err(RecordError::write(dir))?;
        check_free(dir, &self.info)?;
        // Records of several machines share answers, and records of one task its texts.
        let (mut cells, mut tasks) = (HashSet::new(), HashSet::new());
        let (mut answers, mut prompts) = (Vec::<&Answer>::new(), Vec::<&Prompt>::new());
        for record in &self.records {
            if cells.insert(&record.id) {
                answers.extend(self.answers(record).unwrap_or_default());
            }
            if tasks.insert(&record.task.texts) {
                prompts.extend(self.prompts(record));
            }
        }
        write_compressed(&dir.join("prompts.jsonl"), &prompts)?;
        write_compressed(&dir.join("samples.jsonl"), &answers)?;
        write_compressed(&dir.join("cells.jsonl"), &self.records)?;
        self.info.write(dir)
    }
}

pub(crate) fn is_archive(dir: &Path) -> bool {
    let cells = dir.join("cells.jsonl");
    !cells.is_file() && lines::compressed(&cells).is_file()
}

fn check_free(dir: &Path, info: &RunInfo) -> Result<()> {
    let taken = || RecordError::Taken {
        dir: dir.to_path_buf(),
    };
    let mut entries = std::fs::read_dir(dir).map_err(RecordError::read(dir))?;
    match entries.next() {
        None => Ok(()),
        Some(_) if is_archive(dir) && RunInfo::read(dir)?.name == info.name => Ok(()),
        Some(_) => Err(taken()),
    }
}

fn write_compressed<T: Serialize>(path: &Path, values: &[T]) -> Result<()> {
    let path = lines::compressed(path);
    let failed = || RecordError::write(&path);
    // Its header names neither file nor time.
    let mut packed = GzEncoder::new(Vec::new(), Compression::best());
    let lines = lines::bytes(values).map_err(failed())?;
    let packed = packed.write_all(&lines).and_then(|()| packed.finish());
    let bytes = packed.map_err(failed())?;
    skipbench_fs::write_whole(&path, &bytes).map_err(failed())
}
