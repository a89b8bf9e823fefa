//! Gradients, what a step runs and what it trains, and the values of its losses.

use super::drops::{Drops, Per};
use super::exits::{Curriculum, ExitPlan, ExitWeights};
use super::{Loss, Measure, Side, Step, Term};
use crate::data::{Depths, Fill};
use crate::net::{LayerUse, Net};
use crate::ops::to_vec;
use crate::testing::{LAYERS, batch, check_gradients, check_slopes, gradients, net, pairs};
use skipbench_strategy::LayerSet;

/// Prompts through all layers, responses through `layers`.
fn responses_run(layers: &[usize]) -> Depths {
    let layers = LayerSet::from_layers(layers.iter().copied());
    Depths {
        prompts: vec![LayerSet::full(LAYERS); 2],
        ..Depths::of_rows(&pairs(), vec![layers; 2])
    }
}

fn term(weight: f64, loss: Loss) -> Term {
    Term { weight, loss }
}

const LAST: Loss = Loss::Exit { layers: LAYERS };

fn logits(layers: usize) -> Loss {
    Loss::Logits {
        layers,
        temperature: 2.0,
    }
}

fn states(measure: Measure, at: Side, trains_full: bool) -> Loss {
    Loss::States {
        measure,
        at,
        trains_full,
    }
}

fn step(depths: Option<Depths>, terms: Vec<Term>) -> Step {
    Step { depths, terms }
}

fn exits(weights: ExitWeights) -> Vec<Term> {
    ExitPlan::new(LAYERS, &[1, 2], weights, Curriculum::None, 10).terms(0)
}

/// Losses of a step before they are weighed, and their sum.
fn values(net: &Net, step: &Step) -> (Vec<f64>, f64) {
    let pass = net.losses(&batch(), step).unwrap();
    let terms = pass.terms.iter().copied().map(f64::from).collect();
    (terms, f64::from(pass.loss.to_scalar::<f32>().unwrap()))
}

#[test]
fn gradients_of_losses_without_a_teacher_are_slopes() {
    let drops = Drops::exponential(LAYERS, 0.9, Per::Sample);
    let cases = [
        // Early exit, LayerSkip, intermediate losses.
        step(None, exits(ExitWeights::ByLayer)),
        step(
            Some(drops.draw(&pairs(), 1.0, 1, 4)),
            exits(ExitWeights::Rising { scale: 0.7 }),
        ),
        step(
            Some(Drops::uniform(LAYERS, 0.5, Per::Sample).draw(&pairs(), 1.0, 1, 6)),
            exits(ExitWeights::Inner { inner: 0.4 }),
        ),
        // Unified skipping with both of its optional losses.
        step(
            Some(responses_run(&[0, 2])),
            vec![
                term(1.0, LAST),
                term(0.5, Loss::Full),
                term(0.8, states(Measure::Cosine, Side::Input, true)),
            ],
        ),
        step(
            Some(responses_run(&[0, 1])),
            vec![
                term(1.0, LAST),
                term(0.5, states(Measure::SquaredError, Side::Output, true)),
            ],
        ),
    ];
    for step in &cases {
        check_gradients(false, step);
        check_gradients(true, step);
    }
}

/// The teacher has the same weights, but none of them is trained by what it says: the slopes are those of a loss whose teacher
/// stays where it was.
#[test]
fn gradients_of_distillation_are_slopes_beside_a_teacher_that_stands_still() {
    let depths = responses_run(&[0, 2]);
    let cases = [
        step(
            Some(depths.clone()),
            vec![term(1.0, LAST), term(0.7, logits(LAYERS))],
        ),
        step(
            None,
            vec![term(0.6, LAST), term(0.4, logits(1)), term(0.3, logits(2))],
        ),
        step(
            Some(depths.clone()),
            vec![
                term(0.5, LAST),
                term(2.0, states(Measure::SquaredError, Side::Output, false)),
            ],
        ),
        step(
            Some(depths),
            vec![
                term(0.5, LAST),
                term(0.7, logits(LAYERS)),
                term(2.0, states(Measure::Cosine, Side::Output, false)),
            ],
        ),
        // What the whole network learns for itself it does not learn from its own teaching.
        step(
            Some(responses_run(&[0, 2])),
            vec![
                term(1.0, LAST),
                term(0.5, Loss::Full),
                term(0.7, logits(LAYERS)),
                term(2.0, states(Measure::SquaredError, Side::Output, false)),
            ],
        ),
    ];
    for step in &cases {
        let student = net(false);
        // What the whole network says before any weight is moved.
        let fixed = net(false);
        let loss = |net: &Net| against(net, &fixed, step);
        let (_, sum) = values(&student, step);
        assert!(
            (loss(&student) - sum).abs() < 1e-4,
            "{} is not {sum}",
            loss(&student)
        );
        check_slopes(&student, &gradients(&student, step), loss, |_| true);
    }
}

/// The sum of the losses of `step` with the states and logits of `teacher`, in plain numbers.
fn against(net: &Net, teacher: &Net, step: &Step) -> f64 {
    let batch = batch();
    let all = (0..=LAYERS).collect();
    let drawn = net.run(&batch, step.depths.as_ref(), &all, false).unwrap();
    let whole = teacher.run(&batch, None, &all, false).unwrap();
    let rows = |states: &candle_core::Tensor| -> Vec<Vec<f64>> {
        let of_row = |row: Vec<f32>| row.into_iter().map(f64::from).collect();
        states
            .to_vec2::<f32>()
            .unwrap()
            .into_iter()
            .map(of_row)
            .collect()
    };
    let counted: Vec<usize> = batch.counted.iter().map(|&at| at as usize).collect();
    let logits_of = |net: &Net, states: &candle_core::Tensor| {
        let all = rows(&net.logits(states).unwrap());
        counted
            .iter()
            .map(|&at| all[at].clone())
            .collect::<Vec<_>>()
    };
    let mean = |values: Vec<f64>| values.iter().sum::<f64>() / values.len() as f64;
    let cross_entropy = |states: &candle_core::Tensor| {
        let logits = logits_of(net, states);
        let rows = logits.iter().zip(&batch.targets);
        mean(
            rows.map(|(z, &target)| -log_softmax(z, 1.0)[target as usize])
                .collect(),
        )
    };
    let value = |loss: Loss| match loss {
        Loss::Exit { layers } => cross_entropy(&drawn.states[&layers]),
        Loss::Logits {
            layers,
            temperature,
        } => {
            let student = logits_of(net, &drawn.states[&layers]);
            let teacher = logits_of(teacher, &whole.states[&LAYERS]);
            let of_row = |(z, t): (&Vec<f64>, &Vec<f64>)| {
                let (q, p) = (log_softmax(z, temperature), log_softmax(t, temperature));
                p.iter()
                    .zip(&q)
                    .map(|(p, q)| p.exp() * (p - q))
                    .sum::<f64>()
            };
            let divergences = student.iter().zip(&teacher).map(of_row).collect();
            temperature * temperature * mean(divergences)
        }
        Loss::States { measure, at, .. } => {
            let depths = step.depths.as_ref().unwrap();
            let mut apart = Vec::new();
            for layer in 0..LAYERS {
                let point = layer + usize::from(at == Side::Output);
                let (mine, theirs) = (rows(&drawn.states[&point]), rows(&whole.states[&point]));
                for position in batch.responses_through(depths, layer) {
                    let at = position as usize;
                    apart.push(distance(&mine[at], &theirs[at], measure));
                }
            }
            mean(apart)
        }
        Loss::Full => {
            let own = net.run(&batch, None, &all, false).unwrap();
            cross_entropy(&own.states[&LAYERS])
        }
    };
    step.terms
        .iter()
        .map(|term| term.weight * value(term.loss))
        .sum()
}

fn log_softmax(logits: &[f64], temperature: f64) -> Vec<f64> {
    let sum: f64 = logits.iter().map(|x| (x / temperature).exp()).sum();
    logits.iter().map(|x| x / temperature - sum.ln()).collect()
}

fn distance(a: &[f64], b: &[f64], measure: Measure) -> f64 {
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    match measure {
        Measure::Cosine => 1.0 - dot(a, b) / (dot(a, a) * dot(b, b)).sqrt(),
        Measure::SquaredError => {
            let differences: Vec<f64> = a.iter().zip(b).map(|(a, b)| a - b).collect();
            dot(&differences, &differences) / a.len() as f64
        }
    }
}

/// Each loss of a step is what it is alone, and the sum is weighed.
#[test]
fn losses_add_up_as_they_are_weighed() {
    let net = net(true);
    let terms = vec![
        term(0.25, Loss::Exit { layers: 1 }),
        term(0.75, LAST),
        term(0.5, Loss::Full),
        term(0.3, logits(1)),
        term(0.2, states(Measure::Cosine, Side::Output, true)),
    ];
    let depths = Some(responses_run(&[0, 2]));
    let together = step(depths, terms.clone());
    let (found, sum) = values(&net, &together);
    let wanted = against(&net, &net, &together);
    assert!((sum - wanted).abs() < 1e-4, "{sum} is not {wanted}");
    let full = values(&net, &step(None, vec![term(1.0, LAST)])).1;
    assert!((found[2] - full).abs() < 1e-5, "{} is not {full}", found[2]);
    let weighed: f64 = terms
        .iter()
        .zip(&found)
        .map(|(term, value)| term.weight * value)
        .sum();
    assert!((sum - weighed).abs() < 1e-4);
    assert!(found.iter().all(|value| *value > 0.01), "{found:?}");
    let last = net.losses(&batch(), &together).unwrap().last.map(f64::from);
    assert_eq!(last, Some(found[1]));
}

/// Gradients of several exits, each found on its own, are those of the sum.
#[test]
fn exits_apart_train_as_exits_together() {
    let net = net(true);
    let terms = exits(ExitWeights::ByLayer);
    let together = gradients(&net, &step(None, terms.clone()));
    let alone: Vec<_> = terms
        .iter()
        .map(|term| gradients(&net, &step(None, vec![*term])))
        .collect();
    for name in net.names() {
        let var = net.var(name);
        let found = to_vec(together.get(var).unwrap()).unwrap();
        let mut wanted = vec![0.0; found.len()];
        for grads in &alone {
            if let Some(grad) = grads.get(var) {
                let grad = to_vec(grad).unwrap();
                wanted
                    .iter_mut()
                    .zip(grad)
                    .for_each(|(sum, grad)| *sum += grad);
            }
        }
        let apart = found.iter().zip(&wanted).map(|(a, b)| (a - b).abs());
        assert!(apart.fold(0.0, f32::max) < 1e-4, "{name}");
    }
}

/// The layers that each loss trains, and those that ran for it.
#[test]
fn what_ran_is_said_and_what_is_not_in_a_loss_is_not_trained() {
    let of = |name: &str, layer: usize| name.contains(&format!("layers.{layer}."));
    let all = LayerUse {
        attention: 10,
        mlp: 10,
    };
    let prompts = LayerUse {
        attention: 6,
        mlp: 6,
    };
    let none = LayerUse::default();
    let cut = Depths::of_rows(&pairs(), vec![LayerSet::from_layers([0, 2]); 2]);
    let last = || vec![term(1.0, LAST)];
    type Untrained = fn(&str) -> bool;
    let middle: Untrained = |name| name.contains("layers.1.");
    let nothing: Untrained = |_| false;
    // (step, what ran, what ran in a pass through all layers, the weights without a gradient)
    let cases: [(Step, [LayerUse; LAYERS], Vec<LayerUse>, Untrained); 8] = [
        (step(None, last()), [all; LAYERS], vec![], nothing),
        (
            step(Some(cut.clone()), last()),
            [all, none, all],
            vec![],
            middle,
        ),
        // An exit below it trains no layer above it.
        (
            step(None, vec![term(1.0, Loss::Exit { layers: 2 })]),
            [all; LAYERS],
            vec![],
            |name| name.contains("layers.2."),
        ),
        (
            step(None, exits(ExitWeights::ByLayer)),
            [all; LAYERS],
            vec![],
            nothing,
        ),
        // A teacher runs all layers and trains none of them.
        (
            step(
                Some(cut.clone()),
                vec![term(1.0, LAST), term(1.0, logits(LAYERS))],
            ),
            [all, none, all],
            vec![all; LAYERS],
            middle,
        ),
        (
            step(
                Some(cut.clone()),
                vec![
                    term(1.0, LAST),
                    term(1.0, states(Measure::SquaredError, Side::Output, false)),
                ],
            ),
            [all, none, all],
            vec![all; LAYERS],
            middle,
        ),
        // The full-depth loss trains them.
        (
            step(Some(cut), vec![term(1.0, LAST), term(1.0, Loss::Full)]),
            [all, none, all],
            vec![all; LAYERS],
            nothing,
        ),
        // At full depth the network is its own teacher, and one pass is enough.
        (
            step(
                None,
                vec![
                    term(1.0, LAST),
                    term(1.0, logits(LAYERS)),
                    term(1.0, states(Measure::Cosine, Side::Input, true)),
                ],
            ),
            [all; LAYERS],
            vec![],
            nothing,
        ),
    ];
    let net = net(false);
    for (index, (step, ran, full_ran, untrained)) in cases.iter().enumerate() {
        let pass = net.losses(&batch(), step).unwrap();
        assert_eq!(
            (&pass.ran[..], &pass.full_ran),
            (&ran[..], full_ran),
            "case {index}"
        );
        let grads = pass.loss.backward().unwrap();
        for name in net.names() {
            let is_trained = grads.get(net.var(name)).is_some();
            assert_eq!(is_trained, !untrained(name), "case {index}: {name}");
        }
    }
    // Prompts run all layers, responses some: the layer between is trained by the prompts' keys and values.
    let pass = net
        .losses(&batch(), &step(Some(responses_run(&[0, 2])), last()))
        .unwrap();
    assert_eq!(pass.ran, [all, prompts, all]);
    let grads = pass.loss.backward().unwrap();
    let mut names = net.names().iter().filter(|name| of(name, 1));
    assert!(names.all(|name| grads.get(net.var(name)).is_some()));
}

#[test]
fn a_network_without_layers_still_has_a_loss() {
    let none = Depths::of_rows(&pairs(), vec![LayerSet::empty(); 2]);
    let net = net(true);
    let step = step(
        Some(none),
        vec![
            term(1.0, LAST),
            term(1.0, states(Measure::Cosine, Side::Output, false)),
        ],
    );
    let pass = net.losses(&batch(), &step).unwrap();
    assert_eq!(pass.terms[1], 0.0);
    let grads = pass.loss.backward().unwrap();
    assert!(grads.get(net.var("model.embed_tokens.weight")).is_some());
}

#[test]
fn tokens_that_leave_are_compared_where_they_ran() {
    let mut depths = responses_run(&[0]);
    depths.fill = Fill::Deferred;
    let at = |side| {
        vec![
            term(1.0, states(Measure::SquaredError, side, false)),
            term(1.0, LAST),
        ]
    };
    let net = net(false);
    // They run the lowest layer as the whole network does.
    assert_eq!(
        values(&net, &step(Some(depths.clone()), at(Side::Output))).0[0],
        0.0
    );
    depths.responses = responses_run(&[0, 1]).responses;
    assert_eq!(
        values(&net, &step(Some(depths.clone()), at(Side::Output))).0[0],
        0.0
    );
    depths.fill = Fill::Passed;
    depths.responses = responses_run(&[1]).responses;
    assert!(values(&net, &step(Some(depths), at(Side::Output))).0[0] > 0.01);
}

#[test]
fn losses_that_a_model_does_not_have_are_refused() {
    let net = net(true);
    let bad: [(Vec<Term>, &str); 6] = [
        (vec![], "no loss"),
        (vec![term(1.0, Loss::Exit { layers: 0 })], "after 0 layers"),
        (vec![term(1.0, Loss::Exit { layers: 4 })], "after 4 layers"),
        (
            vec![term(1.0, LAST), term(1.0, logits(9))],
            "after 9 layers",
        ),
        (vec![term(f64::NAN, LAST)], "weight"),
        (
            vec![term(
                1.0,
                Loss::Logits {
                    layers: 1,
                    temperature: 0.0,
                },
            )],
            "temperature",
        ),
    ];
    for (terms, named) in bad {
        let message = net
            .losses(&batch(), &step(None, terms))
            .unwrap_err()
            .to_string();
        assert!(message.contains(named), "{message}");
    }
}
