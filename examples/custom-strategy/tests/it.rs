//! The example has every command, and its strategy a place in each.
#![allow(clippy::unwrap_used)]

use assert_cmd::Command;
use std::path::PathBuf;

fn checkpoint() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../data/checkpoints/base")
}

fn command() -> Command {
    Command::cargo_bin("custom-strategy").unwrap()
}

fn stdout(command: &mut Command) -> String {
    let output = command.assert().success().get_output().stdout.clone();
    String::from_utf8(output).unwrap()
}

#[test]
fn layers_draws_it() {
    let text = stdout(command().args([
        "layers",
        "--strategy",
        "rotating: {speedup: 2, stride: 2}",
        "--n-layers",
        "8",
        "--max-new-tokens",
        "4",
    ]));
    assert!(text.contains("■■■····■"), "{text}");
    assert!(text.contains("■··■■··■"), "{text}");
    assert!(text.contains("■····■■■"), "{text}");
    let listed = stdout(command().args(["layers", "--list"]));
    assert!(listed.contains("rotating: both ends"), "{listed}");
}

#[test]
fn generate_fills_its_holes() {
    let dir = tempfile::tempdir().unwrap();
    let input = dir.path().join("prompts.jsonl");
    std::fs::write(
        &input,
        stdout(command().args(["data", "translation", "-n", "3"])),
    )
    .unwrap();
    for variant in ["propagate", "copy", "mask"] {
        let audit = dir.path().join("audit.json");
        let text = stdout(
            command()
                .arg("generate")
                .arg("--model")
                .arg(checkpoint())
                .arg("--input")
                .arg(&input)
                .arg("--audit")
                .arg(&audit)
                .args([
                    "--strategy",
                    &format!("rotating:{variant}@2"),
                    "--batch-size",
                    "2",
                ]),
        );
        for line in text.lines() {
            let line: serde_json::Value = serde_json::from_str(line).unwrap();
            let layers = line["layers"].as_array().unwrap();
            assert!(layers[1..].iter().all(|layers| *layers == 8), "{line}");
        }
        let audit: serde_json::Value =
            serde_json::from_str(&std::fs::read_to_string(&audit).unwrap()).unwrap();
        let key = if variant == "mask" {
            "masked_reads"
        } else {
            "approximate_reads"
        };
        assert!(audit[key].as_u64().unwrap() > 0, "{variant}: {audit}");
    }
}

#[test]
fn run_puts_it_beside_the_others() {
    let dir = tempfile::tempdir().unwrap();
    let experiment = dir.path().join("e.yaml");
    let text = format!(
        "name: mine\nmodels: [{{path: {:?}}}]\ntasks: [{{builtin: translation, prompts: 3}}]\nstrategies: [unified, rotating, \"rotating:mask\"]\nspeedups: [2, 4]\ntiming: {{batches: 0}}\n",
        checkpoint().canonicalize().unwrap()
    );
    std::fs::write(&experiment, text).unwrap();
    let out = dir.path().join("out");
    let table = stdout(command().arg("run").arg(&experiment).arg("--out").arg(&out));
    for label in ["full", "unified@2", "rotating@2", "rotating:mask@4"] {
        assert!(table.contains(label), "{table}");
    }
}

/// The gate of `docs/gate.md`, without times: the policy against itself, and against a version that forgets the last layer.
#[test]
fn the_gate_catches_a_worse_version() {
    let dir = tempfile::tempdir().unwrap();
    let experiment = dir.path().join("gate.yaml");
    let adapted = checkpoint().with_file_name("adapted");
    let text = format!(
        "name: gate\nmodels: [{{path: {:?}}}]\ntasks: [{{builtin: translation, prompts: 128}}]\nstrategies: [rotating: {{stride: 4}}]\nspeedups: [2]\ntiming: {{batches: 0}}\n",
        adapted.canonicalize().unwrap()
    );
    std::fs::write(&experiment, text).unwrap();
    let run = |name: &str, worse: bool| {
        let mut command = command();
        if worse {
            command.env("ROTATING_BUG", "1");
        }
        let out = dir.path().join(name);
        command.arg("run").arg(&experiment).arg("--out").arg(&out);
        command.assert().success();
        out
    };
    let (baseline, again, worse) = (run("old", false), run("again", false), run("new", true));
    let compare = |new: &PathBuf| {
        let mut command = command();
        command.arg("compare").arg(&baseline).arg(new);
        command
    };
    let same = stdout(&mut compare(&again));
    assert!(same.contains("nothing worse, 2 same"), "{same}");
    let caught = compare(&worse).assert().code(1).get_output().stdout.clone();
    let caught = String::from_utf8(caught).unwrap();
    assert!(caught.contains("1 worse, 1 same"), "{caught}");
}

#[test]
fn its_mistakes_are_refused() {
    let error = |strategy: &str| {
        let assert = command()
            .args(["layers", "--n-layers", "8", "--strategy", strategy])
            .assert()
            .code(2);
        String::from_utf8(assert.get_output().stderr.clone()).unwrap()
    };
    assert!(error("rotating@9").contains("largest possible speedup for 8 layers is 4"));
    assert!(error("rotating: {speedup: 2, strid: 3}").contains("unknown key `strid`"));
    assert!(error("rotatin@2").contains("did you mean `rotating`?"));
    assert!(error("rotating:cpy@2").contains("did you mean `copy`?"));
}
