//! A run whose cells are shared out over processes, on one machine or on many.
//!
//! | in the folder of the run | holds |
//! | --- | --- |
//! | `sweep.json` | [`Info`]: which program the shards are run with, and the jobs that run them |
//! | `experiment.json` | the experiment with every setting, as all shards read it |
//! | `shards/1-of-4/` | the run of a shard, which no other process writes to |
//! | `logs/1-of-4.log` | what the shard said |
//!
//! Nothing else is shared: a shard reads what the others have found on calibration text, and leaves out the cells that any of
//! them has finished. [`Sweep::collect`] makes them one run.

pub(crate) mod script;
pub(crate) mod slurm;
mod state;
pub(crate) mod workers;

pub(crate) use state::{CellState, Progress, ShardState, SweepState};

use crate::binary;
use crate::experiment::{Experiment, Shard};
use crate::identity::MACHINE;
use crate::memo::Memo;
use crate::plan::Plan;
use anyhow::{Context, bail};
use serde::{Deserialize, Serialize};
use skipbench_record::{Binary, Folder, Record, RecordError, Run, RunInfo, records};
use std::path::{Path, PathBuf};

/// Version of the form of `sweep.json`.
const VERSION: u32 = 1;

/// The folder of a run whose cells are shared out.
#[derive(Debug)]
pub(crate) struct Sweep {
    dir: PathBuf,
    pub(crate) info: Info,
}

/// `sweep.json`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Info {
    version: u32,
    /// The program that every shard is run with.
    pub(crate) binary: Binary,
    /// Shares of the cells.
    pub(crate) shards: usize,
    /// Where they are run.
    reach: Reach,
    /// The jobs of a cluster that run them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) jobs: Option<Jobs>,
}

/// Where the shards of a sweep are run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Reach {
    /// On one machine, whose times are wanted.
    Machine,
    /// On the machines of a cluster: what any of them has finished is done.
    Machines,
}

/// Jobs of Slurm.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Jobs {
    /// The array, a task for each shard.
    pub(crate) shards: String,
    /// The one that collects what they leave.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) collect: Option<String>,
}

/// A shard's folder that is not of this sweep.
#[derive(Debug)]
pub(crate) struct Stranger {
    pub(crate) dir: PathBuf,
    pub(crate) reason: String,
}

impl Sweep {
    /// A sweep of this program in a folder; nothing is written.
    ///
    /// # Errors
    /// A current folder that is gone.
    pub(crate) fn at(dir: &Path, shards: usize, reach: Reach) -> anyhow::Result<Self> {
        Ok(Self {
            dir: std::path::absolute(dir)?,
            info: Info {
                version: VERSION,
                binary: binary::this().clone(),
                shards,
                reach,
                jobs: None,
            },
        })
    }

    /// Writes what makes the folder of a run a sweep, with the experiment as the shards are to read it. Whoever calls this
    /// holds the folder.
    ///
    /// # Errors
    /// A folder that cannot be written.
    pub(crate) fn begin(&self, plan: &Plan) -> anyhow::Result<()> {
        for name in ["shards", "logs"] {
            let path = self.dir.join(name);
            std::fs::create_dir_all(&path)
                .with_context(|| format!("cannot make {}", path.display()))?;
        }
        write_json(&self.experiment(), &plan.experiment.frozen()?.as_written())?;
        self.save()
    }

    /// Refuses a folder with shards that are not of this plan.
    ///
    /// # Errors
    /// As [`own_folders`](Self::own_folders).
    pub(crate) fn check(&self, plan: &Plan) -> anyhow::Result<()> {
        let info = RunInfo {
            experiment: serde_json::to_value(plan.experiment.frozen()?)?,
            ..plan.info()?
        };
        let (_, strangers) = self.folders_of(&info)?;
        self.refuse(&strangers)
    }

    /// The sweep of a folder.
    ///
    /// # Errors
    /// A folder that is none, or of another version.
    pub(crate) fn open(dir: &Path) -> anyhow::Result<Self> {
        let path = dir.join("sweep.json");
        if !path.is_file() {
            bail!(
                "{} is not the folder of a sweep: sweep.json is missing; `skipbench submit EXPERIMENT --slurm --out {}` makes one, and so does `skipbench run EXPERIMENT --jobs N`",
                dir.display(),
                dir.display()
            );
        }
        let bytes =
            std::fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let info: Info = serde_json::from_slice(&bytes)
            .with_context(|| format!("{} is not what skipbench writes", path.display()))?;
        if info.version > VERSION {
            bail!(
                "{} was written by a newer skipbench; use that one",
                path.display()
            );
        }
        let dir = std::path::absolute(dir)?;
        Ok(Self { dir, info })
    }

    /// Numbers of the jobs of a folder that have not ended, where it has any; `None` where nobody can be asked.
    ///
    /// # Errors
    /// As [`open`](Self::open), but for a folder that is none.
    pub(crate) fn unended(dir: &Path) -> anyhow::Result<Option<Vec<String>>> {
        if !dir.join("sweep.json").is_file() {
            return Ok(Some(Vec::new()));
        }
        let jobs = Self::open(dir)?.info.jobs;
        Ok(match jobs {
            Some(jobs) => slurm::queue(&jobs).map(|queue| {
                let mut ids: Vec<String> = queue.into_iter().map(|job| job.job).collect();
                ids.dedup();
                ids
            }),
            None => Some(Vec::new()),
        })
    }

    /// Refuses a folder whose jobs have not ended: two processes of a shard would get in each other's way.
    ///
    /// # Errors
    /// Jobs that are in the queue of Slurm; as [`unended`](Self::unended).
    pub(crate) fn check_no_jobs(dir: &Path) -> anyhow::Result<()> {
        let ids = Self::unended(dir)?.unwrap_or_default().join(" ");
        if ids.is_empty() {
            return Ok(());
        }
        bail!(
            "jobs of {} have not ended yet ({ids}); wait for them (`skipbench status {}`), or end them (`scancel {ids}`) and give the command again: what is finished is kept",
            dir.display(),
            dir.display()
        );
    }

    /// The sweep of a folder for the shard that this process is to run.
    ///
    /// # Errors
    /// As [`open`](Self::open), and a program or an experiment that is not the sweep's.
    pub(crate) fn join(dir: &Path, plan: &Plan) -> anyhow::Result<Self> {
        let sweep = Self::open(dir)?;
        let this = binary::this();
        if this.digest != sweep.info.binary.digest {
            bail!(
                "this is {}, and the sweep in {} is run with {}, so their rows would not be of one program; give the command that began the sweep again with this one, and what has changed runs again",
                told(this),
                dir.display(),
                told(&sweep.info.binary)
            );
        }
        if !plan.info()?.is_of_same_experiment(&sweep.run_info()?) {
            bail!(
                "the experiment is not the one of the sweep in {}; run {}, or begin the sweep again",
                dir.display(),
                sweep.experiment().display()
            );
        }
        Ok(sweep)
    }

    /// The folder of the run.
    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// The experiment as the shards read it.
    pub(crate) fn experiment(&self) -> PathBuf {
        self.dir.join("experiment.json")
    }

    /// The parts of an identity in which a result may differ and still make its cell done.
    pub(crate) fn ignoring(&self) -> &'static [&'static str] {
        match self.info.reach {
            Reach::Machine => &[],
            Reach::Machines => &MACHINE,
        }
    }

    /// The folder that a shard writes to.
    pub(crate) fn folder_of(&self, shard: Shard) -> PathBuf {
        self.dir.join("shards").join(name_of(shard))
    }

    /// What a shard says.
    pub(crate) fn log_of(&self, shard: Shard) -> PathBuf {
        let name = format!("{}.log", name_of(shard));
        self.dir.join("logs").join(name)
    }

    /// Writes `sweep.json`.
    ///
    /// # Errors
    /// A folder that cannot be written.
    pub(crate) fn save(&self) -> anyhow::Result<()> {
        write_json(&self.dir.join("sweep.json"), &self.info)
    }

    /// What is to be run, as the shards say it.
    ///
    /// # Errors
    /// A folder that cannot be read, or that another version wrote.
    pub(crate) fn run_info(&self) -> anyhow::Result<RunInfo> {
        let experiment = Experiment::read(&self.experiment(), &[])?;
        let experiment = serde_json::to_value(experiment)?;
        Ok(RunInfo {
            experiment,
            ..RunInfo::read(&self.dir)?
        })
    }

    /// The folders of the shards that have begun, in order of their names, and those that are not of this sweep: of another
    /// experiment, or made by another program.
    ///
    /// # Errors
    /// A folder that cannot be read, or that another version wrote.
    pub(crate) fn folders(&self) -> anyhow::Result<(Vec<PathBuf>, Vec<Stranger>)> {
        self.folders_of(&self.run_info()?)
    }

    fn folders_of(&self, info: &RunInfo) -> anyhow::Result<(Vec<PathBuf>, Vec<Stranger>)> {
        let (mut own, mut strangers) = (Vec::new(), Vec::new());
        for dir in subfolders(&self.dir.join("shards"))? {
            match self.standing(info, &dir)? {
                Standing::Own => own.push(dir),
                Standing::Stranger(reason) => strangers.push(Stranger { dir, reason }),
                Standing::Empty => {}
            }
        }
        Ok((own, strangers))
    }

    fn standing(&self, info: &RunInfo, dir: &Path) -> anyhow::Result<Standing> {
        let found = match RunInfo::read(dir) {
            Ok(found) => found,
            // A job that has just begun, or was killed then.
            Err(RecordError::NoRun { .. }) => return Ok(Standing::Empty),
            Err(error) => return Err(error.into()),
        };
        if !info.is_of_same_experiment(&found) {
            let what = match found.name == info.name {
                true => "has other settings than this sweep".to_owned(),
                false => format!("is of experiment `{}`, not of `{}`", found.name, info.name),
            };
            return Ok(Standing::Stranger(what));
        }
        let contents: Vec<&str> = found.cells.iter().map(|c| c.content.as_str()).collect();
        let made_by = |record: &Record| {
            let other = |binary: &Binary| binary.digest != self.info.binary.digest;
            let timed = record.timing.as_ref().map(|timing| &timing.made.binary);
            timed
                .into_iter()
                .chain([&record.made.binary])
                .find(|binary| other(binary))
                .cloned()
        };
        // Of a cell that has been run again the last record counts.
        let mut last = std::collections::HashMap::new();
        for record in records(dir)? {
            if contents.contains(&record.content.as_str()) {
                last.insert(record.content.clone(), record);
            }
        }
        Ok(match last.values().find_map(made_by) {
            Some(binary) => Standing::Stranger(format!(
                "was made by {}, and this sweep is run with {}",
                told(&binary),
                told(&self.info.binary)
            )),
            None => Standing::Own,
        })
    }

    /// The folders of the shards that have begun.
    ///
    /// # Errors
    /// As [`folders`](Self::folders), and folders that are not of this sweep.
    pub(crate) fn own_folders(&self) -> anyhow::Result<Vec<PathBuf>> {
        let (own, strangers) = self.folders()?;
        self.refuse(&strangers)?;
        Ok(own)
    }

    fn refuse(&self, strangers: &[Stranger]) -> anyhow::Result<()> {
        if strangers.is_empty() {
            return Ok(());
        }
        let lines = strangers
            .iter()
            .map(|Stranger { dir, reason }| format!("\n  {} {reason}", dir.display()));
        bail!(
            "shards of one table are of one experiment and one program:{}\nnothing was changed; move what does not belong here out of {}, then submit again: only its cells are run again",
            lines.collect::<String>(),
            self.dir.join("shards").display()
        );
    }

    /// The folders whose cells need not be run again by whoever writes to `dir`: the run's own, and the other shards'.
    ///
    /// # Errors
    /// As [`folders`](Self::folders).
    pub(crate) fn counted(&self, dir: &Path) -> anyhow::Result<Vec<PathBuf>> {
        let (mut folders, _) = self.folders()?;
        folders.push(self.dir.clone());
        folders.retain(|other| other != dir);
        Ok(folders)
    }

    /// Adds what the shards have to the run's own folder; gives the number of records that were new.
    ///
    /// # Errors
    /// As [`own_folders`](Self::own_folders), and a folder that cannot be written.
    pub(crate) fn collect(&self, folder: &mut Folder) -> anyhow::Result<usize> {
        merge(folder, &self.own_folders()?)
    }

    /// The memo of a folder of this sweep, which has in common what the shards find.
    ///
    /// # Errors
    /// A file that cannot be read or written.
    pub(crate) fn memo(&self, dir: &Path) -> anyhow::Result<Memo> {
        Ok(Memo::open(dir)?.shared_in(&self.dir.join("shards")))
    }
}

/// What the folder of a shard is to a sweep.
enum Standing {
    Own,
    Stranger(String),
    Empty,
}

/// Adds what the runs in `dirs` have to a run of the same experiment; gives the number of records that were new.
///
/// # Errors
/// A folder that cannot be read or written.
pub(crate) fn merge(folder: &mut Folder, dirs: &[PathBuf]) -> anyhow::Result<usize> {
    let mut added = 0;
    for dir in dirs {
        let run = Run::read(dir)?;
        for warning in &run.warnings {
            tracing::warn!("{warning}");
        }
        added += folder.merge(&run)?;
    }
    Ok(added)
}

/// `2-of-4`.
fn name_of(shard: Shard) -> String {
    format!("{}-of-{}", shard.index, shard.of)
}

/// A program, told apart from every other build.
fn told(binary: &Binary) -> String {
    format!("{binary} [{}]", binary.digest)
}

/// The folders in a folder, sorted; hidden ones are left out, and one that is not there has none.
fn subfolders(dir: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let failed = || format!("cannot read {}", dir.display());
    let entries = match std::fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error).with_context(failed),
    };
    let mut folders = Vec::new();
    for entry in entries {
        let path = entry.with_context(failed)?.path();
        let name = path.file_name().unwrap_or_default();
        if path.is_dir() && !name.to_string_lossy().starts_with('.') {
            folders.push(path);
        }
    }
    folders.sort();
    Ok(folders)
}

fn write_json(path: &Path, value: &impl Serialize) -> anyhow::Result<()> {
    let mut text = serde_json::to_vec_pretty(value)?;
    text.push(b'\n');
    Ok(skipbench_fs::write_whole(path, &text)?)
}
