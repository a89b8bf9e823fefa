//! Scores of layers against their definitions.

use crate::support::{Hooked, load};
use candle_core::{Device, Tensor};
use skipbench_engine::{CalibrationText, ScoreLog, removal_order};
use skipbench_model::{Backend, CausalLm, MockModel, Span};
use skipbench_strategy::Scoring;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};

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
    let mut hidden = model.embed(ids, &span).unwrap();
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
            let state = Tensor::new(vec![last[at - 1].clone()], model.device()).unwrap();
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
        let order = removal_order(&model, Scoring::BlockInfluence, &texts(), &mut ()).unwrap();
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
        let order = removal_order(
            &model,
            Scoring::AngularDistance { block },
            &texts(),
            &mut (),
        )
        .unwrap();
        assert_eq!(order, (start..start + block).collect::<Vec<_>>(), "{block}");
    }
}

#[test]
fn perplexity_leaves_each_layer_out_alone_and_sleb_looks_again() {
    let model = load("qwen2", Backend::Auto);
    let alone: Vec<f64> = (0..6).map(|layer| loss(&model, &[layer])).collect();
    let order = removal_order(&model, Scoring::Perplexity, &texts(), &mut ()).unwrap();
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
    let order = removal_order(&model, Scoring::Sleb { drop: 3 }, &texts(), &mut ()).unwrap();
    assert_eq!(order, gone);
    // The ends stay, however many are asked for.
    let all = removal_order(&model, Scoring::Sleb { drop: 6 }, &texts(), &mut ()).unwrap();
    assert!(all.len() == 4 && all.iter().all(|layer| (1..5).contains(layer)));
}

/// Scores by the layers that are gone and the candidate.
#[derive(Default)]
struct Log {
    known: BTreeMap<(Vec<usize>, usize), f64>,
    /// In the order in which they came: done, total.
    found: Vec<(usize, usize)>,
}

impl ScoreLog for Log {
    fn lookup(&mut self, removed: &[usize], candidate: usize) -> Option<f64> {
        self.known.get(&(removed.to_vec(), candidate)).copied()
    }

    fn scored(
        &mut self,
        removed: &[usize],
        candidate: usize,
        score: f64,
        done: usize,
        total: usize,
    ) {
        let again = self.known.insert((removed.to_vec(), candidate), score);
        assert_eq!(again, None, "{removed:?} {candidate} was known");
        self.found.push((done, total));
    }
}

/// Mean negative log-likelihood in the engine's own arithmetic, every layer computed anew.
fn exact_loss(model: &dyn CausalLm, without: &[usize]) -> f64 {
    let (mut sum, mut count) = (0.0, 0usize);
    for text in texts() {
        let last = states(model, &text.ids, without).pop().unwrap();
        let answer = &last[text.answer_start - 1..text.ids.len() - 1];
        let answer = Tensor::new(answer.to_vec(), model.device()).unwrap();
        let logits = model.head(&answer).unwrap().to_vec2::<f32>().unwrap();
        for (logits, &token) in logits.iter().zip(&text.ids[text.answer_start..]) {
            let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let exp: f64 = logits.iter().map(|&x| f64::from(x - largest).exp()).sum();
            sum -= f64::from(logits[token as usize] - largest) - exp.ln();
            count += 1;
        }
    }
    sum / count as f64
}

/// What lies below a candidate runs once a round, and the scores are those of whole networks, bit for bit.
#[test]
fn layers_below_a_candidate_do_not_run_again_for_it() {
    for backend in [Backend::Auto, Backend::Composed] {
        let model = load("qwen2", backend);
        let runs = AtomicUsize::new(0);
        let counted = Hooked {
            inner: &model,
            layer: &|_, _, output| {
                runs.fetch_add(1, Ordering::Relaxed);
                Ok(output)
            },
            head: &|_, logits| Ok(logits),
        };
        let mut log = Log::default();
        let scoring = Scoring::Sleb { drop: 2 };
        let order = removal_order(&counted, scoring, &texts(), &mut log).unwrap();
        assert_eq!(log.known.len(), 4 + 3);
        assert!(log.found.iter().copied().eq((1..=7).map(|done| (done, 7))));
        for ((removed, candidate), score) in &log.known {
            let without = [&removed[..], &[*candidate]].concat();
            let wanted = exact_loss(&model, &without);
            assert_eq!(score.to_bits(), wanted.to_bits(), "{without:?}");
        }
        // Of 6 layers without candidate c, those above c for each of 1 to 4, and those below 4 once.
        let first = (4 + 3 + 2 + 1) + 4;
        // The same in the second round, among the 5 that are left.
        let left: Vec<usize> = (0..6).filter(|&layer| layer != order[0]).collect();
        let second: usize = 3 + (1..4).map(|place| left.len() - 1 - place).sum::<usize>();
        assert_eq!(
            runs.load(Ordering::Relaxed),
            texts().len() * (first + second)
        );
    }
}

/// Scores of a run that was cut off are not found again, and the order is the same.
#[test]
fn scoring_goes_on_where_it_was_cut_off() {
    let model = load("llama1", Backend::Auto);
    for (scoring, count) in [
        (Scoring::Sleb { drop: 3 }, 4 + 3 + 2),
        (Scoring::Perplexity, 6),
        (Scoring::MlpInfluence, 6),
        (Scoring::AngularDistance { block: 2 }, 5),
    ] {
        let mut whole = Log::default();
        let order = removal_order(&model, scoring, &texts(), &mut whole).unwrap();
        assert_eq!(whole.known.len(), count, "{scoring:?}");
        for cut in [1, 4, count - 1] {
            let mut cut_off = Log::default();
            cut_off
                .known
                .extend(whole.known.clone().into_iter().take(cut));
            let again = removal_order(&model, scoring, &texts(), &mut cut_off).unwrap();
            assert_eq!((&again, &cut_off.known), (&order, &whole.known));
            assert_eq!(cut_off.found.len(), count - cut);
            assert_eq!(cut_off.found.last(), Some(&(count, count)));
        }
        // All is known: nothing runs.
        let silent = Hooked {
            inner: &model,
            layer: &|_, _, _| panic!("a layer ran"),
            head: &|_, _| panic!("the head was read"),
        };
        whole.found.clear();
        let again = removal_order(&silent, scoring, &texts(), &mut whole).unwrap();
        assert_eq!((again, whole.found.len()), (order, 0), "{scoring:?}");
    }
}

/// Without one of the layers 0 to 2 the state in front of layer 3 is too small, and what comes out of that is `broken`.
fn overflowing(broken: f32, scoring: Scoring) -> Result<Vec<usize>, String> {
    let texts = [CalibrationText {
        ids: vec![10; 5],
        answer_start: 2,
    }];
    let model = Hooked {
        inner: &MockModel::new(6, 100),
        layer: &|index, input, output| {
            let small = input.flatten_all()?.to_vec1::<f32>()?[0] < 13.0;
            match index == 3 && small {
                true => Ok((output * f64::from(broken))?),
                false => Ok(output),
            }
        },
        head: &|hidden, logits| {
            let state = hidden.flatten_all()?.to_vec1::<f32>()?[0];
            match state.is_finite() {
                true => Ok(logits),
                false => Ok((logits * f64::NAN)?),
            }
        },
    };
    removal_order(&model, scoring, &texts, &mut ()).map_err(|error| error.to_string())
}

#[test]
fn a_layer_whose_removal_overflows_is_the_last_to_go() {
    for broken in [f32::NAN, -f32::NAN, f32::INFINITY] {
        let order = overflowing(broken, Scoring::Perplexity).unwrap();
        assert_eq!(order[3..], [0, 1, 2], "{broken}");
        // Of the inner layers, 3 and 4 alone can go.
        let order = overflowing(broken, Scoring::Sleb { drop: 1 }).unwrap();
        assert!(order == [3] || order == [4], "{broken}: {order:?}");
    }
}

#[test]
fn scores_that_mean_nothing_are_refused() {
    let model = Hooked {
        inner: &MockModel::new(4, 100),
        layer: &|_, _, output| Ok((output * f64::NAN)?),
        head: &|hidden, logits| {
            let nan = hidden.flatten_all()?.to_vec1::<f32>()?[0];
            Ok(Tensor::full(nan, logits.shape(), &Device::Cpu)?)
        },
    };
    let error = |texts: &[CalibrationText], scoring| {
        let order = removal_order(&model, scoring, texts, &mut ());
        order.unwrap_err().to_string()
    };
    for scoring in [
        Scoring::BlockInfluence,
        Scoring::AngularDistance { block: 1 },
        Scoring::Perplexity,
        Scoring::Sleb { drop: 1 },
    ] {
        let message = error(&texts(), scoring);
        assert!(
            message.contains("not numbers on the calibration text"),
            "{message}"
        );
        assert!(error(&[], scoring).contains("no calibration text"));
    }
}
