//! Layers that are cut out of the prompt as well, and sub-layers that are cut out alone.

use crate::support::{expected, fixed, generate, load, long, ragged, spec, tokens};
use skipbench_model::{Backend, CausalLm, Part, Span};
use skipbench_strategy::LayerSet;

/// Greedy decoding by a network that has only `layers`, without a cache.
fn reference(model: &dyn CausalLm, prompt: &[u32], layers: &LayerSet, new: usize) -> Vec<u32> {
    let mut ids = prompt.to_vec();
    for _ in 0..new {
        let mut cache = model.new_cache(1, vec![0; model.sizes().n_layers]).unwrap();
        let span = Span::prompts([ids.len()]);
        let mut hidden = model.embed(&ids, &span).unwrap();
        for layer in layers.iter() {
            let part = match (layers.has_attention(layer), layers.has_mlp(layer)) {
                (true, true) => Part::Whole,
                (true, false) => Part::Attention,
                _ => Part::Mlp,
            };
            hidden = model
                .layer_part(layer, part, &hidden, &mut cache, &span)
                .unwrap();
        }
        let logits = model.head(&hidden).unwrap().to_vec2::<f32>().unwrap();
        let last = logits.last().unwrap();
        let best = (0..last.len())
            .max_by(|&a, &b| last[a].total_cmp(&last[b]))
            .unwrap();
        ids.push(best as u32);
    }
    ids[prompt.len()..].to_vec()
}

#[test]
fn a_pruned_network_is_one_without_the_layers() {
    for name in ["llama1", "bloom", "qwen2", "gpt-neox", "gemma3", "opt"] {
        for backend in [Backend::Auto, Backend::Composed] {
            let model = load(name, backend);
            for text in [
                r#"{"drop-list": {"drop": [1, 4], "prefill": "skip"}}"#,
                r#"{"sleb": {"order": [3, 2], "speedup": 1.5}}"#,
                r#"{"sublayer-drop": {"speedup": 1.5}}"#,
                r#"{"sublayer-drop": {"drop": "mlp", "speedup": 1.5}}"#,
            ] {
                let spec = long(text);
                let layers = spec.build(6).unwrap().reachable();
                let generation = generate(&model, &ragged(), &spec, &fixed(8));
                for (prompt, row) in ragged().iter().zip(&generation.rows) {
                    let expected = reference(&model, prompt, &layers, 8);
                    assert_eq!(row.tokens, expected, "{name} {backend:?} {text}");
                    let each = layers.sub_layers() as f64 / 2.0;
                    assert!(row.layers.iter().all(|&layers| layers == each), "{text}");
                }
            }
        }
    }
}

#[test]
fn a_layer_without_attention_needs_no_cache() {
    let model = load("llama1", Backend::Auto);
    let bytes = |text: &str| generate(&model, &ragged(), &long(text), &fixed(8)).peak_kv_bytes;
    let full = bytes(r#"{"full": {}}"#);
    // Of twelve sub-layers four go: four of six caches.
    assert_eq!(bytes(r#"{"sublayer-drop": {"speedup": 1.5}}"#) * 3, full);
    assert_eq!(
        bytes(r#"{"sublayer-drop": {"drop": "mlp", "speedup": 1.5}}"#),
        full
    );
}

/// AdaSkip looks at the parts of a prompt's layers, and decodes as if it had not.
#[test]
fn looking_at_parts_changes_no_token() {
    for name in ["gpt-neox", "gemma2", "olmo2"] {
        for backend in [Backend::Auto, Backend::Composed] {
            let model = load(name, backend);
            let rows = expected(name);
            let prompts: Vec<_> = rows.iter().map(|row| row.prompt.clone()).collect();
            let all = generate(&model, &prompts, &spec("adaskip@1"), &fixed(12));
            let full: Vec<_> = rows.iter().map(|row| row.full.as_slice()).collect();
            assert_eq!(tokens(&all), full, "{name} {backend:?}");
        }
    }
}

/// A row of LongRoPE stays below the trained length or begins above it.
#[test]
fn a_row_that_would_grow_past_the_trained_length_of_longrope_is_refused() {
    let model = load("phi3-longrope", Backend::Auto);
    let check = |prompt: usize, new: usize| {
        let engine = skipbench_engine::Engine::new(&model);
        engine.check(&[vec![5; 3], vec![5; prompt]], &fixed(new))
    };
    assert!(check(16, 1).is_ok() && check(10, 7).is_ok() && check(17, 14).is_ok());
    let message = check(10, 8).unwrap_err().to_string();
    for part in ["row 1", "10 tokens to 17", "past 16", "max-new-tokens"] {
        assert!(message.contains(part), "{message}");
    }
}
