//! How often the gate is right: seeded simulations of runs, compared by what `skipbench compare` compares with.
//!
//! `cargo test --release --workspace gate_simulation -- --ignored --nocapture` prints the table of the long form.

use crate::runs::{Change, FakeRun, block, texts};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use skipbench::compare::{Dimension, Limits, Settings, Verdict, compare};
use skipbench_engine::Block;
use skipbench_metrics::{Hypotheses, Metric, References, evaluate};
use skipbench_record::Run;
use std::path::Path;

/// As in `experiments/gate.yaml`.
const PROMPTS: usize = 3072;
/// Where the times are tried; they do not depend on how many prompts were answered.
const FEW_PROMPTS: usize = 64;
const BATCHES: usize = 12;
const PASSES: usize = 8;
const STRATEGIES: [&str; 4] = ["full", "unified@2", "top@2", "early-exit@2"];

/// The strategy that changes; the others stay as they are.
const CHANGED: &str = "unified@2";

/// The new build beside the baseline's.
#[derive(Clone, Copy)]
struct Build {
    /// Time of a token of the changed strategy, as a multiple.
    time: f64,
    /// Share of the answers that come out anew, as often better as worse.
    redrawn: f64,
    /// BLEU that its answers lose.
    bleu: f64,
}

const IDENTICAL: Build = Build {
    time: 1.0,
    redrawn: 0.0,
    bleu: 0.0,
};

/// Decode times of a machine whose speed drifts by a tenth over a run, and is 4% off from one run to the next, which confidence
/// exits follow by half; a block is 1% off, one in fifty takes half as long again, and a start of the program is 0.5% off from
/// beginning to end.
fn times(strategy: &str, slowdown: f64, machine: f64, rng: &mut ChaCha8Rng) -> Vec<Block> {
    let (speedup, follows) = match strategy {
        "full" => (1.0, 1.0),
        "early-exit@2" => (0.9, 0.5),
        _ => (2.0, 1.0),
    };
    let of_this_start = 1.0 + 0.005 * normal(rng);
    let mut blocks = Vec::new();
    for pass in 0..PASSES {
        for batch in 0..BATCHES {
            let done = (pass * BATCHES + batch) as f64 / (PASSES * BATCHES) as f64;
            // What the prompts of a batch do to a strategy is the same in every run.
            let of_batch = 1.0 + 0.05 * ((batch * 7) % 5) as f64 / 5.0;
            let mut time = |mean: f64| {
                let outlier = if rng.random_bool(0.02) { 1.5 } else { 1.0 };
                mean * (1.0 + 0.1 * done) * (1.0 + 0.01 * normal(rng)) * outlier
            };
            let full = time(0.05 * machine.exp());
            let strategy = time(
                (follows * machine).exp() * 0.05 * of_batch * slowdown * of_this_start / speedup,
            );
            blocks.push(block(batch, pass, full, strategy));
        }
    }
    blocks
}

/// Box and Muller's.
fn normal(rng: &mut ChaCha8Rng) -> f64 {
    let (a, b): (f64, f64) = (rng.random(), rng.random());
    (-2.0 * (1.0 - a).ln()).sqrt() * (std::f64::consts::TAU * b).cos()
}

/// Answers of which a share is spoiled, as a strategy does that skips too much: the end is lost or said twice.
fn spoiled(answers: &[String], share: f64, rng: &mut ChaCha8Rng) -> Vec<String> {
    let mut spoil = |answer: &String| {
        if !rng.random_bool(share) {
            return answer.clone();
        }
        let words: Vec<&str> = answer.split(' ').collect();
        let kept = &words[..words.len() * 2 / 3];
        match rng.random_bool(0.5) {
            true => kept.join(" "),
            false => [kept, &kept[kept.len() / 2..]].concat().join(" "),
        }
    };
    answers.iter().map(&mut spoil).collect()
}

/// The share of spoiled answers that costs so much BLEU, on many answers.
fn share_that_costs(bleu: f64, before: f64) -> f64 {
    let texts = texts(6000);
    let right: Vec<String> = texts.into_iter().map(|(_, reference)| reference).collect();
    let references = References::single(right.iter().cloned()).unwrap();
    let metric: Metric = "bleu".parse().unwrap();
    let score = |share: f64| {
        let mut rng = ChaCha8Rng::seed_from_u64(7);
        let base = spoiled(&right, before, &mut rng);
        let answers = spoiled(&base, share, &mut rng);
        evaluate(&metric, &Hypotheses::new(answers), &references)
            .unwrap()
            .score()
    };
    let goal = score(0.0) - bleu;
    let (mut lo, mut hi) = (0.0, 1.0);
    for _ in 0..12 {
        let middle = (lo + hi) / 2.0;
        match score(middle) > goal {
            true => lo = middle,
            false => hi = middle,
        }
    }
    hi
}

/// Of answers that are not spoiled by a change, so many are by the strategy itself: BLEU is about 94.
const SPOILED_BEFORE: f64 = 0.12;

/// A baseline and a new run; `spoil` is the share of the changed strategy's answers that the new build spoils more.
fn runs(dir: &Path, prompts: usize, build: Build, spoil: f64, seed: u64) -> (Run, Run) {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut old = FakeRun::of(texts(prompts), &STRATEGIES);
    for cell in &mut old.cells {
        cell.answers = spoiled(&cell.answers, SPOILED_BEFORE, &mut rng);
    }
    let mut new = old.clone();
    let right: Vec<String> = old
        .texts
        .iter()
        .map(|(_, reference)| reference.clone())
        .collect();
    let others = spoiled(&right, SPOILED_BEFORE, &mut rng);
    let changed = &mut new.cell(CHANGED).answers;
    for (answer, other) in changed.iter_mut().zip(others) {
        if rng.random_bool(build.redrawn) {
            *answer = other;
        }
    }
    *changed = spoiled(changed, spoil, &mut rng);
    for (run, time) in [(&mut old, 1.0), (&mut new, build.time)] {
        let machine = 0.04 * normal(&mut rng);
        for cell in &mut run.cells {
            let label = cell.record.strategy.label.clone();
            let slowdown = if label == CHANGED { time } else { 1.0 };
            cell.record.time(times(&label, slowdown, machine, &mut rng));
        }
    }
    let folder = |name: &str, run: &FakeRun| {
        let folder = dir.join(format!("{name}-{seed}"));
        run.write(&folder);
        Run::read(&folder).unwrap()
    };
    (folder("old", &old), folder("new", &new))
}

/// Of so many trials: those in which anything is worse, and those in which the changed strategy is worse in `dimension`.
fn trials(count: u64, build: Build, dimension: Dimension) -> (usize, usize) {
    let spoil = match build.bleu > 0.0 {
        true => share_that_costs(build.bleu, SPOILED_BEFORE),
        false => 0.0,
    };
    let settings = Settings {
        limits: Limits {
            max_slowdown: 0.03,
            max_quality_drop: 0.5,
            alpha: 0.05,
            tokens_per_s: false,
        },
        across: Vec::new(),
        pairs: Vec::new(),
    };
    let prompts = match dimension {
        Dimension::Quality => PROMPTS,
        _ => FEW_PROMPTS,
    };
    let (mut worse, mut caught) = (0, 0);
    for seed in 0..count {
        let dir = tempfile::tempdir().unwrap();
        let (old, new) = runs(dir.path(), prompts, build, spoil, seed);
        let comparison = compare(&old, &new, &settings).unwrap();
        worse += usize::from(comparison.worse);
        caught += usize::from(comparison.checks().any(|(cell, check)| {
            cell.strategy == CHANGED
                && check.dimension == dimension
                && check.verdict == Verdict::Worse
        }));
    }
    (worse, caught)
}

/// At the defaults: a tenth more time and two points of BLEU are caught 95 times in 100; an identical build, or one whose
/// answers are others and as good, is called worse at most 5 times.
#[expect(clippy::print_stdout, reason = "its figures are for a person")]
fn simulation(count: u64) {
    let share = |found: usize| 100.0 * found as f64 / count as f64;
    let slower = Build {
        time: 1.1,
        ..IDENTICAL
    };
    let other = Build {
        redrawn: 0.5,
        ..IDENTICAL
    };
    let poorer = Build { bleu: 2.0, ..other };
    let (false_alarms, _) = trials(count, IDENTICAL, Dimension::Speed);
    let (_, other) = trials(count, other, Dimension::Quality);
    let (_, slow) = trials(count, slower, Dimension::Speed);
    let (_, poor) = trials(count, poorer, Dimension::Quality);
    println!("of {count} gates each, in percent");
    println!(
        "identical build called worse                {:6.1}",
        share(false_alarms)
    );
    println!(
        "other answers, as good, called worse        {:6.1}",
        share(other)
    );
    println!(
        "10% more time called worse                  {:6.1}",
        share(slow)
    );
    println!(
        "other answers, 2 BLEU poorer, called worse  {:6.1}",
        share(poor)
    );
    assert!(share(other) <= 5.0, "{other} of {count}");
    assert!(share(false_alarms) <= 5.0, "{false_alarms} of {count}");
    assert!(share(slow) >= 95.0, "{slow} of {count}");
    assert!(share(poor) >= 95.0, "{poor} of {count}");
}

#[test]
fn a_few_gates_are_right() {
    simulation(8);
}

#[test]
#[ignore = "takes minutes; a_few_gates_are_right is its short form"]
fn gate_simulation() {
    simulation(100);
}
