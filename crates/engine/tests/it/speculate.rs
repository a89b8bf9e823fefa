//! Self-speculative decoding is the full network's, token for token.

use crate::support::{expected, fixed, fixtures, generate, load, long, ragged, spec, tokens};
use proptest::prelude::*;
use skipbench_engine::{DraftTally, Options};
use skipbench_model::{Backend, CausalLm};
use skipbench_strategy::StrategySpec;

const DRAFTS: [&str; 7] = [
    "self-speculative@2",
    "self-speculative:top@2",
    "self-speculative:bottom@3",
    "self-speculative:middle@1.5",
    "self-speculative:random@2",
    "self-speculative:unified@1",
    "self-speculative:early-exit@2",
];

pub(crate) fn drafts() -> Vec<StrategySpec> {
    let mut specs: Vec<StrategySpec> = DRAFTS
        .iter()
        .map(|text| spec(text).with_threshold(0.2))
        .collect();
    for long in [
        r#"{"self-speculative": {"draft": "top@2", "draft-length": 1}}"#,
        r#"{"self-speculative": {"draft": "unified:even@2", "draft-length": 9}}"#,
        r#"{"self-speculative": {"draft": "top@3", "adaptive": true}}"#,
        r#"{"self-speculative": {"draft": {"early-exit": {"signal": "cosine", "threshold": 0.9}}}}"#,
        r#"{"self-speculative": {"draft": {"early-exit": {"threshold": 0.3, "kv-fill": "deferred"}}}}"#,
        r#"{"self-speculative": {"draft": {"early-exit": {"threshold": 0.3, "kv-fill": "mask"}}}}"#,
        r#"{"self-speculative": {"draft": {"early-exit": {"threshold": 0.3, "kv-fill": "copy", "batch-mode": "sync"}}}}"#,
        r#"{"self-speculative": {"draft": {"shallow-deep": {"threshold": 0.3}}}}"#,
        r#"{"self-speculative": {"draft": {"block-influence": {"order": [2, 4, 1], "speedup": 2}}}}"#,
        r#"{"self-speculative": {"draft": "sublayer-drop@1.5"}}"#,
        r#"{"self-speculative": {"draft": "top@2", "draft-length": 8, "stop-below": 0.3, "adaptive": true}}"#,
        r#"{"self-speculative": {"draft": {"drop-list": {"drop-attention": [2, 4], "drop-mlp": [4]}}, "stop-below": 0.2}}"#,
    ] {
        specs.push(serde_json::from_str(long).unwrap());
    }
    specs
}

/// Alone and four together, windows, caps and lengths of every fixture included.
#[test]
fn a_draft_of_any_model_gives_transformers_tokens() {
    for name in fixtures() {
        for backend in [Backend::Auto, Backend::Composed] {
            let model = load(&name, backend);
            let rows = expected(&name);
            let prompts: Vec<_> = rows.iter().map(|row| row.prompt.clone()).collect();
            for draft in [
                spec("self-speculative@2"),
                spec("self-speculative:unified@1"),
                spec("self-speculative:early-exit@2").with_threshold(0.2),
                long(
                    r#"{"self-speculative": {"draft": {"early-exit": {"threshold": 0.3, "kv-fill": "deferred"}}}}"#,
                ),
                long(
                    r#"{"self-speculative": {"draft": {"drop-list": {"drop-attention": [2, 4], "drop-mlp": [4]}}}}"#,
                ),
            ] {
                let together = generate(&model, &prompts, &draft, &fixed(12));
                for (index, row) in rows.iter().enumerate() {
                    let what = format!("{name} {backend:?} {draft} prompt {index}");
                    assert_eq!(together.rows[index].tokens, row.full, "{what}");
                    let alone = generate(&model, &prompts[index..=index], &draft, &fixed(12));
                    assert_eq!(alone.rows[0].tokens, row.full, "{what} alone");
                }
            }
        }
    }
}

#[test]
fn every_draft_gives_the_full_networks_tokens() {
    let prompts: Vec<Vec<u32>> = vec![vec![3, 17, 40, 9], vec![5], vec![60, 2, 33, 8, 21, 7, 11]];
    for name in [
        "llama1",
        "llama2-gqa-tied",
        "qwen2",
        "bloom-odd-heads-bare",
        "gemma3",
        "gpt-neox",
    ] {
        for backend in [Backend::Auto, Backend::Composed] {
            let model = load(name, backend);
            let full = generate(&model, &prompts, &spec("full"), &fixed(20));
            for draft in drafts() {
                let found = generate(&model, &prompts, &draft, &fixed(20));
                assert_eq!(tokens(&found), tokens(&full), "{name} {backend:?} {draft}");
                assert!(found.rows.iter().all(|row| row.layers.len() == 20));
            }
        }
    }
}

/// A draft by all layers always stands: five tokens a round, and all that is left to verify is the last of them.
#[test]
fn rounds_and_layers_are_counted() {
    let model = load("llama1", Backend::Auto);
    let n_layers = model.sizes().n_layers as f64;
    let prompts = [vec![3, 17, 40]];
    let generation = generate(
        &model,
        &prompts,
        &spec("self-speculative:unified@1"),
        &fixed(21),
    );
    assert_eq!(generation.step_s.len(), 4);
    assert_eq!(generation.rows[0].layers, [n_layers; 21]);
    assert_eq!(generation.decoded_tokens(), 20);
    let full = generate(&model, &prompts, &spec("full"), &fixed(21));
    assert_eq!(generation.ledger.full, full.ledger.full);
    // Four drafts and one verification of one token read what five steps read.
    let ledger = generation.ledger;
    assert_eq!(ledger.total().bytes, full.ledger.total().bytes);
    assert_eq!(ledger.layers, full.ledger.layers);
    assert_eq!(ledger.draft + ledger.verify, ledger.total());
    let tally = generation.drafts;
    assert_eq!((tally.verified, tally.drafted, tally.accepted), (4, 16, 16));
    assert!(tally.draft_s > 0.0 && tally.draft_s < generation.decode_s());
}

/// What the lowest layers of a draft computed is not computed again.
#[test]
fn verification_starts_where_drafting_left_the_full_network() {
    for backend in [Backend::Auto, Backend::Composed] {
        let model = load("llama1", backend);
        let layers = |draft: &str| {
            let text = format!(r#"{{"self-speculative": {{"draft": {draft}}}}}"#);
            let generation = generate(&model, &[vec![3, 17, 40]], &long(&text), &fixed(13));
            let drafts = generation.drafts;
            // Tokens and layers, less those of the token that ends each round: it runs all six in the verification.
            let ran = generation.ledger.row_layers - 6 * drafts.verified;
            assert!(drafts.drafted > 0);
            ran as f64 / drafts.drafted as f64
        };
        // Three of six layers draft; of the other three, and of those above a gap, the verification runs all.
        assert_eq!(layers(r#""top@2""#), 6.0);
        assert_eq!(layers(r#""middle@2""#), 3.0 + 4.0);
        assert_eq!(layers(r#""bottom@2""#), 3.0 + 6.0);
        assert_eq!(layers(r#"{"drop-list": {"drop": [5]}}"#), 6.0);
        // Half of the last layer is no layer.
        assert_eq!(layers(r#"{"drop-list": {"drop-mlp": [5]}}"#), 6.0 + 1.0);
        // Every draft leaves after two layers.
        assert_eq!(layers(r#"{"early-exit": {"threshold": 0.0}}"#), 6.0);
    }
}

/// The full network's rows move on in lockstep, whatever a round gives to each; and every layer that ran is some token's.
#[test]
fn a_ragged_batch_is_charged_as_the_full_network_runs_it() {
    let model = load("llama1", Backend::Auto);
    let prompts = ragged();
    for draft in ["self-speculative:top@2", "self-speculative:unified@1"] {
        for eos_ids in [Vec::new(), (0..96).step_by(3).collect()] {
            let options = Options {
                max_new_tokens: 20,
                eos_ids,
                ..Options::default()
            };
            let full = generate(&model, &prompts, &spec("full"), &options);
            let found = generate(&model, &prompts, &spec(draft), &options);
            assert_eq!(tokens(&found), tokens(&full), "{draft}");
            assert_eq!(found.ledger.full, full.ledger.full, "{draft}");
            assert_eq!(found.ledger.full, full.ledger.total(), "{draft}");
            let rows = found.rows.iter().flat_map(|row| &row.layers[1..]);
            assert_eq!(rows.sum::<f64>(), found.ledger.row_layers as f64, "{draft}");
        }
    }
}

/// Behind a token of which the draft is not sure nothing more is drafted.
#[test]
fn doubt_ends_a_draft() {
    let model = load("llama1", Backend::Auto);
    let prompts = [vec![3, 17, 40], vec![5, 9]];
    let tally = |stop_below: f64| {
        let text = format!(
            r#"{{"self-speculative": {{"draft": "top@2", "draft-length": 6, "stop-below": {stop_below}}}}}"#
        );
        generate(&model, &prompts, &long(&text), &fixed(25)).drafts
    };
    let (never, always) = (tally(0.0), tally(1.0));
    // One token a round, but where no room is left for a draft.
    assert!(always.verified - always.drafted <= 2, "{always:?}");
    assert!(never.drafted > 3 * never.verified, "{never:?}");
    let some = tally(0.3);
    let share = |tally: &DraftTally| tally.accepted as f64 / tally.drafted as f64;
    assert!(share(&some) > share(&never), "{some:?} {never:?}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// Rows of any lengths, ends of sequence in the middle of a draft, and any limit.
    #[test]
    fn ends_and_batches_do_not_matter(
        prompts in prop::collection::vec(prop::collection::vec(0u32..96, 1..9), 1..5),
        max_new_tokens in 1usize..18,
        eos in prop::collection::vec(0u32..96, 0..40),
        draft in 0usize..19,
    ) {
        let model = load("llama1", Backend::Auto);
        let options = Options { max_new_tokens, eos_ids: eos, ..Options::default() };
        let draft = &drafts()[draft];
        let full = generate(&model, &prompts, &spec("full"), &options);
        let found = generate(&model, &prompts, draft, &options);
        prop_assert_eq!(tokens(&found), tokens(&full), "{}", draft);
        for (row, prompt) in found.rows.iter().zip(&prompts) {
            let alone = generate(&model, std::slice::from_ref(prompt), draft, &options);
            prop_assert_eq!(&alone.rows[0].tokens, &row.tokens);
            prop_assert_eq!(row.layers.len(), row.tokens.len());
        }
    }
}
