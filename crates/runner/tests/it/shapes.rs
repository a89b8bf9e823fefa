//! Models that are a shape alone.

use crate::support::{assert_names, csv_rows, refused, skipbench, stdout};
use std::path::{Path, PathBuf};

const TINY: &str = "{model_type: llama, hidden_size: 64, intermediate_size: 128, num_hidden_layers: 6, num_attention_heads: 4, vocab_size: 300, max_position_embeddings: 256}";

fn experiment(dir: &Path, models: &str, strategies: &str) -> PathBuf {
    let path = dir.join("e.yaml");
    let text = format!(
        "name: e
models: [{models}]
tasks: [{{builtin: translation, prompts: 4, calibration-prompts: 2}}]
strategies: [{strategies}]
timing: {{batches: 2, repeats: 1, warm-up: 0, new-tokens: 4}}
"
    );
    std::fs::write(&path, text).unwrap();
    path
}

#[test]
fn a_shape_is_timed_without_a_checkpoint_and_says_what_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let models =
        format!("{{name: tiny, shape: {TINY}}}, {{name: half, dtype: bf16, shape: {TINY}}}");
    let path = experiment(
        dir.path(),
        &models,
        "unified@2, early-exit: {threshold: 0.5}",
    );
    let out = dir.path().join("out");
    let run = || stdout(skipbench().arg("run").arg(&path).arg("--out").arg(&out));
    let text = run();
    assert_names(&text, &["tiny (random weights)", "half (random weights)"]);
    let rows = csv_rows(&out.join("results.csv"));
    assert_eq!(rows.len(), 6);
    for row in &rows {
        assert_eq!(row["bleu"], "", "what it says is not scored");
        assert!(!row["achieved_speedup"].is_empty());
        assert_eq!(row["failure"], "");
    }
    assert_eq!(
        (
            rows[1]["label"].as_str(),
            rows[1]["layers_per_token"].as_str()
        ),
        ("unified@2", "3.0")
    );
    let types: Vec<&str> = rows.iter().map(|row| row["dtype"].as_str()).collect();
    assert_eq!(types, ["f32", "f32", "f32", "bf16", "bf16", "bf16"]);
    // Half the bytes for half the bits, but for what is kept in f32 beside them.
    let bytes = |row: usize| rows[row]["layers_mbytes"].parse::<f64>().unwrap();
    assert!((bytes(3) / bytes(0) - 0.5).abs() < 0.01);
    assert!(bytes(1) < 0.51 * bytes(0), "three layers of six");
    run();
    for (again, row) in csv_rows(&out.join("results.csv")).iter().zip(&rows) {
        assert_eq!(
            again["tokens_per_s"], row["tokens_per_s"],
            "nothing is run again"
        );
    }
}

/// The ledger's bytes too, and the report names it.
#[test]
fn a_kv_cache_of_16_bits_takes_half_and_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let model = |more: &str| format!("{{{more}, shape: {TINY}}}");
    let models = ["name: wide", "name: own, kv-dtype: f16", "name: said"].map(model);
    let path = experiment(dir.path(), &models.join(", "), "unified@2");
    let out = dir.path().join("out");
    let mut run = skipbench();
    run.arg("run").arg(&path).arg("--out").arg(&out);
    stdout(run.args(["--set", "models.2.kv-dtype=bf16"]));
    let report = std::fs::read_to_string(out.join("table.md")).unwrap();
    assert_names(&report, &["KV cache in f16", "KV cache in bf16"]);
    let rows = csv_rows(&out.join("results.csv"));
    let kept: Vec<&str> = rows.iter().map(|row| row["kv_dtype"].as_str()).collect();
    assert_eq!(kept, ["", "", "f16", "f16", "bf16", "bf16"]);
    for column in ["peak_kv_bytes", "kv_read_mbytes"] {
        let of = |row: usize| rows[row][column].parse::<f64>().unwrap();
        for row in 2..6 {
            assert!((of(row) / of(row % 2) - 0.5).abs() < 1e-9, "{column}");
        }
    }
}

#[test]
fn what_is_no_shape_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let wrong = |models: &str, strategies: &str, parts: &[&str]| {
        let path = experiment(dir.path(), models, strategies);
        let out = dir.path().join("out");
        let text = refused(skipbench().arg("run").arg(path).arg("--out").arg(out));
        assert_names(&text, parts);
    };
    wrong(
        "{shape: gpt-5}",
        "top",
        &["gpt-5", "bloomz-7b1", "e.yaml:2"],
    );
    wrong("{name: x}", "top", &["`path`", "`shape`", "e.yaml:2"]);
    wrong(
        "{path: x, shape: qwen3-8b}",
        "top",
        &["either a `path` or a `shape`"],
    );
    wrong("{shape: {hidden_size: 8}}", "top", &["model_type"]);
    wrong(
        "{shape: {model_type: llama, hidden_size: 8}}",
        "top",
        &["the shape llama", "intermediate_size"],
    );
    let oracle = format!("{{shape: {TINY}}}");
    wrong(
        &oracle,
        "oracle-exit",
        &["oracle", "says nothing", "e.yaml:4"],
    );
}

#[test]
fn a_model_beyond_the_memory_is_refused_before_it_is_made() {
    let dir = tempfile::tempdir().unwrap();
    let models = "{shape: {like: llama-3.1-8b, num_hidden_layers: 250, hidden_size: 65536, intermediate_size: 262144, num_attention_heads: 512}}";
    let path = experiment(dir.path(), models, "top");
    let out = dir.path().join("out");
    let text = refused(skipbench().arg("run").arg(path).arg("--out").arg(out));
    assert_names(
        &text,
        &[
            "like llama-3.1-8b (random weights)",
            "take 54.9 TiB as `f32`",
            "are free",
            "no element type makes them small enough",
        ],
    );
}
