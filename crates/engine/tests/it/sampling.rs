//! Drawn tokens, and n-grams that may not repeat.

use crate::support::{fixed, generate, load, ragged, spec, tokens};
use skipbench_engine::{Engine, Options, Sampling};
use skipbench_model::Backend;

fn drawn(seed: u64, first_row: u64, top_k: Option<usize>) -> Options {
    Options {
        sampling: Some(Sampling {
            temperature: 1.5,
            top_p: Some(0.95),
            top_k,
            seed,
            first_row,
        }),
        ..fixed(10)
    }
}

#[test]
fn a_seed_gives_its_tokens_in_any_batch() {
    let model = load("llama1", Backend::Auto);
    let prompts = ragged();
    for strategy in ["full", "unified@2", "early-exit"] {
        let spec = spec(strategy).with_threshold(0.4);
        let batch = generate(&model, &prompts, &spec, &drawn(7, 0, None));
        for (row, prompt) in prompts.iter().enumerate() {
            let options = drawn(7, row as u64, None);
            let alone = generate(&model, std::slice::from_ref(prompt), &spec, &options);
            assert_eq!(alone.rows[0], batch.rows[row], "{strategy}");
        }
        let other = generate(&model, &prompts, &spec, &drawn(8, 0, None));
        assert_ne!(tokens(&other), tokens(&batch), "{strategy}");
    }
}

#[test]
fn one_likeliest_token_is_greedy() {
    let model = load("qwen2", Backend::Auto);
    let greedy = generate(&model, &ragged(), &spec("full"), &fixed(10));
    let drawn = generate(&model, &ragged(), &spec("full"), &drawn(3, 0, Some(1)));
    assert_eq!(tokens(&drawn), tokens(&greedy));
}

#[test]
fn rows_with_equal_prompts_draw_different_tokens() {
    let model = load("llama1", Backend::Auto);
    let prompts = vec![vec![5, 9, 20]; 4];
    let generation = generate(&model, &prompts, &spec("full"), &drawn(1, 0, None));
    let found = tokens(&generation);
    assert!((1..4).all(|row| found[row] != found[0]));
}

#[test]
fn no_ngram_occurs_twice() {
    let model = load("llama1", Backend::Auto);
    for n in [1, 2, 3] {
        let options = Options {
            no_repeat_ngram: n,
            ..fixed(30)
        };
        let generation = generate(&model, &ragged(), &spec("unified@2"), &options);
        for (prompt, row) in ragged().iter().zip(&generation.rows) {
            let all = [&prompt[..], &row.tokens].concat();
            let grams: Vec<&[u32]> = all.windows(n).collect();
            // The prompt itself may repeat; nothing behind it may.
            for (at, gram) in grams.iter().enumerate() {
                let fresh = at + n > prompt.len();
                assert!(
                    !fresh || !grams[..at].contains(gram),
                    "{n}: {gram:?} of {all:?}"
                );
            }
        }
    }
}

#[test]
fn searches_that_cannot_be() {
    let model = load("llama1", Backend::Auto);
    let error = |strategy: &str, options: &Options| {
        let mut strategy = spec(strategy).build(6).unwrap();
        Engine::new(&model)
            .generate(&ragged(), strategy.as_mut(), options)
            .unwrap_err()
            .to_string()
    };
    let sampling = |change: fn(&mut Sampling)| {
        let mut options = drawn(1, 0, None);
        change(options.sampling.as_mut().unwrap());
        error("full", &options)
    };
    assert!(
        sampling(|s| s.temperature = 0.0)
            .contains("`temperature`: 0 is not a number from 0.0001 up")
    );
    assert!(sampling(|s| s.temperature = f64::NAN).contains("temperature"));
    assert!(sampling(|s| s.top_p = Some(0.0)).contains("top-p"));
    assert!(sampling(|s| s.top_k = Some(0)).contains("top-k"));
    let speculative = error("self-speculative@2", &drawn(1, 0, None));
    assert!(speculative.contains("decode greedily"), "{speculative}");
}
