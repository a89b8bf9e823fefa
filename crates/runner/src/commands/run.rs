//! `skipbench run`.

use crate::calibrate::{Calibrated, Calibration, runnable};
use crate::cell::{self, Loaded};
use crate::experiment::Match;
use crate::plan::{Cell, ModelPlan, Plan, RECORD_VERSION};
use crate::progress;
use crate::store::{Record, Sample, ScoreCache, Store, write_whole};
use crate::summary;
use anyhow::Context;
use candle_core::Device;
use clap::Args;
use serde::{Deserialize, Serialize};
use serde_json::json;
use skipbench_engine::{Engine, Options, TimingPlan};
use skipbench_model::{Backend, CausalLm, Decoder, TextTokenizer};
use skipbench_report::{ReportMeta, terminal_table};
use skipbench_strategy::BatchMode;
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Arguments of `skipbench run`.
#[derive(Debug, Args)]
pub struct RunArgs {
    /// YAML experiment
    experiment: PathBuf,
    /// Folder of the results, instead of the experiment's own
    #[arg(long)]
    out: Option<PathBuf>,
}

/// Runs every cell that is not finished yet, then writes the report.
///
/// # Errors
/// Whatever is wrong with the input; a cell that fails is recorded and the others go on.
pub fn run(args: RunArgs) -> anyhow::Result<ExitCode> {
    let mut plan = Plan::from_yaml(&args.experiment)?;
    if args.out.is_some() {
        plan.experiment.out = args.out;
    }
    let dir = plan.experiment.out_dir();
    let device = plan.experiment.device.open()?;
    let mut store = Store::open(&dir)?;
    let before = store.records.len();
    let failed = run_cells(&plan, &device, &mut store)?;
    let provenance = match store.records.len() > before {
        true => Provenance::now(&plan),
        false => Provenance::of(&dir, &plan)?,
    };
    write_report(&plan, &store, &dir, &provenance, &failed)?;
    Ok(match failed.is_empty() {
        true => ExitCode::SUCCESS,
        false => ExitCode::from(1),
    })
}

/// Gives the cells that failed, with why.
fn run_cells(
    plan: &Plan,
    device: &Device,
    store: &mut Store,
) -> anyhow::Result<Vec<(String, String)>> {
    let mut failed = Vec::new();
    let mut scores = ScoreCache::open(&plan.experiment.out_dir())?;
    let bar = progress::bar(plan.cells.len() as u64, "cells");
    for (index, model) in plan.models.iter().enumerate() {
        let todo: Vec<_> = plan
            .cells
            .iter()
            .filter(|cell| cell.model == index && !store.records.contains_key(&cell.id))
            .collect();
        let finished = plan.cells.iter().filter(|cell| cell.model == index).count() - todo.len();
        bar.inc(finished as u64);
        if todo.is_empty() {
            continue;
        }
        let loaded = load(plan, model, device)?;
        let mut tuner = Tuner {
            plan,
            model,
            loaded: &loaded,
            scores: &mut scores,
            texts: HashMap::new(),
            found: HashMap::new(),
        };
        for cell in todo {
            bar.set_message(format!(
                "{} batch {} {}",
                cell.task_name, cell.batch_size, cell.strategy
            ));
            match run_cell(&mut tuner, cell) {
                Ok((record, samples)) => store.append(record, samples)?,
                Err(error) => {
                    let name = format!(
                        "{} {} batch {} {}",
                        cell.model_name, cell.task_name, cell.batch_size, cell.strategy
                    );
                    failed.push((name, format!("{error:#}")));
                }
            }
            bar.inc(1);
        }
    }
    bar.finish_and_clear();
    Ok(failed)
}

fn run_cell(tuner: &mut Tuner<'_>, cell: &Cell) -> anyhow::Result<(Record, Vec<Sample>)> {
    let calibrated = tuner.calibrated(cell)?;
    let (plan, loaded) = (tuner.plan, tuner.loaded);
    cell::run(
        loaded,
        cell,
        &plan.tasks[cell.task],
        &calibrated,
        &plan.experiment,
    )
}

/// Calibrates the strategies of one model, each thing once.
struct Tuner<'a> {
    plan: &'a Plan,
    model: &'a ModelPlan,
    loaded: &'a Loaded,
    scores: &'a mut ScoreCache,
    /// By task.
    texts: HashMap<usize, Calibration<'a>>,
    found: HashMap<TunedFor, Calibrated>,
}

/// What the outcome of a calibration holds for.
#[derive(PartialEq, Eq, Hash)]
struct TunedFor {
    task: usize,
    strategy: String,
    /// Where time counts or rows wait: what is found in layers holds for every batch otherwise, since rows do not depend on
    /// it.
    batch_size: Option<usize>,
    beams: usize,
}

impl Tuner<'_> {
    fn calibrated(&mut self, cell: &Cell) -> anyhow::Result<Calibrated> {
        let experiment = &self.plan.experiment;
        let task = &self.plan.tasks[cell.task];
        let timed = experiment.matching == Match::Wallclock;
        let waits = cell.strategy.batch_mode() == BatchMode::Sync;
        if let (true, Some(band)) = (timed, cell.strategy.band())
            && band != cell.strategy
        {
            // All sets of a band have as many layers, whatever the clock says of each.
            let first = self.calibrated(&Cell {
                strategy: band,
                ..cell.clone()
            })?;
            return Ok(Calibrated {
                spec: match first.spec.target_speedup() {
                    Some(target) => cell.strategy.with_target(target),
                    None => cell.strategy.clone(),
                },
                ..first
            });
        }
        let key = TunedFor {
            task: cell.task,
            strategy: serde_json::to_string(&cell.strategy)?,
            batch_size: (timed || waits).then_some(cell.batch_size),
            beams: cell.beams,
        };
        if let Some(found) = self.found.get(&key) {
            return Ok(found.clone());
        }
        let engine = Engine::new(self.loaded.model.as_ref());
        let natural_end = cell::natural_end(self.loaded, task);
        let longest = Options {
            max_new_tokens: task.max_new_tokens.max(experiment.timing.new_tokens),
            ..Options::default()
        };
        let prompts = cell::tokenize_all(self.loaded.tokenizer.as_ref(), &task.calibration)?;
        let prompts = runnable(engine, prompts, &longest);
        let timing = TimingPlan {
            batches: prompts
                .chunks(cell.batch_size)
                .filter(|batch| batch.len() == cell.batch_size.min(prompts.len()))
                .take(experiment.timing.batches)
                .map(<[Vec<u32>]>::to_vec)
                .collect(),
            repeats: 2,
            ..cell::timing_plan(cell, task, experiment)
        };
        let text = match self.texts.entry(cell.task) {
            Entry::Occupied(found) => found.into_mut(),
            Entry::Vacant(free) => free.insert(Calibration::new(
                engine,
                prompts,
                natural_end,
                format!(
                    "{RECORD_VERSION}-{}-{}-{:?}-{:?}",
                    self.model.digest,
                    task.digest(),
                    experiment.device,
                    experiment.dtype
                ),
            )),
        };
        let found = text.calibrate(
            &cell.strategy,
            experiment.matching,
            &timing,
            cell.batch_size,
            self.scores,
        )?;
        self.found.insert(key, found.clone());
        Ok(found)
    }
}

fn load(plan: &Plan, model: &ModelPlan, device: &Device) -> anyhow::Result<Loaded> {
    let dtype = plan.experiment.dtype.map(Into::into);
    let decoder = Decoder::load(&model.entry.path, device, dtype, Backend::Auto)
        .with_context(|| format!("model `{}`", model.name))?;
    let tokenizer = TextTokenizer::load(&model.entry.path, decoder.sizes().vocab_size)?;
    Ok(Loaded {
        model: Box::new(decoder),
        tokenizer: Box::new(tokenizer),
    })
}

/// When, where and with what the cells of a run were measured.
#[derive(Serialize, Deserialize)]
pub(crate) struct Provenance {
    date: String,
    device: String,
    git_commit: Option<String>,
    versions: Versions,
}

#[derive(Serialize, Deserialize)]
struct Versions {
    skipbench: String,
}

impl Provenance {
    fn now(plan: &Plan) -> Self {
        Self {
            date: jiff::Zoned::now().strftime("%Y-%m-%d %H:%M %Z").to_string(),
            device: crate::load::describe_device(plan.experiment.device),
            git_commit: crate::load::git_commit(),
            versions: Versions {
                skipbench: env!("CARGO_PKG_VERSION").to_owned(),
            },
        }
    }

    /// What the `run.json` of the folder says: a report that is written again says where its cells were measured. A run
    /// that was cut off has none yet.
    ///
    /// # Errors
    /// A file that is there and cannot be read, or does not say it.
    pub(crate) fn of(dir: &Path, plan: &Plan) -> anyhow::Result<Self> {
        let path = dir.join("run.json");
        if !path.is_file() {
            return Ok(Self::now(plan));
        }
        let text = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        serde_json::from_str(&text).with_context(|| {
            format!(
                "{} does not say where the run was measured; remove it if this machine is the one",
                path.display()
            )
        })
    }
}

/// Writes `run.json`, the tables and the plots, and prints the table.
///
/// # Errors
/// A folder that cannot be written.
pub(crate) fn write_report(
    plan: &Plan,
    store: &Store,
    dir: &Path,
    provenance: &Provenance,
    failed: &[(String, String)],
) -> anyhow::Result<()> {
    let rows = summary::rows(plan, store)?;
    let mut meta = meta(plan, provenance);
    if rows.len() < plan.cells.len() {
        meta.notes.push(format!(
            "Not complete: {} of {} cells have a result.",
            rows.len(),
            plan.cells.len()
        ));
    }
    for (cell, error) in failed {
        meta.notes.push(format!("Failed: {cell}: {error}"));
    }
    let run = json!({
        "experiment": plan.experiment,
        "versions": provenance.versions,
        "date": provenance.date,
        "device": provenance.device,
        "git_commit": provenance.git_commit,
        "models": plan.models.iter().map(|model| json!({
            "name": model.name, "path": model.entry.path, "n_layers": model.n_layers, "digest": model.digest,
        })).collect::<Vec<_>>(),
        "tasks": plan.tasks.iter().map(|task| json!({
            "name": task.name, "prompts": task.prompts.len(), "digest": task.digest(),
        })).collect::<Vec<_>>(),
        "cells": plan.cells,
        "seed": plan.experiment.seed,
    });
    write_whole(&dir.join("run.json"), &format!("{run:#}\n"))?;
    skipbench_report::write(dir, &meta, &rows)?;
    let mut out = std::io::stdout().lock();
    writeln!(out, "{}", terminal_table(&rows))?;
    for note in &meta.notes {
        writeln!(out, "Note: {note}")?;
    }
    writeln!(out, "Report: {}", dir.join("report.html").display())?;
    Ok(())
}

fn meta(plan: &Plan, provenance: &Provenance) -> ReportMeta {
    ReportMeta {
        experiment: plan.experiment.name.clone(),
        title: plan
            .experiment
            .title
            .clone()
            .unwrap_or_else(|| plan.experiment.name.clone()),
        models: plan
            .models
            .iter()
            .map(|model| format!("{} ({} layers)", model.name, model.n_layers))
            .collect(),
        device: provenance.device.clone(),
        date: provenance.date.clone(),
        git_commit: provenance.git_commit.clone(),
        version: provenance.versions.skipbench.clone(),
        seed: plan.experiment.seed,
        notes: plan.experiment.notes.clone(),
    }
}
