//! The ready task files against lm-eval's own score of the same items and model: `scripts/fixtures/make_task_goldens.py`.

use crate::support::{checkpoint, csv_rows, skipbench};
use serde_json::Value;
use skipbench_metrics::{Hypotheses, Metric, References, evaluate};
use std::collections::HashMap;
use std::fmt::Write;
use std::path::{Path, PathBuf};

fn folder(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

fn goldens() -> Value {
    let text = std::fs::read_to_string(folder("tests/fixtures/tasks/goldens.json")).unwrap();
    serde_json::from_str(&text).unwrap()
}

fn ready(task: &str) -> PathBuf {
    let path = folder("../../experiments/tasks").join(format!("{task}.yaml"));
    path.canonicalize().unwrap()
}

fn items(task: &str) -> PathBuf {
    let path = folder("tests/fixtures/tasks").join(format!("{task}.jsonl"));
    path.canonicalize().unwrap()
}

/// The shipped checkpoint with as many positions as lm-eval was given.
fn stretched(to: &Path, positions: &Value) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(checkpoint()).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
    }
    let path = to.join("config.json");
    let mut config: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    config["max_position_embeddings"] = positions.clone();
    std::fs::write(&path, config.to_string()).unwrap();
}

/// Lines of a file by a key of theirs.
fn by(path: &Path, key: &str) -> HashMap<String, Vec<Value>> {
    let mut found: HashMap<String, Vec<Value>> = HashMap::new();
    for line in std::fs::read_to_string(path).unwrap().lines() {
        let line: Value = serde_json::from_str(line).unwrap();
        let key = line[key].as_str().unwrap().to_owned();
        found.entry(key).or_default().push(line);
    }
    found
}

#[test]
fn ready_tasks_ask_and_score_what_lm_eval_does() {
    let goldens = goldens();
    let tasks = goldens["tasks"].as_object().unwrap();
    assert_eq!(tasks.len(), 14);
    let dir = tempfile::tempdir().unwrap();
    stretched(&dir.path().join("model"), &goldens["positions"]);
    let mut text = "name: tasks\nmodels: [{name: m, path: model}]\nstrategies: [full]\ntiming: {batches: 0}\nbatch-sizes: [2]\ntasks:\n".to_owned();
    for task in tasks.keys() {
        let data = match task.as_str() {
            "mmlu-5-shot" => "mmlu",
            task => task,
        };
        write!(
            text,
            "  - {{extends: {:?}, source: {:?}, max-new-tokens: {}",
            ready(task),
            items(data),
            goldens["max_tokens"]
        )
        .unwrap();
        match task.as_str() {
            "wmt22-de-en" => {
                text.push_str(", fields: {source: translation.de, reference: translation.en}");
            }
            "gsm8k" => {
                let from = items("gsm8k.train");
                write!(text, ", few-shot: {{from: {from:?}, draw: first}}").unwrap();
            }
            "mmlu-5-shot" => {
                write!(text, ", few-shot: {{from: {:?}}}", items("mmlu.dev")).unwrap();
            }
            _ => {}
        }
        text.push_str("}\n");
    }
    let experiment = dir.path().join("tasks.yaml");
    std::fs::write(&experiment, text).unwrap();
    let out = dir.path().join("out");
    skipbench()
        .arg("run")
        .arg(&experiment)
        .arg("--out")
        .arg(&out)
        .assert()
        .success();

    let records = by(&out.join("cells.jsonl"), "id");
    let answers = by(&out.join("samples.jsonl"), "cell");
    let prompts = by(&out.join("prompts.jsonl"), "task");
    let rows = csv_rows(&out.join("results.csv"));
    for (cell, record) in &records {
        let task = &record[0]["task"];
        let name = task["name"].as_str().unwrap();
        let golden = &goldens["tasks"][name];
        let all = golden["items"].as_array().unwrap();
        let answers = &answers[cell];
        let prompts = &prompts[task["texts"].as_str().unwrap()];
        // lm-eval has a sample for each filter.
        let count = answers.len();
        assert_eq!(all.len() % count, 0, "{name}");
        for (index, item) in all.iter().enumerate() {
            let (prompt, answer) = (&prompts[index % count], &answers[index % count]);
            let place = format!("{name} {index}");
            if let Some(logprob) = item["logprob"].as_f64() {
                assert_eq!(prompt["prompt"], item["text"], "{place}");
                near(&answer["evidence"]["text"]["logprob"], logprob, &place);
            } else if let Some(logprobs) = item["logprobs"].as_array() {
                assert_eq!(prompt["prompt"], item["contexts"][0], "{place}");
                let choices = answer["evidence"]["choices"].as_array().unwrap();
                assert_eq!(choices.len(), logprobs.len(), "{place}");
                for (choice, logprob) in choices.iter().zip(logprobs) {
                    near(&choice["logprob"], logprob.as_f64().unwrap(), &place);
                }
            } else {
                assert_eq!(prompt["prompt"], item["prompt"], "{place}");
                assert_eq!(
                    answer["text"],
                    item["text"].as_str().unwrap().trim(),
                    "{place}"
                );
            }
        }
        let row = rows.iter().find(|row| row["task"] == name).unwrap();
        let mut compared = 0;
        for (key, expected) in golden["results"].as_object().unwrap() {
            let column = match key.as_str() {
                "acc,none" => "acc",
                "acc_norm,none" => "acc-norm",
                "exact_match,strict-match" => "strict-match",
                "exact_match,flexible-extract" => "flexible-extract",
                "word_perplexity,none" => "word-perplexity",
                "byte_perplexity,none" => "byte-perplexity",
                "bits_per_byte,none" => "bits-per-byte",
                // Of answers as they are, with the space that they begin with.
                "bleu,none" | "chrf,none" | "ter,none" => continue,
                other => panic!("{other}"),
            };
            let found: f64 = row[column].parse().unwrap();
            let expected = expected.as_f64().unwrap();
            assert!(
                (found - expected).abs() <= 1e-3 * expected.abs(),
                "{name} {key}: {found} {expected}"
            );
            compared += 1;
        }
        let is_generated = ["wmt22-de-en", "xsum", "cnn-dailymail", "dialogsum"].contains(&name);
        assert_eq!(compared == 0, is_generated, "{name}");
    }
    assert_eq!(records.len(), tasks.len());
}

/// Sums over some dozens of tokens.
fn near(found: &Value, expected: f64, place: &str) {
    let found = found.as_f64().unwrap();
    assert!(
        (found - expected).abs() < 3e-3,
        "{place}: {found} {expected}"
    );
}

#[test]
fn every_ready_task_file_is_read() {
    let all = std::fs::read_dir(folder("../../experiments/tasks")).unwrap();
    let mut names: Vec<String> = all
        .map(|entry| {
            entry
                .unwrap()
                .path()
                .file_stem()
                .unwrap()
                .to_string_lossy()
                .into_owned()
        })
        .collect();
    names.sort();
    let tested = goldens()["tasks"].as_object().unwrap().clone();
    let untested = ["humaneval", "wmt22-en-de"];
    for name in &names {
        assert!(
            tested.contains_key(name) || untested.contains(&name.as_str()),
            "{name}"
        );
    }
    assert_eq!(names.len(), tested.len() + untested.len());
}

#[test]
fn numbers_are_extracted_and_compared_as_lm_eval_does() {
    let text = std::fs::read_to_string(ready("gsm8k")).unwrap();
    let task: Value = skipbench::experiment::parse_yaml(&text, Path::new("gsm8k.yaml")).unwrap();
    let metrics: Vec<Metric> = serde_json::from_value(task["metrics"].clone()).unwrap();
    assert_eq!(metrics.len(), 2);
    let mut right = 0;
    for line in goldens()["extraction"].as_array().unwrap() {
        let hypotheses = Hypotheses::new([line["text"].as_str().unwrap()]);
        let references = References::single([line["right"].as_str().unwrap()]).unwrap();
        for metric in &metrics {
            let score = evaluate(metric, &hypotheses, &references).unwrap().score();
            assert_eq!(
                score,
                line[metric.to_string()].as_f64().unwrap(),
                "{metric}: {line}"
            );
            right += usize::from(score == 1.0);
        }
    }
    assert!(right > 10);
}
