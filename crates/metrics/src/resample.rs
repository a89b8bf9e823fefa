//! Significance over per-segment counts: bootstrap intervals, paired bootstrap, paired approximate randomisation.
//!
//! numpy's random numbers cannot be reproduced, so the streams are our own: ChaCha8 with a seed, a stream of it for each
//! resample, which makes results independent of the number of threads.

use crate::Counts;
use rand::{Rng, RngCore, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;

/// How to resample.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Resampling {
    /// Bootstrap resamples.
    pub resamples: usize,
    /// Shuffles of the approximate randomisation test.
    pub shuffles: usize,
    /// Seed of both.
    pub seed: u64,
}

impl Default for Resampling {
    /// sacrebleu's numbers.
    fn default() -> Self {
        Self {
            resamples: 1000,
            shuffles: 10_000,
            seed: 12345,
        }
    }
}

/// A 95% bootstrap interval (Koehn 2004, "Statistical Significance Tests for Machine Translation Evaluation").
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Interval {
    /// Mean over the resamples.
    pub mean: f64,
    /// Lower end: a fortieth of the resamples score less.
    pub lo: f64,
    /// Upper end.
    pub hi: f64,
    /// Standard error of the score: its standard deviation over the resamples.
    pub standard_error: f64,
}

impl Interval {
    /// What sacrebleu prints after `±`.
    pub fn half_width(&self) -> f64 {
        0.5 * (self.hi - self.lo)
    }

    fn of(mut scores: Vec<f64>) -> Self {
        let standard_error = standard_deviation(&scores);
        scores.sort_by(f64::total_cmp);
        let (n, cut) = (scores.len(), scores.len() / 40);
        let at = |index: usize| scores.get(index).copied().unwrap_or(f64::NAN);
        Self {
            mean: scores.iter().sum::<f64>() / n as f64,
            lo: at(cut),
            hi: at(n.saturating_sub(cut + 1)),
            standard_error,
        }
    }
}

/// Two systems compared on the same segments. Both p-values are two-sided and count a resample that differs just as much
/// as the systems do, so that systems with the same outputs have p = 1. (sacrebleu counts only larger differences, and
/// gives such systems the smallest p there is.)
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Paired {
    /// Score of the system minus that of the baseline.
    pub difference: f64,
    /// Standard error of the difference: its standard deviation over the resamples of the paired bootstrap.
    pub standard_error: f64,
    /// Paired bootstrap (Koehn 2004): how often the difference of a resample, centred, is as large as the real one.
    pub bootstrap_p: f64,
    /// Approximate randomisation (Riezler and Maxwell 2005): how often outputs swapped at random differ as much.
    pub randomisation_p: f64,
}

/// Counts of every segment under one metric.
pub(crate) struct Table<'a> {
    pub(crate) metric: &'a dyn Counts,
    /// `[segments, width]`
    pub(crate) counts: &'a [f64],
}

impl Table<'_> {
    fn width(&self) -> usize {
        self.metric.width()
    }

    fn segments(&self) -> usize {
        self.counts.len() / self.width()
    }

    fn row(&self, segment: usize) -> &[f64] {
        &self.counts[segment * self.width()..][..self.width()]
    }

    pub(crate) fn sum(&self) -> Vec<f64> {
        let mut sum = vec![0.0; self.width()];
        for row in self.counts.chunks_exact(self.width()) {
            add(&mut sum, row);
        }
        sum
    }

    fn score(&self, sum: &[f64]) -> f64 {
        self.metric.score(sum, self.segments())
    }

    pub(crate) fn interval(&self, resampling: &Resampling) -> Interval {
        Interval::of(bootstrap([self], resampling).map(|[score]| score).collect())
    }

    /// Compares with `self` as the baseline; both have the same segments and metric.
    pub(crate) fn compare(&self, system: &Table<'_>, resampling: &Resampling) -> Paired {
        let difference = system.score(&system.sum()) - self.score(&self.sum());
        // Sums in another order may differ in their last digits.
        let at_least = difference.abs() * (1.0 - 1e-9);

        let differences: Vec<f64> = bootstrap([self, system], resampling)
            .map(|[baseline, system]| system - baseline)
            .collect();
        let standard_error = standard_deviation(&differences);
        let differences: Vec<f64> = differences.iter().map(|d| d.abs()).collect();
        let mean = differences.iter().sum::<f64>() / differences.len() as f64;
        let extreme = differences.iter().filter(|d| *d - mean >= at_least).count();
        let bootstrap_p = p_value(extreme, differences.len());

        let extreme = self.shuffled(system, resampling, at_least);
        Paired {
            difference,
            standard_error,
            bootstrap_p,
            randomisation_p: p_value(extreme, resampling.shuffles),
        }
    }

    /// Shuffles whose difference is at least so large.
    fn shuffled(&self, system: &Table<'_>, resampling: &Resampling, at_least: f64) -> usize {
        let width = self.width();
        let (base, other) = (self.sum(), system.sum());
        let change: Vec<f64> = self
            .counts
            .iter()
            .zip(system.counts)
            .map(|(a, b)| b - a)
            .collect();
        (0..resampling.shuffles)
            .into_par_iter()
            .filter(|&shuffle| {
                // Apart from the streams of the bootstrap.
                let mut rng = stream(resampling.seed ^ 0x5157, shuffle);
                let mut moved = vec![0.0; width];
                for block in change.chunks(64 * width) {
                    let mut swaps = rng.next_u64();
                    for row in block.chunks_exact(width) {
                        if swaps & 1 == 1 {
                            add(&mut moved, row);
                        }
                        swaps >>= 1;
                    }
                }
                let with = |sum: &[f64], sign: f64| -> f64 {
                    let sum: Vec<f64> = sum.iter().zip(&moved).map(|(s, m)| s + sign * m).collect();
                    self.score(&sum)
                };
                (with(&base, 1.0) - with(&other, -1.0)).abs() >= at_least
            })
            .count()
    }
}

/// Scores of resampled segments; every table is resampled alike.
fn bootstrap<'a, const N: usize>(
    tables: [&'a Table<'a>; N],
    resampling: &Resampling,
) -> impl Iterator<Item = [f64; N]> + use<N> {
    let segments = tables[0].segments();
    let scores: Vec<[f64; N]> = (0..resampling.resamples)
        .into_par_iter()
        .map(|resample| {
            let mut rng = stream(resampling.seed, resample);
            let mut sums = tables.map(|table| vec![0.0; table.width()]);
            for _ in 0..segments {
                let segment = rng.random_range(0..segments as u32) as usize;
                for (sum, table) in sums.iter_mut().zip(tables) {
                    add(sum, table.row(segment));
                }
            }
            std::array::from_fn(|index| tables[index].score(&sums[index]))
        })
        .collect();
    scores.into_iter()
}

fn standard_deviation(values: &[f64]) -> f64 {
    let n = values.len() as f64;
    let mean = values.iter().sum::<f64>() / n;
    let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
    (squares / (n - 1.0)).sqrt()
}

fn stream(seed: u64, index: usize) -> ChaCha8Rng {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    rng.set_stream(index as u64);
    rng
}

fn add(sum: &mut [f64], row: &[f64]) {
    sum.iter_mut()
        .zip(row)
        .for_each(|(sum, count)| *sum += count);
}

/// The real arrangement counts as one of the trials, so that the error rate is never above its level.
fn p_value(extreme: usize, trials: usize) -> f64 {
    (extreme + 1) as f64 / (trials + 1) as f64
}

/// Holm's correction (1979) of the p-values of a family of tests: the chance of a single false alarm among them stays
/// below the level.
pub fn holm(p_values: &[f64]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..p_values.len()).collect();
    order.sort_by(|&a, &b| p_values[a].total_cmp(&p_values[b]));
    let mut corrected = vec![0.0; p_values.len()];
    let mut largest: f64 = 0.0;
    for (rank, &index) in order.iter().enumerate() {
        largest = largest.max((p_values[index] * (p_values.len() - rank) as f64).min(1.0));
        corrected[index] = largest;
    }
    corrected
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Bleu, Evaluation, Hypotheses, Metric, References, evaluate, paired};

    /// Of a metric that is a mean over segments of equal length, the standard error is known.
    #[test]
    fn the_standard_error_is_that_of_a_mean() {
        let unigrams = Metric::Bleu(Bleu {
            max_order: 1,
            ..Bleu::default()
        });
        let references = References::single((0..400).map(|_| "a b c d")).unwrap();
        let scored = |right: &dyn Fn(usize) -> bool| -> Evaluation {
            let texts = (0..400).map(|index| match right(index) {
                true => "a b c d",
                false => "a b c x",
            });
            evaluate(&unigrams, &Hypotheses::new(texts), &references).unwrap()
        };
        let (baseline, system) = (scored(&|_| true), scored(&|index| index % 4 > 0));
        let test = paired(&baseline, &system, &Resampling::default()).unwrap();
        // A quarter of the segments lose a quarter of 100 points.
        assert!((test.difference + 6.25).abs() < 1e-9);
        let expected = 25.0 * (0.25_f64 * 0.75 / 400.0).sqrt();
        assert!(
            (test.standard_error / expected - 1.0).abs() < 0.1,
            "{test:?}"
        );
        let same = paired(&system, &system, &Resampling::default()).unwrap();
        assert_eq!((same.difference, same.standard_error), (0.0, 0.0));
    }

    #[test]
    fn holms_own_steps() {
        let corrected = holm(&[0.01, 0.04, 0.03, 0.005]);
        let expected = [0.03, 0.06, 0.06, 0.02];
        for (found, expected) in corrected.iter().zip(expected) {
            assert!((found - expected).abs() < 1e-12, "{corrected:?}");
        }
    }
}
