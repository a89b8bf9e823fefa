//! What the blocks say about the measurement itself, and the spread of its latencies.

use super::block::Block;
use super::student;
use serde::{Deserialize, Serialize};
use skipbench_machine::Energy;
use std::collections::BTreeMap;
use std::fmt;

/// The machine became faster or slower while it was timed.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Drift {
    /// Change of time from the first block to the last: 0.1 for 10% slower.
    pub change: f64,
}

/// Drift that is worth a word.
const DRIFT_SHOWN: f64 = 0.05;
/// How sure a drift must be, two-sided.
const DRIFT_P: f64 = 0.01;

impl Drift {
    /// The slope of log time over the run, batches compared with themselves where each was timed more than once. `None` if it
    /// is small or may be chance. `blocks` are in the order in which they were timed.
    pub fn of(blocks: &[Block]) -> Option<Self> {
        let passes_differ = blocks.iter().any(|block| block.pass != blocks[0].pass);
        let mut groups: BTreeMap<usize, Vec<(f64, f64)>> = BTreeMap::new();
        for (index, block) in blocks.iter().enumerate() {
            let time = block.full.decode_s() * block.strategy.decode_s();
            if time > 0.0 {
                let group = if passes_differ { block.batch } else { 0 };
                let place = index as f64 / blocks.len() as f64;
                // Half: the log of the geometric mean of both.
                let point = (place, time.ln() / 2.0);
                groups.entry(group).or_default().push(point);
            }
        }
        let mut points = Vec::new();
        for group in groups.values() {
            let mean =
                |of: fn(&(f64, f64)) -> f64| group.iter().map(of).sum::<f64>() / group.len() as f64;
            let (x, y) = (mean(|point| point.0), mean(|point| point.1));
            points.extend(group.iter().map(|point| (point.0 - x, point.1 - y)));
        }
        let degrees = points.len().checked_sub(groups.len() + 1)? as f64;
        let squares: f64 = points.iter().map(|(x, _)| x * x).sum();
        if degrees < 1.0 || squares <= 0.0 {
            return None;
        }
        let slope = points.iter().map(|(x, y)| x * y).sum::<f64>() / squares;
        let rest: f64 = points.iter().map(|(x, y)| (y - slope * x).powi(2)).sum();
        let error = (rest / degrees / squares).sqrt();
        let change = slope.exp() - 1.0;
        let sure = student::upper_tail(slope.abs() / error, degrees) < DRIFT_P / 2.0;
        (sure && change.abs() > DRIFT_SHOWN).then_some(Self { change })
    }
}

impl fmt::Display for Drift {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let direction = if self.change > 0.0 {
            "slower"
        } else {
            "faster"
        };
        write!(
            f,
            "the machine became {:.0}% {direction} during timing; times in seconds do not compare, \
             and speedups, which are ratios of neighbouring runs, may belong to the state that the machine was in",
            100.0 * self.change.abs()
        )
    }
}

/// Blocks whose speedup is far from that of the others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Outliers {
    /// How many.
    pub count: usize,
    /// Of so many blocks.
    pub blocks: usize,
}

/// Blocks below which quartiles say little.
const FEWEST_FOR_QUARTILES: usize = 8;
/// Interquartile ranges from a quartile to the far fence (Tukey 1977).
const FAR_FENCE: f64 = 3.0;

impl Outliers {
    /// `None` if there are none.
    pub fn of(blocks: &[Block]) -> Option<Self> {
        let mut ratios: Vec<f64> = blocks.iter().filter_map(Block::log_ratio).collect();
        if ratios.len() < FEWEST_FOR_QUARTILES {
            return None;
        }
        ratios.sort_by(f64::total_cmp);
        let (lower, upper) = (percentile(&ratios, 0.25), percentile(&ratios, 0.75));
        let reach = FAR_FENCE * (upper - lower);
        let inside = lower - reach..=upper + reach;
        let count = ratios
            .iter()
            .filter(|ratio| !inside.contains(ratio))
            .count();
        (count > 0).then_some(Self {
            count,
            blocks: ratios.len(),
        })
    }
}

impl fmt::Display for Outliers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verb = match self.count {
            1 => "is an outlier",
            _ => "are outliers",
        };
        write!(
            f,
            "{} of {} timed blocks {verb}, far from all others: something else took the processor for a while; with three or \
             more repeats a batch's median leaves such a block out",
            self.count, self.blocks
        )
    }
}

/// How latencies spread, in milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Latency {
    /// Mean.
    pub mean_ms: f64,
    /// Median.
    pub p50_ms: f64,
    /// 95th percentile.
    pub p95_ms: f64,
    /// 99th percentile.
    pub p99_ms: f64,
}

impl Latency {
    /// Time to first token of the strategy, block by block.
    pub fn ttft(blocks: &[Block]) -> Option<Self> {
        let prefills = blocks.iter().map(|block| block.strategy.prefill_s);
        let mean = prefills.clone().sum::<f64>() / blocks.len() as f64;
        Self::of(prefills.collect(), mean)
    }

    /// Time per output token of the strategy: the mean over tokens, the percentiles over decode steps. A step that gives a
    /// row more tokens than one, as a speculative one does, counts as what its block took per token on average.
    pub fn tpot(blocks: &[Block]) -> Option<Self> {
        let tokens: usize = blocks.iter().map(|block| block.decoded_tokens).sum();
        let row_seconds: f64 = blocks
            .iter()
            .map(|block| block.strategy.decode_s() * block.rows as f64)
            .sum();
        let steps = blocks.iter().filter(|block| block.decoded_tokens > 0);
        let steps = steps.flat_map(|block| {
            let steps = &block.strategy.step_s;
            let scale = (steps.len() * block.rows) as f64 / block.decoded_tokens as f64;
            steps.iter().map(move |seconds| seconds * scale)
        });
        Self::of(steps.collect(), row_seconds / tokens as f64)
    }

    fn of(mut seconds: Vec<f64>, mean_s: f64) -> Option<Self> {
        if seconds.is_empty() {
            return None;
        }
        seconds.sort_by(f64::total_cmp);
        let ms = |share| 1e3 * percentile(&seconds, share);
        Some(Self {
            mean_ms: 1e3 * mean_s,
            p50_ms: ms(0.5),
            p95_ms: ms(0.95),
            p99_ms: ms(0.99),
        })
    }
}

/// Interpolated between the two nearest of sorted values, of which there is at least one.
fn percentile(sorted: &[f64], share: f64) -> f64 {
    let place = share * (sorted.len() - 1) as f64;
    let (below, above) = (place.floor() as usize, place.ceil() as usize);
    sorted[below] + (sorted[above] - sorted[below]) * place.fract()
}

/// Energy of the strategy per generated token, prefill included; absent where any block has none.
pub fn energy_per_token(blocks: &[Block]) -> Energy {
    let tokens: usize = blocks
        .iter()
        .map(|block| block.rows + block.decoded_tokens)
        .sum();
    let per_token = |of: fn(&Energy) -> Option<f64>| {
        let joules: Option<f64> = blocks.iter().map(|block| of(&block.strategy.energy)).sum();
        joules
            .filter(|_| tokens > 0)
            .map(|joules| joules / tokens as f64)
    };
    Energy {
        processor_j: per_token(|energy| energy.processor_j),
        gpu_j: per_token(|energy| energy.gpu_j),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::laps::Spent;
    use crate::timing::Times;
    use crate::timing::simulation::{Machine, NOISES, Noise, plan};
    use rand::SeedableRng;
    use rand_chacha::ChaCha8Rng;

    fn run(name: &str, batches: usize, passes: usize, seed: u64) -> Vec<Block> {
        let (_, noise) = NOISES.iter().find(|(noise, _)| *noise == name).unwrap();
        simulate(noise, batches, passes, seed)
    }

    fn simulate(noise: &Noise, batches: usize, passes: usize, seed: u64) -> Vec<Block> {
        let plan = plan(batches, passes);
        Machine::new(noise, &plan).run(&plan, 2.0, &mut ChaCha8Rng::seed_from_u64(seed))
    }

    #[test]
    fn drift_is_told_from_noise_and_from_longer_batches() {
        for seed in 0..100 {
            for passes in [1, 3] {
                let drift = Drift::of(&run("drift", 12, passes, seed)).unwrap();
                let change = 0.3f64.exp_m1();
                assert!((drift.change - change).abs() < 0.04, "{seed}: {drift:?}");
                assert_eq!(Drift::of(&run("log-normal", 12, passes, seed)), None);
            }
            let mut uneven = run("log-normal", 12, 3, seed);
            for block in &mut uneven {
                block.full.step_s[0] *= 1.0 + block.batch as f64;
            }
            assert_eq!(Drift::of(&uneven), None, "{seed}");
        }
        let sentence = Drift { change: -0.124 }.to_string();
        assert!(sentence.starts_with("the machine became 12% faster during timing;"));
        assert_eq!(Drift::of(&[]), None);
        assert_eq!(Drift::of(&run("drift", 2, 1, 0)), None);
    }

    #[test]
    fn outliers_are_counted_behind_the_far_fence() {
        let mut blocks = run("log-normal", 12, 3, 0);
        assert_eq!(Outliers::of(&blocks), None);
        blocks[5].full.step_s[0] *= 1.5;
        assert_eq!(
            Outliers::of(&blocks),
            Some(Outliers {
                count: 1,
                blocks: 36
            })
        );
        blocks[9].strategy.step_s[0] *= 1.5;
        let outliers = Outliers::of(&blocks).unwrap();
        let sentence = outliers.to_string();
        assert!(
            sentence.starts_with("2 of 36 timed blocks are outliers"),
            "{sentence}"
        );
        assert_eq!(Outliers::of(&blocks[4..7]), None, "too few to tell");
    }

    /// A block of `rows` that decodes in steps of so many milliseconds.
    fn block(rows: usize, decoded_tokens: usize, prefill_ms: f64, steps_ms: &[f64]) -> Block {
        let times = Times {
            prefill_s: prefill_ms / 1e3,
            step_s: steps_ms.iter().map(|ms| ms / 1e3).collect(),
            draft_s: 0.0,
            spent: Spent::default(),
            energy: Energy {
                processor_j: Some(6.0),
                gpu_j: None,
            },
        };
        Block {
            rows,
            decoded_tokens,
            full: times.clone(),
            strategy: times,
            ..run("log-normal", 1, 1, 0)[0].clone()
        }
    }

    #[test]
    fn latencies_are_means_and_interpolated_percentiles() {
        let close =
            |found: f64, wanted: f64| assert!((found - wanted).abs() < 1e-9, "{found} {wanted}");
        let steps: Vec<f64> = (1..=101).map(f64::from).collect();
        let blocks = [block(2, 202, 5.0, &steps), block(2, 4, 9.0, &[51.0, 51.0])];
        let ttft = Latency::ttft(&blocks).unwrap();
        close(ttft.mean_ms, 7.0);
        close(ttft.p95_ms, 8.8);
        let tpot = Latency::tpot(&blocks[..1]).unwrap();
        close(tpot.mean_ms, 51.0);
        close(tpot.p50_ms, 51.0);
        close(tpot.p95_ms, 96.0);
        close(tpot.p99_ms, 100.0);
        assert_eq!((Latency::ttft(&[]), Latency::tpot(&[])), (None, None));
        assert_eq!(Latency::tpot(&[block(2, 0, 1.0, &[])]), None);
    }

    #[test]
    fn a_step_of_several_tokens_counts_per_token() {
        let speculative = [block(1, 6, 1.0, &[30.0, 30.0])];
        let tpot = Latency::tpot(&speculative).unwrap();
        assert!((tpot.mean_ms - 10.0).abs() < 1e-9 && (tpot.p99_ms - 10.0).abs() < 1e-9);
    }

    #[test]
    fn energy_is_per_generated_token_or_absent() {
        let mut blocks = [block(2, 4, 1.0, &[1.0]), block(2, 4, 1.0, &[1.0])];
        let energy = energy_per_token(&blocks);
        assert_eq!((energy.processor_j, energy.gpu_j), (Some(1.0), None));
        blocks[1].strategy.energy = Energy::default();
        assert!(energy_per_token(&blocks).is_absent());
        assert!(energy_per_token(&[]).is_absent());
    }
}
