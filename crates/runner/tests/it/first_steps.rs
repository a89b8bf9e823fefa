//! What a new user meets first: `init`, `doctor`, completions and the manual page.

use crate::support::{assert_names, checkpoint, refused, repository, skipbench, stdout};
use serde_json::Value;
use std::path::Path;

fn init(dir: &Path, arguments: &[&str]) -> String {
    stdout(skipbench().current_dir(dir).arg("init").args(arguments))
}

fn runs(dir: &Path, experiment: &str) -> String {
    let mut run = skipbench();
    run.current_dir(dir).args(["run", experiment]);
    run.args([
        "--set",
        "timing.batches=2",
        "--set",
        "tasks.0.prompts=3",
        "--out",
        "out",
    ]);
    run.assert().success();
    std::fs::read_to_string(dir.join("out/results.csv")).unwrap()
}

#[test]
fn the_shipped_model_has_a_first_experiment() {
    let root = repository();
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("first.yaml");
    let said = stdout(
        skipbench()
            .current_dir(&root)
            .arg("init")
            .arg("--out")
            .arg(&out),
    );
    assert_names(&said, &["first.yaml: 9 cells", "skipbench run"]);
    let text = std::fs::read_to_string(&out).unwrap();
    assert_names(
        &text,
        &["# 16 layers", "builtin: translation", "- early-exit  #"],
    );
    let results = runs(dir.path(), "first.yaml");
    assert_eq!(results.lines().count(), 10);
    // It is not overwritten.
    let mut again = skipbench();
    again.current_dir(&root).arg("init").arg("--out").arg(&out);
    assert_names(&refused(&mut again), &["first.yaml is there already"]);
    assert_eq!(std::fs::read_to_string(&out).unwrap(), text);
}

#[test]
fn items_of_a_user_become_a_task_that_runs() {
    let dir = tempfile::tempdir().unwrap();
    let model = checkpoint();
    let model = model.to_str().unwrap();
    let line = |index: usize| {
        format!(
            "{{\"key\": {index}, \"question\": \"The dog {index} sees the cat: what?\", \"answers\": [\"the cat\", \"a cat\"]}}\n"
        )
    };
    let items: String = (0..5).map(line).collect();
    std::fs::write(dir.path().join("my items.jsonl"), items).unwrap();
    init(dir.path(), &["--model", model, "--task", "my items.jsonl"]);
    let text = std::fs::read_to_string(dir.path().join("experiment.yaml")).unwrap();
    assert_names(
        &text,
        &[
            "source: \"my items.jsonl\"",
            "fields: {source: question, reference: answers}",
            "metrics: [rougeL",
            "name: my-items-base\n",
        ],
    );
    assert!(runs(dir.path(), "experiment.yaml").contains("my-items"));
}

#[test]
fn source_texts_need_their_references() {
    let dir = tempfile::tempdir().unwrap();
    let model = checkpoint();
    let model = model.to_str().unwrap();
    std::fs::write(dir.path().join("en.txt"), "the dog\nthe cat\n").unwrap();
    std::fs::write(dir.path().join("de.txt"), "der Hund\ndie Katze\n").unwrap();
    let mut alone = skipbench();
    alone
        .current_dir(dir.path())
        .args(["init", "--model", model, "--task", "en.txt"]);
    assert_names(&refused(&mut alone), &["en.txt", "--reference"]);
    assert!(!dir.path().join("experiment.yaml").exists());
    std::fs::create_dir(dir.path().join("sub")).unwrap();
    let arguments = [
        "--model",
        model,
        "--task",
        "en.txt",
        "--reference",
        "de.txt",
        "--out",
        "sub/e.yaml",
    ];
    init(dir.path(), &arguments);
    assert!(runs(dir.path(), "sub/e.yaml").contains(",en,"));
}

#[test]
fn what_cannot_be_guessed_is_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    let model = checkpoint();
    std::fs::write(
        dir.path().join("t.jsonl"),
        "{\"a\": \"x\", \"b\": \"y\", \"c\": \"z\"}\n",
    )
    .unwrap();
    let mut command = skipbench();
    command
        .current_dir(dir.path())
        .args(["init", "--task", "t.jsonl", "--model"])
        .arg(&model);
    assert_names(
        &refused(&mut command),
        &["which field is the source", "--source-field", "a, b, c"],
    );
    command.args(["--source-field", "a", "--reference-field", "c"]);
    stdout(&mut command);
    let mut elsewhere = skipbench();
    elsewhere
        .current_dir(dir.path())
        .args(["init", "--out", "new.yaml"]);
    assert_names(
        &refused(&mut elsewhere),
        &["there is no model at data/checkpoints/adapted", "--model"],
    );
    let mut nothing = skipbench();
    nothing
        .current_dir(dir.path())
        .args(["init", "--out", "new.yaml", "--model", "nowhere"]);
    assert_names(&refused(&mut nothing), &["nowhere"]);
}

#[test]
fn the_doctor_says_how_small_a_difference_can_be_seen() {
    let root = repository();
    let said = stdout(skipbench().current_dir(&root).arg("doctor"));
    assert_names(
        &said,
        &[
            "processor",
            "instruction set",
            "copy bandwidth",
            "GFLOP/s",
            "timer resolution",
            "frequency governor",
            "load by others",
            "energy counters",
            "Differences in speed below",
        ],
    );
    let json = stdout(skipbench().current_dir(&root).args(["doctor", "--json"]));
    let value: Value = serde_json::from_str(&json).unwrap();
    let noise = &value["noise"];
    let end = |name: &str| (noise[name].as_f64().unwrap() - 1.0).abs();
    assert_eq!(
        noise["smallest_difference"].as_f64().unwrap(),
        end("lo").max(end("hi"))
    );
    assert!(value["checkup"]["copied_bytes_per_s"].as_f64().unwrap() > 1e8);
    assert!(value["checkup"]["flops"].as_f64().unwrap() > 1e8);
    assert!(value["machine"]["threads"].as_u64().unwrap() > 0);
    let findings = value["findings"].as_array().unwrap();
    assert!(
        findings
            .iter()
            .all(|finding| finding["is_good"] == true || finding["advice"].is_string())
    );
}

#[test]
fn without_a_model_the_doctor_says_what_is_missing() {
    let dir = tempfile::tempdir().unwrap();
    let said = stdout(skipbench().current_dir(dir.path()).arg("doctor"));
    assert_names(&said, &["The noise of timing was not measured", "--model"]);
    let mut command = skipbench();
    command
        .args(["doctor", "--device", "cuda", "--model"])
        .arg(checkpoint());
    // A binary with CUDA would run it.
    if cfg!(not(feature = "cuda")) {
        assert_names(&refused(&mut command), &["cuda"]);
    }
}

#[test]
fn shells_complete_and_the_manual_names_every_command() {
    for (shell, mark) in [
        ("bash", "_skipbench()"),
        ("zsh", "#compdef skipbench"),
        ("fish", "complete -c skipbench"),
    ] {
        let script = stdout(skipbench().args(["completions", shell]));
        assert_names(&script, &[mark, "loglikelihood", "max-new-tokens"]);
    }
    assert_names(
        &refused(skipbench().args(["completions", "cmd"])),
        &["bash", "fish"],
    );
    let page = stdout(skipbench().arg("man"));
    assert_names(
        &page,
        &[
            ".TH skipbench",
            "SKIPBENCH LOGLIKELIHOOD",
            "SKIPBENCH DOCTOR",
        ],
    );
}
