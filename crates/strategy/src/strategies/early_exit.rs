//! `early-exit`: each token leaves at the first layer at which the model is sure of it
//! (CALM, Schuster et al. 2022, arXiv 2207.07061).

use crate::budget::{MIN_KEPT, check_depth, check_speedup, fastest, kept_layers};
use crate::exits::{Exits, check_fill};
use crate::registry::Settings;
use crate::strict::Named;
use crate::{BatchMode, ExitSignal, Knob, KvFill, Strategy, StrategyError};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

const NAME: &str = "early-exit";
/// Published settings.
const CALM: &str = "calm";
const LITE: &str = "lite";

/// After a check layer a row exits if the signal passes the threshold; the final norm and the LM head then read its
/// hidden state, and the skipped layers get their keys and values as `kv-fill` says (`propagate` in arXiv 2207.07061).
///
/// A row exits if `softmax-margin`, `max-prob` or `cosine` is greater than the threshold, or `entropy` (of its largest value,
/// ln(vocabulary)) smaller. The ends are exact whatever a model computes: a threshold of 1 never exits and 0 exits at the
/// first check; for `entropy` 0 never exits and 1 exits at the first check. A signal that is not a number exits only where
/// the threshold always does. `patience` exits when the most likely token has stayed the same over enough checks in a row
/// (PABEE, arXiv 2006.04152): its threshold is the share of all checks that must agree.
///
/// With a target speedup and no threshold, the threshold is calibrated before the run.
///
/// Two variants of the short form are published settings: `calm` is `{signal: softmax-margin, decay: 4}`, the defaults of
/// CALM's released code, and `lite` is `{signal: max-prob, first-exit: 8, check-every: 4}`, the exits of LITE
/// (arXiv 2310.18581) in Llama-2-7B.
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
    /// Checks in a row that must agree with the one before them; only for `patience`, instead of a threshold, which is
    /// the share of the checks that must.
    #[serde(skip_serializing_if = "Option::is_none")]
    patience: Option<usize>,
    /// A threshold for each number of layers after which a token may exit, instead of `threshold`, `first-exit` and
    /// `check-every`: `{8: 0.95, 12: 0.9}` (LITE, arXiv 2310.18581).
    #[serde(skip_serializing_if = "Option::is_none")]
    layer_thresholds: Option<BTreeMap<usize, f64>>,
    /// What is done about the keys and values of the layers that a token skips.
    #[serde(
        deserialize_with = "crate::strict::named",
        skip_serializing_if = "is_propagate"
    )]
    kv_fill: KvFill,
    /// What becomes of rows that exit before others.
    #[serde(
        deserialize_with = "crate::strict::named",
        skip_serializing_if = "is_compact"
    )]
    batch_mode: BatchMode,
}

fn is_propagate(fill: &KvFill) -> bool {
    *fill == KvFill::Propagate
}

fn is_compact(mode: &BatchMode) -> bool {
    *mode == BatchMode::Compact
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
            patience: None,
            layer_thresholds: None,
            kv_fill: KvFill::Propagate,
            batch_mode: BatchMode::Compact,
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

    fn about(&self) -> &'static str {
        "each token leaves when the model is sure of it (CALM, arXiv 2207.07061)"
    }

    fn variants(&self) -> Vec<&'static str> {
        let signals = ExitSignal::ALL.iter().map(|signal| signal.name());
        signals.chain([CALM, LITE]).collect()
    }

    fn variant(&self) -> Option<&'static str> {
        Some(self.signal.name())
    }

    fn set_variant(&mut self, variant: &'static str) {
        match variant {
            CALM => {
                self.signal = ExitSignal::SoftmaxMargin;
                self.decay = Some(4.0);
            }
            LITE => {
                self.signal = ExitSignal::MaxProb;
                (self.first_exit, self.check_every) = (8, 4);
            }
            signal => self.signal = ExitSignal::by_name(signal).unwrap_or_default(),
        }
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
        let open =
            self.threshold.is_none() && self.patience.is_none() && self.layer_thresholds.is_none();
        (self.speedup.is_some() && open).then_some(Knob {
            lo: 0.0,
            hi: 1.0,
            rises_with_depth: self.signal != ExitSignal::Entropy,
        })
    }

    fn kv_fills(&self) -> &'static [KvFill] {
        &KvFill::OF_EXITS
    }

    fn batch_mode(&self) -> BatchMode {
        self.batch_mode
    }

    fn kv_fill_mut(&mut self) -> Option<&mut KvFill> {
        Some(&mut self.kv_fill)
    }

    fn goes_by_position(&self) -> bool {
        self.decay.is_some()
    }

    fn validate(&self, n_layers: usize) -> Result<(), StrategyError> {
        check_depth(NAME, n_layers, MIN_KEPT)?;
        check_fill(NAME, self.kv_fill)?;
        self.check_decay()?;
        self.check_interval(n_layers)?;
        match &self.layer_thresholds {
            Some(thresholds) => self.check_layer_thresholds(thresholds, n_layers),
            None => self.check_threshold(n_layers),
        }?;
        let fixed =
            self.threshold.is_some() || self.patience.is_some() || self.layer_thresholds.is_some();
        match (self.speedup, fixed) {
            (Some(speedup), true) => check_speedup(speedup),
            (None, true) => Ok(()),
            (None, false) => Err(StrategyError::MissingSpeedup { strategy: NAME }),
            (Some(speedup), false) => {
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
        }
    }

    fn build(&self, n_layers: usize) -> Result<Box<dyn Strategy>, StrategyError> {
        self.validate(n_layers)?;
        let checks = self.checks(n_layers);
        let fixed = match (&self.layer_thresholds, self.patience, self.threshold) {
            (Some(thresholds), ..) => thresholds
                .iter()
                .map(|(&layers, &t)| (layers - 1, t))
                .collect(),
            (None, Some(patience), _) => {
                let share = patience as f64 / checks.len().max(1) as f64;
                checks.into_iter().map(|layer| (layer, share)).collect()
            }
            (None, None, Some(threshold)) => {
                checks.into_iter().map(|layer| (layer, threshold)).collect()
            }
            (None, None, None) => return Err(StrategyError::NotCalibrated { strategy: NAME }),
        };
        Ok(Box::new(Exits {
            decay: self.decay,
            ..Exits::new(n_layers, self.signal, self.kv_fill, self.batch_mode, fixed)
        }))
    }
}

fn setting(key: &'static str, message: String) -> StrategyError {
    StrategyError::Setting {
        strategy: NAME,
        key,
        message,
    }
}

impl EarlyExit {
    /// The layers after which a token may exit; the last is none, since nothing is left to skip.
    fn checks(&self, n_layers: usize) -> Vec<usize> {
        (self.first_exit - 1..n_layers - 1)
            .step_by(self.check_every)
            .collect()
    }

    fn check_decay(&self) -> Result<(), StrategyError> {
        let Some(decay) = self.decay else {
            return Ok(());
        };
        if !decay.is_finite() || decay < 0.0 {
            return Err(setting("decay", format!("{decay} is not 0 or more")));
        }
        match self.signal {
            ExitSignal::Entropy => Err(setting(
                "decay",
                "a falling threshold makes `entropy` exit later, not earlier; leave it out, or use another signal"
                    .to_owned(),
            )),
            _ => Ok(()),
        }
    }

    /// One threshold for all checks.
    fn check_threshold(&self, n_layers: usize) -> Result<(), StrategyError> {
        if let Some(threshold) = self.threshold.filter(|t| !(0.0..=1.0).contains(t)) {
            return Err(setting(
                "threshold",
                format!("{threshold} is outside 0 to 1"),
            ));
        }
        if self.patience.is_some()
            && (self.signal != ExitSignal::Patience || self.threshold.is_some())
        {
            return Err(setting(
                "patience",
                "it counts agreeing checks: give it with `signal: patience` and without a `threshold`".to_owned(),
            ));
        }
        let checks = self.checks(n_layers).len();
        match self.patience {
            Some(patience) if !(1..checks).contains(&patience) => Err(setting(
                "patience",
                format!(
                    "{patience} of {checks} checks; it must be 1 to {}, since the first check has none before it",
                    checks.saturating_sub(1)
                ),
            )),
            _ => Ok(()),
        }
    }

    /// Where the checks are.
    fn check_interval(&self, n_layers: usize) -> Result<(), StrategyError> {
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
        match self.check_every {
            0 => Err(setting(
                "check-every",
                "0 layers between checks; it must be at least 1".to_owned(),
            )),
            _ => Ok(()),
        }
    }

    fn check_layer_thresholds(
        &self,
        thresholds: &BTreeMap<usize, f64>,
        n_layers: usize,
    ) -> Result<(), StrategyError> {
        let wrong = |message| Err(setting("layer-thresholds", message));
        if self.threshold.is_some()
            || self.patience.is_some()
            || self.signal == ExitSignal::Patience
        {
            return wrong(
                "they stand in place of `threshold` and `patience`; give one of them".to_owned(),
            );
        }
        let Some((&deepest, _)) = thresholds.last_key_value() else {
            return wrong("there is none; nothing would ever exit".to_owned());
        };
        if thresholds.contains_key(&0) || deepest >= n_layers {
            return wrong(format!(
                "a token exits after 1 to {} of {n_layers} layers",
                n_layers - 1
            ));
        }
        match thresholds.iter().find(|(_, t)| !(0.0..=1.0).contains(*t)) {
            Some((layers, t)) => wrong(format!("{t}, after {layers} layers, is outside 0 to 1")),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests;
