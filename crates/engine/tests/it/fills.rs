//! KV fills, their provenance and audit, and what waiting costs in a batch.

use crate::support::{expected, fixed, fixtures, generate, load, long, ragged, spec, tokens};
use skipbench_engine::{Generation, Options};
use skipbench_model::{Backend, CausalLm, HoleReads, Span};
use skipbench_strategy::{KvFill, StrategySpec};

const NEW_TOKENS: usize = 12;

fn exits(threshold: f64, fill: &str, mode: &str) -> StrategySpec {
    long(&format!(
        r#"{{"early-exit": {{"threshold": {threshold}, "kv-fill": "{fill}", "batch-mode": "{mode}"}}}}"#
    ))
}

fn audited(model: &dyn CausalLm, prompts: &[Vec<u32>], spec: &StrategySpec) -> Generation {
    let options = Options {
        audit: true,
        trace: true,
        ..fixed(NEW_TOKENS)
    };
    generate(model, prompts, spec, &options)
}

/// Exits whose keys and values are exact because all layers run for every token, at no one's expense.
fn exact_reference(model: &dyn CausalLm, prompt: &[u32], threshold: f64) -> Vec<u32> {
    let n_layers = model.sizes().n_layers;
    let mut cache = model
        .new_cache(1, vec![prompt.len() + NEW_TOKENS; n_layers])
        .unwrap();
    let mut fed = prompt.to_vec();
    let mut start = 0;
    let mut found = Vec::new();
    while found.len() < NEW_TOKENS {
        let span = [Span {
            row: 0,
            start,
            len: fed.len(),
        }];
        let mut hidden = model.embed(&fed, &span).unwrap();
        let mut token = None;
        for layer in 0..n_layers {
            hidden = model.layer(layer, &hidden, &mut cache, &span).unwrap();
            let logits = model.head(&hidden).unwrap().to_vec2::<f32>().unwrap();
            let (best, margin) = margin(&logits[fed.len() - 1]);
            let sure = layer >= 1 && margin > threshold && start > 0;
            if token.is_none() && (sure || layer + 1 == n_layers) {
                token = Some(best);
            }
        }
        start += fed.len();
        fed = vec![token.unwrap()];
        found.push(fed[0]);
    }
    found
}

fn margin(logits: &[f32]) -> (u32, f64) {
    let mut order: Vec<usize> = (0..logits.len()).collect();
    order.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]));
    let exp = |at: usize| f64::from(logits[at] - logits[order[0]]).exp();
    let sum: f64 = (0..logits.len()).map(exp).sum();
    (order[0] as u32, (1.0 - exp(order[1])) / sum)
}

#[test]
fn deferred_is_exact() {
    for (name, threshold) in [
        ("llama1", 0.4),
        ("qwen2", 0.4),
        ("bloom", 0.1),
        ("mistral-window", 0.3),
        ("gpt-neox", 0.3),
        ("olmo2", 0.3),
    ] {
        for backend in [Backend::Auto, Backend::Composed] {
            let model = load(name, backend);
            let prompts = ragged();
            let generation = audited(&model, &prompts, &exits(threshold, "deferred", "compact"));
            let mut deferred = 0;
            for (prompt, row) in prompts.iter().zip(&generation.rows) {
                let what = format!("{name} {backend:?}");
                assert_eq!(
                    row.tokens,
                    exact_reference(&model, prompt, threshold),
                    "{what}"
                );
                let audit = row.audit.as_ref().unwrap();
                let made_up = audit.over_layers(|layer| &layer.deferred);
                let computed = audit.over_layers(|layer| &layer.computed);
                assert!(
                    made_up.distance_max < 1e-5,
                    "{what}: {}",
                    made_up.distance_max
                );
                assert!(
                    computed.distance_max < 1e-5,
                    "{what}: {}",
                    computed.distance_max
                );
                assert_eq!(audit.over_layers(|layer| &layer.approximate).count, 0);
                deferred += made_up.count;
            }
            assert!(
                deferred > 10,
                "{name}: only {deferred} positions were deferred"
            );
            assert_eq!(generation.hole_reads, HoleReads::default());
        }
    }
}

/// Layers that are made up for later are counted, so a row never runs more than all layers per token.
#[test]
fn deferred_layers_are_paid_by_the_token_that_needs_them() {
    let model = load("llama1", Backend::Auto);
    let generation = audited(&model, &ragged(), &exits(0.4, "deferred", "compact"));
    let propagated = audited(&model, &ragged(), &exits(0.4, "propagate", "compact"));
    let layers = |generation: &Generation| -> f64 {
        let rows = generation.rows.iter();
        rows.flat_map(|row| &row.layers[1..]).sum()
    };
    assert!(layers(&generation) > layers(&propagated));
    for row in &generation.rows {
        let total: f64 = row.layers.iter().sum();
        assert!(total <= (6 * NEW_TOKENS) as f64);
        assert!(row.layers.iter().any(|&layers| layers > 6.0), "a burst");
    }
}

#[test]
fn approximate_fills_are_seen_in_the_audit() {
    let model = load("llama1", Backend::Auto);
    for (fill, letter) in [("propagate", 'p'), ("copy", 'y')] {
        let generation = audited(&model, &ragged(), &exits(0.4, fill, "compact"));
        assert!(generation.hole_reads.approximate > 0, "{fill}");
        assert_eq!(generation.hole_reads.masked, 0);
        for row in &generation.rows {
            let audit = row.audit.as_ref().unwrap();
            let made_up = audit.over_layers(|layer| &layer.approximate);
            assert!(
                made_up.count > 0 && made_up.distance().unwrap() > 0.01,
                "{fill}"
            );
            assert_eq!(
                audit.layers[0].approximate.count, 0,
                "no token skips the first layer"
            );
            assert!(audit.layers[0].computed.distance_max < 1e-5, "{fill}");
            for trace in &row.trace[1..] {
                let exit = trace.exit_layer.unwrap_or(5);
                let expected: String = (0..6)
                    .map(|layer| if layer <= exit { 'c' } else { letter })
                    .collect();
                assert_eq!(trace.kv, expected);
                assert_eq!(trace.layers.to_vec(), (0..=exit).collect::<Vec<_>>());
                assert!(trace.confidence.is_some());
            }
        }
    }
}

#[test]
fn masked_positions_are_not_seen() {
    for name in ["llama1", "bloom", "mistral-window", "opt"] {
        let fused = load(name, Backend::Auto);
        let masked = audited(&fused, &ragged(), &exits(0.4, "mask", "compact"));
        assert!(masked.hole_reads.masked > 0 && masked.hole_reads.approximate == 0);
        // The composed layers mask in another way altogether.
        let composed = load(name, Backend::Composed);
        let again = audited(&composed, &ragged(), &exits(0.4, "mask", "compact"));
        assert_eq!(tokens(&masked), tokens(&again), "{name}");
        assert_eq!(masked.hole_reads, again.hole_reads);
        let marked = masked
            .rows
            .iter()
            .any(|row| row.trace.iter().any(|t| t.kv.contains('m')));
        assert!(marked, "{name}");
    }
}

/// A replay runs the prompt in one piece and the tokens behind it as they came.
#[test]
fn a_replay_of_the_full_network_finds_no_difference() {
    for name in fixtures() {
        let model = load(&name, Backend::Auto);
        let rows = expected(&name);
        let prompts: Vec<_> = rows.iter().map(|row| row.prompt.clone()).collect();
        let generation = audited(&model, &prompts, &spec("full"));
        for row in &generation.rows {
            let computed = row
                .audit
                .as_ref()
                .unwrap()
                .over_layers(|layer| &layer.computed);
            assert!(
                computed.count > 0 && computed.distance_max < 1e-5,
                "{name}: {}",
                computed.distance_max
            );
        }
    }
}

#[test]
fn waiting_changes_no_token_and_wastes_layers() {
    for name in ["llama1", "bloom", "mistral-window", "gpt-neox"] {
        for backend in [Backend::Auto, Backend::Composed] {
            let model = load(name, backend);
            for fill in ["propagate", "copy", "mask", "deferred"] {
                let compact = audited(&model, &ragged(), &exits(0.4, fill, "compact"));
                let sync = audited(&model, &ragged(), &exits(0.4, fill, "sync"));
                let what = format!("{name} {backend:?} {fill}");
                assert_eq!(tokens(&sync), tokens(&compact), "{what}");
                assert_eq!(compact.ledger.wasted_row_layers, 0);
                assert!(sync.ledger.wasted_row_layers > 0, "{what}");
                assert!(
                    sync.ledger.total().flops > compact.ledger.total().flops,
                    "{what}"
                );
                let counted = |generation: &Generation| -> f64 {
                    let rows = generation.rows.iter();
                    rows.flat_map(|row| &row.layers[1..]).sum()
                };
                assert_eq!(
                    counted(&compact),
                    compact.ledger.row_layers as f64,
                    "{what}"
                );
                // Beyond what rows run that leave, all is for nothing.
                let used = sync.ledger.row_layers - sync.ledger.wasted_row_layers;
                assert_eq!(used, compact.ledger.row_layers, "{what}");
                assert_eq!(sync.hole_reads, compact.hole_reads, "{what}");
                if fill == "deferred" {
                    assert_eq!(counted(&sync), sync.ledger.row_layers as f64, "{what}");
                    for row in &sync.rows {
                        let audit = row.audit.as_ref().unwrap();
                        assert!(audit.over_layers(|layer| &layer.computed).distance_max < 1e-5);
                    }
                    continue;
                }
                for (sync, compact) in sync.rows.iter().zip(&compact.rows) {
                    assert_eq!(sync.layers, compact.layers, "{what}");
                    let kv = |row: &skipbench_engine::RowOutput| -> Vec<String> {
                        row.trace.iter().map(|trace| trace.kv.clone()).collect()
                    };
                    assert_eq!(kv(sync), kv(compact), "{what}");
                }
            }
        }
    }
}

#[test]
fn no_hole_is_read_without_a_fill() {
    let model = load("llama1", Backend::Auto);
    let mut specs: Vec<StrategySpec> = [
        "full",
        "unified@2",
        "top@2",
        "bottom@2",
        "middle@2",
        "random@2",
        "every-other",
        "skip-decode@2",
        "position-decay@2",
        "sublayer-drop@1.5",
        "adaskip@1.5",
        "oracle-exit",
    ]
    .map(spec)
    .into();
    specs.push(spec("prompt-depth").with_threshold(0.5));
    for spec in specs {
        let strategy = spec.build(6).unwrap();
        assert_eq!(strategy.needs().kv_fill, KvFill::None, "{spec}");
        // A read of a hole is an error of the cache.
        let generation = audited(&model, &ragged(), &spec);
        assert_eq!(generation.hole_reads, HoleReads::default(), "{spec}");
    }
}
