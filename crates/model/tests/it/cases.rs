//! Kinds of checkpoint that public bug reports are about, each made from the project's own small one.

use crate::support::{assert_close, edit_config, edit_tensors, greedy, load, logits};
use candle_core::{DType, Device, Tensor};
use serde_json::json;
use skipbench_model::{Backend, CausalLm, Decoder, Span};
use std::path::{Path, PathBuf};
use tempfile::TempDir;

fn checkpoint() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../data/checkpoints/adapted")
}

/// A writable copy of the checkpoint.
fn copied() -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    for name in ["config.json", "model.safetensors"] {
        std::fs::copy(checkpoint().join(name), dir.path().join(name)).unwrap();
    }
    dir
}

/// Greedy tokens behind a short prompt, and the last logits of one of 120 tokens.
fn answer(dir: &Path) -> (Vec<u32>, Vec<f32>) {
    let model = load(dir, Backend::Auto);
    let all: Vec<usize> = (0..model.sizes().n_layers).collect();
    let tokens = greedy(&model, &[1, 40, 200, 33, 7], &all, 24);
    let long: Vec<u32> = (0..120).map(|id| 3 + id * 37 % 1000).collect();
    let mut cache = model.new_cache(1, vec![120; all.len()]).unwrap();
    let logits = logits(&model, &long, &mut cache, &Span::prompts([120]), &all);
    (tokens, logits.last().unwrap().clone())
}

/// The same of a copy whose config has been edited.
fn edited(edit: impl FnOnce(&mut serde_json::Value)) -> (Vec<u32>, Vec<f32>) {
    let dir = copied();
    edit_config(dir.path(), edit);
    answer(dir.path())
}

#[test]
fn ways_to_write_the_same_rope() {
    let plain = answer(&checkpoint());
    for (key, value) in [
        (
            "rope_parameters",
            json!({"rope_type": "default", "rope_theta": 10000.0}),
        ),
        ("rope_scaling", json!({"type": "linear", "factor": 1.0})),
        ("rope_scaling", json!({"type": "dynamic", "factor": 2.0})),
        ("rope_scaling", json!({})),
    ] {
        assert_eq!(
            edited(|config| config[key] = value.clone()),
            plain,
            "{value}"
        );
    }
    let llama3 = json!({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 128});
    let mut both = llama3.clone();
    both["type"] = "linear".into();
    let scaled = edited(|config| config["rope_scaling"] = llama3);
    assert_eq!(edited(|config| config["rope_scaling"] = both), scaled);
    assert_ne!(scaled, plain);
}

#[test]
fn a_window_above_all_layers_is_none() {
    let qwen2 = |window: serde_json::Value| {
        let dir = copied();
        edit_config(dir.path(), |config| {
            config["model_type"] = "qwen2".into();
            for (key, value) in window.as_object().unwrap() {
                config[key] = value.clone();
            }
        });
        edit_tensors(dir.path(), |tensors| {
            let biases: Vec<(String, Tensor)> = tensors
                .iter()
                .filter(|(name, _)| {
                    ["q_proj", "k_proj", "v_proj"]
                        .iter()
                        .any(|p| name.contains(p))
                })
                .map(|(name, weight)| {
                    let rows = weight.dim(0).unwrap();
                    let zeros = Tensor::zeros(rows, DType::F32, &Device::Cpu).unwrap();
                    (name.replace(".weight", ".bias"), zeros)
                })
                .collect();
            tensors.extend(biases);
        });
        answer(dir.path())
    };
    let plain = answer(&checkpoint());
    let above = json!({"use_sliding_window": true, "sliding_window": 4, "max_window_layers": 16});
    assert_eq!(
        qwen2(json!({"use_sliding_window": false, "sliding_window": 4})),
        plain
    );
    assert_eq!(qwen2(above), plain);
    let low = json!({"use_sliding_window": true, "sliding_window": 4, "max_window_layers": 0});
    assert_ne!(qwen2(low), plain);
}

#[test]
fn dynamic_rope_beyond_the_trained_length_differs_from_plain() {
    let dir = copied();
    edit_config(dir.path(), |config| {
        config["max_position_embeddings"] = 16.into();
        config["rope_scaling"] = json!({"type": "dynamic", "factor": 2.0});
    });
    let ids: Vec<u32> = (0..24).map(|id| 3 + 11 * id).collect();
    let last = |dir: &Path, len: usize| {
        let model = load(dir, Backend::Auto);
        let all: Vec<usize> = (0..model.sizes().n_layers).collect();
        let mut cache = model.new_cache(1, vec![24; all.len()]).unwrap();
        let all_logits = logits(&model, &ids[..len], &mut cache, &Span::prompts([len]), &all);
        all_logits.last().unwrap().clone()
    };
    assert_close(
        &last(dir.path(), 16),
        &last(&checkpoint(), 16),
        0.0,
        "up to the trained length",
    );
    assert_ne!(last(dir.path(), 17), last(&checkpoint(), 17));
    let model = load(dir.path(), Backend::Auto);
    assert_eq!(model.sizes().max_positions, None);
}

#[test]
fn a_prompt_that_holds_an_id_beyond_the_embedding_is_refused() {
    let model = load(&checkpoint(), Backend::Auto);
    let beyond = model.sizes().vocab_size as u32;
    let spans = Span::prompts([2]);
    assert!(model.embed(&[beyond - 1, 3], &spans).is_ok());
    let message = model.embed(&[3, beyond], &spans).unwrap_err().to_string();
    assert!(message.contains(&beyond.to_string()), "{message}");
}

#[test]
fn an_lm_head_of_another_size_is_refused() {
    let dir = copied();
    edit_tensors(dir.path(), |tensors| {
        let head = tensors["lm_head.weight"].narrow(0, 0, 8).unwrap();
        tensors.insert("lm_head.weight".to_owned(), head.contiguous().unwrap());
    });
    for tied in [true, false] {
        edit_config(dir.path(), |config| {
            config["tie_word_embeddings"] = tied.into()
        });
        let error = Decoder::load(dir.path(), &Device::Cpu, None, Backend::Auto)
            .err()
            .unwrap();
        assert!(error.to_string().contains("`lm_head.weight`"), "{error}");
    }
}
