//! `skipbench prune`, and layers in files of other programs.

use crate::support::{
    assert_names, checkpoint, checkpoint_copy, refused, repository, skipbench, stdout,
};
use candle_core::Device;
use serde_json::Value;
use skipbench_engine::{Engine, ScoreMode, ScoreOptions, ScoredText};
use skipbench_model::{Backend, Decoder, ModelConfig, WeightType};
use skipbench_strategy::StrategySpec;
use std::fs;
use std::path::{Path, PathBuf};

fn fixture(name: &str) -> PathBuf {
    repository().join("crates/model/tests/fixtures").join(name)
}

fn prune(model: &Path, strategy: &str, out: &Path, extra: &[&str]) -> assert_cmd::Command {
    let mut command = skipbench();
    command
        .arg("prune")
        .arg("--model")
        .arg(model)
        .arg("--out")
        .arg(out);
    command.args(["--strategy", strategy]).args(extra);
    command
}

fn tokens(model: &Path, dir: &Path, extra: &[&str]) -> Vec<Value> {
    let input = dir.join("prompts.txt");
    fs::write(
        &input,
        "The report says\nthe dog bit (a) man\nTranslate into German: house\n",
    )
    .unwrap();
    let mut command = skipbench();
    command
        .arg("generate")
        .arg("--model")
        .arg(model)
        .arg("--input")
        .arg(&input);
    command
        .args(["--max-new-tokens", "12", "--ignore-eos"])
        .args(extra);
    stdout(&mut command)
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap()["tokens"].clone())
        .collect()
}

fn config(model: &Path) -> Value {
    serde_json::from_str(&fs::read_to_string(model.join("config.json")).unwrap()).unwrap()
}

#[test]
fn the_smaller_checkpoint_says_what_the_strategy_says() {
    let dir = tempfile::tempdir().unwrap();
    for (index, strategy) in ["unified@2", "top@4", "drop-list: {drop: [3, 4, 9]}"]
        .iter()
        .enumerate()
    {
        let out = dir.path().join(format!("pruned {index}"));
        prune(&checkpoint(), strategy, &out, &[]).assert().success();
        let skip = match strategy.strip_suffix('}') {
            Some(open) => format!("{open}, prefill: skip}}"),
            None => format!("{strategy} {{prefill: skip}}"),
        };
        let wanted = tokens(&checkpoint(), dir.path(), &["--strategy", &skip]);
        assert_eq!(tokens(&out, dir.path(), &[]), wanted, "{strategy}");
        assert_ne!(tokens(&checkpoint(), dir.path(), &[]), wanted, "{strategy}");
    }
    let mut names: Vec<String> = fs::read_dir(dir.path().join("pruned 0"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    let wanted = [
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    ];
    assert_eq!(names, wanted);
    assert_eq!(config(&dir.path().join("pruned 0"))["num_hidden_layers"], 8);
}

/// The smaller checkpoint of every family has the probabilities that transformers has without the other layers
/// (scripts/fixtures/make_likelihood_goldens.py), and its layers look back as they did.
#[test]
fn every_family_is_cut() {
    fn from_value<T: serde::de::DeserializeOwned>(value: &Value) -> T {
        serde_json::from_value(value.clone()).unwrap()
    }
    let dir = tempfile::tempdir().unwrap();
    let goldens = fs::read_to_string(repository().join("crates/engine/tests/likelihood.json"));
    let goldens: Value = serde_json::from_str(&goldens.unwrap()).unwrap();
    for entry in fs::read_dir(fixture("")).unwrap() {
        let model = entry.unwrap().path();
        let name = model.file_name().unwrap().to_string_lossy().into_owned();
        let out = dir.path().join(&name);
        prune(&model, "unified@2", &out, &[]).assert().success();
        let (old, new) = (
            ModelConfig::open(&model).unwrap(),
            ModelConfig::open(&out).unwrap(),
        );
        let spec: StrategySpec = "unified@2".parse().unwrap();
        let kept = spec.build(old.n_layers).unwrap().reachable().to_vec();
        let kinds: Vec<_> = kept.iter().map(|&layer| old.layers[layer]).collect();
        assert_eq!(new.layers, kinds, "{name}");
        let decoder =
            Decoder::load(&out, &Device::Cpu, Some(WeightType::F32), Backend::Auto).unwrap();
        let rows = goldens["fixtures"][&name]["rows"].as_array().unwrap();
        let texts: Vec<ScoredText> = rows
            .iter()
            .map(|row| ScoredText {
                context: from_value(&row["context"]),
                continuation: from_value(&row["continuation"]),
            })
            .collect();
        let mut full = StrategySpec::full().build(kept.len()).unwrap();
        let one_pass = ScoreOptions {
            mode: ScoreMode::OnePass,
            ..ScoreOptions::default()
        };
        let scored = Engine::new(&decoder)
            .score(&texts, full.as_mut(), one_pass)
            .unwrap();
        for (scored, row) in scored.iter().zip(rows) {
            let wanted: Vec<f64> = from_value(&row["removed"]);
            assert_eq!(scored.log_probabilities.len(), wanted.len());
            for (found, wanted) in scored.log_probabilities.iter().zip(&wanted) {
                assert!(
                    (found - wanted).abs() < 1e-4,
                    "{name}: {found}, not {wanted}"
                );
            }
        }
        let sharded = model.join("model.safetensors.index.json").is_file();
        assert_eq!(
            out.join("model.safetensors.index.json").is_file(),
            sharded,
            "{name}"
        );
    }
}

#[test]
fn a_folder_is_replaced_only_with_force() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    fs::create_dir(&out).unwrap();
    fs::write(out.join("model-00001-of-00002.safetensors"), "old").unwrap();
    fs::write(out.join("notes.md"), "mine").unwrap();
    let message = refused(&mut prune(&checkpoint(), "top@2", &out, &[]));
    assert_names(&message, &["out", "not empty", "--force"]);
    assert!(!out.join("config.json").exists());
    prune(&checkpoint(), "top@2", &out, &["--force"])
        .assert()
        .success();
    assert!(out.join("config.json").is_file() && out.join("notes.md").is_file());
    assert!(!out.join("model-00001-of-00002.safetensors").exists());
    let model = checkpoint_copy(dir.path());
    let message = refused(&mut prune(&model, "top@2", &model, &["--force"]));
    assert_names(&message, &["the model itself"]);
    assert_eq!(config(&model)["num_hidden_layers"], 16);
}

#[test]
fn what_cannot_be_cut_out() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    let mut errors = Vec::new();
    for strategy in [
        "early-exit: {threshold: 0.5}",
        "skip-decode@2",
        "self-speculative:top@2",
        "prompt-depth: {threshold: 0.5}",
        "sleb@2",
        "oracle-depth",
        "random: {speedup: 2, seeds: 3}",
        "drop-list: {drop-mlp: [4]}",
        "top",
        "topp@2",
        "drop-list: {file: none such.txt}",
    ] {
        errors.push(format!(
            "{strategy}\n{}",
            refused(&mut prune(&checkpoint(), strategy, &out, &[]))
        ));
        assert!(!out.exists(), "{strategy}");
    }
    insta::assert_snapshot!(errors.join("\n"));
    let gguf = repository().join("crates/model/tests/gguf/qwen2.gguf");
    let message = refused(&mut prune(&gguf, "top@2", &out, &[]));
    assert_names(&message, &["qwen2.gguf", "Hugging Face folder"]);
    let file = dir.path().join("a file");
    fs::write(&file, "x").unwrap();
    let message = refused(&mut prune(&checkpoint(), "top@2", &file, &["--force"]));
    assert_names(&message, &["a file", "no folder"]);
}

#[test]
fn layers_go_to_a_file_and_come_back() {
    let dir = tempfile::tempdir().unwrap();
    let layers = |strategy: &str, extra: &[&str]| {
        let mut command = skipbench();
        command.current_dir(dir.path());
        command.args([
            "layers",
            "--n-layers",
            "8",
            "--json",
            "--strategy",
            strategy,
        ]);
        command.args(extra);
        command
    };
    let listed = |strategy: &str| -> Value {
        let found: Value = serde_json::from_str(&stdout(&mut layers(strategy, &[]))).unwrap();
        found["layers"].clone()
    };
    let mut files = Vec::new();
    for (name, extra) in [
        ("a.txt", &[][..]),
        ("b.yaml", &[]),
        ("c.json", &[]),
        ("d.txt", &["--export-form", "evopress"]),
    ] {
        stdout(&mut layers(
            "unified@2",
            &[&["--export", name], extra].concat(),
        ));
        let text = fs::read_to_string(dir.path().join(name)).unwrap();
        assert_eq!(
            listed(&format!("drop-list: {{file: {name}}}")),
            listed("unified@2"),
            "{text}"
        );
        files.push(format!("{name}\n{text}"));
    }
    insta::assert_snapshot!(files.join("\n"));
    let message = refused(&mut layers(
        "drop-list: {drop-mlp: [1]}",
        &["--export", "x.txt"],
    ));
    assert_names(&message, &["--export", "layer 1", "evopress"]);
    let message = refused(&mut layers(
        "early-exit: {threshold: 0.5}",
        &["--export", "x.txt"],
    ));
    assert_names(&message, &["--export", "early-exit", "static"]);
    assert!(!dir.path().join("x.txt").exists());
    fs::write(dir.path().join("bad.txt"), "1\ntwo\n").unwrap();
    let message = refused(&mut layers("drop-list: {file: bad.txt}", &[]));
    assert_names(&message, &["bad.txt", "line 2", "two"]);
}

/// A file that an experiment names is taken from the experiment's folder, and what it lists, not its name, is the strategy.
#[test]
fn an_experiment_reads_a_list_beside_it() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("sub");
    fs::create_dir(&folder).unwrap();
    checkpoint_copy(&folder);
    fs::write(folder.join("list.txt"), "3, 4\n").unwrap();
    let text = "name: e\nmodels:\n  - path: checkpoint\ntasks:\n  - {builtin: translation, prompts: 2, max-new-tokens: 4}\nstrategies:\n  - drop-list: {file: list.txt}\n  - \"drop-list: {file: list.txt, prefill: skip}\"\nbatch-sizes: [1]\ntiming: {batches: 0}\n";
    fs::write(folder.join("e.yaml"), text).unwrap();
    let mut plan = skipbench();
    plan.current_dir(dir.path())
        .args(["plan", "sub/e.yaml", "--json"]);
    let plan: Value = serde_json::from_str(&stdout(&mut plan)).unwrap();
    let cells = plan["cells"].to_string();
    assert_names(&cells, &["drop-list {drop: [3,4]}", "prefill: skip"]);
    fs::remove_file(folder.join("list.txt")).unwrap();
    let mut plan = skipbench();
    let message = refused(plan.current_dir(dir.path()).args(["plan", "sub/e.yaml"]));
    assert_names(&message, &["e.yaml:7:", "list.txt"]);
}
