//! `skip-decode`: depth by position (SkipDecode, Del Corro et al. 2023, arXiv 2307.02628).

use crate::budget::{MIN_KEPT, check_speedup, fastest};
use crate::schedule::{ByPosition, ScheduleLength};
use crate::settings::{Asked, Definition, Settings};
use crate::{LayerSet, Strategy, StrategyError};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Every row runs the same number of layers n at a position, and n falls linearly over the generated tokens. A step runs
/// the lowest `warmup-layers` and the topmost of the n that remain, so each step's layers are a subset of the step's
/// before: every key and value that is read was computed (arXiv 2307.02628).
///
/// The ramp spans the decode steps `1..schedule-length`, since token 0 comes from the full-depth prefill; later steps stay
/// at its end. From a target, the ramp's ends are chosen such that its mean is L / speedup as near as whole layers
/// allow, with an upper end of about twice the lower one where the depth has room for it. An output that ends before the
/// schedule does has therefore run more layers than the target asks for, and a longer one fewer; `schedule-length: expected`
/// lays the ramp over the mean length of the full network's answers to the calibration prompts instead.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct SkipDecode {
    /// Layers at the bottom that every step runs.
    warmup_layers: usize,
    /// Generated tokens over which the depth falls.
    #[serde(skip_serializing_if = "ScheduleLength::is_default")]
    schedule_length: ScheduleLength,
    /// Layers of the first step, instead of what follows from the target; only with `min-layers`.
    #[serde(skip_serializing_if = "Option::is_none")]
    max_layers: Option<usize>,
    /// Layers of the last step, instead of what follows from the target; only with `max-layers`.
    #[serde(skip_serializing_if = "Option::is_none")]
    min_layers: Option<usize>,
}

impl Default for SkipDecode {
    fn default() -> Self {
        Self {
            warmup_layers: 1,
            schedule_length: ScheduleLength::MaxNew,
            max_layers: None,
            min_layers: None,
        }
    }
}

/// How the ends of the ramp are found.
#[derive(Clone, Copy, Debug)]
enum Ends {
    Given { max: usize, min: usize },
    FromMean { mean: f64, lowest: usize },
}

impl SkipDecode {
    fn ends(&self, asked: &Asked<'_>) -> Result<Ends, StrategyError> {
        let n_layers = asked.n_layers;
        self.schedule_length.check(asked)?;
        // A step runs the warm-up layers and at least one more.
        let lowest = self.warmup_layers.saturating_add(1).max(MIN_KEPT);
        if lowest > n_layers {
            let message = format!(
                "{} of {n_layers} layers leave none to skip; it must be at most {}",
                self.warmup_layers,
                n_layers - 1
            );
            return Err(asked.wrong("warmup-layers", message));
        }
        let (key, message) = match (self.max_layers, self.min_layers) {
            (Some(_), Some(min)) if min < lowest => (
                "min-layers",
                format!(
                    "{min} is too few with {} warm-up layers; it must be at least {lowest}",
                    self.warmup_layers
                ),
            ),
            (Some(max), Some(min)) if max < min || max > n_layers => (
                "max-layers",
                format!(
                    "{max} must lie between min-layers, {min}, and the model's {n_layers} layers"
                ),
            ),
            (Some(max), Some(min)) => {
                asked.speedup.map_or(Ok(()), check_speedup)?;
                return Ok(Ends::Given { max, min });
            }
            (None, None) => {
                let kept = asked.kept()?;
                if kept >= lowest {
                    let mean = n_layers as f64 / asked.target()?;
                    return Ok(Ends::FromMean { mean, lowest });
                }
                let message = format!(
                    "{} warm-up layers and one more are more than the {kept} of {n_layers} that this speedup leaves; the \
                     largest possible speedup with them is {}",
                    self.warmup_layers,
                    fastest(n_layers, lowest)
                );
                ("warmup-layers", message)
            }
            (Some(_), None) => (
                "max-layers",
                "give min-layers too, or neither and a speedup".to_owned(),
            ),
            (None, Some(_)) => (
                "min-layers",
                "give max-layers too, or neither and a speedup".to_owned(),
            ),
        };
        Err(asked.wrong(key, message))
    }
}

impl Settings for SkipDecode {
    fn definition(&self) -> Definition {
        Definition {
            speedup: true,
            ..Definition::new(
                "skip-decode",
                "fewer layers with each position (SkipDecode, arXiv 2307.02628)",
            )
        }
    }

    fn schedule_mut(&mut self) -> Option<&mut ScheduleLength> {
        Some(&mut self.schedule_length)
    }

    fn build(&self, asked: &Asked<'_>) -> Result<Box<dyn Strategy>, StrategyError> {
        let (n_layers, warmup) = (asked.n_layers, self.warmup_layers);
        let ends = self.ends(asked)?;
        Ok(ByPosition::boxed(
            n_layers,
            self.schedule_length,
            move |steps| {
                let ramp = match ends {
                    Ends::Given { max, min } => Ramp { max, min, steps },
                    Ends::FromMean { mean, lowest } => {
                        Ramp::with_mean(mean, lowest, n_layers, steps)
                    }
                };
                Box::new(move |step| {
                    let top = ramp.at(step) - warmup;
                    LayerSet::from_layers((0..warmup).chain(n_layers - top..n_layers))
                })
            },
        ))
    }
}

/// A straight line in whole layers, from `max` at step 1 down to `min` at step `steps`.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Ramp {
    max: usize,
    min: usize,
    steps: usize,
}

impl Ramp {
    fn flat(n_layers: usize) -> Self {
        Self {
            max: n_layers,
            min: n_layers,
            steps: 1,
        }
    }

    /// Layers at a decode step: `round((1 - u) max + u min)`, halves up, where u goes from 0 to 1.
    fn at(&self, step: usize) -> usize {
        let span = self.steps - 1;
        if span == 0 {
            return self.max;
        }
        let left = self.steps.saturating_sub(step.max(1));
        let twice = 2 * (self.max - self.min) * left;
        self.min + (twice + span) / (2 * span)
    }

    fn mean(&self) -> f64 {
        let total: usize = (1..=self.steps).map(|step| self.at(step)).sum();
        total as f64 / self.steps as f64
    }

    /// The ramp whose mean is nearest to `mean`, of about the width that makes `max` twice `min`.
    /// Needs `lowest <= mean <= n_layers`.
    fn with_mean(mean: f64, lowest: usize, n_layers: usize, steps: usize) -> Self {
        let room = 2.0 * (n_layers as f64 - mean).min(mean - lowest as f64);
        let wide = match steps {
            1 => 0,
            _ => (2.0 * mean / 3.0).min(room).max(0.0) as usize,
        };
        // A width moves the mean by half layers, so its neighbours are tried too.
        let mut best = Self::flat(n_layers);
        let mut best_miss = f64::INFINITY;
        for width in [wide, wide.saturating_sub(1), wide + 1] {
            if lowest + width > n_layers {
                continue;
            }
            let above = Self {
                max: width,
                min: 0,
                steps,
            };
            let min = (mean - above.mean()).round() as usize;
            let min = min.clamp(lowest, n_layers - width);
            let ramp = Self {
                max: min + width,
                min,
                steps,
            };
            let miss = (ramp.mean() - mean).abs();
            if miss < best_miss - 1e-9 {
                (best, best_miss) = (ramp, miss);
            }
        }
        best
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::begun;
    use proptest::{prop_assert, prop_assume, proptest};

    #[test]
    fn given_ends_make_the_line_between_them() {
        let mut strategy = begun("skip-decode {max-layers: 6, min-layers: 3}", 8, 5);
        let sets: Vec<_> = (1..=6).map(|t| strategy.plan(t).layers.to_vec()).collect();
        assert_eq!(sets[0], [0, 3, 4, 5, 6, 7]);
        assert_eq!(sets[1], [0, 4, 5, 6, 7]);
        assert_eq!(sets[2], [0, 5, 6, 7]);
        assert_eq!(sets[3], [0, 6, 7]);
        assert_eq!(sets[4], sets[3], "after the schedule");
        assert_eq!(strategy.reachable().to_vec(), sets[0]);
    }

    #[test]
    fn the_upper_end_is_about_twice_the_lower() {
        let ends = |n_layers: usize, speedup: f64| {
            let ramp = Ramp::with_mean(n_layers as f64 / speedup, 2, n_layers, 255);
            (ramp.max, ramp.min)
        };
        assert_eq!(ends(24, 2.0), (16, 8));
        assert_eq!(ends(32, 2.0), (21, 11));
        assert_eq!(ends(12, 1.0), (12, 12));
        assert_eq!(ends(12, 6.0), (2, 2));
    }

    #[test]
    fn a_run_of_one_token_has_a_plan() {
        for max_new_tokens in [0, 1, 2] {
            let plan = begun("skip-decode@2", 12, max_new_tokens).plan(1);
            assert_eq!(plan.layers.len(), 6);
        }
    }

    proptest! {
        #[test]
        fn sets_are_nested_and_their_mean_meets_the_target(
            n_layers in 2..=64usize,
            share in 0.0..=1.0f64,
            warmup_layers in 0..4usize,
            max_new_tokens in 1..200usize,
        ) {
            let lowest = (warmup_layers + 1).max(2);
            prop_assume!(lowest <= n_layers);
            let speedup = 1.0 + share * (n_layers as f64 / lowest as f64 - 1.0);
            let spec = format!("skip-decode@{speedup} {{warmup-layers: {warmup_layers}}}");
            let mut strategy = begun(&spec, n_layers, max_new_tokens);
            let steps = (max_new_tokens - 1).max(1);
            let mut before = strategy.reachable();
            prop_assert!(before.is_subset(&LayerSet::full(n_layers)));
            let mut total = 0;
            for step in 1..=steps + 3 {
                let layers = strategy.plan(step).layers;
                prop_assert!(layers.is_subset(&before));
                prop_assert!(layers.len() >= lowest);
                prop_assert!((0..warmup_layers).all(|layer| layers.contains(layer)));
                prop_assert!(layers.contains(n_layers - 1));
                total += if step <= steps { layers.len() } else { 0 };
                before = layers;
            }
            let miss = total as f64 / steps as f64 - n_layers as f64 / speedup;
            prop_assert!(miss.abs() <= 0.5 + 1e-6, "mean misses by {miss}");
        }
    }
}
