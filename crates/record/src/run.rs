//! A finished run, read from its folder alone.

use crate::error::{RecordError, Result};
use crate::lines;
use crate::paper::Beside;
use crate::record::{Answer, ModelRecord, Prompt, Record, TaskRecord, VERSION};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use skipbench_machine::{Checkup, Machine};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::{Path, PathBuf};

/// `run.json`: what was to be run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RunInfo {
    /// [`VERSION`] of the skipbench that wrote it.
    pub version: u32,
    /// Name of the experiment.
    pub name: String,
    /// Heading of the report.
    pub title: String,
    /// What a reader of the report must know.
    pub notes: Vec<String>,
    /// Seed of orders and resamples.
    pub seed: u64,
    /// When and by what this file was written last. Each record says for itself where it was made.
    #[serde(flatten)]
    pub written: Written,
    /// The experiment with every setting, as it was read.
    pub experiment: Value,
    /// Its models.
    pub models: Vec<ModelRecord>,
    /// Its tasks.
    pub tasks: Vec<TaskRecord>,
    /// Its cells, in order.
    pub cells: Vec<PlannedCell>,
    /// A paper's table that the report sets beside it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub paper: Option<Beside>,
}

/// When and by what a `run.json` was written.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Written {
    /// Date and time, RFC 3339.
    pub date: String,
    /// The machine.
    pub device: Option<Machine>,
    /// What it could be trusted with when the run began; `None` where nothing was timed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub checkup: Option<Checkup>,
    /// Commit of the program's source.
    pub git_commit: Option<String>,
    /// Versions by name.
    pub versions: BTreeMap<String, String>,
}

/// A cell that was to be run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlannedCell {
    /// [`Record::id`] of the record that was to be made.
    pub id: String,
    /// Its place among all cells of the experiment, of which a shard holds but some.
    pub place: usize,
    /// [`Record::content`] of its record.
    pub content: String,
    /// For people: `model task batch 8 unified@2`.
    pub name: String,
    /// Name of the model, which may have changed since a record was written.
    pub model: String,
    /// Name of the task, likewise.
    pub task: String,
    /// Names of the task's metrics, likewise.
    pub metrics: Vec<String>,
}

/// A run as its folder holds it.
#[derive(Clone, Debug)]
pub struct Run {
    /// The folder.
    pub dir: PathBuf,
    /// What was to be run.
    pub info: RunInfo,
    /// The records that count, in the order of the cells: of each cell the last one of each machine.
    pub records: Vec<Record>,
    /// What a reader must know of the folder: broken lines, results that were left out.
    pub warnings: Vec<String>,
    answers: HashMap<String, HashMap<String, Answer>>,
    prompts: BTreeMap<String, Vec<Prompt>>,
}

impl RunInfo {
    /// Reads `run.json`.
    ///
    /// # Errors
    /// A folder without one, or one of another version.
    pub fn read(dir: &Path) -> std::result::Result<Self, RecordError> {
        let path = dir.join("run.json");
        if !path.is_file() {
            let missing = "run.json";
            let dir = dir.to_path_buf();
            return Err(RecordError::NoRun { dir, missing });
        }
        let bytes = std::fs::read(&path).map_err(RecordError::read(&path))?;
        let malformed = |error: serde_json::Error| RecordError::Malformed {
            path: path.clone(),
            what: "run.json",
            reason: error.to_string(),
        };
        let value: Value = serde_json::from_slice(&bytes).map_err(malformed)?;
        if value.is_object() && value.get("version").is_none() {
            return Err(RecordError::Older { path });
        }
        lines::check_number(&path, None, value.get("version"))?;
        serde_json::from_value(value).map_err(malformed)
    }

    pub(crate) fn write(&self, dir: &Path) -> Result<()> {
        let path = dir.join("run.json");
        let text = serde_json::to_vec_pretty(self).map_err(std::io::Error::from);
        let mut text = text.map_err(RecordError::write(&path))?;
        text.push(b'\n');
        skipbench_fs::write_whole(&path, &text).map_err(RecordError::write(&path))
    }

    /// Whether both are of the same experiment, wherever their folders are.
    pub fn is_of_same_experiment(&self, other: &Self) -> bool {
        let setting = |info: &Self| {
            let mut experiment = info.experiment.clone();
            if let Some(settings) = experiment.as_object_mut() {
                // Where it goes and which of several equal devices compute does not make another experiment.
                settings.shift_remove("out");
                settings.shift_remove("devices");
            }
            experiment
        };
        self.name == other.name && setting(self) == setting(other)
    }
}

impl Run {
    /// Reads the folder of a run, or an archived one; nothing is written and no lock is taken.
    ///
    /// # Errors
    /// A folder that holds no run, or one of another version. Broken lines are warnings.
    pub fn read(dir: &Path) -> std::result::Result<Self, RecordError> {
        let info = RunInfo::read(dir)?;
        let cells = dir.join("cells.jsonl");
        let mut warnings = Vec::new();
        let mut found = Vec::new();
        warnings.extend(lines::read(&cells, |record: Record| found.push(record))?.warning(&cells));
        check_versions(&cells, &found)?;

        let mut prompts: BTreeMap<String, Vec<Prompt>> = BTreeMap::new();
        let path = dir.join("prompts.jsonl");
        let mut seen = HashSet::new();
        let damage = lines::read(&path, |prompt: Prompt| {
            if seen.insert((prompt.task.clone(), prompt.id.clone())) {
                prompts.entry(prompt.task.clone()).or_default().push(prompt);
            }
        })?;
        warnings.extend(damage.warning(&path));

        let mut answers: HashMap<String, HashMap<String, Answer>> = HashMap::new();
        let path = dir.join("samples.jsonl");
        let damage = lines::read(&path, |answer: Answer| {
            let of_cell = answers.entry(answer.cell.clone()).or_default();
            of_cell.insert(answer.id.clone(), answer);
        })?;
        warnings.extend(damage.warning(&path));

        let mut run = Self {
            dir: dir.to_path_buf(),
            info,
            records: Vec::new(),
            warnings,
            answers,
            prompts,
        };
        run.records = run.current(found);
        Ok(run)
    }

    /// The prompts and references of a record's task, in order.
    pub fn prompts(&self, record: &Record) -> &[Prompt] {
        let found = self.prompts.get(&record.task.texts);
        found.map_or(&[], Vec::as_slice)
    }

    /// The answers of a record in the order of [`Run::prompts`], found by id; `None` where one of them is missing.
    pub fn answers(&self, record: &Record) -> Option<Vec<&Answer>> {
        let answers = self.answers.get(&record.id)?;
        let of = |prompt: &Prompt| answers.get(&prompt.id);
        let found: Option<Vec<&Answer>> = self.prompts(record).iter().map(of).collect();
        found.filter(|found| !found.is_empty())
    }

    /// Runs that each have a part of the same experiment's cells, as one run; others stay as they are.
    pub fn join_shards(runs: Vec<Self>) -> Vec<Self> {
        let mut joined: Vec<Self> = Vec::new();
        for run in runs {
            match joined.iter_mut().find(|other| other.is_other_shard(&run)) {
                Some(other) => other.join(run),
                None => joined.push(run),
            }
        }
        joined
    }

    fn is_other_shard(&self, other: &Self) -> bool {
        let done: HashSet<&str> = self.records.iter().map(|r| r.content.as_str()).collect();
        let mut records = other.records.iter();
        self.info.is_of_same_experiment(&other.info)
            && records.all(|record| !done.contains(record.content.as_str()))
    }

    fn join(&mut self, other: Self) {
        let known: HashSet<String> = self.info.cells.iter().map(|c| c.content.clone()).collect();
        let cells = other.info.cells.into_iter();
        self.info
            .cells
            .extend(cells.filter(|cell| !known.contains(&cell.content)));
        self.records.extend(other.records);
        self.warnings.extend(other.warnings);
        self.answers.extend(other.answers);
        for (task, prompts) in other.prompts {
            self.prompts.entry(task).or_insert(prompts);
        }
        self.info.cells.sort_by_key(|cell| cell.place);
        let cells = self.info.cells.iter();
        let place: HashMap<&str, usize> = cells.map(|c| (c.content.as_str(), c.place)).collect();
        self.records
            .sort_by_key(|record| place.get(record.content.as_str()).copied());
    }

    /// Names of the cells that have no record yet.
    pub fn missing(&self) -> Vec<&str> {
        let done: HashSet<&str> = self.records.iter().map(|r| r.content.as_str()).collect();
        let cells = self.info.cells.iter();
        cells
            .filter(|cell| !done.contains(cell.content.as_str()))
            .map(|cell| cell.name.as_str())
            .collect()
    }

    /// Of all records those of the run's cells, of each cell the last of each machine; a failure counts as long as nothing
    /// better is there.
    fn current(&mut self, found: Vec<Record>) -> Vec<Record> {
        let mut by_cell: HashMap<String, Vec<Record>> = HashMap::new();
        for record in found {
            let same_cell = by_cell.entry(record.content.clone()).or_default();
            let machine = &record.measured().machine;
            same_cell.retain(|other| !other.measured().machine.differences(machine).is_empty());
            same_cell.push(record);
        }
        let mut current = Vec::new();
        for cell in self.info.cells.clone() {
            let mut records = by_cell.remove(&cell.content).unwrap_or_default();
            records.retain(|record| {
                // The answers of a model that is a shape alone are not kept.
                let has_answers = record
                    .quality
                    .as_ref()
                    .is_some_and(|quality| quality.answers > 0);
                let whole = !has_answers || self.answers(record).is_some();
                if !whole {
                    self.warnings.push(format!(
                        "{} has lost answers and is left out; `skipbench run` makes them again",
                        cell.name
                    ));
                }
                whole
            });
            if records.iter().any(|record| record.failure.is_none()) {
                records.retain(|record| record.failure.is_none());
            }
            if records.iter().any(|record| record.timing.is_some()) {
                records.retain(|record| record.timing.is_some());
            }
            for record in &mut records {
                record.model.name.clone_from(&cell.model);
                record.task.name.clone_from(&cell.task);
                record.task.metrics.clone_from(&cell.metrics);
                let task = self.info.tasks.iter().find(|task| task.name == cell.task);
                if let Some(task) = task {
                    let settings = &task.metric_settings;
                    record.task.metric_settings.clone_from(settings);
                }
            }
            current.append(&mut records);
        }
        current
    }
}

/// All records of a run's folder, in the order in which they were written, without their answers; nothing is locked, so
/// another process may be writing. Lines that cannot be read are left out.
///
/// # Errors
/// A file that cannot be read, or that another version wrote.
pub fn records(dir: &Path) -> std::result::Result<Vec<Record>, RecordError> {
    let path = dir.join("cells.jsonl");
    let mut found = Vec::new();
    lines::read(&path, |record: Record| found.push(record))?;
    check_versions(&path, &found)?;
    Ok(found)
}

/// Refuses records of another version, which may look like ours.
pub(crate) fn check_versions(path: &Path, records: &[Record]) -> Result<()> {
    let newest = records.iter().map(|record| record.version).max();
    lines::check_number(path, None, newest.map(Value::from).as_ref())?;
    match records.iter().any(|record| record.version < VERSION) {
        true => Err(RecordError::Older {
            path: path.to_path_buf(),
        }),
        false => Ok(()),
    }
}
