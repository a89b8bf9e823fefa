//! A measured change with its uncertainty, and what it allows to say.

use serde::{Deserialize, Serialize};
use statrs::distribution::{ContinuousCDF, StudentsT};
use std::collections::BTreeMap;

/// More than so many times what was measured is no advice.
const MOST_TIMES_AS_MANY: f64 = 100.0;
/// A standard normal lies below it with a chance of 80%.
const POWER_80: f64 = 0.841_62;

/// What can be said of a change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// A gain that is larger than the limit.
    Better,
    /// No loss that is larger than the limit.
    Same,
    /// A loss that is larger than the limit.
    Worse,
    /// Both a loss beyond the limit and none are possible.
    CannotTell,
}

impl Verdict {
    /// For people.
    pub fn words(self) -> &'static str {
        match self {
            Self::Better => "better",
            Self::Same => "same",
            Self::Worse => "worse",
            Self::CannotTell => "cannot tell",
        }
    }
}

/// A change, gains above zero, with its standard error.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Estimate {
    pub(super) gain: f64,
    pub(super) standard_error: f64,
    /// Degrees of freedom of the standard error.
    pub(super) degrees: f64,
    /// Batches or prompts that it was measured on.
    pub(super) units: usize,
    /// The p-value of a test that there is no change at all, where there is one that does not rest on `standard_error`.
    pub(super) p_of_no_change: Option<f64>,
}

impl Estimate {
    /// From a value of each batch. Values of the same batch of both are compared with each other, so that what a batch does
    /// to a strategy cancels out; other batches are compared on average (Welch 1947). `None` for fewer than two batches.
    pub(super) fn of_batches(
        old: &BTreeMap<usize, f64>,
        new: &BTreeMap<usize, f64>,
        same_batches: bool,
    ) -> Option<Self> {
        if same_batches {
            let pairs = old.iter().filter_map(|(batch, was)| Some(new.get(batch)? - was));
            let mean = Mean::of(&pairs.collect::<Vec<_>>())?;
            return Some(Self {
                gain: mean.mean,
                standard_error: mean.squared_error.sqrt(),
                degrees: mean.count - 1.0,
                units: mean.count as usize,
                p_of_no_change: None,
            });
        }
        let mean = |values: &BTreeMap<usize, f64>| {
            Mean::of(&values.values().copied().collect::<Vec<_>>())
        };
        let (was, is) = (mean(old)?, mean(new)?);
        let squared_error = was.squared_error + is.squared_error;
        let part = |mean: &Mean| mean.squared_error.powi(2) / (mean.count - 1.0);
        Some(Self {
            gain: is.mean - was.mean,
            standard_error: squared_error.sqrt(),
            degrees: match squared_error > 0.0 {
                true => squared_error.powi(2) / (part(&was) + part(&is)),
                false => was.count.min(is.count) - 1.0,
            },
            units: was.count.min(is.count) as usize,
            p_of_no_change: None,
        })
    }

    /// The interval that holds the gain but for a chance of `alpha`.
    pub(super) fn interval(&self, alpha: f64) -> (f64, f64) {
        let half = self.quantile(alpha) * self.standard_error;
        (self.gain - half, self.gain + half)
    }

    fn quantile(&self, alpha: f64) -> f64 {
        StudentsT::new(0.0, 1.0, self.degrees)
            .map_or(f64::INFINITY, |student| student.inverse_cdf(1.0 - alpha / 2.0))
    }

    /// The p-value of a loss of at most `limit`: small where the loss is larger. It is twice that of the one-sided test, so
    /// that it is below `alpha` where the whole of [`Estimate::interval`] lies beyond the limit, and never below the test
    /// that there is no change at all.
    pub(super) fn p_of_loss_within(&self, limit: f64) -> f64 {
        self.p_beyond(-self.gain - limit)
    }

    /// The same of a gain.
    pub(super) fn p_of_gain_within(&self, limit: f64) -> f64 {
        self.p_beyond(self.gain - limit)
    }

    fn p_beyond(&self, distance: f64) -> f64 {
        let one_sided = match StudentsT::new(0.0, 1.0, self.degrees) {
            Ok(student) if self.standard_error > 0.0 => {
                student.sf(distance / self.standard_error)
            }
            Ok(_) if distance > 0.0 => 0.0,
            _ => 1.0,
        };
        let p = (2.0 * one_sided).min(1.0);
        p.max(self.p_of_no_change.unwrap_or(0.0))
    }

    /// What can be said, given the p-values above after correction.
    pub(super) fn verdict(&self, limit: f64, alpha: f64, p_loss: f64, p_gain: f64) -> Verdict {
        if p_loss < alpha {
            Verdict::Worse
        } else if p_gain < alpha {
            Verdict::Better
        } else if self.interval(alpha).0 >= -limit {
            Verdict::Same
        } else {
            Verdict::CannotTell
        }
    }

    /// Batches or prompts that would tell, with a chance of 80% were the change as large as it was measured; `None` where
    /// it is so near the limit that no reasonable number would.
    pub(super) fn units_needed(&self, limit: f64, alpha: f64) -> Option<usize> {
        let distance = (self.gain + limit).abs();
        let times = ((self.quantile(alpha) + POWER_80) * self.standard_error / distance).powi(2);
        let units = (self.units as f64 * times).ceil().max(self.units as f64 + 1.0);
        (times <= MOST_TIMES_AS_MANY).then_some(units as usize)
    }
}

struct Mean {
    mean: f64,
    /// Of the mean.
    squared_error: f64,
    count: f64,
}

impl Mean {
    /// `None` for fewer than two values.
    fn of(values: &[f64]) -> Option<Self> {
        let count = values.len() as f64;
        let mean = values.iter().sum::<f64>() / count;
        let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
        (values.len() > 1).then(|| Self {
            mean,
            squared_error: squares / (count - 1.0) / count,
            count,
        })
    }
}
