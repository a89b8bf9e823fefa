//! What is asked of Slurm, through its own commands: `sbatch`, `squeue`, `scontrol`, `sacct`, `sinfo`.

use super::Jobs;
use anyhow::{Context, bail};
use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::path::Path;
use std::process::{Command, Output};

/// A job, or a task of an array, that has not ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Queued {
    pub(crate) job: String,
    /// Its number in the array.
    pub(crate) task: Option<usize>,
    /// As Slurm calls it: `PENDING`, `RUNNING`, ...
    pub(crate) state: String,
    /// Where it runs.
    pub(crate) node: String,
    /// Why it does not.
    pub(crate) reason: String,
}

impl Queued {
    /// Whether it waits for its turn.
    pub(crate) fn is_waiting(&self) -> bool {
        matches!(
            self.state.as_str(),
            "PENDING" | "REQUEUED" | "REQUEUE_HOLD" | "REQUEUE_FED" | "SPECIAL_EXIT"
        )
    }
}

/// Refuses a machine without Slurm.
///
/// # Errors
/// `sbatch` is not there.
pub(crate) fn check_here() -> anyhow::Result<()> {
    match Command::new("sbatch").arg("--version").output() {
        Err(error) if error.kind() == ErrorKind::NotFound => bail!(
            "`sbatch` is not installed here; submit where Slurm's commands are (a login node), see the script with --dry-run, or use this machine with `skipbench run EXPERIMENT --jobs N`"
        ),
        Err(error) => Err(error).context("`sbatch` cannot be started"),
        Ok(output) if !output.status.success() => bail!(
            "`sbatch` does not work here: {}; submit where Slurm is set up, or see the script with --dry-run",
            said(&output)
        ),
        Ok(_) => Ok(()),
    }
}

/// Hands a script in; gives the job's number.
///
/// # Errors
/// What `sbatch` refuses, with the partitions that there are where it does not know one.
pub(crate) fn submit(script: &Path, after: Option<&str>) -> anyhow::Result<String> {
    let mut command = Command::new("sbatch");
    command.arg("--parsable");
    if let Some(job) = after {
        command.arg(format!("--dependency=afterany:{job}"));
    }
    let output = command
        .arg(script)
        .output()
        .context("`sbatch` cannot be started")?;
    let said = said(&output);
    if !output.status.success() {
        let lower = said.to_lowercase();
        let hint = match lower.contains("partition") {
            true => partitions().map_or_else(String::new, |names| {
                format!("; the partitions here are {}", names.join(", "))
            }),
            false => String::new(),
        };
        bail!(
            "Slurm refuses {}: {said}{hint}; nothing was submitted",
            script.display()
        );
    }
    // `JOB`, or `JOB;CLUSTER`.
    let printed = String::from_utf8_lossy(&output.stdout);
    let job = printed.lines().last().unwrap_or_default();
    let job = job.split(';').next().unwrap_or_default().trim();
    if job.is_empty() || !job.chars().all(|c| c.is_ascii_digit()) {
        bail!("`sbatch --parsable` did not print the number of a job but {printed:?}");
    }
    Ok(job.to_owned())
}

/// Takes a job back.
pub(crate) fn cancel(job: &str) {
    // Whoever calls this has a worse error to report.
    let _ = Command::new("scancel").arg(job).output();
}

fn partitions() -> Option<Vec<String>> {
    let output = Command::new("sinfo")
        .args(["-h", "-o", "%R"])
        .output()
        .ok()?;
    let mut names: Vec<String> = String::from_utf8_lossy(&output.stdout)
        .lines()
        .map(|line| line.trim().to_owned())
        .filter(|name| !name.is_empty())
        .collect();
    names.sort();
    names.dedup();
    (!names.is_empty()).then_some(names)
}

/// What of the jobs has not ended; `None` where nobody can be asked.
pub(crate) fn queue(jobs: &Jobs) -> Option<Vec<Queued>> {
    let ids = [Some(&jobs.shards), jobs.collect.as_ref()];
    let mut queued = Vec::new();
    // A job that has long ended is not known any more, which is an error of the whole question.
    for id in ids.into_iter().flatten() {
        let output = Command::new("squeue")
            .args(["-h", "-r", "-o", "%F|%K|%T|%N|%r", "-j", id])
            .output()
            .ok()?;
        let unknown = said(&output).contains("Invalid job id");
        if !output.status.success() && !unknown {
            return None;
        }
        let lines = String::from_utf8_lossy(&output.stdout).into_owned();
        queued.extend(lines.lines().filter_map(queued_job));
    }
    Some(queued)
}

fn queued_job(line: &str) -> Option<Queued> {
    let mut parts = line.trim().splitn(5, '|').map(str::to_owned);
    let mut next = || parts.next();
    Some(Queued {
        job: next()?,
        task: next()?.parse().ok(),
        state: next()?,
        node: next()?,
        reason: next()?,
    })
}

/// How the tasks of an array have ended, by their number, as far as Slurm still knows.
pub(crate) fn ended(array: &str) -> BTreeMap<usize, String> {
    let run = |program: &str, arguments: &[&str]| {
        let output = Command::new(program).args(arguments).output();
        output.map_or_else(
            |_| String::new(),
            |output| String::from_utf8_lossy(&output.stdout).into_owned(),
        )
    };
    // The accounts go back further, and the controller is asked where there are none.
    let accounts = run(
        "sacct",
        &["-n", "-P", "-X", "-j", array, "-o", "JobID,State,ExitCode"],
    );
    let mut ends: BTreeMap<usize, String> = accounts.lines().filter_map(from_accounts).collect();
    let controller = run("scontrol", &["-o", "show", "job", array]);
    ends.extend(controller.lines().filter_map(from_controller));
    ends
}

/// `12_3|TIMEOUT|0:0`.
fn from_accounts(line: &str) -> Option<(usize, String)> {
    let mut parts = line.split('|');
    let (_, task) = parts.next()?.split_once('_')?;
    let (state, exit) = (parts.next()?, parts.next()?);
    Some((task.parse().ok()?, how_it_ended(state, exit)?))
}

/// `JobId=14 ArrayJobId=12 ArrayTaskId=3 ... JobState=TIMEOUT ... ExitCode=0:15 ...`.
fn from_controller(line: &str) -> Option<(usize, String)> {
    let value = |key: &str| {
        let mut parts = line.split_ascii_whitespace();
        parts.find_map(|part| part.strip_prefix(key)?.strip_prefix('='))
    };
    let task = value("ArrayTaskId")?.parse().ok()?;
    Some((task, how_it_ended(value("JobState")?, value("ExitCode")?)?))
}

/// `None` of what has not ended.
fn how_it_ended(state: &str, exit: &str) -> Option<String> {
    let (code, signal) = exit.split_once(':').unwrap_or((exit, "0"));
    // `CANCELLED by 1000`.
    let state = state.split_ascii_whitespace().next()?;
    Some(match state {
        "PENDING" | "RUNNING" | "SUSPENDED" | "COMPLETING" | "CONFIGURING" | "REQUEUED" => {
            return None;
        }
        "COMPLETED" => "its job has ended".to_owned(),
        "TIMEOUT" | "DEADLINE" => "the time limit was reached (--time)".to_owned(),
        "CANCELLED" => "its job was cancelled".to_owned(),
        "PREEMPTED" => "its job was pre-empted".to_owned(),
        "OUT_OF_MEMORY" => "the memory did not suffice (--mem)".to_owned(),
        "NODE_FAIL" | "BOOT_FAIL" => "its node failed".to_owned(),
        "FAILED" if signal != "0" => format!("its job was ended by signal {signal}"),
        "FAILED" => format!("its job ended with code {code}"),
        other => format!("its job is in state {other}"),
    })
}

/// What a program said, on one line.
fn said(output: &Output) -> String {
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    lines.collect::<Vec<_>>().join(" / ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_queue_is_read() {
        let job = queued_job("12|3|PENDING||Resources\n").unwrap();
        assert_eq!((job.task, job.is_waiting()), (Some(3), true));
        assert_eq!(job.reason, "Resources");
        let job = queued_job("13|N/A|RUNNING|node[1-2]|None").unwrap();
        assert_eq!((job.task, job.is_waiting()), (None, false));
        assert_eq!(job.node, "node[1-2]");
        assert_eq!(queued_job("slurm_load_jobs error"), None);
    }

    #[test]
    fn the_end_of_a_task_is_told_in_words() {
        let line = "JobId=14 ArrayJobId=12 ArrayTaskId=3 JobName=a b JobState=TIMEOUT Reason=TimeLimit ExitCode=0:15";
        let end = (3, "the time limit was reached (--time)".to_owned());
        assert_eq!(from_controller(line), Some(end.clone()));
        assert_eq!(from_accounts("12_3|TIMEOUT|0:0"), Some(end));
        let cancelled = from_accounts("12_1|CANCELLED by 1000|0:15").unwrap().1;
        assert_eq!(cancelled, "its job was cancelled");
        assert_eq!(from_accounts("12_[2-4]|PENDING|0:0"), None);
        assert_eq!(
            how_it_ended("FAILED", "0:9").unwrap(),
            "its job was ended by signal 9"
        );
        assert_eq!(
            how_it_ended("FAILED", "2:0").unwrap(),
            "its job ended with code 2"
        );
        assert_eq!(how_it_ended("RUNNING", "0:0"), None);
    }
}
