//! Whether one run's speedup differs from another's: what a gate stands on.

use super::block::Block;
use super::speedup::{Mean, Ratios};
use serde::{Deserialize, Serialize};

/// How the speedup of a cell changed from an old run to a new one.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct SpeedChange {
    /// The new speedup over the old one: 0.9 where the new strategy takes 1 / 0.9 times as long.
    pub ratio: f64,
    /// Standard error of its log.
    pub standard_error: f64,
    /// Degrees of freedom of the standard error.
    pub degrees: f64,
    /// Batches of the run that has fewer.
    pub batches: usize,
    /// Whether batches of the same prompts were set against each other.
    pub paired: bool,
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::timing::TimingPlan;
    use crate::timing::simulation::{Machine, NOISES, Noise, REALISTIC, gains, plan};
    use crate::timing::speedup::interval;
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

    /// Of 1000 seeded pairs of runs, the new one taking `slowdown` longer: those whose interval holds the true ratio, and the
    /// mean half width of its log.
    fn coverage(noise: &Noise, slowdown: f64, same_prompts: bool) -> (usize, f64) {
        let truth = 1.0 / (1.0 + slowdown);
        let (mut held, mut width) = (0, 0.0);
        for seed in 0..1000 {
            let mut rng = ChaCha8Rng::seed_from_u64(seed);
            let gains = same_prompts.then(|| gains(noise, &gate(), &mut rng));
            let old = run(noise, gains.as_deref(), 1.6, &mut rng);
            let mut new = run(noise, gains.as_deref(), 1.6 * truth, &mut rng);
            if !same_prompts {
                new.iter_mut().for_each(|block| block.prompt_tokens = 7);
            }
            let change = compare_speed(&old, &new).unwrap();
            assert_eq!(change.paired, same_prompts);
            let found = interval(change.ratio.ln(), change.standard_error, change.degrees);
            held += usize::from(found.lo <= truth && truth <= found.hi);
            width += (found.hi / found.lo).ln() / 2.0 / 1000.0;
        }
        (held, width)
    }

    #[test]
    fn the_interval_of_a_change_holds_it_and_is_narrow_enough_to_tell_a_tenth() {
        for (name, noise) in NOISES.iter().chain([&("realistic", REALISTIC)]) {
            for same_prompts in [true, false] {
                for slowdown in [0.0, 0.1] {
                    let (held, width) = coverage(noise, slowdown, same_prompts);
                    println!("{name:12} {same_prompts} {slowdown}: {held}, +-{width:.4}");
                    assert!(held >= 940, "{name}, {slowdown}: {held} of 1000");
                    assert!(width < 0.035, "{name}, {slowdown}: +-{width}");
                }
            }
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
