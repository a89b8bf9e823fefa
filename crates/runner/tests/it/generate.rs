//! `skipbench generate`.

use crate::support::{checkpoint, skipbench, stdout};
use flate2::{Compression, write::GzEncoder};
use serde_json::Value;
use std::io::Write;
use std::path::Path;

fn prompts(n: usize) -> Vec<String> {
    stdout(skipbench().args(["data", "translation", "-n", &n.to_string()]))
        .lines()
        .map(|line| {
            serde_json::from_str::<Value>(line).unwrap()["prompt"]
                .as_str()
                .unwrap()
                .to_owned()
        })
        .collect()
}

fn generate(input: &Path, extra: &[&str]) -> Vec<Value> {
    let output = stdout(
        skipbench()
            .arg("generate")
            .arg("--model")
            .arg(checkpoint())
            .arg("--input")
            .arg(input)
            .args(extra),
    );
    output
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

fn json_lines(dir: &Path, prompts: &[String]) -> std::path::PathBuf {
    let path = dir.join("prompts with a space.jsonl");
    let lines: Vec<String> = prompts
        .iter()
        .map(|prompt| serde_json::json!({"prompt": prompt, "more": 1}).to_string())
        .collect();
    std::fs::write(&path, lines.join("\n")).unwrap();
    path
}

#[test]
fn answers_end_with_the_end_of_sequence_and_count_their_layers() {
    let dir = tempfile::tempdir().unwrap();
    let input = json_lines(dir.path(), &prompts(5));
    let lines = generate(&input, &["--strategy", "unified@2", "--batch-size", "2"]);
    assert_eq!(lines.len(), 5);
    for (index, line) in lines.iter().enumerate() {
        let keys: Vec<&String> = line.as_object().unwrap().keys().collect();
        assert_eq!(keys, ["id", "prompt_tokens", "tokens", "text", "layers"]);
        assert_eq!(line["id"], index);
        let tokens = line["tokens"].as_array().unwrap();
        let layers = line["layers"].as_array().unwrap();
        assert_eq!(tokens.last().unwrap(), 2, "the end-of-sequence id");
        assert_eq!(tokens.len(), layers.len());
        assert_eq!(
            layers[0], 16,
            "the first token comes from the whole network"
        );
        assert!(layers[1..].iter().all(|n| *n == 8));
        assert!(!line["text"].as_str().unwrap().contains("<eos>"));
    }
}

#[test]
fn a_batch_answers_as_single_prompts_do_under_every_strategy() {
    let dir = tempfile::tempdir().unwrap();
    let input = json_lines(dir.path(), &prompts(6));
    for strategy in [
        "full",
        "unified@2",
        "random@2",
        "skip-decode@2",
        "early-exit: {threshold: 0.5}",
        "early-exit: {threshold: 0.5, kv-fill: deferred}",
        "early-exit: {threshold: 0.5, kv-fill: mask, batch-mode: sync}",
        "shallow-deep: {threshold: 0.5}",
        "prompt-depth: {threshold: 0.5}",
        "adaskip@1.5",
    ] {
        let strategy = ["--max-new-tokens", "24", "--strategy", strategy];
        let alone = generate(&input, &strategy);
        let batch = generate(&input, &[&strategy[..], &["--batch-size", "4"]].concat());
        assert_eq!(alone, batch, "{strategy:?}");
    }
}

#[test]
fn composed_layers_answer_as_fused_ones_do() {
    let dir = tempfile::tempdir().unwrap();
    let input = json_lines(dir.path(), &prompts(3));
    assert_eq!(generate(&input, &[]), generate(&input, &["--composed"]));
}

#[test]
fn a_fixed_length_ignores_the_end_of_sequence() {
    let dir = tempfile::tempdir().unwrap();
    let input = json_lines(dir.path(), &prompts(2));
    for line in generate(&input, &["--ignore-eos", "--max-new-tokens", "40"]) {
        assert_eq!(line["tokens"].as_array().unwrap().len(), 40);
    }
}

#[test]
fn plain_text_and_gzip_are_read_as_json_lines_are() {
    let dir = tempfile::tempdir().unwrap();
    let prompts: Vec<String> = prompts(2)
        .iter()
        .map(|prompt| prompt.replace('\n', " "))
        .collect();
    let json = json_lines(dir.path(), &prompts);
    let text = dir.path().join("prompts.txt");
    std::fs::write(&text, prompts.join("\n") + "\n").unwrap();
    let packed = dir.path().join("prompts.txt.gz");
    let mut gz = GzEncoder::new(std::fs::File::create(&packed).unwrap(), Compression::fast());
    gz.write_all(prompts.join("\n").as_bytes()).unwrap();
    gz.finish().unwrap();
    let expected = generate(&json, &[]);
    assert_eq!(generate(&text, &[]), expected);
    assert_eq!(generate(&packed, &[]), expected);
}

#[test]
fn a_threshold_is_found_for_a_target() {
    let dir = tempfile::tempdir().unwrap();
    let input = json_lines(dir.path(), &prompts(8));
    let lines = generate(&input, &["--strategy", "early-exit:max-prob@1.5"]);
    let layers: Vec<u64> = lines
        .iter()
        .flat_map(|line| line["layers"].as_array().unwrap()[1..].to_vec())
        .map(|n| n.as_u64().unwrap())
        .collect();
    let mean = layers.iter().sum::<u64>() as f64 / layers.len() as f64;
    assert!((mean / (16.0 / 1.5) - 1.0).abs() < 0.1, "{mean}");
}

#[test]
fn a_search_is_the_users_choice() {
    let dir = tempfile::tempdir().unwrap();
    let input = json_lines(dir.path(), &prompts(5));
    let greedy = generate(&input, &[]);
    let beams = [
        "--beams",
        "4",
        "--no-repeat-ngram",
        "3",
        "--length-penalty",
        "1.0",
    ];
    let found = generate(&input, &beams);
    assert_eq!(found.len(), 5);
    assert_eq!(
        found,
        generate(&input, &[&beams[..], &["--batch-size", "3"]].concat())
    );
    let drawn = |extra: &[&str]| {
        let options = ["--temperature", "5", "--top-p", "0.9", "--top-k", "50"];
        generate(&input, &[&options[..], extra].concat())
    };
    let seven = drawn(&["--seed", "7"]);
    assert_eq!(seven, drawn(&["--seed", "7", "--batch-size", "2"]));
    assert_ne!(seven, drawn(&["--seed", "8"]));
    assert_ne!(seven, greedy);
    assert_eq!(generate(&input, &["--top-k", "1"]), greedy);
}

#[test]
fn a_trace_tells_of_every_token() {
    let dir = tempfile::tempdir().unwrap();
    let input = json_lines(dir.path(), &prompts(4));
    let (trace, heat) = (dir.path().join("t.jsonl"), dir.path().join("heat map.svg"));
    let audit = dir.path().join("audit.json");
    let paths = [&trace, &heat, &audit].map(|path| path.to_str().unwrap().to_owned());
    let answers = generate(
        &input,
        &[
            "--strategy",
            "early-exit: {threshold: 0.8, first-exit: 4}",
            "--batch-size",
            "4",
            "--trace",
            &paths[0],
            "--heatmap",
            &paths[1],
            "--audit",
            &paths[2],
        ],
    );
    let text = std::fs::read_to_string(&trace).unwrap();
    let lines: Vec<Value> = text
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let tokens: usize = answers
        .iter()
        .map(|line| line["tokens"].as_array().unwrap().len())
        .sum();
    assert_eq!(lines.len(), tokens);
    for line in &lines {
        let answer = &answers[line["id"].as_u64().unwrap() as usize];
        let index = line["index"].as_u64().unwrap() as usize;
        assert_eq!(line["token"], answer["tokens"][index]);
        let ran = line["layers"].as_array().unwrap().len();
        assert_eq!(answer["layers"][index], ran);
        assert_eq!(line["kv"].as_str().unwrap().len(), 16);
        if index > 0 {
            let exit = line["exit_layer"].as_u64();
            assert_eq!(exit.map_or(16, |exit| exit + 1), ran as u64);
            let confidence = line["confidence"].as_f64().unwrap();
            assert_eq!(confidence > 0.8, exit.is_some());
            let computed = line["kv"].as_str().unwrap().matches('c').count();
            assert_eq!(computed, ran);
        }
    }
    assert!(heat.is_file() && dir.path().join("heat map.png").is_file());
    let audit: Value = serde_json::from_str(&std::fs::read_to_string(&audit).unwrap()).unwrap();
    assert_eq!(audit["kv_fill"], "propagate");
    assert!(audit["approximate"]["relative_l2_mean"].as_f64().unwrap() > 0.0);
    assert_eq!(audit["layers"].as_array().unwrap().len(), 16);
}

/// Lossless on text: 500 prompts of the built-in tasks, on a model whose drafts often fail.
#[test]
fn self_speculation_gives_the_full_networks_tokens() {
    let dir = tempfile::tempdir().unwrap();
    let mut texts = prompts(250);
    let summaries = stdout(skipbench().args(["data", "summarization", "-n", "250"]));
    texts.extend(summaries.lines().map(|line| {
        let line: Value = serde_json::from_str(line).unwrap();
        line["prompt"].as_str().unwrap().to_owned()
    }));
    let input = json_lines(dir.path(), &texts);
    let tokens = |strategy: &str| -> Vec<Value> {
        generate(&input, &["--strategy", strategy, "--batch-size", "16"])
            .into_iter()
            .map(|line| line["tokens"].clone())
            .collect()
    };
    let full = tokens("full");
    assert_eq!(full.len(), 500);
    for strategy in [
        "self-speculative:unified@2",
        "self-speculative:early-exit@2",
        "self-speculative:top@2",
        "self-speculative:top@4 {draft-length: 8, stop-below: 0.5, adaptive: true}",
    ] {
        assert_eq!(tokens(strategy), full, "{strategy}");
    }
}
