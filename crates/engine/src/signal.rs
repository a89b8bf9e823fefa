//! The few numbers that a dynamic strategy may ask for after a layer.

use crate::error::Result;
use crate::generation::TokenScore;
use crate::reduce::{has_nan, largest, sums, two_largest, weighted_differences};
use candle_core::{D, DType, Storage, Tensor};
use skipbench_model::ops;
use skipbench_strategy::ExitSignal;

/// Most likely token of each row of `logits`: `[rows, vocab_size]`; ties go to the lower id. `None` where a logit is NaN or
/// positive infinity, or where all are negative infinity: then no token is the likeliest.
pub(crate) fn argmax(logits: &Tensor) -> Result<Vec<Option<u32>>> {
    if ops::on_host(logits) || logits.dim(1)? > EXACT {
        return each_row(logits, likeliest);
    }
    argmax_on_device(logits)
}

/// Whole numbers up to this one are exact in f32.
const EXACT: usize = 1 << f32::MANTISSA_DIGITS;

pub(crate) fn likeliest(logits: &[f32]) -> Option<u32> {
    let [largest, _] = two_largest(logits);
    // No comparison with NaN holds, so it is looked for apart.
    let found = largest.is_finite() && !has_nan(logits);
    let at = logits.iter().position(|&logit| logit == largest);
    at.filter(|_| found).map(|at| at as u32)
}

/// What `of` makes of each row of `logits`, `[rows, _]`; no copy is made of what lies on the host.
pub(crate) fn each_row<R>(logits: &Tensor, of: impl FnMut(&[f32]) -> R) -> Result<Vec<R>> {
    let width = logits.dim(1)?.max(1);
    if ops::on_host(logits) {
        let (storage, layout) = logits.storage_and_layout();
        let place = layout.contiguous_offsets();
        if let (Storage::Cpu(values), Some((start, end))) = (&*storage, place) {
            let values = &values.as_slice::<f32>()?[start..end];
            return Ok(values.chunks_exact(width).map(of).collect());
        }
    }
    let values = ops::read::<f32>(logits)?;
    Ok(values.chunks_exact(width).map(of).collect())
}

/// The same without moving the logits to the host: three numbers a row come back, together. No more than [`EXACT`] tokens.
fn argmax_on_device(logits: &Tensor) -> Result<Vec<Option<u32>>> {
    let largest = ops::reduce(logits, |x| x.max(D::Minus1))?;
    // NaN where a logit is, which a maximum need not show.
    let sums = ops::reduce(logits, |x| x.sum(D::Minus1))?;
    let ids = ops::reduce(logits, |x| x.argmax(D::Minus1))?;
    let ids = ops::cast(&ids, DType::F32)?;
    let values = ops::read::<f32>(&ops::cat(&[largest, sums, ids], 0)?)?;
    let (largest, rest) = values.split_at(values.len() / 3);
    let (sums, ids) = rest.split_at(rest.len() / 2);
    let rows = largest.iter().zip(sums).zip(ids);
    Ok(rows
        .map(|((largest, sum), &id)| (largest.is_finite() && !sum.is_nan()).then_some(id as u32))
        .collect())
}

/// A signal that is read off the LM head, per row of `logits`: `[rows, vocab_size]`; NaN where they are not numbers.
pub(crate) fn from_logits(signal: ExitSignal, logits: &Tensor) -> Result<Vec<f64>> {
    if signal == ExitSignal::Patience {
        let votes = argmax(logits)?.into_iter();
        return Ok(votes.map(|vote| vote.map_or(f64::NAN, f64::from)).collect());
    }
    each_row(logits, |logits| confidence(signal, logits))
}

/// Natural logarithm of every token's probability, in the arithmetic of transformers: f32. NaN for all where a logit is NaN or
/// positive infinity.
pub(crate) fn log_softmax(logits: &[f32]) -> Vec<f32> {
    let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f32 = logits.iter().map(|&x| (x - largest).exp()).sum();
    let log_sum = sum.ln();
    logits.iter().map(|&x| x - largest - log_sum).collect()
}

/// Natural logarithm of the probability of `token`, all of it in f64: orders of layers that were found by it stay the same.
pub(crate) fn log_probability(logits: &[f32], token: u32) -> f64 {
    let largest = largest(logits);
    let sum: f64 = logits.iter().map(|&x| f64::from(x - largest).exp()).sum();
    let own = logits
        .get(token as usize)
        .copied()
        .unwrap_or(f32::NEG_INFINITY);
    f64::from(own - largest) - sum.ln()
}

/// The same within 1e-6 and many times as fast, and likewise those of so many likeliest tokens. NaN where a logit is NaN or
/// positive infinity.
pub(crate) fn score(logits: &[f32], token: u32, likeliest: usize) -> TokenScore {
    let largest = largest(logits);
    let log_sum = sums(logits, largest)[0].ln();
    let log_probability = |token: u32| {
        let own = logits.get(token as usize).copied();
        f64::from(own.unwrap_or(f32::NEG_INFINITY)) - f64::from(largest) - log_sum
    };
    let likeliest = largest_of(logits, likeliest).into_iter();
    TokenScore {
        log_probability: log_probability(token),
        likeliest: likeliest.map(|id| (id, log_probability(id))).collect(),
    }
}

/// Ids of the `most` largest values, the largest first; of equal ones the lower id.
fn largest_of(values: &[f32], most: usize) -> Vec<u32> {
    let mut ids: Vec<u32> = Vec::new();
    if most == 0 {
        return ids;
    }
    for (id, &value) in values.iter().enumerate() {
        let least = ids.last().map(|&last| values[last as usize]);
        if ids.len() == most && least.is_some_and(|least| value <= least) {
            continue;
        }
        let place = ids.partition_point(|&other| values[other as usize] >= value);
        ids.insert(place, id as u32);
        ids.truncate(most);
    }
    ids
}

/// Kullback-Leibler divergence of the distribution of `full` from that of `logits`, in nats; NaN where a logit of either is NaN or
/// positive infinity. Below 1e-6 it is rounding.
pub(crate) fn divergence(full: &[f32], logits: &[f32]) -> f64 {
    let (full_largest, largest) = (largest(full), largest(logits));
    let [full_sum, _] = sums(full, full_largest);
    let [sum, _] = sums(logits, largest);
    let weighted = weighted_differences(full, full_largest, logits, largest);
    let divergence = weighted / full_sum - full_sum.ln() + sum.ln();
    // What rounding takes below zero is none; `max` would make zero of what is no number.
    if divergence < 0.0 { 0.0 } else { divergence }
}

/// The first of the largest logits, of which none is NaN; what [`likeliest`] finds, faster.
pub(crate) fn first_of_largest(logits: &[f32]) -> Option<usize> {
    let largest = largest(logits);
    logits.iter().position(|&logit| logit == largest)
}

fn confidence(signal: ExitSignal, logits: &[f32]) -> f64 {
    let [first, second] = two_largest(logits);
    let [sum, weighted] = sums(logits, first);
    match signal {
        ExitSignal::MaxProb => 1.0 / sum,
        ExitSignal::SoftmaxMargin => (1.0 - f64::from(second - first).exp()) / sum,
        // H = ln Z - sum p (x - max), over the largest value ln V that it can have.
        ExitSignal::Entropy => {
            (sum.ln() - weighted / sum) / (logits.len() as f64).ln().max(f64::MIN_POSITIVE)
        }
        ExitSignal::Cosine | ExitSignal::Patience => f64::NAN,
    }
}

/// Cosine of each row's state before and after a layer; both `[rows, d_model]`. NaN where a state is not finite.
pub(crate) fn cosine(before: &Tensor, after: &Tensor) -> Result<Vec<f64>> {
    let width = after.dim(1)?.max(1);
    // Together, so that a device is waited for once.
    let states = ops::cast(&ops::cat(&[before, after], 0)?, DType::F32)?;
    let values = ops::read::<f32>(&states)?;
    let (before, after) = values.split_at(values.len() / 2);
    Ok(before
        .chunks_exact(width)
        .zip(after.chunks_exact(width))
        .map(|(a, b)| {
            let (mut ab, mut aa, mut bb) = (0f64, 0f64, 0f64);
            for (&a, &b) in a.iter().zip(b) {
                let (a, b) = (f64::from(a), f64::from(b));
                ab += a * b;
                aa += a * a;
                bb += b * b;
            }
            ab / (aa * bb).sqrt().max(f64::MIN_POSITIVE)
        })
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// By sums in f64, at lengths that end in and between lanes and blocks.
        #[test]
        fn signals_are_those_of_plain_sums(len in 2usize..2100, seed in 1u32..1000, spread in 1f32..40.0) {
            let mut state = seed;
            let logits: Vec<f32> = (0..len)
                .map(|_| {
                    state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                    (state >> 8) as f32 / (1 << 24) as f32 * spread - 3.0
                })
                .collect();
            let mut sorted = logits.clone();
            sorted.sort_by(|a, b| b.total_cmp(a));
            let exps: Vec<f64> = logits.iter().map(|x| f64::from(x - sorted[0]).exp()).collect();
            let sum: f64 = exps.iter().sum();
            let p: Vec<f64> = exps.iter().map(|exp| exp / sum).collect();
            let entropy: f64 = p.iter().map(|p| -p * p.ln()).sum();
            let second = f64::from(sorted[1] - sorted[0]).exp() / sum;
            let near = |a: f64, b: f64| (a - b).abs() < 2e-6;
            prop_assert!(near(confidence(ExitSignal::MaxProb, &logits), 1.0 / sum));
            prop_assert!(near(confidence(ExitSignal::SoftmaxMargin, &logits), 1.0 / sum - second));
            prop_assert!(near(confidence(ExitSignal::Entropy, &logits), entropy / (len as f64).ln()));
            let best = logits.iter().position(|x| *x == sorted[0]).unwrap();
            prop_assert_eq!(likeliest(&logits), Some(best as u32));
        }
    }

    /// Against the sums in f64, over a vocabulary that fills no lane and no block.
    #[test]
    fn log_probabilities_and_divergences_are_those_of_f64() {
        let logits = |seed: u32, scale: f32| -> Vec<f32> {
            let mut state = seed;
            let mut next = || {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                (state >> 8) as f32 / (1 << 24) as f32
            };
            (0..100_003)
                .map(|_| scale * (next() + next() - 1.0))
                .collect()
        };
        let log_probabilities = |logits: &[f32]| -> Vec<f64> {
            let largest = f64::from(largest(logits));
            let sum: f64 = logits.iter().map(|&x| (f64::from(x) - largest).exp()).sum();
            logits
                .iter()
                .map(|&x| f64::from(x) - largest - sum.ln())
                .collect()
        };
        for scale in [0.0, 1.0, 12.0, 60.0] {
            let (full, other) = (logits(1, scale), logits(2, scale));
            let (p, q) = (log_probabilities(&full), log_probabilities(&other));
            for token in [0, 7, 99_999, 100_002] {
                let found = score(&full, token as u32, 0).log_probability;
                assert!(
                    (found - p[token]).abs() < 1e-6,
                    "{scale}: {found} {}",
                    p[token]
                );
            }
            let expected: f64 = p.iter().zip(&q).map(|(p, q)| p.exp() * (p - q)).sum();
            let found = divergence(&full, &other);
            assert!(
                (found - expected).abs() < 1e-6 * (1.0 + expected),
                "{scale}: {found} {expected}"
            );
            assert!(divergence(&full, &full) < 1e-6);
            let first = first_of_largest(&full).map(|place| place as u32);
            assert_eq!(first, likeliest(&full));
        }
    }

    #[test]
    fn what_cannot_be_has_no_part_in_a_divergence() {
        let inf = f32::INFINITY;
        let half = (2f64).ln();
        let close = |found: f64, expected: f64| (found - expected).abs() < 1e-6;
        // Two of three tokens cannot be for the one, one of three for the other.
        assert!(close(
            divergence(&[0.0, -inf, -inf], &[0.0, 0.0, -inf]),
            half
        ));
        assert_eq!(
            divergence(&[0.0, 0.0, -inf], &[0.0, -inf, -inf]),
            f64::INFINITY
        );
        assert!(divergence(&[0.0, f32::NAN], &[0.0, 0.0]).is_nan());
        assert!(divergence(&[0.0, 0.0], &[inf, 0.0]).is_nan());
    }

    #[test]
    fn signals_of_two_equal_tokens() {
        let logits = [3.0, 3.0, -40.0, -40.0];
        assert!((confidence(ExitSignal::MaxProb, &logits) - 0.5).abs() < 1e-9);
        assert!(confidence(ExitSignal::SoftmaxMargin, &logits).abs() < 1e-9);
        assert!((confidence(ExitSignal::Entropy, &logits) - 0.5).abs() < 1e-9);
    }

    /// Logits of which none is the likeliest, and some of which one is.
    #[test]
    fn what_is_not_a_number_is_never_ignored() {
        let (nan, inf) = (f32::NAN, f32::INFINITY);
        let rows = [
            ([1.0, 3.0, 2.0], Some(1)),
            ([3.0, 3.0, -inf], Some(0)),
            ([1.0, 3.0, nan], None),
            ([nan, 3.0, 1.0], None),
            ([-nan, nan, -nan], None),
            ([1.0, inf, 2.0], None),
            ([-inf, -inf, -inf], None),
        ];
        let logits: Vec<Vec<f32>> = rows.iter().map(|(logits, _)| logits.to_vec()).collect();
        let tensor = Tensor::new(logits.clone(), &candle_core::Device::Cpu).unwrap();
        let wanted: Vec<Option<u32>> = rows.iter().map(|(_, id)| *id).collect();
        assert_eq!(argmax(&tensor).unwrap(), wanted);
        assert_eq!(argmax_on_device(&tensor).unwrap(), wanted);
        for signal in [
            ExitSignal::MaxProb,
            ExitSignal::SoftmaxMargin,
            ExitSignal::Entropy,
            ExitSignal::Patience,
        ] {
            let values = from_logits(signal, &tensor).unwrap();
            let numbers: Vec<bool> = values.iter().map(|value| !value.is_nan()).collect();
            assert_eq!(
                numbers,
                wanted.iter().map(Option::is_some).collect::<Vec<_>>(),
                "{signal:?}"
            );
        }
        for (logits, wanted) in logits.iter().zip(&wanted) {
            let scores = log_softmax(logits);
            assert_eq!(
                scores.iter().any(|score| score.is_nan()),
                wanted.is_none(),
                "{logits:?}"
            );
            let fast = |logits: &[f32], token| score(logits, token, 0).log_probability;
            for log_probability in [&log_probability as &dyn Fn(&[f32], u32) -> f64, &fast] {
                assert_eq!(
                    log_probability(logits, 0).is_nan(),
                    wanted.is_none(),
                    "{logits:?}"
                );
            }
        }
    }

    #[test]
    fn the_likeliest_come_in_order_and_of_equal_ones_the_first() {
        let logits = [0.5, 2.0, -1.0, 2.0, 3.0];
        let ids = |most| -> Vec<u32> { largest_of(&logits, most) };
        assert_eq!(ids(0), [] as [u32; 0]);
        assert_eq!(ids(1), [4]);
        assert_eq!(ids(2), [4, 1]);
        assert_eq!(ids(9), [4, 1, 3, 0, 2]);
        let score = score(&logits, 3, 3);
        assert_eq!(score.likeliest[2], (3, score.log_probability));
        assert!((score.log_probability - log_probability(&logits, 3)).abs() < 1e-6);
        let all: f64 = (0..5).map(|id| log_probability(&logits, id).exp()).sum();
        assert!((all - 1.0).abs() < 1e-12);
        assert_eq!(largest_of(&[f32::NAN, 1.0, f32::NAN], 2).len(), 2);
    }

    #[test]
    fn the_cosine_with_an_infinite_state_is_no_number() {
        let cosine = |a: [f32; 2], b: [f32; 2]| {
            let state = |x| Tensor::new(&[x], &candle_core::Device::Cpu).unwrap();
            cosine(&state(a), &state(b)).unwrap()[0]
        };
        assert!((cosine([1.0, 0.0], [1.0, 1.0]) - 0.5f64.sqrt()).abs() < 1e-9);
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            assert!(cosine([1.0, 2.0], [bad, 1.0]).is_nan());
            assert!(cosine([bad, bad], [bad, 1.0]).is_nan());
            assert!(cosine([0.0, 2.0], [bad, 1.0]).is_nan());
        }
    }

    #[test]
    fn a_certain_token_has_no_entropy() {
        let logits = [100.0, f32::NEG_INFINITY, 0.0];
        assert!(confidence(ExitSignal::Entropy, &logits).abs() < 1e-9);
        assert!((confidence(ExitSignal::SoftmaxMargin, &logits) - 1.0).abs() < 1e-9);
    }
}
