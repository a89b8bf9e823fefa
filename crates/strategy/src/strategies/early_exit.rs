//! `early-exit`: each token leaves at the first layer at which the model is sure of it
//! (CALM, Schuster et al. 2022, arXiv 2207.07061).

use crate::budget::{MIN_KEPT, check_depth, check_speedup, fastest, kept_layers};
use crate::registry::Settings;
use crate::strategy::check_same_model;
use crate::strict::Named;
use crate::{
    BatchShape, ExitSignal, Knob, KvFill, LayerSet, Needs, StepPlan, Strategy, StrategyError,
    Verdict,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

const NAME: &str = "early-exit";

/// After a check layer a row exits if the signal passes the threshold; the final norm and the LM head then read its
/// hidden state, and the skipped layers get their keys and values from it (`propagate`, arXiv 2207.07061).
///
/// A row exits if `softmax-margin`, `max-prob` or `cosine` is greater than the threshold, or `entropy` (of its largest value,
/// ln(vocabulary)) smaller. The ends are exact whatever a model computes: a threshold of 1 never exits and 0 exits at the
/// first check; for `entropy` 0 never exits and 1 exits at the first check. A signal that is not a number exits only where
/// the threshold always does.
///
/// With a target speedup and no threshold, the threshold is calibrated before the run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct EarlyExit {
    /// What is compared to the threshold.
    #[serde(deserialize_with = "crate::strict::named")]
    signal: ExitSignal,
    /// The target speedup.
    #[serde(skip_serializing_if = "Option::is_none")]
    speedup: Option<f64>,
    /// The threshold, in 0..1; found by calibration if not given.
    #[serde(skip_serializing_if = "Option::is_none")]
    threshold: Option<f64>,
    /// Layers that run before the first check.
    first_exit: usize,
    /// Layers from one check to the next. Every signal but `cosine` reads the LM head at each check, which can cost
    /// as much as several layers: a larger interval may be faster though its rows exit later.
    check_every: usize,
    /// Lets the threshold fall over the answer, from its value to nine tenths of it: at token t of N it is
    /// threshold (0.9 + 0.1 exp(-decay t / N)), as in CALM's released code, where `decay` is 4. Not for `entropy`.
    #[serde(skip_serializing_if = "Option::is_none")]
    decay: Option<f64>,
}

impl Default for EarlyExit {
    fn default() -> Self {
        Self {
            signal: ExitSignal::default(),
            speedup: None,
            threshold: None,
            first_exit: 2,
            check_every: 1,
            decay: None,
        }
    }
}

impl Named for ExitSignal {
    const ALL: &'static [Self] = &Self::ALL;

    fn name(self) -> &'static str {
        self.name()
    }
}

impl Settings for EarlyExit {
    fn name(&self) -> &'static str {
        NAME
    }

    fn variants(&self) -> Vec<&'static str> {
        ExitSignal::ALL.iter().map(|signal| signal.name()).collect()
    }

    fn variant(&self) -> Option<&'static str> {
        Some(self.signal.name())
    }

    fn set_variant(&mut self, variant: &'static str) {
        self.signal = ExitSignal::by_name(variant).unwrap_or_default();
    }

    fn speedup(&self) -> Option<f64> {
        self.speedup
    }

    fn speedup_mut(&mut self) -> Option<&mut Option<f64>> {
        Some(&mut self.speedup)
    }

    fn threshold(&self) -> Option<f64> {
        self.threshold
    }

    fn threshold_mut(&mut self) -> Option<&mut Option<f64>> {
        Some(&mut self.threshold)
    }

    fn knob(&self) -> Option<Knob> {
        (self.speedup.is_some() && self.threshold.is_none()).then_some(Knob {
            lo: 0.0,
            hi: 1.0,
            rises_with_depth: self.signal != ExitSignal::Entropy,
        })
    }

    fn validate(&self, n_layers: usize) -> Result<(), StrategyError> {
        check_depth(NAME, n_layers, MIN_KEPT)?;
        let setting = |key, message| StrategyError::Setting {
            strategy: NAME,
            key,
            message,
        };
        if let Some(threshold) = self.threshold.filter(|t| !(0.0..=1.0).contains(t)) {
            return Err(setting(
                "threshold",
                format!("{threshold} is outside 0 to 1"),
            ));
        }
        if !(1..n_layers).contains(&self.first_exit) {
            return Err(setting(
                "first-exit",
                format!(
                    "{} of {n_layers} layers before the first check; it must be 1 to {}, so that a layer is left to skip",
                    self.first_exit,
                    n_layers - 1
                ),
            ));
        }
        if self.check_every == 0 {
            return Err(setting(
                "check-every",
                "0 layers between checks; it must be at least 1".to_owned(),
            ));
        }
        if let Some(decay) = self.decay {
            if !decay.is_finite() || decay < 0.0 {
                return Err(setting("decay", format!("{decay} is not 0 or more")));
            }
            if self.signal == ExitSignal::Entropy {
                return Err(setting(
                    "decay",
                    "a falling threshold makes `entropy` exit later, not earlier; leave it out, or use another signal"
                        .to_owned(),
                ));
            }
        }
        match (self.speedup, self.threshold) {
            (Some(speedup), Some(_)) => check_speedup(speedup),
            (None, Some(_)) => Ok(()),
            (Some(speedup), None) => {
                kept_layers(n_layers, speedup)?;
                if speedup > n_layers as f64 / self.first_exit as f64 + 1e-9 {
                    return Err(setting(
                        "first-exit",
                        format!(
                            "every token runs {} of {n_layers} layers, so speedup {speedup} cannot be met; \
                             the largest possible speedup with it is {}",
                            self.first_exit,
                            fastest(n_layers, self.first_exit)
                        ),
                    ));
                }
                Ok(())
            }
            (None, None) => Err(StrategyError::MissingSpeedup { strategy: NAME }),
        }
    }

    fn build(&self, n_layers: usize) -> Result<Box<dyn Strategy>, StrategyError> {
        self.validate(n_layers)?;
        let threshold = self
            .threshold
            .ok_or(StrategyError::NotCalibrated { strategy: NAME })?;
        // The last layer is no check: there is nothing left to skip.
        let checks = (self.first_exit - 1..n_layers - 1).step_by(self.check_every);
        Ok(Box::new(Exits {
            n_layers,
            signal: self.signal,
            threshold,
            decay: self.decay,
            max_new_tokens: 1,
            current: threshold,
            plan: StepPlan {
                layers: LayerSet::full(n_layers),
                checks: LayerSet::from_layers(checks),
            },
        }))
    }
}

/// The strategy with its threshold; rows are independent, and of a step only its threshold is kept.
struct Exits {
    n_layers: usize,
    signal: ExitSignal,
    threshold: f64,
    decay: Option<f64>,
    max_new_tokens: usize,
    /// The threshold of this step.
    current: f64,
    plan: StepPlan,
}

impl Exits {
    fn is_sure(&self, signal: f64) -> bool {
        let (never, always, passes) = match self.signal {
            ExitSignal::SoftmaxMargin | ExitSignal::MaxProb | ExitSignal::Cosine => {
                (1.0, 0.0, signal > self.current)
            }
            ExitSignal::Entropy => (0.0, 1.0, signal < self.current),
        };
        // A saturated softmax gives exactly 1, and a cosine may round to more or be negative.
        self.threshold == always || self.threshold != never && passes
    }
}

impl Strategy for Exits {
    fn needs(&self) -> Needs {
        Needs {
            signal: Some(self.signal),
            kv_fill: KvFill::Propagate,
        }
    }

    fn begin(&mut self, shape: &BatchShape) -> Result<(), StrategyError> {
        self.max_new_tokens = shape.max_new_tokens.max(1);
        check_same_model(self.n_layers, shape)
    }

    fn plan(&mut self, step: usize) -> StepPlan {
        let done = step as f64 / self.max_new_tokens as f64;
        let share = self
            .decay
            .map_or(1.0, |decay| 0.9 + 0.1 * (-decay * done).exp());
        self.current = self.threshold * share;
        self.plan
    }

    fn observe(&mut self, _layer: usize, _row: usize, signal: f64) -> Verdict {
        if self.is_sure(signal) {
            Verdict::Exit
        } else {
            Verdict::Continue
        }
    }

    fn reachable(&self) -> LayerSet {
        self.plan.layers
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(signal: ExitSignal, threshold: f64) -> EarlyExit {
        EarlyExit {
            signal,
            threshold: Some(threshold),
            ..EarlyExit::default()
        }
    }

    fn verdict(signal: ExitSignal, threshold: f64, value: f64) -> Verdict {
        let mut strategy = with(signal, threshold).build(4).unwrap();
        strategy.observe(1, 0, value)
    }

    #[test]
    fn the_ends_of_the_threshold_are_exact() {
        let values = [-1.0, -0.1, 0.0, 1e-300, 0.5, 1.0, 1.000_000_1];
        for signal in ExitSignal::ALL {
            let (never, always) = match signal {
                ExitSignal::Entropy => (0.0, 1.0),
                _ => (1.0, 0.0),
            };
            for value in values {
                assert_eq!(verdict(signal, never, value), Verdict::Continue, "{signal}");
                assert_eq!(verdict(signal, always, value), Verdict::Exit, "{signal}");
            }
        }
    }

    #[test]
    fn a_decaying_threshold_falls_to_nine_tenths() {
        let settings = EarlyExit {
            decay: Some(4.0),
            ..with(ExitSignal::MaxProb, 0.8)
        };
        let mut strategy = settings.build(4).unwrap();
        let shape = BatchShape {
            prompt_lens: vec![1],
            n_layers: 4,
            max_new_tokens: 100,
        };
        strategy.begin(&shape).unwrap();
        let mut exits = |step: usize, value: f64| {
            strategy.plan(step);
            strategy.observe(1, 0, value) == Verdict::Exit
        };
        // 0.8 (0.9 + 0.1 e^-4t/100): 0.7969 at 1, 0.7309 at 50, 0.7215 at 100.
        assert!(!exits(1, 0.7968) && exits(1, 0.7970));
        assert!(!exits(50, 0.7308) && exits(50, 0.7309));
        assert!(!exits(100, 0.7214) && exits(100, 0.7215));
        let never = EarlyExit {
            decay: Some(4.0),
            ..with(ExitSignal::MaxProb, 1.0)
        };
        let mut never = never.build(4).unwrap();
        never.begin(&shape).unwrap();
        never.plan(100);
        assert_eq!(never.observe(1, 0, 1.0), Verdict::Continue);
        let entropy = EarlyExit {
            decay: Some(4.0),
            ..with(ExitSignal::Entropy, 0.5)
        };
        assert!(entropy.validate(4).is_err());
    }

    #[test]
    fn between_them_the_comparison_is_strict() {
        for signal in [
            ExitSignal::SoftmaxMargin,
            ExitSignal::MaxProb,
            ExitSignal::Cosine,
        ] {
            assert_eq!(verdict(signal, 0.9, 0.9), Verdict::Continue);
            assert_eq!(verdict(signal, 0.9, 0.91), Verdict::Exit);
            assert_eq!(verdict(signal, 0.9, f64::NAN), Verdict::Continue);
        }
        assert_eq!(verdict(ExitSignal::Entropy, 0.2, 0.2), Verdict::Continue);
        assert_eq!(verdict(ExitSignal::Entropy, 0.2, 0.19), Verdict::Exit);
        assert_eq!(
            verdict(ExitSignal::Entropy, 0.2, f64::NAN),
            Verdict::Continue
        );
    }

    #[test]
    fn checks_start_after_first_exit_and_end_before_the_last_layer() {
        let checks = |first_exit, check_every| {
            let settings = EarlyExit {
                first_exit,
                check_every,
                ..with(ExitSignal::Cosine, 0.5)
            };
            let plan = settings.build(6).unwrap().plan(1);
            assert_eq!(plan.layers, LayerSet::full(6));
            plan.checks.to_vec()
        };
        assert_eq!(checks(2, 1), [1, 2, 3, 4]);
        assert_eq!(checks(1, 2), [0, 2, 4]);
        assert_eq!(checks(2, 2), [1, 3]);
        assert_eq!(checks(5, 1), [4]);
        assert_eq!(checks(2, usize::MAX), [1]);
    }

    #[test]
    fn the_knob_is_there_until_it_is_set() {
        let mut settings = EarlyExit {
            speedup: Some(2.0),
            ..EarlyExit::default()
        };
        assert!(settings.knob().is_some_and(|knob| knob.rises_with_depth));
        settings.signal = ExitSignal::Entropy;
        assert!(settings.knob().is_some_and(|knob| !knob.rises_with_depth));
        assert_eq!(
            settings.build(12).err(),
            Some(StrategyError::NotCalibrated { strategy: NAME })
        );
        settings.threshold = Some(0.4);
        assert_eq!(settings.knob(), None);
        assert!(settings.build(12).is_ok());
    }
}
