//! Early exit: rows that leave at different layers, and what their later tokens then read.

use crate::support::{fixed, generate, load, ragged, spec};
use skipbench_model::{Backend, CausalLm, Span};
use skipbench_strategy::StrategySpec;

const NEW_TOKENS: usize = 10;

/// CALM for one row as its paper tells it, without batching, ledger or plan: tokens and layers of each.
fn reference(model: &dyn CausalLm, prompt: &[u32], threshold: f64) -> (Vec<u32>, Vec<f64>) {
    let n_layers = model.sizes().n_layers;
    let mut cache = model
        .new_cache(1, vec![prompt.len() + NEW_TOKENS; n_layers])
        .unwrap();
    let spans = Span::prompts([prompt.len()]);
    let mut hidden = model.embed(prompt, &spans).unwrap();
    for layer in 0..n_layers {
        hidden = model.layer(layer, &hidden, &mut cache, &spans).unwrap();
    }
    let logits = model.head(&hidden).unwrap().to_vec2::<f32>().unwrap();
    let (mut tokens, mut layers) = (
        vec![top_two(&logits[prompt.len() - 1]).0],
        vec![n_layers as f64],
    );
    while tokens.len() < NEW_TOKENS {
        let span = [Span::token(0, prompt.len() + tokens.len() - 1)];
        let mut hidden = model.embed(&[tokens[tokens.len() - 1]], &span).unwrap();
        for layer in 0..n_layers {
            hidden = model.layer(layer, &hidden, &mut cache, &span).unwrap();
            let logits = model.head(&hidden).unwrap().to_vec2::<f32>().unwrap();
            let (token, margin) = top_two(&logits[0]);
            let exits = layer >= 1 && margin > threshold;
            if exits {
                for skipped in layer + 1..n_layers {
                    model.fill_kv(skipped, &hidden, &mut cache, &span).unwrap();
                }
            }
            if exits || layer == n_layers - 1 {
                tokens.push(token);
                layers.push((layer + 1) as f64);
                break;
            }
        }
    }
    (tokens, layers)
}

/// The most likely token and its lead in probability.
fn top_two(logits: &[f32]) -> (u32, f64) {
    let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let exps: Vec<f64> = logits
        .iter()
        .map(|x| f64::from(x - largest).exp())
        .collect();
    let sum: f64 = exps.iter().sum();
    let best = logits.iter().position(|&x| x == largest).unwrap();
    let second = exps
        .iter()
        .enumerate()
        .filter(|(index, _)| *index != best)
        .map(|(_, x)| *x)
        .fold(0.0, f64::max);
    (best as u32, (exps[best] - second) / sum)
}

fn margin(threshold: f64) -> StrategySpec {
    spec("early-exit:softmax-margin").with_threshold(threshold)
}

#[test]
fn rows_exit_at_different_layers_as_the_reference_says() {
    for name in ["llama1", "bloom"] {
        for backend in [Backend::Auto, Backend::Composed] {
            let model = load(name, backend);
            let prompts = ragged();
            let generation = generate(&model, &prompts, &margin(0.4), &fixed(NEW_TOKENS));
            let mut mixed_steps = 0;
            for step in 1..NEW_TOKENS {
                let first = generation.rows[0].layers[step];
                let mixed = generation.rows.iter().any(|row| row.layers[step] != first);
                mixed_steps += usize::from(mixed);
            }
            assert!(
                mixed_steps > 3,
                "{name}: only {mixed_steps} steps with rows at different layers"
            );
            for (prompt, row) in prompts.iter().zip(&generation.rows) {
                let (tokens, layers) = reference(&model, prompt, 0.4);
                assert_eq!(row.tokens, tokens, "{name}, {backend:?}");
                assert_eq!(row.layers, layers, "{name}, {backend:?}");
            }
        }
    }
}

#[test]
fn the_ends_of_the_threshold_are_exact() {
    let model = load("llama1", Backend::Auto);
    let prompts = [vec![5, 9, 20], vec![60]];
    for (name, always, never) in [
        ("early-exit:softmax-margin", 0.0, 1.0),
        ("early-exit:max-prob", 0.0, 1.0),
        ("early-exit:cosine", 0.0, 1.0),
        ("early-exit:entropy", 1.0, 0.0),
        ("early-exit:patience", 0.0, 1.0),
    ] {
        let layers = |threshold: f64| -> Vec<f64> {
            let spec = spec(name).with_threshold(threshold);
            let rows = generate(&model, &prompts, &spec, &fixed(6)).rows;
            rows.iter()
                .flat_map(|row| row.layers[1..].to_vec())
                .collect()
        };
        assert!(layers(always).iter().all(|&layers| layers == 2.0), "{name}");
        assert!(layers(never).iter().all(|&layers| layers == 6.0), "{name}");
    }
}

/// A head-reading signal pays for the LM head at every check; `cosine` only once.
#[test]
fn checks_are_in_the_ledger() {
    let model = load("llama1", Backend::Auto);
    let bytes = |name: &str| {
        let spec = spec(name).with_threshold(1.0);
        generate(&model, &[vec![5, 9]], &spec, &fixed(4))
            .ledger
            .total()
            .bytes
    };
    let sizes = model.sizes();
    // Three steps; checks after layers 2 to 5 of 6, the last of which needs none.
    let extra = 3 * 4 * sizes.head_bytes;
    assert_eq!(
        bytes("early-exit:softmax-margin"),
        bytes("early-exit:cosine") + extra
    );
}
