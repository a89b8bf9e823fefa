//! `skipbench train` on checkpoints with adapters, and on tasks.

use crate::support::{assert_names, refused, repository, skipbench, stdout};
use crate::train::{train, write};
use std::path::{Path, PathBuf};

/// A tiny model in the folder `base`.
fn base(dir: &Path) -> PathBuf {
    let config = write(
        dir,
        "base.yaml",
        "out: base\nshape: {vocab-size: 300, d-model: 16, n-layers: 4, n-heads: 2, n-kv-heads: 1, d-ff: 32, max-positions: 256}\ndata: [{builtin: translation}]\ntrain: {steps: 2, batch-size: 2, optimizer: {learning-rate: 1.0e-2}}\n",
    );
    train(&config, &[]);
    dir.join("base")
}

/// An adapter of `base` in the folder `out`.
fn adapting(dir: &Path, out: &str, more: &str) -> PathBuf {
    write(
        dir,
        &format!("{out}.yaml"),
        &format!(
            "out: {out}\nstart-from: base\nadapter: {{rank: 4, alpha: 16}}\ndata: [{{builtin: translation}}]\ntrain: {{steps: 12, batch-size: 4, checkpoint-every: 5, optimizer: {{learning-rate: 5.0e-2}}}}\n{more}"
        ),
    )
}

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> = std::fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap())
        .filter(|entry| entry.path().is_file())
        .map(|entry| entry.file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

/// Answers of a model to a few prompts.
fn answers(dir: &Path, options: &[&str]) -> String {
    let input = write(dir, "prompts.txt", "the dog\nthe cat sees\na house\n");
    let mut command = skipbench();
    command.arg("generate").arg("--input").arg(&input);
    stdout(command.args(["--max-new-tokens", "8"]).args(options))
}

fn path(dir: &Path, name: &str) -> String {
    dir.join(name).display().to_string()
}

#[test]
fn an_adapter_alone_and_merged_answer_alike() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    base(dir);
    train(&adapting(dir, "adapter", ""), &[]);
    assert_eq!(
        names(&dir.join("adapter")),
        [
            "adapter_config.json",
            "adapter_model.safetensors",
            "base.json"
        ]
    );
    train(&adapting(dir, "merged", "export: merged\n"), &[]);
    assert_eq!(
        names(&dir.join("merged")),
        [
            "config.json",
            "generation_config.json",
            "model.safetensors",
            "tokenizer.json",
            "tokenizer_config.json",
        ]
    );
    let (base, adapter, merged) = (path(dir, "base"), path(dir, "adapter"), path(dir, "merged"));
    let with_adapter = answers(dir, &["--model", &base, "--adapter", &adapter]);
    assert_eq!(with_adapter, answers(dir, &["--model", &merged]));
    assert_ne!(with_adapter, answers(dir, &["--model", &base]));

    // In 16 bits the sum is rounded, not the parts.
    let narrow = ["--dtype", "bf16"];
    let options = [
        "--model",
        &base,
        "--adapter",
        &adapter,
        narrow[0],
        narrow[1],
    ];
    let merged = ["--model", &merged, narrow[0], narrow[1]];
    assert_eq!(answers(dir, &options), answers(dir, &merged));
}

#[test]
fn an_adapter_that_was_cut_off_ends_with_the_same_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    base(dir);
    train(&adapting(dir, "whole", ""), &[]);
    let parts = adapting(dir, "parts", "");
    let one_step = ["--minutes=1e-9"];
    train(&parts, &one_step);
    let checkpoint = std::fs::read(dir.join("parts/training/checkpoint.safetensors")).unwrap();
    let len = u64::from_le_bytes(checkpoint[..8].try_into().unwrap()) as usize;
    let header = String::from_utf8_lossy(&checkpoint[8..8 + len]).into_owned();
    assert_names(
        &header,
        &["value/model.layers.0.mlp.down_proj.lora_A.weight"],
    );
    assert!(!header.contains("down_proj.weight") && !header.contains("embed_tokens"));
    for _ in 1..12 {
        train(&parts, &one_step);
    }
    for name in ["adapter_model.safetensors", "adapter_config.json"] {
        let bytes = |out: &str| std::fs::read(dir.join(out).join(name)).unwrap();
        assert!(bytes("whole") == bytes("parts"), "{name}");
    }
    assert_names(&train(&parts, &[]), &["nothing to do"]);
}

#[test]
fn an_adapter_of_another_checkpoint_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    base(dir);
    train(&adapting(dir, "adapter", ""), &[]);
    // The same shape, other weights.
    train(&adapting(dir, "other", "export: merged\n"), &[]);
    let (other, adapter) = (path(dir, "other"), path(dir, "adapter"));
    let input = write(dir, "prompts.txt", "the dog\n");
    let text = refused(
        skipbench()
            .args(["generate", "--model", &other, "--adapter", &adapter])
            .arg("--input")
            .arg(&input),
    );
    assert_names(&text, &["adapter", "other weights", "trained on"]);
    let experiment = write(
        dir,
        "experiment.yaml",
        "name: x\nmodels: [{path: other, adapter: adapter}]\ntasks: [{builtin: translation, prompts: 1}]\nstrategies: [full]\n",
    );
    let text = refused(skipbench().arg("plan").arg(&experiment));
    assert_names(&text, &["other weights"]);
    write(
        dir,
        "experiment.yaml",
        "name: x\nmodels: [{path: base, adapter: adapter}]\ntasks: [{builtin: translation, prompts: 1}]\nstrategies: [full]\n",
    );
    assert_names(
        &stdout(skipbench().arg("plan").arg(&experiment)),
        &["base+adapter"],
    );

    let text = refused(
        skipbench()
            .arg("plan")
            .arg(&experiment)
            .args(["--set", "models.0.adapter=nowhere"]),
    );
    assert_names(&text, &["no adapter folder", "nowhere", "skipbench train"]);
    assert!(!text.contains("WARN"), "{text}");

    let config = dir.join("adapter/adapter_config.json");
    let good = std::fs::read_to_string(&config).unwrap();
    let base = path(dir, "base");
    let refused = || {
        refused(
            skipbench()
                .args(["generate", "--model", &base, "--adapter", &adapter])
                .arg("--input")
                .arg(&input),
        )
    };
    std::fs::write(
        &config,
        good.replace("\"use_dora\": false", "\"use_dora\": true"),
    )
    .unwrap();
    assert_names(&refused(), &["adapter_config.json", "`use_dora`"]);
    std::fs::write(&config, good.replace("\"r\": 4", "\"r\": 8")).unwrap();
    assert_names(&refused(), &["adapter_model.safetensors", "`r` is 8"]);
}

#[test]
fn a_task_is_learnt_and_what_is_too_long_is_counted() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    base(dir);
    std::fs::create_dir(dir.join("tasks")).unwrap();
    write(
        dir,
        "tasks/numbers.yaml",
        "name: numbers\nsource: numbers.jsonl\nfields: {source: number, reference: word}\nprompt: \"{{ source }} is\"\n",
    );
    let long = "nine ".repeat(40);
    write(
        dir,
        "tasks/numbers.jsonl",
        &format!(
            "{{\"number\": \"1\", \"word\": \"one\"}}\n{{\"number\": \"2\", \"word\": \"two\"}}\n{{\"number\": \"9\", \"word\": \"{long}\"}}\n{{\"number\": \"{long}\", \"word\": \"9\"}}\n"
        ),
    );
    let config = |out: &str, more: &str| {
        let data = "data: [{task: tasks/numbers.yaml}, {builtin: translation, weight: 1}]";
        let text = std::fs::read_to_string(adapting(dir, out, more)).unwrap();
        write(
            dir,
            "out.yaml",
            &text.replace("data: [{builtin: translation}]", data),
        )
    };
    let text = refused(skipbench().arg("train").arg(config("out", "context: 60\n")));
    assert_names(
        &text,
        &["numbers: numbers/2", "`max-positions` 60", "too-long"],
    );
    let text = train(&config("out", "context: 60\ntoo-long: leave-out\n"), &[]);
    assert_names(&text, &["numbers: 2 pairs", "2 left out"]);
    let text = train(&config("cut", "context: 60\ntoo-long: cut\n"), &[]);
    assert_names(&text, &["numbers: 3 pairs", "1 cut, 1 left out"]);
}

/// With so large a rate that losses get worse, so that the best step is not the last.
#[test]
fn a_validation_is_logged_by_depth_and_ends_a_training_that_gets_worse() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    base(dir);
    let config = |out: &str, more: &str| {
        let text = std::fs::read_to_string(adapting(dir, out, "")).unwrap();
        let text = text
            .replace("steps: 12", "steps: 60")
            .replace("learning-rate: 5.0e-2", "learning-rate: 0.9");
        let validation = format!(
            "validation: {{data: [{{builtin: summarization}}], every: 2, pairs: 6, depths: [full, \"unified@2\"]{more}}}\n"
        );
        write(dir, &format!("{out}.yaml"), &(text + &validation))
    };
    let log = |out: &str| {
        let text = std::fs::read_to_string(dir.join(out).join("training/validation.csv")).unwrap();
        let lines: Vec<String> = text.lines().map(str::to_owned).collect();
        assert_eq!(lines[0], "step,full,unified@2");
        lines[1..].to_vec()
    };
    let text = train(&config("all", ""), &[]);
    assert_names(
        &text,
        &["validation at step 2: full", "unified@2", "finished all 60"],
    );
    let rows = log("all");
    assert_eq!(rows.len(), 30);
    let losses = |rows: &[String]| -> Vec<f64> {
        let cell = |row: &String| row.split(',').nth(1).unwrap().parse().unwrap();
        rows.iter().map(cell).collect()
    };
    let whole = losses(&rows);

    let text = train(&config("early", ", patience: 3"), &[]);
    assert_names(&text, &["ended early at step"]);
    let rows = log("early");
    let early = losses(&rows);
    assert_eq!(early, whole[..early.len()]);
    let best = early.iter().copied().fold(f64::INFINITY, f64::min);
    let place = early.iter().position(|loss| *loss == best).unwrap();
    assert_eq!(early.len(), place + 4, "{early:?}");

    // Cut off behind every step it ends with the same bytes, which are those of the best step.
    let cut = config("cut", ", patience: 3");
    for _ in 0..rows.len() * 2 {
        train(&cut, &["--minutes=1e-9"]);
    }
    train(&cut, &[]);
    assert_eq!(log("cut"), rows);
    let bytes = |out: &str| std::fs::read(dir.join(out).join("adapter_model.safetensors")).unwrap();
    assert!(bytes("cut") == bytes("early"));
    assert!(bytes("early") != bytes("all"));
    assert!(!dir.join("early/training/best.safetensors").exists());
}

#[test]
fn settings_of_an_adapter_that_cannot_work_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    base(dir);
    let good = std::fs::read_to_string(adapting(dir, "out", "")).unwrap();
    let bad: [(&str, &str, &[&str]); 8] = [
        ("rank: 4", "rank: 0", &["`adapter.rank` is 0"]),
        ("rank: 4", "rank: 17", &["`adapter.rank` is 17", "16 rows"]),
        ("alpha: 16", "matrices: [q, gates]", &["gates", "gate"]),
        (
            "start-from: base",
            "start-from: nowhere",
            &["`start-from`", "nowhere"],
        ),
        (
            "start-from: base",
            "start-from: base\ncontext: 300",
            &["`context` is 300", "256"],
        ),
        (
            "adapter: {rank: 4, alpha: 16}",
            "export: merged",
            &["`export`", "`adapter`"],
        ),
        (
            "{builtin: translation}",
            "{task: {source: nowhere.jsonl}}",
            &["`data[0]`", "nowhere.jsonl"],
        ),
        (
            "{builtin: translation}",
            "{task: {source: a, stride: 3}}",
            &["`data[0]`", "`stride`"],
        ),
    ];
    for (from, to, named) in bad {
        assert!(good.contains(from), "{from}");
        let path = write(dir, "out.yaml", &good.replace(from, to));
        let text = refused(skipbench().arg("train").arg(&path));
        assert_names(&text, named);
        assert_names(&text, &["out.yaml"]);
    }
    assert!(!dir.join("out").exists());
}

/// The shipped adapter was trained for skipping: with it the summaries of the experiment's dialogues are far more likely at every
/// speedup.
#[test]
fn the_shipped_adapter_does_what_it_was_trained_for() {
    let model = repository().join("data/downloads/SmolLM2-135M-Instruct.Q4_1.gguf");
    if !model.exists() {
        eprintln!("skipped: scripts/fetch_models.sh smollm2 gets the base of the adapter");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let dialogues =
        std::fs::read_to_string(repository().join("experiments/adapted/quick.jsonl")).unwrap();
    let pairs: String = dialogues.lines().take(2).map(pair).collect();
    let pairs = write(dir.path(), "pairs.jsonl", &pairs);
    let adapter = repository().join("data/adapters/smollm2-135m-dialogsum-unified");
    for speedup in ["1.25", "1.5", "2"] {
        let likely = |options: &[&str]| -> f64 {
            let mut command = skipbench();
            command.arg("loglikelihood").arg("--model").arg(&model);
            command.args(["--strategy", &format!("unified@{speedup}")]);
            let lines = stdout(command.arg("--input").arg(&pairs).args(options));
            let sums = lines.lines().map(|line| {
                let line: serde_json::Value = serde_json::from_str(line).unwrap();
                line["logprob"].as_f64().unwrap()
            });
            sums.sum()
        };
        let published = likely(&[]);
        let adapted = likely(&["--adapter", adapter.to_str().unwrap()]);
        // In nats. Measured: -1072, -1408, -604 without it and -153, -208, -173 with it.
        assert!(
            published < 2.0 * adapted,
            "{speedup}: {published}, {adapted}"
        );
    }
}

/// The dialogue in the form that the adapter was trained on, and its summary.
fn pair(line: &str) -> String {
    let dialogue: serde_json::Value = serde_json::from_str(line).unwrap();
    let source = dialogue["source"].as_str().unwrap();
    let asked = format!("Summarize this dialogue in one or two sentences.\n\n{source}");
    let context = format!("<|im_start|>user\n{asked}<|im_end|>\n<|im_start|>assistant\n");
    let pair = serde_json::json!({"context": context, "continuation": dialogue["reference"]});
    format!("{pair}\n")
}
