//! Exit checks that read a list of tokens.

use crate::support::{fixed, fixtures, generate, load, long, ragged, spec, tokens};
use skipbench_engine::{CheckAudit, Options};
use skipbench_model::{Backend, CausalLm, MockModel, Shortlist, Span};
use skipbench_strategy::ExitCheck;

const NEW_TOKENS: usize = 8;

/// The lead of the likeliest of some tokens.
fn margin(logits: &[f32]) -> f64 {
    let mut sorted = logits.to_vec();
    sorted.sort_by(|a, b| b.total_cmp(a));
    let mut exps = sorted.iter().map(|x| f64::from(x - sorted[0]).exp());
    let sum: f64 = exps.clone().sum();
    (1.0 - exps.nth(1).unwrap_or(0.0)) / sum
}

/// One row as the setting is described: a list at the first check, its logits from the whole head. Tokens and layers.
fn reference(model: &dyn CausalLm, prompt: &[u32], threshold: f64) -> (Vec<u32>, Vec<f64>) {
    let n_layers = model.sizes().n_layers;
    let capacity = vec![prompt.len() + NEW_TOKENS; n_layers];
    let mut cache = model.new_cache(1, capacity).unwrap();
    let best = |logits: &[f32]| {
        let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        logits.iter().position(|&x| x == largest).unwrap() as u32
    };
    let spans = Span::prompts([prompt.len()]);
    let mut hidden = model.embed(prompt, &spans).unwrap();
    for layer in 0..n_layers {
        hidden = model.layer(layer, &hidden, &mut cache, &spans).unwrap();
    }
    let logits = model.head(&hidden).unwrap().to_vec2::<f32>().unwrap();
    let (mut tokens, mut layers) = (vec![best(&logits[prompt.len() - 1])], vec![n_layers as f64]);
    while tokens.len() < NEW_TOKENS {
        let span = [Span::token(0, prompt.len() + tokens.len() - 1)];
        let mut hidden = model.embed(&[tokens[tokens.len() - 1]], &span).unwrap();
        let mut list: Option<Shortlist> = None;
        for layer in 0..n_layers {
            hidden = model.layer(layer, &hidden, &mut cache, &span).unwrap();
            let logits = model
                .head(&hidden)
                .unwrap()
                .to_vec2::<f32>()
                .unwrap()
                .remove(0);
            let mut exits = false;
            if (1..n_layers - 1).contains(&layer) {
                let list = list.get_or_insert_with(|| {
                    let mut lists = model.shortlists(&hidden, ExitCheck::CANDIDATES).unwrap();
                    lists.remove(0)
                });
                let ids = list.ids().iter();
                let listed: Vec<f32> = ids.map(|&id| logits[id as usize]).collect();
                exits = margin(&listed) > threshold;
            }
            if exits {
                for skipped in layer + 1..n_layers {
                    model.fill_kv(skipped, &hidden, &mut cache, &span).unwrap();
                }
            }
            if exits || layer == n_layers - 1 {
                tokens.push(best(&logits));
                layers.push((layer + 1) as f64);
                break;
            }
        }
    }
    (tokens, layers)
}

#[test]
fn rows_exit_as_their_own_lists_say_alone_and_in_a_batch() {
    for name in fixtures() {
        for backend in [Backend::Auto, Backend::Composed] {
            let model = load(&name, backend);
            let spec = spec("early-exit {check: candidates, threshold: 0.4}");
            let limit = model.sizes().switch_length;
            let fits = |prompt: &Vec<u32>| {
                limit.is_none_or(|limit| prompt.len() > limit || prompt.len() + NEW_TOKENS <= limit)
            };
            let prompts: Vec<_> = ragged().into_iter().filter(fits).collect();
            let batch = generate(&model, &prompts, &spec, &fixed(NEW_TOKENS));
            for (prompt, row) in prompts.iter().zip(&batch.rows) {
                let wanted = reference(&model, prompt, 0.4);
                let found = (row.tokens.clone(), row.layers.clone());
                assert_eq!(found, wanted, "{name}, {backend:?}");
            }
        }
    }
}

#[test]
fn the_ends_of_the_threshold_are_exact() {
    let model = load("llama1", Backend::Auto);
    for (signal, always, never) in [
        ("softmax-margin", 0.0, 1.0),
        ("max-prob", 0.0, 1.0),
        ("entropy", 1.0, 0.0),
        ("patience", 0.0, 1.0),
    ] {
        for (threshold, depth) in [(always, 2.0), (never, 6.0)] {
            let text = format!("early-exit:{signal} {{check: candidates, threshold: {threshold}}}");
            let rows = generate(&model, &ragged(), &spec(&text), &fixed(6)).rows;
            let mut layers = rows.iter().flat_map(|row| &row.layers[1..]);
            assert!(layers.all(|&layers| layers == depth), "{text}");
        }
    }
}

/// A vocabulary no larger than the list: there is nothing to miss, whatever the signal.
#[test]
fn a_list_of_all_tokens_is_the_whole_head() {
    let model = MockModel::new(8, 40);
    for signal in ["softmax-margin", "max-prob", "patience"] {
        for threshold in [0.3, 0.9955] {
            let run = |check: &str| {
                let text =
                    format!("early-exit:{signal} {{check: {check}, threshold: {threshold}}}");
                generate(&model, &[vec![3], vec![9, 30]], &spec(&text), &fixed(6))
            };
            assert_eq!(tokens(&run("candidates")), tokens(&run("full")), "{signal}");
        }
    }
}

/// The mock votes for another token after each layer, with a margin of (e^10 - 1) / (e^10 + n - 1) among n tokens: 0.99546 of
/// 100, 0.99711 of a list of 64 that holds the vote, and 0 of one that does not. Every token of the answer here is above
/// 64, and so is in no list but that of its own layer.
#[test]
fn the_audit_says_what_lists_miss() {
    let model = MockModel::new(5, 100);
    let audit = |thresholds: &str| {
        let spec = long(&format!(
            r#"{{"early-exit": {{"check": "candidates", "layer-thresholds": {thresholds}}}}}"#
        ));
        let options = Options {
            audit: true,
            ..fixed(2)
        };
        let silent = generate(&model, &[vec![70]], &spec, &fixed(2));
        let found = generate(&model, &[vec![70]], &spec, &options);
        assert_eq!(silent.checks, CheckAudit::default());
        assert_eq!(silent.rows[0].tokens, found.rows[0].tokens);
        assert_eq!(
            silent.ledger, found.ledger,
            "an audit is not the strategy's work"
        );
        (found.checks, found.rows[0].layers[1])
    };
    let tally = |checks, exits, missed, early, unlisted| CheckAudit {
        checks,
        exits,
        missed,
        early,
        unlisted,
    };
    assert_eq!(audit(r#"{"2": 0.5}"#), (tally(1, 1, 0, 0, 0), 2.0));
    assert_eq!(audit(r#"{"2": 0.996}"#), (tally(1, 0, 0, 1, 0), 2.0));
    assert_eq!(
        audit(r#"{"2": 0.999, "4": 0.5}"#),
        (tally(2, 1, 1, 0, 1), 5.0)
    );
}

/// Three steps of six layers with four checks each, of which the first draws the list.
#[test]
fn lists_are_in_the_ledger() {
    let model = load("llama1", Backend::Auto);
    let bytes = |text: &str| {
        let ledger = generate(&model, &[vec![5, 9]], &spec(text), &fixed(4)).ledger;
        assert_eq!(ledger.kv_fill.bytes, 0, "{text}");
        (ledger.total().bytes, ledger.checks.bytes)
    };
    let sizes = model.sizes();
    let rows = (ExitCheck::CANDIDATES * sizes.d_model) as u64 * 4;
    let wanted = 3 * (sizes.head_weights + rows + 4 * rows);
    let (total, checks) = bytes("early-exit {check: candidates, threshold: 1}");
    assert_eq!(checks, wanted);
    let (without, _) = bytes("early-exit:cosine {threshold: 1}");
    assert_eq!(total, without + wanted);
}

#[test]
fn the_parts_of_steps_are_timed() {
    let model = load("llama1", Backend::Auto);
    for text in [
        "full",
        "early-exit {threshold: 0.4}",
        "early-exit {check: candidates, threshold: 0.4}",
        "self-speculative:top@2",
    ] {
        let generation = generate(&model, &ragged(), &spec(text), &fixed(6));
        let spent = generation.spent;
        assert!(spent.layers_s > 0.0 && spent.rows_s > 0.0, "{text}");
        assert!(spent.head_s > 0.0 || text.starts_with("early"), "{text}");
        assert_eq!(spent.checks_s > 0.0, text.starts_with("early"), "{text}");
        assert_eq!(spent.kv_fill_s > 0.0, text.starts_with("early"), "{text}");
        assert!(spent.total_s() <= generation.decode_s(), "{text}");
    }
}
