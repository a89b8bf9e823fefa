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
mod tests {
    use super::*;
    use crate::{BatchShape, LayerSet, Verdict};

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

    /// They have no part in the outcome, but no part in a panic either.
    #[test]
    fn settings_beside_layer_thresholds_are_checked() {
        let settings = |first_exit, check_every| EarlyExit {
            layer_thresholds: Some(BTreeMap::from([(2, 0.5)])),
            first_exit,
            check_every,
            ..EarlyExit::default()
        };
        assert!(settings(2, 1).build(6).is_ok());
        let error = |first_exit, check_every| {
            let built = settings(first_exit, check_every).build(6);
            built.err().unwrap().to_string()
        };
        assert!(error(2, 0).contains("0 layers between checks"));
        assert!(error(0, 1).contains("0 of 6 layers before the first check"));
    }

    #[test]
    fn published_settings() {
        let long = |text: &str| text.parse::<crate::StrategySpec>().unwrap().to_string();
        assert_eq!(long("early-exit:calm@2"), "early-exit@2 {decay: 4.0}");
        assert_eq!(
            long("early-exit:lite@2"),
            "early-exit:max-prob@2 {first-exit: 8, check-every: 4}"
        );
        let lite: crate::StrategySpec = "early-exit:lite@2".parse().unwrap();
        let checks = lite.explain(32, 8).unwrap().checks;
        assert_eq!(checks, [7, 11, 15, 19, 23, 27]);
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

    #[test]
    fn patience_waits_for_votes_in_a_row() {
        let settings = EarlyExit {
            signal: ExitSignal::Patience,
            patience: Some(2),
            ..EarlyExit::default()
        };
        let mut strategy = settings.build(12).unwrap();
        let mut exit_at = |votes: &[u32]| {
            strategy.plan(1);
            let mut layers = 1..;
            votes.iter().position(|&vote| {
                let layer = layers.next().unwrap();
                strategy.observe(layer, 3, f64::from(vote)) == Verdict::Exit
            })
        };
        assert_eq!(exit_at(&[7, 7, 7, 7]), Some(2));
        assert_eq!(exit_at(&[7, 7, 8, 8, 8]), Some(4));
        assert_eq!(exit_at(&[7, 8, 7, 8, 8]), None);
        let wrong = EarlyExit {
            patience: Some(2),
            ..EarlyExit::default()
        };
        assert!(wrong.validate(12).is_err());
        // Two checks in a model of four layers: the second can agree with the first.
        let with = |patience| EarlyExit {
            patience: Some(patience),
            ..settings.clone()
        };
        let mut once = with(1).build(4).unwrap();
        once.plan(1);
        assert_eq!(once.observe(1, 0, 5.0), Verdict::Continue);
        assert_eq!(once.observe(2, 0, 5.0), Verdict::Exit);
        for never in [0, 2, 99] {
            let error = with(never).build(4).err().unwrap().to_string();
            assert!(error.contains("of 2 checks; it must be 1 to 1"), "{error}");
        }
    }

    #[test]
    fn each_layer_may_have_its_threshold() {
        let settings = |thresholds: &[(usize, f64)]| EarlyExit {
            layer_thresholds: Some(thresholds.iter().copied().collect()),
            ..EarlyExit::default()
        };
        let mut strategy = settings(&[(2, 0.9), (4, 0.5)]).build(6).unwrap();
        assert_eq!(strategy.plan(1).checks.to_vec(), [1, 3]);
        assert_eq!(strategy.observe(1, 0, 0.8), Verdict::Continue);
        assert_eq!(strategy.observe(3, 0, 0.8), Verdict::Exit);
        for wrong in [&[][..], &[(0, 0.5)], &[(6, 0.5)], &[(2, 1.5)]] {
            assert!(settings(wrong).validate(6).is_err(), "{wrong:?}");
        }
        let both = EarlyExit {
            threshold: Some(0.5),
            ..settings(&[(2, 0.9)])
        };
        assert!(both.validate(6).is_err());
    }

    #[test]
    fn holes_that_are_read_must_be_filled() {
        let settings = |kv_fill| EarlyExit {
            kv_fill,
            ..with(ExitSignal::MaxProb, 0.5)
        };
        for fill in KvFill::OF_EXITS {
            assert_eq!(settings(fill).build(6).unwrap().needs().kv_fill, fill);
        }
        let error = settings(KvFill::None).validate(6).unwrap_err().to_string();
        assert!(
            error.contains("use propagate, copy, mask, deferred"),
            "{error}"
        );
    }
}
