//! `skipbench train`.

use crate::support::{
    assert_names, checkpoint, checkpoint_copy, refused, repository, skipbench, stdout,
};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// A clock that has run out after any step: each call trains one.
pub(crate) const ONE_STEP: &str = "--minutes=1e-9";

pub(crate) fn config(dir: &Path, more: &str) -> PathBuf {
    write(
        dir,
        "train.yaml",
        &format!(
            "out: model\nshape: {{vocab-size: 300, d-model: 16, n-layers: 4, n-heads: 2, n-kv-heads: 1, d-ff: 32, max-positions: 256}}\ndata: [{{builtin: translation}}]\ntrain: {{steps: 4, batch-size: 2, checkpoint-every: 2, optimizer: {{learning-rate: 1.0e-3}}}}\n{more}"
        ),
    )
}

/// Fine-tunes the folder `model` to `out`.
pub(crate) fn tuning(dir: &Path, out: &str, more: &str) -> PathBuf {
    write(
        dir,
        &format!("{out}.yaml"),
        &format!(
            "out: {out}\nstart-from: model\ndata: [{{builtin: summarization}}]\ntrain: {{steps: 3, batch-size: 2, optimizer: {{learning-rate: 1.0e-3, weight-decay: 0.1}}}}\n{more}"
        ),
    )
}

pub(crate) fn write(dir: &Path, name: &str, text: &str) -> PathBuf {
    let path = dir.join(name);
    std::fs::write(&path, text).unwrap();
    path
}

/// Standard error of a training that succeeds and prints nothing else.
pub(crate) fn train(config: &Path, options: &[&str]) -> String {
    let assert = skipbench()
        .arg("train")
        .arg(config)
        .args(options)
        .assert()
        .success();
    let output = assert.get_output();
    assert_eq!(String::from_utf8_lossy(&output.stdout), "");
    String::from_utf8(output.stderr.clone()).unwrap()
}

/// Names and contents of the files of a folder.
pub(crate) fn files(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    let entries = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap());
    entries
        .filter(|entry| entry.path().is_file())
        .map(|entry| {
            let name = entry.file_name().into_string().unwrap();
            (name, std::fs::read(entry.path()).unwrap())
        })
        .collect()
}

/// Tensors of a folder by name.
pub(crate) fn weights(dir: &Path) -> BTreeMap<String, Vec<f32>> {
    let cpu = candle_core::Device::Cpu;
    candle_core::safetensors::load(dir.join("model.safetensors"), &cpu)
        .unwrap()
        .into_iter()
        .map(|(name, tensor)| (name, tensor.flatten_all().unwrap().to_vec1().unwrap()))
        .collect()
}

/// A column of the log.
pub(crate) fn logged(model: &Path, column: &str) -> Vec<f64> {
    let text = std::fs::read_to_string(model.join("training/loss.csv")).unwrap();
    let mut lines = text.lines().map(|line| line.split(',').collect::<Vec<_>>());
    let header = lines.next().unwrap();
    let at = header.iter().position(|name| *name == column).unwrap();
    lines.map(|line| line[at].parse().unwrap()).collect()
}

#[test]
fn a_trained_folder_is_an_ordinary_checkpoint() {
    let dir = tempfile::tempdir().unwrap();
    let text = train(&config(dir.path(), ""), &[]);
    let model = dir.path().join("model");
    assert_names(
        &text,
        &[
            "training",
            "4 steps of 2 pairs",
            "checkpoint at step 2 of 4: loss",
            "finished all 4 steps",
        ],
    );
    let names: Vec<String> = files(&model).into_keys().collect();
    assert_eq!(
        names,
        [
            "config.json",
            "generation_config.json",
            "model.safetensors",
            "tokenizer.json",
            "tokenizer_config.json",
        ]
    );
    let names: Vec<String> = files(&model.join("training")).into_keys().collect();
    assert_eq!(
        names,
        [
            ".lock",
            "finished.json",
            "loss.csv",
            "loss.png",
            "loss.svg",
            "tokenizer.json",
        ]
    );
    assert_eq!(logged(&model, "step"), [1.0, 2.0, 3.0, 4.0]);
    let input = write(dir.path(), "prompts.txt", "the dog\n");
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
fn a_tiny_model_learns_its_task() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), "source", "one\ntwo\nthree\nfour\n");
    write(dir.path(), "reference", "1 1 1\n2 2 2\n3 3 3\n4 4 4\n");
    let path = write(
        dir.path(),
        "train.yaml",
        "out: model\nshape: {vocab-size: 300, d-model: 32, n-layers: 2, n-heads: 2, n-kv-heads: 1, d-ff: 64, max-positions: 64}\ndata: [{source: source, reference: reference, prompt: \"{{ source }} is\"}]\ntrain: {steps: 150, batch-size: 4, optimizer: {learning-rate: 1.0e-2, warm-up-steps: 10}}\n",
    );
    train(&path, &[]);
    let loss = logged(&dir.path().join("model"), "loss");
    let last = loss[140..].iter().sum::<f64>() / 10.0;
    assert!(loss[0] > 4.0 && last < 0.1, "{} to {last}", loss[0]);
    let input = write(dir.path(), "prompts.jsonl", "{\"prompt\": \"three is\"}\n");
    let text = stdout(
        skipbench()
            .arg("generate")
            .arg("--model")
            .arg(dir.path().join("model"))
            .arg("--input")
            .arg(&input)
            .args(["--max-new-tokens", "8"]),
    );
    assert_names(&text, &["3 3 3"]);
}

#[test]
fn a_run_in_pieces_ends_with_the_bytes_of_one_in_a_piece() {
    let folders = [(); 2].map(|()| tempfile::tempdir().unwrap());
    let [whole, pieces] = folders.each_ref().map(|dir| {
        train(&config(dir.path(), ""), &[]);
        let depths = "depths: {strategies: [top, skip-decode, early-exit, adaskip], speedups: [1.5, 2], full-percent: 10}\n";
        tuning(dir.path(), "tuned", depths)
    });
    train(&whole, &[]);
    let model = pieces.with_file_name("tuned");
    for step in 1..3 {
        let text = train(&pieces, &[ONE_STEP]);
        assert_names(
            &text,
            &[
                &format!("stopped at step {step} of 3"),
                "the same command goes on",
                "behind the last step",
            ],
        );
        assert!(files(&model).is_empty(), "an unfinished checkpoint");
    }
    let text = train(&pieces, &[ONE_STEP]);
    assert_names(&text, &["goes on at step 2 of 3", "finished all 3 steps"]);
    assert!(files(&model) == files(&whole.with_file_name("tuned")));
    assert_eq!(logged(&model, "step"), [1.0, 2.0, 3.0]);
}

/// A step depends on nothing but its number: the draws, the exits that have a loss, the passes beside it.
/// The shipped checkpoint was once replaced by one of a few steps, without a word.
#[test]
fn a_finished_checkpoint_is_replaced_only_when_forced_and_only_by_a_finished_one() {
    let dir = tempfile::tempdir().unwrap();
    let shipped = checkpoint_copy(dir.path());
    let before = files(&shipped);
    let text = std::fs::read_to_string(repository().join("experiments/train/adapted.yaml"))
        .unwrap()
        .replace("../../data/checkpoints/adapted", "checkpoint")
        .replace(
            "../../data/checkpoints/base",
            checkpoint().to_str().unwrap(),
        )
        .replace("steps: 800", "steps: 2")
        .replace("warm-up-steps: 40", "warm-up-steps: 1")
        .replace("batch-size: 64", "batch-size: 1");
    let path = write(dir.path(), "adapted.yaml", &text);

    let text = refused(skipbench().arg("train").arg(&path).arg("--minutes=0.1"));
    assert_names(&text, &["checkpoint", "did not make", "--force"]);
    assert!(files(&shipped) == before);
    assert!(!shipped.join("training").exists());

    let text = train(&path, &["--force", ONE_STEP]);
    assert_names(
        &text,
        &["stays until it has ended", "stopped at step 1 of 2"],
    );
    assert!(files(&shipped) == before);

    let text = train(&path, &["--force"]);
    assert_names(&text, &["goes on at step 1 of 2", "finished all 2 steps"]);
    let after = files(&shipped);
    assert!(after["model.safetensors"] != before["model.safetensors"]);
    assert!(after["tokenizer.json"] == before["tokenizer.json"]);

    let text = train(&path, &[]);
    assert_names(&text, &["nothing to do", "--force trains anew"]);
    assert!(files(&shipped) == after);
    let text = train(&path, &["--force"]);
    assert_names(&text, &["2 steps of 1 pairs", "finished"]);
    assert!(
        files(&shipped) == after,
        "the same run gives the same bytes"
    );

    let other = std::fs::read_to_string(&path)
        .unwrap()
        .replace("seed: 2", "seed: 3");
    let other = write(dir.path(), "other.yaml", &other);
    let text = refused(skipbench().arg("train").arg(&other));
    assert_names(&text, &["`train.seed` was 2 and is 3", "--force"]);
    assert!(files(&shipped) == after);
}

#[test]
fn a_folder_is_trained_by_one_process_with_one_config() {
    let dir = tempfile::tempdir().unwrap();
    let path = config(dir.path(), "");
    train(&path, &[ONE_STEP]);
    let work = dir.path().join("model/training");
    let before = files(&work);

    let lock = std::fs::File::options()
        .append(true)
        .open(work.join(".lock"))
        .unwrap();
    lock.lock().unwrap();
    let text = refused(skipbench().arg("train").arg(&path));
    assert_names(&text, &["another process", "model"]);
    drop(lock);

    let other = config(dir.path(), "depths: {strategies: [top], speedups: [2]}\n");
    let text = refused(skipbench().arg("train").arg(&other));
    assert_names(
        &text,
        &[
            "checkpoint.safetensors",
            "`depths` was null",
            "another output folder",
        ],
    );
    let whole = before["checkpoint.safetensors"].clone();
    std::fs::write(
        work.join("checkpoint.safetensors"),
        &whole[..whole.len() / 2],
    )
    .unwrap();
    let path = config(dir.path(), "");
    let text = refused(skipbench().arg("train").arg(&path));
    assert_names(
        &text,
        &["checkpoint.safetensors", "not a complete checkpoint"],
    );

    std::fs::write(work.join("checkpoint.safetensors"), &whole).unwrap();
    std::fs::write(work.join("checkpoint.safetensors.77.tmp"), &whole[..99]).unwrap();
    train(&path, &[]);
    assert!(!work.join("checkpoint.safetensors.77.tmp").exists());
}

/// What each strategy trains, seen from outside: the layers that tokens run, and the weights that stay as they were.
#[test]
fn depths_train_the_layers_that_they_name() {
    let dir = tempfile::tempdir().unwrap();
    train(&config(dir.path(), ""), &[]);
    let start = weights(&dir.path().join("model"));
    let tuned = |out: &str, depths: &str| {
        train(&tuning(dir.path(), out, depths), &[]);
        let model = dir.path().join(out);
        (weights(&model), logged(&model, "layers_per_token"))
    };
    let (full, layers) = tuned("full", "");
    assert_eq!(layers, [4.0; 3]);

    // Cut out of prompts and responses: (depths, layers per token, parts of the names of what is not trained).
    let cut: [(&str, &str, f64, &[&str]); 3] = [
        (
            "{block-influence: {order: [2, 1]}}",
            "1.33",
            3.0,
            &["layers.2."],
        ),
        (
            "sublayer-drop",
            "1.33",
            3.0,
            &[
                "layers.1.self_attn",
                "layers.1.input",
                "layers.2.self_attn",
                "layers.2.input",
            ],
        ),
        (
            "{sublayer-drop: {drop: mlp}}",
            "1.1",
            3.5,
            &["layers.2.mlp", "layers.2.post"],
        ),
    ];
    for (index, (strategy, speedup, per_token, untrained)) in cut.into_iter().enumerate() {
        let depths = format!("depths: {{strategies: [{strategy}], speedups: [{speedup}]}}\n");
        let (weights, layers) = tuned(&format!("cut-{index}"), &depths);
        assert_eq!(layers, [per_token; 3], "{strategy}");
        for (name, values) in &weights {
            let is_untrained = untrained.iter().any(|part| name.contains(part));
            assert_eq!(*values == start[name], is_untrained, "{strategy}: {name}");
        }
    }

    // Prompts run everything, so every weight is trained, but not as at full depth.
    let strategies = [
        "unified",
        "top",
        "bottom",
        "middle",
        "random",
        "every-other",
        "skip-decode",
        "position-decay",
        "early-exit",
        "shallow-deep",
        "adaskip",
    ];
    for strategy in strategies {
        let depths = format!("depths: {{strategies: [{strategy}], speedups: [2]}}\n");
        let (weights, layers) = tuned(strategy, &depths);
        assert!(
            layers.iter().all(|layers| (2.0..4.0).contains(layers)),
            "{strategy}: {layers:?}"
        );
        for (name, values) in &weights {
            assert!(
                *values != start[name] && *values != full[name],
                "{strategy}: {name}"
            );
        }
    }
}

#[test]
fn a_strategy_that_cannot_be_trained_is_refused_before_anything_is_written() {
    let dir = tempfile::tempdir().unwrap();
    let refusals: [(&str, &[&str]); 5] = [
        ("block-influence@2", &["`block-influence@2`", "`order`"]),
        ("unified@9", &["`unified@9`", "largest possible speedup"]),
        ("oracle-exit", &["`oracle-exit`"]),
        ("prompt-depth@2", &["`prompt-depth@2`"]),
        (
            "{shallow-deep: {threshold: 0.9}}",
            &["`shallow-deep", "threshold"],
        ),
    ];
    for (strategy, named) in refusals {
        let path = config(
            dir.path(),
            &format!("depths: {{strategies: [top@2, {strategy}]}}\n"),
        );
        let text = refused(skipbench().arg("train").arg(&path));
        assert_names(&text, named);
        assert_names(&text, &["train.yaml", "`depths.strategies`"]);
    }
    assert!(!dir.path().join("model").exists());
}

#[test]
fn settings_that_cannot_work_are_refused_before_anything_is_written() {
    let dir = tempfile::tempdir().unwrap();
    let path = config(dir.path(), "");
    let good = std::fs::read_to_string(&path).unwrap();
    let bad: [(&str, &str, &[&str]); 14] = [
        (
            "data: [{builtin: translation}]",
            "data: [{builtin: translation}]\nvalidation: {every: 1, data: [{builtin: translation, weight: 4294967295}, {builtin: summarization}]}",
            &["`validation.data` add up to 4294967296"],
        ),
        ("1.0e-3", ".nan", &["`learning-rate`", "NaN"]),
        ("1.0e-3", ".inf", &["`learning-rate`", "inf"]),
        ("1.0e-3", "1.0e300", &["`learning-rate`", "1e300"]),
        ("batch-size: 2", "batch-size: 0", &["`batch-size` is 0"]),
        (
            "batch-size: 2",
            "batch-size: 18446744073709551615",
            &["`batch-size`", "65536"],
        ),
        ("steps: 4", "steps: 18446744073709551615", &["`steps`"]),
        (
            "d-model: 16",
            "d-model: 18446744073709551615",
            &["`d-model`"],
        ),
        (
            "max-positions: 256",
            "max-positions: 0",
            &["`max-positions` is 0"],
        ),
        (
            "vocab-size: 300, d-model: 16",
            "vocab-size: 16000000, d-model: 16000000",
            &["GiB of memory", "this machine has"],
        ),
        (
            "{builtin: translation}",
            "{builtin: translation, prompt: hello}",
            &["`data[0]`", "`prompt`"],
        ),
        (
            "{builtin: translation}",
            "{builtin: translations}",
            &["`data[0]`", "translations"],
        ),
        (
            "{builtin: translation}",
            "{source: a, reference: b, prompt: \"{target}\"}",
            &["`{{ source }}`"],
        ),
        (
            "out: model",
            "depth: 3\nout: model",
            &["depth", "did you mean `depths`?"],
        ),
    ];
    for (from, to, named) in bad {
        assert!(good.contains(from));
        write(dir.path(), "train.yaml", &good.replace(from, to));
        let text = refused(skipbench().arg("train").arg(&path));
        assert_names(&text, named);
        assert_names(&text, &["train.yaml"]);
    }
    assert!(!dir.path().join("model").exists());
}

#[test]
fn minutes_that_are_no_time_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = config(dir.path(), "");
    for minutes in ["-1", "nan", "0", "-0", "inf", "1e300", "ten"] {
        let option = format!("--minutes={minutes}");
        let text = refused(skipbench().arg("train").arg(&path).arg(option));
        assert_names(&text, &["--minutes", minutes]);
    }
    // Longer than the clock goes, which is no limit.
    train(&path, &["--minutes", "1e15"]);
}

#[test]
fn a_pair_that_does_not_fit_is_found_before_the_first_step() {
    let dir = tempfile::tempdir().unwrap();
    write(
        dir.path(),
        "source",
        &format!("short\n{}\n", "long ".repeat(400)),
    );
    write(dir.path(), "reference", "kurz\nlang\n");
    let path = config(dir.path(), "");
    let text = std::fs::read_to_string(&path).unwrap().replace(
        "{builtin: translation}",
        "{source: source, reference: reference}",
    );
    write(dir.path(), "train.yaml", &text);
    let text = refused(skipbench().arg("train").arg(&path));
    assert_names(&text, &["source: line 2", "`max-positions` 256"]);
}

#[test]
fn progress_is_logged_where_it_is_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    let path = config(dir.path(), "depths: {strategies: [top], speedups: [2]}\n");
    let assert = skipbench()
        .arg("train")
        .arg(&path)
        .arg("-v")
        .assert()
        .success();
    let text = String::from_utf8(assert.get_output().stderr.clone()).unwrap();
    let steps: Vec<&str> = text
        .lines()
        .filter(|line| line.contains("layers per token"))
        .collect();
    assert_eq!(steps.len(), 4, "{text}");
    assert_names(steps[0], &["step 1: loss", "gradient norm", "rate"]);
}

#[test]
fn a_folder_that_cannot_be_written_or_trained_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let path = config(dir.path(), "");
    write(dir.path(), "model", "a file");
    let text = refused(skipbench().arg("train").arg(&path));
    assert_names(&text, &["cannot write", "model"]);

    let model = checkpoint_copy(dir.path());
    let tune = |out: &str| {
        let text = format!(
            "out: {out}\nstart-from: checkpoint\ndata: [{{builtin: translation}}]\ntrain: {{steps: 1, batch-size: 2, optimizer: {{learning-rate: 1.0e-3}}}}\n"
        );
        let path = write(dir.path(), "tune.yaml", &text);
        refused(skipbench().arg("train").arg(path).arg("--force"))
    };
    assert_names(&tune("./checkpoint"), &["tune.yaml", "same folder"]);

    let path = model.join("config.json");
    let text = std::fs::read_to_string(&path)
        .unwrap()
        .replace("\"model_type\": \"llama\"", "\"model_type\": \"mamba\"");
    std::fs::write(&path, text).unwrap();
    assert_names(&tune("tuned"), &["`start-from`", "config.json", "mamba"]);
}
