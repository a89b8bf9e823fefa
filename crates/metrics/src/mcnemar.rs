//! McNemar's test: two systems on the same questions, each answer right or wrong.

/// Two systems compared on answers that are right or wrong.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct McNemar {
    /// Answers that are right under the system alone.
    pub gained: usize,
    /// Answers that are right under the baseline alone.
    pub lost: usize,
    /// The exact two-sided p-value: how often a fair coin, thrown for each answer that is right under one alone, is as
    /// uneven (McNemar 1947, "Note on the sampling error of the difference between correlated proportions"). 1 where none
    /// is.
    pub p: f64,
}

/// McNemar's exact test over pairs (right under the baseline, right under the system).
pub fn mcnemar(pairs: impl IntoIterator<Item = (bool, bool)>) -> McNemar {
    let (mut gained, mut lost) = (0, 0);
    for pair in pairs {
        match pair {
            (false, true) => gained += 1,
            (true, false) => lost += 1,
            _ => (),
        }
    }
    McNemar {
        gained,
        lost,
        p: (2.0 * tail(gained.min(lost), gained + lost)).min(1.0),
    }
}

/// The chance that a fair coin shows heads at most `k` times in `n` throws, for `k` of at most half of `n`.
fn tail(k: usize, n: usize) -> f64 {
    // The largest term is C(n, k) / 2^n, in logarithms as neither fits a number; every term below it follows from it.
    let log_ways: f64 = (1..=k).map(|i| ((n - k + i) as f64 / i as f64).ln()).sum();
    let largest = (log_ways - n as f64 * std::f64::consts::LN_2).exp();
    let (mut sum, mut term) = (1.0, 1.0);
    for i in (1..=k).rev() {
        term *= i as f64 / (n - i + 1) as f64;
        sum += term;
    }
    largest * sum
}

#[cfg(test)]
mod tests {
    use super::*;

    fn p(gained: usize, lost: usize) -> f64 {
        let pairs = std::iter::repeat_n((false, true), gained)
            .chain(std::iter::repeat_n((true, false), lost))
            .chain([(true, true), (false, false)]);
        let test = mcnemar(pairs);
        assert_eq!((test.gained, test.lost), (gained, lost));
        test.p
    }

    /// The p-values of R's `binom.test(gained, gained + lost)`.
    #[test]
    fn known_values() {
        for (gained, lost, expected) in [
            (0, 0, 1.0),
            (1, 0, 1.0),
            (2, 1, 1.0),
            (0, 5, 0.0625),
            (0, 6, 0.03125),
            (5, 15, 0.04138946533203125),
            (8, 2, 0.109375),
        ] {
            assert!(
                (p(gained, lost) - expected).abs() < 1e-12,
                "{gained} {lost}: {}",
                p(gained, lost)
            );
        }
        // 59 against 121, the example of statsmodels' documentation.
        assert!(
            (p(59, 121) / 4.434447e-06 - 1.0).abs() < 1e-6,
            "{}",
            p(59, 121)
        );
    }

    /// Against the sum in whole numbers, where those suffice.
    #[test]
    fn exact_wherever_whole_numbers_reach() {
        for n in 1..=60_u32 {
            let (mut ways, mut sum) = (1_u128, 0_u128);
            for k in 0..=n / 2 {
                sum += ways;
                ways = ways * u128::from(n - k) / u128::from(k + 1);
                let expected = (2.0 * sum as f64 / 2_f64.powi(n as i32)).min(1.0);
                let found = p(k as usize, (n - k) as usize);
                assert!(
                    (found / expected - 1.0).abs() < 1e-12,
                    "{k} of {n}: {found} {expected}"
                );
            }
        }
    }

    #[test]
    fn large_counts_neither_overflow_nor_vanish() {
        let found = p(5000, 5200);
        // z = 200 / sqrt(10200), with the continuity correction.
        assert!((found - 0.04878).abs() < 2e-4, "{found}");
        assert_eq!(p(0, 100_000), 0.0);
    }
}
