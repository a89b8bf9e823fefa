//! Beam search against transformers, and in batches.

use crate::support::{fixture, generate, load, long, ragged, spec, tokens};
use serde::Deserialize;
use skipbench_engine::{Beam, Engine, Options};
use skipbench_model::Backend;
use skipbench_strategy::StrategySpec;

#[derive(Deserialize)]
struct File {
    eos_ids: Vec<u32>,
    max_new_tokens: usize,
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    prompt: Vec<u32>,
    speedup: f64,
    beams: usize,
    length_penalty: f64,
    no_repeat_ngram: usize,
    tokens: Vec<u32>,
}

#[test]
fn transformers_finds_the_same() {
    for name in ["llama1", "llama2-gqa-tied", "qwen2", "bloom"] {
        let text = std::fs::read_to_string(fixture(name).join("beams.json")).unwrap();
        let file: File = serde_json::from_str(&text).unwrap();
        assert!(file.cases.len() > 50, "{name}");
        for backend in [Backend::Auto, Backend::Composed] {
            let model = load(name, backend);
            for case in &file.cases {
                let options = Options {
                    max_new_tokens: file.max_new_tokens,
                    eos_ids: file.eos_ids.clone(),
                    beam: Some(Beam {
                        beams: case.beams,
                        length_penalty: case.length_penalty,
                    }),
                    no_repeat_ngram: case.no_repeat_ngram,
                    ..Options::default()
                };
                let spec = spec("unified").with_target(case.speedup);
                let prompts = std::slice::from_ref(&case.prompt);
                let found = generate(&model, prompts, &spec, &options);
                assert_eq!(
                    found.rows[0].tokens,
                    case.tokens,
                    "{name} {backend:?}: {:?} at {}x, {} beams, penalty {}, n-gram {}",
                    case.prompt,
                    case.speedup,
                    case.beams,
                    case.length_penalty,
                    case.no_repeat_ngram
                );
            }
        }
    }
}

fn beams(beams: usize) -> Options {
    Options {
        max_new_tokens: 10,
        eos_ids: vec![2, 10, 20, 30, 40],
        beam: Some(Beam {
            beams,
            length_penalty: 1.0,
        }),
        ..Options::default()
    }
}

/// Everything that a beam can run under, the rows of a beam having provenance and pending layers of their own.
fn strategies() -> Vec<StrategySpec> {
    let mut specs: Vec<StrategySpec> = [
        "unified@2",
        "bottom@2",
        "skip-decode@2",
        "position-decay@2",
        "sublayer-drop@1.5",
        "adaskip@1.5",
        "random@2",
    ]
    .map(spec)
    .into();
    specs.push(spec("prompt-depth").with_threshold(0.5));
    for fill in ["propagate", "copy", "mask", "deferred"] {
        for mode in ["compact", "sync"] {
            specs.push(long(&format!(
                r#"{{"early-exit": {{"threshold": 0.4, "kv-fill": "{fill}", "batch-mode": "{mode}"}}}}"#
            )));
        }
    }
    specs
}

#[test]
fn a_prompt_of_a_batch_is_the_prompt_alone() {
    let model = load("llama1", Backend::Auto);
    for spec in strategies() {
        let batch = generate(&model, &ragged(), &spec, &beams(4));
        for (prompt, row) in ragged().iter().zip(&batch.rows) {
            let alone = generate(&model, std::slice::from_ref(prompt), &spec, &beams(4));
            assert_eq!(alone.rows[0].tokens, row.tokens, "{spec}");
            assert_eq!(row.layers.len(), row.tokens.len());
        }
    }
}

/// Waiting for deeper rows changes no answer, and exits that are exact find what the fills' own reference finds.
#[test]
fn beams_do_not_depend_on_the_batch_mode() {
    let model = load("qwen2", Backend::Auto);
    let specs = strategies();
    let exits = &specs[specs.len() - 8..];
    for pair in exits.chunks(2) {
        let compact = generate(&model, &ragged(), &pair[0], &beams(3));
        let sync = generate(&model, &ragged(), &pair[1], &beams(3));
        assert_eq!(tokens(&compact), tokens(&sync), "{}", pair[0]);
    }
}

#[test]
fn layers_that_are_skipped_hold_nothing_to_reorder() {
    let model = load("llama1", Backend::Auto);
    let bytes = |spec: &StrategySpec| generate(&model, &ragged(), spec, &beams(4)).peak_kv_bytes;
    assert_eq!(bytes(&spec("unified@2")) * 2, bytes(&spec("full")));
}

#[test]
fn searches_that_cannot_be() {
    let model = load("llama1", Backend::Auto);
    let error = |spec: &StrategySpec, options: &Options| {
        let mut strategy = spec.build(6).unwrap();
        Engine::new(&model)
            .generate(&ragged(), strategy.as_mut(), options)
            .unwrap_err()
            .to_string()
    };
    for strategy in ["self-speculative@2", "oracle-exit"] {
        assert!(
            error(&spec(strategy), &beams(4)).contains("use one beam"),
            "{strategy}"
        );
        assert!(spec(strategy).check_search(4, false, 0).is_err());
        assert!(spec(strategy).check_search(1, true, 0).is_err());
        assert!(spec(strategy).check_search(1, false, 3).is_err());
    }
    assert!(error(&spec("full"), &beams(1)).contains("outside 2 to 64"));
    let traced = Options {
        trace: true,
        ..beams(2)
    };
    assert!(error(&spec("full"), &traced).contains("trace"));
}
