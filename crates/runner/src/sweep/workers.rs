//! Processes of this machine that each run a share of the cells: one for each GPU, or several on one CPU.
//!
//! Two timed cells never share a device. A GPU has one worker, which does everything. Workers of a CPU make answers alone;
//! the process that began them then times the cells, one after another, with all threads and nothing beside it.

use super::Sweep;
use crate::experiment::{DeviceId, DeviceName, Experiment, Match, Shard};
use crate::progress::Progress;
use anyhow::{Context, bail};
use std::fs::OpenOptions;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

/// The most processes of one machine.
const MOST: usize = 256;
/// Between two looks at what workers have done.
const INTERVAL: Duration = Duration::from_millis(250);

/// What a worker does of each cell.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Duty {
    /// Answers and times.
    All,
    /// Answers: other work shares its device.
    Answers,
}

/// Where workers compute.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Workers {
    /// So many share the CPU.
    Cpu(usize),
    /// One for each of these GPUs.
    Gpus(Vec<usize>),
}

impl Workers {
    /// The workers that an experiment and `--jobs` ask for; `None` where this process computes itself.
    ///
    /// # Errors
    /// More workers than devices.
    pub(crate) fn of(experiment: &Experiment, jobs: Option<usize>) -> anyhow::Result<Option<Self>> {
        if jobs.is_some_and(|jobs| !(1..=MOST).contains(&jobs)) {
            bail!("--jobs is a number of processes from 1 to {MOST}");
        }
        let gpus = experiment.devices.iter().filter_map(|device| match device {
            DeviceId::Cuda(number) => Some(*number),
            DeviceId::Cpu => None,
        });
        let mut gpus: Vec<usize> = gpus.collect();
        match (experiment.device, jobs) {
            (DeviceName::Cpu, None | Some(1)) => Ok(None),
            (DeviceName::Cpu, Some(_)) if experiment.matching == Match::Wallclock => {
                tracing::warn!(
                    "`match: wallclock` finds layers by the clock, so its cells are run one after another and --jobs changes nothing"
                );
                Ok(None)
            }
            (DeviceName::Cpu, Some(jobs)) => Ok(Some(Self::Cpu(jobs))),
            (DeviceName::Cuda, jobs) => {
                if let (true, Some(jobs)) = (gpus.is_empty(), jobs.filter(|&jobs| jobs > 1)) {
                    gpus.extend(0..jobs);
                }
                if let Some(jobs) = jobs {
                    if !gpus.is_empty() && jobs > gpus.len() {
                        bail!(
                            "--jobs {jobs} asks for more workers than there are `devices` ({}); cells that are timed do not share a device",
                            gpus.len()
                        );
                    }
                    gpus.truncate(jobs);
                }
                Ok((!gpus.is_empty()).then_some(Self::Gpus(gpus)))
            }
        }
    }

    /// What each of them does.
    pub(crate) fn duty(&self) -> Duty {
        match self {
            Self::Cpu(_) => Duty::Answers,
            Self::Gpus(_) => Duty::All,
        }
    }

    /// How many there are.
    pub(crate) fn count(&self) -> usize {
        match self {
            Self::Cpu(count) => *count,
            Self::Gpus(gpus) => gpus.len(),
        }
    }

    /// The shares of a share that they run.
    pub(crate) fn shards(&self, share: Shard) -> impl Iterator<Item = Shard> {
        let count = self.count();
        (0..count).map(move |index| share.split(index, count))
    }

    /// Runs a share of the cells of a sweep, of which `left` are not finished, and waits for all workers.
    ///
    /// # Errors
    /// A process that cannot be started. One that fails is said, and the others go on.
    pub(crate) fn run(&self, sweep: &Sweep, share: Shard, left: usize) -> anyhow::Result<()> {
        let mut workers = Vec::new();
        for (index, shard) in self.shards(share).enumerate() {
            workers.push(self.start(sweep, shard, index)?);
        }
        let count = workers.len();
        let progress = Progress::new(left as u64, "cells");
        progress.set_message(format!("{count} workers"));
        let mut counted = 0;
        let mut at_work = count;
        while at_work > 0 {
            std::thread::sleep(INTERVAL);
            let done: u64 = workers.iter().map(Worker::done).sum();
            progress.inc(done.saturating_sub(counted));
            counted = counted.max(done);
            for worker in workers.iter_mut().filter(|worker| !worker.has_ended) {
                if let Some(status) = worker.process.try_wait()? {
                    worker.has_ended = true;
                    at_work -= 1;
                    worker.say_end(status);
                }
            }
        }
        Ok(())
    }

    fn start(&self, sweep: &Sweep, shard: Shard, index: usize) -> anyhow::Result<Worker> {
        let log = sweep.log_of(shard);
        let open = || OpenOptions::new().append(true).create(true).open(&log);
        let cannot = || format!("cannot write {}", log.display());
        let (out, err) = (open().with_context(cannot)?, open().with_context(cannot)?);
        let program = std::env::current_exe().context("where this program lies is not known")?;
        let mut command = Command::new(program);
        command
            .arg("run")
            .arg(sweep.experiment())
            .arg("--sweep")
            .arg(sweep.dir())
            .arg("--shard")
            .arg(shard.to_string())
            .arg("--worker")
            .arg(match self.duty() {
                Duty::All => "all",
                Duty::Answers => "answers",
            })
            // It ends when this process does, however it ends.
            .stdin(Stdio::piped())
            .stdout(out)
            .stderr(err);
        match self {
            Self::Cpu(count) => {
                let threads = (rayon::current_num_threads() / count).max(1);
                command.env("RAYON_NUM_THREADS", threads.to_string());
            }
            Self::Gpus(gpus) => {
                let seen = std::env::var("CUDA_VISIBLE_DEVICES").ok();
                let gpu = visible(gpus[index], seen.as_deref())?;
                command.env("CUDA_VISIBLE_DEVICES", gpu);
            }
        }
        let process = command.spawn().context("a worker cannot be started")?;
        let folder = sweep.folder_of(shard);
        Ok(Worker {
            before: records_in(&folder),
            process,
            has_ended: false,
            shard,
            folder,
            log,
        })
    }
}

/// What CUDA calls the GPU of this number among those that it may see, as `CUDA_VISIBLE_DEVICES` lists them.
fn visible(number: usize, list: Option<&str>) -> anyhow::Result<String> {
    let Some(list) = list.filter(|list| !list.trim().is_empty()) else {
        return Ok(number.to_string());
    };
    let gpus: Vec<&str> = list.split(',').map(str::trim).collect();
    match gpus.get(number) {
        Some(gpu) => Ok((*gpu).to_owned()),
        None => bail!(
            "there is no device cuda:{number}: CUDA_VISIBLE_DEVICES names {} ({list})",
            gpus.len()
        ),
    }
}

struct Worker {
    process: Child,
    has_ended: bool,
    shard: Shard,
    folder: PathBuf,
    log: PathBuf,
    /// Records that its folder held before.
    before: u64,
}

impl Worker {
    fn done(&self) -> u64 {
        records_in(&self.folder).saturating_sub(self.before)
    }

    fn say_end(&self, status: ExitStatus) {
        // 1 says that some cells failed, which their records tell.
        if matches!(status.code(), Some(0 | 1)) {
            return;
        }
        let last = last_line(&self.log).unwrap_or_default();
        tracing::error!(
            "worker {} ended early ({status}): {last}\nits cells that are missing run when the same command is given again; {} has the rest",
            self.shard,
            self.log.display()
        );
    }
}

/// Lines of `cells.jsonl`.
fn records_in(folder: &Path) -> u64 {
    let bytes = std::fs::read(folder.join("cells.jsonl")).unwrap_or_default();
    bytes.iter().filter(|&&byte| byte == b'\n').count() as u64
}

/// The last line of a log that says anything.
pub(crate) fn last_line(log: &Path) -> Option<String> {
    let bytes = tail(log).ok()?;
    let text = String::from_utf8_lossy(&bytes);
    let lines = text.lines().rev().map(str::trim);
    lines
        .filter(|line| !line.is_empty())
        .map(|line| line.chars().filter(|c| !c.is_control()).collect())
        .next()
}

/// The end of a file.
fn tail(path: &Path) -> std::io::Result<Vec<u8>> {
    use std::io::{Read, Seek, SeekFrom};
    let mut file = std::fs::File::open(path)?;
    let len = file.metadata()?.len();
    file.seek(SeekFrom::Start(len.saturating_sub(8192)))?;
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gpu_is_counted_among_those_that_may_be_seen() {
        assert_eq!(visible(1, None).unwrap(), "1");
        assert_eq!(visible(1, Some("")).unwrap(), "1");
        assert_eq!(visible(1, Some("3, GPU-5f")).unwrap(), "GPU-5f");
        let error = visible(2, Some("3,5")).unwrap_err().to_string();
        assert!(error.contains("cuda:2"), "{error}");
    }
}
