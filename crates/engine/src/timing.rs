//! Speedup of a strategy over the full network, measured so that drift of the machine cancels out.

use crate::error::Result;
use crate::generate::Engine;
use crate::generation::Generation;
use crate::options::{Beam, Options};
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use skipbench_strategy::{Strategy, StrategySpec};

/// Resamples behind an interval.
const RESAMPLES: usize = 1000;

/// What to time.
#[derive(Debug, Clone)]
pub struct TimingPlan {
    /// Batches of prompts (token ids); each is timed `repeats` times under both.
    pub batches: Vec<Vec<Vec<u32>>>,
    /// Tokens generated per row, always exactly this many.
    pub new_tokens: usize,
    /// Tokens that a schedule by position is laid over: those of a whole answer.
    pub planned_tokens: usize,
    /// Passes over `batches`.
    pub repeats: usize,
    /// Blocks run before the clock counts.
    pub warm_up: usize,
    /// Seed of the order.
    pub seed: u64,
    /// Search with several beams, both.
    pub beam: Option<Beam>,
    /// No n-gram of this length occurs twice, for both; 0 for no such rule.
    pub no_repeat_ngram: usize,
}

/// One batch timed under the full network and under the strategy, back to back.
#[derive(Debug, Clone)]
pub struct Block {
    /// Index into the plan's batches.
    pub batch: usize,
    /// The full network.
    pub full: Generation,
    /// The strategy.
    pub strategy: Generation,
}

/// A 95% interval.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Interval {
    /// 2.5th percentile.
    pub lo: f64,
    /// 97.5th percentile.
    pub hi: f64,
}

/// A measured speedup.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Speedup {
    /// Summed decode time of the full network over that of the strategy.
    pub ratio: f64,
    /// Paired bootstrap over batches; `None` where there is but one.
    pub interval: Option<Interval>,
}

/// Times `spec` against the full network: for each batch both run, in random order, so that a slow second of the
/// machine hits both. Fixed length, so speed is not confused with the length of the answers.
///
/// # Errors
/// What [`Engine::generate`] refuses.
pub fn measure(engine: Engine<'_>, spec: &StrategySpec, plan: &TimingPlan) -> Result<Vec<Block>> {
    let n_layers = engine.model().sizes().n_layers;
    let options = Options {
        max_new_tokens: plan.new_tokens,
        eos_ids: Vec::new(),
        planned_tokens: Some(plan.planned_tokens),
        beam: plan.beam,
        no_repeat_ngram: plan.no_repeat_ngram,
        ..Options::default()
    };
    let mut full = StrategySpec::full().build(n_layers)?;
    let mut strategy = spec.build(n_layers)?;
    let mut rng = ChaCha8Rng::seed_from_u64(plan.seed);
    let mut order: Vec<usize> = (0..plan.repeats)
        .flat_map(|_| 0..plan.batches.len())
        .collect();
    order.shuffle(&mut rng);

    let mut blocks = Vec::with_capacity(order.len());
    let warm_up = order.iter().cycle().take(plan.warm_up.min(order.len()));
    let counted = order.iter();
    for (index, &batch) in warm_up.chain(counted).enumerate() {
        let prompts = &plan.batches[batch];
        let run = |strategy: &mut Box<dyn Strategy>| {
            engine.generate(prompts, strategy.as_mut(), &options)
        };
        let (full, strategy) = if rng.random_bool(0.5) {
            let full = run(&mut full)?;
            (full, run(&mut strategy)?)
        } else {
            let strategy = run(&mut strategy)?;
            (run(&mut full)?, strategy)
        };
        if index >= plan.warm_up.min(order.len()) {
            blocks.push(Block {
                batch,
                full,
                strategy,
            });
        }
    }
    Ok(blocks)
}

/// Ratio of summed times with its paired bootstrap interval, resampling batches (their repeats together, since
/// those are not independent). `pairs`: (batch, full seconds, strategy seconds). `None` without measured time.
pub fn speedup(pairs: &[(usize, f64, f64)], seed: u64) -> Option<Speedup> {
    let batches = pairs.iter().map(|(batch, _, _)| batch + 1).max()?;
    let mut sums = vec![(0.0, 0.0); batches];
    for &(batch, full, strategy) in pairs {
        sums[batch].0 += full;
        sums[batch].1 += strategy;
    }
    sums.retain(|&(full, strategy)| full > 0.0 && strategy > 0.0);
    if sums.is_empty() {
        return None;
    }
    let ratio = |picked: &mut dyn Iterator<Item = (f64, f64)>| {
        let (full, strategy) =
            picked.fold((0.0, 0.0), |sum, pair| (sum.0 + pair.0, sum.1 + pair.1));
        full / strategy
    };
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut resampled: Vec<f64> = (0..RESAMPLES)
        .map(|_| {
            let mut picked = (0..sums.len()).map(|_| sums[rng.random_range(0..sums.len())]);
            ratio(&mut picked)
        })
        .collect();
    resampled.sort_by(f64::total_cmp);
    Some(Speedup {
        ratio: ratio(&mut sums.iter().copied()),
        interval: (sums.len() > 1).then_some(Interval {
            lo: resampled[RESAMPLES / 40],
            hi: resampled[RESAMPLES - 1 - RESAMPLES / 40],
        }),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ratio_is_of_sums_and_its_interval_holds_it() {
        let pairs: Vec<_> = (0..20)
            .map(|batch| {
                (
                    batch,
                    2.0 + (batch % 3) as f64,
                    1.0 + (batch % 2) as f64 * 0.2,
                )
            })
            .collect();
        let speedup = speedup(&pairs, 1).unwrap();
        let full: f64 = pairs.iter().map(|pair| pair.1).sum();
        let strategy: f64 = pairs.iter().map(|pair| pair.2).sum();
        assert_eq!(speedup.ratio, full / strategy);
        let interval = speedup.interval.unwrap();
        assert!(interval.lo < speedup.ratio && speedup.ratio < interval.hi);
    }

    #[test]
    fn nothing_measured_gives_no_speedup() {
        assert_eq!(speedup(&[], 1), None);
        assert_eq!(speedup(&[(0, 0.0, 0.0)], 1), None);
        let one = speedup(&[(0, 2.0, 1.0), (0, 2.0, 1.0)], 1).unwrap();
        assert_eq!((one.ratio, one.interval), (2.0, None));
    }
}
