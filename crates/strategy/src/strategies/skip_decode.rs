//! `skip-decode`: depth by position (SkipDecode, Del Corro et al. 2023, arXiv 2307.02628).

use crate::budget::{MIN_KEPT, check_depth, check_speedup, fastest, required_layers};
use crate::registry::Settings;
use crate::schedule::ScheduleLength;
use crate::strategy::check_same_model;
use crate::{BatchShape, LayerSet, Needs, StepPlan, Strategy, StrategyError};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

const NAME: &str = "skip-decode";

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
    /// The target speedup.
    #[serde(skip_serializing_if = "Option::is_none")]
    speedup: Option<f64>,
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
            speedup: None,
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
    fn ends(&self, n_layers: usize) -> Result<Ends, StrategyError> {
        check_depth(NAME, n_layers, MIN_KEPT)?;
        let setting = |key, message| StrategyError::Setting {
            strategy: NAME,
            key,
            message,
        };
        self.schedule_length.check(NAME)?;
        // A step runs the warm-up layers and at least one more.
        let lowest = self.warmup_layers.saturating_add(1).max(MIN_KEPT);
        if lowest > n_layers {
            return Err(setting(
                "warmup-layers",
                format!(
                    "{} of {n_layers} layers leave none to skip; it must be at most {}",
                    self.warmup_layers,
                    n_layers - 1
                ),
            ));
        }
        match (self.max_layers, self.min_layers) {
            (Some(max), Some(min)) => {
                self.speedup.map_or(Ok(()), check_speedup)?;
                if min < lowest {
                    return Err(setting(
                        "min-layers",
                        format!(
                            "{min} is too few with {} warm-up layers; it must be at least {lowest}",
                            self.warmup_layers
                        ),
                    ));
                }
                if max < min || max > n_layers {
                    return Err(setting(
                        "max-layers",
                        format!(
                            "{max} must lie between min-layers, {min}, and the model's {n_layers} layers"
                        ),
                    ));
                }
                Ok(Ends::Given { max, min })
            }
            (None, None) => {
                let kept = required_layers(NAME, n_layers, self.speedup)?;
                if kept < lowest {
                    return Err(setting(
                        "warmup-layers",
                        format!(
                            "{} warm-up layers and one more are more than the {kept} of {n_layers} that this speedup leaves; \
                             the largest possible speedup with them is {}",
                            self.warmup_layers,
                            fastest(n_layers, lowest)
                        ),
                    ));
                }
                let mean = n_layers as f64 / self.speedup.unwrap_or(1.0);
                Ok(Ends::FromMean { mean, lowest })
            }
            (Some(_), None) => Err(setting(
                "max-layers",
                "give min-layers too, or neither and a speedup".to_owned(),
            )),
            (None, Some(_)) => Err(setting(
                "min-layers",
                "give max-layers too, or neither and a speedup".to_owned(),
            )),
        }
    }
}

impl Settings for SkipDecode {
    fn name(&self) -> &'static str {
        NAME
    }

    fn about(&self) -> &'static str {
        "fewer layers with each position (SkipDecode, arXiv 2307.02628)"
    }

    fn speedup(&self) -> Option<f64> {
        self.speedup
    }

    fn speedup_mut(&mut self) -> Option<&mut Option<f64>> {
        Some(&mut self.speedup)
    }

    fn goes_by_position(&self) -> bool {
        true
    }

    fn expected_length_mut(&mut self) -> Option<&mut ScheduleLength> {
        let open = self.schedule_length == ScheduleLength::Expected;
        open.then_some(&mut self.schedule_length)
    }

    fn validate(&self, n_layers: usize) -> Result<(), StrategyError> {
        self.ends(n_layers).map(drop)
    }

    fn build(&self, n_layers: usize) -> Result<Box<dyn Strategy>, StrategyError> {
        Ok(Box::new(Schedule {
            n_layers,
            warmup_layers: self.warmup_layers,
            schedule_length: self.schedule_length,
            ends: self.ends(n_layers)?,
            ramp: Ramp::flat(n_layers),
        }))
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

/// The strategy over one batch after another. Before the first, every layer runs.
struct Schedule {
    n_layers: usize,
    warmup_layers: usize,
    schedule_length: ScheduleLength,
    ends: Ends,
    ramp: Ramp,
}

impl Schedule {
    fn layers(&self, n: usize) -> LayerSet {
        let top = n - self.warmup_layers;
        LayerSet::from_layers((0..self.warmup_layers).chain(self.n_layers - top..self.n_layers))
    }
}

impl Strategy for Schedule {
    fn needs(&self) -> Needs {
        Needs::default()
    }

    fn begin(&mut self, shape: &BatchShape) -> Result<(), StrategyError> {
        check_same_model(self.n_layers, shape)?;
        let steps = self.schedule_length.steps(shape.max_new_tokens);
        self.ramp = match self.ends {
            Ends::Given { max, min } => Ramp { max, min, steps },
            Ends::FromMean { mean, lowest } => Ramp::with_mean(mean, lowest, self.n_layers, steps),
        };
        Ok(())
    }

    fn plan(&mut self, step: usize) -> StepPlan {
        StepPlan::fixed(self.layers(self.ramp.at(step)))
    }

    fn reachable(&self) -> LayerSet {
        self.layers(self.ramp.at(1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::{prop_assert, prop_assume, proptest};

    fn begun(settings: &SkipDecode, n_layers: usize, max_new_tokens: usize) -> Box<dyn Strategy> {
        let mut strategy = settings.build(n_layers).unwrap();
        strategy
            .begin(&BatchShape {
                prompt_lens: vec![3],
                n_layers,
                max_new_tokens,
            })
            .unwrap();
        strategy
    }

    #[test]
    fn given_ends_make_the_line_between_them() {
        let settings = SkipDecode {
            max_layers: Some(6),
            min_layers: Some(3),
            ..SkipDecode::default()
        };
        let mut strategy = begun(&settings, 8, 5);
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
        let settings = SkipDecode {
            speedup: Some(2.0),
            ..SkipDecode::default()
        };
        for max_new_tokens in [0, 1, 2] {
            assert_eq!(begun(&settings, 12, max_new_tokens).plan(1).layers.len(), 6);
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
            let settings = SkipDecode { speedup: Some(speedup), warmup_layers, ..SkipDecode::default() };
            let mut strategy = begun(&settings, n_layers, max_new_tokens);
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
