//! From a target speedup to a number of layers.

use crate::StrategyError;
use std::fmt;

/// The fewest layers that any strategy may run.
pub(crate) const MIN_KEPT: usize = 2;

/// Layers that a target speedup leaves: `floor(n_layers / speedup)`, as in Unified Layer Skipping
/// (arXiv 2404.06954).
///
/// A little is added before rounding down, because 33 / 1.1 is 29.999.. in floating point.
/// ```
/// # use skipbench_strategy::kept_layers;
/// assert_eq!(kept_layers(33, 1.1)?, 30);
/// assert!(kept_layers(12, 10.0).is_err());
/// # Ok::<(), skipbench_strategy::StrategyError>(())
/// ```
///
/// # Errors
/// If the speedup is below 1 or not finite, or leaves fewer than two layers.
pub fn kept_layers(n_layers: usize, speedup: f64) -> Result<usize, StrategyError> {
    check_speedup(speedup)?;
    let kept = (n_layers as f64 / speedup + 1e-9).floor() as usize;
    if kept < MIN_KEPT {
        return Err(StrategyError::TooFast {
            speedup,
            kept,
            n_layers,
        });
    }
    Ok(kept)
}

/// The longest output that is planned for one step at a time; a longer one stays as it is at this length.
pub(crate) const MAX_STEPS: usize = 1 << 20;

/// The largest speedup at which `lowest` layers run, rounded down to hundredths for an error to name.
pub(crate) fn fastest(n_layers: usize, lowest: usize) -> f64 {
    (n_layers as f64 / lowest as f64 * 100.0).floor() / 100.0
}

/// Refuses a target that is no speedup.
pub(crate) fn check_speedup(speedup: f64) -> Result<(), StrategyError> {
    if speedup.is_finite() && speedup >= 1.0 {
        Ok(())
    } else {
        Err(StrategyError::Speedup { found: speedup })
    }
}

/// A number as a person would write it, and as it is read again: `2.5`, but `1e308` without 308 zeros.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Number(pub(crate) f64);

impl fmt::Display for Number {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let size = self.0.abs();
        match size == 0.0 || (1e-5..1e15).contains(&size) || !size.is_finite() {
            true => write!(f, "{}", self.0),
            false => write!(f, "{:e}", self.0),
        }
    }
}
