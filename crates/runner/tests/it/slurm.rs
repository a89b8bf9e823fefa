//! A sweep under a real Slurm of this machine alone, which `scripts/slurm/start.sh` starts; skipped where it cannot.

use crate::support::{assert_names, refused, repository, stdout};
use crate::sweep::Field;
use assert_cmd::Command;
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// A Slurm that ends with the test.
struct Slurm {
    dir: tempfile::TempDir,
}

/// The longest that anything here may take.
const PATIENCE: Duration = Duration::from_secs(180);

impl Slurm {
    /// `None`, saying why, where it cannot be started.
    #[expect(clippy::print_stderr, reason = "a test that is skipped says so")]
    fn start() -> Option<Self> {
        // Not below the folder of a test: munge refuses folders that others may write to, and sockets have short names.
        let dir = tempfile::Builder::new()
            .prefix("slurm")
            .tempdir_in("/tmp")
            .ok()?;
        let output = Self::script().arg(dir.path()).output().ok()?;
        if !output.status.success() {
            let why = String::from_utf8_lossy(&output.stderr);
            eprintln!("skipped: no Slurm can be started here: {}", why.trim());
            return None;
        }
        Some(Self { dir })
    }

    fn script() -> std::process::Command {
        std::process::Command::new(repository().join("scripts/slurm/start.sh"))
    }

    /// Has a command find it.
    fn of<'a>(&self, command: &'a mut Command) -> &'a mut Command {
        command.env("SLURM_CONF", self.dir.path().join("slurm.conf"))
    }

    fn ask(&self, program: &str, arguments: &[&str]) -> String {
        let mut command = std::process::Command::new(program);
        command.args(arguments);
        command.env("SLURM_CONF", self.dir.path().join("slurm.conf"));
        let output = command.output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{program} {arguments:?}: {said}");
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }

    fn node(&self, state: &str) {
        let node = self.ask("sinfo", &["-h", "-o", "%n"]);
        let (node, state) = (format!("nodename={node}"), format!("state={state}"));
        self.ask("scontrol", &["update", &node, &state, "reason=maintenance"]);
    }
}

impl Drop for Slurm {
    fn drop(&mut self) {
        let _ = Self::script().arg("--stop").arg(self.dir.path()).output();
    }
}

/// Waits until it holds, and says what was waited for if it does not.
#[track_caller]
fn wait(what: &str, mut holds: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !holds() {
        assert!(begun.elapsed() < PATIENCE, "{what}: waited in vain");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// The experiment of the tests in `out` under a Slurm.
struct Sweep<'a> {
    slurm: &'a Slurm,
    field: &'a Field,
}

impl Sweep<'_> {
    fn submit(&self, more: &[&str]) -> Command {
        let mut command = self.field.command("submit", "out");
        command.arg("--slurm").args(more);
        self.slurm.of(&mut command);
        command
    }

    /// The number of the array.
    fn job(&self) -> String {
        let path = self.field.path("out/sweep.json");
        let value: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
        value["jobs"]["shards"].as_str().unwrap().to_owned()
    }

    fn status(&self) -> Value {
        let mut command = self.field.of_folder("status", "out");
        let text = stdout(self.slurm.of(command.arg("--json")));
        serde_json::from_str(&text).unwrap()
    }

    fn shard(&self, index: usize) -> Value {
        self.status()["shards"][index - 1].clone()
    }

    fn cells(&self, index: usize) -> PathBuf {
        self.field
            .path(&format!("out/shards/{index}-of-4/cells.jsonl"))
    }

    /// Cells that a shard has finished.
    fn finished(&self, index: usize) -> usize {
        let text = std::fs::read_to_string(self.cells(index)).unwrap_or_default();
        text.matches('\n').count()
    }

    fn wait_for_the_end(&self) {
        wait("the end of all jobs", || {
            self.slurm.ask("squeue", &["-h"]).is_empty()
        });
    }
}

/// 60 cells in 4 shards. The node is drained before they begin; then one shard is killed, one is started again by Slurm, one
/// hangs until its time is over, and one is left in peace. What was finished stays, and the scores are those of one process.
#[test]
fn shards_that_were_killed_give_the_scores_of_one_process() {
    let Some(slurm) = Slurm::start() else {
        return;
    };
    let field = Field::sixty();
    let sweep = Sweep {
        slurm: &slurm,
        field: &field,
    };
    let error = refused(&mut sweep.submit(&["--partition", "nope"]));
    assert_names(
        &error,
        &[
            "nvalid partition",
            "the partitions here are debug",
            "nothing was submitted",
        ],
    );

    slurm.node("drain");
    let said = stdout(&mut sweep.submit(&["--time", "10", "--parallel", "4"]));
    assert_names(&said, &["60 of 60 cells in 4 shards", "skipbench status"]);
    wait("a reason to wait", || {
        sweep.shard(1)["reason"].to_string().contains("DRAINED")
    });
    let status = sweep.status();
    assert_eq!(status["counts"]["waiting"], 60);
    assert_names(&status["collecting"].to_string(), &["waits", "Dependency"]);
    let error = refused(&mut sweep.submit(&[]));
    assert_names(
        &error,
        &["have not ended", "scancel", "what is finished is kept"],
    );
    slurm.node("resume");

    let job = sweep.job();
    let task = |index: usize| format!("{job}_{index}");
    // On one node the shards run one after another: each is timed with nothing beside it.
    wait("cells of the first shard", || sweep.finished(1) >= 2);
    slurm.ask("scancel", &["--signal=KILL", "--batch", &task(1)]);
    wait("the second shard", || sweep.finished(2) >= 2);
    assert_eq!(sweep.shard(1)["state"], "failed");
    assert_names(&sweep.shard(1)["reason"].to_string(), &["signal 9"]);
    slurm.ask("scontrol", &["requeue", &task(2)]);
    wait("the third shard", || sweep.finished(3) >= 2);
    slurm.ask("scancel", &["--signal=STOP", "--batch", &task(3)]);
    let (id, end) = (format!("JobId={}", task(3)), "EndTime=now+1seconds");
    slurm.ask("scontrol", &["update", &id, end]);
    let kept = [1, 3].map(|index| std::fs::read_to_string(sweep.cells(index)).unwrap());
    sweep.wait_for_the_end();

    let status = sweep.status();
    let states: Vec<&Value> = (0..4)
        .map(|index| &status["shards"][index]["state"])
        .collect();
    assert_eq!(states, ["failed", "done", "failed", "done"]);
    assert_names(&sweep.shard(3)["reason"].to_string(), &["time limit"]);
    // Slurm wakes it, has it end, and says so; either may have the last word.
    let last = sweep.shard(3)["last_line"].to_string();
    assert!(
        last.contains("goes on where it stopped") || last.contains("TIME LIMIT"),
        "{last}"
    );
    let log = std::fs::read_to_string(field.path("out/logs/3-of-4.log")).unwrap();
    assert_names(&log, &["TIME LIMIT"]);
    let text = stdout(slurm.of(&mut field.of_folder("status", "out")));
    assert_names(
        &text,
        &[
            "shard 3-of-4  failed",
            "time limit",
            "Missing:",
            "given again",
        ],
    );
    let collected = std::fs::read_to_string(field.path("out/logs/collect.log")).unwrap();
    assert_names(
        &collected,
        &["of 60 cells are not there yet", "report.html"],
    );

    // What is missing, and nothing else.
    let said = stdout(&mut sweep.submit(&[]));
    let missing = status["counts"]["missing"].as_u64().unwrap();
    assert_names(
        &said,
        &[&format!("Submitted {missing} of 60 cells in 2 shards")],
    );
    sweep.wait_for_the_end();
    assert_eq!(sweep.status()["counts"]["done"], 60);
    for (index, kept) in [1, 3].into_iter().zip(&kept) {
        let text = std::fs::read_to_string(sweep.cells(index)).unwrap();
        assert!(
            text.starts_with(kept.as_str()),
            "what shard {index} had finished is kept"
        );
    }
    let mut timed: BTreeMap<String, usize> = BTreeMap::new();
    for index in 1..=4 {
        for line in std::fs::read_to_string(sweep.cells(index)).unwrap().lines() {
            let record: Value = serde_json::from_str(line).unwrap();
            assert!(!record["timing"].is_null());
            *timed.entry(record["content"].to_string()).or_default() += 1;
        }
    }
    assert_eq!(
        (timed.len(), timed.values().max()),
        (60, Some(&1)),
        "no cell is timed twice"
    );

    stdout(&mut field.command("run", "whole"));
    assert_eq!(field.scores("out").len(), 60);
    assert_eq!(field.scores("out"), field.scores("whole"));
    let said = stdout(&mut sweep.submit(&[]));
    assert_names(&said, &["All 60 cells are done", "skipbench collect"]);
}
