//! `skipbench loglikelihood` and `skipbench perplexity`.

use crate::support::{assert_names, checkpoint, refused, repository, skipbench, stdout};
use assert_cmd::Command;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

fn command(name: &str, input: &Path, extra: &[&str]) -> Command {
    let mut command = skipbench();
    command.arg(name).arg("--model").arg(checkpoint());
    command.arg("--input").arg(input).args(extra);
    command
}

/// A file of these lines.
fn file(dir: &Path, lines: &[Value]) -> PathBuf {
    let path = dir.join("pairs.jsonl");
    let lines: Vec<String> = lines.iter().map(Value::to_string).collect();
    std::fs::write(&path, lines.join("\n")).unwrap();
    path
}

fn scored(lines: &[Value], extra: &[&str]) -> Vec<Value> {
    let dir = tempfile::tempdir().unwrap();
    let input = file(dir.path(), lines);
    stdout(&mut command("loglikelihood", &input, extra))
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

fn pair(id: impl Into<Value>, context: &str, continuation: &str) -> Value {
    json!({"id": id.into(), "context": context, "continuation": continuation})
}

fn sum(line: &Value) -> f64 {
    line["logprob"].as_f64().unwrap()
}

fn token_logprobs(line: &Value) -> Vec<f64> {
    let found = line["token_logprobs"].as_array().unwrap();
    found.iter().map(|value| value.as_f64().unwrap()).collect()
}

/// Every prompt with what `generate` answers, scored under the same strategy: each token is the likeliest, and its layers are
/// those that generation counts.
#[test]
fn what_a_strategy_generates_it_finds_likeliest() {
    let dir = tempfile::tempdir().unwrap();
    let prompts = stdout(skipbench().args(["data", "translation", "-n", "3"]));
    let prompts: Vec<String> = prompts
        .lines()
        .map(|line| {
            serde_json::from_str::<Value>(line).unwrap()["prompt"]
                .as_str()
                .unwrap()
                .to_owned()
        })
        .collect();
    let asked = dir.path().join("prompts.jsonl");
    let lines: Vec<String> = prompts
        .iter()
        .map(|p| json!({"prompt": p}).to_string())
        .collect();
    std::fs::write(&asked, lines.join("\n")).unwrap();
    for strategy in ["unified@2", "early-exit: {threshold: 0.5}"] {
        let answers = stdout(&mut command("generate", &asked, &["--strategy", strategy]));
        let answers: Vec<Value> = answers
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect();
        let pairs: Vec<Value> = std::iter::zip(&prompts, &answers)
            .map(|(prompt, answer)| {
                pair(
                    answer["id"].clone(),
                    prompt,
                    answer["text"].as_str().unwrap(),
                )
            })
            .collect();
        let found = scored(&pairs, &["--strategy", strategy]);
        assert_eq!(found.len(), 3);
        let mut same = 0;
        for (found, answer) in found.iter().zip(&answers) {
            assert_eq!(found["id"], answer["id"]);
            // The end of sequence, which is no text, is not scored.
            let ran = answer["layers"].as_array().unwrap();
            let text = &ran[..ran.len() - 1];
            if found["layers"].as_array().unwrap().len() == text.len() {
                assert_eq!(found["layers"].as_array().unwrap(), text);
                assert_eq!(found["greedy"], true, "{found}");
                same += 1;
            }
        }
        // A text may have other tokens than those that were generated.
        assert!(
            same > 0,
            "{strategy}: no answer is tokenized as it was generated"
        );
    }
}

#[test]
fn lines_of_the_output() {
    let lines = scored(
        &[
            pair("a", "The report", " says"),
            pair(7, "", "The report"),
            json!({"context": "The report ", "continuation": "says", "more": 1}),
        ],
        &["--strategy", "unified@2"],
    );
    let keys: Vec<&String> = lines[0].as_object().unwrap().keys().collect();
    assert_eq!(
        keys,
        ["id", "logprob", "token_logprobs", "greedy", "layers"]
    );
    let ids: Vec<&Value> = lines.iter().map(|line| &line["id"]).collect();
    assert_eq!(ids, [&json!("a"), &json!(7), &json!(2)]);
    for line in &lines {
        let tokens = token_logprobs(line);
        assert!((sum(line) - tokens.iter().sum::<f64>()).abs() < 1e-9);
        assert!(tokens.iter().all(|value| *value < 0.0));
        let layers = line["layers"].as_array().unwrap();
        assert_eq!(layers.len(), tokens.len());
        assert_eq!(
            layers[0], 16,
            "the first token comes from the prompt's pass"
        );
        assert!(layers[1..].iter().all(|n| *n == 8));
    }
    // A space at the end of the context belongs to the continuation.
    assert_eq!(lines[0]["token_logprobs"], lines[2]["token_logprobs"]);
}

/// Each line of the input has its own, in their order, however they fall into batches.
#[test]
fn every_line_keeps_its_id() {
    let pairs: Vec<Value> = (1..12)
        .map(|id| pair(id, "The report", &" says".repeat(id)))
        .collect();
    for size in ["1", "2", "4", "11", "64"] {
        let lines = scored(&pairs, &["--batch-size", size]);
        let ids: Vec<u64> = lines
            .iter()
            .map(|line| line["id"].as_u64().unwrap())
            .collect();
        assert_eq!(ids, (1..12).collect::<Vec<_>>(), "{size}");
        let lengths = lines.iter().map(|line| token_logprobs(line).len());
        assert!(lengths.is_sorted_by(|a, b| a < b), "{size}");
    }
}

/// The two modes differ under a strategy and agree under all layers, whatever the batch.
#[test]
fn modes_and_batches() {
    let pairs: Vec<Value> = ["The report", "", "Nobody had asked the fishermen, and"]
        .iter()
        .map(|context| pair("x", context, " the old harbour was closed"))
        .collect();
    let found = |extra: &[&str]| -> Vec<f64> { scored(&pairs, extra).iter().map(sum).collect() };
    let close = |a: &[f64], b: &[f64]| {
        a.len() == b.len() && a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-4)
    };
    let full = found(&[]);
    assert!(close(&full, &found(&["--mode", "one-pass"])));
    assert!(close(&full, &found(&["--batch-size", "1"])));
    assert!(close(&full, &found(&["--composed"])));
    let unified = found(&["--strategy", "unified@2"]);
    let pruned = found(&["--strategy", "unified@2", "--mode", "one-pass"]);
    assert!(!close(&unified, &full) && !close(&unified, &pruned));
    let skip = ["--strategy", "unified: {speedup: 2, prefill: skip}"];
    assert!(close(&pruned, &found(&skip)));
}

/// A continuation that becomes one token with the end of its context is cut where the context alone ends, as lm-eval cuts it.
#[test]
fn a_token_across_the_border_is_cut_by_the_number_of_tokens() {
    let whole = scored(&[pair("x", "The report says that", " it")], &[]);
    let across = scored(&[pair("x", "The report says th", "at it")], &[]);
    let (whole, across) = (token_logprobs(&whole[0]), token_logprobs(&across[0]));
    // Whatever the tokens are, they are those of the whole text.
    assert!(!across.is_empty() && across.len() <= whole.len() + 2);
    assert!((across.last().unwrap() - whole.last().unwrap()).abs() < 1e-4);
}

#[test]
fn input_that_cannot_be_scored() {
    let dir = tempfile::tempdir().unwrap();
    let mut errors = Vec::new();
    let mut refuse = |what: &str, text: &[u8], extra: &[&str]| {
        let path = dir.path().join("pairs.jsonl");
        std::fs::write(&path, text).unwrap();
        let error = refused(&mut command("loglikelihood", &path, extra));
        let error = error.replace(&dir.path().display().to_string(), "DIR");
        errors.push(format!("{what}\n{error}"));
    };
    let good = pair("a", "The", " report").to_string() + "\n";
    let behind = |line: &str| [good.as_bytes(), line.as_bytes()].concat();
    refuse("empty file", b"", &[]);
    refuse("blank lines", b"\n\n", &[]);
    refuse("not JSON", &behind("{\"context\": "), &[]);
    refuse("not an object", &behind("[1, 2]"), &[]);
    refuse("not UTF-8", &[good.as_bytes(), b"\xff\n"].concat(), &[]);
    refuse("no context", &behind("{\"continuation\": \"x\"}"), &[]);
    refuse(
        "wrong type",
        &behind("{\"context\": \"x\", \"continuation\": 3}"),
        &[],
    );
    refuse(
        "null",
        &behind("{\"context\": null, \"continuation\": \"x\"}"),
        &[],
    );
    refuse(
        "empty continuation",
        &behind(&pair(1, "The", "").to_string()),
        &[],
    );
    refuse(
        "no token of its own",
        &behind(&pair(1, "The report say", "s").to_string()),
        &[],
    );
    let long = "report ".repeat(600);
    refuse(
        "beyond the limit",
        &behind(&pair(1, &long, "x").to_string()),
        &[],
    );
    refuse(
        "unknown strategy",
        good.as_bytes(),
        &["--strategy", "unifed@2"],
    );
    refuse("no such depth", good.as_bytes(), &["--strategy", "top@100"]);
    refuse(
        "no layers of its own",
        good.as_bytes(),
        &[
            "--strategy",
            "early-exit: {threshold: 0.5}",
            "--mode",
            "one-pass",
        ],
    );
    refuse("unknown mode", good.as_bytes(), &["--mode", "both"]);
    refuse("no batch", good.as_bytes(), &["--batch-size", "0"]);
    insta::assert_snapshot!(errors.join("\n"));
    let missing = refused(&mut command(
        "loglikelihood",
        Path::new("not there.jsonl"),
        &[],
    ));
    assert_names(&missing, &["not there.jsonl"]);
}

/// What scripts/fixtures/make_likelihood_goldens.py made of a text with transformers.
fn golden() -> Value {
    let path = repository().join("crates/engine/tests/likelihood.json");
    let goldens: Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    goldens["text"].clone()
}

fn perplexity(input: &Path, extra: &[&str]) -> Value {
    serde_json::from_str(&stdout(&mut command("perplexity", input, extra))).unwrap()
}

#[test]
fn perplexity_is_that_of_transformers() {
    let dir = tempfile::tempdir().unwrap();
    let golden = golden();
    let input = dir.path().join("text.txt");
    let text = golden["text"].as_str().unwrap();
    std::fs::write(&input, text).unwrap();
    for wanted in golden["windows"].as_array().unwrap() {
        let [window, stride] = ["window", "stride"].map(|key| wanted[key].to_string());
        for mode in ["as-decoded", "one-pass"] {
            let found = perplexity(
                &input,
                &["--window", &window, "--stride", &stride, "--mode", mode],
            );
            assert_eq!(found["tokens"], wanted["tokens"]);
            let [found_is, wanted_is] = [&found["token_perplexity"], &wanted["perplexity"]]
                .map(|value| value.as_f64().unwrap());
            assert!(
                (found_is / wanted_is - 1.0).abs() < 1e-6,
                "{mode}, {wanted}: {found_is}"
            );
            let nll = -found["logprob"].as_f64().unwrap();
            let per = |count: usize| (nll / count as f64).exp();
            let close = |key: &str, count: usize| {
                (found[key].as_f64().unwrap() / per(count) - 1.0).abs() < 1e-9
            };
            assert!(close("byte_perplexity", text.len()));
            assert!(close("word_perplexity", text.split_whitespace().count()));
            assert_eq!(found["layers_per_token"], 16.0);
        }
    }
}

#[test]
fn a_perplexity_says_how_it_was_computed() {
    let dir = tempfile::tempdir().unwrap();
    let input = dir.path().join("text.txt");
    std::fs::write(&input, golden()["text"].as_str().unwrap()).unwrap();
    let default = perplexity(&input, &[]);
    let signature = default["signature"].as_str().unwrap();
    assert_names(
        signature,
        &[
            "window:512|stride:256|bos:yes|tokenizer:",
            "|detokenisation:none|mode:as-decoded|strategy:full|version:",
        ],
    );
    let pruned = [
        "--strategy",
        "unified@2",
        "--mode",
        "one-pass",
        "--window",
        "64",
    ];
    let pruned = perplexity(&input, &pruned);
    assert_names(
        pruned["signature"].as_str().unwrap(),
        &["window:64|stride:32|", "mode:one-pass|strategy:unified@2"],
    );
    assert_eq!(pruned["layers_per_token"], 8.0);
    let of = |value: &Value| value["token_perplexity"].as_f64().unwrap();
    assert_ne!(of(&pruned), of(&default));
}

#[test]
fn text_that_has_no_perplexity() {
    let dir = tempfile::tempdir().unwrap();
    let mut errors = Vec::new();
    let mut refuse = |what: &str, text: &[u8], extra: &[&str]| {
        let path = dir.path().join("text.txt");
        std::fs::write(&path, text).unwrap();
        let error = refused(&mut command("perplexity", &path, extra));
        let error = error.replace(&dir.path().display().to_string(), "DIR");
        errors.push(format!("{what}\n{error}"));
    };
    refuse("empty file", b"", &[]);
    refuse("not UTF-8", b"one\ntwo \xff\n", &[]);
    refuse("window beyond the model", b"one two", &["--window", "513"]);
    refuse(
        "stride beyond the window",
        b"one two",
        &["--window", "8", "--stride", "9"],
    );
    refuse("no window", b"one two", &["--window", "1"]);
    refuse("no stride", b"one two", &["--stride", "0"]);
    refuse("unknown strategy", b"one two", &["--strategy", "botom@2"]);
    refuse(
        "no layers of its own",
        b"one two",
        &["--strategy", "skip-decode@2", "--mode", "one-pass"],
    );
    insta::assert_snapshot!(errors.join("\n"));
}
