//! About how long a plan takes, from a short look at the clock.

use crate::cell::natural_end;
use crate::experiment::Experiment;
use crate::plan::{Cell, ModelPlan, Plan};
use crate::prompter::Prompter;
use crate::task::{Given, TaskData};
use anyhow::{Context, bail};
use serde::Serialize;
use skipbench_engine::{Beam, Engine, Options};
use skipbench_model::CausalLm;
use skipbench_strategy::StrategySpec;
use std::collections::HashMap;

/// Decode steps that are timed; an answer that goes on beyond counts as the longest that the task allows.
const STEPS: usize = 32;

/// Seconds that the full network would take for everything that the cells do: what strategies save is not known before they
/// run, nor what it costs to calibrate them.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub(crate) struct Estimate {
    /// Of the passes to the natural end of the answers.
    pub(crate) quality_s: f64,
    /// Of the timing passes.
    pub(crate) timing_s: f64,
}

impl Estimate {
    pub(crate) fn total_s(self) -> f64 {
        self.quality_s + self.timing_s
    }
}

/// What one batch takes.
#[derive(Debug, Clone, Copy)]
struct Pace {
    prefill_s: f64,
    step_s: f64,
    /// Decode steps until the last row of a batch ends.
    steps: f64,
    /// Batches of the quality pass.
    batches: usize,
}

/// Loads each model, runs its first batches under the full network and reckons what the cells take.
///
/// # Errors
/// A model that cannot be loaded, a device that is not there, a first batch that cannot be run.
pub(crate) fn estimate(plan: &Plan) -> anyhow::Result<Estimate> {
    if let Some(download) = plan.models.iter().find_map(|m| m.download.as_ref()) {
        bail!("the weights of {} are not here yet", download.model);
    }
    let mut estimate = Estimate::default();
    let device = plan.experiment.device.open()?;
    for (index, model) in plan.models.iter().enumerate() {
        let (decoder, tokenizer) = model.load(&plan.experiment, &device)?;
        let mut paces: HashMap<(usize, usize, usize), Pace> = HashMap::new();
        for cell in plan.cells.iter().filter(|cell| cell.model == index) {
            let task = &plan.tasks[cell.task];
            let key = (cell.task, cell.batch_size, cell.beams);
            let pace = match paces.get(&key) {
                Some(pace) => *pace,
                None => {
                    let prompter = task.prompter(&model.entry.path, tokenizer.as_ref())?;
                    let options = natural_end(&tokenizer, task)?;
                    let pace =
                        Pace::measure(&decoder, &prompter, options, task, cell, &plan.experiment)
                            .with_context(|| format!("task `{}`", task.name))?;
                    tracing::info!("{} at batch {}: {pace:?}", task.name, cell.batch_size);
                    paces.insert(key, pace);
                    pace
                }
            };
            estimate.add(pace, cell, model, &plan.experiment);
        }
    }
    Ok(estimate)
}

impl Estimate {
    fn add(&mut self, pace: Pace, cell: &Cell, model: &ModelPlan, experiment: &Experiment) {
        let passes = cell
            .strategy
            .menu(model.n_layers)
            .map_or(1, |menu| menu.len());
        let batches = (pace.batches * passes) as f64;
        self.quality_s += batches * (pace.prefill_s + pace.step_s * pace.steps);
        let timing = &experiment.timing;
        if cell.timed && timing.batches > 0 {
            // Each block runs under the full network and under the strategy.
            let blocks = 2 * (timing.batches * timing.repeats + timing.warm_up);
            let steps = timing.new_tokens.saturating_sub(1) as f64;
            self.timing_s += blocks as f64 * (pace.prefill_s + pace.step_s * steps);
        }
    }
}

impl Pace {
    fn measure(
        model: &dyn CausalLm,
        prompter: &Prompter<'_>,
        natural_end: Options,
        task: &TaskData,
        cell: &Cell,
        experiment: &Experiment,
    ) -> anyhow::Result<Self> {
        let engine = Engine::new(model);
        let limit = task.max_new_tokens.min(STEPS + 1);
        let options = Options {
            max_new_tokens: limit,
            beam: (cell.beams > 1).then_some(Beam {
                beams: cell.beams,
                length_penalty: experiment.length_penalty,
            }),
            no_repeat_ngram: experiment.no_repeat_ngram,
            ..natural_end
        };
        let positions = model.sizes().max_positions;
        let rows = match &task.given {
            Given::Nothing => task.requests.len(),
            Given::Questions(questions) => questions.iter().map(|q| q.choices.len()).sum(),
            Given::Texts(_, windows) => {
                let window = windows.window(positions)?;
                let stride = windows.stride.unwrap_or(window);
                let lengths = task.requests.iter().map(|request| prompter.ids(request));
                let windows = lengths.map(|ids| Ok(ids?.len().div_ceil(stride)));
                windows.sum::<anyhow::Result<usize>>()?
            }
        };
        let mut batch = Vec::new();
        for request in &task.requests {
            let mut ids = prompter.ids(request)?;
            if let Given::Texts(_, windows) = &task.given {
                let room = windows.window(positions)?.saturating_sub(limit);
                ids.truncate(room.max(1));
            }
            if engine.check(std::slice::from_ref(&ids), &options).is_ok() {
                batch.push(ids);
            }
            if batch.len() == cell.batch_size {
                break;
            }
        }
        let mut full = StrategySpec::full().build(model.sizes().n_layers)?;
        let mut run = || engine.generate(&batch, full.as_mut(), &options);
        // The first touches memory for the first time.
        run()?;
        let generation = run()?;
        let taken = generation.step_s.len();
        let all_ended = generation.rows.iter().all(|row| row.tokens.len() < limit);
        Ok(Self {
            prefill_s: generation.prefill_s,
            step_s: generation.step_s.iter().sum::<f64>() / taken.max(1) as f64,
            steps: match (&task.given, all_ended) {
                // What is given takes a pass.
                (Given::Questions(_) | Given::Texts(..), _) => 0.0,
                (Given::Nothing, true) => taken as f64,
                (Given::Nothing, false) => task.max_new_tokens.saturating_sub(1) as f64,
            },
            batches: rows.div_ceil(cell.batch_size),
        })
    }
}
