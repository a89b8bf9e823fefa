//! Answers that may be as long as they like take memory as they grow.

use crate::support::{fixed, generate, load, spec};
use skipbench_engine::{Engine, Options};
use skipbench_model::Backend;

#[test]
fn four_billion_tokens_may_be_asked_for() {
    let prompts = [vec![5, 9, 20], vec![7]];
    for backend in [Backend::Auto, Backend::Composed] {
        // It has no largest position.
        let model = load("bloom", backend);
        let short = generate(&model, &prompts, &spec("unified@2"), &fixed(12));
        let eos_ids: Vec<u32> = short.rows.iter().map(|row| row.tokens[7]).collect();
        for max_new_tokens in [4_000_000_000, usize::MAX] {
            let options = Options {
                max_new_tokens,
                eos_ids: eos_ids.clone(),
                ..Options::default()
            };
            let long = generate(&model, &prompts, &spec("unified@2"), &options);
            for (long, short) in long.rows.iter().zip(&short.rows) {
                let ends = |token: &u32| eos_ids.contains(token);
                let end = short.tokens.iter().position(ends).unwrap();
                assert_eq!(long.tokens, short.tokens[..=end]);
            }
            assert!(long.peak_kv_bytes < 1 << 24, "{}", long.peak_kv_bytes);
        }
    }
}

#[test]
fn a_model_with_a_largest_position_says_how_many_are_too_many() {
    let model = load("llama1", Backend::Auto);
    let mut full = spec("full").build(6).unwrap();
    let error = Engine::new(&model)
        .generate(&[vec![5]], full.as_mut(), &fixed(usize::MAX))
        .unwrap_err()
        .to_string();
    assert!(error.contains("lower max-new-tokens"), "{error}");
}

#[test]
fn a_row_grows_past_the_room_that_it_began_with() {
    let model = load("bloom", Backend::Auto);
    let bytes = |new_tokens| {
        let generation = generate(&model, &[vec![5, 9]], &spec("top@3"), &fixed(new_tokens));
        assert_eq!(generation.rows[0].tokens.len(), new_tokens);
        generation.peak_kv_bytes
    };
    let (few, room, many) = (bytes(11), bytes(513), bytes(700));
    // 12 positions, 514, and then twice as many but no more than can come.
    assert_eq!((few % 12, room), (0, few / 12 * 514));
    assert_eq!(many, few / 12 * 701);
}
