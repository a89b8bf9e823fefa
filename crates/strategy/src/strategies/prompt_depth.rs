//! `prompt-depth`: the depth of an answer follows from its prompt.

use crate::budget::{Number, check_speedup, kept_layers};
use crate::names::Named;
use crate::settings::{Asked, Common, Definition, Settings};
use crate::strategy::ByPrompt;
use crate::{ExitSignal, Knob, LayerSet, PromptSignal, Strategy, StrategyError, StrategySpec};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The prefill says how sure the full network is of the first token; from that a depth is chosen out of a menu of unified
/// depths (arXiv 2404.06954), and every further token of the answer runs those layers. The set being fixed after the
/// prefill, no hole is ever read. Per-sequence depth as an oracle is studied in arXiv 2410.20022; this is the simplest
/// controller that does not know the answer.
///
/// With doubt d in 0..1 and threshold t, entry floor(m d^((1 - t) / t)) of the m entries is taken, the fastest being the
/// first: a threshold of 0 takes the fastest always, 1 the slowest.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct PromptDepth {
    /// How sureness is measured: `softmax-margin`, `max-prob` or `entropy`.
    signal: ExitSignal,
    /// Speedups of the depths to choose from; those that are too fast for the model are left out.
    menu: Vec<f64>,
}

/// Speedups of the depths to choose from, if none are given.
pub(super) const MENU: [f64; 6] = [1.0, 1.5, 2.0, 3.0, 5.0, 8.0];

impl Default for PromptDepth {
    fn default() -> Self {
        Self {
            signal: ExitSignal::default(),
            menu: MENU.to_vec(),
        }
    }
}

const SIGNALS: [ExitSignal; 3] = [
    ExitSignal::SoftmaxMargin,
    ExitSignal::MaxProb,
    ExitSignal::Entropy,
];

/// Unified depths of these speedups that the model can run, the fastest first.
pub(super) fn menu_of(
    asked: &Asked<'_>,
    speedups: &[f64],
) -> Result<Vec<StrategySpec>, StrategyError> {
    let n_layers = asked.n_layers;
    speedups.iter().try_for_each(|&s| check_speedup(s))?;
    let mut usable = speedups.to_vec();
    usable.retain(|&speedup| kept_layers(n_layers, speedup).is_ok());
    usable.sort_by(|a, b| b.total_cmp(a));
    usable.dedup();
    if usable.len() < 2 {
        let message = format!(
            "{} of its speedups suit a model of {n_layers} layers, and there must be two to choose from",
            usable.len()
        );
        return Err(asked.wrong("menu", message));
    }
    let unified = StrategySpec::unified();
    Ok(usable.iter().map(|&s| unified.with_target(s)).collect())
}

impl Settings for PromptDepth {
    fn definition(&self) -> Definition {
        Definition {
            variant_key: Some("signal"),
            speedup: true,
            threshold: true,
            ..Definition::new(
                "prompt-depth",
                "the depth of an answer is chosen from a menu by how sure the prefill is",
            )
        }
    }

    fn variants(&self) -> Vec<&'static str> {
        SIGNALS.map(ExitSignal::name).to_vec()
    }

    fn variant(&self) -> Option<&'static str> {
        Some(self.signal.name())
    }

    fn set_variant(&mut self, variant: &'static str, _: &mut Common) {
        self.signal = ExitSignal::by_name(variant).unwrap_or_default();
    }

    fn knob(&self) -> Option<Knob> {
        Some(Knob {
            lo: 0.0,
            hi: 1.0,
            rises_with_depth: true,
        })
    }

    fn build(&self, asked: &Asked<'_>) -> Result<Box<dyn Strategy>, StrategyError> {
        let (n_layers, strategy) = (asked.n_layers, asked.name);
        if !SIGNALS.contains(&self.signal) {
            let message = format!(
                "`{}` says nothing of a prompt; use {}",
                self.signal,
                SIGNALS.map(ExitSignal::name).join(", ")
            );
            return Err(asked.wrong("signal", message));
        }
        let threshold = asked.checked_threshold()?;
        match (asked.speedup, threshold) {
            (None, Some(_)) => {}
            _ => asked.kept().map(drop)?,
        }
        let menu = menu_of(asked, &self.menu)?;
        let sets = menu
            .iter()
            .map(|spec| Ok(spec.build(n_layers)?.reachable()))
            .collect::<Result<Vec<LayerSet>, StrategyError>>()?;
        let fewest = sets.iter().map(LayerSet::len).min().unwrap_or(n_layers);
        if let Some(speedup) = asked.speedup
            && n_layers as f64 / speedup + 1e-9 < fewest as f64
        {
            let message = format!(
                "its fastest depth has {fewest} of {n_layers} layers, so speedup {} cannot be met; add a faster one",
                Number(speedup)
            );
            return Err(asked.wrong("menu", message));
        }
        let threshold = threshold.ok_or(StrategyError::NotCalibrated { strategy })?;
        let signal = self.signal;
        Ok(Box::new(ByPrompt {
            n_layers,
            signal: PromptSignal::Confidence(signal),
            before: sets[sets.len() - 1],
            reachable: sets
                .iter()
                .fold(LayerSet::empty(), |all, set| all.union(*set)),
            choose: move |found: &[f64]| match (signal, found) {
                (ExitSignal::Entropy, &[doubt]) => Some(choose(&sets, threshold, doubt)),
                (_, &[sureness]) => Some(choose(&sets, threshold, 1.0 - sureness)),
                _ => None,
            },
            rows: Vec::new(),
        }))
    }
}

/// Of layer sets, the fastest first, the one for a prompt that leaves this much doubt.
fn choose(sets: &[LayerSet], threshold: f64, doubt: f64) -> LayerSet {
    // A signal that is not a number is all doubt.
    let doubt = match doubt.is_nan() {
        true => 1.0,
        false => doubt.clamp(0.0, 1.0),
    };
    let share = match threshold {
        0.0 => 0.0,
        1.0 => 1.0,
        t => doubt.powf((1.0 - t) / t),
    };
    sets[((share * sets.len() as f64) as usize).min(sets.len() - 1)]
}

#[cfg(test)]
mod tests {
    use crate::{StrategySpec, testing::begun};
    use proptest::prelude::{prop_assert, proptest};

    fn depths(threshold: f64, signals: &[f64]) -> Vec<usize> {
        let spec = format!("prompt-depth {{threshold: {threshold:e}, menu: [1, 2, 4]}}");
        let mut strategy = begun(&spec, 12, 4);
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
        let valid = |text: &str| {
            let spec: StrategySpec = text.parse().unwrap();
            spec.validate(12).map_err(|error| error.to_string())
        };
        assert_eq!(valid("prompt-depth@2 {menu: [1, 2]}"), Ok(()));
        let error = |text: &str| valid(text).unwrap_err();
        assert!(error("prompt-depth@2 {menu: [2, 2, 9]}").contains("there must be two"));
        assert!(error("prompt-depth@3 {menu: [1, 2]}").contains("add a faster one"));
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
