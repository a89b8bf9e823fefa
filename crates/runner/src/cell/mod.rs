//! One cell: a quality pass to the natural end of sequence, then a timing pass of fixed length.

mod given;
mod origin;
mod quality;

pub(crate) use given::FullAnswers;
pub(crate) use origin::{model_record, task_record, written};

use crate::calibrate::{Calibrated, Part};
use crate::experiment::Experiment;
use crate::plan::{Cell, Plan};
use crate::prompter::Prompter;
use crate::task::TaskData;
use anyhow::Context;
use origin::{blank, made};
use skipbench_engine::{
    Beam, Block, Drift, Engine, Options, Outliers, StopTexts, TimingPlan, measure, speedup,
};
use skipbench_machine::{LoadMeter, QUIET, gpu_memory_bytes, peak_memory_bytes, reset_peak_memory};
use skipbench_metrics::{Hypotheses, Resampling, evaluate};
use skipbench_model::{CausalLm, Tokenize};
use skipbench_record::{Answer, Executed, Record, Score, Timing};
use skipbench_strategy::StrategySpec;
use std::cell::RefCell;
use std::sync::Arc;

/// A model in memory with its tokenizer.
pub struct Loaded {
    /// The model.
    pub model: Box<dyn CausalLm>,
    /// Its tokenizer.
    pub tokenizer: Arc<dyn Tokenize>,
}

/// A cell with everything that it is run with.
#[derive(Clone, Copy)]
pub(crate) struct CellRun<'a> {
    pub(crate) plan: &'a Plan,
    pub(crate) cell: &'a Cell,
    pub(crate) loaded: &'a Loaded,
    /// The full network's answers to the task, as far as they were asked for.
    pub(crate) full_answers: &'a RefCell<FullAnswers>,
    /// Hears how far it is.
    pub(crate) part: Part<'a>,
}

impl<'a> CellRun<'a> {
    /// Runs both passes of a cell whose strategy has been calibrated.
    ///
    /// # Errors
    /// A strategy that cannot be built, or a model that runs none of the prompts; one that fails alone is recorded as a
    /// failure of that prompt.
    pub(crate) fn everything(
        self,
        calibrated: &Calibrated,
    ) -> anyhow::Result<(Record, Vec<Answer>)> {
        let mut prompts = self.prompts()?;
        let is_shape = self.plan.models[self.cell.model].is_shape;
        if is_shape {
            // A batch shows what a token costs; there is nothing else to learn of it.
            prompts.truncate(self.cell.batch_size);
        }
        let mut pass = self.quality(&calibrated.spec, &prompts)?;
        let mut record = blank(self.plan, self.cell);
        record.notes.extend(calibrated.note.clone());
        record.notes.extend(pass.failures()?);
        record.executed = Some(Executed {
            spec: serde_json::to_value(&calibrated.spec)?,
            label: calibrated.spec.to_string(),
            threshold: calibrated.spec.threshold(),
            kv_fill: pass.kv_fill.clone(),
            calibration: calibrated.trace.clone(),
        });
        let scores = match is_shape {
            true => Vec::new(),
            false => self.scores(&pass.answers)?,
        };
        let mut quality = pass.record(scores);
        if is_shape {
            (quality.answers, pass.answers) = (0, Vec::new());
        }
        record.quality = Some(quality);
        if self.cell.timed {
            self.time(&mut record, &calibrated.spec)?;
        }
        Ok((record, pass.answers))
    }

    /// Times a cell anew whose answers stand.
    ///
    /// # Errors
    /// As [`CellRun::everything`].
    pub(crate) fn times(self, earlier: Record) -> anyhow::Result<Record> {
        let executed = earlier.executed.as_ref();
        let spec = executed.map_or_else(
            || serde_json::to_value(&self.cell.strategy),
            |executed| Ok(executed.spec.clone()),
        )?;
        let spec: StrategySpec = serde_json::from_value(spec)
            .with_context(|| format!("the strategy that {} ran with", self.cell.name()))?;
        let mut record = earlier;
        self.time(&mut record, &spec)?;
        Ok(record)
    }

    /// The record of a cell that cannot be run.
    pub(crate) fn failure(plan: &Plan, cell: &Cell, reason: String) -> Record {
        Record {
            failure: Some(reason),
            ..blank(plan, cell)
        }
    }

    fn task(self) -> &'a TaskData {
        &self.plan.tasks[self.cell.task]
    }

    fn engine(self) -> Engine<'a> {
        Engine::new(self.loaded.model.as_ref())
    }

    fn prompter(self) -> anyhow::Result<Prompter<'a>> {
        let model = &self.plan.models[self.cell.model].entry.path;
        self.task().prompter(model, self.loaded.tokenizer.as_ref())
    }

    /// Token ids of each prompt of the task.
    fn prompts(self) -> anyhow::Result<Vec<Vec<u32>>> {
        self.prompter()?.all_ids(&self.task().requests)
    }

    /// Scores under every metric of the task.
    fn scores(self, answers: &[Answer]) -> anyhow::Result<Vec<Score>> {
        let task = self.task();
        let hypotheses = Hypotheses::new(answers);
        let references = task.right();
        let resampling = Resampling {
            seed: self.plan.experiment.seed,
            ..Resampling::default()
        };
        task.metrics
            .iter()
            .map(|metric| {
                let evaluation = evaluate(metric, &hypotheses, &references)?;
                let interval = evaluation.interval(&resampling);
                Ok(Score {
                    metric: metric.to_string(),
                    score: evaluation.score(),
                    lo: interval.lo,
                    hi: interval.hi,
                    by_prompt: evaluation.segment_scores(),
                })
            })
            .collect()
    }

    /// The timing pass; one that cannot be made is a note.
    fn time(self, record: &mut Record, spec: &StrategySpec) -> anyhow::Result<()> {
        let (experiment, task) = (&self.plan.experiment, self.task());
        // Whole batches only: a short one would mix batch sizes. Prompts are used again where there are too few; one that
        // cannot be run has been counted as a failure in the quality pass.
        let fixed_length = Options {
            max_new_tokens: experiment.timing.new_tokens,
            ..Options::default()
        };
        let prompts = self.prompts()?;
        let runnable: Vec<&Vec<u32>> = prompts
            .iter()
            .filter(|prompt| {
                let alone = std::slice::from_ref(*prompt);
                self.engine().check(alone, &fixed_length).is_ok()
            })
            .collect();
        record.times_from.clone_from(&self.cell.identity.times);
        let mut timing = Timing {
            id: times_id(self.cell),
            blocks: Vec::new(),
            new_tokens: experiment.timing.new_tokens,
            peak_memory_bytes: None,
            peak_gpu_bytes: None,
            notes: Vec::new(),
            made: made(self.plan),
        };
        if runnable.is_empty() {
            timing.notes.push(format!(
                "not timed: no prompt leaves room for {} new tokens",
                experiment.timing.new_tokens
            ));
            record.timing = Some(timing);
            return Ok(());
        }
        let mut cycle = runnable.into_iter().cycle();
        let plan = TimingPlan {
            batches: (0..experiment.timing.batches)
                .map(|_| cycle.by_ref().take(self.cell.batch_size).cloned().collect())
                .collect(),
            ..timing_plan(self.cell, task, experiment)
        };
        reset_peak_memory();
        let load = LoadMeter::start();
        timing.blocks = measure(self.engine(), spec, &plan, &mut |done, all| {
            (self.part)("timed blocks", done as u64, all as u64);
        })?;
        timing.notes = doubts(&timing.blocks, load.others(), plan.precision);
        timing.peak_memory_bytes = peak_memory_bytes();
        let on_gpu = self.plan.machine.gpu.is_some();
        timing.peak_gpu_bytes = on_gpu.then(gpu_memory_bytes).flatten();
        record.timing = Some(timing);
        Ok(())
    }
}

/// Identifies everything that the times of a cell depend on.
fn times_id(cell: &Cell) -> String {
    let times = cell.identity.times.clone().unwrap_or_default();
    times.with("answers", &cell.id).id()
}

/// What a reader must know of the times.
fn doubts(blocks: &[Block], others: Option<f64>, precision: Option<f64>) -> Vec<String> {
    let load = others.filter(|share| *share > QUIET).map(|share| {
        format!(
            "other work took {:.0}% of the processor while this was timed",
            100.0 * share
        )
    });
    let half_width = speedup(blocks).and_then(|speedup| speedup.half_width());
    let missed = precision.filter(|wanted| half_width.is_none_or(|found| found > *wanted));
    let coarse = missed.map(|wanted| match half_width {
        Some(found) => format!(
            "a precision of {:.1}% was asked for, and {:.1}% was reached",
            100.0 * wanted,
            100.0 * found
        ),
        None => "a precision was asked for, and one batch has no interval".to_owned(),
    });
    let drift = Drift::of(blocks).map(|drift| drift.to_string());
    let outliers = Outliers::of(blocks).map(|outliers| outliers.to_string());
    [load, coarse, drift, outliers]
        .into_iter()
        .flatten()
        .collect()
}

/// Generation up to the end of sequence or a stop text, as a task's quality is measured.
///
/// # Errors
/// A stop text that the tokenizer refuses.
pub(crate) fn natural_end(
    tokenizer: &Arc<dyn Tokenize>,
    task: &TaskData,
) -> anyhow::Result<Options> {
    let (ids, stop) = StopTexts::with_ids(tokenizer, &task.stop)?;
    Ok(Options {
        max_new_tokens: task.max_new_tokens,
        eos_ids: [tokenizer.eos_ids(), &ids].concat(),
        stop,
        ..Options::default()
    })
}

fn beam(cell: &Cell, experiment: &Experiment) -> Option<Beam> {
    (cell.beams > 1).then_some(Beam {
        beams: cell.beams,
        length_penalty: experiment.length_penalty,
    })
}

/// Times that a batch is run at the most where a precision is asked for and no limit is set.
const MOST_REPEATS: usize = 32;

/// How a cell is timed, but for the prompts.
pub(crate) fn timing_plan(cell: &Cell, task: &TaskData, experiment: &Experiment) -> TimingPlan {
    let timing = &experiment.timing;
    TimingPlan {
        batches: Vec::new(),
        new_tokens: timing.new_tokens,
        planned_tokens: task.max_new_tokens,
        repeats: timing.repeats,
        precision: timing.precision,
        max_repeats: timing.max_repeats.unwrap_or(MOST_REPEATS),
        warm_up: timing.warm_up,
        seed: experiment.seed,
        beam: beam(cell, experiment),
        no_repeat_ngram: experiment.no_repeat_ngram,
    }
}
