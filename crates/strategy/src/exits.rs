//! Tokens that leave at a check: what `early-exit`, `shallow-deep` and the like have in common.

use crate::budget::{Number, check_speedup, fastest, kept_layers};
use crate::settings::Asked;
use crate::strategy::check_same_model;
use crate::{
    BatchMode, BatchShape, ExitCheck, ExitSignal, Knob, KvFill, LayerSet, Needs, StepPlan,
    Strategy, StrategyError, Verdict,
};

/// The strategy with its thresholds; rows are independent.
pub(crate) struct Exits {
    pub(crate) n_layers: usize,
    pub(crate) signal: ExitSignal,
    pub(crate) check: ExitCheck,
    pub(crate) kv_fill: KvFill,
    pub(crate) batch_mode: BatchMode,
    /// (layer, threshold), ascending; the last layer is no check, since nothing is left to skip.
    pub(crate) checks: Vec<(usize, f64)>,
    pub(crate) decay: Option<f64>,
    pub(crate) max_new_tokens: usize,
    /// What the thresholds of this step are multiplied with.
    pub(crate) share: f64,
    /// Per row: the token of the last check, and how many checks in a row have agreed with the one before them.
    pub(crate) agreed: Vec<(f64, usize)>,
}

impl Exits {
    pub(crate) fn new(asked: &Asked<'_>, signal: ExitSignal, checks: Vec<(usize, f64)>) -> Self {
        Self {
            n_layers: asked.n_layers,
            signal,
            check: ExitCheck::Full,
            kv_fill: asked.kv_fill,
            batch_mode: asked.batch_mode,
            checks,
            decay: None,
            max_new_tokens: 1,
            share: 1.0,
            agreed: Vec::new(),
        }
    }

    fn is_sure(&self, threshold: f64, row: usize, signal: f64) -> bool {
        let current = threshold * self.share;
        let (never, always, passes) = match self.signal {
            ExitSignal::SoftmaxMargin | ExitSignal::MaxProb | ExitSignal::Cosine => {
                (1.0, 0.0, signal > current)
            }
            ExitSignal::Entropy => (0.0, 1.0, signal < current),
            ExitSignal::Patience => (1.0, 0.0, self.is_patient(current, row, signal)),
        };
        // A saturated softmax gives exactly 1, and a cosine may round to more or be negative.
        threshold == always || threshold != never && passes
    }

    /// PABEE (arXiv 2006.04152): the vote has been the same at enough checks in a row.
    fn is_patient(&self, threshold: f64, row: usize, token: f64) -> bool {
        let needed = (threshold * self.checks.len() as f64 - 1e-9)
            .ceil()
            .max(0.0) as usize;
        self.agreeing(row, token) >= needed
    }

    /// How many checks in a row agree with the one before them, if this one votes for `token`.
    fn agreeing(&self, row: usize, token: f64) -> usize {
        match self.agreed.get(row) {
            Some(&(last, times)) if last == token => times + 1,
            _ => 0,
        }
    }

    fn remember(&mut self, row: usize, token: f64) {
        let times = self.agreeing(row, token);
        if self.agreed.len() <= row {
            self.agreed.resize(row + 1, (f64::NAN, 0));
        }
        self.agreed[row] = (token, times);
    }
}

impl Strategy for Exits {
    fn needs(&self) -> Needs {
        Needs {
            signal: Some(self.signal),
            check: self.check,
            kv_fill: self.kv_fill,
            batch_mode: self.batch_mode,
            ..Needs::default()
        }
    }

    fn begin(&mut self, shape: &BatchShape) -> Result<(), StrategyError> {
        self.max_new_tokens = shape.max_new_tokens.max(1);
        check_same_model(self.n_layers, shape)
    }

    fn plan(&mut self, step: usize) -> StepPlan {
        let done = step as f64 / self.max_new_tokens as f64;
        self.share = self
            .decay
            .map_or(1.0, |decay| 0.9 + 0.1 * (-decay * done).exp());
        self.agreed.clear();
        StepPlan {
            layers: LayerSet::full(self.n_layers),
            checks: LayerSet::from_layers(self.checks.iter().map(|&(layer, _)| layer)),
        }
    }

    fn observe(&mut self, layer: usize, row: usize, signal: f64) -> Verdict {
        let verdict = self.verdict(layer, row, signal);
        if self.signal == ExitSignal::Patience {
            self.remember(row, signal);
        }
        verdict
    }

    fn verdict(&self, layer: usize, row: usize, signal: f64) -> Verdict {
        let found = self.checks.iter().find(|&&(check, _)| check == layer);
        match found.copied() {
            Some((_, threshold)) if self.is_sure(threshold, row, signal) => Verdict::Exit,
            _ => Verdict::Continue,
        }
    }

    fn reachable(&self) -> LayerSet {
        LayerSet::full(self.n_layers)
    }
}

/// Refuses a KV fill that leaves holes which a later token reads.
pub(crate) fn check_fill(asked: &Asked<'_>) -> Result<(), StrategyError> {
    match KvFill::OF_EXITS.contains(&asked.kv_fill) {
        true => Ok(()),
        false => Err(asked.wrong(
            "kv-fill",
            format!(
                "`{}` leaves holes that the next token reads; use {}",
                asked.kv_fill,
                KvFill::OF_EXITS.map(KvFill::name).join(", ")
            ),
        )),
    }
}

/// Refuses a target that cannot be met where every token runs `least` layers, which the setting `key` says. Where the depth
/// is `settled`, the target is but a name.
pub(crate) fn check_target(
    asked: &Asked<'_>,
    settled: bool,
    key: &'static str,
    least: usize,
) -> Result<(), StrategyError> {
    if settled {
        return asked.speedup.map_or(Ok(()), check_speedup);
    }
    let (n_layers, speedup) = (asked.n_layers, asked.target()?);
    kept_layers(n_layers, speedup)?;
    match speedup > n_layers as f64 / least as f64 + 1e-9 {
        false => Ok(()),
        true => Err(asked.wrong(
            key,
            format!(
                "every token runs {least} of {n_layers} layers, so speedup {} cannot be met; the largest possible speedup \
                 with it is {}",
                Number(speedup),
                fastest(n_layers, least)
            ),
        )),
    }
}

/// What a threshold in 0..1 does: the lower it is, the fewer layers run; that of `entropy`, the higher.
pub(crate) fn knob_of(signal: ExitSignal) -> Knob {
    Knob {
        lo: 0.0,
        hi: 1.0,
        rises_with_depth: signal != ExitSignal::Entropy,
    }
}
