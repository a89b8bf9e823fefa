//! `position-decay`: depth falls exponentially with the position (D3, arXiv 2503.08524).

use crate::budget::{MIN_KEPT, Number, fastest};
use crate::schedule::{ByPosition, ScheduleLength};
use crate::settings::{Asked, Definition, Settings};
use crate::{LayerSet, Strategy, StrategyError};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

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

    fn check(&self, asked: &Asked<'_>) -> Result<(), StrategyError> {
        let n_layers = asked.n_layers;
        self.schedule_length.check(asked)?;
        if self.lowest() > n_layers {
            let message = format!(
                "{} and the last are more than the {n_layers} layers; it must be at most {}",
                self.core_layers,
                n_layers - 1
            );
            return Err(asked.wrong("core-layers", message));
        }
        for (key, value) in [("alpha", self.alpha), ("start", self.start)] {
            if let Some(value) = value.filter(|value| !(0.0..1.0).contains(value)) {
                let message = format!("{} is outside 0 to 1, 1 excluded", Number(value));
                return Err(asked.wrong(key, message));
            }
        }
        match (asked.speedup, self.alpha) {
            (None, Some(_)) => return Ok(()),
            (Some(_), Some(_)) => {
                let message = "it follows from the target; give `alpha` or a speedup";
                return Err(asked.wrong("alpha", message));
            }
            (_, None) => asked.kept()?,
        };
        let (speedup, fewest) = (
            asked.target()?,
            self.fewest(n_layers, self.start.unwrap_or(0.0)),
        );
        if n_layers as f64 / speedup >= fewest - 1e-9 {
            return Ok(());
        }
        let most = (n_layers as f64 / fewest * 100.0).floor() / 100.0;
        let start = self
            .start
            .map_or(String::new(), |start| format!(" and a start of {start}"));
        let message = format!(
            "{} cannot be met with {} core layers{start}; the largest possible speedup is {}",
            Number(speedup),
            self.core_layers,
            most.min(fastest(n_layers, self.lowest()))
        );
        Err(asked.wrong("speedup", message))
    }
}

impl Settings for PositionDecay {
    fn definition(&self) -> Definition {
        Definition {
            speedup: true,
            ..Definition::new(
                "position-decay",
                "fewer layers with each position, cut out of the middle (D3, arXiv 2503.08524)",
            )
        }
    }

    fn schedule_mut(&mut self) -> Option<&mut ScheduleLength> {
        Some(&mut self.schedule_length)
    }

    fn build(&self, asked: &Asked<'_>) -> Result<Box<dyn Strategy>, StrategyError> {
        self.check(asked)?;
        let (n_layers, lowest, alpha) = (asked.n_layers, self.lowest(), self.alpha);
        let wanted = asked.speedup.map(|speedup| n_layers as f64 / speedup);
        let start = self.start.unwrap_or_else(|| {
            let flexible = (n_layers - lowest) as f64;
            let room = match wanted {
                Some(wanted) if flexible > 0.0 => (wanted - lowest as f64) / flexible,
                _ => START,
            };
            // Half of what would leave the decay no time at all.
            (room / 2.0).clamp(0.0, START)
        });
        Ok(ByPosition::boxed(
            n_layers,
            self.schedule_length,
            move |steps| {
                let mut decay = Decay {
                    n_layers,
                    lowest,
                    first: 1 + (start * steps as f64) as usize,
                    rate: alpha.unwrap_or(1.0),
                };
                if let (None, Some(wanted)) = (alpha, wanted) {
                    decay.solve(wanted, steps);
                }
                Box::new(move |step| {
                    LayerSet::from_layers((0..decay.depth(step) - 1).chain([n_layers - 1]))
                })
            },
        ))
    }
}

/// An exponential fall from all layers to the lowest number.
struct Decay {
    n_layers: usize,
    lowest: usize,
    /// The step from which on layers go.
    first: usize,
    /// Layers of a step over those of the step before.
    rate: f64,
}

impl Decay {
    fn depth(&self, step: usize) -> usize {
        let after = (step + 1).saturating_sub(self.first);
        let layers = self.n_layers as f64 * self.rate.powi(after.min(i32::MAX as usize) as i32);
        ((layers + 1e-9) as usize).clamp(self.lowest, self.n_layers)
    }

    /// Finds the largest rate whose mean is not above what is wanted.
    fn solve(&mut self, wanted: f64, steps: usize) {
        let mut suits = |rate: f64| {
            self.rate = rate;
            let total: usize = (1..=steps).map(|step| self.depth(step)).sum();
            total as f64 / steps as f64 <= wanted + 1e-9
        };
        if suits(1.0) {
            return;
        }
        let (mut low, mut high) = (0.0, 1.0);
        for _ in 0..HALVINGS {
            let middle = 0.5 * (low + high);
            match suits(middle) {
                true => low = middle,
                false => high = middle,
            }
        }
        self.rate = low;
    }
}

#[cfg(test)]
mod tests {
    use crate::{StrategySpec, testing::begun};
    use proptest::{prop_assert, proptest};

    #[test]
    fn layers_fall_by_the_rate_after_the_start() {
        let spec = "position-decay {alpha: 0.5, start: 0.4, core-layers: 2}";
        let mut strategy = begun(spec, 8, 6);
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
        let spec: StrategySpec = "position-decay@3 {start: 0.5}".parse().unwrap();
        let error = spec.validate(12).unwrap_err().to_string();
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
            let spec = format!("position-decay@{speedup} {{core-layers: {core_layers}}}");
            let mut strategy = begun(&spec, n_layers, max_new_tokens);
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
