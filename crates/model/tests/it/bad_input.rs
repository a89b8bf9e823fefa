//! A damaged or foreign checkpoint gives an error that names the file, key or tensor.

use crate::support::{edit_config, edit_tensors, fixture, writable};
use candle_core::Device;
use skipbench_model::{Backend, CausalLm, Decoder, Span, TextTokenizer, Tokenize};
use std::fs;
use std::path::Path;

fn load_error(dir: &Path) -> String {
    match Decoder::load(dir, &Device::Cpu, None, Backend::Auto) {
        Ok(_) => panic!("{} loaded", dir.display()),
        Err(error) => error.to_string(),
    }
}

fn assert_names(message: &str, parts: &[&str]) {
    for part in parts {
        assert!(message.contains(part), "`{part}` is not in: {message}");
    }
}

#[test]
fn a_folder_without_its_files() {
    let dir = tempfile::tempdir().unwrap();
    assert_names(&load_error(dir.path()), &["config.json", "is missing"]);
    let dir = writable("llama1");
    fs::remove_file(dir.path().join("model.safetensors")).unwrap();
    assert_names(&load_error(dir.path()), &["model.safetensors"]);
    let dir = writable("mistral-sharded");
    fs::remove_file(dir.path().join("model-00002-of-00003.safetensors")).unwrap();
    assert_names(
        &load_error(dir.path()),
        &["model-00002-of-00003.safetensors"],
    );
}

#[test]
fn a_truncated_checkpoint_at_any_length() {
    let dir = writable("llama1");
    let path = dir.path().join("model.safetensors");
    let whole = fs::read(&path).unwrap();
    for len in [0, 7, 8, 100, whole.len() / 2, whole.len() - 1] {
        fs::write(&path, &whole[..len]).unwrap();
        let message = load_error(dir.path());
        assert_names(&message, &["model.safetensors", "not a complete"]);
    }
}

#[test]
fn a_tensor_that_is_missing_or_has_another_shape() {
    let name = "model.layers.3.mlp.up_proj.weight";
    let dir = writable("llama1");
    edit_tensors(dir.path(), |tensors| {
        tensors.remove(name).unwrap();
    });
    assert_names(&load_error(dir.path()), &[name, "missing"]);
    let dir = writable("llama1");
    edit_tensors(dir.path(), |tensors| {
        let turned = tensors[name].t().unwrap().contiguous().unwrap();
        tensors.insert(name.to_owned(), turned);
    });
    assert_names(&load_error(dir.path()), &[name, "[32, 48]", "[48, 32]"]);
}

#[test]
fn a_config_that_cannot_be_used() {
    let cases: [(&str, serde_json::Value, &[&str]); 6] = [
        (
            "model_type",
            serde_json::json!("gpt2"),
            &["`gpt2`", "llama", "gemma3_text"],
        ),
        (
            "hidden_size",
            serde_json::Value::Null,
            &["`hidden_size` is missing"],
        ),
        (
            "num_hidden_layers",
            serde_json::json!("six"),
            &["num_hidden_layers", "six"],
        ),
        (
            "num_key_value_heads",
            serde_json::json!(3),
            &["4 query heads", "3 key-value heads"],
        ),
        (
            "torch_dtype",
            serde_json::json!("int8"),
            &["int8", "bfloat16"],
        ),
        (
            "num_hidden_layers",
            serde_json::json!(7),
            &["model.layers.6."],
        ),
    ];
    for (key, value, parts) in cases {
        let dir = writable("llama1");
        edit_config(dir.path(), |config| config[key] = value);
        assert_names(&load_error(dir.path()), parts);
    }
    let dir = writable("llama1");
    for text in ["", "{", "[1]", "nonsense"] {
        fs::write(dir.path().join("config.json"), text).unwrap();
        assert_names(&load_error(dir.path()), &["config.json"]);
    }
}

#[test]
fn ids_outside_the_vocabulary_and_a_full_cache() {
    let model = Decoder::load(&fixture("llama1"), &Device::Cpu, None, Backend::Auto).unwrap();
    assert_names(
        &model
            .embed(&[3, 96], &Span::prompts([2]))
            .unwrap_err()
            .to_string(),
        &["96"],
    );
    let mut cache = model.new_cache(1, vec![2; 6]).unwrap();
    let hidden = model.embed(&[3, 4, 5], &Span::prompts([3])).unwrap();
    assert!(
        model
            .layer(0, &hidden, &mut cache, &Span::prompts([3]))
            .is_err()
    );
}

/// What no machine can hold is refused with its size, before anything is asked of the allocator.
#[test]
fn batches_and_prompts_that_do_not_fit_in_memory() {
    for backend in [Backend::Auto, Backend::Composed] {
        let model = crate::support::load(&fixture("bloom"), backend);
        let mut cache = model.new_cache(1 << 20, vec![usize::MAX; 6]).unwrap();
        let message = cache.reserve(usize::MAX).unwrap_err().to_string();
        assert_names(&message, &["KV cache", "PiB", "free", "max-new-tokens"]);
        let hidden = model.embed(&[3], &Span::prompts([1])).unwrap();
        let mut cache = model.new_cache(1, vec![0; 6]).unwrap();
        let span = Span {
            row: 0,
            start: 0,
            len: 1 << 45,
        };
        let error = model.layer(0, &hidden, &mut cache, &[span]).unwrap_err();
        assert_names(&error.to_string(), &["PiB", "shorten the prompts"]);
    }
}

/// Reading a position that was never written is refused, not answered with zeros.
#[test]
fn a_hole_in_the_cache_is_refused() {
    for backend in [Backend::Auto, Backend::Composed] {
        let model = crate::support::load(&fixture("bloom"), backend);
        let mut cache = model.new_cache(1, vec![8; 6]).unwrap();
        let hidden = model.embed(&[3], &Span::prompts([1])).unwrap();
        model
            .layer(2, &hidden, &mut cache, &[Span::token(0, 0)])
            .unwrap();
        let message = model
            .layer(2, &hidden, &mut cache, &[Span::token(0, 2)])
            .unwrap_err()
            .to_string();
        assert_names(&message, &["layer 2", "position 1"]);
    }
}

#[test]
fn a_tokenizer_that_cannot_be_used() {
    let dir = writable("llama1");
    let message = |dir: &Path| {
        TextTokenizer::load(dir, 96)
            .map(|_| ())
            .unwrap_err()
            .to_string()
    };
    assert_names(&message(dir.path()), &["tokenizer.json", "missing"]);
    fs::write(dir.path().join("tokenizer.json"), "{}").unwrap();
    assert_names(&message(dir.path()), &["tokenizer.json"]);
    let tokenizer = words(98);
    fs::write(dir.path().join("tokenizer.json"), tokenizer.to_string()).unwrap();
    let tokenizer = TextTokenizer::load(dir.path(), 96).unwrap();
    assert_eq!(tokenizer.encode("w95").unwrap(), [95]);
    let message = tokenizer.encode("w97").unwrap_err().to_string();
    assert_names(
        &message,
        &["tokenizer.json", "`w97`", "97", "96 embeddings"],
    );
}

/// A tokenizer of `n` words.
fn words(n: usize) -> serde_json::Value {
    let vocab: serde_json::Map<_, _> = (0..n)
        .map(|id| (format!("w{id}"), serde_json::json!(id)))
        .collect();
    serde_json::json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [],
        "normalizer": null, "pre_tokenizer": null, "post_processor": null, "decoder": null,
        "model": {"type": "WordLevel", "vocab": vocab, "unk_token": "w0"},
    })
}

#[test]
fn a_byte_order_mark_is_no_part_of_a_file() {
    let dir = writable("mistral-sharded");
    fs::write(dir.path().join("tokenizer.json"), words(8).to_string()).unwrap();
    for name in [
        "config.json",
        "tokenizer.json",
        "model.safetensors.index.json",
    ] {
        let path = dir.path().join(name);
        let text = fs::read_to_string(&path).unwrap();
        fs::write(&path, format!("\u{feff}{text}")).unwrap();
    }
    let model = Decoder::load(dir.path(), &Device::Cpu, None, Backend::Auto).unwrap();
    assert_eq!(model.sizes().vocab_size, 96);
    let tokenizer = TextTokenizer::load(dir.path(), 96).unwrap();
    assert_eq!(tokenizer.encode("w3").unwrap(), [3]);
}

#[test]
fn quantised_weights_are_refused() {
    for method in ["fp8", "bitsandbytes", "gptq", "awq", "compressed-tensors"] {
        let dir = writable("llama1");
        edit_config(dir.path(), |config| {
            config["quantization_config"] = serde_json::json!({"quant_method": method});
        });
        assert_names(
            &load_error(dir.path()),
            &["config.json", "quantization_config", method, "GGUF"],
        );
    }
    let dir = writable("llama1");
    let path = dir.path().join("model.safetensors");
    let mut bytes = fs::read(&path).unwrap();
    let len = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let header = String::from_utf8(bytes[8..8 + len].to_vec()).unwrap();
    // Integers of the same width stand in for a type that holds packed values.
    let packed = header.replacen("\"F32\"", "\"I32\"", 1);
    bytes[8..8 + len].copy_from_slice(packed.as_bytes());
    fs::write(&path, bytes).unwrap();
    assert_names(
        &load_error(dir.path()),
        &["I32", "quantization_config", "GGUF"],
    );
}

#[test]
fn an_index_may_name_tensors_that_nobody_needs() {
    let dir = writable("mistral-sharded");
    let path = dir.path().join("model.safetensors.index.json");
    let mut index: serde_json::Value =
        serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
    index["weight_map"]["model.layers.0.self_attn.rotary_emb.inv_freq"] =
        "model-00001-of-00003.safetensors".into();
    fs::write(&path, index.to_string()).unwrap();
    assert!(Decoder::load(dir.path(), &Device::Cpu, None, Backend::Auto).is_ok());
}
