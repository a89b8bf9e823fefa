//! `position-decay`: depth falls exponentially with the position (D3, arXiv 2503.08524).

use crate::budget::{MIN_KEPT, check_depth, check_speedup, fastest, kept_layers};
use crate::registry::Settings;
use crate::schedule::ScheduleLength;
use crate::strategy::check_same_model;
use crate::{BatchShape, LayerSet, Needs, StepPlan, Strategy, StrategyError};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

const NAME: &str = "position-decay";
/// Share of the schedule before the decay, where the target leaves room for it.
const START: f64 = 0.2;
/// Halvings when the rate is sought.
const HALVINGS: usize = 60;

/// From a share of the answer on, token i after it runs floor(L alpha^i) layers (D3, arXiv 2503.08524). The lowest layers
/// and the last are kept throughout; what goes is cut out of the flexible middle, from its upper end down, so each step's
/// layers are a subset of the step's before and every key and value that is read was computed.
///
/// From a target, alpha is found such that the mean over the schedule is L / speedup.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct PositionDecay {
    /// The target speedup.
    #[serde(skip_serializing_if = "Option::is_none")]
    speedup: Option<f64>,
    /// Layers that a token runs over those of the token before it, in 0..1, instead of what follows from the target.
    #[serde(skip_serializing_if = "Option::is_none")]
    alpha: Option<f64>,
    /// Share of the schedule before the decay starts, in 0..1; a fifth if not given, or less where the target needs it.
    #[serde(skip_serializing_if = "Option::is_none")]
    start: Option<f64>,
    /// Lowest layers that every step runs; every step runs the last layer as well.
    core_layers: usize,
    /// Generated tokens over which the depth falls.
    #[serde(skip_serializing_if = "ScheduleLength::is_default")]
    schedule_length: ScheduleLength,
}

impl Default for PositionDecay {
    fn default() -> Self {
        Self {
            speedup: None,
            alpha: None,
            start: None,
            core_layers: 1,
            schedule_length: ScheduleLength::MaxNew,
        }
    }
}

impl PositionDecay {
    fn lowest(&self) -> usize {
        self.core_layers.saturating_add(1).max(MIN_KEPT)
    }

    /// Mean layers of the fastest schedule with this start.
    fn fewest(&self, n_layers: usize, start: f64) -> f64 {
        start * n_layers as f64 + (1.0 - start) * self.lowest() as f64
    }
}

impl Settings for PositionDecay {
    fn name(&self) -> &'static str {
        NAME
    }

    fn about(&self) -> &'static str {
        "fewer layers with each position, cut out of the middle (D3, arXiv 2503.08524)"
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
        check_depth(NAME, n_layers, MIN_KEPT)?;
        self.schedule_length.check(NAME)?;
        let setting = |key, message| StrategyError::Setting {
            strategy: NAME,
            key,
            message,
        };
        if self.lowest() > n_layers {
            return Err(setting(
                "core-layers",
                format!(
                    "{} and the last are more than the {n_layers} layers; it must be at most {}",
                    self.core_layers,
                    n_layers - 1
                ),
            ));
        }
        for (key, value) in [("alpha", self.alpha), ("start", self.start)] {
            if let Some(value) = value.filter(|value| !(0.0..1.0).contains(value)) {
                return Err(setting(
                    key,
                    format!("{value} is outside 0 to 1, 1 excluded"),
                ));
            }
        }
        match (self.speedup, self.alpha) {
            (None, None) => Err(StrategyError::MissingSpeedup { strategy: NAME }),
            (None, Some(_)) => Ok(()),
            (Some(_), Some(_)) => Err(setting(
                "alpha",
                "it follows from the target; give `alpha` or a speedup".to_owned(),
            )),
            (Some(speedup), None) => {
                check_speedup(speedup)?;
                kept_layers(n_layers, speedup)?;
                let fewest = self.fewest(n_layers, self.start.unwrap_or(0.0));
                if n_layers as f64 / speedup < fewest - 1e-9 {
                    let most = (n_layers as f64 / fewest * 100.0).floor() / 100.0;
                    return Err(setting(
                        "speedup",
                        format!(
                            "{speedup} cannot be met with {} core layers{}; the largest possible speedup is {}",
                            self.core_layers,
                            self.start
                                .map_or(String::new(), |start| format!(" and a start of {start}")),
                            most.min(fastest(n_layers, self.lowest()))
                        ),
                    ));
                }
                Ok(())
            }
        }
    }

    fn build(&self, n_layers: usize) -> Result<Box<dyn Strategy>, StrategyError> {
        self.validate(n_layers)?;
        let wanted = self.speedup.map(|speedup| n_layers as f64 / speedup);
        let start = self.start.unwrap_or_else(|| {
            let lowest = self.lowest() as f64;
            let room = match wanted {
                Some(wanted) if n_layers as f64 > lowest => {
                    (wanted - lowest) / (n_layers as f64 - lowest)
                }
                _ => START,
            };
            // Half of what would leave the decay no time at all.
            (room / 2.0).clamp(0.0, START)
        });
        Ok(Box::new(Decay {
            n_layers,
            lowest: self.lowest(),
            start,
            alpha: self.alpha,
            wanted,
            schedule_length: self.schedule_length,
            first: 1,
            rate: 1.0,
        }))
    }
}

struct Decay {
    n_layers: usize,
    lowest: usize,
    start: f64,
    alpha: Option<f64>,
    /// Mean layers over the schedule, where alpha follows from it.
    wanted: Option<f64>,
    schedule_length: ScheduleLength,
    /// The step from which on layers go.
    first: usize,
    /// The alpha of this batch.
    rate: f64,
}

impl Decay {
    fn depth(&self, rate: f64, step: usize) -> usize {
        let after = (step + 1).saturating_sub(self.first);
        let layers = self.n_layers as f64 * rate.powi(after.min(i32::MAX as usize) as i32);
        ((layers + 1e-9) as usize).clamp(self.lowest, self.n_layers)
    }

    fn mean(&self, rate: f64, steps: usize) -> f64 {
        let total: usize = (1..=steps).map(|step| self.depth(rate, step)).sum();
        total as f64 / steps as f64
    }

    /// The largest rate whose mean is not above what is wanted.
    fn solve(&self, wanted: f64, steps: usize) -> f64 {
        let (mut low, mut high) = (0.0, 1.0);
        if self.mean(1.0, steps) <= wanted + 1e-9 {
            return 1.0;
        }
        for _ in 0..HALVINGS {
            let middle = 0.5 * (low + high);
            match self.mean(middle, steps) <= wanted + 1e-9 {
                true => low = middle,
                false => high = middle,
            }
        }
        low
    }

    fn layers(&self, depth: usize) -> LayerSet {
        LayerSet::from_layers((0..depth - 1).chain([self.n_layers - 1]))
    }
}

impl Strategy for Decay {
    fn needs(&self) -> Needs {
        Needs::default()
    }

    fn begin(&mut self, shape: &BatchShape) -> Result<(), StrategyError> {
        check_same_model(self.n_layers, shape)?;
        let steps = self.schedule_length.steps(shape.max_new_tokens);
        self.first = 1 + (self.start * steps as f64) as usize;
        self.rate = match (self.alpha, self.wanted) {
            (Some(alpha), _) => alpha,
            (None, Some(wanted)) => self.solve(wanted, steps),
            (None, None) => 1.0,
        };
        Ok(())
    }

    fn plan(&mut self, step: usize) -> StepPlan {
        StepPlan::fixed(self.layers(self.depth(self.rate, step)))
    }

    fn reachable(&self) -> LayerSet {
        self.layers(self.depth(self.rate, 1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::{prop_assert, proptest};

    fn begun(
        settings: &PositionDecay,
        n_layers: usize,
        max_new_tokens: usize,
    ) -> Box<dyn Strategy> {
        let mut strategy = settings.build(n_layers).unwrap();
        let shape = BatchShape {
            prompt_lens: vec![3],
            n_layers,
            max_new_tokens,
        };
        strategy.begin(&shape).unwrap();
        strategy
    }

    #[test]
    fn layers_fall_by_the_rate_after_the_start() {
        let settings = PositionDecay {
            alpha: Some(0.5),
            start: Some(0.4),
            core_layers: 2,
            ..PositionDecay::default()
        };
        let mut strategy = begun(&settings, 8, 6);
        // Five steps, the first two of which run all layers.
        let sets: Vec<_> = (1..=6)
            .map(|step| strategy.plan(step).layers.to_vec())
            .collect();
        assert_eq!(sets[1].len(), 8);
        assert_eq!(sets[2], [0, 1, 2, 7]);
        assert_eq!(sets[3], [0, 1, 7], "2 of 8, and 3 are core");
        assert_eq!(sets[5], sets[3]);
    }

    #[test]
    fn what_cannot_be_met_is_refused() {
        let settings = PositionDecay {
            speedup: Some(3.0),
            start: Some(0.5),
            ..PositionDecay::default()
        };
        let error = settings.validate(12).unwrap_err().to_string();
        assert!(
            error.contains("the largest possible speedup is 1.71"),
            "{error}"
        );
    }

    proptest! {
        #[test]
        fn sets_are_nested_and_no_slower_than_the_target(
            n_layers in 4..=64usize,
            share in 0.0..=1.0f64,
            core_layers in 0..3usize,
            max_new_tokens in 2..200usize,
        ) {
            let lowest = (core_layers + 1).max(2);
            let speedup = 1.0 + share * (n_layers as f64 / lowest as f64 - 1.0);
            let settings = PositionDecay { speedup: Some(speedup), core_layers, ..PositionDecay::default() };
            let mut strategy = begun(&settings, n_layers, max_new_tokens);
            let steps = max_new_tokens - 1;
            let mut before = strategy.reachable();
            let mut total = 0;
            for step in 1..=steps {
                let layers = strategy.plan(step).layers;
                prop_assert!(layers.is_subset(&before));
                prop_assert!(layers.len() >= lowest && layers.contains(n_layers - 1));
                prop_assert!((0..core_layers).all(|layer| layers.contains(layer)));
                total += layers.len();
                before = layers;
            }
            let mean = total as f64 / steps as f64;
            let wanted = n_layers as f64 / speedup;
            prop_assert!(mean <= wanted + 1e-6, "{mean} layers, {wanted} wanted");
        }
    }
}
