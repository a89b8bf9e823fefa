//! `shallow-deep`: each token runs a few layers or all (FREE, Bae et al. 2023, arXiv 2310.05424).

use crate::budget::{MIN_KEPT, check_depth, check_speedup, fastest, kept_layers};
use crate::exits::{Exits, check_fill};
use crate::registry::Settings;
use crate::strict::Named;
use crate::{BatchMode, ExitSignal, Knob, KvFill, Strategy, StrategyError};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

const NAME: &str = "shallow-deep";
/// Published settings.
const FREE: &str = "free";

/// One check, after the shallow layers: a token that is sure leaves there, any other runs all layers. With `deferred`, as
/// published, the layers that tokens skipped run together with the next token that needs them (synchronised parallel
/// decoding), so every key and value is exact.
///
/// A quarter of the depth is the default; the variant `free` of the short form adds a threshold of 0.9 on `softmax-margin`, as
/// FREE's released code runs T5-large with 6 of its 24 layers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct ShallowDeep {
    /// What is compared to the threshold; any signal of `early-exit` but `patience`.
    #[serde(deserialize_with = "crate::strict::named")]
    signal: ExitSignal,
    /// The target speedup.
    #[serde(skip_serializing_if = "Option::is_none")]
    speedup: Option<f64>,
    /// The threshold, in 0..1; found by calibration if not given.
    #[serde(skip_serializing_if = "Option::is_none")]
    threshold: Option<f64>,
    /// Layers before the check; a quarter of them if not given, or fewer where the target needs it.
    #[serde(skip_serializing_if = "Option::is_none")]
    shallow_layers: Option<usize>,
    /// What is done about the keys and values of the layers that a token skips.
    #[serde(deserialize_with = "crate::strict::named")]
    kv_fill: KvFill,
    /// What becomes of rows that exit while others go on.
    #[serde(deserialize_with = "crate::strict::named")]
    batch_mode: BatchMode,
}

impl Default for ShallowDeep {
    fn default() -> Self {
        Self {
            signal: ExitSignal::default(),
            speedup: None,
            threshold: None,
            shallow_layers: None,
            kv_fill: KvFill::Deferred,
            batch_mode: BatchMode::Compact,
        }
    }
}

impl ShallowDeep {
    fn shallow(&self, n_layers: usize) -> usize {
        let needed = (n_layers as f64 / self.speedup.unwrap_or(1.0) + 1e-9) as usize;
        let quarter = n_layers.div_ceil(4).min(needed);
        self.shallow_layers.unwrap_or(quarter.max(1))
    }
}

impl Settings for ShallowDeep {
    fn name(&self) -> &'static str {
        NAME
    }

    fn about(&self) -> &'static str {
        "each token runs a few layers or all (FREE, arXiv 2310.05424)"
    }

    fn variants(&self) -> Vec<&'static str> {
        let signals = ExitSignal::ALL.iter();
        let usable = signals.filter(|signal| **signal != ExitSignal::Patience);
        usable.map(|signal| signal.name()).chain([FREE]).collect()
    }

    fn variant(&self) -> Option<&'static str> {
        Some(self.signal.name())
    }

    fn set_variant(&mut self, variant: &'static str) {
        self.signal = ExitSignal::by_name(variant).unwrap_or_default();
        if variant == FREE {
            self.threshold = Some(0.9);
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
        (self.speedup.is_some() && self.threshold.is_none()).then_some(Knob {
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

    fn validate(&self, n_layers: usize) -> Result<(), StrategyError> {
        check_depth(NAME, n_layers, MIN_KEPT)?;
        check_fill(NAME, self.kv_fill)?;
        let setting = |key, message| StrategyError::Setting {
            strategy: NAME,
            key,
            message,
        };
        if self.signal == ExitSignal::Patience {
            return Err(setting(
                "signal",
                "one check has no other to agree with; use another signal, or `early-exit`"
                    .to_owned(),
            ));
        }
        if let Some(threshold) = self.threshold.filter(|t| !(0.0..=1.0).contains(t)) {
            return Err(setting(
                "threshold",
                format!("{threshold} is outside 0 to 1"),
            ));
        }
        let shallow = self.shallow(n_layers);
        if !(1..n_layers).contains(&shallow) {
            return Err(setting(
                "shallow-layers",
                format!(
                    "{shallow} of {n_layers} layers; it must be 1 to {}",
                    n_layers - 1
                ),
            ));
        }
        match (self.speedup, self.threshold) {
            (Some(speedup), None) => {
                kept_layers(n_layers, speedup)?;
                if speedup > n_layers as f64 / shallow as f64 + 1e-9 {
                    return Err(setting(
                        "shallow-layers",
                        format!(
                            "every token runs {shallow} of {n_layers} layers, so speedup {speedup} cannot be met; the \
                             largest possible speedup with it is {}",
                            fastest(n_layers, shallow)
                        ),
                    ));
                }
                Ok(())
            }
            (Some(speedup), Some(_)) => check_speedup(speedup),
            (None, Some(_)) => Ok(()),
            (None, None) => Err(StrategyError::MissingSpeedup { strategy: NAME }),
        }
    }

    fn build(&self, n_layers: usize) -> Result<Box<dyn Strategy>, StrategyError> {
        self.validate(n_layers)?;
        let threshold = self
            .threshold
            .ok_or(StrategyError::NotCalibrated { strategy: NAME })?;
        let check = (self.shallow(n_layers) - 1, threshold);
        Ok(Box::new(Exits::new(
            n_layers,
            self.signal,
            self.kv_fill,
            self.batch_mode,
            vec![check],
        )))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_one_check_after_a_quarter() {
        let settings = ShallowDeep {
            threshold: Some(0.9),
            ..ShallowDeep::default()
        };
        assert_eq!(settings.build(24).unwrap().plan(1).checks.to_vec(), [5]);
        let free: crate::StrategySpec = "shallow-deep:free".parse().unwrap();
        assert_eq!(free.to_string(), "shallow-deep {threshold: 0.9}");
        assert_eq!(free.explain(24, 8).unwrap().checks, [5]);
        let fast = ShallowDeep {
            speedup: Some(5.0),
            threshold: Some(0.5),
            ..settings.clone()
        };
        assert_eq!(fast.build(16).unwrap().plan(1).checks.to_vec(), [2]);
        let fixed = ShallowDeep {
            speedup: Some(3.0),
            threshold: None,
            shallow_layers: Some(8),
            ..settings
        };
        let error = fixed.validate(16).unwrap_err().to_string();
        assert!(
            error.contains("largest possible speedup with it is 2"),
            "{error}"
        );
    }
}
