//! Whether one run's speedup differs from another's: what a gate stands on.

use super::block::Block;
use super::speedup::{Interval, Mean, Ratios, interval};
use super::student;
use serde::{Deserialize, Serialize};

/// How the speedup of a cell changed from an old run to a new one.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct SpeedChange {
    /// The new speedup over the old one: 0.9 where the new strategy takes 1 / 0.9 times as long.
    pub ratio: f64,
    /// Its 95% interval.
    pub interval: Interval,
    /// Standard error of its log.
    pub standard_error: f64,
    /// Degrees of freedom of the standard error.
    pub degrees: f64,
    /// Batches of the run that has fewer.
    pub batches: usize,
    /// Whether batches of the same prompts were set against each other.
    pub paired: bool,
}

/// What a change means for a gate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// Faster.
    Better,
    /// Slower by no more than is allowed, and faster by no more than that.
    Same,
    /// Slower by more than is allowed.
    Worse,
    /// The measurement is too coarse.
    CannotTell {
        /// Batches in each run that would tell, if the change is what it seems; `None` where it lies on a border, so that no
        /// number would.
        batches_needed: Option<usize>,
    },
}

/// The new run against the old one; each has the full network and the strategy side by side, so that `achieved` is compared and
/// not the machine. `None` with fewer than two batches in either.
///
/// The log ratios of batches are subtracted where both runs timed batches of the same sizes (paired t); they are two samples
/// otherwise (Welch's t). The standard error is at least that of the passes, as in [`speedup`](super::speedup()). It knows
/// nothing of what differs from one start of a process to the next, such as where memory lies (Kalibera and Jones 2013,
/// "Rigorous benchmarking in reasonable time"): that must fit into the slowdown that is allowed.
pub fn compare_speed(old: &[Block], new: &[Block]) -> Option<SpeedChange> {
    let paired = shapes(old) == shapes(new);
    let (old, new) = (Ratios::of(old), Ratios::of(new));
    let (old_error, new_error) = (old.error_of_passes(), new.error_of_passes());
    let (old, new) = (old.medians(), new.medians());
    let batches = old.len().min(new.len());
    let (mean, standard_error, degrees) = if paired {
        let differences: Vec<f64> = std::iter::zip(&new, &old).map(|(n, o)| n - o).collect();
        let mean = Mean::of(&differences, old_error.hypot(new_error))?;
        (mean.mean, mean.standard_error?, mean.degrees())
    } else {
        let (old, new) = (Mean::of(&old, old_error)?, Mean::of(&new, new_error)?);
        let (a, b) = (old.standard_error?.powi(2), new.standard_error?.powi(2));
        // Welch and Satterthwaite.
        let degrees = (a + b).powi(2) / (a * a / old.degrees() + b * b / new.degrees());
        let fewest = old.degrees().min(new.degrees());
        (new.mean - old.mean, (a + b).sqrt(), degrees.max(fewest))
    };
    Some(SpeedChange {
        ratio: mean.exp(),
        interval: interval(mean, standard_error, degrees),
        standard_error,
        degrees,
        batches,
        paired,
    })
}

/// Rows and prompt tokens of each batch that has a time, in order.
fn shapes(blocks: &[Block]) -> Vec<(usize, usize, usize)> {
    let mut shapes: Vec<_> = blocks
        .iter()
        .filter(|block| block.log_ratio().is_some())
        .map(|block| (block.batch, block.rows, block.prompt_tokens))
        .collect();
    shapes.sort_unstable();
    shapes.dedup();
    shapes
}

/// Chance of telling that the batches which are asked for are to have.
const POWER: f64 = 0.8;

/// More batches than these nobody times.
const MOST_BATCHES: usize = 100_000;

impl SpeedChange {
    /// One-sided p-value of "the new one takes at most `max_slowdown` (0.03 for 3%) longer than the old one": small where it
    /// is worse.
    pub fn p_worse(&self, max_slowdown: f64) -> f64 {
        self.upper_tail(-self.log() - margin(max_slowdown))
    }

    /// One-sided p-value of "the new one takes at least `max_slowdown` longer": small where it is not worse.
    pub fn p_not_worse(&self, max_slowdown: f64) -> f64 {
        self.upper_tail(self.log() + margin(max_slowdown))
    }

    /// One-sided p-value of "the new one is not faster".
    pub fn p_better(&self) -> f64 {
        self.upper_tail(self.log())
    }

    /// p-value of "the two differ by at least `max_slowdown`, either way": small where they are the same (two one-sided
    /// tests; Schuirmann 1987).
    pub fn p_same(&self, max_slowdown: f64) -> f64 {
        let faster = self.upper_tail(margin(max_slowdown) - self.log());
        self.p_not_worse(max_slowdown).max(faster)
    }

    /// What the change means where a slowdown of `max_slowdown` is allowed and each statement may be wrong in a share `alpha`
    /// of cases. Nothing is called worse but what is slower by more than is allowed: an identical build hardly ever.
    pub fn verdict(&self, max_slowdown: f64, alpha: f64) -> Verdict {
        if self.p_worse(max_slowdown) < alpha {
            Verdict::Worse
        } else if self.p_same(max_slowdown) < alpha {
            Verdict::Same
        } else if self.p_better() < alpha {
            Verdict::Better
        } else {
            Verdict::CannotTell {
                batches_needed: self.batches_needed(max_slowdown, alpha),
            }
        }
    }

    fn log(&self) -> f64 {
        self.ratio.ln()
    }

    fn upper_tail(&self, distance: f64) -> f64 {
        student::upper_tail(distance / self.standard_error, self.degrees)
    }

    /// The fewest batches with which a change of this size would be told with a chance of [`POWER`].
    fn batches_needed(&self, max_slowdown: f64, alpha: f64) -> Option<usize> {
        let (log, margin) = (self.log(), margin(max_slowdown));
        // How far the change lies within worse, same or better, whichever is told first.
        let distance = (-log - margin).max(margin - log.abs()).max(log);
        let deviation = self.standard_error * (self.batches as f64).sqrt();
        let degrees_per_batch = self.degrees / (self.batches as f64 - 1.0);
        let tells = |batches: usize| {
            let degrees = degrees_per_batch * (batches as f64 - 1.0);
            let quantiles =
                student::quantile(1.0 - alpha, degrees) + student::quantile(POWER, degrees);
            quantiles * deviation / (batches as f64).sqrt() <= distance
        };
        let mut most = 2;
        while !tells(most) {
            if most > MOST_BATCHES {
                return None;
            }
            most *= 2;
        }
        let mut fewest = most / 2;
        while most - fewest > 1 {
            let middle = fewest.midpoint(most);
            match tells(middle) {
                true => most = middle,
                false => fewest = middle,
            }
        }
        Some(most)
    }
}

/// A slowdown as a difference of logs.
fn margin(max_slowdown: f64) -> f64 {
    max_slowdown.ln_1p()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::timing::TimingPlan;
    use crate::timing::simulation::{Machine, NOISES, Noise, REALISTIC, gains, plan};
    use rand::SeedableRng;
    use rand_chacha::ChaCha8Rng;

    /// Twelve batches, four passes at least, and more until the speedup is known to 1%.
    fn gate() -> TimingPlan {
        TimingPlan {
            precision: Some(0.01),
            max_repeats: 16,
            ..plan(12, 4)
        }
    }

    fn run(noise: &Noise, gains: Option<&[f64]>, speedup: f64, rng: &mut ChaCha8Rng) -> Vec<Block> {
        let plan = gate();
        let mut machine = Machine::new(noise, &plan);
        machine.batches = gains.map(<[f64]>::to_vec);
        machine.run(&plan, speedup, rng)
    }

    /// Verdicts of 1000 seeded gates, `--max-slowdown 3% --alpha 0.05`, on a new build that takes `slowdown` longer.
    fn gates(noise: &Noise, slowdown: f64, same_prompts: bool) -> [usize; 4] {
        let mut counts = [0; 4];
        for seed in 0..1000 {
            let mut rng = ChaCha8Rng::seed_from_u64(seed);
            let gains = same_prompts.then(|| gains(noise, &gate(), &mut rng));
            let old = run(noise, gains.as_deref(), 1.6, &mut rng);
            let mut new = run(noise, gains.as_deref(), 1.6 / (1.0 + slowdown), &mut rng);
            if !same_prompts {
                new.iter_mut().for_each(|block| block.prompt_tokens = 7);
            }
            let change = compare_speed(&old, &new).unwrap();
            assert_eq!(change.paired, same_prompts);
            counts[match change.verdict(0.03, 0.05) {
                Verdict::Better => 0,
                Verdict::Same => 1,
                Verdict::Worse => 2,
                Verdict::CannotTell { .. } => 3,
            }] += 1;
        }
        counts
    }

    #[test]
    fn a_gate_catches_a_slowdown_of_a_tenth_and_passes_an_identical_build() {
        for (name, noise) in NOISES.iter().chain([&("realistic", REALISTIC)]) {
            for same_prompts in [true, false] {
                let slower = gates(noise, 0.1, same_prompts);
                let same = gates(noise, 0.0, same_prompts);
                let faster = gates(noise, -0.1, same_prompts);
                println!(
                    "{name:12} {same_prompts}: 10% slower {slower:?}, same {same:?}, faster {faster:?}"
                );
                assert!(
                    same[2] <= 50,
                    "{name}: identical builds called worse: {same:?}"
                );
                assert!(slower[2] >= 950, "{name}: a slowdown missed: {slower:?}");
                assert!(
                    same[1] >= 800,
                    "{name}: identical builds not the same: {same:?}"
                );
                assert!(faster[0] >= 950, "{name}: a speedup missed: {faster:?}");
            }
        }
    }

    #[test]
    fn what_is_slower_by_just_what_is_allowed_is_called_worse_as_often_as_alpha_says() {
        for noise in ["log-normal", "wandering", "batches"] {
            let (_, noise) = NOISES.iter().find(|(name, _)| *name == noise).unwrap();
            let [_, _, worse, _] = gates(noise, 0.03, true);
            assert!(worse <= 65, "{worse} of 1000");
        }
    }

    fn change(log: f64, standard_error: f64) -> SpeedChange {
        SpeedChange {
            ratio: log.exp(),
            interval: interval(log, standard_error, 11.0),
            standard_error,
            degrees: 11.0,
            batches: 12,
            paired: true,
        }
    }

    #[test]
    fn each_verdict_stands_where_its_test_rejects() {
        let verdict = |log, error| change(log, error).verdict(0.03, 0.05);
        assert_eq!(verdict(-0.05, 0.01), Verdict::Worse);
        assert_eq!(verdict(0.0, 0.01), Verdict::Same);
        assert_eq!(verdict(-0.01, 0.01), Verdict::Same);
        assert_eq!(verdict(-0.03, 0.0), Verdict::Worse, "ln 1.03 is less");
        let border = change(-(0.03f64.ln_1p()), 0.01).verdict(0.03, 0.05);
        assert_eq!(
            border,
            Verdict::CannotTell {
                batches_needed: None
            }
        );
    }

    #[test]
    fn as_many_batches_as_are_asked_for_tell() {
        for (log, error) in [(-0.045, 0.01), (0.0, 0.02), (0.02, 0.02), (-0.06, 0.04)] {
            let coarse = change(log, error);
            let Verdict::CannotTell {
                batches_needed: Some(needed),
            } = coarse.verdict(0.03, 0.05)
            else {
                panic!("{log} +- {error} is to be too coarse");
            };
            assert!(needed > coarse.batches && needed < 1000, "{needed}");
            let finer = |batches: usize| SpeedChange {
                standard_error: error * (12.0 / batches as f64).sqrt(),
                degrees: batches as f64 - 1.0,
                batches,
                ..coarse
            };
            let verdict = finer(needed).verdict(0.03, 0.05);
            assert!(
                !matches!(verdict, Verdict::CannotTell { .. }),
                "{needed}: {verdict:?}"
            );
            let fewer = finer(needed / 4).verdict(0.03, 0.05);
            assert!(matches!(fewer, Verdict::CannotTell { .. }), "{fewer:?}");
        }
    }

    #[test]
    fn one_batch_gives_no_change() {
        let mut rng = ChaCha8Rng::seed_from_u64(0);
        let blocks = run(&REALISTIC, None, 1.5, &mut rng);
        let one: Vec<Block> = blocks
            .iter()
            .filter(|block| block.batch == 0)
            .cloned()
            .collect();
        assert_eq!(compare_speed(&one, &one), None);
        assert_eq!(compare_speed(&blocks, &one), None);
        assert_eq!(compare_speed(&blocks, &[]), None);
        let same = compare_speed(&blocks, &blocks).unwrap();
        assert_eq!((same.ratio, same.paired, same.batches), (1.0, true, 12));
    }
}
