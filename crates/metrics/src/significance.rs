//! Resampling over per-segment counts, on a stream of our own (ChaCha8).

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

const RESAMPLES: usize = 1000;
const SHUFFLES: usize = 2000;

/// Two systems compared segment by segment.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Paired {
    /// System minus baseline.
    pub difference: f64,
    /// Two-sided p-value of the approximate randomisation test (Riezler and Maxwell 2005).
    pub randomisation_p: f64,
}

/// The 95% bootstrap interval (Koehn 2004).
pub(crate) fn interval(
    stats: &[Vec<f64>],
    score: impl Fn(&mut dyn Iterator<Item = &Vec<f64>>) -> f64,
    seed: u64,
) -> (f64, f64) {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut scores: Vec<f64> = (0..RESAMPLES)
        .map(|_| {
            let mut picked =
                (0..stats.len()).map(|_| &stats[rng.random_range(0..stats.len() as u32) as usize]);
            score(&mut picked)
        })
        .collect();
    scores.sort_by(f64::total_cmp);
    (
        scores[RESAMPLES / 40],
        scores[RESAMPLES - 1 - RESAMPLES / 40],
    )
}

/// Swaps each segment between the systems with even odds; the share of swaps whose difference is at least as large.
pub(crate) fn randomisation(
    a: &[Vec<f64>],
    b: &[Vec<f64>],
    score: impl Fn(&[f64], usize) -> f64,
    seed: u64,
) -> f64 {
    let n = a.len();
    let width = a.first().map_or(0, Vec::len);
    let mut rng = ChaCha8Rng::seed_from_u64(seed ^ 0x5157);
    let difference = |swap: &mut dyn FnMut() -> bool| {
        let (mut first, mut second) = (vec![0.0; width], vec![0.0; width]);
        for (a, b) in a.iter().zip(b) {
            let (a, b) = if swap() { (b, a) } else { (a, b) };
            first.iter_mut().zip(a).for_each(|(sum, stat)| *sum += stat);
            second
                .iter_mut()
                .zip(b)
                .for_each(|(sum, stat)| *sum += stat);
        }
        (score(&first, n) - score(&second, n)).abs()
    };
    let observed = difference(&mut || false);
    let as_large = (0..SHUFFLES)
        .filter(|_| difference(&mut || rng.random_bool(0.5)) >= observed - 1e-12)
        .count();
    (as_large + 1) as f64 / (SHUFFLES + 1) as f64
}

/// Holm's step-down correction (Holm 1979) of a family of p-values.
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

    #[test]
    fn holm_steps_down_and_never_falls() {
        let corrected = holm(&[0.01, 0.04, 0.03]);
        let expected = [0.03, 0.06, 0.06];
        for (corrected, expected) in corrected.iter().zip(expected) {
            assert!((corrected - expected).abs() < 1e-12);
        }
    }

    #[test]
    fn equal_systems_do_not_differ() {
        let stats: Vec<Vec<f64>> = (0..30).map(|i| vec![f64::from(i % 5)]).collect();
        assert_eq!(
            randomisation(&stats, &stats, |sum, n| sum[0] / n as f64, 1),
            1.0
        );
    }
}
