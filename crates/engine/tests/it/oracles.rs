//! Oracles: the full network's tokens, at the least depth that would have given them.

use crate::support::{fixed, generate, load, long, ragged, spec, tokens};
use skipbench_model::{Backend, CausalLm, Span};

/// Layers up to the first, and up to the first stable, agreement with the last.
fn agreement(model: &dyn CausalLm, prompt: &[u32], found: &[u32]) -> Vec<(f64, f64)> {
    let n_layers = model.sizes().n_layers;
    let ids = [prompt, &found[..found.len() - 1]].concat();
    let mut cache = model.new_cache(1, vec![ids.len(); n_layers]).unwrap();
    let span = Span::prompts([ids.len()]);
    let mut hidden = model.embed(&ids, &span).unwrap();
    let mut votes: Vec<Vec<usize>> = Vec::new();
    for layer in 0..n_layers {
        hidden = model.layer(layer, &hidden, &mut cache, &span).unwrap();
        let logits = model.head(&hidden).unwrap().to_vec2::<f32>().unwrap();
        votes.push(
            logits
                .iter()
                .map(|row| {
                    (0..row.len())
                        .max_by(|&a, &b| row[a].total_cmp(&row[b]))
                        .unwrap()
                })
                .collect(),
        );
    }
    (prompt.len()..ids.len())
        .map(|at| {
            let agrees = |layer: usize| votes[layer][at] == votes[n_layers - 1][at];
            let first = (0..n_layers).find(|&layer| agrees(layer)).unwrap();
            let stable = (0..n_layers)
                .rfind(|&layer| !agrees(layer))
                .map_or(0, |layer| layer + 1);
            ((first + 1) as f64, (stable + 1) as f64)
        })
        .collect()
}

#[test]
fn the_first_agreeing_layer_is_found() {
    for name in ["llama1", "bloom"] {
        let model = load(name, Backend::Auto);
        let prompts = ragged();
        let full = generate(&model, &prompts, &spec("full"), &fixed(10));
        let first = generate(&model, &prompts, &spec("oracle-exit"), &fixed(10));
        let stable = generate(&model, &prompts, &spec("oracle-exit:stable"), &fixed(10));
        assert_eq!(tokens(&first), tokens(&full));
        assert_eq!(tokens(&stable), tokens(&full));
        for (row, prompt) in prompts.iter().enumerate() {
            let expected = agreement(&model, prompt, &full.rows[row].tokens);
            for (step, (first_layers, stable_layers)) in expected.into_iter().enumerate() {
                assert_eq!(first.rows[row].layers[step + 1], first_layers, "{name}");
                assert_eq!(stable.rows[row].layers[step + 1], stable_layers, "{name}");
            }
        }
        // Only what such an exit would have run is charged.
        assert!(first.ledger.total().flops < full.ledger.total().flops);
        assert_eq!(first.ledger.full, full.ledger.full);
        assert!(first.ledger.total().flops <= stable.ledger.total().flops);
    }
}

/// The same exits with a cache as they would really leave it: the damage to the cache alone.
#[test]
fn a_noisy_cache_is_left_as_exits_would_leave_it() {
    let model = load("llama1", Backend::Auto);
    let noisy = long(r#"{"oracle-exit": {"kv-fill": "propagate"}}"#);
    let generation = generate(&model, &ragged(), &noisy, &fixed(10));
    assert!(generation.hole_reads.approximate > 0);
    let full = generate(&model, &ragged(), &spec("full"), &fixed(10));
    assert_ne!(tokens(&generation), tokens(&full));
}
