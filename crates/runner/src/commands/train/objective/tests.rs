//! What each objective draws and adds up, and what it refuses.

use super::*;
use crate::commands::train::testing::net;
use skipbench_strategy::LayerSet;
use skipbench_train::{LayerUse, LossOn};

const LAYERS: usize = 8;
const STEPS: u64 = 160;

fn pairs() -> Vec<Pair> {
    [(5, 6), (3, 2)]
        .map(|(prompt, response)| Pair {
            prompt: (0..prompt).collect(),
            response: (0..response).collect(),
        })
        .to_vec()
}

/// A config's `objective`, `depths` and `distil`.
#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    #[serde(default)]
    objective: Recipe,
    #[serde(default)]
    depths: Option<DepthEntry>,
    #[serde(default)]
    distil: Option<Distil>,
}

fn resolve(yaml: &str) -> anyhow::Result<Objective> {
    let written: Written = serde_saphyr::from_str(yaml)?;
    let size = Size {
        n_layers: LAYERS,
        steps: STEPS,
        seed: 3,
    };
    Objective::resolve(
        &written.objective,
        written.depths.as_ref(),
        written.distil.as_ref(),
        size,
    )
}

/// A step, and the tokens that ran each layer: under its depths, and in a pass through all layers.
struct Ran {
    step: Step,
    mlps: Vec<usize>,
    full: Vec<usize>,
}

fn run(yaml: &str, number: u64) -> Ran {
    let (net, pairs) = (net(LAYERS), pairs());
    let batch = Batch::new(&pairs, LossOn::Response);
    let step = resolve(yaml)
        .unwrap()
        .step(number, &pairs, &batch, &net)
        .unwrap();
    let pass = net.losses(&batch, &step).unwrap();
    let mlps = |ran: &[LayerUse]| ran.iter().map(|ran| ran.mlp).collect();
    Ran {
        mlps: mlps(&pass.ran),
        full: mlps(&pass.full_ran),
        step,
    }
}

fn exit(weight: f64, layers: usize) -> Term {
    Term {
        weight,
        loss: Loss::Exit { layers },
    }
}

fn last() -> Term {
    exit(1.0, LAYERS)
}

/// Tokens of prompts, and of responses behind the first.
const PROMPT: usize = 8;
const RESPONSE: usize = 6;
const ALL: usize = PROMPT + RESPONSE;

/// Of responses through these layers, behind prompts through all.
fn tokens(layers: &[usize]) -> Vec<usize> {
    (0..LAYERS)
        .map(|layer| PROMPT + RESPONSE * usize::from(layers.contains(&layer)))
        .collect()
}

#[test]
fn plain_is_the_last_layer_of_all_or_of_the_drawn_layers() {
    for yaml in [
        "{}",
        "objective: plain",
        "objective: {plain: {}}",
        "objective: {plain: }",
    ] {
        let ran = run(yaml, 0);
        assert_eq!(
            (ran.step, ran.mlps),
            (Step::plain(None, LAYERS), vec![ALL; LAYERS])
        );
    }
    let ran = run("depths: {strategies: [top@2]}", 0);
    assert_eq!(
        (ran.step.terms, ran.mlps),
        (vec![last()], tokens(&[0, 1, 2, 3]))
    );
    assert_eq!(ran.full, [0; 0]);
}

#[test]
fn unified_runs_prompts_whole_and_answers_through_the_kept_layers() {
    let ran = run("objective: {unified: {speedup: 2}}", 0);
    assert_eq!(
        (ran.step.terms, ran.mlps),
        (vec![last()], tokens(&[0, 2, 4, 7]))
    );
    assert_eq!(ran.full, [0; 0]);
    let ran = run("objective: {unified: {speedup: 2, rule: even}}", 0);
    assert_eq!(ran.mlps, tokens(&[0, 2, 5, 7]));

    let any = "objective: {unified: {speedups: [1, 2, 4], full-percent: 20}}";
    let drawn: Vec<Vec<usize>> = (0..60).map(|step| run(any, step).mlps).collect();
    for layers in [&[0, 1, 2, 3, 4, 5, 6, 7][..], &[0, 2, 4, 7], &[0, 7]] {
        assert!(drawn.contains(&tokens(layers)), "{layers:?}");
    }

    let ran = run(
        "objective: {unified: {speedup: 4, full-loss: 0.5, state-cosine: 0.1}}",
        0,
    );
    let cosine = Loss::States {
        measure: Measure::Cosine,
        at: Side::Input,
        trains_full: true,
    };
    let of = |weight, loss| Term { weight, loss };
    assert_eq!(
        ran.step.terms,
        [last(), of(0.5, Loss::Full), of(0.1, cosine)]
    );
    assert_eq!((ran.mlps, ran.full), (tokens(&[0, 7]), vec![ALL; LAYERS]));
    assert_eq!(ran.step.tracked_passes(), 2);
}

#[test]
fn skip_decode_runs_fewer_layers_with_each_token() {
    let ran = run("objective: {skip-decode: {speedup: 2}}", 0);
    let depths = ran.step.depths.unwrap();
    let layers: Vec<usize> = depths.responses[0].iter().map(LayerSet::len).collect();
    assert!(layers.windows(2).all(|pair| pair[0] >= pair[1]) && layers[0] > layers[4]);
    assert_eq!(ran.mlps.iter().sum::<usize>() - PROMPT * LAYERS, {
        // The second pair has one token behind its first.
        let second = depths.responses[1].iter().take(1).map(LayerSet::len);
        layers.iter().sum::<usize>() + second.sum::<usize>()
    });
    let ran = run(
        "objective: {skip-decode: {max-layers: 6, min-layers: 2, warmup-layers: 1, schedule-length: 6}}",
        0,
    );
    let depths = ran.step.depths.unwrap();
    assert_eq!(depths.responses[0][0].to_vec(), [0, 3, 4, 5, 6, 7]);
    assert_eq!(depths.responses[0][4].to_vec(), [0, 7]);
}

#[test]
fn early_exit_has_a_loss_at_every_exit_of_the_whole_network() {
    let ran = run("objective: early-exit", 0);
    let wanted: Vec<Term> = (1..=8)
        .map(|layers| exit(layers as f64 / 36.0, layers))
        .collect();
    assert_eq!((ran.step.terms, ran.mlps), (wanted, vec![ALL; LAYERS]));
    let ran = run(
        "objective: {early-exit: {exits: [6, 2], weights: uniform}}",
        0,
    );
    let third = 1.0 / 3.0;
    assert_eq!(
        ran.step.terms,
        [exit(third, 2), exit(third, 6), exit(third, 8)]
    );
}

#[test]
fn layer_skip_drops_deep_layers_and_adds_exits_from_the_top() {
    // The defaults are the settings of the authors' fine-tuning.
    let defaults = Recipe::LayerSkip(LayerSkip::default());
    let spelt = "{layer-skip: {p-max: 0.2, e-scale: 1.0, curriculum: gradual, dropout: constant}}";
    assert_eq!(serde_saphyr::from_str::<Recipe>(spelt).unwrap(), defaults);
    assert_eq!(
        serde_saphyr::from_str::<Recipe>("layer-skip").unwrap(),
        defaults
    );

    let first = run("objective: layer-skip", 0);
    assert_eq!(first.step.terms, [last()]);
    // Layer 7 of 0..8 has e = 7 + 21, layer 6 has 21: one comes at 1/8 of the steps, since it is the second from the top.
    let later = run("objective: layer-skip", 20);
    assert_eq!(
        later.step.terms,
        [exit(21.0 / 49.0, 7), exit(28.0 / 49.0, 8)]
    );
    assert_eq!(run("objective: layer-skip", 80).step.terms.len(), 7);

    let all = "objective: {layer-skip: {p-max: 1, curriculum: none}}";
    let mut kept = [0; LAYERS];
    for step in 0..40 {
        let depths = run(all, step).step.depths.unwrap();
        assert!(depths.prompts[0].contains(0) && !depths.prompts[0].contains(7));
        (0..LAYERS).for_each(|layer| kept[layer] += usize::from(depths.prompts[1].contains(layer)));
    }
    assert!(kept[1] > kept[6] && kept[6] > 0, "{kept:?}");

    let rising = "objective: {layer-skip: {p-max: 1, dropout: rising}}";
    assert_eq!(run(rising, 0).mlps, [ALL; LAYERS]);
    assert_eq!(run(rising, STEPS - 1).mlps[7], 0);

    let turns = "objective: {layer-skip: {curriculum: rotational, rotation: 4, e-scale: 0.2}}";
    let exits = |step| -> Vec<usize> {
        let terms = run(turns, step).step.terms.into_iter();
        terms
            .map(|term| match term.loss {
                Loss::Exit { layers } => layers,
                other => panic!("{other:?}"),
            })
            .collect()
    };
    assert_eq!(
        [exits(1), exits(2), exits(5)],
        [vec![2, 6, 8], vec![3, 7, 8], vec![2, 6, 8]]
    );
}

#[test]
fn layer_drop_leaves_layers_out_of_prompts_and_answers() {
    let mut dropped = 0;
    for step in 0..60 {
        let ran = run("objective: layer-drop", step);
        assert_eq!(ran.step.terms, [last()]);
        assert!(ran.mlps.iter().all(|&tokens| tokens == 0 || tokens == ALL));
        dropped += ran.mlps.iter().filter(|&&tokens| tokens == 0).count();
    }
    let share = dropped as f64 / (60 * LAYERS) as f64;
    assert!((share - 0.2).abs() < 0.05, "{share}");
    let by_pair = (0..20).map(|step| run("objective: {layer-drop: {p: 0.5, per: sample}}", step));
    let mut by_pair = by_pair.flat_map(|ran| ran.mlps);
    assert!(by_pair.any(|tokens| tokens != 0 && tokens != ALL));
}

#[test]
fn pruning_on_demand_and_layer_consistency() {
    let ran = run("objective: {pruning-on-demand: {p: 0}}", 0);
    let inner = |layers| exit(0.3 / 3.0, layers);
    assert_eq!(ran.step.terms, [inner(2), inner(4), inner(6), exit(0.7, 8)]);
    assert_eq!(ran.mlps, [ALL; LAYERS]);
    let all = run(
        "objective: {pruning-on-demand: {p: 1, exits: [4], weight: 0.5}}",
        1,
    );
    assert_eq!(
        (all.mlps[7], all.step.terms),
        (0, vec![exit(0.5, 4), exit(0.5, 8)])
    );

    let depths: Vec<Vec<usize>> = (0..60)
        .map(|step| {
            let ran = run("objective: {layer-consistency: {min-layers: 3}}", step);
            assert_eq!(ran.step.terms, [last()]);
            ran.mlps
        })
        .collect();
    let prefix = |layers: usize| -> Vec<usize> {
        (0..LAYERS)
            .map(|layer| if layer < layers { ALL } else { 0 })
            .collect()
    };
    assert!((3..=8).all(|layers| depths.contains(&prefix(layers))));
    assert!(
        depths
            .iter()
            .all(|ran| (3..=8).any(|layers| *ran == prefix(layers)))
    );
}

#[test]
fn the_whole_network_teaches_beside_any_objective_that_runs_less() {
    let logits = |weight, layers| Term {
        weight,
        loss: Loss::Logits {
            layers,
            temperature: 2.0,
        },
    };
    let of = |objective: &str, distil: &str| run(&format!("{objective}\ndistil: {distil}"), 0);
    let unified = "objective: {unified: {speedup: 2}}";
    let ran = of(
        unified,
        "{logits: 0.4, temperature: 2, states: 0.3, measure: cosine}",
    );
    let states = Loss::States {
        measure: Measure::Cosine,
        at: Side::Output,
        trains_full: false,
    };
    let wanted = [
        last(),
        logits(0.4, 8),
        Term {
            weight: 0.3,
            loss: states,
        },
    ];
    assert_eq!(ran.step.terms, wanted);
    assert_eq!(
        (ran.mlps, ran.full),
        (tokens(&[0, 2, 4, 7]), vec![ALL; LAYERS])
    );
    assert_eq!(
        (ran.step.tracked_passes(), ran.step.heads_at_once()),
        (1, 2)
    );

    // The last exit is the teacher of the others.
    let ran = of(
        "objective: {early-exit: {exits: [4]}}",
        "{logits: 0.6, temperature: 2}",
    );
    assert_eq!(
        ran.step.terms,
        [
            exit(4.0 / 12.0, 4),
            logits(0.6 * 4.0 / 12.0, 4),
            exit(8.0 / 12.0, 8)
        ]
    );
    assert_eq!(ran.full, [0; 0]);

    // Nothing but the teacher; a batch at full depth has nothing to learn then.
    let depths = "depths: {strategies: [top@2], full-percent: 50}";
    let only = format!("{depths}\ndistil: {{cross-entropy: 0, logits: 1}}");
    let terms: Vec<Vec<f64>> = (0..20)
        .map(|step| {
            run(&only, step)
                .step
                .terms
                .iter()
                .map(|term| term.weight)
                .collect()
        })
        .collect();
    assert!(terms.contains(&vec![0.0, 1.0]) && terms.contains(&vec![0.0]));
}

#[test]
fn what_is_impossible_is_refused_by_its_key() {
    let cases: [(&str, &[&str]); 33] = [
        ("objective: unfied", &["unfied", "did you mean `unified`?"]),
        (
            "objective: {unified: {speedups: [2]}, plain: {}}",
            &["`plain`", "beside `unified`"],
        ),
        ("objective: {layer-drop: {q: 0.2}}", &["unknown field `q`"]),
        ("objective: unified", &["`objective.unified`", "no target"]),
        (
            "objective: {unified: {speedup: 0.5}}",
            &["`objective.unified.speedup`", "at least 1"],
        ),
        (
            "objective: {unified: {speedups: [2, .nan]}}",
            &["`objective.unified.speedups`", "NaN"],
        ),
        (
            "objective: {unified: {speedup: 2, speedups: [2]}}",
            &["`objective.unified`", "both"],
        ),
        (
            "objective: {unified: {speedup: 6}}",
            &["`objective.unified`", "`unified@6`", "largest"],
        ),
        (
            "objective: {unified: {speedup: 2, rule: evn}}",
            &["`objective.unified.rule`", "even"],
        ),
        (
            "objective: {unified: {speedup: 2, full-percent: 100}}",
            &["`objective.unified.full-percent`", "below 100"],
        ),
        (
            "objective: {unified: {speedup: 2, full-loss: -1}}",
            &["`objective.unified.full-loss`", "at least 0"],
        ),
        (
            "objective: {unified: {speedup: 2, state-cosine: .inf}}",
            &["`objective.unified.state-cosine`"],
        ),
        (
            "objective: skip-decode",
            &["`objective.skip-decode`", "no target"],
        ),
        (
            "objective: {skip-decode: {max-layers: 9, min-layers: 2}}",
            &["`objective.skip-decode`", "max-layers"],
        ),
        (
            "objective: {early-exit: {exits: []}}",
            &["`objective.early-exit.exits`", "empty"],
        ),
        (
            "objective: {early-exit: {exits: [9]}}",
            &["`objective.early-exit.exits`", "9", "8 layers"],
        ),
        (
            "objective: {early-exit: {exits: [0, 8]}}",
            &["`objective.early-exit.exits`", "holds 0"],
        ),
        (
            "objective: {early-exit: {weights: sqrt}}",
            &["sqrt", "uniform"],
        ),
        (
            "objective: {layer-skip: {p-max: 1.5}}",
            &["`objective.layer-skip.p-max`", "0 to 1"],
        ),
        (
            "objective: {layer-skip: {e-scale: .nan}}",
            &["`objective.layer-skip.e-scale`"],
        ),
        (
            "objective: {layer-skip: {exits: [12]}}",
            &["`objective.layer-skip.exits`"],
        ),
        (
            "objective: {layer-skip: {curriculum: rotational}}",
            &["`rotation`"],
        ),
        (
            "objective: {layer-skip: {curriculum: rotational, rotation: 0}}",
            &["`objective.layer-skip.rotation`", "1 to the 8"],
        ),
        (
            "objective: {layer-skip: {rotation: 4}}",
            &["`objective.layer-skip.rotation`", "leave it out"],
        ),
        (
            "objective: {layer-drop: {p: -0.1}}",
            &["`objective.layer-drop.p`"],
        ),
        (
            "objective: {pruning-on-demand: {p: 2}}",
            &["`objective.pruning-on-demand.p`"],
        ),
        (
            "objective: {pruning-on-demand: {weight: 2}}",
            &["`objective.pruning-on-demand.weight`"],
        ),
        (
            "objective: {layer-consistency: {min-layers: 0}}",
            &["`objective.layer-consistency.min-layers`"],
        ),
        (
            "objective: early-exit\ndepths: {strategies: [top@2]}",
            &["`depths`", "`objective: early-exit`"],
        ),
        ("distil: {}", &["`distil.logits`", "`depths`"]),
        (
            "objective: early-exit\ndistil: {states: 1}",
            &["`distil.states`", "all layers"],
        ),
        (
            "objective: layer-drop\ndistil: {logits: 0}",
            &["`distil`", "neither"],
        ),
        (
            "objective: layer-drop\ndistil: {temperature: 0}",
            &["`distil.temperature`"],
        ),
    ];
    for (yaml, named) in cases {
        let error = resolve(yaml).err();
        let message = format!("{:#}", error.unwrap_or_else(|| panic!("{yaml} is taken")));
        for part in named {
            assert!(message.contains(part), "{yaml}: {message}");
        }
    }
}
