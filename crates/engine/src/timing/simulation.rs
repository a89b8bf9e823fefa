//! A machine with noise, to see what intervals and gates make of it.

use super::block::{Block, Times};
use super::measure::{Place, TimingPlan, run_passes};
use rand::Rng;
use rand_chacha::ChaCha8Rng;
use std::f64::consts::TAU;

/// What disturbs a time, in its log.
#[derive(Debug, Clone, Copy)]
pub(super) struct Noise {
    /// Standard deviation of each generation.
    pub(super) each: f64,
    /// Share of generations that take half as long again: one of a block's two, not the other.
    pub(super) outliers: f64,
    /// Slowdown over the run.
    pub(super) drift: f64,
    /// Standard deviation of a slow wandering, which is nine tenths the same in the next generation.
    pub(super) wandering: f64,
    /// Standard deviation between batches of what the strategy gains.
    pub(super) batches: f64,
}

const QUIET: Noise = Noise {
    each: 0.01,
    outliers: 0.0,
    drift: 0.0,
    wandering: 0.0,
    batches: 0.0,
};

/// Noises by name.
pub(super) const NOISES: [(&str, Noise); 7] = [
    ("log-normal", QUIET),
    (
        "noisy",
        Noise {
            each: 0.05,
            ..QUIET
        },
    ),
    (
        "outliers",
        Noise {
            outliers: 0.02,
            ..QUIET
        },
    ),
    (
        "interference",
        Noise {
            outliers: 0.1,
            ..QUIET
        },
    ),
    (
        "drift",
        Noise {
            drift: 0.3,
            ..QUIET
        },
    ),
    (
        "wandering",
        Noise {
            wandering: 0.05,
            ..QUIET
        },
    ),
    (
        "batches",
        Noise {
            batches: 0.01,
            ..QUIET
        },
    ),
];

/// All of them at once, as a gate meets them.
pub(super) const REALISTIC: Noise = Noise {
    each: 0.01,
    outliers: 0.02,
    drift: 0.1,
    wandering: 0.02,
    batches: 0.01,
};

/// A plan of so many batches and passes.
pub(super) fn plan(batches: usize, repeats: usize) -> TimingPlan {
    TimingPlan {
        batches: vec![Vec::new(); batches],
        new_tokens: 2,
        planned_tokens: 2,
        repeats,
        precision: None,
        max_repeats: repeats,
        warm_up: 0,
        seed: 0,
        beam: None,
        no_repeat_ngram: 0,
    }
}

/// A machine in one start of a process, with the prompts that it times.
pub(super) struct Machine {
    noise: Noise,
    /// What each batch adds to the log of the speedup.
    pub(super) batches: Option<Vec<f64>>,
    /// Generations that the drift is laid over.
    length: f64,
    done: f64,
    wandered: f64,
}

impl Machine {
    pub(super) fn new(noise: &Noise, plan: &TimingPlan) -> Self {
        Self {
            noise: *noise,
            batches: None,
            length: (2 * plan.batches.len() * plan.repeats) as f64,
            done: 0.0,
            wandered: 0.0,
        }
    }

    /// Times a strategy of a true `speedup`.
    pub(super) fn run(
        mut self,
        plan: &TimingPlan,
        speedup: f64,
        rng: &mut ChaCha8Rng,
    ) -> Vec<Block> {
        let gains = self
            .batches
            .take()
            .unwrap_or_else(|| gains(&self.noise, plan, rng));
        let plan = TimingPlan {
            seed: rng.random(),
            ..plan.clone()
        };
        let mut block = |place: Place| {
            let (mut full, mut strategy) = (1.0, 1.0 / (speedup * gains[place.batch].exp()));
            let mut both = [&mut full, &mut strategy];
            if place.strategy_first {
                both.reverse();
            }
            for seconds in both {
                *seconds *= self.disturbance(rng);
            }
            Ok(Block {
                batch: place.batch,
                pass: place.pass,
                strategy_first: place.strategy_first,
                rows: 1,
                prompt_tokens: 1,
                decoded_tokens: 1,
                bytes: 0,
                extra_bytes: 0,
                full_bytes: 0,
                full: Times::decoding(full),
                strategy: Times::decoding(strategy),
            })
        };
        run_passes(&plan, &mut block, &mut |_, _| ()).unwrap()
    }

    fn disturbance(&mut self, rng: &mut ChaCha8Rng) -> f64 {
        let noise = &self.noise;
        self.wandered = 0.9 * self.wandered + 0.19f64.sqrt() * noise.wandering * normal(rng);
        let log = noise.each * normal(rng) + noise.drift * self.done / self.length + self.wandered;
        self.done += 1.0;
        let hit = rng.random_bool(noise.outliers);
        log.exp() * if hit { 1.5 } else { 1.0 }
    }
}

/// What each batch of a set of prompts adds to the log of the speedup.
pub(super) fn gains(noise: &Noise, plan: &TimingPlan, rng: &mut ChaCha8Rng) -> Vec<f64> {
    (0..plan.batches.len())
        .map(|_| noise.batches * normal(rng))
        .collect()
}

/// A draw from the standard normal distribution (Box and Muller 1958).
fn normal(rng: &mut ChaCha8Rng) -> f64 {
    let radius = (-2.0 * (1.0 - rng.random::<f64>()).ln()).sqrt();
    radius * (TAU * rng.random::<f64>()).cos()
}
