//! The layer sets of Unified Layer Skipping against the reference sets.
#![allow(
    clippy::unwrap_used,
    reason = "clippy.toml allows it in #[test] functions, not in their helpers"
)]

use serde::Deserialize;
use skipbench_strategy::{StrategyError, StrategySpec};
use std::path::Path;

fn kept(spec: &str, n_layers: usize) -> Vec<usize> {
    let spec: StrategySpec = spec.parse().unwrap();
    spec.explain(n_layers, 32).unwrap().layers
}

#[test]
fn published_rule_gives_the_sets_of_the_released_code() {
    let cases: [(usize, &str, &[usize]); 9] = [
        (12, "unified@1.5", &[0, 1, 2, 3, 4, 5, 6, 11]),
        (12, "unified@2", &[0, 2, 4, 6, 8, 11]),
        (12, "unified@3", &[0, 4, 8, 11]),
        (12, "unified@5", &[0, 11]),
        (24, "unified@5", &[0, 8, 16, 23]),
        (
            30,
            "unified@2.5",
            &[0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 29],
        ),
        (30, "unified@5", &[0, 6, 12, 18, 24, 29]),
        (32, "unified@10", &[0, 16, 31]),
        (40, "unified@10", &[0, 13, 26, 39]),
    ];
    for (n_layers, spec, layers) in cases {
        assert_eq!(kept(spec, n_layers), layers, "{spec} of {n_layers}");
    }
}

#[test]
fn even_rule_rounds_halves_to_the_even_layer() {
    let cases: [(usize, &str, &[usize]); 5] = [
        (12, "unified:even@2", &[0, 2, 4, 7, 9, 11]),
        (16, "unified:even@3", &[0, 4, 8, 11, 15]),
        (24, "unified:even@3", &[0, 3, 7, 10, 13, 16, 20, 23]),
        (30, "unified:even@10", &[0, 14, 29]),
        (32, "unified:even@5", &[0, 6, 12, 19, 25, 31]),
    ];
    for (n_layers, spec, layers) in cases {
        assert_eq!(kept(spec, n_layers), layers, "{spec} of {n_layers}");
    }
}

#[test]
fn the_number_of_layers_survives_floating_point() {
    assert_eq!(kept("unified@1.1", 33).len(), 30);
}

/// Every case of the project's shared golden file.
#[test]
#[cfg_attr(not(has_shared), ignore = "needs ../shared")]
fn shared_golden_file() {
    #[derive(Deserialize)]
    struct Case {
        n_layers: usize,
        target_speedup: f64,
        published: Option<Vec<usize>>,
        even: Option<Vec<usize>>,
    }

    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../..");
    let path = root.join("shared/golden/unified_layers.json");
    let text = std::fs::read_to_string(&path).unwrap();
    let cases: Vec<Case> = serde_json::from_str(&text).unwrap();
    assert!(!cases.is_empty());
    for case in cases {
        for (rule, expected) in [("published", case.published), ("even", case.even)] {
            let spec = format!("unified:{rule}@{}", case.target_speedup);
            let spec: StrategySpec = spec.parse().unwrap();
            let layers = spec.explain(case.n_layers, 32).map(|e| e.layers);
            match expected {
                Some(expected) => assert_eq!(layers, Ok(expected), "{spec} of {}", case.n_layers),
                None => assert!(
                    matches!(layers, Err(StrategyError::TooFast { .. })),
                    "{spec} of {}: {layers:?}",
                    case.n_layers
                ),
            }
        }
    }
}
