//! `early-exit`: each token leaves at the first layer at which the model is sure of it
//! (CALM, Schuster et al. 2022, arXiv 2207.07061).

use crate::budget::Number;
use crate::exits::{Exits, check_fill, check_target, knob_of};
use crate::names::Named;
use crate::settings::{Asked, Common, Definition, Settings};
use crate::{ExitCheck, ExitSignal, Knob, KvFill, Strategy, StrategyError};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

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
    signal: ExitSignal,
    /// Layers that run before the first check.
    first_exit: usize,
    /// Layers from one check to the next. Every signal but `cosine` reads the LM head at each check, which can cost
    /// as much as several layers: a larger interval, or `check: candidates`, may be faster.
    check_every: usize,
    /// What of the LM head a check reads: all of it, or a list of 64 tokens. Not for `cosine`, which reads none.
    check: ExitCheck,
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
}

impl Default for EarlyExit {
    fn default() -> Self {
        Self {
            signal: ExitSignal::default(),
            first_exit: 2,
            check_every: 1,
            check: ExitCheck::Full,
            decay: None,
            patience: None,
            layer_thresholds: None,
        }
    }
}

impl Settings for EarlyExit {
    fn definition(&self) -> Definition {
        Definition::of_exits(
            "early-exit",
            "each token leaves when the model is sure of it (CALM, arXiv 2207.07061)",
            KvFill::Propagate,
        )
    }

    fn variants(&self) -> Vec<&'static str> {
        [ExitSignal::names(), vec![CALM, LITE]].concat()
    }

    fn variant(&self) -> Option<&'static str> {
        Some(self.signal.name())
    }

    fn set_variant(&mut self, variant: &'static str, _: &mut Common) {
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

    fn knob(&self) -> Option<Knob> {
        let open = self.patience.is_none() && self.layer_thresholds.is_none();
        open.then(|| knob_of(self.signal))
    }

    fn build(&self, asked: &Asked<'_>) -> Result<Box<dyn Strategy>, StrategyError> {
        let strategy = asked.name;
        check_fill(asked)?;
        self.check_decay(asked)?;
        self.check_interval(asked)?;
        let thresholds = match &self.layer_thresholds {
            Some(thresholds) => Some(self.listed(asked, thresholds)?),
            None => self.uniform(asked)?,
        };
        check_target(asked, thresholds.is_some(), "first-exit", self.first_exit)?;
        let thresholds = thresholds.ok_or(StrategyError::NotCalibrated { strategy })?;
        Ok(Box::new(Exits {
            check: self.check,
            decay: self.decay,
            ..Exits::new(asked, self.signal, thresholds)
        }))
    }
}

impl EarlyExit {
    /// Whether its thresholds depend on the position.
    pub(super) fn goes_by_position(&self) -> bool {
        self.decay.is_some()
    }

    fn check_decay(&self, asked: &Asked<'_>) -> Result<(), StrategyError> {
        match self.decay {
            Some(decay) if !decay.is_finite() || decay < 0.0 => {
                Err(asked.wrong("decay", format!("{} is not 0 or more", Number(decay))))
            }
            Some(_) if self.signal == ExitSignal::Entropy => Err(asked.wrong(
                "decay",
                "a falling threshold makes `entropy` exit later, not earlier; leave it out, or use another signal",
            )),
            _ => Ok(()),
        }
    }

    /// Where the checks are.
    fn check_interval(&self, asked: &Asked<'_>) -> Result<(), StrategyError> {
        let n_layers = asked.n_layers;
        if !(1..n_layers).contains(&self.first_exit) {
            let message = format!(
                "{} of {n_layers} layers before the first check; it must be 1 to {}, so that a layer is left to skip",
                self.first_exit,
                n_layers - 1
            );
            return Err(asked.wrong("first-exit", message));
        }
        if self.check != ExitCheck::Full && !self.signal.needs_head() {
            let message = format!(
                "`{}` reads nothing of the LM head, so there is no list to read instead; leave it out, or use another signal",
                self.signal
            );
            return Err(asked.wrong("check", message));
        }
        match self.check_every {
            0 => Err(asked.wrong(
                "check-every",
                "0 layers between checks; it must be at least 1",
            )),
            _ => Ok(()),
        }
    }

    /// The layers after which a token may exit, the last not among them, with one threshold for all; `None` if it is still
    /// to be found.
    fn uniform(&self, asked: &Asked<'_>) -> Result<Option<Vec<(usize, f64)>>, StrategyError> {
        let threshold = asked.checked_threshold()?;
        let checks = (self.first_exit - 1..asked.n_layers - 1).step_by(self.check_every);
        let threshold = match self.patience {
            None => threshold,
            Some(_) if self.signal != ExitSignal::Patience || threshold.is_some() => {
                return Err(asked.wrong(
                    "patience",
                    "it counts agreeing checks: give it with `signal: patience` and without a `threshold`",
                ));
            }
            Some(patience) if !(1..checks.len()).contains(&patience) => {
                let message = format!(
                    "{patience} of {} checks; it must be 1 to {}, since the first check has none before it",
                    checks.len(),
                    checks.len().saturating_sub(1)
                );
                return Err(asked.wrong("patience", message));
            }
            Some(patience) => Some(patience as f64 / checks.len() as f64),
        };
        Ok(threshold.map(|threshold| checks.map(|layer| (layer, threshold)).collect()))
    }

    /// The layers after which a token may exit, each with a threshold of its own.
    fn listed(
        &self,
        asked: &Asked<'_>,
        thresholds: &BTreeMap<usize, f64>,
    ) -> Result<Vec<(usize, f64)>, StrategyError> {
        let n_layers = asked.n_layers;
        let wrong = |message: String| Err(asked.wrong("layer-thresholds", message));
        if asked.threshold.is_some()
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
        if let Some((layers, &t)) = thresholds.iter().find(|(_, t)| !(0.0..=1.0).contains(*t)) {
            return wrong(format!(
                "{}, after {layers} layers, is outside 0 to 1",
                Number(t)
            ));
        }
        Ok(thresholds
            .iter()
            .map(|(layers, &t)| (layers - 1, t))
            .collect())
    }
}

#[cfg(test)]
mod tests;
