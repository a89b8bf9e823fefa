//! Rows with options of their own, and who hears of their tokens.

use crate::support::{fixed, generate, load, ragged, spec};
use skipbench_engine::{
    End, Engine, EngineError, Options, RowOutput, Sampling, ScoreOptions, ScoredText,
};
use skipbench_model::{Backend, CausalLm};
use std::ops::ControlFlow;

const EXITS: &str = "early-exit: {threshold: 0.02}";
const DRAFTS: &str = "self-speculative:top@2";

/// What is asked of the rows of [`ragged`]: lengths, ends and draws that differ.
fn asked() -> Vec<Options> {
    (0..6)
        .map(|row| Options {
            max_new_tokens: 3 + 2 * row,
            eos_ids: vec![40 + row as u32],
            planned_tokens: Some(16),
            sampling: (row % 2 == 1).then_some(Sampling {
                temperature: 1.2,
                top_p: Some(0.9),
                top_k: Some(40),
                seed: 5,
                first_row: row as u64,
            }),
            log_probabilities: (row % 3 == 0).then_some(2),
            ..Options::default()
        })
        .collect()
}

fn each(
    model: &dyn CausalLm,
    strategy: &str,
    options: &[Options],
    listener: &mut dyn FnMut(usize, &RowOutput) -> ControlFlow<()>,
) -> Vec<RowOutput> {
    let mut strategy = spec(strategy).build(model.sizes().n_layers).unwrap();
    Engine::new(model)
        .generate_each(&ragged(), options, strategy.as_mut(), listener)
        .unwrap()
        .rows
}

fn greedy(options: Vec<Options>) -> Vec<Options> {
    let greedy = |options| Options {
        sampling: None,
        ..options
    };
    options.into_iter().map(greedy).collect()
}

#[test]
fn a_row_gets_in_any_batch_what_it_gets_alone() {
    let model = load("llama1", Backend::Auto);
    for strategy in ["full", "unified@2", EXITS, "skip-decode@2", DRAFTS] {
        let asked = match strategy.starts_with("self") {
            true => greedy(asked()),
            false => asked(),
        };
        let mut heard = vec![Vec::new(); asked.len()];
        let rows = each(&model, strategy, &asked, &mut |row, output| {
            heard[row].push(*output.tokens.last().unwrap());
            ControlFlow::Continue(())
        });
        for (row, options) in asked.iter().enumerate() {
            let alone = generate(&model, &ragged()[row..=row], &spec(strategy), options);
            assert_eq!(rows[row], alone.rows[0], "{strategy} {row}");
            assert_eq!(heard[row], rows[row].tokens, "{strategy} {row}");
            let scores = options.log_probabilities.map_or(0, |_| heard[row].len());
            assert_eq!(rows[row].scores.len(), scores);
        }
        assert!(rows.iter().any(|row| row.tokens.len() == 13), "{strategy}");
    }
}

#[test]
fn a_row_that_is_not_wanted_any_more_leaves_the_others_alone() {
    let model = load("llama1", Backend::Auto);
    let asked: Vec<Options> = (0..6).map(|_| fixed(12)).collect();
    for strategy in ["full", EXITS, DRAFTS] {
        let all = each(&model, strategy, &asked, &mut |_, _| {
            ControlFlow::Continue(())
        });
        let left = each(&model, strategy, &asked, &mut |row, output| match row == 2
            && output.tokens.len() >= 4
        {
            true => ControlFlow::Break(()),
            false => ControlFlow::Continue(()),
        });
        for row in [0, 1, 3, 4, 5] {
            assert_eq!(left[row], all[row], "{strategy}");
        }
        let tokens = left[2].tokens.len();
        assert!((4..12).contains(&tokens), "{strategy}: {tokens}");
        assert_eq!(left[2].tokens, all[2].tokens[..tokens], "{strategy}");
        assert_eq!(left[2].end, End::Length);
    }
}

#[test]
fn the_scores_of_what_was_generated_are_those_of_a_text() {
    let model = load("llama1", Backend::Auto);
    let asked: Vec<Options> = (0..6)
        .map(|_| Options {
            log_probabilities: Some(3),
            ..fixed(9)
        })
        .collect();
    for strategy in ["full", "unified@2", EXITS, DRAFTS] {
        let rows = each(&model, strategy, &asked, &mut |_, _| {
            ControlFlow::Continue(())
        });
        let prompts = ragged();
        let texts: Vec<ScoredText> = prompts
            .iter()
            .zip(&rows)
            .map(|(prompt, row)| ScoredText {
                context: prompt.clone(),
                continuation: row.tokens.clone(),
            })
            .collect();
        let mut built = spec(strategy).build(model.sizes().n_layers).unwrap();
        let how = ScoreOptions {
            likeliest: 3,
            ..ScoreOptions::default()
        };
        let scored = Engine::new(&model)
            .score(&texts, built.as_mut(), how)
            .unwrap();
        for (row, scored) in rows.iter().zip(&scored) {
            for (index, score) in row.scores.iter().enumerate() {
                let other = scored.log_probabilities[index];
                assert!((score.log_probability - other).abs() < 1e-4, "{strategy}");
                // What is drawn by its likelihood alone is the likeliest.
                assert_eq!(
                    score.likeliest[0],
                    (row.tokens[index], score.log_probability)
                );
                assert_eq!(score.likeliest.len(), 3);
                assert!(score.likeliest.is_sorted_by(|a, b| a.1 >= b.1));
                assert_eq!(scored.likeliest[index].len(), 3);
                assert_eq!(scored.likeliest[index][0].1, other);
            }
        }
    }
}

#[test]
fn strategies_whose_layers_depend_on_the_length_are_told_from_others() {
    let model = load("llama1", Backend::Auto);
    let mix = |strategy: &str| {
        let mut strategy = spec(strategy).build(model.sizes().n_layers).unwrap();
        Engine::new(&model)
            .lengths_mix(strategy.as_mut(), 16)
            .unwrap()
    };
    for strategy in ["full", "unified@2", "top@2", DRAFTS] {
        assert!(mix(strategy), "{strategy}");
    }
    for strategy in ["skip-decode@2", EXITS, "oracle-exit"] {
        assert!(!mix(strategy), "{strategy}");
    }
}

#[test]
fn what_is_for_a_whole_batch_is_refused_for_a_row() {
    let model = load("llama1", Backend::Auto);
    let mut strategy = spec("full").build(model.sizes().n_layers).unwrap();
    let prompts = &ragged()[..2];
    let mut refused = |options: &[Options]| {
        let mut listener = |_: usize, _: &RowOutput| ControlFlow::Continue(());
        Engine::new(&model)
            .generate_each(prompts, options, strategy.as_mut(), &mut listener)
            .unwrap_err()
            .to_string()
    };
    let traced = Options {
        trace: true,
        ..fixed(2)
    };
    assert!(refused(&[fixed(2), traced]).starts_with("`trace`: it is for a batch"));
    assert!(refused(&[fixed(2)]).contains("1 for 2 prompts"));
    assert!(refused(&[fixed(2), fixed(0)]).contains("max-new-tokens is 0"));
    let mut listener = |_: usize, _: &RowOutput| ControlFlow::Continue(());
    let nothing = Engine::new(&model).generate_each(&[], &[], strategy.as_mut(), &mut listener);
    assert!(matches!(nothing, Err(EngineError::EmptyBatch)));
}
