//! What a run's folder keeps, and what a rerun makes of it.

use crate::support::{assert_names, checkpoint_copy, csv_rows, refused, skipbench, stdout};
use assert_cmd::Command;
use serde_json::Value;
use std::path::{Path, PathBuf};

/// An experiment with its own copy of the checkpoint and its own texts, all of which a test may change.
struct Lab {
    dir: tempfile::TempDir,
}

const SOURCES: &str = "ein Haus\nder Hund\ndas alte Buch\n";
const REFERENCES: &str = "a house\nthe dog\nthe old book\n";

impl Lab {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        checkpoint_copy(dir.path());
        std::fs::write(dir.path().join("source.txt"), SOURCES).unwrap();
        std::fs::write(dir.path().join("reference.txt"), REFERENCES).unwrap();
        let lab = Self { dir };
        lab.write("lab", "");
        lab
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn write(&self, name: &str, more: &str) {
        let text = format!(
            "name: {name}\nmodels: [{{name: m, path: checkpoint}}]\ntasks: [{{name: t, source: source.txt, reference: reference.txt, prompt: \"de: {{{{ source }}}}\\nen:\", max-new-tokens: 6}}]\nstrategies: [unified@2]\nbatch-sizes: [2]\ntiming: {{batches: 2, repeats: 1, warm-up: 0, new-tokens: 3}}\n{more}"
        );
        std::fs::write(self.path("lab.yaml"), text).unwrap();
    }

    fn command(&self) -> Command {
        let mut command = skipbench();
        command
            .arg("run")
            .arg(self.path("lab.yaml"))
            .arg("--out")
            .arg(self.path("out"))
            .env("XDG_CACHE_HOME", self.path("cache"));
        command
    }

    /// Standard output and standard error of a run that succeeds.
    fn run(&self) -> (String, String) {
        let assert = self.command().assert().success();
        let output = assert.get_output();
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
        (text(&output.stdout), text(&output.stderr))
    }

    fn lines(&self, name: &str) -> Vec<Value> {
        let text = std::fs::read_to_string(self.path("out").join(name)).unwrap();
        text.lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect()
    }

    /// Changes the lines of a file of the run's folder.
    fn edit(&self, name: &str, edit: impl FnOnce(Vec<String>) -> Vec<String>) {
        let path = self.path("out").join(name);
        let lines = std::fs::read_to_string(&path).unwrap();
        let lines = edit(lines.lines().map(str::to_owned).collect());
        std::fs::write(&path, lines.join("\n") + "\n").unwrap();
    }

    fn scores(&self) -> Vec<String> {
        self.column("bleu")
    }

    fn column(&self, name: &str) -> Vec<String> {
        let rows = csv_rows(&self.path("out/results.csv"));
        rows.into_iter()
            .map(|mut row| row.remove(name).unwrap())
            .collect()
    }
}

fn flip_middle(path: &Path) {
    let mut bytes = std::fs::read(path).unwrap();
    let middle = bytes.len() / 2;
    for byte in &mut bytes[middle..middle + (1 << 20)] {
        *byte = 0;
    }
    std::fs::write(path, bytes).unwrap();
}

#[test]
fn weights_that_changed_in_the_middle_are_run_again_and_it_says_so() {
    let lab = Lab::new();
    lab.run();
    let before = lab.lines("samples.jsonl");
    flip_middle(&lab.path("checkpoint/model.safetensors"));
    let (_, said) = lab.run();
    assert_names(&said, &["m t batch 2 unified@2: run again", "weights"]);
    let after = lab.lines("samples.jsonl");
    assert_eq!(after.len(), 2 * before.len(), "the old answers are kept");
    let tokens = |lines: &[Value]| -> Vec<Value> {
        lines.iter().map(|line| line["tokens"].clone()).collect()
    };
    assert_ne!(tokens(&after[before.len()..]), tokens(&before));
    assert_eq!(
        lab.column("bleu").len(),
        2,
        "rows of the old weights are gone"
    );
    let (_, said) = lab.run();
    assert!(!said.contains("again"), "{said}");
}

#[test]
fn answers_are_paired_with_prompts_by_id() {
    let lab = Lab::new();
    lab.run();
    let scores = lab.scores();
    lab.edit("samples.jsonl", |lines| lines.into_iter().rev().collect());
    lab.run();
    assert_eq!(lab.scores(), scores);
    // An id that the task does not have belongs to nothing.
    lab.edit("samples.jsonl", |lines| {
        lines
            .into_iter()
            .map(|line| line.replace("\"t/0\"", "\"t/7\""))
            .collect()
    });
    lab.run();
    assert_eq!(lab.scores(), scores);
    let ids: Vec<Value> = lab
        .lines("samples.jsonl")
        .iter()
        .map(|l| l["id"].clone())
        .collect();
    assert!(!ids.contains(&"t/7".into()), "{ids:?}");
}

#[test]
fn other_threads_are_timed_anew_and_stand_beside_the_old_times() {
    let lab = Lab::new();
    lab.command()
        .env("RAYON_NUM_THREADS", "2")
        .assert()
        .success();
    let answers = lab.lines("samples.jsonl");
    let assert = lab
        .command()
        .env("RAYON_NUM_THREADS", "1")
        .assert()
        .success();
    let said = String::from_utf8(assert.get_output().stderr.clone()).unwrap();
    assert_names(&said, &["timed again", "threads (2 -> 1)"]);
    assert_eq!(lab.lines("samples.jsonl"), answers, "the answers stand");
    let mut threads = lab.column("threads");
    threads.sort();
    assert_eq!(threads, ["1", "1", "2", "2"]);
    // Each of them is finished.
    let cells = lab.lines("cells.jsonl");
    for threads in ["1", "2"] {
        lab.command()
            .env("RAYON_NUM_THREADS", threads)
            .assert()
            .success();
    }
    assert_eq!(lab.lines("cells.jsonl"), cells);
}

#[test]
fn timing_settings_concern_the_times_alone() {
    let lab = Lab::new();
    lab.run();
    let answers = lab.lines("samples.jsonl");
    let text = std::fs::read_to_string(lab.path("lab.yaml")).unwrap();
    std::fs::write(
        lab.path("lab.yaml"),
        text.replace("new-tokens: 3", "new-tokens: 4"),
    )
    .unwrap();
    let (_, said) = lab.run();
    assert_names(&said, &["timed again", "timing settings"]);
    assert_eq!(lab.lines("samples.jsonl"), answers);
    let last = lab.lines("cells.jsonl").pop().unwrap();
    assert_eq!(last["timing"]["new_tokens"], 4);
    assert_eq!(
        lab.column("bleu").len(),
        2,
        "the old times are gone from the table"
    );
}

#[test]
fn a_record_says_where_it_was_made_and_is_never_relabelled() {
    let lab = Lab::new();
    lab.run();
    // As if the first cell had been measured elsewhere.
    lab.edit("cells.jsonl", |lines| {
        let mut first: Value = serde_json::from_str(&lines[0]).unwrap();
        first["timing"]["made"]["machine"]["cpu"] = "another processor".into();
        let mut edited = vec![first.to_string()];
        edited.extend_from_slice(&lines[1..]);
        edited
    });
    let (printed, _) = lab.run();
    assert_names(&printed, &["another processor"]);
    let machines = lab.column("machine");
    assert_eq!(
        machines
            .iter()
            .filter(|m| m.contains("another processor"))
            .count(),
        1
    );
}

#[test]
fn a_folder_stands_alone() {
    let lab = Lab::new();
    lab.run();
    let table = std::fs::read_to_string(lab.path("out/table.md")).unwrap();
    let elsewhere = tempfile::tempdir().unwrap();
    let moved = elsewhere.path().join("a run");
    std::fs::create_dir(&moved).unwrap();
    for name in ["run.json", "cells.jsonl", "samples.jsonl", "prompts.jsonl"] {
        std::fs::copy(lab.path("out").join(name), moved.join(name)).unwrap();
    }
    drop(lab);
    stdout(skipbench().arg("report").arg(&moved));
    assert_eq!(
        std::fs::read_to_string(moved.join("table.md")).unwrap(),
        table
    );
    let archive = elsewhere.path().join("archive");
    stdout(
        skipbench()
            .arg("report")
            .arg(&moved)
            .arg("--archive")
            .arg(&archive),
    );
    assert!(archive.join("cells.jsonl.gz").is_file());
    std::fs::remove_file(archive.join("table.md")).unwrap();
    stdout(skipbench().arg("report").arg(&archive));
    assert_eq!(
        std::fs::read_to_string(archive.join("table.md")).unwrap(),
        table
    );
}

#[test]
fn versions_and_owners_of_a_folder_are_checked() {
    let lab = Lab::new();
    lab.run();
    let cells = std::fs::read_to_string(lab.path("out/cells.jsonl")).unwrap();
    lab.edit("cells.jsonl", |lines| {
        let mut first: Value = serde_json::from_str(&lines[0]).unwrap();
        first["version"] = 99.into();
        let mut edited = vec![first.to_string()];
        edited.extend_from_slice(&lines[1..]);
        edited
    });
    let newer = std::fs::read_to_string(lab.path("out/cells.jsonl")).unwrap();
    let error = refused(&mut lab.command());
    assert_names(&error, &["cells.jsonl", "version 99", "--out"]);
    let error = refused(skipbench().arg("report").arg(lab.path("out")));
    assert_names(&error, &["version 99"]);
    assert_eq!(
        std::fs::read_to_string(lab.path("out/cells.jsonl")).unwrap(),
        newer
    );

    std::fs::write(lab.path("out/cells.jsonl"), &cells).unwrap();
    lab.write("other", "");
    let error = refused(&mut lab.command());
    assert_names(&error, &["experiment `lab`, not of `other`", "--out"]);
    assert_eq!(
        std::fs::read_to_string(lab.path("out/cells.jsonl")).unwrap(),
        cells
    );
}

#[test]
fn damage_costs_what_was_damaged_and_no_more() {
    let lab = Lab::new();
    lab.run();
    let (scores, cells) = (lab.scores(), lab.lines("cells.jsonl"));
    // Answers that were cut off: their cell is run again, and stands once.
    let path = lab.path("out/samples.jsonl");
    let bytes = std::fs::read(&path).unwrap();
    std::fs::write(&path, &bytes[..bytes.len() - 20]).unwrap();
    lab.run();
    assert_eq!(lab.scores(), scores);
    let ids = |lines: Vec<Value>| -> Vec<Value> {
        let mut ids: Vec<Value> = lines.into_iter().map(|line| line["id"].clone()).collect();
        ids.sort_by_key(ToString::to_string);
        ids
    };
    assert_eq!(ids(lab.lines("cells.jsonl")), ids(cells));
    // Zero bytes in the middle: that line is lost, with a warning.
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[30] = 0;
    std::fs::write(&path, &bytes).unwrap();
    let (_, said) = lab.run();
    assert_names(&said, &["samples.jsonl: line 1 cannot be read"]);
    assert_eq!(lab.scores(), scores);
    let (_, said) = lab.run();
    assert!(!said.contains("cannot be read"), "{said}");
}

#[test]
fn a_cell_that_fails_is_said_at_once_and_stands_in_the_table() {
    let lab = Lab::new();
    // The prompts are longer than the model's 512 positions.
    let long = "das alte Buch ".repeat(300);
    std::fs::write(lab.path("source.txt"), format!("{long}\n").repeat(3)).unwrap();
    let assert = lab.command().assert().code(1);
    let output = assert.get_output();
    let said = String::from_utf8(output.stderr.clone()).unwrap();
    assert_names(
        &said,
        &["m t batch 2 unified@2 failed: every prompt failed", "512"],
    );
    let printed = String::from_utf8(output.stdout.clone()).unwrap();
    assert_names(&printed, &["unified@2", "every prompt failed"]);
    // The report has it, and the next run tries again.
    let report = stdout(skipbench().arg("report").arg(lab.path("out")));
    assert_names(&report, &["every prompt failed"]);
    assert_eq!(
        lab.column("failure")
            .iter()
            .filter(|f| f.contains("every prompt"))
            .count(),
        2
    );
    std::fs::write(lab.path("source.txt"), SOURCES).unwrap();
    let (printed, _) = lab.run();
    assert!(!printed.contains("failed"), "{printed}");
}

#[test]
fn a_prompt_that_failed_is_tried_again_and_makes_the_exit_code_1() {
    let lab = Lab::new();
    let long = "das alte Buch ".repeat(300);
    std::fs::write(
        lab.path("source.txt"),
        format!("ein Haus\n{long}\nder Hund\n"),
    )
    .unwrap();
    for _ in 0..2 {
        let assert = lab.command().assert().code(1);
        let said = String::from_utf8(assert.get_output().stderr.clone()).unwrap();
        assert_names(&said, &["1 of 3 prompts failed", "512"]);
        assert_eq!(lab.lines("cells.jsonl").len(), 2, "one record per cell");
        assert_eq!(
            lab.lines("samples.jsonl").len(),
            2 * 3,
            "an answer per prompt"
        );
    }
}

#[test]
fn two_runs_do_not_share_a_folder() {
    let lab = Lab::new();
    lab.run();
    let lock = std::fs::File::options()
        .append(true)
        .open(lab.path("out/.lock"))
        .unwrap();
    lock.lock().unwrap();
    let error = refused(&mut lab.command());
    assert_names(&error, &["another skipbench is writing to", "--out"]);
}

#[test]
fn a_metric_can_be_added_later_without_running_anything() {
    let lab = Lab::new();
    lab.run();
    let cells = lab.lines("cells.jsonl");
    let text = std::fs::read_to_string(lab.path("lab.yaml")).unwrap();
    let text = text.replace(
        "max-new-tokens: 6",
        "max-new-tokens: 6, metrics: [ter, bleu]",
    );
    std::fs::write(lab.path("lab.yaml"), text).unwrap();
    lab.run();
    assert_eq!(lab.lines("cells.jsonl"), cells);
    assert!(
        lab.column("ter")
            .iter()
            .all(|score| score.parse::<f64>().is_ok())
    );
}
