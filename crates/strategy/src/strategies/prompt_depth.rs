//! `prompt-depth`: the depth of an answer follows from its prompt.

use crate::budget::{MIN_KEPT, check_depth, check_speedup, kept_layers};
use crate::registry::Settings;
use crate::strategy::check_same_model;
use crate::strict::Named;
use crate::{
    BatchShape, ExitSignal, Knob, LayerSet, Needs, PromptSignal, StepPlan, Strategy, StrategyError,
    StrategySpec,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

const NAME: &str = "prompt-depth";

/// The prefill says how sure the full network is of the first token; from that a depth is chosen out of a menu of unified
/// depths (arXiv 2404.06954), and every further token of the answer runs those layers. The set being fixed after the
/// prefill, no hole is ever read. Per-sequence depth as an oracle is studied in arXiv 2410.20022; this is the simplest
/// controller that does not know the answer.
///
/// With doubt d in 0..1 and threshold t, entry floor(m d^((1 - t) / t)) of the m entries is taken, the fastest being the
/// first: a threshold of 0 takes the fastest always, 1 the slowest.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct PromptDepth {
    /// How sureness is measured: `softmax-margin`, `max-prob` or `entropy`.
    #[serde(deserialize_with = "crate::strict::named")]
    signal: ExitSignal,
    /// The target speedup, of the mean over all answers.
    #[serde(skip_serializing_if = "Option::is_none")]
    speedup: Option<f64>,
    /// The threshold, in 0..1; found by calibration if not given.
    #[serde(skip_serializing_if = "Option::is_none")]
    threshold: Option<f64>,
    /// Speedups of the depths to choose from; those that are too fast for the model are left out.
    menu: Vec<f64>,
}

impl Default for PromptDepth {
    fn default() -> Self {
        Self {
            signal: ExitSignal::default(),
            speedup: None,
            threshold: None,
            menu: vec![1.0, 1.5, 2.0, 3.0, 5.0, 8.0],
        }
    }
}

const SIGNALS: [ExitSignal; 3] = [
    ExitSignal::SoftmaxMargin,
    ExitSignal::MaxProb,
    ExitSignal::Entropy,
];

/// Unified depths of these speedups that a model of this depth can run, the fastest first.
pub(super) fn menu_of(
    strategy: &'static str,
    speedups: &[f64],
    n_layers: usize,
) -> Result<Vec<StrategySpec>, StrategyError> {
    for &speedup in speedups {
        check_speedup(speedup)?;
    }
    let mut usable: Vec<f64> = speedups
        .iter()
        .copied()
        .filter(|&speedup| kept_layers(n_layers, speedup).is_ok())
        .collect();
    usable.sort_by(|a, b| b.total_cmp(a));
    usable.dedup();
    if usable.len() < 2 {
        return Err(StrategyError::Setting {
            strategy,
            key: "menu",
            message: format!(
                "{} of its speedups suit a model of {n_layers} layers, and there must be two to choose from",
                usable.len()
            ),
        });
    }
    Ok(usable
        .into_iter()
        .map(|speedup| StrategySpec::unified().with_target(speedup))
        .collect())
}

impl PromptDepth {
    fn sets(&self, n_layers: usize) -> Result<Vec<LayerSet>, StrategyError> {
        menu_of(NAME, &self.menu, n_layers)?
            .iter()
            .map(|spec| Ok(spec.build(n_layers)?.reachable()))
            .collect()
    }
}

impl Settings for PromptDepth {
    fn name(&self) -> &'static str {
        NAME
    }

    fn about(&self) -> &'static str {
        "the depth of an answer is chosen from a menu by how sure the prefill is"
    }

    fn variants(&self) -> Vec<&'static str> {
        SIGNALS.iter().map(|signal| signal.name()).collect()
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
            rises_with_depth: true,
        })
    }

    fn validate(&self, n_layers: usize) -> Result<(), StrategyError> {
        check_depth(NAME, n_layers, MIN_KEPT)?;
        let setting = |key, message| StrategyError::Setting {
            strategy: NAME,
            key,
            message,
        };
        if !SIGNALS.contains(&self.signal) {
            return Err(setting(
                "signal",
                format!(
                    "`{}` says nothing of a prompt; use {}",
                    self.signal,
                    SIGNALS.map(ExitSignal::name).join(", ")
                ),
            ));
        }
        if let Some(threshold) = self.threshold.filter(|t| !(0.0..=1.0).contains(t)) {
            return Err(setting(
                "threshold",
                format!("{threshold} is outside 0 to 1"),
            ));
        }
        match (self.speedup, self.threshold) {
            (None, None) => return Err(StrategyError::MissingSpeedup { strategy: NAME }),
            (Some(speedup), _) => kept_layers(n_layers, speedup).map(drop)?,
            (None, Some(_)) => {}
        }
        let sets = self.sets(n_layers)?;
        let fewest = sets.iter().map(LayerSet::len).min().unwrap_or(n_layers);
        match self.speedup {
            Some(speedup) if n_layers as f64 / speedup + 1e-9 < fewest as f64 => Err(setting(
                "menu",
                format!(
                    "its fastest depth has {fewest} of {n_layers} layers, so speedup {speedup} cannot be met; add a \
                     faster one"
                ),
            )),
            _ => Ok(()),
        }
    }

    fn build(&self, n_layers: usize) -> Result<Box<dyn Strategy>, StrategyError> {
        self.validate(n_layers)?;
        let threshold = self
            .threshold
            .ok_or(StrategyError::NotCalibrated { strategy: NAME })?;
        Ok(Box::new(Menu {
            n_layers,
            signal: self.signal,
            threshold,
            sets: self.sets(n_layers)?,
            rows: Vec::new(),
        }))
    }
}

struct Menu {
    n_layers: usize,
    signal: ExitSignal,
    threshold: f64,
    /// The fastest first.
    sets: Vec<LayerSet>,
    rows: Vec<LayerSet>,
}

impl Menu {
    fn choose(&self, signal: f64) -> LayerSet {
        let doubt = match self.signal {
            ExitSignal::Entropy => signal,
            _ => 1.0 - signal,
        };
        let last = self.sets.len() - 1;
        // A signal that is not a number is all doubt.
        let doubt = if doubt.is_nan() {
            1.0
        } else {
            doubt.clamp(0.0, 1.0)
        };
        let share = match self.threshold {
            0.0 => 0.0,
            1.0 => 1.0,
            t => doubt.powf((1.0 - t) / t),
        };
        self.sets[((share * self.sets.len() as f64) as usize).min(last)]
    }
}

impl Strategy for Menu {
    fn needs(&self) -> Needs {
        Needs {
            prompt_signal: Some(PromptSignal::Confidence(self.signal)),
            ..Needs::default()
        }
    }

    fn begin(&mut self, shape: &BatchShape) -> Result<(), StrategyError> {
        // Until its prompt is known a row runs the slowest depth.
        self.rows = vec![self.sets[self.sets.len() - 1]; shape.prompt_lens.len()];
        check_same_model(self.n_layers, shape)
    }

    fn observe_prompt(&mut self, row: usize, signal: &[f64]) {
        if let ([signal], true) = (signal, row < self.rows.len()) {
            self.rows[row] = self.choose(*signal);
        }
    }

    fn plan(&mut self, _step: usize) -> StepPlan {
        StepPlan::fixed(
            self.rows
                .iter()
                .fold(LayerSet::empty(), |all, row| all.union(*row)),
        )
    }

    fn row_layers(&self, row: usize) -> Option<LayerSet> {
        self.rows.get(row).copied()
    }

    fn reachable(&self) -> LayerSet {
        self.sets
            .iter()
            .fold(LayerSet::empty(), |all, set| all.union(*set))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::{prop_assert, proptest};

    fn depths(threshold: f64, signals: &[f64]) -> Vec<usize> {
        let settings = PromptDepth {
            threshold: Some(threshold),
            menu: vec![1.0, 2.0, 4.0],
            ..PromptDepth::default()
        };
        let mut strategy = settings.build(12).unwrap();
        let shape = BatchShape {
            prompt_lens: vec![1; signals.len()],
            n_layers: 12,
            max_new_tokens: 4,
        };
        strategy.begin(&shape).unwrap();
        for (row, &signal) in signals.iter().enumerate() {
            strategy.observe_prompt(row, &[signal]);
        }
        (0..signals.len())
            .map(|row| strategy.row_layers(row).unwrap().len())
            .collect()
    }

    #[test]
    fn the_surer_the_prompt_the_fewer_the_layers() {
        assert_eq!(
            depths(0.5, &[1.0, 0.9, 0.5, 0.1, f64::NAN]),
            [3, 3, 6, 12, 12]
        );
        assert_eq!(depths(0.0, &[1.0, 0.0]), [3, 3]);
        assert_eq!(depths(1.0, &[1.0, 0.0]), [12, 12]);
    }

    #[test]
    fn a_menu_needs_a_choice_and_the_target() {
        let settings = |menu: &[f64], speedup| PromptDepth {
            menu: menu.to_vec(),
            speedup: Some(speedup),
            ..PromptDepth::default()
        };
        assert!(settings(&[1.0, 2.0], 2.0).validate(12).is_ok());
        let error = |menu: &[f64], speedup| {
            settings(menu, speedup)
                .validate(12)
                .unwrap_err()
                .to_string()
        };
        assert!(error(&[2.0, 2.0, 9.0], 2.0).contains("there must be two"));
        assert!(error(&[1.0, 2.0], 3.0).contains("add a faster one"));
    }

    proptest! {
        /// A surer prompt never gets more layers, nor does a lower threshold.
        #[test]
        fn depth_is_monotone(a in 0.0..=1.0f64, b in 0.0..=1.0f64, low in 0.0..=1.0f64, high in 0.0..=1.0f64) {
            let (sure, unsure) = (a.max(b), a.min(b));
            let (low, high) = (low.min(high), low.max(high));
            let at_low = depths(low, &[sure, unsure]);
            let at_high = depths(high, &[sure, unsure]);
            prop_assert!(at_low[0] <= at_low[1] && at_high[0] <= at_high[1]);
            prop_assert!(at_low[0] <= at_high[0] && at_low[1] <= at_high[1]);
        }
    }
}
