//! The speedup of timed blocks and its interval.

use super::block::Block;
use super::student;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::f64::consts::{FRAC_PI_2, SQRT_2};

/// Confidence of an interval.
const CONFIDENCE: f64 = 0.95;

/// A 95% interval.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Interval {
    /// Lower end.
    pub lo: f64,
    /// Upper end.
    pub hi: f64,
}

/// A measured speedup.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Speedup {
    /// Geometric mean, over the batches, of the decode time of the full network over that of the strategy.
    pub ratio: f64,
    /// `None` where there is but one batch.
    pub interval: Option<Interval>,
}

impl Speedup {
    /// Half the width of the interval, as a share of the ratio.
    pub fn half_width(&self) -> Option<f64> {
        let interval = self.interval?;
        Some((interval.hi / interval.lo).sqrt() - 1.0)
    }
}

/// Ratio of decode times with Student's t interval on the log ratios, one of each batch: the median over its passes.
///
/// A ratio's log is symmetric and its mean gives every batch the same weight (Fleming and Wallace 1986, "How not to lie with
/// statistics"). The batch is the unit, since its passes share what its prompts do to the strategy. The median leaves out
/// what hits one pass alone: with three passes or more, a process that takes the processor in 2 of 100 generations for half
/// as long again makes the interval hardly wider. The standard error is the larger of what the spread of the batches says
/// and what that of the passes says: of few batches all may come out alike by chance, and a measurement that stops as soon
/// as its interval is narrow would pick just that moment.
///
/// By the simulation in the tests the interval covers from two batches on, with log-normal noise, outliers, drift and batches
/// that differ, for a fixed number of passes and where a precision is asked for. A bootstrap over few batches does not.
pub fn speedup(blocks: &[Block]) -> Option<Speedup> {
    let ratios = Ratios::of(blocks);
    let mean = Mean::of(&ratios.medians(), ratios.error_of_passes())?;
    let interval = mean
        .standard_error
        .map(|error| interval(mean.mean, error, mean.degrees()));
    Some(Speedup {
        ratio: mean.mean.exp(),
        interval,
    })
}

/// Log ratios of the blocks of each batch, pass by pass. Blocks without decode time are left out.
pub(super) struct Ratios(BTreeMap<usize, Vec<f64>>);

impl Ratios {
    pub(super) fn of(blocks: &[Block]) -> Self {
        let mut passes: BTreeMap<usize, Vec<f64>> = BTreeMap::new();
        for block in blocks {
            if let Some(ratio) = block.log_ratio() {
                passes.entry(block.batch).or_default().push(ratio);
            }
        }
        Self(passes)
    }

    /// One value per batch, in order.
    pub(super) fn medians(&self) -> Vec<f64> {
        self.0.values().map(|passes| median(passes)).collect()
    }

    /// Standard error of the mean of the medians, were all batches alike: from the differences of successive passes, of
    /// which a few large ones count no more than others. 0 of a single pass.
    pub(super) fn error_of_passes(&self) -> f64 {
        let steps: Vec<f64> = self
            .0
            .values()
            .flat_map(|passes| passes.windows(2).map(|pair| (pair[1] - pair[0]).abs()))
            .collect();
        if steps.is_empty() {
            return 0.0;
        }
        let count = self.0.values().map(Vec::len).sum::<usize>() as f64;
        median(&steps) / (UPPER_QUARTILE * SQRT_2) * (FRAC_PI_2 / count).sqrt()
    }
}

/// Of the standard normal distribution.
const UPPER_QUARTILE: f64 = 0.674_49;

/// Of at least one value.
pub(super) fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    (sorted[(sorted.len() - 1) / 2] + sorted[sorted.len() / 2]) / 2.0
}

/// A mean with its standard error.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Mean {
    pub(super) mean: f64,
    /// `None` of a single value.
    pub(super) standard_error: Option<f64>,
    pub(super) count: usize,
}

impl Mean {
    /// `None` of no values; its standard error is at least `floor`.
    pub(super) fn of(values: &[f64], floor: f64) -> Option<Self> {
        let count = values.len();
        if count == 0 {
            return None;
        }
        let n = count as f64;
        let mean = values.iter().sum::<f64>() / n;
        let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
        Some(Self {
            mean,
            standard_error: (count > 1).then(|| (squares / (n - 1.0) / n).sqrt().max(floor)),
            count,
        })
    }

    /// Degrees of freedom.
    pub(super) fn degrees(&self) -> f64 {
        self.count.saturating_sub(1) as f64
    }
}

/// Student's t interval of a log, as one of what it is the log of.
pub(super) fn interval(mean: f64, standard_error: f64, degrees: f64) -> Interval {
    let half = student::quantile(0.5 + CONFIDENCE / 2.0, degrees) * standard_error;
    Interval {
        lo: (mean - half).exp(),
        hi: (mean + half).exp(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::timing::simulation::{Machine, NOISES, plan};
    use crate::timing::{Times, TimingPlan};
    use rand::SeedableRng;
    use rand_chacha::ChaCha8Rng;

    fn pair(batch: usize, full_s: f64, strategy_s: f64) -> Block {
        Block {
            batch,
            pass: 0,
            strategy_first: false,
            rows: 1,
            prompt_tokens: 1,
            decoded_tokens: 1,
            bytes: 0,
            extra_bytes: 0,
            full_bytes: 0,
            full: Times::decoding(full_s),
            strategy: Times::decoding(strategy_s),
        }
    }

    #[test]
    fn the_ratio_is_the_geometric_mean_of_medians_and_its_interval_holds_it() {
        let batches = [[3.9, 4.0, 40.0], [0.9, 1.0, 0.01]];
        let blocks: Vec<Block> = (0..6)
            .map(|index| pair(index / 3, batches[index / 3][index % 3], 1.0))
            .collect();
        let found = speedup(&blocks).unwrap();
        assert!(
            (found.ratio - (4.0f64 * 0.9).sqrt()).abs() < 1e-12,
            "{found:?}"
        );
        let interval = found.interval.unwrap();
        // t with one degree of freedom; the standard error is half the difference of the logs.
        let half = 12.7062 * (4.0f64 / 0.9).ln() / 2.0;
        assert!((interval.hi / found.ratio / half.exp() - 1.0).abs() < 1e-3);
        assert!((interval.lo * interval.hi / found.ratio.powi(2) - 1.0).abs() < 1e-9);
        assert!((found.half_width().unwrap() / half.exp_m1() - 1.0).abs() < 1e-3);
    }

    #[test]
    fn nothing_measured_gives_no_speedup() {
        assert_eq!(speedup(&[]), None);
        assert_eq!(speedup(&[pair(0, 0.0, 0.0), pair(1, 1.0, 0.0)]), None);
        let one = speedup(&[pair(7, 2.0, 1.0), pair(7, 2.0, 1.0)]).unwrap();
        assert_eq!((one.ratio, one.interval), (2.0, None));
    }

    #[test]
    fn batches_that_agree_by_chance_do_not_make_an_interval_narrow() {
        let blocks: Vec<Block> = [(0, 1.0), (0, 1.2), (0, 1.1), (1, 1.0), (1, 1.3), (1, 1.1)]
            .map(|(batch, full_s)| pair(batch, full_s, 1.0))
            .to_vec();
        let half_width = speedup(&blocks).unwrap().half_width().unwrap();
        assert!(half_width > 0.2, "the medians are alike: {half_width}");
    }

    /// Share of seeded runs whose interval holds the true speedup, and the mean half width.
    fn coverage(noise: usize, plan: &TimingPlan, runs: u64) -> (f64, f64) {
        let (mut held, mut width) = (0, 0.0);
        for run in 0..runs {
            let mut rng = ChaCha8Rng::seed_from_u64(run);
            let blocks = Machine::new(&NOISES[noise].1, plan).run(plan, 1.3, &mut rng);
            let found = speedup(&blocks).unwrap();
            let interval = found.interval.unwrap();
            held += u64::from(interval.lo <= 1.3 && 1.3 <= interval.hi);
            width += found.half_width().unwrap();
        }
        (held as f64 / runs as f64, width / runs as f64)
    }

    #[test]
    fn intervals_cover_at_every_count_of_batches() {
        for (noise, (name, _)) in NOISES.iter().enumerate() {
            for batches in [2, 3, 4, 8, 16] {
                for passes in [1, 3] {
                    let (held, width) = coverage(noise, &plan(batches, passes), 4000);
                    println!("{name:12} {batches:2} x {passes}: {held:.4}, +-{width:.4}");
                    assert!(held >= 0.94, "{name}, {batches} batches x {passes}: {held}");
                }
            }
        }
    }

    #[test]
    fn a_quiet_machine_gets_a_narrow_interval() {
        let quiet = NOISES
            .iter()
            .position(|(name, _)| *name == "log-normal")
            .unwrap();
        let (_, width) = coverage(quiet, &plan(12, 3), 500);
        assert!(width < 0.008, "1% of noise in a block: {width}");
        let outliers = NOISES
            .iter()
            .position(|(name, _)| *name == "outliers")
            .unwrap();
        let (_, width) = coverage(outliers, &plan(12, 3), 500);
        assert!(width < 0.012, "and some blocks half as long again: {width}");
    }

    #[test]
    fn intervals_cover_where_a_precision_is_asked_for() {
        for (noise, (name, _)) in NOISES.iter().enumerate() {
            if !matches!(*name, "log-normal" | "outliers" | "batches") {
                continue;
            }
            for batches in [2, 3, 4, 8, 16] {
                for precision in [0.005, 0.01] {
                    let plan = TimingPlan {
                        precision: Some(precision),
                        max_repeats: 16,
                        ..plan(batches, 2)
                    };
                    let (held, width) = coverage(noise, &plan, 4000);
                    println!("{name:12} {batches:2} to {precision}: {held:.4}, +-{width:.4}");
                    assert!(held >= 0.94, "{name}, {batches} to {precision}: {held}");
                }
            }
        }
    }
}
