//! GGUF files against the Hugging Face folders that they were made from; `scripts/fixtures/make_gguf_fixtures.py` makes
//! them.

use crate::support::{assert_close, expected, fixture, greedy, load, logits};
use skipbench_model::{
    Backend, CausalLm, Decoder, ModelConfig, Span, SpecialTokens, TextTokenizer, Tokenize,
};
use std::path::{Path, PathBuf};

pub(crate) fn gguf(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/gguf")
        .join(format!("{name}.gguf"))
}

/// All models there are as GGUF.
fn names() -> Vec<String> {
    let folder = std::fs::read_dir(gguf("").parent().unwrap()).unwrap();
    let names = folder.filter_map(|entry| {
        let name = entry.unwrap().file_name().into_string().unwrap();
        let name = name.strip_suffix(".gguf")?.to_owned();
        fixture(&name).is_dir().then_some(name)
    });
    names.collect()
}

/// Logits of the last token of each prompt.
fn last_logits(model: &Decoder, name: &str) -> Vec<Vec<f32>> {
    let all: Vec<usize> = (0..model.sizes().n_layers).collect();
    let rows = expected(name);
    let last = rows.iter().map(|row| {
        let prompt = &row.prompt;
        let mut cache = model.new_cache(1, vec![prompt.len(); all.len()]).unwrap();
        let spans = Span::prompts([prompt.len()]);
        logits(model, prompt, &mut cache, &spans, &all)
            .pop()
            .unwrap()
    });
    last.collect()
}

/// What transformers computes with the unpacked weights, where that is not what the folder gives.
fn own_golden(name: &str) -> Option<Vec<Vec<f32>>> {
    let text = std::fs::read_to_string(gguf(name).with_extension("json")).ok()?;
    Some(serde_json::from_str(&text).unwrap())
}

#[test]
fn plain_weights_give_what_the_folder_gives() {
    let names: Vec<String> = names()
        .into_iter()
        .filter(|name| own_golden(name).is_none())
        .collect();
    for needed in [
        "llama-bf16",
        "llama-yarn",
        "qwen2-v5-tied",
        "qwen3-bare",
        "phi3-longrope",
        "gpt-neox",
        "gpt-neox-sequential",
        "bloom-f16",
    ] {
        assert!(names.iter().any(|name| name == needed), "{needed}");
    }
    for name in names {
        for backend in [Backend::Auto, Backend::Composed] {
            let model = load(&gguf(&name), backend);
            let folder = load(&fixture(&name), backend);
            assert_eq!(model.sizes(), folder.sizes(), "{name}");
            let wanted = last_logits(&folder, &name);
            for (found, wanted) in last_logits(&model, &name).iter().zip(&wanted) {
                assert_close(found, wanted, 1e-4, &name);
            }
            for row in expected(&name) {
                let all: Vec<usize> = (0..model.sizes().n_layers).collect();
                let tokens = greedy(&model, &row.prompt, &all, row.full.len());
                assert_eq!(tokens, row.full, "{name}");
            }
        }
    }
}

#[test]
fn other_weights_give_what_transformers_gives_with_the_unpacked_ones() {
    for name in ["llama2-gqa-tied", "llama3-v5", "qwen2", "gemma2", "gemma3"] {
        let wanted = own_golden(name).unwrap();
        for backend in [Backend::Auto, Backend::Composed] {
            let found = last_logits(&load(&gguf(name), backend), name);
            assert_eq!(found.len(), wanted.len());
            for (found, wanted) in found.iter().zip(&wanted) {
                assert_close(found, wanted, 1e-4, name);
            }
        }
    }
}

#[test]
fn a_model_is_known_without_its_weights() {
    let config = ModelConfig::open(&gguf("llama-bf16")).unwrap();
    let folder = ModelConfig::open(&fixture("llama-bf16")).unwrap();
    assert_eq!(config, folder);
}

#[test]
fn a_tokenizer_is_in_the_file() {
    let tokenizer = TextTokenizer::load(&gguf("qwen2"), 96).unwrap();
    // A beginning of sequence, then `th` by the one merge.
    let ids = tokenizer.encode("the a</s>").unwrap();
    let id = |char: char| 5 + (char as u32 - 33);
    assert_eq!(ids, [1, 3, id('e'), 4, id('a'), 2]);
    assert_eq!(tokenizer.decode(&ids).unwrap(), "the a");
    assert_eq!(tokenizer.encode_with("a", false).unwrap(), [id('a')]);
    assert!(tokenizer.adds_bos().unwrap());
    assert_eq!(tokenizer.eos_ids(), [2]);
    assert_eq!(tokenizer.special_tokens().bos.as_deref(), Some("<s>"));
    let special = SpecialTokens::of_gguf(&gguf("qwen2")).unwrap();
    assert_eq!(special.as_ref(), Some(tokenizer.special_tokens()));
    assert_eq!(SpecialTokens::of_gguf(&fixture("qwen2")).unwrap(), None);
}
