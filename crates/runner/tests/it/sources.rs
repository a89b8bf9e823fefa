//! A model by its GGUF file, and by a name of the hub.

use crate::hub_server::{Mood, Server};
use crate::support::{assert_names, checkpoint_copy, refused, repository, skipbench, stdout};
use serde_json::Value;
use std::path::{Path, PathBuf};

fn gguf(name: &str) -> PathBuf {
    repository().join("crates/model/tests/gguf").join(name)
}

fn prompts(dir: &Path) -> PathBuf {
    let path = dir.join("prompts.txt");
    std::fs::write(&path, "the\n(a) b\n").unwrap();
    path
}

#[test]
fn a_gguf_file_generates() {
    let dir = tempfile::tempdir().unwrap();
    let mut command = skipbench();
    command
        .arg("generate")
        .arg("--model")
        .arg(gguf("qwen2.gguf"));
    command.arg("--input").arg(prompts(dir.path()));
    command.args(["--max-new-tokens", "4", "--ignore-eos"]);
    let lines = stdout(&mut command);
    let lines: Vec<Value> = lines
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(lines.len(), 2);
    // The beginning of sequence, `th` and `e`.
    assert_eq!(lines[0]["prompt_tokens"], 3);
    assert_eq!(lines[0]["tokens"].as_array().unwrap().len(), 4);
    assert_eq!(lines[0]["layers"][1], 6);
}

#[test]
fn a_gguf_file_is_a_model_of_an_experiment() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::copy(gguf("qwen2.gguf"), dir.path().join("tiny.gguf")).unwrap();
    prompts(dir.path());
    let experiment = dir.path().join("e.yaml");
    let text = "name: e\nmodels:\n  - path: tiny.gguf\ntasks:\n  - {name: t, source: prompts.txt, reference: prompts.txt, max-new-tokens: 4, metrics: [chrf]}\nstrategies: [top]\nspeedups: [2]\nbatch-sizes: [1]\ntiming: {batches: 0}\n";
    std::fs::write(&experiment, text).unwrap();
    let mut plan = skipbench();
    plan.current_dir(dir.path())
        .args(["plan", "e.yaml", "--json"]);
    let plan: Value = serde_json::from_str(&stdout(&mut plan)).unwrap();
    assert_eq!(plan["cells"][0]["model"], "tiny");
    assert_eq!(plan["downloads"], serde_json::json!([]));
    let mut run = skipbench();
    run.current_dir(dir.path()).args(["run", "e.yaml"]);
    run.assert().success();
    let results = std::fs::read_to_string(dir.path().join("runs/e/results.csv")).unwrap();
    assert!(results.contains("tiny"), "{results}");
}

#[test]
fn layers_are_counted_in_a_gguf_file() {
    let mut command = skipbench();
    command.args(["layers", "--strategy", "top@2", "--json", "--model"]);
    let found: Value = serde_json::from_str(&stdout(command.arg(gguf("qwen2.gguf")))).unwrap();
    assert_eq!(found["n_layers"], 6);
}

#[test]
fn a_name_of_the_hub_is_planned_without_its_weights_and_run_with_them() {
    let dir = tempfile::tempdir().unwrap();
    let model = checkpoint_copy(dir.path());
    let server = Server::of(&model);
    let on_hub = |arguments: &[&str]| {
        let mut command = skipbench();
        command.current_dir(dir.path()).args(arguments);
        command.env("HF_HOME", dir.path().join("hf"));
        command.env("HF_ENDPOINT", &server.address);
        command
            .env_remove("HF_HUB_CACHE")
            .env_remove("HF_HUB_OFFLINE");
        command
    };
    let text = "name: e\nmodels:\n  - path: hub:owner/name\ntasks:\n  - {builtin: translation, prompts: 2, max-new-tokens: 4}\nstrategies: [top]\nspeedups: [2]\nbatch-sizes: [1]\ntiming: {batches: 0}\n";
    std::fs::write(dir.path().join("e.yaml"), text).unwrap();
    let plan = || -> Value {
        serde_json::from_str(&stdout(&mut on_hub(&["plan", "e.yaml", "--json"]))).unwrap()
    };
    let before = plan();
    let bytes = std::fs::metadata(model.join("model.safetensors"))
        .unwrap()
        .len();
    assert_eq!(before["downloads"][0]["model"], "hub:owner/name");
    assert_eq!(before["downloads"][0]["bytes"], bytes);
    assert_eq!(
        before["downloads"][0]["files"][0]["name"],
        "model.safetensors"
    );
    assert_eq!(before["cells"][0]["model"], "name");
    let words = stdout(&mut on_hub(&["plan", "e.yaml"]));
    assert_names(
        &words,
        &[
            "Would download hub:owner/name: 1 file, ",
            "MiB (model.safetensors ",
        ],
    );
    assert_eq!(server.asked_for("model.safetensors "), 0);

    let input = dir.path().join("words.txt");
    std::fs::write(&input, "The report\n").unwrap();
    let generate = |model: &str| {
        stdout(&mut on_hub(&[
            "generate",
            "--input",
            "words.txt",
            "--max-new-tokens",
            "4",
            "--model",
            model,
        ]))
    };
    assert_eq!(generate("hub:owner/name"), generate("checkpoint"));
    let after = plan();
    assert_eq!(after["downloads"], serde_json::json!([]));
    assert_eq!(after["cells"], before["cells"]);
    on_hub(&["run", "e.yaml"]).assert().success();
    server.set(Mood::Status(404));
    assert_names(
        &refused(&mut on_hub(&["plan", "e.yaml"])),
        &["e.yaml:3:5", "hub:owner/name", "no such repository"],
    );
}

#[test]
fn a_model_that_cannot_be_had() {
    let dir = tempfile::tempdir().unwrap();
    let input = prompts(dir.path());
    let generate_from = |endpoint: &str, model: &str| {
        let mut command = skipbench();
        command.env("HF_HOME", dir.path().join("hf"));
        command.env("HF_ENDPOINT", endpoint);
        command.env_remove("HF_HUB_CACHE");
        command.env_remove("HF_HUB_OFFLINE").env_remove("HF_TOKEN");
        command.args(["generate", "--model", model, "--input"]);
        refused(command.arg(&input))
    };
    let generate = |model: &str| generate_from("http://127.0.0.1:9", model);
    for endpoint in ["no address", "ftp://x", "http://"] {
        assert_names(&generate_from(endpoint, "hub:owner/name"), &["HF_ENDPOINT"]);
    }
    for wrong in ["hub:../../x", "hub:/etc/passwd", "hub:x", "hub:a/b@../c"] {
        assert_names(&generate(wrong), &[wrong, "owner/name"]);
    }
    assert_names(
        &generate("hub:owner/name"),
        &[
            "hub:owner/name",
            "http://127.0.0.1:9",
            "HF_ENDPOINT",
            "folder",
        ],
    );
    assert!(!dir.path().join("hf/hub/models--owner--name").exists());
    let cut = dir.path().join("cut.gguf");
    let bytes = std::fs::read(gguf("qwen2.gguf")).unwrap();
    std::fs::write(&cut, &bytes[..bytes.len() / 2]).unwrap();
    assert_names(
        &generate(&cut.display().to_string()),
        &["cut.gguf", "cut off"],
    );
    std::fs::write(&cut, "not a model").unwrap();
    assert_names(&generate(&cut.display().to_string()), &["cut.gguf", "GGUF"]);
}

/// As a whole, and with an adapter that is added to the file.
#[test]
fn a_gguf_file_is_fine_tuned() {
    let dir = tempfile::tempdir().unwrap();
    let model = gguf("qwen2.gguf").canonicalize().unwrap();
    let train = |out: &str, more: &str| {
        let config = format!(
            "out: {out}\nstart-from: {}\ncontext: 60\ntoo-long: cut\n{more}data: [{{task: {{source: words, reference: words}}}}]\ntrain: {{steps: 3, batch-size: 2, optimizer: {{learning-rate: 1.0e-1}}}}\n",
            model.display()
        );
        std::fs::write(dir.path().join("words"), "a b c\nd e f\n").unwrap();
        let path = dir.path().join(format!("{out}.yaml"));
        std::fs::write(&path, config).unwrap();
        skipbench().arg("train").arg(&path).assert().success();
        dir.path().join(out)
    };
    let whole = train("whole", "");
    let adapter = train("adapter", "adapter: {rank: 2, base: stored}\n");
    let answer = |model: &Path, adapter: Option<&Path>| {
        let input = dir.path().join("words");
        let mut command = skipbench();
        command.arg("generate").arg("--model").arg(model);
        if let Some(adapter) = adapter {
            command.arg("--adapter").arg(adapter);
        }
        command.arg("--input").arg(input);
        stdout(command.args(["--max-new-tokens", "6"]))
    };
    let plain = answer(&model, None);
    assert_ne!(answer(&model, Some(&adapter)), plain);
    assert_ne!(answer(&whole, None), plain);
}
