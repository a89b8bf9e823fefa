//! Everything about a strategy that is found on calibration text: scores of layers, the expected length of an answer, and
//! the setting that meets a target speedup in layers or in wall-clock time.

use crate::experiment::Match;
use crate::store::ScoreCache;
use anyhow::{Context, bail};
use skipbench_engine::{
    CalibrationText, Engine, Options, TimingPlan, measure, removal_order, speedup,
};
use skipbench_strategy::{BatchMode, Knob, Scoring, StrategySpec};

/// Halvings of a knob's interval, where what they meet is close enough to need no note.
const TRIALS: usize = 12;
/// The same where each is timed: the noise of a clock makes more of them pointless.
const TIMED_TRIALS: usize = 7;
/// Halvings at the most: a confidence may be so near to 1 that only the last digits of a threshold tell tokens apart.
const MOST_TRIALS: usize = 24;
/// Rows run together where a row's layers do not depend on it.
const BATCH: usize = 8;
/// Mean layers this close to the target are taken as meeting it.
const TOLERANCE: f64 = 0.05;
/// A measured speedup this close to the target, as a share of it, is taken as meeting it.
const TIMED_TOLERANCE: f64 = 0.01;
/// A miss larger than this share of the target is said in the table.
const WORTH_A_NOTE: f64 = 0.05;
/// A target is out of reach if the fastest setting falls short of it by this share.
const OUT_OF_REACH: f64 = 0.02;

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

/// Finds what `spec` lacks, in layers, on the first of `prompts` (token ids) outside an experiment, for batches of `rows`.
///
/// # Errors
/// As [`Calibration::calibrate`].
pub(crate) fn on_prompts(
    engine: Engine<'_>,
    spec: &StrategySpec,
    prompts: &[Vec<u32>],
    options: Options,
    rows: usize,
) -> anyhow::Result<Calibrated> {
    // Nothing is timed.
    let timing = TimingPlan {
        batches: Vec::new(),
        new_tokens: 2,
        planned_tokens: options.max_new_tokens,
        repeats: 0,
        warm_up: 0,
        seed: 0,
        beam: options.beam,
        no_repeat_ngram: options.no_repeat_ngram,
    };
    let sample = prompts[..prompts.len().min(PROMPTS)].to_vec();
    let greedy = Options {
        beam: None,
        no_repeat_ngram: 0,
        ..options
    };
    let mut calibration = Calibration::new(engine, sample, greedy, String::new());
    let mut scores = ScoreCache::default();
    calibration.calibrate(spec, Match::Layers, &timing, rows, &mut scores)
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
    /// `prompts`: token ids, all of them runnable; `options`: how answers end.
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

    /// Finds what `spec` still lacks, for batches of `rows`. `timing` says how its speed is measured with [`Match::Wallclock`],
    /// and how it searches.
    ///
    /// # Errors
    /// A strategy that cannot be built, a prompt that cannot be run.
    pub(crate) fn calibrate(
        &mut self,
        spec: &StrategySpec,
        matching: Match,
        timing: &TimingPlan,
        rows: usize,
        scores: &mut ScoreCache,
    ) -> anyhow::Result<Calibrated> {
        let n_layers = self.engine.model().sizes().n_layers;
        let target = spec.target_speedup();
        // A speculative strategy's own speed depends on how many drafts stand; its target is the drafting strategy's.
        let timed = matching == Match::Wallclock && spec.draft().is_none();
        match (spec.knob(), target) {
            (Some(knob), Some(target)) if timed => self.timed_threshold(spec, knob, target, timing),
            (Some(knob), Some(target)) => {
                let rows = match spec.batch_mode() {
                    BatchMode::Compact => BATCH,
                    BatchMode::Sync => rows,
                };
                self.threshold(spec, knob, target, rows, timing)
            }
            (None, Some(target)) if timed && spec.follows_target(n_layers) => {
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
        let order =
            removal_order(model, scoring, self.answers()?, &mut ()).context("scoring layers")?;
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
            self.need_text()?;
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

    fn need_text(&self) -> anyhow::Result<()> {
        if self.prompts.is_empty() {
            bail!("there is no calibration text that the model can run; give the task some");
        }
        Ok(())
    }

    /// Mean layers per decoded token, so many rows at a time, under the search of `timing`.
    fn layers(&self, spec: &StrategySpec, rows: usize, timing: &TimingPlan) -> anyhow::Result<f64> {
        self.need_text()?;
        let options = Options {
            beam: timing.beam,
            no_repeat_ngram: timing.no_repeat_ngram,
            ..self.options.clone()
        };
        let (mut layers, mut tokens) = (0.0, 0);
        let n_layers = self.engine.model().sizes().n_layers;
        let mut strategy = spec.build(n_layers)?;
        for batch in self.prompts.chunks(rows.max(1)) {
            let generation = self
                .engine
                .generate(batch, strategy.as_mut(), &options)
                .context("calibration")?;
            for row in &generation.rows {
                layers += row.layers.iter().skip(1).sum::<f64>();
                tokens += row.layers.len().saturating_sub(1);
            }
        }
        // Answers of one token come from the prefill alone.
        Ok(match tokens {
            0 => n_layers as f64,
            _ => layers / tokens as f64,
        })
    }

    /// Speedup over the full network on the calibration prompts.
    fn speed(&self, spec: &StrategySpec, timing: &TimingPlan) -> anyhow::Result<f64> {
        self.need_text()?;
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
        timing: &TimingPlan,
    ) -> anyhow::Result<Calibrated> {
        let wanted = self.engine.model().sizes().n_layers as f64 / target;
        let tried = spec.draft().unwrap_or(spec);
        let close = TOLERANCE / wanted;
        let points = bisect(knob, wanted, Trend::Grows, (close, TRIALS), |threshold| {
            self.layers(&tried.with_threshold(threshold), rows, timing)
        })?;
        let (threshold, layers) = nearest(&points, wanted);
        let fewest = points[0].1;
        let note = if fewest > wanted * (1.0 + OUT_OF_REACH) {
            Some(format!(
                "{target}x cannot be reached: its fastest setting runs {fewest:.1} layers per token, and {wanted:.1} were asked for"
            ))
        } else {
            is_missed(layers, wanted).then(|| {
                format!(
                    "asked for {wanted:.1} layers per token; the nearest threshold gives {layers:.1}"
                )
            })
        };
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
        let limits = (TIMED_TOLERANCE, TIMED_TRIALS);
        let points = bisect(knob, target, Trend::Shrinks, limits, |threshold| {
            self.speed(&spec.with_threshold(threshold), timing)
        })?;
        let (threshold, speed) = nearest(&points, target);
        let note = out_of_reach(target, points[0].1).or_else(|| {
            is_missed(speed, target).then(|| {
                format!("asked for {target}x; the nearest setting gave {speed:.2}x in calibration")
            })
        });
        Ok(Calibrated {
            spec: spec.with_threshold(threshold),
            trace: Trace {
                of: "threshold: speedup",
                points,
            },
            note,
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
        let fastest = points.first().map_or(f64::NAN, |point| point.1);
        let (spec, speed) = match best {
            Some(found) => found,
            None => (self.complete(&of_depth(fewest), scores)?, fastest),
        };
        Ok(Calibrated {
            spec,
            trace: Trace {
                of: "layers: speedup",
                points,
            },
            note: out_of_reach(target, fastest).or_else(|| {
                is_missed(speed, target).then(|| {
                    format!(
                        "asked for {target}x; the slowest setting that meets it gave {speed:.2}x in calibration"
                    )
                })
            }),
        })
    }
}

/// What becomes of a measure as a knob goes from its fastest setting to its slowest.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Trend {
    Grows,
    Shrinks,
}

/// Settings of a knob and what `measure` gave for each: the fastest and the slowest, and between them by halving until one
/// is `close` to `wanted`, as a share of it, or `trials` have been made and one needs no note.
fn bisect(
    knob: Knob,
    wanted: f64,
    trend: Trend,
    (close, trials): (f64, usize),
    mut measure: impl FnMut(f64) -> anyhow::Result<f64>,
) -> anyhow::Result<Vec<(f64, f64)>> {
    let (mut fast, mut slow) = match knob.rises_with_depth {
        true => (knob.lo, knob.hi),
        false => (knob.hi, knob.lo),
    };
    let too_fast = |value: f64| (value < wanted) == (trend == Trend::Grows) && value != wanted;
    let mut points = vec![(fast, measure(fast)?)];
    // A target beyond an end is met best by that end.
    if !too_fast(points[0].1) {
        return Ok(points);
    }
    points.push((slow, measure(slow)?));
    if too_fast(points[1].1) {
        return Ok(points);
    }
    for trial in 0..MOST_TRIALS {
        let (_, best) = nearest(&points, wanted);
        let miss = (best / wanted - 1.0).abs();
        if miss < close || trial >= trials && miss <= WORTH_A_NOTE {
            break;
        }
        let middle = 0.5 * (fast + slow);
        let value = measure(middle)?;
        points.push((middle, value));
        match too_fast(value) {
            true => fast = middle,
            false => slow = middle,
        }
    }
    Ok(points)
}

/// Of (setting, outcome) the one whose outcome is nearest.
fn nearest(points: &[(f64, f64)], wanted: f64) -> (f64, f64) {
    let apart = |point: &(f64, f64)| (point.1 - wanted).abs();
    let best = points.iter().min_by(|a, b| apart(a).total_cmp(&apart(b)));
    best.copied().unwrap_or((f64::NAN, f64::NAN))
}

fn is_missed(found: f64, wanted: f64) -> bool {
    (found / wanted - 1.0).abs() > WORTH_A_NOTE
}

fn out_of_reach(target: f64, fastest: f64) -> Option<String> {
    (fastest < target * (1.0 - OUT_OF_REACH)).then(|| {
        format!(
            "{target}x cannot be reached on this machine; the fastest setting gave {fastest:.2}x in calibration"
        )
    })
}

/// The prompts (token ids) that can be run; says how many cannot.
pub(crate) fn runnable(
    engine: Engine<'_>,
    mut prompts: Vec<Vec<u32>>,
    options: &Options,
) -> Vec<Vec<u32>> {
    let all = prompts.len();
    prompts.retain(|prompt| engine.check(std::slice::from_ref(prompt), options).is_ok());
    if prompts.len() < all {
        tracing::warn!(
            "{} of {all} calibration prompts are empty or too long for the model and are left out",
            all - prompts.len()
        );
    }
    prompts
}

#[cfg(test)]
mod tests {
    use super::*;

    const RISING: Knob = Knob {
        lo: 0.0,
        hi: 1.0,
        rises_with_depth: true,
    };

    fn found(knob: Knob, wanted: f64, trend: Trend, of: fn(f64) -> f64) -> (f64, f64, usize) {
        let points = bisect(knob, wanted, trend, (0.01, 7), |setting| Ok(of(setting))).unwrap();
        let (setting, value) = nearest(&points, wanted);
        (setting, value, points.len())
    }

    #[test]
    fn the_setting_that_meets_a_target_is_found() {
        let (setting, ..) = found(RISING, 8.0, Trend::Grows, |t| 2.0 + 14.0 * t);
        assert!((setting - 6.0 / 14.0).abs() < 0.01);
        let (setting, ..) = found(RISING, 2.0, Trend::Shrinks, |t| 4.0 - 3.0 * t);
        assert!((setting - 2.0 / 3.0).abs() < 0.01);
        let falling = Knob {
            rises_with_depth: false,
            ..RISING
        };
        let (setting, ..) = found(falling, 8.0, Trend::Grows, |t| 16.0 - 14.0 * t);
        assert!((setting - 8.0 / 14.0).abs() < 0.01);
    }

    #[test]
    fn an_end_meets_what_lies_beyond_it() {
        let (setting, value, trials) = found(RISING, 2.0, Trend::Grows, |t| 4.0 + 12.0 * t);
        assert_eq!((setting, value, trials), (0.0, 4.0, 1));
        // Confidences that only the last setting can beat.
        let saturated = |t: f64| if t < 1.0 { 6.0 } else { 16.0 };
        let (setting, value, trials) = found(RISING, 16.0, Trend::Grows, saturated);
        assert_eq!((setting, value, trials), (1.0, 16.0, 2));
    }

    #[test]
    fn a_steep_place_is_looked_at_closely() {
        let steep = |t: f64| 3.3 - 2.3 * ((t - 0.99) / 0.01).clamp(0.0, 1.0);
        let (_, speed, trials) = found(RISING, 1.3, Trend::Shrinks, steep);
        assert!((speed / 1.3 - 1.0).abs() <= WORTH_A_NOTE, "{speed}");
        assert!(trials > 7);
    }
}
