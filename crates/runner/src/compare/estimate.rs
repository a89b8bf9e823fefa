//! A measured change with its uncertainty, and what it allows to say.

use serde::{Deserialize, Serialize};
use skipbench_engine::{SpeedChange, student};

/// More than so many times what was measured is no advice.
pub(super) const MOST_TIMES_AS_MANY: usize = 100;
/// Chance of telling that the batches or prompts which are asked for are to have.
const POWER: f64 = 0.8;

/// What can be said of a change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// A gain, and not one that is shown to be smaller than the limit.
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
    /// How far the gain may be off for a reason that more units do not remove. It weakens what is said of a change, and is in no
    /// interval.
    pub(super) bias: Bias,
}

/// The true gain lies up to so much below or above what was measured, beside all chance. Neither is negative.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct Bias {
    pub(super) below: f64,
    pub(super) above: f64,
}

impl From<&SpeedChange> for Estimate {
    /// Of the logarithm.
    fn from(change: &SpeedChange) -> Self {
        Self {
            gain: change.ratio.ln(),
            standard_error: change.standard_error,
            degrees: change.degrees,
            units: change.batches,
            p_of_no_change: None,
            bias: Bias::default(),
        }
    }
}

impl Estimate {
    /// The interval that holds the gain but for a chance of `alpha`.
    pub(super) fn interval(&self, alpha: f64) -> (f64, f64) {
        let half = student::quantile(1.0 - alpha / 2.0, self.degrees) * self.standard_error;
        (self.gain - half, self.gain + half)
    }

    /// The p-value of a loss of at most `limit`: small where the loss is larger. It is twice that of the one-sided test, so
    /// that it is below `alpha` where the whole of [`Estimate::interval`] and the bias lie beyond the limit, and never below the test
    /// that there is no change at all.
    pub(super) fn p_of_loss_within(&self, limit: f64) -> f64 {
        self.p_beyond(-self.gain - self.bias.above - limit)
    }

    /// The p-value of no gain, likewise.
    pub(super) fn p_of_no_gain(&self) -> f64 {
        self.p_beyond(self.gain - self.bias.below)
    }

    fn p_beyond(&self, distance: f64) -> f64 {
        let one_sided = match self.standard_error > 0.0 {
            true => student::upper_tail(distance / self.standard_error, self.degrees),
            false => f64::from(distance <= 0.0),
        };
        let p = (2.0 * one_sided).min(1.0);
        p.max(self.p_of_no_change.unwrap_or(0.0))
    }

    /// What can be said, given the p-values above after correction.
    pub(super) fn verdict(&self, limit: f64, alpha: f64, p_loss: f64, p_gain: f64) -> Verdict {
        let (lo, hi) = self.interval(alpha);
        if p_loss < alpha {
            Verdict::Worse
        } else if p_gain < alpha && hi > limit {
            Verdict::Better
        } else if lo >= -limit {
            Verdict::Same
        } else {
            Verdict::CannotTell
        }
    }

    /// Batches or prompts that would tell, with a chance of [`POWER`] were the change as large as it was measured; `None`
    /// where it is so near the limit that no reasonable number would.
    pub(super) fn units_needed(&self, limit: f64, alpha: f64) -> Option<usize> {
        let beyond = self.gain + limit;
        let bias = match beyond < 0.0 {
            true => self.bias.above,
            false => self.bias.below,
        };
        let distance = (beyond.abs() - bias) / self.standard_error;
        let tells = |units: usize| {
            let times = units as f64 / self.units as f64;
            let degrees = self.degrees * times;
            let quantiles =
                student::quantile(1.0 - alpha / 2.0, degrees) + student::quantile(POWER, degrees);
            quantiles <= distance * times.sqrt()
        };
        let most = self.units.saturating_mul(MOST_TIMES_AS_MANY);
        if !tells(most) {
            return None;
        }
        let (mut few, mut enough) = (self.units, most);
        while enough - few > 1 {
            let middle = few.midpoint(enough);
            match tells(middle) {
                true => enough = middle,
                false => few = middle,
            }
        }
        Some(enough)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn estimate(gain: f64, standard_error: f64) -> Estimate {
        Estimate {
            gain,
            standard_error,
            degrees: 1e6,
            units: 100,
            p_of_no_change: None,
            bias: Bias::default(),
        }
    }

    fn verdict(estimate: Estimate) -> Verdict {
        let (p_loss, p_gain) = (estimate.p_of_loss_within(3.0), estimate.p_of_no_gain());
        estimate.verdict(3.0, 0.05, p_loss, p_gain)
    }

    /// The 95% interval of a normal is 1.96 standard errors to each side.
    #[test]
    fn the_interval_decides() {
        for (gain, expected) in [
            (-5.0, Verdict::Worse),
            (-4.97, Verdict::Worse),
            (-4.95, Verdict::CannotTell),
            (-1.05, Verdict::CannotTell),
            (-1.03, Verdict::Same),
            (1.03, Verdict::Same),
            (1.95, Verdict::Same),
            (1.97, Verdict::Better),
            (9.0, Verdict::Better),
        ] {
            assert_eq!(verdict(estimate(gain, 1.0)), expected, "{gain}");
        }
        // A gain that is smaller than the limit beyond doubt makes no difference.
        assert_eq!(verdict(estimate(1.0, 0.1)), Verdict::Same);
        assert_eq!(verdict(estimate(0.0, 0.0)), Verdict::Same);
        assert_eq!(verdict(estimate(-3.1, 0.0)), Verdict::Worse);
    }

    #[test]
    fn a_test_that_finds_nothing_has_the_last_word() {
        let doubtful = Estimate {
            p_of_no_change: Some(0.2),
            ..estimate(-9.0, 1.0)
        };
        assert_eq!(verdict(doubtful), Verdict::CannotTell);
    }

    #[test]
    fn what_a_bias_may_explain_is_not_called_worse_or_better() {
        let biased = |gain, below, above| Estimate {
            bias: Bias { below, above },
            ..estimate(gain, 0.1)
        };
        assert_eq!(verdict(biased(-5.0, 0.0, 1.0)), Verdict::Worse);
        assert_eq!(verdict(biased(-5.0, 0.0, 2.0)), Verdict::CannotTell);
        assert_eq!(verdict(biased(-5.0, 2.0, 0.0)), Verdict::Worse);
        assert_eq!(verdict(biased(5.0, 2.0, 0.0)), Verdict::Better);
        assert_eq!(verdict(biased(5.0, 5.0, 0.0)), Verdict::Same);
        assert_eq!(verdict(biased(0.0, 4.0, 4.0)), Verdict::Same);
        assert_eq!(biased(-5.0, 0.0, 2.0).units_needed(3.0, 0.05), None);
    }

    #[test]
    fn so_many_would_tell() {
        let open = estimate(-4.0, 1.0);
        // (1.96 + 0.84)^2 times as many, for a distance of one standard error from the limit.
        assert_eq!(open.units_needed(3.0, 0.05), Some(785));
        let more = Estimate {
            units: 785,
            ..estimate(-4.0, (100.0_f64 / 785.0).sqrt())
        };
        assert_eq!(verdict(more), Verdict::Worse);
        assert_eq!(estimate(-3.01, 1.0).units_needed(3.0, 0.05), None);
    }
}
