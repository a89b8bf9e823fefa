//! Tokens of transformers, batches against single rows, and the full network bit for bit.

use crate::support::{Hooked, expected, fixed, fixtures, generate, load, long, spec};
use proptest::prelude::*;
use skipbench_engine::Options;
use skipbench_model::{Backend, CausalLm};
use skipbench_strategy::StrategySpec;
use std::sync::Mutex;

#[test]
fn a_ragged_batch_gives_transformers_tokens() {
    for name in fixtures() {
        for backend in [Backend::Auto, Backend::Composed] {
            let model = load(&name, backend);
            let rows = expected(&name);
            let prompts: Vec<_> = rows.iter().map(|row| row.prompt.clone()).collect();
            let tokens = |spec: &StrategySpec| -> Vec<Vec<u32>> {
                let generation = generate(&model, &prompts, spec, &fixed(12));
                generation.rows.into_iter().map(|row| row.tokens).collect()
            };
            let full: Vec<_> = rows.iter().map(|row| row.full.clone()).collect();
            assert_eq!(tokens(&spec("full")), full, "{name}, {backend:?}");
            for skip in 0..3 {
                let wanted: Vec<_> = rows
                    .iter()
                    .map(|row| row.unified[skip].tokens.clone())
                    .collect();
                let speedup = rows[0].unified[skip].speedup;
                let found = tokens(&spec("unified").with_target(speedup));
                assert_eq!(found, wanted, "{name}, {backend:?}, {speedup}");
            }
        }
    }
}

/// Every strategy that can be told to run all layers then gives the full network's logits, to the last bit.
#[test]
fn all_layers_named_is_the_full_network_bit_for_bit() {
    for (fixture, backend) in [
        "llama2-gqa-tied",
        "gemma2",
        "gemma3",
        "gpt-neox",
        "olmo2",
        "opt-sums-projected",
    ]
    .into_iter()
    .flat_map(|name| [Backend::Auto, Backend::Composed].map(|backend| (name, backend)))
    {
        let model = load(fixture, backend);
        let prompts = [vec![5, 6, 7], vec![40], vec![9; 11]];
        let bits = |spec: &StrategySpec| {
            let bits = Mutex::new(Vec::new());
            let recorder = Hooked {
                inner: &model,
                layer: &|_, _, output| Ok(output),
                head: &|_, logits| {
                    let values = logits.flatten_all()?.to_vec1::<f32>()?;
                    let mut bits = bits.lock().unwrap();
                    bits.extend(values.into_iter().map(f32::to_bits));
                    Ok(logits)
                },
            };
            generate(&recorder, &prompts, spec, &fixed(8));
            bits.into_inner().unwrap()
        };
        let full = bits(&spec("full"));
        for name in [
            "unified",
            "unified:even",
            "top",
            "bottom",
            "middle",
            "random",
            "block-influence",
            "angular",
            "sleb",
            "perplexity",
            "sublayer-drop",
            "sublayer-drop:mlp",
            "skip-decode",
            "position-decay",
            "adaskip",
        ] {
            // It sees the parts of prompts one by one, which side by side add up to the same but for the last bit.
            if name == "adaskip" && model.sizes().parallel {
                continue;
            }
            let all = spec(name).with_target(1.0);
            assert!(bits(&all) == full, "{fixture}, {name}, {backend:?}");
        }
        let slowest = spec("prompt-depth").with_threshold(1.0);
        assert!(bits(&slowest) == full, "prompt-depth, {backend:?}");
        // Reads the head at every check as well, so only its tokens can be compared.
        let never = spec("early-exit").with_threshold(1.0);
        let tokens = |spec: &StrategySpec| generate(&model, &prompts, spec, &fixed(8)).rows;
        assert_eq!(tokens(&never), tokens(&spec("full")), "{backend:?}");
        let deep = spec("shallow-deep").with_threshold(1.0);
        assert_eq!(tokens(&deep), tokens(&spec("full")), "{backend:?}");
    }
}

/// Every strategy, for a model of six layers.
pub(crate) fn strategies() -> Vec<StrategySpec> {
    let mut specs: Vec<StrategySpec> = [
        "full",
        "unified@2",
        "unified:even@3",
        "top@2",
        "bottom@1.5",
        "middle@2",
        "random@2",
        "skip-decode@2",
    ]
    .map(spec)
    .into();
    for (name, threshold) in [
        ("early-exit:softmax-margin", 0.5),
        ("early-exit:max-prob", 0.6),
        ("early-exit:entropy", 0.3),
        ("early-exit:cosine", 0.7),
        ("early-exit:patience", 0.4),
        ("shallow-deep", 0.3),
        ("prompt-depth", 0.5),
    ] {
        specs.push(spec(name).with_threshold(threshold));
    }
    for text in [
        r#"{"block-influence": {"order": [3, 1, 2], "speedup": 2}}"#,
        r#"{"sublayer-drop": {"drop": "mlp", "speedup": 1.5}}"#,
        r#"{"early-exit": {"threshold": 0.4, "kv-fill": "copy"}}"#,
        r#"{"early-exit": {"threshold": 0.4, "kv-fill": "mask"}}"#,
        r#"{"early-exit": {"threshold": 0.4, "kv-fill": "deferred"}}"#,
        r#"{"early-exit": {"layer-thresholds": {"2": 0.5, "4": 0.3}}}"#,
    ] {
        specs.push(long(text));
    }
    specs.extend(
        [
            "position-decay@2",
            "adaskip@1.5",
            "oracle-exit",
            "sublayer-drop@1.5",
        ]
        .map(spec),
    );
    specs
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]

    #[test]
    fn a_row_of_a_batch_is_the_row_alone(
        prompts in prop::collection::vec(prop::collection::vec(3u32..96, 1..20), 1..6),
        composed: bool,
        family in 0..6usize,
    ) {
        let backend = if composed { Backend::Composed } else { Backend::Auto };
        let family = ["qwen2", "gemma2", "gemma3-v5", "gpt-neox", "olmo2", "opt"][family];
        let model = load(family, backend);
        let options = Options { max_new_tokens: 8, eos_ids: vec![2, 10, 20, 30], ..Options::default() };
        for spec in strategies() {
            let batch = generate(&model, &prompts, &spec, &options);
            for (prompt, row) in prompts.iter().zip(&batch.rows) {
                let alone = generate(&model, std::slice::from_ref(prompt), &spec, &options);
                prop_assert_eq!(&alone.rows[0], row, "{}", &spec);
            }
        }
    }
}
