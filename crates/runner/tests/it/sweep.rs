//! Cells that several processes share: `run --jobs`, `run --sweep`, `submit`, `status`, `collect`.

use crate::support::{assert_names, checkpoint, csv_rows, refused, skipbench, stdout};
use assert_cmd::Command;
use serde_json::Value;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// A folder for an experiment and its results.
pub(crate) struct Field {
    pub(crate) dir: tempfile::TempDir,
}

/// The columns that say how good a strategy is, and how it was run.
const SCORES: [&str; 12] = [
    "task",
    "label",
    "batch_size",
    "layers_per_token",
    "bleu",
    "bleu_lo",
    "bleu_hi",
    "bleu_p",
    "chrf",
    "rougeL",
    "same_as_full",
    "n_failed",
];

impl Field {
    /// 2 batch sizes of 6 strategies: the full network, static ones, one with a threshold to be found, and an oracle.
    pub(crate) fn new() -> Self {
        Self::with(
            "strategies: [unified, early-exit, position-decay, oracle-depth]\nspeedups: [2]\nbatch-sizes: [1, 2]\n",
        )
    }

    /// 60 cells: 15 strategies, two of which find something on calibration text, at 4 batch sizes.
    pub(crate) fn sixty() -> Self {
        Self::with(
            "strategies: [unified, top, bottom, middle, early-exit@2, block-influence@2]\nspeedups: [1.5, 2, 3]\nbatch-sizes: [1, 2, 3, 4]\n",
        )
    }

    /// An experiment of a few short prompts.
    pub(crate) fn with(what: &str) -> Self {
        let field = Self {
            dir: tempfile::tempdir().unwrap(),
        };
        let text = format!(
            "name: shared\nmodels: [{{name: base, path: {:?}}}]\ntasks: [{{builtin: translation, prompts: 3, calibration-prompts: 2, max-new-tokens: 12}}]\ntiming: {{batches: 2, repeats: 1, warm-up: 0, new-tokens: 3}}\n{what}",
            checkpoint().canonicalize().unwrap()
        );
        std::fs::write(field.path("shared.yaml"), text).unwrap();
        field
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A command on the experiment, with its results in `out`.
    pub(crate) fn command(&self, name: &str, out: &str) -> Command {
        let mut command = skipbench();
        command
            .arg(name)
            .arg(self.path("shared.yaml"))
            .arg("--out")
            .arg(self.path(out));
        command
    }

    pub(crate) fn of_folder(&self, name: &str, out: &str) -> Command {
        let mut command = skipbench();
        command.arg(name).arg(self.path(out));
        command
    }

    pub(crate) fn scores(&self, out: &str) -> Vec<Vec<String>> {
        let rows = csv_rows(&self.path(out).join("results.csv")).into_iter();
        rows.map(|row| SCORES.map(|name| row[name].clone()).to_vec())
            .collect()
    }

    pub(crate) fn status(&self, out: &str) -> Value {
        let text = stdout(self.of_folder("status", out).arg("--json"));
        serde_json::from_str(&text).unwrap()
    }

    fn records(&self, out: &str) -> Vec<Value> {
        let text = std::fs::read_to_string(self.path(out).join("cells.jsonl")).unwrap();
        text.lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect()
    }
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        if entry.path().is_file() {
            std::fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
        }
    }
}

#[test]
fn workers_give_the_scores_of_one_process_and_leave_the_clock_alone() {
    let field = Field::new();
    stdout(&mut field.command("run", "whole"));
    let printed = stdout(field.command("run", "out").args(["--jobs", "2"]));
    assert_names(&printed, &["unified@2", "report.html"]);
    assert_eq!(field.scores("out"), field.scores("whole"));
    let column = |out: &str, name: &str| -> Vec<String> {
        let rows = csv_rows(&field.path(out).join("results.csv")).into_iter();
        rows.map(|mut row| row.remove(name).unwrap()).collect()
    };
    // All were timed by one process with all threads, and the answers of the oracle do not count as another machine's.
    assert_eq!(column("out", "threads").len(), 10);
    let timed = |out: &str| -> Vec<bool> {
        let speedups = column(out, "achieved_speedup").into_iter();
        speedups.map(|speedup| !speedup.is_empty()).collect()
    };
    assert_eq!(timed("out"), timed("whole"));
    assert!(!printed.contains("machine 2"), "{printed}");

    let shards = ["1-of-2", "2-of-2"].map(|name| format!("out/shards/{name}"));
    for shard in &shards {
        let records = field.records(shard);
        assert_eq!(records.len(), 5, "{shard}");
        assert!(records.iter().all(|record| record["timing"].is_null()));
    }
    // A threshold is looked for once: what one worker tried, the other read.
    let keys = |shard: &String| -> Vec<String> {
        let path = field.path(shard).join("calibration.jsonl");
        let text = std::fs::read_to_string(path).unwrap();
        let keys = text.lines().map(|line| {
            let line: Value = serde_json::from_str(line).unwrap();
            line["key"].as_str().unwrap().to_owned()
        });
        keys.collect()
    };
    let all: Vec<String> = shards.iter().flat_map(keys).collect();
    assert!(!all.is_empty());
    assert_eq!(all.iter().collect::<BTreeSet<_>>().len(), all.len());

    let before = std::fs::read(field.path("out/cells.jsonl")).unwrap();
    stdout(field.command("run", "out").args(["--jobs", "2"]));
    let after = std::fs::read(field.path("out/cells.jsonl")).unwrap();
    assert_eq!(before, after, "nothing runs twice");
}

#[test]
fn workers_are_asked_for_within_reason() {
    let field = Field::new();
    let refused_with = |more: &[&str]| refused(field.command("run", "out").args(more));
    assert_names(&refused_with(&["--jobs", "0"]), &["--jobs", "1 to 256"]);
    let two = "devices=[cuda:0, cuda:1]";
    let error = refused_with(&["--set", two, "--jobs", "3"]);
    assert_names(
        &error,
        &["--jobs 3", "`devices` (2)", "do not share a device"],
    );
    let error = refused_with(&["--set", "devices=[cuda:0, cuda:0]"]);
    assert_names(&error, &["devices", "twice"]);
    let error = refused_with(&["--set", "devices=[cpu, cuda:0]"]);
    assert_names(&error, &["all GPUs"]);
    let error = refused_with(&["--set", "devices=[gpu1]"]);
    assert_names(&error, &["gpu1", "cuda:1"]);
    assert!(!field.path("out").exists());
}

/// Shards that were run by hand, as any scheduler may: one of them is missing, one was killed half way.
#[test]
fn shards_of_a_sweep_are_collected_as_they_come() {
    let field = Field::new();
    stdout(&mut field.command("run", "whole"));
    stdout(field.command("run", "out").args(["--jobs", "2"]));
    // As `submit` leaves it: any machine will do, and nothing has run yet.
    let sweep = field.path("out/sweep.json");
    let text = std::fs::read_to_string(&sweep).unwrap();
    std::fs::write(
        &sweep,
        text.replace("\"reach\": \"machine\"", "\"reach\": \"machines\""),
    )
    .unwrap();
    for name in ["cells.jsonl", "samples.jsonl", "prompts.jsonl"] {
        std::fs::remove_file(field.path("out").join(name)).unwrap();
    }
    std::fs::remove_dir_all(field.path("out/shards")).unwrap();
    let shard = |shard: &str| {
        let mut command = skipbench();
        command
            .arg("run")
            .arg(field.path("out/experiment.json"))
            .arg("--sweep")
            .arg(field.path("out"))
            .args(["--shard", shard]);
        command
    };
    assert_eq!(field.status("out")["counts"]["missing"], 10);
    let error = refused(&mut field.of_folder("collect", "out"));
    assert_names(&error, &["no shard", "status"]);

    stdout(&mut shard("1/3"));
    stdout(&mut shard("2/3"));
    // As a kill on another node leaves it.
    let cells = field.path("out/shards/2-of-3/cells.jsonl");
    let here = field.records("whole")[0]["made"]["machine"]["host"].to_string();
    let text = std::fs::read_to_string(&cells).unwrap();
    let text = text.replace(&format!("\"host\":{here}"), "\"host\":\"elsewhere\"");
    let first = text.lines().next().unwrap();
    std::fs::write(&cells, &text[..first.len() + 99]).unwrap();

    let assert = field.of_folder("collect", "out").assert().code(1);
    let said = String::from_utf8(assert.get_output().stderr.clone()).unwrap();
    assert_names(
        &said,
        &["5 of 10 cells are not there yet", "skipbench status"],
    );
    assert_eq!(field.status("out")["counts"]["done"], 5);

    // It goes on where the other node stopped, whose times stand.
    stdout(&mut shard("2/3"));
    stdout(&mut shard("3/3"));
    let kept = std::fs::read_to_string(&cells).unwrap();
    assert!(kept.starts_with(first), "what was finished is kept");
    assert_eq!(kept.lines().count(), 3, "and nothing is timed twice");
    stdout(&mut field.of_folder("collect", "out"));
    assert_eq!(field.scores("out"), field.scores("whole"));
    let rows = csv_rows(&field.path("out/results.csv")).into_iter();
    let machines: Vec<String> = rows.map(|row| row["machine"].clone()).collect();
    let elsewhere = machines
        .iter()
        .filter(|name| name.starts_with("elsewhere: "));
    assert_eq!(elsewhere.count(), 1, "{machines:?}");
    assert_eq!(field.status("out")["counts"]["done"], 10);

    // A share that is cut otherwise finds everything done.
    stdout(&mut shard("1/1"));
    let records = std::fs::read_to_string(field.path("out/shards/1-of-1/cells.jsonl")).unwrap();
    assert_eq!(records, "", "no cell is measured twice");
}

#[test]
fn a_shard_that_does_not_belong_is_refused_and_nothing_is_lost() {
    let field = Field::with("strategies: [unified@2]\n");
    stdout(field.command("run", "out").args(["--jobs", "2"]));
    stdout(field.command("run", "other").args(["--set", "seed=2"]));
    let before = std::fs::read(field.path("out/cells.jsonl")).unwrap();

    copy(&field.path("other"), &field.path("out/shards/3-of-3"));
    let error = refused(&mut field.of_folder("collect", "out"));
    assert_names(
        &error,
        &["3-of-3", "other settings", "nothing was changed", "move"],
    );
    assert_names(
        &format!("{}", field.status("out")["warnings"]),
        &["3-of-3", "other settings"],
    );
    std::fs::remove_dir_all(field.path("out/shards/3-of-3")).unwrap();

    let sweep = field.path("out/sweep.json");
    let text = std::fs::read_to_string(&sweep).unwrap();
    let value: Value = serde_json::from_str(&text).unwrap();
    let digest = value["binary"]["digest"].as_str().unwrap();
    std::fs::write(&sweep, text.replace(digest, "0123456789abcdef")).unwrap();
    let error = refused(&mut field.of_folder("collect", "out"));
    assert_names(
        &error,
        &["1-of-2", digest, "0123456789abcdef", "one program"],
    );
    let error = refused(
        skipbench()
            .arg("run")
            .arg(field.path("out/experiment.json"))
            .arg("--sweep")
            .arg(field.path("out"))
            .args(["--shard", "1/2"]),
    );
    assert_names(&error, &["0123456789abcdef", "again"]);
    assert_eq!(
        std::fs::read(field.path("out/cells.jsonl")).unwrap(),
        before
    );

    std::fs::write(&sweep, &text).unwrap();
    let error = refused(
        skipbench()
            .arg("run")
            .arg(field.path("shared.yaml"))
            .args(["--set", "seed=3", "--sweep"])
            .arg(field.path("out"))
            .args(["--shard", "1/2"]),
    );
    assert_names(&error, &["not the one of the sweep", "experiment.json"]);

    // Two collectors at once.
    let lock = std::fs::File::open(field.path("out/.lock")).unwrap();
    lock.lock().unwrap();
    let error = refused(&mut field.of_folder("collect", "out"));
    assert_names(&error, &["another skipbench is writing", "wait"]);
    assert_eq!(field.status("out")["counts"]["done"], 2);
    drop(lock);
    stdout(&mut field.of_folder("collect", "out"));
    assert_eq!(
        std::fs::read(field.path("out/cells.jsonl")).unwrap(),
        before
    );

    let error = refused(&mut field.of_folder("collect", "other"));
    assert_names(&error, &["not the folder of a sweep", "submit"]);
}

#[test]
fn status_says_what_failed_and_what_is_missing() {
    let field = Field::new();
    stdout(field.command("run", "out").args(["--jobs", "2"]));
    let edit = |name: &str, edit: &dyn Fn(Vec<String>) -> Vec<String>| {
        let path = field.path("out").join(name);
        let text = std::fs::read_to_string(&path).unwrap();
        let lines = edit(text.lines().map(str::to_owned).collect());
        std::fs::write(&path, lines.join("\n") + "\n").unwrap();
    };
    // One cell has failed, one is lost, and so is what the second shard had of it.
    edit("cells.jsonl", &|lines| {
        let timed = lines.into_iter().filter(|line| line.contains("\"timing\""));
        timed.skip(1).collect()
    });
    edit("shards/1-of-2/cells.jsonl", &|lines| {
        let fail = |line: &String| {
            let mut record: Value = serde_json::from_str(line).unwrap();
            record["failure"] = "the disk is full".into();
            record.to_string()
        };
        vec![fail(&lines[0])]
    });
    std::fs::write(
        field.path("out/logs/1-of-2.log"),
        "cells: 1 of 5\nerror: the disk is full\n\n",
    )
    .unwrap();
    let text = stdout(&mut field.of_folder("status", "out"));
    let text = text.replace(&format!("{}/", field.dir.path().display()), "");
    insta::assert_snapshot!(text);
}

#[test]
fn the_script_of_a_sweep_is_rendered_and_nothing_is_done() {
    let field = Field::new();
    let rendered = |more: &[&str]| {
        let mut command = field.command("submit", "an out");
        let text = stdout(command.args(["--slurm", "--dry-run"]).args(more));
        let program = assert_cmd::cargo::cargo_bin("skipbench");
        text.replace(&program.display().to_string(), "/opt/skipbench")
            .replace(&field.dir.path().display().to_string(), "/home/me")
    };
    insta::assert_snapshot!("script", rendered(&[]));
    let gpu = rendered(&[
        "--partition",
        "gpu",
        "--account",
        "a project",
        "--gpus",
        "a100:1",
        "--time",
        "2:00:00",
        "--mem",
        "64G",
        "--cpus",
        "8",
        "--parallel",
        "3",
        "--set",
        "timing.batches=0",
    ]);
    insta::assert_snapshot!("script_of_gpus", gpu);
    assert!(!field.path("an out").exists());
    // More shards than cells would be jobs without work.
    assert_names(&rendered(&["--parallel", "400"]), &["--array=1-10\n"]);

    std::fs::write(
        field.path("own.sh"),
        "#!/bin/sh\n#SBATCH --constraint=a100 {% if array %}--array={{ array }}{% endif %}\nmodule load cuda\n{{ command }}\n",
    )
    .unwrap();
    let own = rendered(&["--template", field.path("own.sh").to_str().unwrap()]);
    assert_names(
        &own,
        &[
            "--constraint=a100 --array=1-4\n",
            "module load cuda\n/opt/skipbench run ",
        ],
    );
    let template = stdout(
        field
            .command("submit", "out")
            .args(["--slurm", "--print-template"]),
    );
    std::fs::write(field.path("own.sh"), template).unwrap();
    let same = rendered(&["--template", field.path("own.sh").to_str().unwrap()]);
    assert_eq!(same, rendered(&[]));
}

#[test]
fn what_cannot_be_submitted_is_refused() {
    let field = Field::new();
    let submit = |more: &[&str]| refused(field.command("submit", "out").arg("--slurm").args(more));
    let nothing = field.path("nothing");
    std::fs::create_dir(&nothing).unwrap();
    let error = refused(
        field
            .command("submit", "out")
            .arg("--slurm")
            .env("PATH", &nothing),
    );
    assert_names(
        &error,
        &["`sbatch` is not installed", "--dry-run", "--jobs"],
    );
    std::fs::write(field.path("own.sh"), "#!/bin/sh\n{{ commnd }}\n").unwrap();
    let own = field.path("own.sh");
    let error = submit(&["--dry-run", "--template", own.to_str().unwrap()]);
    assert_names(&error, &["own.sh:2", "undefined", "--print-template"]);
    let error = submit(&["--dry-run", "--partition", "a\nb"]);
    assert_names(&error, &["--partition", "sbatch"]);
    let error = submit(&["--dry-run", "--parallel", "0"]);
    assert_names(&error, &["--parallel", "1 to 1000"]);
    let error = refused(&mut field.command("submit", "out"));
    assert_names(&error, &["--slurm"]);
    let error = refused(
        field
            .command("submit", "out%j")
            .args(["--slurm", "--dry-run"]),
    );
    assert_names(&error, &["out%j", "another folder"]);
    assert!(!field.path("out").exists());
}
