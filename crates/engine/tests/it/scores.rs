//! Scores of layers against their definitions.

use crate::support::load;
use skipbench_engine::{CalibrationText, removal_order};
use skipbench_model::{Backend, CausalLm, Span};
use skipbench_strategy::Scoring;

fn texts() -> Vec<CalibrationText> {
    (0..4u32)
        .map(|text| CalibrationText {
            ids: (0..9 + text)
                .map(|i| 3 + (i * 29 + text * 41) % 90)
                .collect(),
            answer_start: 4 + text as usize,
        })
        .collect()
}

/// States before each layer and behind the last, of all layers but `without`: `[layers + 1][tokens][d_model]`.
fn states(model: &dyn CausalLm, ids: &[u32], without: &[usize]) -> Vec<Vec<Vec<f32>>> {
    let n_layers = model.sizes().n_layers;
    let mut cache = model.new_cache(1, vec![ids.len(); n_layers]).unwrap();
    let span = Span::prompts([ids.len()]);
    let mut hidden = model.embed(ids).unwrap();
    let mut states = vec![hidden.to_vec2().unwrap()];
    for layer in (0..n_layers).filter(|layer| !without.contains(layer)) {
        hidden = model.layer(layer, &hidden, &mut cache, &span).unwrap();
        states.push(hidden.to_vec2().unwrap());
    }
    states
}

fn cosine(a: &[f32], b: &[f32]) -> f64 {
    let dot = |a: &[f32], b: &[f32]| -> f64 {
        a.iter()
            .zip(b)
            .map(|(a, b)| f64::from(*a) * f64::from(*b))
            .sum()
    };
    dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
}

/// Negative log-likelihood of the answers' tokens.
fn loss(model: &dyn CausalLm, without: &[usize]) -> f64 {
    let (mut sum, mut count) = (0.0, 0);
    for text in texts() {
        let states = states(model, &text.ids, without);
        let last = states.last().unwrap();
        for at in text.answer_start..text.ids.len() {
            let state =
                candle_core::Tensor::new(vec![last[at - 1].clone()], model.device()).unwrap();
            let logits = model.head(&state).unwrap().to_vec2::<f32>().unwrap();
            let sum_exp: f64 = logits[0].iter().map(|&x| f64::from(x).exp()).sum();
            sum += sum_exp.ln() - f64::from(logits[0][text.ids[at] as usize]);
            count += 1;
        }
    }
    sum / f64::from(count)
}

fn sorted(scores: &[f64]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..scores.len()).collect();
    order.sort_by(|&a, &b| scores[a].total_cmp(&scores[b]));
    order
}

#[test]
fn block_influence_is_one_minus_the_mean_cosine() {
    for name in ["llama1", "bloom"] {
        let model = load(name, Backend::Auto);
        let mut sums = vec![0.0; 6];
        for text in texts() {
            let states = states(&model, &text.ids, &[]);
            for (layer, sum) in sums.iter_mut().enumerate() {
                let pairs = states[layer].iter().zip(&states[layer + 1]);
                *sum -= pairs.map(|(a, b)| cosine(a, b)).sum::<f64>();
            }
        }
        let order = removal_order(&model, Scoring::BlockInfluence, &texts()).unwrap();
        assert_eq!(order, sorted(&sums), "{name}");
    }
}

#[test]
fn the_block_of_least_angle_goes() {
    let model = load("llama1", Backend::Auto);
    for block in [1, 2, 3] {
        let mut sums = vec![0.0; 7 - block];
        for text in texts() {
            let states = states(&model, &text.ids, &[]);
            for (start, sum) in sums.iter_mut().enumerate() {
                let (a, b) = (
                    states[start].last().unwrap(),
                    states[start + block].last().unwrap(),
                );
                *sum += cosine(a, b).acos();
            }
        }
        let start = sorted(&sums)[0];
        let order = removal_order(&model, Scoring::AngularDistance { block }, &texts()).unwrap();
        assert_eq!(order, (start..start + block).collect::<Vec<_>>(), "{block}");
    }
}

#[test]
fn perplexity_leaves_each_layer_out_alone_and_sleb_looks_again() {
    let model = load("qwen2", Backend::Auto);
    let alone: Vec<f64> = (0..6).map(|layer| loss(&model, &[layer])).collect();
    let order = removal_order(&model, Scoring::Perplexity, &texts()).unwrap();
    assert_eq!(order, sorted(&alone));

    let mut gone: Vec<usize> = Vec::new();
    for _ in 0..3 {
        let inner: Vec<usize> = (1..5).filter(|layer| !gone.contains(layer)).collect();
        let losses: Vec<f64> = inner
            .iter()
            .map(|&layer| loss(&model, &[&gone[..], &[layer]].concat()))
            .collect();
        gone.push(inner[sorted(&losses)[0]]);
    }
    let order = removal_order(&model, Scoring::Sleb { drop: 3 }, &texts()).unwrap();
    assert_eq!(order, gone);
    // The ends stay, however many are asked for.
    let all = removal_order(&model, Scoring::Sleb { drop: 6 }, &texts()).unwrap();
    assert!(all.len() == 4 && all.iter().all(|layer| (1..5).contains(layer)));
}
