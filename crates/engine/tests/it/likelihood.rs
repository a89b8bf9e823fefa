//! Scores of given text: what generation itself had, whatever the strategy does in between.

use crate::support::{Hooked, fixed, fixtures, generate, load, ragged, spec};
use serde::Deserialize;
use skipbench_engine::{Engine, EngineError, Likelihood, ScoreMode, ScoreOptions, ScoredText};
use skipbench_model::{Backend, CausalLm};
use skipbench_strategy::StrategySpec;
use std::collections::BTreeMap;
use std::sync::Mutex;

fn score(
    model: &dyn CausalLm,
    texts: &[ScoredText],
    spec: &StrategySpec,
    how: ScoreOptions,
) -> Result<Vec<Likelihood>, EngineError> {
    let mut strategy = spec.build(model.sizes().n_layers).unwrap();
    Engine::new(model).score(texts, strategy.as_mut(), how)
}

/// Each prompt with what was generated behind it.
fn answered(prompts: &[Vec<u32>], answers: &[Vec<u32>]) -> Vec<ScoredText> {
    let pairs = std::iter::zip(prompts, answers);
    pairs
        .map(|(context, continuation)| ScoredText {
            context: context.clone(),
            continuation: continuation.clone(),
        })
        .collect()
}

const STEPS: usize = 9;

/// Every kind of strategy: fixed sets and parts of layers, schedules, sets by prompt, exits under every fill, drafts, oracles.
const STRATEGIES: [&str; 14] = [
    "full",
    "unified@2",
    "top@2",
    "drop-list: {drop-mlp: [1, 2], drop-attention: [2]}",
    "skip-decode@2",
    "early-exit: {threshold: 0.02}",
    "early-exit: {threshold: 0.02, kv-fill: copy}",
    "early-exit: {threshold: 0.02, kv-fill: mask}",
    "early-exit: {threshold: 0.02, kv-fill: deferred}",
    "early-exit: {threshold: 0.02, batch-mode: sync}",
    "random@2",
    "self-speculative@2",
    "oracle-exit",
    "position-decay@2",
];

/// Greedy answers are the likeliest at every token and ran through as many layers as generation says.
#[test]
fn an_answer_scored_as_decoded_is_the_likeliest_and_ran_through_the_same_layers() {
    let mut tried = 0;
    for name in ["llama2-gqa-tied", "bloom-odd-heads-bare"] {
        let model = load(name, Backend::Auto);
        for text in STRATEGIES {
            let Ok(spec) = text.parse::<StrategySpec>() else {
                panic!("{text}");
            };
            let prompts = ragged();
            let generation = generate(&model, &prompts, &spec, &fixed(STEPS));
            let answers: Vec<Vec<u32>> = generation.rows.iter().map(|r| r.tokens.clone()).collect();
            let how = ScoreOptions {
                planned_tokens: Some(STEPS),
                ..ScoreOptions::default()
            };
            let scored = score(&model, &answered(&prompts, &answers), &spec, how).unwrap();
            for (scored, row) in scored.iter().zip(&generation.rows) {
                assert!(scored.is_greedy(), "{name}, {text}: {scored:?}");
                if spec.draft().is_none() {
                    assert_eq!(scored.layers, row.layers, "{name}, {text}");
                }
                tried += 1;
            }
        }
    }
    assert!(tried > 100);
}

/// The head of every decode step against the pass that scores all steps of a fixed set at once, in rows of unequal length.
#[test]
fn a_fixed_set_scored_at_once_has_the_probabilities_of_its_steps() {
    for backend in [Backend::Auto, Backend::Composed] {
        let model = load("llama2-gqa-tied", backend);
        let prompts = ragged();
        for text in ["full", "unified@2", "bottom@2"] {
            let heads = Mutex::new(Vec::new());
            let recorder = Hooked {
                inner: &model,
                layer: &|_, _, output| Ok(output),
                head: &|_, logits| {
                    heads.lock().unwrap().push(logits.to_vec2::<f32>()?);
                    Ok(logits)
                },
            };
            let generation = generate(&recorder, &prompts, &spec(text), &fixed(STEPS));
            let heads = heads.into_inner().unwrap();
            assert_eq!(heads.len(), STEPS);
            // Rows are cut at different lengths, so that spans are ragged at both ends.
            let answers: Vec<Vec<u32>> = generation
                .rows
                .iter()
                .enumerate()
                .map(|(row, output)| output.tokens[..STEPS - row].to_vec())
                .collect();
            let texts = answered(&prompts, &answers);
            let scored = score(&model, &texts, &spec(text), ScoreOptions::default()).unwrap();
            for (row, answer) in answers.iter().enumerate() {
                assert_eq!(scored[row].log_probabilities.len(), answer.len());
                for (step, &token) in answer.iter().enumerate() {
                    let wanted = log_softmax(&heads[step][row], token);
                    let found = scored[row].log_probabilities[step];
                    assert!(
                        (wanted - found).abs() < 1e-4,
                        "{text}, row {row}, token {step}: {found}, not {wanted}"
                    );
                }
            }
        }
    }
}

fn log_softmax(logits: &[f32], token: u32) -> f64 {
    let sum: f64 = logits.iter().map(|&x| f64::from(x).exp()).sum();
    f64::from(logits[token as usize]) - sum.ln()
}

/// With all layers both modes are the same; with fewer the context is not.
#[test]
fn one_pass_runs_the_context_through_the_layers_of_the_strategy_too() {
    let model = load("qwen2", Backend::Auto);
    let prompts = ragged();
    let texts = answered(&prompts, &vec![vec![4, 40, 7, 19]; prompts.len()]);
    let one_pass = ScoreOptions {
        mode: ScoreMode::OnePass,
        ..ScoreOptions::default()
    };
    let both = |text: &str| {
        let as_decoded = score(&model, &texts, &spec(text), ScoreOptions::default()).unwrap();
        let one_pass = score(&model, &texts, &spec(text), one_pass).unwrap();
        let sums = std::iter::zip(&as_decoded, &one_pass);
        sums.map(|(a, b)| (a.sum(), b.sum())).collect::<Vec<_>>()
    };
    assert!(both("full").iter().all(|(a, b)| (a - b).abs() < 1e-4));
    assert!(both("unified@2").iter().all(|(a, b)| (a - b).abs() > 1e-3));
    let pruned = score(
        &model,
        &texts,
        &spec("unified: {speedup: 2, prefill: skip}"),
        ScoreOptions::default(),
    )
    .unwrap();
    let in_one_pass = score(&model, &texts, &spec("unified@2"), one_pass).unwrap();
    for (a, b) in pruned.iter().zip(&in_one_pass) {
        assert!(
            (a.sum() - b.sum()).abs() < 1e-4,
            "prefill: skip is the same thing"
        );
    }
    let exits = spec("early-exit: {threshold: 0.02}");
    let error = score(&model, &texts, &exits, one_pass).unwrap_err();
    assert!(matches!(error, EngineError::NoFixedLayers), "{error}");
}

#[test]
fn what_cannot_be_scored_is_refused() {
    let model = load("qwen2", Backend::Auto);
    let try_to = |context: Vec<u32>, continuation: Vec<u32>| {
        let text = ScoredText {
            context,
            continuation,
        };
        score(&model, &[text], &spec("full"), ScoreOptions::default())
            .unwrap_err()
            .to_string()
    };
    let limit = model.sizes().max_positions.unwrap();
    for (message, wanted) in [
        (try_to(vec![], vec![1]), "is empty"),
        (try_to(vec![1], vec![]), "no token to score"),
        (try_to(vec![1; limit], vec![1, 2]), "the model has 64"),
        (try_to(vec![4_000_000], vec![1]), "4000000"),
        (try_to(vec![1], vec![4_000_000, 1]), "4000000"),
    ] {
        assert!(message.contains(wanted), "{message}");
    }
    let nothing = score(&model, &[], &spec("full"), ScoreOptions::default());
    assert!(matches!(nothing, Err(EngineError::EmptyBatch)));
    // LongRoPE turns all keys otherwise from 16 tokens on; a text in one pass is on one side of it.
    let crossing = ScoredText {
        context: vec![1; 10],
        continuation: vec![1; 16],
    };
    let crosses = |how| {
        let model = load("phi3-longrope", Backend::Auto);
        score(&model, std::slice::from_ref(&crossing), &spec("full"), how)
    };
    let message = crosses(ScoreOptions::default()).unwrap_err().to_string();
    assert!(message.contains("past 16"), "{message}");
    assert!(crosses(ONE_PASS).is_ok());
    let fits = ScoredText {
        context: vec![1; limit - 1],
        continuation: vec![1, 2],
    };
    assert!(score(&model, &[fits], &spec("full"), ScoreOptions::default()).is_ok());
}

/// What scripts/fixtures/make_likelihood_goldens.py writes.
#[derive(Deserialize)]
struct Goldens {
    fixtures: BTreeMap<String, Golden>,
}

#[derive(Deserialize)]
struct Golden {
    rows: Vec<GoldenRow>,
    ids: Vec<u32>,
    windows: Vec<GoldenWindows>,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct GoldenRow {
    context: Vec<u32>,
    continuation: Vec<u32>,
    /// In one pass through all layers.
    full: Vec<f64>,
    /// Step by step through all layers.
    full_decoded: Vec<f64>,
    /// Of a model without the layers that unified skipping leaves out.
    removed: Vec<f64>,
    /// The context through all layers, the rest through those of unified skipping.
    decoded: Vec<f64>,
}

#[derive(Deserialize)]
struct GoldenWindows {
    window: usize,
    stride: usize,
    perplexity: f64,
    tokens: usize,
}

fn goldens() -> BTreeMap<String, Golden> {
    let goldens: Goldens = serde_json::from_str(include_str!("../likelihood.json")).unwrap();
    assert_eq!(
        goldens.fixtures.keys().cloned().collect::<Vec<_>>(),
        fixtures()
    );
    goldens.fixtures
}

const ONE_PASS: ScoreOptions = ScoreOptions {
    mode: ScoreMode::OnePass,
    planned_tokens: None,
    against_full: false,
    likeliest: 0,
};

#[test]
fn every_token_of_every_family_has_the_probability_that_transformers_gives() {
    let mut worst: f64 = 0.0;
    for (name, golden) in goldens() {
        for backend in [Backend::Auto, Backend::Composed] {
            let model = load(&name, backend);
            let text = |row: &GoldenRow| ScoredText {
                context: row.context.clone(),
                continuation: row.continuation.clone(),
            };
            let texts: Vec<ScoredText> = golden.rows.iter().map(text).collect();
            let (as_decoded, one_pass) = (ScoreOptions::default(), ONE_PASS);
            type Wanted = fn(&GoldenRow) -> &[f64];
            let cases: [(&str, ScoreOptions, Wanted); 4] = [
                ("full", one_pass, |row| &row.full),
                ("full", as_decoded, |row| &row.full_decoded),
                ("unified@2", one_pass, |row| &row.removed),
                ("unified@2", as_decoded, |row| &row.decoded),
            ];
            for (strategy, how, wanted) in cases {
                let scored = score(&model, &texts, &spec(strategy), how).unwrap();
                for (row, (scored, golden)) in scored.iter().zip(&golden.rows).enumerate() {
                    let (found, wanted) = (&scored.log_probabilities, wanted(golden));
                    assert_eq!(found.len(), wanted.len());
                    for (token, (found, wanted)) in found.iter().zip(wanted).enumerate() {
                        worst = worst.max((found - wanted).abs());
                        assert!(
                            (found - wanted).abs() < 1e-4,
                            "{name}, {backend:?}, {strategy}, {:?}, row {row}, token {token}: {found}, not {wanted}",
                            how.mode
                        );
                    }
                }
            }
        }
    }
    println!("at most {worst:e} apart");
}

/// Random weights give logits of tens and more, whose noise in f32 is of the order of 1e-6 on both sides; the shipped checkpoint,
/// which is tested through the binary, is held to 1e-6.
#[test]
fn perplexity_in_windows_is_that_of_transformers() {
    let mut worst: f64 = 0.0;
    for (name, golden) in goldens() {
        let model = load(&name, Backend::Auto);
        for wanted in golden.windows {
            let windows = ScoredText::windows(&golden.ids, wanted.window, wanted.stride);
            // In one batch: windows are of unequal length.
            let scored = score(&model, &windows, &spec("full"), ONE_PASS).unwrap();
            let tokens: usize = scored.iter().map(|s| s.log_probabilities.len()).sum();
            assert_eq!(tokens, wanted.tokens);
            let sum: f64 = scored.iter().map(Likelihood::sum).sum();
            let found = (-sum / tokens as f64).exp();
            let apart = (found / wanted.perplexity - 1.0).abs();
            worst = worst.max(apart);
            assert!(
                apart < 1e-5,
                "{name}, window {}, stride {}: {found}, not {}",
                wanted.window,
                wanted.stride,
                wanted.perplexity
            );
        }
    }
    println!("at most {worst:e} apart");
}

#[test]
fn every_token_that_has_one_in_front_is_scored_once_behind_its_window() {
    for (len, window, stride) in [
        (10, 4, 2),
        (10, 4, 4),
        (9, 4, 1),
        (3, 8, 4),
        (9, 8, 8),
        (9, 2, 1),
        (9, 2, 2),
        (2, 2, 2),
    ] {
        let ids: Vec<u32> = (0..len).collect();
        let windows = ScoredText::windows(&ids, window, stride);
        let scored: Vec<u32> = windows
            .iter()
            .flat_map(|text| text.continuation.clone())
            .collect();
        let unscored =
            |id: &u32| *id == 0 || (stride == window && id.is_multiple_of(window as u32));
        let wanted: Vec<u32> = ids.iter().copied().filter(|id| !unscored(id)).collect();
        assert_eq!(scored, wanted, "{len}, {window}, {stride}");
        for text in &windows {
            let all = [&text.context[..], &text.continuation].concat();
            assert!(all.len() <= window && !text.context.is_empty());
            assert!(all.windows(2).all(|pair| pair[1] == pair[0] + 1));
        }
    }
    assert!(ScoredText::windows(&[1], 4, 2).is_empty());
    assert!(ScoredText::windows(&[], 4, 2).is_empty());
}

/// What a strategy's tokens differ by from the full network's, against distributions that were put together one by one.
#[test]
fn distances_are_those_between_the_distributions_themselves() {
    let model = load("qwen2", Backend::Auto);
    let prompts = ragged();
    let texts = answered(&prompts, &vec![vec![4, 40, 7, 19, 3]; prompts.len()]);
    let vocab = model.sizes().vocab_size as u32;
    // The log-probability of every token at a place, one score each.
    let everything = |text: &ScoredText, index: usize, spec: &StrategySpec| -> Vec<f64> {
        let all: Vec<ScoredText> = (0..vocab)
            .map(|token| ScoredText {
                context: text.context.clone(),
                continuation: [&text.continuation[..index], &[token]].concat(),
            })
            .collect();
        let how = ScoreOptions {
            planned_tokens: Some(text.continuation.len()),
            ..ScoreOptions::default()
        };
        let scored = score(&model, &all, spec, how).unwrap();
        scored
            .iter()
            .map(|scored| scored.log_probabilities[index])
            .collect()
    };
    let likeliest = |values: &[f64]| {
        let all = values.iter().enumerate();
        all.max_by(|a, b| a.1.total_cmp(b.1))
            .map(|(index, _)| index)
    };
    for (text_of, differs) in [
        ("full", false),
        ("unified@2", true),
        ("skip-decode@2", true),
    ] {
        let spec = spec(text_of);
        let how = ScoreOptions {
            planned_tokens: Some(5),
            against_full: true,
            ..ScoreOptions::default()
        };
        let scored = score(&model, &texts, &spec, how).unwrap();
        for (text, scored) in texts.iter().zip(&scored) {
            assert_eq!(scored.divergences.len(), 5);
            for index in [0, 1, 4] {
                let full = everything(text, index, &StrategySpec::full());
                let own = everything(text, index, &spec);
                let kl: f64 = full.iter().zip(&own).map(|(p, q)| p.exp() * (p - q)).sum();
                let found = scored.divergences[index];
                assert!(
                    (found - kl).abs() < 1e-5 + 1e-4 * kl,
                    "{text_of}: {found} {kl}"
                );
                assert_eq!(
                    scored.same_choice[index],
                    likeliest(&full) == likeliest(&own)
                );
            }
            // The prompt runs through all layers.
            assert!(scored.divergences[0] < 1e-5);
            assert_eq!(scored.divergences[4] > 1e-4, differs, "{text_of}");
        }
    }
    let plain = score(&model, &texts, &spec("unified@2"), ScoreOptions::default()).unwrap();
    assert!(
        plain
            .iter()
            .all(|scored| scored.divergences.is_empty() && scored.same_choice.is_empty())
    );
}
