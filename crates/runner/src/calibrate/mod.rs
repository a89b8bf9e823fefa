//! Everything about a strategy that is found on calibration text: scores of layers, the expected length of an answer, and
//! the setting that meets a target speedup in layers or in wall-clock time.

mod search;

use crate::experiment::Match;
use crate::memo::Memo;
use crate::progress::Progress;
use anyhow::{Context, bail};
use search::{OUT_OF_REACH, Trend, bisect, is_missed, nearest, out_of_reach};
use skipbench_engine::{
    CalibrationText, Engine, Options, ScoreLog, TimingPlan, measure, removal_order, speedup,
};
use skipbench_record::{Calibration, Identity};
use skipbench_strategy::{BatchMode, Knob, Scoring, StrategySpec};

/// Halvings of a knob's interval, where what they meet is close enough to need no note.
const TRIALS: usize = 12;
/// The same where each is timed: the noise of a clock makes more of them pointless.
const TIMED_TRIALS: usize = 7;
/// Rows run together where a row's layers do not depend on it.
const BATCH: usize = 8;
/// Mean layers this close to the target are taken as meeting it.
const TOLERANCE: f64 = 0.05;
/// A measured speedup this close to the target, as a share of it, is taken as meeting it.
const TIMED_TOLERANCE: f64 = 0.01;
/// Prompts of a file that a strategy is calibrated on outside an experiment.
const PROMPTS: usize = 32;

/// Hears how far a piece of work is: `done` of `total` parts of a name.
pub(crate) type Part<'a> = &'a dyn Fn(&'static str, u64, u64);

/// A strategy with everything found, and how.
#[derive(Debug, Clone)]
pub(crate) struct Calibrated {
    pub(crate) spec: StrategySpec,
    /// What was tried, in order.
    pub(crate) trace: Calibration,
    pub(crate) note: Option<String>,
}

/// Whether a strategy lacks anything that is found on calibration text.
pub(crate) fn lacks_text(spec: &StrategySpec, n_layers: usize) -> bool {
    spec.knob().is_some() || spec.scoring(n_layers).is_some() || spec.wants_expected_length()
}

/// Finds what `spec` lacks, in layers, on the first of `prompts` (token ids) outside an experiment, for batches of `rows`.
///
/// # Errors
/// As [`Calibrator::calibrate`].
pub(crate) fn on_prompts(
    engine: Engine<'_>,
    spec: &StrategySpec,
    prompts: &[Vec<u32>],
    options: Options,
    rows: usize,
) -> anyhow::Result<Calibrated> {
    let search = Search {
        beam: options.beam,
        no_repeat_ngram: options.no_repeat_ngram,
    };
    let greedy = Options {
        beam: None,
        no_repeat_ngram: 0,
        ..options
    };
    let mut memo = Memo::default();
    let progress = Progress::new(1, "calibration");
    Calibrator {
        engine,
        prompts: prompts[..prompts.len().min(PROMPTS)].to_vec(),
        options: greedy,
        depends_on: Identity::default(),
        clocked_by: Identity::default(),
        memo: &mut memo,
        answers: None,
        part: &|name, done, total| progress.part(name, done, total),
    }
    .calibrate(spec, &Target::Layers { rows, search })
}

/// What a target speedup means, and how it is measured.
pub(crate) enum Target {
    /// A share of the layers.
    Layers {
        /// Rows of a batch, which count where rows wait for each other.
        rows: usize,
        search: Search,
    },
    /// A share of the decode time, measured like this.
    Wallclock(TimingPlan),
}

/// How tokens are searched.
#[derive(Clone, Copy)]
pub(crate) struct Search {
    pub(crate) beam: Option<skipbench_engine::Beam>,
    pub(crate) no_repeat_ngram: usize,
}

impl Target {
    /// What `matching` means for a cell that is timed by `timing` in batches of `rows`.
    pub(crate) fn of(matching: Match, rows: usize, timing: TimingPlan) -> Self {
        match matching {
            Match::Wallclock => Self::Wallclock(timing),
            Match::Layers => Self::Layers {
                rows,
                search: Search {
                    beam: timing.beam,
                    no_repeat_ngram: timing.no_repeat_ngram,
                },
            },
        }
    }
}

/// Finds what strategies lack on the calibration text of one task on one model, each thing once: what was found stays in
/// the memo, trial by trial.
pub(crate) struct Calibrator<'a> {
    pub(crate) engine: Engine<'a>,
    /// Token ids, all of them runnable.
    pub(crate) prompts: Vec<Vec<u32>>,
    /// How answers end.
    pub(crate) options: Options,
    /// What everything found here depends on.
    pub(crate) depends_on: Identity,
    /// What times depend on beside that.
    pub(crate) clocked_by: Identity,
    pub(crate) memo: &'a mut Memo,
    /// The prompts with the full network's answers, once they are needed.
    pub(crate) answers: Option<Vec<CalibrationText>>,
    /// Hears how far it is.
    pub(crate) part: Part<'a>,
}

impl Calibrator<'_> {
    /// Finds what `spec` still lacks.
    ///
    /// # Errors
    /// A strategy that cannot be built, a prompt that cannot be run, a memo that cannot be written.
    pub(crate) fn calibrate(
        &mut self,
        spec: &StrategySpec,
        target: &Target,
    ) -> anyhow::Result<Calibrated> {
        let wanted = spec.target_speedup();
        match (spec.knob(), wanted, target) {
            // A speculative strategy's own speed depends on how many drafts stand; its target is the drafting strategy's.
            (Some(knob), Some(wanted), Target::Wallclock(timing)) if spec.draft().is_none() => {
                self.timed_threshold(spec, knob, wanted, timing)
            }
            (None, Some(wanted), Target::Wallclock(timing))
                if spec.draft().is_none() && spec.follows_target(self.n_layers()) =>
            {
                self.timed_depth(spec, wanted, timing)
            }
            (Some(knob), Some(wanted), _) => self.threshold(spec, knob, wanted, target),
            _ => Ok(Calibrated {
                spec: self.complete(spec)?,
                trace: Calibration::default(),
                note: None,
            }),
        }
    }

    fn n_layers(&self) -> usize {
        self.engine.model().sizes().n_layers
    }

    /// The strategy with its scores and its expected length, where it asks for them.
    fn complete(&mut self, spec: &StrategySpec) -> anyhow::Result<StrategySpec> {
        let spec = match spec.wants_expected_length() {
            true => spec.with_expected_length(self.expected_length()?),
            false => spec.clone(),
        };
        Ok(match spec.scoring(self.n_layers()) {
            Some(scoring) => spec.with_order(self.order(scoring)?),
            None => spec,
        })
    }

    /// Layers in the order in which they go, the least important first.
    fn order(&mut self, scoring: Scoring) -> anyhow::Result<Vec<usize>> {
        let key = self.depends_on.clone().with("scoring", scoring);
        let claim = match self.memo.find(&key) {
            Ok(order) => return Ok(order),
            Err(claim) => claim,
        };
        self.answers()?;
        let mut log = ScoredLayers {
            depends_on: match scoring {
                // Both ask how likely the answers are without some layers.
                Scoring::Perplexity | Scoring::Sleb { .. } => {
                    self.depends_on.clone().with("scored by", "likelihood")
                }
                _ => self.depends_on.clone().with("scored by", scoring),
            },
            memo: &mut *self.memo,
            part: self.part,
            failed: None,
        };
        let texts = self.answers.as_deref().unwrap_or_default();
        let order = removal_order(self.engine.model(), scoring, texts, &mut log);
        if let Some(error) = log.failed {
            return Err(error);
        }
        let order = order.context("scoring layers")?;
        self.memo
            .put(&key, format!("order of layers by {scoring:?}"), &order)?;
        claim.settle();
        Ok(order)
    }

    /// Mean length of the full network's answers, in tokens.
    fn expected_length(&mut self) -> anyhow::Result<usize> {
        let key = self.depends_on.clone().with("expected", "length");
        let claim = match self.memo.find(&key) {
            Ok(length) => return Ok(length),
            Err(claim) => claim,
        };
        let answers = self.answers()?;
        let lengths = answers
            .iter()
            .map(|text| text.ids.len() - text.answer_start);
        let mean = (lengths.sum::<usize>() as f64 / answers.len() as f64).round() as usize;
        self.memo
            .put(&key, "tokens of an answer".to_owned(), mean)?;
        claim.settle();
        Ok(mean)
    }

    /// The calibration prompts with the full network's answers.
    fn answers(&mut self) -> anyhow::Result<&[CalibrationText]> {
        if self.answers.is_none() {
            self.need_text()?;
            let mut full = StrategySpec::full().build(self.n_layers())?;
            let mut texts = Vec::with_capacity(self.prompts.len());
            for batch in self.prompts.chunks(BATCH) {
                let generation = self
                    .engine
                    .generate(batch, full.as_mut(), &self.options)
                    .context("calibration")?;
                let all = self.prompts.len();
                (self.part)("calibration answers", texts.len() as u64, all as u64);
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

    /// Mean layers per decoded token.
    fn layers(&mut self, spec: &StrategySpec, rows: usize, search: Search) -> anyhow::Result<f64> {
        self.need_text()?;
        let mut key = self.depends_on.clone().with("layers of", spec);
        if spec.batch_mode() == BatchMode::Sync {
            key = key.with("rows", rows);
        }
        if let Some(beam) = search.beam {
            let beam = (beam.beams, beam.length_penalty);
            key = key.with("beam", beam);
        }
        if search.no_repeat_ngram > 0 {
            key = key.with("no-repeat-ngram", search.no_repeat_ngram);
        }
        let claim = match self.memo.find(&key) {
            Ok(layers) => return Ok(layers),
            Err(claim) => claim,
        };
        let options = Options {
            beam: search.beam,
            no_repeat_ngram: search.no_repeat_ngram,
            ..self.options.clone()
        };
        let (mut layers, mut tokens) = (0.0, 0);
        let mut strategy = spec.build(self.n_layers())?;
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
        let mean = match tokens {
            0 => self.n_layers() as f64,
            _ => layers / tokens as f64,
        };
        self.memo
            .put(&key, format!("layers per token of {spec}"), mean)?;
        claim.settle();
        Ok(mean)
    }

    /// Speedup over the full network on the calibration prompts.
    fn speed(&mut self, spec: &StrategySpec, timing: &TimingPlan) -> anyhow::Result<f64> {
        self.need_text()?;
        let key = self
            .clocked_by
            .clone()
            .with("speedup of", spec)
            .with("rows", timing.batches.first().map(Vec::len));
        let claim = match self.memo.find(&key) {
            Ok(speed) => return Ok(speed),
            Err(claim) => claim,
        };
        let part = self.part;
        let progress = &mut |done, all| part("timed blocks of a trial", done as u64, all as u64);
        let blocks = measure(self.engine, spec, timing, progress).context("calibration")?;
        let speed = speedup(&blocks)
            .context("`match: wallclock` needs a timing pass with at least two new tokens")?
            .ratio;
        self.memo.put(&key, format!("speedup of {spec}"), speed)?;
        claim.settle();
        Ok(speed)
    }

    /// Bisection for L / target mean layers.
    fn threshold(
        &mut self,
        spec: &StrategySpec,
        knob: Knob,
        target: f64,
        measured: &Target,
    ) -> anyhow::Result<Calibrated> {
        let (rows, search) = match measured {
            Target::Layers { rows, search } => (*rows, *search),
            Target::Wallclock(timing) => (
                timing.batches.first().map_or(1, Vec::len),
                Search {
                    beam: timing.beam,
                    no_repeat_ngram: timing.no_repeat_ngram,
                },
            ),
        };
        let rows = match spec.batch_mode() {
            BatchMode::Compact => BATCH,
            BatchMode::Sync => rows,
        };
        let wanted = self.n_layers() as f64 / target;
        let tried = spec.draft().unwrap_or(spec);
        let close = TOLERANCE / wanted;
        let mut trial = 0;
        let points = bisect(knob, wanted, Trend::Grows, (close, TRIALS), |threshold| {
            trial += 1;
            (self.part)("trials", trial, trial.max(TRIALS as u64));
            self.layers(&tried.with_threshold(threshold), rows, search)
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
            trace: Calibration {
                of: "threshold: layers".to_owned(),
                points,
            },
            note,
        })
    }

    /// Bisection for the target as a measured speedup.
    fn timed_threshold(
        &mut self,
        spec: &StrategySpec,
        knob: Knob,
        target: f64,
        timing: &TimingPlan,
    ) -> anyhow::Result<Calibrated> {
        let limits = (TIMED_TOLERANCE, TIMED_TRIALS);
        let mut trial = 0;
        let points = bisect(knob, target, Trend::Shrinks, limits, |threshold| {
            trial += 1;
            (self.part)("timed trials", trial, trial.max(TIMED_TRIALS as u64));
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
            trace: Calibration {
                of: "threshold: speedup".to_owned(),
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
    ) -> anyhow::Result<Calibrated> {
        let n_layers = self.n_layers();
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
            let middle = match points.is_empty() {
                true => 0,
                false => (low + high) / 2,
            };
            let depth = self.complete(&of_depth(possible[middle]))?;
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
            None => (self.complete(&of_depth(fewest))?, fastest),
        };
        Ok(Calibrated {
            spec,
            trace: Calibration {
                of: "layers: speedup".to_owned(),
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

/// Keeps the score of each removal, and says how far the scoring is.
struct ScoredLayers<'a> {
    depends_on: Identity,
    memo: &'a mut Memo,
    part: Part<'a>,
    /// What kept a score from being written.
    failed: Option<anyhow::Error>,
}

impl ScoredLayers<'_> {
    fn key(&self, removed: &[usize], candidate: usize) -> Identity {
        self.depends_on
            .clone()
            .with("removed", removed)
            .with("candidate", candidate)
    }
}

impl ScoreLog for ScoredLayers<'_> {
    fn lookup(&mut self, removed: &[usize], candidate: usize) -> Option<f64> {
        // JSON has no infinity: what gives no numbers has no score.
        let found: Option<Option<f64>> = self.memo.get(&self.key(removed, candidate));
        found.map(|score| score.unwrap_or(f64::INFINITY))
    }

    fn scored(
        &mut self,
        removed: &[usize],
        candidate: usize,
        score: f64,
        done: usize,
        total: usize,
    ) {
        (self.part)("layers scored", done as u64, total as u64);
        let about = format!("score of dropping layer {candidate} after {removed:?}");
        let score = score.is_finite().then_some(score);
        let kept = self.memo.put(&self.key(removed, candidate), about, score);
        if let Err(error) = kept {
            self.failed.get_or_insert(error);
        }
    }
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
