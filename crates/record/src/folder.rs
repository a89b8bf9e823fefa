//! The folder of a run that is being written.

use crate::archive::is_archive;
use crate::error::{RecordError, Result};
use crate::identity::Identity;
use crate::lines::{self, Log};
use crate::record::{Answer, Prompt, Record};
use crate::run::{Run, RunInfo, check_versions, records};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::path::{Path, PathBuf};

/// The folder of a run, held against other processes. It keeps no answers in memory.
#[derive(Debug)]
pub struct Folder {
    dir: PathBuf,
    /// Held as long as the folder is, so that two runs do not write to it.
    _lock: File,
    cells: Log,
    samples: Log,
    prompts: Log,
    index: Vec<Entry>,
    /// Records of other folders of the same sweep.
    elsewhere: Vec<Entry>,
    tasks: HashSet<String>,
    warnings: Vec<String>,
    /// A record was added that takes the place of another one.
    replaced: bool,
}

/// What is known of a record without reading it again.
#[derive(Debug)]
struct Entry {
    id: String,
    name: String,
    answers_from: Identity,
    times_from: Option<Identity>,
    /// The cell or one of its prompts failed.
    failed: bool,
}

/// What the folder has of a cell.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Standing {
    /// Everything.
    Done,
    /// Its answers, but no times of this machine, these threads and this program; with what has changed.
    AnswersOnly(Vec<String>),
    /// Nothing, or a failure, or results of something that has changed since; with what.
    Missing(Vec<String>),
}

impl Folder {
    /// Opens a folder, creating it where it is missing, takes it for this process, and writes `run.json`. What earlier runs
    /// have finished is kept; what they have left half done is removed.
    ///
    /// # Errors
    /// A folder that cannot be written, that another process writes to, that belongs to another experiment or that
    /// another version wrote.
    pub fn open(dir: &Path, info: &RunInfo) -> std::result::Result<Self, RecordError> {
        std::fs::create_dir_all(dir).map_err(RecordError::write(dir))?;
        let lock = skipbench_fs::lock(dir).map_err(RecordError::write(dir))?;
        let lock = lock.ok_or_else(|| RecordError::Locked {
            dir: dir.to_path_buf(),
        })?;
        check_owner(dir, info)?;
        // What a process that was killed had not finished writing.
        skipbench_fs::remove_leftovers(dir).map_err(RecordError::write(dir))?;
        let mut folder = Self {
            dir: dir.to_path_buf(),
            _lock: lock,
            cells: Log::open::<Record>(&dir.join("cells.jsonl"), |_| ())?.0,
            samples: Log::open::<Answer>(&dir.join("samples.jsonl"), |_| ())?.0,
            prompts: Log::open::<Prompt>(&dir.join("prompts.jsonl"), |_| ())?.0,
            index: Vec::new(),
            elsewhere: Vec::new(),
            tasks: HashSet::new(),
            warnings: Vec::new(),
            replaced: false,
        };
        folder.tidy()?;
        info.write(dir)?;
        Ok(folder)
    }

    /// Where it is.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// What a user must know of what the folder held.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// Cells that have a record without failure.
    pub fn finished(&self) -> usize {
        let finished = self.index.iter().filter(|entry| !entry.failed);
        let ids: HashSet<&str> = finished.map(|entry| entry.id.as_str()).collect();
        ids.len()
    }

    /// Counts what other folders hold as well: a cell that is finished there is done.
    ///
    /// # Errors
    /// A folder that cannot be read, or that another version wrote.
    pub fn count_too(&mut self, dirs: &[PathBuf]) -> std::result::Result<(), RecordError> {
        for dir in dirs {
            self.elsewhere.extend(records(dir)?.iter().map(Entry::of));
        }
        Ok(())
    }

    /// Whether a cell is finished, here or in a folder that counts too, whatever the parts of its identity called `ignoring`
    /// were: the host, where the results of any machine will do.
    pub fn is_done(&self, answers: &Identity, times: Option<&Identity>, ignoring: &[&str]) -> bool {
        let agree = |wanted: &Identity, found: &Identity| {
            let mut differing = wanted.differing(found).into_iter();
            differing.all(|part| ignoring.contains(&part))
        };
        let timed = |entry: &Entry| match (times, &entry.times_from) {
            (Some(wanted), Some(found)) => agree(wanted, found),
            (Some(_), None) => false,
            (None, _) => true,
        };
        let mut entries = self.index.iter().chain(&self.elsewhere);
        entries.any(|entry| !entry.failed && agree(answers, &entry.answers_from) && timed(entry))
    }

    /// What there is of a cell whose answers and times depend on this. `name` finds its earlier results where what they
    /// depend on has changed.
    pub fn standing(&self, name: &str, answers: &Identity, times: Option<&Identity>) -> Standing {
        let id = answers.id();
        let latest = |keep: &dyn Fn(&&Entry) -> bool| self.index.iter().rev().find(keep);
        let good = |entry: &&Entry| entry.id == id && !entry.failed;
        let timed = |entry: &&Entry| good(entry) && entry.times_from.as_ref() == times;
        if latest(&timed).is_some() || times.is_none() && latest(&good).is_some() {
            return Standing::Done;
        }
        if let (Some(entry), Some(times)) = (latest(&good), times) {
            let none = Identity::default();
            let earlier = entry.times_from.as_ref();
            return Standing::AnswersOnly(match earlier {
                Some(_) => times.changes(earlier.unwrap_or(&none)),
                None => Vec::new(),
            });
        }
        let earlier = latest(&|entry| entry.name == name && entry.id != id);
        Standing::Missing(
            earlier.map_or_else(Vec::new, |entry| answers.changes(&entry.answers_from)),
        )
    }

    /// The record with these answers, read from the disk.
    ///
    /// # Errors
    /// A file that cannot be read.
    pub fn record(&self, id: &str) -> std::result::Result<Option<Record>, RecordError> {
        let mut found = None;
        lines::read(&self.dir.join("cells.jsonl"), |record: Record| {
            if record.id == id {
                found = Some(record);
            }
        })?;
        Ok(found)
    }

    /// Writes the texts of a task, once.
    ///
    /// # Errors
    /// A full or missing disk.
    pub fn add_prompts(&mut self, prompts: &[Prompt]) -> std::result::Result<(), RecordError> {
        match prompts.first() {
            Some(first) if self.tasks.insert(first.task.clone()) => self.prompts.append(prompts),
            _ => Ok(()),
        }
    }

    /// Adds a cell: its answers first, then the record that makes it finished.
    ///
    /// # Errors
    /// A full or missing disk; the cell is then not finished, and nothing else is lost.
    pub fn append(
        &mut self,
        record: &Record,
        answers: &[Answer],
    ) -> std::result::Result<(), RecordError> {
        if !answers.is_empty() {
            self.samples.append(answers)?;
        }
        self.cells.append(std::slice::from_ref(record))?;
        let entry = Entry::of(record);
        self.replaced |= self.index.iter().any(|earlier| entry.replaces(earlier));
        self.index.push(entry);
        Ok(())
    }

    /// Adds what another folder has of the same experiment's cells, and gives the number of records that were new. A failure
    /// is no news of a cell that is finished here.
    ///
    /// # Errors
    /// As [`append`](Self::append).
    pub fn merge(&mut self, run: &Run) -> std::result::Result<usize, RecordError> {
        let mut added = 0;
        for record in &run.records {
            let new = Entry::of(record);
            let known = |entry: &Entry| {
                entry.id == new.id
                    && (new.failed && !entry.failed
                        || entry.failed == new.failed && entry.times_from == new.times_from)
            };
            if self.index.iter().any(known) {
                continue;
            }
            self.add_prompts(run.prompts(record))?;
            let answers = run.answers(record).unwrap_or_default();
            let answers: Vec<Answer> = answers.into_iter().cloned().collect();
            self.append(record, &answers)?;
            added += 1;
        }
        Ok(added)
    }

    /// Ends the writing: records that others have taken the place of are removed. Without it the next opening does so.
    ///
    /// # Errors
    /// A full or missing disk.
    pub fn close(mut self) -> std::result::Result<(), RecordError> {
        match self.replaced {
            true => self.tidy(),
            false => Ok(()),
        }
    }

    /// Reads what is there into the index. Records that have lost answers go, and so do the answers of cells that did
    /// not come to their record, records that stand twice, and lines that cannot be read.
    fn tidy(&mut self) -> Result<()> {
        let path = |name: &str| self.dir.join(name);
        let (cells, samples, prompts) = (
            path("cells.jsonl"),
            path("samples.jsonl"),
            path("prompts.jsonl"),
        );
        let mut broken = Vec::new();

        let mut asked: HashMap<String, HashSet<String>> = HashMap::new();
        let mut lines_of_prompts = 0;
        let damage = lines::read(&prompts, |prompt: Prompt| {
            lines_of_prompts += 1;
            asked.entry(prompt.task).or_default().insert(prompt.id);
        })?;
        let texts_whole = damage.broken.is_empty();
        broken.extend(damage.warning(&prompts));

        let mut answered: HashMap<String, HashSet<String>> = HashMap::new();
        let mut lines_of_samples = 0;
        let damage = lines::read(&samples, |answer: Answer| {
            lines_of_samples += 1;
            answered.entry(answer.cell).or_default().insert(answer.id);
        })?;
        let mut samples_tidy = damage.broken.is_empty();
        broken.extend(damage.warning(&samples));

        let mut records = Vec::new();
        let damage = lines::read(&cells, |record: Record| records.push(record))?;
        check_versions(&cells, &records)?;
        let mut cells_tidy = damage.broken.is_empty();
        broken.extend(damage.warning(&cells));
        self.warnings.append(&mut broken);

        // Texts that lost a line are written again by the run that has them.
        self.tasks = match texts_whole {
            true => asked.keys().cloned().collect(),
            false => HashSet::new(),
        };
        let all = records.len();
        let nothing = HashSet::new();
        let of = |map: &HashMap<String, HashSet<String>>, key: &str| {
            map.get(key).unwrap_or(&nothing).clone()
        };
        records.retain(|record| match &record.quality {
            None => true,
            // Nothing was kept of what a model says that is a shape alone.
            Some(quality) if quality.answers == 0 => true,
            Some(quality) => {
                let answered = of(&answered, &record.id);
                // Answers belong to prompts by their ids.
                answered.len() >= quality.answers
                    && of(&asked, &record.task.texts).is_subset(&answered)
            }
        });
        drop_repeated(&mut records);
        cells_tidy &= records.len() == all;
        let kept: HashSet<&str> = records.iter().map(|record| record.id.as_str()).collect();
        let distinct: usize = answered.values().map(HashSet::len).sum();
        samples_tidy &= lines_of_samples == distinct
            && answered.keys().all(|cell| kept.contains(cell.as_str()));
        if !cells_tidy {
            rewrite(&cells, &records)?;
            self.cells = Log::open::<Record>(&cells, |_| ())?.0;
        }
        if !samples_tidy {
            let mut last: HashMap<(String, String), usize> = HashMap::new();
            let mut answers: Vec<Option<Answer>> = Vec::new();
            lines::read(&samples, |answer: Answer| {
                if kept.contains(answer.cell.as_str()) {
                    let key = (answer.cell.clone(), answer.id.clone());
                    if let Some(earlier) = last.insert(key, answers.len()) {
                        answers[earlier] = None;
                    }
                    answers.push(Some(answer));
                }
            })?;
            let answers: Vec<Answer> = answers.into_iter().flatten().collect();
            rewrite(&samples, &answers)?;
            self.samples = Log::open::<Answer>(&samples, |_| ())?.0;
        }
        self.index = records.iter().map(Entry::of).collect();
        Ok(())
    }
}

/// Of records with the same answers and the same times the last one stays, and a failure only where nothing followed it.
fn drop_repeated(records: &mut Vec<Record>) {
    let key = |record: &Record| {
        let times = record.timing.as_ref().map(|timing| timing.id.clone());
        (record.id.clone(), times)
    };
    let mut seen = HashSet::new();
    let mut answered = HashSet::new();
    let mut index = records.len();
    // From the last to the first.
    while index > 0 {
        index -= 1;
        let record = &records[index];
        let repeated = !seen.insert(key(record));
        let overtaken = record.quality.is_none() && answered.contains(&record.id);
        if record.quality.is_some() {
            answered.insert(record.id.clone());
        }
        if repeated || overtaken {
            records.remove(index);
        }
    }
}

impl Entry {
    fn of(record: &Record) -> Self {
        Self {
            id: record.id.clone(),
            name: record.name(),
            answers_from: record.answers_from.clone(),
            times_from: record.times_from.clone(),
            failed: record.failure.is_some()
                || record
                    .quality
                    .as_ref()
                    .is_none_or(|quality| quality.failed > 0),
        }
    }
}

impl Entry {
    /// Whether it stands for the same cell, measured in the same way.
    fn replaces(&self, earlier: &Self) -> bool {
        self.id == earlier.id && (earlier.failed || self.times_from == earlier.times_from)
    }
}

impl Record {
    /// The cell in words: `model task batch 8 unified@2`.
    pub fn name(&self) -> String {
        let search = &self.search;
        let beams = match search.beams {
            1 => String::new(),
            beams => format!(" {beams} beams"),
        };
        format!(
            "{} {} batch {}{beams} {}",
            self.model.name, self.task.name, search.batch_size, self.strategy.label
        )
    }
}

/// Refuses a folder of another experiment and one of another version.
fn check_owner(dir: &Path, info: &RunInfo) -> Result<()> {
    if is_archive(dir) {
        return Err(RecordError::Archived {
            dir: dir.to_path_buf(),
        });
    }
    match RunInfo::read(dir) {
        Ok(found) if found.name != info.name => Err(RecordError::OtherExperiment {
            dir: dir.to_path_buf(),
            found: found.name,
            wanted: info.name.clone(),
        }),
        // A run that was cut off before it wrote anything, or while it did.
        Ok(_) | Err(RecordError::NoRun { .. } | RecordError::Malformed { .. }) => Ok(()),
        Err(error) => Err(error),
    }
}

/// Replaces a file of lines as a whole.
fn rewrite<T: Serialize + DeserializeOwned>(path: &Path, values: &[T]) -> Result<()> {
    let lines = lines::bytes(values).map_err(RecordError::write(path))?;
    skipbench_fs::write_whole(path, &lines).map_err(RecordError::write(path))
}
