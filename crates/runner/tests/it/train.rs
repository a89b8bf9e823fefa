//! `skipbench train`.

use crate::support::{assert_names, checkpoint_copy, refused, skipbench, stdout};
use std::path::{Path, PathBuf};

fn config(dir: &Path, more: &str) -> PathBuf {
    let path = dir.join("train.yaml");
    let text = format!(
        "out: model\nshape: {{vocab-size: 300, d-model: 16, n-layers: 4, n-heads: 2, n-kv-heads: 1, d-ff: 32, max-positions: 256}}\ndata: [{{builtin: translation}}]\ntrain: {{steps: 4, batch-size: 2, checkpoint-every: 2, optimizer: {{learning-rate: 1.0e-3}}}}\n{more}"
    );
    std::fs::write(&path, text).unwrap();
    path
}

#[test]
fn a_trained_folder_is_an_ordinary_checkpoint() {
    let dir = tempfile::tempdir().unwrap();
    let config = config(dir.path(), "");
    skipbench().arg("train").arg(&config).assert().success();
    let model = dir.path().join("model");
    for name in [
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "training/loss.svg",
        "training/loss.png",
    ] {
        assert!(model.join(name).is_file(), "{name}");
    }
    assert_eq!(
        std::fs::read_to_string(model.join("training/loss.csv"))
            .unwrap()
            .lines()
            .count(),
        5
    );
    let input = dir.path().join("prompts.txt");
    std::fs::write(&input, "the dog\n").unwrap();
    let text = stdout(
        skipbench()
            .arg("generate")
            .arg("--model")
            .arg(&model)
            .arg("--input")
            .arg(&input)
            .args(["--max-new-tokens", "3", "--strategy", "unified@2"]),
    );
    assert_names(&text, &["\"tokens\"", "\"layers\""]);
}

#[test]
fn fine_tuning_draws_depths_and_keeps_the_tokenizer() {
    let dir = tempfile::tempdir().unwrap();
    skipbench()
        .arg("train")
        .arg(config(dir.path(), ""))
        .assert()
        .success();
    let path = dir.path().join("tune.yaml");
    std::fs::write(
        &path,
        "out: tuned\nstart-from: model\ndata: [{builtin: summarization}]\ndepths: {strategies: [unified, top, early-exit], speedups: [1.5, 2]}\ntrain: {steps: 3, batch-size: 2, optimizer: {learning-rate: 1.0e-3}}\n",
    )
    .unwrap();
    skipbench().arg("train").arg(&path).assert().success();
    let read = |name: &str| std::fs::read(dir.path().join(name)).unwrap();
    assert_eq!(read("model/tokenizer.json"), read("tuned/tokenizer.json"));
    assert_ne!(
        read("model/model.safetensors"),
        read("tuned/model.safetensors")
    );
}

#[test]
fn a_config_that_cannot_work_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let depths = "depths: {strategies: [unified], speedups: [9]}\n";
    let text = refused(skipbench().arg("train").arg(config(dir.path(), depths)));
    assert_names(&text, &["unified@9", "2"]);
    let text = refused(
        skipbench()
            .arg("train")
            .arg(config(dir.path(), "depth: 3\n")),
    );
    assert_names(&text, &["train.yaml", "depth", "did you mean `depths`?"]);
    assert!(!dir.path().join("model/model.safetensors").exists());
}

#[test]
fn a_checkpoint_that_the_trainer_would_misread_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let model = checkpoint_copy(dir.path());
    let path = model.join("config.json");
    let text = std::fs::read_to_string(&path).unwrap().replace(
        "\"rope_theta\": 10000.0",
        "\"rope_theta\": 10000.0, \"rope_scaling\": {\"rope_type\": \"linear\", \"factor\": 2.0}",
    );
    std::fs::write(&path, text).unwrap();
    let tune = dir.path().join("tune.yaml");
    std::fs::write(
        &tune,
        format!(
            "out: tuned\nstart-from: {model:?}\ndata: [{{builtin: translation}}]\ntrain: {{steps: 1, batch-size: 2, optimizer: {{learning-rate: 1.0e-3}}}}\n"
        ),
    )
    .unwrap();
    let text = refused(skipbench().arg("train").arg(&tune));
    assert_names(&text, &["config.json", "RoPE scaling"]);
}
