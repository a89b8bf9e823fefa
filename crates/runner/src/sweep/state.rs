//! How far the cells of a run are, and the shards that make them.

use super::slurm::{self, Queued};
use super::workers::last_line;
use super::{Jobs, Stranger, Sweep, name_of};
use crate::experiment::Shard;
use serde::Serialize;
use skipbench_record::{Record, RunInfo, records};
use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

/// How far a run is.
#[derive(Debug, Serialize)]
pub(crate) struct SweepState {
    /// Name of the experiment.
    pub(crate) experiment: String,
    /// Its folder.
    pub(crate) dir: PathBuf,
    /// Its cells, in order.
    pub(crate) cells: Vec<CellState>,
    /// The shards that make them; none where one process makes all.
    pub(crate) shards: Vec<ShardState>,
    /// The job that collects, where it has not ended.
    pub(crate) collecting: Option<String>,
    /// What does not fit.
    pub(crate) warnings: Vec<String>,
}

/// How far a cell is.
#[derive(Debug, Serialize)]
pub(crate) struct CellState {
    /// In words: `model task batch 8 unified@2`.
    pub(crate) name: String,
    pub(crate) state: Progress,
    /// Where it was measured.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) host: Option<String>,
    /// Why it failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) reason: Option<String>,
}

/// How far a shard is.
#[derive(Debug, Serialize)]
pub(crate) struct ShardState {
    /// `2-of-4`.
    pub(crate) shard: String,
    pub(crate) state: Progress,
    /// Its cells.
    pub(crate) cells: usize,
    /// Of these, the ones that are done.
    pub(crate) done: usize,
    /// Where it runs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) node: Option<String>,
    /// Why it does not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) reason: Option<String>,
    /// What it said.
    pub(crate) log: PathBuf,
    /// The end of that.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) last_line: Option<String>,
}

/// How far something is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Progress {
    /// Measured.
    Done,
    /// A process is at it.
    Running,
    /// A job is in the queue.
    Waiting,
    /// It was tried; a shard has ended before its cells were done.
    Failed,
    /// Nobody is at it.
    Missing,
}

impl Progress {
    /// All of them.
    pub(crate) const ALL: [Self; 5] = [
        Self::Done,
        Self::Running,
        Self::Waiting,
        Self::Failed,
        Self::Missing,
    ];

    /// As it is printed.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::Running => "running",
            Self::Waiting => "waiting",
            Self::Failed => "failed",
            Self::Missing => "missing",
        }
    }
}

impl SweepState {
    /// Looks at the folder of a run, of one process or of many; nothing is written and no lock is held.
    ///
    /// # Errors
    /// A folder that holds no run, or that cannot be read.
    pub(crate) fn of(dir: &Path) -> anyhow::Result<Self> {
        let info = RunInfo::read(dir)?;
        let sweep = match dir.join("sweep.json").is_file() {
            true => Some(Sweep::open(dir)?),
            false => None,
        };
        let mut state = Self {
            experiment: info.name.clone(),
            dir: dir.to_path_buf(),
            cells: Vec::new(),
            shards: Vec::new(),
            collecting: None,
            warnings: Vec::new(),
        };
        let mut folders = vec![dir.to_path_buf()];
        if let Some(sweep) = &sweep {
            let (own, strangers) = sweep.folders()?;
            folders.extend(own);
            let strangers = strangers.into_iter();
            state
                .warnings
                .extend(strangers.map(|Stranger { dir, reason }| {
                    format!("{} {reason}; `collect` refuses it", dir.display())
                }));
        }
        let found = found(&info, &folders)?;
        let count = sweep.as_ref().map_or(1, |sweep| sweep.info.shards).max(1);
        let jobs = sweep.as_ref().and_then(|sweep| sweep.info.jobs.as_ref());
        let slurm = jobs.map(|jobs| state.ask_slurm(jobs));
        let busy = skipbench_fs::is_locked(dir);
        let mut shares = Vec::new();
        for index in 1..=count {
            let shard = Shard { index, of: count };
            let cells = info.cells.iter().filter(|cell| shard.holds(cell.place));
            let of_cell = |content: &str| found.get(content).map(|(state, _)| *state);
            let states: Vec<_> = cells.map(|cell| of_cell(&cell.content)).collect();
            let tried = states.iter().filter(|state| state.is_some()).count();
            let done = states
                .iter()
                .filter(|&&state| state == Some(Progress::Done))
                .count();
            let mut share = ShardState {
                shard: name_of(shard),
                state: Progress::Missing,
                cells: states.len(),
                done,
                node: None,
                reason: None,
                log: PathBuf::new(),
                last_line: None,
            };
            if let Some(sweep) = &sweep {
                share.log = sweep.log_of(shard);
                share.last_line = last_line(&share.log);
                share.find(tried, &sweep.folder_of(shard), slurm.as_ref(), index);
            }
            if busy && share.state != Progress::Done {
                share.state = Progress::Running;
            }
            shares.push(share);
        }
        for cell in &info.cells {
            let shard = &shares[cell.place % count];
            let (progress, record) = match found.get(&cell.content) {
                Some((progress, record)) => (*progress, Some(record)),
                None => match shard.state {
                    Progress::Done | Progress::Failed => (Progress::Missing, None),
                    other => (other, None),
                },
            };
            state.cells.push(CellState {
                name: cell.name.clone(),
                state: progress,
                host: record.map(|record| record.measured().machine.host.clone()),
                reason: record.and_then(|record| record.why_failed()),
            });
        }
        if sweep.is_some() {
            state.shards = shares;
        }
        Ok(state)
    }

    /// Cells in a state.
    pub(crate) fn count(&self, progress: Progress) -> usize {
        let cells = self.cells.iter();
        cells.filter(|cell| cell.state == progress).count()
    }

    fn ask_slurm(&mut self, jobs: &Jobs) -> Slurm {
        let queue = slurm::queue(jobs).unwrap_or_else(|| {
            let unknown = "Slurm does not answer here, so that a job waits or runs is not known; ask where `squeue` works";
            self.warnings.push(unknown.to_owned());
            Vec::new()
        });
        let collecting = queue
            .iter()
            .find(|job| Some(&job.job) == jobs.collect.as_ref());
        self.collecting = collecting.map(|job| match job.is_waiting() {
            true => format!("job {} waits ({})", job.job, job.reason),
            false => format!("job {} runs on {}", job.job, job.node),
        });
        Slurm {
            ended: slurm::ended(&jobs.shards),
            array: jobs.shards.clone(),
            queue,
        }
    }
}

/// What Slurm knows of the jobs of a sweep.
struct Slurm {
    array: String,
    queue: Vec<Queued>,
    ended: BTreeMap<usize, String>,
}

impl ShardState {
    /// Finds how far it is: `tried` of its cells have a record, and `folder` is where it writes.
    fn find(&mut self, tried: usize, folder: &Path, slurm: Option<&Slurm>, index: usize) {
        let is_own =
            |slurm: &&Slurm, job: &Queued| job.job == slurm.array && job.task == Some(index);
        let queued = slurm.and_then(|slurm| slurm.queue.iter().find(|job| is_own(&slurm, job)));
        self.state = match queued {
            Some(job) if job.is_waiting() => {
                self.reason = Some(job.reason.clone());
                Progress::Waiting
            }
            Some(job) => {
                self.node = Some(job.node.clone());
                Progress::Running
            }
            None if skipbench_fs::is_locked(folder) => Progress::Running,
            None if tried == self.cells => Progress::Done,
            None => {
                self.reason = slurm.and_then(|slurm| slurm.ended.get(&index).cloned());
                match self.log.is_file() || self.reason.is_some() {
                    true => Progress::Failed,
                    false => Progress::Missing,
                }
            }
        };
    }
}

/// The record that tells most of each cell, with how far it is, by its content.
fn found(
    info: &RunInfo,
    folders: &[PathBuf],
) -> anyhow::Result<HashMap<String, (Progress, Record)>> {
    let timed = info.experiment["timing"]["batches"].as_u64() != Some(0);
    let mut found: HashMap<String, (Progress, Record)> = HashMap::new();
    for record in folders
        .iter()
        .map(|dir| records(dir))
        .collect::<Result<Vec<_>, _>>()?
    {
        for record in record {
            let strategy = &record.strategy;
            // Of a random band one set is timed, and an oracle is not.
            let needs_times = timed && !strategy.is_oracle && strategy.band.is_none();
            let progress = match record.why_failed() {
                Some(_) => Progress::Failed,
                None if needs_times && record.timing.is_none() => continue,
                None => Progress::Done,
            };
            match found.get(&record.content) {
                Some((Progress::Done, _)) if progress == Progress::Failed => {}
                _ => {
                    found.insert(record.content.clone(), (progress, record));
                }
            }
        }
    }
    Ok(found)
}
