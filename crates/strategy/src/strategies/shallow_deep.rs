//! `shallow-deep`: each token runs a few layers or all (FREE, Bae et al. 2023, arXiv 2310.05424).

use crate::exits::{Exits, check_fill, check_target, knob_of};
use crate::names::Named;
use crate::settings::{Asked, Common, Definition, Settings};
use crate::{ExitSignal, Knob, KvFill, Strategy, StrategyError};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Published settings.
const FREE: &str = "free";

/// One check, after the shallow layers: a token that is sure leaves there, any other runs all layers. With `deferred`, as
/// published, the layers that tokens skipped run together with the next token that needs them (synchronised parallel
/// decoding), so every key and value is exact.
///
/// A quarter of the depth is the default; the variant `free` of the short form adds a threshold of 0.9 on `softmax-margin`, as
/// FREE's released code runs T5-large with 6 of its 24 layers.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct ShallowDeep {
    /// What is compared to the threshold; any signal of `early-exit` but `patience`.
    signal: ExitSignal,
    /// Layers before the check; a quarter of them if not given, or fewer where the target needs it.
    #[serde(skip_serializing_if = "Option::is_none")]
    shallow_layers: Option<usize>,
}

impl ShallowDeep {
    fn shallow(&self, asked: &Asked<'_>) -> usize {
        let needed = (asked.n_layers as f64 / asked.speedup.unwrap_or(1.0) + 1e-9) as usize;
        let quarter = asked.n_layers.div_ceil(4).min(needed);
        self.shallow_layers.unwrap_or(quarter.max(1))
    }
}

impl Settings for ShallowDeep {
    fn definition(&self) -> Definition {
        Definition::of_exits(
            "shallow-deep",
            "each token runs a few layers or all (FREE, arXiv 2310.05424)",
            KvFill::Deferred,
        )
    }

    fn variants(&self) -> Vec<&'static str> {
        let signals = ExitSignal::ALL.iter();
        let usable = signals.filter(|signal| **signal != ExitSignal::Patience);
        usable.map(|signal| signal.name()).chain([FREE]).collect()
    }

    fn variant(&self) -> Option<&'static str> {
        Some(self.signal.name())
    }

    fn set_variant(&mut self, variant: &'static str, common: &mut Common) {
        self.signal = ExitSignal::by_name(variant).unwrap_or_default();
        if variant == FREE {
            common.threshold = Some(0.9);
        }
    }

    fn knob(&self) -> Option<Knob> {
        Some(knob_of(self.signal))
    }

    fn build(&self, asked: &Asked<'_>) -> Result<Box<dyn Strategy>, StrategyError> {
        let (n_layers, strategy) = (asked.n_layers, asked.name);
        check_fill(asked)?;
        if self.signal == ExitSignal::Patience {
            let message =
                "one check has no other to agree with; use another signal, or `early-exit`";
            return Err(asked.wrong("signal", message));
        }
        let threshold = asked.checked_threshold()?;
        let shallow = self.shallow(asked);
        if !(1..n_layers).contains(&shallow) {
            let message = format!(
                "{shallow} of {n_layers} layers; it must be 1 to {}",
                n_layers - 1
            );
            return Err(asked.wrong("shallow-layers", message));
        }
        check_target(asked, threshold.is_some(), "shallow-layers", shallow)?;
        let threshold = threshold.ok_or(StrategyError::NotCalibrated { strategy })?;
        let checks = vec![(shallow - 1, threshold)];
        Ok(Box::new(Exits::new(asked, self.signal, checks)))
    }
}

#[cfg(test)]
mod tests {
    use crate::StrategySpec;

    #[test]
    fn there_is_one_check_after_a_quarter() {
        let checks = |text: &str, n_layers| {
            let spec: StrategySpec = text.parse().unwrap();
            spec.build(n_layers).unwrap().plan(1).checks.to_vec()
        };
        assert_eq!(checks("shallow-deep {threshold: 0.9}", 24), [5]);
        assert_eq!(checks("shallow-deep@5 {threshold: 0.5}", 16), [2]);
        let free: StrategySpec = "shallow-deep:free".parse().unwrap();
        assert_eq!(free.to_string(), "shallow-deep {threshold: 0.9}");
        assert_eq!(free.explain(24, 8).unwrap().checks, [5]);
        let fixed: StrategySpec = "shallow-deep@3 {shallow-layers: 8}".parse().unwrap();
        let error = fixed.validate(16).unwrap_err().to_string();
        assert!(
            error.contains("largest possible speedup with it is 2"),
            "{error}"
        );
    }
}
