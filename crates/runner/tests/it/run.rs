//! `skipbench plan` and `run`.

use crate::support::{assert_names, checkpoint, csv_rows, skipbench, stdout};
use assert_cmd::Command;
use serde_json::Value;
use std::path::{Path, PathBuf};

/// A small experiment in a folder with a space in its name.
fn experiment(dir: &Path, more: &str) -> PathBuf {
    let dir = dir.join("an experiment");
    std::fs::create_dir_all(&dir).unwrap();
    let path = dir.join("small.yaml");
    let text = format!(
        "name: small\nmodels: [{{name: base, path: {:?}}}]\ntasks: [{{builtin: translation, prompts: 3}}, {{builtin: summarization, prompts: 2}}]\nstrategies: [unified, top]\nspeedups: [2, 4]\nbatch-sizes: [1, 2]\ntiming: {{batches: 2, repeats: 1, warm-up: 1, new-tokens: 3}}\n{more}",
        checkpoint().canonicalize().unwrap()
    );
    std::fs::write(&path, text).unwrap();
    path
}

/// A command on an experiment, with its results in `out`.
fn command(name: &str, experiment: &Path, out: &Path) -> Command {
    let mut command = skipbench();
    command.arg(name).arg(experiment).arg("--out").arg(out);
    command
}

fn run(experiment: &Path, out: &Path) -> String {
    stdout(&mut command("run", experiment, out))
}

fn lines(path: &Path) -> Vec<String> {
    std::fs::read_to_string(path)
        .unwrap()
        .lines()
        .map(str::to_owned)
        .collect()
}

#[test]
fn a_plan_lists_every_cell_and_runs_none() {
    let dir = tempfile::tempdir().unwrap();
    let experiment = experiment(dir.path(), "");
    let text = stdout(
        skipbench()
            .current_dir(dir.path())
            .arg("plan")
            .arg(&experiment)
            .arg("--json"),
    );
    let plan: Value = serde_json::from_str(&text).unwrap();
    let cells: Vec<String> = plan["cells"]
        .as_array()
        .unwrap()
        .iter()
        .map(|cell| {
            format!(
                "{} batch {} {}",
                cell["task"].as_str().unwrap(),
                cell["batch_size"],
                cell["strategy"].as_str().unwrap()
            )
        })
        .collect();
    insta::assert_snapshot!(cells.join("\n"));
    assert!(!dir.path().join("runs").exists());
}

#[test]
fn a_run_leaves_what_a_paper_needs() {
    let dir = tempfile::tempdir().unwrap();
    let experiment = experiment(dir.path(), "notes: [read this]\n");
    let out = dir.path().join("out folder");
    let printed = run(&experiment, &out);
    assert_names(
        &printed,
        &[
            "translation, batch 1, base",
            "unified@2",
            "top@4",
            "Note: read this",
            "report.html",
        ],
    );
    let csv = lines(&out.join("results.csv"));
    insta::assert_snapshot!(csv[0].replace(',', "\n"));
    assert_eq!(csv.len(), 1 + 2 * 2 * 5, "a row per cell");
    let samples = lines(&out.join("samples.jsonl"));
    assert_eq!(samples.len(), 2 * 5 * (3 + 2), "a line per prompt and cell");
    let run_json: Value =
        serde_json::from_str(&std::fs::read_to_string(out.join("run.json")).unwrap()).unwrap();
    assert_names(
        &run_json.to_string(),
        &["\"device\"", "\"weights\"", "\"seed\"", "\"versions\""],
    );
    for plot in [
        "quality-base-translation-b1",
        "achieved-base-summarization-b2",
        "throughput-base-translation",
    ] {
        for extension in ["svg", "png"] {
            let path = out.join("plots").join(plot).with_extension(extension);
            assert!(path.metadata().unwrap().len() > 1000, "{}", path.display());
        }
    }
    let html = std::fs::read_to_string(out.join("report.html")).unwrap();
    assert_names(&html, &["<svg", "unified@2", "read this"]);
    assert!(!html.contains("src=\"http"), "self-contained");
    assert!(
        std::fs::read_to_string(out.join("table.md"))
            .unwrap()
            .contains("| unified@2 |")
    );
    assert!(out.join("results.parquet").metadata().unwrap().len() > 1000);
}

#[test]
fn a_run_that_was_cut_off_goes_on_where_it_stopped() {
    let dir = tempfile::tempdir().unwrap();
    let experiment = experiment(dir.path(), "");
    let out = dir.path().join("out");
    run(&experiment, &out);
    let cells = lines(&out.join("cells.jsonl"));
    // As a kill leaves it: seven cells whole, the eighth torn, and answers of a cell that has no record.
    let torn = cells[..7].join("\n") + "\n" + &cells[7][..cells[7].len() / 2];
    std::fs::write(out.join("cells.jsonl"), torn).unwrap();
    run(&experiment, &out);
    let again = lines(&out.join("cells.jsonl"));
    assert_eq!(again.len(), cells.len());
    assert_eq!(
        again[..7],
        cells[..7],
        "finished cells are kept as they were"
    );
    assert_eq!(lines(&out.join("results.csv")).len(), cells.len() + 1);
    let untouched = std::fs::read(out.join("cells.jsonl")).unwrap();
    run(&experiment, &out);
    assert_eq!(
        std::fs::read(out.join("cells.jsonl")).unwrap(),
        untouched,
        "nothing runs twice"
    );
}

#[test]
fn answers_do_not_depend_on_the_batch() {
    let dir = tempfile::tempdir().unwrap();
    let experiment = experiment(dir.path(), "");
    let out = dir.path().join("out");
    run(&experiment, &out);
    let rows = csv_rows(&out.join("results.csv"));
    let scores = [
        "task",
        "label",
        "bleu",
        "bleu_lo",
        "chrf",
        "rougeL",
        "layers_per_token",
    ];
    let of_batch = |size: &str| -> Vec<Vec<&str>> {
        let rows = rows.iter().filter(|row| row["batch_size"] == size);
        rows.map(|row| scores.map(|name| row[name].as_str()).to_vec())
            .collect()
    };
    assert_eq!(of_batch("1").len(), 10);
    assert_eq!(of_batch("1"), of_batch("2"));
}

/// Tables are printed as soon as they are complete, each once.
#[test]
fn every_table_is_printed_once() {
    let dir = tempfile::tempdir().unwrap();
    let experiment = experiment(dir.path(), "");
    let out = dir.path().join("out");
    let titles = [
        "translation, batch 1, base",
        "translation, batch 2, base",
        "summarization, batch 1, base",
        "summarization, batch 2, base",
    ];
    let once = |printed: &str| {
        for title in titles {
            assert_eq!(printed.matches(title).count(), 1, "{title} in:\n{printed}");
        }
        assert_eq!(printed.matches("layers/token: ").count(), 1);
    };
    once(&run(&experiment, &out));
    let cells = lines(&out.join("cells.jsonl"));
    std::fs::write(out.join("cells.jsonl"), cells[..7].join("\n") + "\n").unwrap();
    once(&run(&experiment, &out));
    once(&run(&experiment, &out));
}

/// Jobs that each run a share of the cells leave folders that are drawn as one run.
#[test]
fn shards_make_one_report() {
    let dir = tempfile::tempdir().unwrap();
    let experiment = experiment(dir.path(), "");
    let whole = dir.path().join("whole");
    run(&experiment, &whole);
    let mut report = skipbench();
    report.arg("report");
    for index in 1..=3 {
        let out = dir.path().join(format!("shard {index}"));
        stdout(
            command("run", &experiment, &out)
                .arg("--shard")
                .arg(format!("{index}/3")),
        );
        report.arg(&out);
    }
    let joined = dir.path().join("joined");
    stdout(report.arg("--out").arg(&joined));
    let names = [
        "task",
        "batch_size",
        "label",
        "bleu",
        "bleu_p",
        "rougeL",
        "same_as_full",
    ];
    let scores = |out: &Path| -> Vec<Vec<String>> {
        let rows = csv_rows(&out.join("results.csv")).into_iter();
        rows.map(|row| names.map(|name| row[name].clone()).to_vec())
            .collect()
    };
    assert_eq!(scores(&joined), scores(&whole));
}

#[test]
fn a_prompt_that_does_not_fit_counts_as_a_failure_and_its_neighbours_do_not() {
    let dir = tempfile::tempdir().unwrap();
    let long = "the teacher sees the house ".repeat(200);
    std::fs::write(
        dir.path().join("source"),
        format!("a house\n{long}\nthe dog\n"),
    )
    .unwrap();
    std::fs::write(dir.path().join("reference"), "ein Haus\nlang\nder Hund\n").unwrap();
    let path = dir.path().join("e.yaml");
    std::fs::write(
        &path,
        format!(
            "name: long\nmodels: [{{path: {:?}}}]\ntasks: [{{name: mixed, source: source, reference: reference}}]\nstrategies: [full]\nbatch-sizes: [3]\ntiming: {{batches: 1, repeats: 1, new-tokens: 2}}\n",
            checkpoint().canonicalize().unwrap()
        ),
    )
    .unwrap();
    let out = dir.path().join("out");
    let assert = command("run", &path, &out).assert().code(1);
    let printed = String::from_utf8(assert.get_output().stdout.clone()).unwrap();
    assert_names(&printed, &["1 of 3 prompts failed", "512"]);
    let failed: Vec<bool> = lines(&out.join("samples.jsonl"))
        .iter()
        .map(|line| {
            serde_json::from_str::<Value>(line)
                .unwrap()
                .get("error")
                .is_some()
        })
        .collect();
    assert_eq!(failed, [false, true, false]);
}
