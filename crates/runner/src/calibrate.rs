//! Everything about a strategy that is found on calibration text: scores of layers, the expected length of an answer, and
//! the setting that meets a target speedup in layers or in wall-clock time.

use crate::experiment::Match;
use crate::store::ScoreCache;
use anyhow::{Context, bail};
use skipbench_engine::{
    CalibrationText, Engine, Options, TimingPlan, measure, removal_order, speedup,
};
use skipbench_strategy::{BatchMode, Knob, Scoring, StrategySpec};

/// Halvings of the interval of a threshold.
const TRIALS: usize = 12;
/// Halvings where each is timed: the noise of a clock makes more of them pointless.
const TIMED_TRIALS: usize = 7;
/// Rows run together where a row's layers do not depend on it.
const BATCH: usize = 8;
/// Mean layers this close to the target are taken as meeting it.
const TOLERANCE: f64 = 0.05;
/// A measured speedup this close to the target, as a share of it, is taken as meeting it.
const TIMED_TOLERANCE: f64 = 0.01;
/// A miss larger than this share of the target is said in the table.
const WORTH_A_NOTE: f64 = 0.1;

/// A strategy with everything found, and how.
#[derive(Debug, Clone)]
pub(crate) struct Calibrated {
    pub(crate) spec: StrategySpec,
    /// What was tried, in order.
    pub(crate) trace: Trace,
    pub(crate) note: Option<String>,
}

/// Prompts of a file that a strategy is calibrated on outside an experiment.
const PROMPTS: usize = 32;

/// Whether a strategy lacks anything that is found on calibration text.
pub(crate) fn lacks_text(spec: &StrategySpec, n_layers: usize) -> bool {
    spec.knob().is_some() || spec.scoring(n_layers).is_some() || spec.wants_expected_length()
}

/// Finds what `spec` lacks, in layers, on the first of `prompts` (token ids) outside an experiment.
///
/// # Errors
/// As [`Calibration::calibrate`].
pub(crate) fn on_prompts(
    engine: Engine<'_>,
    spec: &StrategySpec,
    prompts: &[Vec<u32>],
    options: Options,
) -> anyhow::Result<Calibrated> {
    // Nothing is timed.
    let timing = TimingPlan {
        batches: Vec::new(),
        new_tokens: 2,
        planned_tokens: options.max_new_tokens,
        repeats: 0,
        warm_up: 0,
        seed: 0,
        beam: None,
        no_repeat_ngram: 0,
    };
    let sample = prompts[..prompts.len().min(PROMPTS)].to_vec();
    let mut calibration = Calibration::new(engine, sample, options, String::new());
    calibration.calibrate(spec, Match::Layers, &timing, &mut ScoreCache::default())
}

/// The settings that were tried and what each gave.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Trace {
    /// What was set and what was measured, as `threshold: layers`; empty where nothing was tried.
    pub(crate) of: &'static str,
    pub(crate) points: Vec<(f64, f64)>,
}

/// The calibration text of one task on one model, with what has been found on it.
pub(crate) struct Calibration<'a> {
    engine: Engine<'a>,
    prompts: Vec<Vec<u32>>,
    options: Options,
    /// Hash of the model and the text, for the scores that outlive the process.
    key: String,
    answers: Option<Vec<CalibrationText>>,
}

impl<'a> Calibration<'a> {
    /// `prompts`: token ids; `options`: how answers end.
    pub(crate) fn new(
        engine: Engine<'a>,
        prompts: Vec<Vec<u32>>,
        options: Options,
        key: String,
    ) -> Self {
        Self {
            engine,
            prompts,
            options,
            key,
            answers: None,
        }
    }

    /// Finds what `spec` still lacks. With [`Match::Wallclock`], `timing` says how its speed is measured.
    ///
    /// # Errors
    /// A strategy that cannot be built, a prompt that cannot be run.
    pub(crate) fn calibrate(
        &mut self,
        spec: &StrategySpec,
        matching: Match,
        timing: &TimingPlan,
        scores: &mut ScoreCache,
    ) -> anyhow::Result<Calibrated> {
        let target = spec.target_speedup();
        // A speculative strategy's own speed depends on how many drafts stand; its target is the drafting strategy's.
        let timed = matching == Match::Wallclock && spec.draft().is_none();
        match (spec.knob(), target) {
            (Some(knob), Some(target)) if timed => self.timed_threshold(spec, knob, target, timing),
            (Some(knob), Some(target)) => {
                let rows = match spec.batch_mode() {
                    BatchMode::Compact => BATCH,
                    BatchMode::Sync => timing.batches.first().map_or(BATCH, Vec::len),
                };
                self.threshold(spec, knob, target, rows)
            }
            (None, Some(target)) if timed && spec.threshold().is_none() => {
                self.timed_depth(spec, target, timing, scores)
            }
            _ => Ok(Calibrated {
                spec: self.complete(spec, scores)?,
                trace: Trace::default(),
                note: None,
            }),
        }
    }

    /// The strategy with its scores and its expected length, where it asks for them.
    fn complete(
        &mut self,
        spec: &StrategySpec,
        scores: &mut ScoreCache,
    ) -> anyhow::Result<StrategySpec> {
        let n_layers = self.engine.model().sizes().n_layers;
        let spec = match spec.wants_expected_length() {
            true => spec.with_expected_length(self.expected_length()?),
            false => spec.clone(),
        };
        Ok(match spec.scoring(n_layers) {
            Some(scoring) => spec.with_order(self.order(scoring, scores)?),
            None => spec,
        })
    }

    fn order(&mut self, scoring: Scoring, scores: &mut ScoreCache) -> anyhow::Result<Vec<usize>> {
        if let Some(order) = scores.get(&self.key, scoring) {
            return Ok(order.to_vec());
        }
        let model = self.engine.model();
        let order = removal_order(model, scoring, self.answers()?).context("scoring layers")?;
        scores.insert(&self.key, scoring, &order)?;
        Ok(order)
    }

    /// Mean length of the full network's answers, in tokens.
    fn expected_length(&mut self) -> anyhow::Result<usize> {
        let answers = self.answers()?;
        let tokens: usize = answers
            .iter()
            .map(|text| text.ids.len() - text.answer_start)
            .sum();
        Ok((tokens as f64 / answers.len() as f64).round() as usize)
    }

    /// The calibration prompts with the full network's answers.
    fn answers(&mut self) -> anyhow::Result<&[CalibrationText]> {
        if self.answers.is_none() {
            if self.prompts.is_empty() {
                bail!("there is no calibration text; give the task some");
            }
            let n_layers = self.engine.model().sizes().n_layers;
            let mut full = StrategySpec::full().build(n_layers)?;
            let mut texts = Vec::with_capacity(self.prompts.len());
            for batch in self.prompts.chunks(BATCH) {
                let generation = self
                    .engine
                    .generate(batch, full.as_mut(), &self.options)
                    .context("calibration")?;
                for (prompt, row) in batch.iter().zip(generation.rows) {
                    texts.push(CalibrationText {
                        answer_start: prompt.len(),
                        ids: [&prompt[..], &row.tokens].concat(),
                    });
                }
            }
            self.answers = Some(texts);
        }
        Ok(self.answers.as_deref().unwrap_or_default())
    }

    /// Mean layers per decoded token, so many rows at a time.
    fn layers(&self, spec: &StrategySpec, rows: usize) -> anyhow::Result<f64> {
        let (mut layers, mut tokens) = (0.0, 0);
        let mut strategy = spec.build(self.engine.model().sizes().n_layers)?;
        for batch in self.prompts.chunks(rows.max(1)) {
            let generation = self
                .engine
                .generate(batch, strategy.as_mut(), &self.options)
                .context("calibration")?;
            for row in &generation.rows {
                layers += row.layers.iter().skip(1).sum::<f64>();
                tokens += row.layers.len().saturating_sub(1);
            }
        }
        Ok(layers / tokens.max(1) as f64)
    }

    /// Speedup over the full network on the calibration prompts.
    fn speed(&self, spec: &StrategySpec, timing: &TimingPlan) -> anyhow::Result<f64> {
        let blocks = measure(self.engine, spec, timing).context("calibration")?;
        let pairs: Vec<(usize, f64, f64)> = blocks
            .iter()
            .map(|block| {
                (
                    block.batch,
                    block.full.decode_s(),
                    block.strategy.decode_s(),
                )
            })
            .collect();
        let measured = speedup(&pairs, timing.seed).map(|speedup| speedup.ratio);
        measured.context("`match: wallclock` needs a timing pass with at least two new tokens")
    }

    /// Bisection for L / target mean layers.
    fn threshold(
        &self,
        spec: &StrategySpec,
        knob: Knob,
        target: f64,
        rows: usize,
    ) -> anyhow::Result<Calibrated> {
        let wanted = self.engine.model().sizes().n_layers as f64 / target;
        let tried = spec.draft().unwrap_or(spec);
        // The end of the interval where fewest layers run tells whether the target can be met at all.
        let (mut shallow, mut deep) = match knob.rises_with_depth {
            true => (knob.lo, knob.hi),
            false => (knob.hi, knob.lo),
        };
        let fewest = self.layers(&tried.with_threshold(shallow), rows)?;
        let mut points = vec![(shallow, fewest)];
        if fewest < wanted {
            for _ in 0..TRIALS {
                let middle = 0.5 * (shallow + deep);
                let layers = self.layers(&tried.with_threshold(middle), rows)?;
                points.push((middle, layers));
                if (layers - wanted).abs() < TOLERANCE {
                    break;
                }
                match layers < wanted {
                    true => shallow = middle,
                    false => deep = middle,
                }
            }
        }
        let (threshold, layers) = nearest(&points, wanted);
        let note = ((layers / wanted - 1.0).abs() > WORTH_A_NOTE).then(|| {
            format!(
                "asked for {wanted:.1} layers per token; the nearest threshold gives {layers:.1}"
            )
        });
        Ok(Calibrated {
            spec: spec.with_threshold(threshold),
            trace: Trace {
                of: "threshold: layers",
                points,
            },
            note,
        })
    }

    /// Bisection for the target as a measured speedup.
    fn timed_threshold(
        &self,
        spec: &StrategySpec,
        knob: Knob,
        target: f64,
        timing: &TimingPlan,
    ) -> anyhow::Result<Calibrated> {
        let (mut fast, mut slow) = match knob.rises_with_depth {
            true => (knob.lo, knob.hi),
            false => (knob.hi, knob.lo),
        };
        let fastest = self.speed(&spec.with_threshold(fast), timing)?;
        let mut points = vec![(fast, fastest)];
        if fastest > target {
            for _ in 0..TIMED_TRIALS {
                let middle = 0.5 * (fast + slow);
                let speed = self.speed(&spec.with_threshold(middle), timing)?;
                points.push((middle, speed));
                if (speed / target - 1.0).abs() < TIMED_TOLERANCE {
                    break;
                }
                match speed > target {
                    true => fast = middle,
                    false => slow = middle,
                }
            }
        }
        let (threshold, speed) = nearest(&points, target);
        Ok(Calibrated {
            spec: spec.with_threshold(threshold),
            trace: Trace {
                of: "threshold: speedup",
                points,
            },
            note: missed(target, speed),
        })
    }

    /// The largest number of layers whose measured speedup meets the target, found by halving.
    fn timed_depth(
        &mut self,
        spec: &StrategySpec,
        target: f64,
        timing: &TimingPlan,
        scores: &mut ScoreCache,
    ) -> anyhow::Result<Calibrated> {
        let n_layers = self.engine.model().sizes().n_layers;
        let of_depth = |kept: usize| spec.with_target(n_layers as f64 / kept as f64);
        let possible: Vec<usize> = (2..=n_layers)
            .filter(|&kept| of_depth(kept).validate(n_layers).is_ok())
            .collect();
        let Some(&fewest) = possible.first() else {
            bail!("`{spec}` cannot run any whole number of layers");
        };
        let mut points = Vec::new();
        let mut best: Option<(StrategySpec, f64)> = None;
        // Everything below `low` is fast enough, everything from `high` on too slow.
        let (mut low, mut high) = (0, possible.len());
        while low < high {
            let middle = if points.is_empty() {
                0
            } else {
                (low + high) / 2
            };
            let depth = self.complete(&of_depth(possible[middle]), scores)?;
            let speed = self.speed(&depth, timing)?;
            points.push((possible[middle] as f64, speed));
            match speed >= target {
                true => {
                    low = middle + 1;
                    best = Some((depth, speed));
                }
                false => high = middle,
            }
        }
        let (spec, speed) = match best {
            Some(found) => found,
            None => (
                self.complete(&of_depth(fewest), scores)?,
                points.first().map_or(f64::NAN, |point| point.1),
            ),
        };
        Ok(Calibrated {
            spec,
            trace: Trace {
                of: "layers: speedup",
                points,
            },
            note: missed(target, speed),
        })
    }
}

/// Of (setting, outcome) the one whose outcome is nearest.
fn nearest(points: &[(f64, f64)], wanted: f64) -> (f64, f64) {
    let apart = |point: &(f64, f64)| (point.1 - wanted).abs();
    let best = points.iter().min_by(|a, b| apart(a).total_cmp(&apart(b)));
    best.copied().unwrap_or((f64::NAN, f64::NAN))
}

fn missed(target: f64, speed: f64) -> Option<String> {
    let miss = speed / target - 1.0;
    if miss < -WORTH_A_NOTE {
        return Some(format!(
            "{target}x cannot be reached on this machine; the fastest setting gave {speed:.2}x in calibration"
        ));
    }
    (miss > WORTH_A_NOTE).then(|| {
        format!(
            "asked for {target}x; the slowest setting that meets it gave {speed:.2}x in calibration"
        )
    })
}
