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

    /// The batches, in order.
    pub(super) fn batches(&self) -> impl Iterator<Item = usize> {
        self.0.keys().copied()
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
