//! The layers that the batches of each strategy run.

use super::*;
use crate::commands::train::testing::net;
use skipbench_train::objective::Step;
use skipbench_train::{LayerUse, LossOn};

const LAYERS: usize = 6;

fn pair(prompt: u32, response: u32) -> Pair {
    Pair {
        prompt: (0..prompt).collect(),
        response: (0..response).map(|token| token % 16).collect(),
    }
}

fn entry(yaml: &str) -> DepthEntry {
    serde_saphyr::from_str(yaml).unwrap()
}

/// A list of one strategy, in its short or its long form.
fn one(strategy: &str) -> String {
    match strategy.contains('{') {
        true => format!("strategies: [{{{strategy}}}]"),
        false => format!("strategies: [{strategy}]"),
    }
}

/// What a step under `yaml` says that it ran, and what it was told to.
fn step(yaml: &str, step: u64, pairs: &[Pair]) -> (Vec<LayerUse>, Depths) {
    let net = net(LAYERS);
    let batch = Batch::new(pairs, LossOn::Response);
    let plan = entry(yaml).resolve(LAYERS, 3).unwrap();
    let depths = plan.draw(step, pairs, &batch, &net).unwrap().unwrap();
    let step = Step::plain(Some(depths.clone()), LAYERS);
    (net.losses(&batch, &step).unwrap().ran, depths)
}

/// The sets of each layer: `prompt` for 5 + 3 tokens of prompts, `response` for the 3 + 1 tokens behind them.
fn runs(prompt: &LayerSet, response: &LayerSet) -> Vec<LayerUse> {
    let tokens = |in_prompt, in_response| 8 * usize::from(in_prompt) + 4 * usize::from(in_response);
    (0..LAYERS)
        .map(|layer| LayerUse {
            attention: tokens(prompt.has_attention(layer), response.has_attention(layer)),
            mlp: tokens(prompt.has_mlp(layer), response.has_mlp(layer)),
        })
        .collect()
}

#[test]
fn a_step_runs_the_layers_of_its_strategy() {
    let pairs = [pair(5, 4), pair(3, 2)];
    let full = LayerSet::full(LAYERS);
    let of = |layers: &[usize]| LayerSet::from_layers(layers.iter().copied());
    let without = |attention: &[usize], mlp: &[usize]| {
        let mut set = full;
        attention
            .iter()
            .for_each(|&layer| set.remove_attention(layer));
        mlp.iter().for_each(|&layer| set.remove_mlp(layer));
        set
    };
    let cases = [
        ("full", full, full),
        ("top@2", full, of(&[0, 1, 2])),
        ("bottom@2", full, of(&[3, 4, 5])),
        ("middle@1.5", full, of(&[0, 1, 4, 5])),
        ("drop-list: {drop: [1], drop-mlp: [3]}", full, {
            let mut set = without(&[1], &[1]);
            set.remove_mlp(3);
            set
        }),
        // Cut out, so prompts go without them too.
        (
            "block-influence: {speedup: 1.5, order: [3, 1, 2, 0]}",
            of(&[0, 2, 4, 5]),
            of(&[0, 2, 4, 5]),
        ),
        (
            "sleb: {speedup: 2, order: [4, 1, 2], prefill: full}",
            full,
            of(&[0, 3, 5]),
        ),
        (
            "sublayer-drop@1.5",
            without(&[1, 2, 3, 4], &[]),
            without(&[1, 2, 3, 4], &[]),
        ),
        (
            "sublayer-drop: {drop: mlp, speedup: 1.2, prefill: full}",
            full,
            without(&[], &[3, 4]),
        ),
    ];
    for (strategy, prompt, response) in cases {
        let (ran, _) = step(&one(strategy), 0, &pairs);
        assert_eq!(ran, runs(&prompt, &response), "{strategy}");
    }
}

#[test]
fn layers_by_position_and_by_prompt() {
    let pairs = [pair(5, 12), pair(3, 4)];
    let (ran, depths) = step("strategies: [skip-decode@1.5]", 0, &pairs);
    let layers = |t: usize| depths.responses[0][t - 1].len();
    assert!(layers(1) > layers(11) && (1..11).all(|t| layers(t) >= layers(t + 1)));
    let total: usize = (1..12).map(layers).sum::<usize>() + (1..4).map(layers).sum::<usize>();
    let counted: usize = ran.iter().map(|ran| ran.mlp - 8).sum();
    assert_eq!(counted, total);

    let (ran, depths) = step("strategies: [adaskip@1.5]", 0, &pairs);
    let similarity = net(LAYERS)
        .prompt_similarity(&Batch::new(&pairs, LossOn::Response))
        .unwrap();
    for (row, signal) in similarity.iter().enumerate() {
        let set = depths.responses[row][0];
        assert_eq!(set.sub_layers(), 8, "12 / 1.5");
        let has = |part: usize| match part % 2 {
            0 => set.has_attention(part / 2),
            _ => set.has_mlp(part / 2),
        };
        let most = |kept: bool| {
            let of = (0..12)
                .filter(|&part| has(part) == kept)
                .map(|part| signal[part]);
            of.fold(f64::NEG_INFINITY, f64::max)
        };
        assert!((0..12).all(|part| has(part) || signal[part] >= most(true)));
        assert!(depths.responses[row].iter().all(|layers| *layers == set));
    }
    let sub_layers: usize = ran.iter().map(|ran| ran.attention + ran.mlp).sum();
    assert_eq!(sub_layers, 8 * 12 + (11 + 3) * 8);
}

#[test]
fn tokens_leave_only_where_they_can_and_the_mean_is_the_target() {
    let pairs = [pair(2, 60), pair(2, 60), pair(2, 60)];
    let cases: [(&str, &[usize], Fill, f64); 4] = [
        ("early-exit@2", &[2, 3, 4], Fill::Passed, 3.0),
        (
            "early-exit: {speedup: 1.5, check-every: 2, kv-fill: deferred}",
            &[2, 4, 6],
            Fill::Deferred,
            4.0,
        ),
        ("shallow-deep@1.5", &[2, 6], Fill::Deferred, 4.0),
        (
            "shallow-deep: {speedup: 1.2, shallow-layers: 3, kv-fill: propagate}",
            &[3, 6],
            Fill::Passed,
            5.0,
        ),
    ];
    for (strategy, allowed, fill, mean) in cases {
        let strategy = one(strategy);
        let mut drawn = Vec::new();
        for seed in 0..20 {
            let (ran, depths) = step(&strategy, seed, &pairs);
            assert_eq!(depths.fill, fill, "{strategy}");
            let of_step: Vec<usize> = depths
                .responses
                .iter()
                .flatten()
                .map(LayerSet::len)
                .collect();
            let counted: usize = ran.iter().map(|ran| ran.mlp - 6).sum();
            assert_eq!(counted, of_step.iter().sum::<usize>(), "{strategy}");
            drawn.extend(of_step);
        }
        let seen = |depth: &usize| drawn.contains(depth);
        assert!(allowed.iter().all(seen) && drawn.iter().all(|depth| allowed.contains(depth)));
        let found = drawn.iter().sum::<usize>() as f64 / drawn.len() as f64;
        assert!((found - mean).abs() < 0.1, "{strategy}: {found}");
    }
}

#[test]
fn a_strategy_with_a_speedup_keeps_it_and_a_band_is_drawn_from() {
    let pairs = [pair(5, 4), pair(3, 2)];
    let layers = |yaml: &str, seed| step(yaml, seed, &pairs).1.responses[0][0];
    let own = (0..20).map(|seed| layers("{strategies: [top@3], speedups: [1.5]}", seed).len());
    assert!(own.into_iter().all(|layers| layers == 2));
    let band = "strategies: [{random: {speedup: 2, seeds: 3}}]";
    let sets: std::collections::HashSet<LayerSet> =
        (0..60).map(|seed| layers(band, seed)).collect();
    let one = |seed: u64| {
        layers(
            &format!("strategies: [{{random: {{speedup: 2, seed: {seed}}}}}]"),
            0,
        )
    };
    assert_eq!(sets, (0..3).map(one).collect());
}

#[test]
fn what_cannot_be_trained_is_refused_with_what_to_do() {
    let cases = [
        (
            "{strategies: [block-influence], speedups: [2]}",
            "`block-influence@2`",
            "`order`",
        ),
        ("strategies: [angular@1.5]", "`angular@1.5`", "`order`"),
        (
            "strategies: [{sublayer-drop: {rule: similarity, speedup: 1.5}}]",
            "`sublayer-drop@1.5",
            "`order`",
        ),
        (
            "strategies: [{early-exit: {threshold: 0.9}}]",
            "`early-exit",
            "leave it out",
        ),
        (
            "strategies: [{early-exit: {speedup: 2, threshold: 0.9}}]",
            "`early-exit@2",
            "leave it out",
        ),
        (
            "strategies: [{shallow-deep: {speedup: 2, kv-fill: copy}}]",
            "`shallow-deep@2",
            "`deferred`",
        ),
        (
            "strategies: [prompt-depth@2]",
            "`prompt-depth@2`",
            "`unified`",
        ),
        (
            "strategies: [self-speculative@2]",
            "`self-speculative@2`",
            "list `unified@2`",
        ),
        ("strategies: [oracle-exit]", "`oracle-exit`", "oracle"),
        (
            "strategies: [{skip-decode: {speedup: 2, schedule-length: expected}}]",
            "`skip-decode@2",
            "`schedule-length`",
        ),
        (
            "{strategies: [unified, top], speedups: [2, 4]}",
            "`unified@4`",
            "largest possible speedup",
        ),
        ("strategies: [unified]", "`unified`", "needs a target"),
        (
            "{strategies: [full], speedups: [.nan]}",
            "`depths.speedups`",
            "at least 1",
        ),
        (
            "{strategies: [top@2], full-percent: 100}",
            "`depths.full-percent`",
            "below 100",
        ),
        (
            "strategies: []",
            "`depths.strategies` is empty",
            "full depth",
        ),
    ];
    for (yaml, named, advice) in cases {
        let error = entry(yaml).resolve(LAYERS, 3).err();
        let message = format!("{:#}", error.expect(yaml));
        assert!(
            message.contains(named) && message.contains(advice),
            "{yaml}: {message}"
        );
    }
}

/// The layers that `experiments/train/adapted.yaml` draws, as they were drawn when the shipped checkpoint was made.
#[test]
fn the_stream_of_the_shipped_recipe_is_fixed() {
    let recipe = "{strategies: [unified, \"unified:even\", top, bottom, middle, random, skip-decode, early-exit], speedups: [1.5, 2, 3, 5], full-percent: 15}";
    let n_layers = 16;
    let plan = entry(recipe).resolve(n_layers, 2).unwrap();
    let pairs = [pair(5, 9), pair(3, 12), pair(8, 1)];
    let batch = Batch::new(&pairs, LossOn::Response);
    let net = net(n_layers);
    let mut hash: u64 = 0xcbf2_9ce4_8422_2325;
    let mut full = 0;
    for step in 0..200 {
        let depths = plan.draw(step, &pairs, &batch, &net).unwrap();
        full += usize::from(depths.is_none());
        for (row, pair) in pairs.iter().enumerate() {
            for t in 1..pair.response.len() {
                for layer in 0..n_layers {
                    let runs = depths
                        .as_ref()
                        .is_none_or(|depths| depths.responses[row][t - 1].contains(layer));
                    hash = (hash ^ u64::from(runs)).wrapping_mul(0x0100_0000_01b3);
                }
            }
        }
    }
    assert_eq!((hash, full), (0x91b5_50c8_6e1e_d062, 30));
}
