//! What holds for every family: names with and without a prefix, parts of layers, keys of skipped layers, narrow types.

use crate::support::{
    argmax, assert_close, edit_config, edit_tensors, expected, fixture, fixtures, greedy, load,
    logits, writable,
};
use candle_core::{Device, Tensor};
use skipbench_model::{Backend, CausalLm, Decoder, Part, Span, WeightType};

const BACKENDS: [Backend; 2] = [Backend::Auto, Backend::Composed];

/// What stands in front of a base model's names inside a model with an LM head.
const PREFIXES: [&str; 4] = ["model.decoder.", "gpt_neox.", "transformer.", "model."];

#[test]
fn a_base_model_is_written_with_and_without_its_prefix() {
    for name in fixtures() {
        if fixture(&name).join("model.safetensors.index.json").exists() {
            continue;
        }
        let model = load(&fixture(&name), Backend::Auto);
        let prompt = [3, 50, 7, 21, 90, 4];
        let all: Vec<usize> = (0..model.sizes().n_layers).collect();
        let bits = |model: &Decoder| {
            let mut cache = model.new_cache(1, vec![6; all.len()]).unwrap();
            logits(model, &prompt, &mut cache, &Span::prompts([6]), &all)
        };
        let wanted = bits(&model);
        let mut forms = 0;
        for prefix in [
            "",
            "model.",
            "gpt_neox.",
            "transformer.",
            "model.decoder.",
            "decoder.",
        ] {
            let dir = writable(&name);
            edit_tensors(dir.path(), |tensors| {
                let renamed = tensors.drain().map(|(name, tensor)| {
                    let is_head = name == "lm_head.weight" || name == "embed_out.weight";
                    let bare = PREFIXES
                        .iter()
                        .find_map(|known| name.strip_prefix(known))
                        .unwrap_or(&name);
                    match is_head {
                        true => (name, tensor),
                        false => (format!("{prefix}{bare}"), tensor),
                    }
                });
                *tensors = renamed.collect();
            });
            let form = Decoder::load(
                dir.path(),
                &Device::Cpu,
                Some(WeightType::F32),
                Backend::Auto,
            );
            if let Ok(form) = form {
                assert_eq!(bits(&form), wanted, "{name} {prefix}");
                forms += 1;
            }
        }
        // Bare, and under the family's own prefix; OPT has two.
        let is_opt = name.starts_with("opt");
        assert_eq!(forms, if is_opt { 3 } else { 2 }, "{name}");
    }
}

#[test]
fn the_parts_of_a_layer_make_the_whole() {
    for name in fixtures() {
        for backend in BACKENDS {
            let model = load(&fixture(&name), backend);
            let spans = Span::prompts([9, 3]);
            let ids: Vec<u32> = (0..12).map(|id| 3 + 7 * id).collect();
            let hidden = model.embed(&ids, &spans).unwrap();
            let run = |part, hidden: &Tensor| {
                let mut cache = model.new_cache(2, vec![9; 6]).unwrap();
                model
                    .layer_part(2, part, hidden, &mut cache, &spans)
                    .unwrap()
            };
            let values = |x: &Tensor| x.flatten_all().unwrap().to_vec1::<f32>().unwrap();
            let whole = values(&run(Part::Whole, &hidden));
            let attended = run(Part::Attention, &hidden);
            let what = format!("{name} {backend:?}");
            if model.sizes().parallel {
                let mlp = run(Part::Mlp, &hidden);
                let sum = ((&attended + &mlp).unwrap() - &hidden).unwrap();
                assert_close(&whole, &values(&sum), 1e-5, &what);
                let behind = values(&run(Part::Mlp, &attended));
                assert_ne!(whole, behind, "{what}");
            } else {
                assert_eq!(whole, values(&run(Part::Mlp, &attended)), "{what}");
            }
        }
    }
}

/// A skipped layer's propagated keys and values are those that it would have written for the same state.
#[test]
fn propagated_keys_are_what_the_layer_writes() {
    for name in fixtures() {
        for backend in BACKENDS {
            let model = load(&fixture(&name), backend);
            let spans = [
                Span {
                    row: 0,
                    start: 0,
                    len: 7,
                },
                Span {
                    row: 1,
                    start: 0,
                    len: 2,
                },
            ];
            let ids: Vec<u32> = (0..9).map(|id| 5 + 9 * id).collect();
            let hidden = model.embed(&ids, &spans).unwrap();
            for layer in 0..6 {
                let held = |fill: bool| {
                    let mut cache = model.new_cache(2, vec![8; 6]).unwrap();
                    match fill {
                        true => model.fill_kv(layer, &hidden, &mut cache, &spans).unwrap(),
                        false => {
                            model.layer(layer, &hidden, &mut cache, &spans).unwrap();
                        }
                    }
                    [(0, 0), (0, 6), (1, 1)]
                        .map(|(row, at)| cache.key_value(layer, row, at).unwrap())
                };
                assert_eq!(held(true), held(false), "{name} {backend:?} {layer}");
            }
        }
    }
}

/// Of a window of w, position p sees p - w + 1 and not the one before it.
#[test]
fn a_window_ends_where_it_says() {
    for name in ["mistral-window", "gemma2", "phi3-window"] {
        for backend in BACKENDS {
            let dir = writable(name);
            // One layer, so that nothing is seen through another.
            edit_config(dir.path(), |config| config["num_hidden_layers"] = 1.into());
            let model = load(dir.path(), backend);
            let window = model.sizes().windows[0].unwrap();
            let last = |ids: &[u32]| {
                let mut cache = model.new_cache(1, vec![16]).unwrap();
                let prompt = Span::prompts([ids.len() - 1]);
                logits(&model, &ids[..ids.len() - 1], &mut cache, &prompt, &[0]);
                let step = Span::token(0, ids.len() - 1);
                let stepped = logits(&model, &ids[ids.len() - 1..], &mut cache, &[step], &[0]);
                let mut cache = model.new_cache(1, vec![16]).unwrap();
                let whole = logits(&model, ids, &mut cache, &Span::prompts([ids.len()]), &[0]);
                (stepped[0].clone(), whole[ids.len() - 1].clone())
            };
            let ids: Vec<u32> = (0..12).map(|id| 3 + 7 * id).collect();
            let plain = last(&ids);
            assert_close(&plain.0, &plain.1, 1e-5, name);
            for at in 0..12 {
                let mut other = ids.clone();
                other[at] = 95;
                let changed = last(&other);
                let seen = at + window >= 12;
                let differs = |a: &[f32], b: &[f32]| a.iter().zip(b).any(|(a, b)| a != b);
                let what = format!("{name} {backend:?}: position {at}");
                assert_eq!(differs(&changed.0, &plain.0), seen, "{what}");
                assert_eq!(differs(&changed.1, &plain.1), seen, "{what}");
            }
        }
    }
}

/// Both tensors are there and differ: not tied, whatever the config says. One is there: it stands for both.
#[test]
fn whichever_of_two_tied_tensors_is_written_counts() {
    let all: Vec<usize> = (0..6).collect();
    let tokens = |dir: &std::path::Path| greedy(&load(dir, Backend::Auto), &[5, 9, 70], &all, 8);
    let tie = |dir: &std::path::Path| edit_config(dir, |c| c["tie_word_embeddings"] = true.into());
    for (name, embedding, head) in [
        ("llama1", "model.embed_tokens.weight", "lm_head.weight"),
        ("gpt-neox", "gpt_neox.embed_in.weight", "lm_head.weight"),
        (
            "opt-sums-projected",
            "model.decoder.embed_tokens.weight",
            "lm_head.weight",
        ),
        (
            "bloom",
            "transformer.word_embeddings.weight",
            "lm_head.weight",
        ),
        ("gemma3", "model.embed_tokens.weight", "lm_head.weight"),
    ] {
        let tied = writable(name);
        tie(tied.path());
        edit_tensors(tied.path(), |tensors| {
            tensors.remove(head);
        });
        let wanted = tokens(tied.path());
        let only_head = writable(name);
        tie(only_head.path());
        edit_tensors(only_head.path(), |tensors| {
            let both = tensors.remove(embedding).unwrap();
            tensors.insert(head.to_owned(), both);
        });
        assert_eq!(tokens(only_head.path()), wanted, "{name}");
        let twice = writable(name);
        tie(twice.path());
        edit_tensors(twice.path(), |tensors| {
            let both = tensors[embedding].copy().unwrap();
            tensors.insert(head.to_owned(), both);
        });
        assert_eq!(tokens(twice.path()), wanted, "{name}");

        let other = |tied: bool| {
            let dir = writable(name);
            edit_config(dir.path(), |c| c["tie_word_embeddings"] = tied.into());
            edit_tensors(dir.path(), |tensors| {
                let turned = tensors[embedding].flip(&[0]).unwrap().contiguous().unwrap();
                tensors.insert(head.to_owned(), turned);
            });
            tokens(dir.path())
        };
        assert_eq!(other(true), other(false), "{name}");
        assert_ne!(other(true), wanted, "{name}");
    }
}

/// `model_type` decides; where it is not given, the class does, in whatever case it is written.
#[test]
fn the_family_is_what_model_type_says() {
    let family = |model_type: Option<&str>, class: &str| {
        let dir = writable("llama1");
        edit_config(dir.path(), |config| {
            config["model_type"] = model_type.into();
            config["architectures"] = serde_json::json!([class]);
        });
        Decoder::load(dir.path(), &Device::Cpu, None, Backend::Auto)
            .map(|model| format!("{:?}", model.config().family))
            .map_err(|error| error.to_string())
    };
    for (model_type, class) in [
        (Some("llama"), "LLaMAForCausalLM"),
        (Some("llama"), "MyOwnLlama"),
        (None, "LLaMAForCausalLM"),
        (None, "LlamaModel"),
    ] {
        assert_eq!(family(model_type, class).unwrap(), "Llama");
    }
    assert_eq!(
        family(Some("mistral"), "LlamaForCausalLM").unwrap(),
        "Mistral"
    );
    for (model_type, class) in [
        (Some("mamba"), "LlamaForCausalLM"),
        (None, "MambaForCausalLM"),
    ] {
        let error = family(model_type, class).unwrap_err();
        let named = model_type.unwrap_or(class);
        assert!(
            error.contains(named) && error.contains("gpt_neox"),
            "{error}"
        );
    }
}

/// What transformers loads and this crate does not is refused by the key that says so.
#[test]
fn what_is_not_supported_is_refused_by_name() {
    type Case = (&'static str, &'static str, serde_json::Value, &'static str);
    let sliding = serde_json::json!(vec!["sliding_attention"; 6]);
    let cases: [Case; 11] = [
        ("qwen2", "layer_types", sliding, "no `sliding_window`"),
        (
            "gemma3",
            "use_bidirectional_attention",
            true.into(),
            "continues none",
        ),
        (
            "gemma2",
            "sliding_window",
            serde_json::Value::Null,
            "layers of this family slide",
        ),
        (
            "gemma3-v5",
            "layer_types",
            serde_json::json!(["full_attention"]),
            "6 layers",
        ),
        ("qwen2", "layer_types", serde_json::json!(null), ""),
        (
            "opt",
            "_remove_final_layer_norm",
            true.into(),
            "no released OPT",
        ),
        (
            "opt",
            "activation_function",
            "mish".into(),
            "gelu_pytorch_tanh",
        ),
        (
            "phi3-longrope",
            "hidden_act",
            "quick_gelu".into(),
            "quick_gelu",
        ),
        (
            "qwen2-window",
            "max_window_layers",
            "all".into(),
            "number of layers",
        ),
        (
            "llama1",
            "num_hidden_layers",
            4_000_000_000u64.into(),
            "no model has so many",
        ),
        (
            "llama-yarn",
            "rope_scaling",
            serde_json::json!({"rope_type": "yarn", "factor": -1}),
            "`factor`",
        ),
    ];
    for (name, key, value, part) in cases {
        let dir = writable(name);
        edit_config(dir.path(), |config| config[key] = value);
        match Decoder::load(dir.path(), &Device::Cpu, None, Backend::Auto) {
            Ok(_) => assert_eq!(part, "", "{name} with {key} loads"),
            Err(error) => {
                let message = error.to_string();
                assert!(
                    !part.is_empty() && message.contains(part),
                    "{name}: {message}"
                );
                assert!(message.contains("config.json"), "{message}");
            }
        }
    }
}

/// Of dynamic RoPE, a token behind the prompt does not depend on how many come with it; a longer prompt changes all.
#[test]
fn dynamic_rope_is_the_same_token_by_token_and_in_one_piece() {
    for backend in BACKENDS {
        let model = load(&fixture("llama-dynamic"), backend);
        let all: Vec<usize> = (0..6).collect();
        let row = expected("llama-dynamic").pop().unwrap();
        let len = row.prompt.len();
        let mut cache = model.new_cache(1, vec![64; 6]).unwrap();
        logits(&model, &row.prompt, &mut cache, &Span::prompts([len]), &all);
        let fed = &row.full[..row.full.len() - 1];
        let span = Span {
            row: 0,
            start: len,
            len: fed.len(),
        };
        let votes = logits(&model, fed, &mut cache, &[span], &all);
        let found: Vec<u32> = votes.iter().map(|logits| argmax(logits)).collect();
        assert_eq!(found, row.full[1..], "{backend:?}");
    }
}
