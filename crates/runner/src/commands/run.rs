//! `skipbench run`.

use crate::calibrate::{Calibrated, Calibrator, Part, Target, runnable};
use crate::cell::{self, CellRun, Loaded};
use crate::experiment::{ExperimentArgs, Shard, ShardArgs};
use crate::identity::{clocked_by, computed_by, on_text};
use crate::memo::Memo;
use crate::plan::{Cell, ModelPlan, Plan, Weights};
use crate::preview;
use crate::progress::{Progress, end_on_signals, end_with_parent};
use crate::prompter::Request;
use crate::samples;
use crate::sweep::workers::{Duty, Workers};
use crate::sweep::{self, Reach, Stranger, Sweep};
use candle_core::Device;
use clap::Args;
use skipbench_engine::{Engine, Options, TimingPlan};
use skipbench_machine::{Checkup, Finding};
use skipbench_prompts::Message;
use skipbench_record::{Answer, Folder, Prompt, Record, Run, Standing};
use skipbench_report::Report;
use std::cell::RefCell;
use std::collections::HashSet;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Arguments of `skipbench run`.
#[derive(Debug, Args)]
pub struct RunArgs {
    #[command(flatten)]
    experiment: ExperimentArgs,
    #[command(flatten)]
    share: ShardArgs,
    /// Processes that share the cells: one for each of `devices`, or of the first N GPUs. On a CPU they make the answers, and
    /// the cells are timed afterwards, one after another
    #[arg(long, value_name = "N")]
    jobs: Option<usize>,
    /// Folder of a sweep that `submit` has begun: the shard writes to DIR/shards, reads what the other shards have found on
    /// calibration text, and leaves out the cells that any machine has finished
    #[arg(long, value_name = "DIR", requires = "shard", conflicts_with = "out")]
    sweep: Option<PathBuf>,
    /// What to do of each cell, as a worker of another process
    #[arg(long, hide = true, requires = "sweep")]
    worker: Option<Duty>,
}

/// Runs every cell that is not finished yet, then writes the report.
///
/// # Errors
/// Whatever is wrong with the input; a cell that fails is recorded and the others go on.
pub fn run(args: &RunArgs) -> anyhow::Result<ExitCode> {
    end_on_signals("stopped; the same command goes on where it stopped");
    if args.worker.is_some() {
        end_with_parent();
    }
    let mut plan = Plan::of(&args.experiment, Weights::Needed)?;
    let share = args.share.shard.unwrap_or(Shard::WHOLE);
    let sweep = args.sweep.as_ref();
    let sweep = sweep.map(|dir| Sweep::join(dir, &plan)).transpose()?;
    plan.keep(share);
    if args.worker == Some(Duty::Answers) {
        plan.leave_times();
    }
    let workers = match args.worker {
        Some(_) => None,
        None => Workers::of(&plan.experiment, args.jobs)?,
    };
    // Before anything is written.
    let device = match &workers {
        Some(Workers::Gpus(_)) => plan.experiment.device.check_built().map(|()| None)?,
        _ => Some(plan.experiment.device.open()?),
    };
    let dir = match &sweep {
        Some(sweep) => sweep.folder_of(share),
        None => plan.experiment.out_dir(),
    };
    if workers.is_some() && sweep.is_none() {
        Sweep::check_no_jobs(&dir)?;
    }
    let mut info = plan.info()?;
    if plan.cells.iter().any(|cell| cell.timed) {
        let machine = &plan.machine;
        let checkup = Checkup::quick(machine.threads, machine.gpu.is_some());
        warn(&checkup.findings(machine));
        info.written.checkup = Some(checkup);
    }
    let mut folder = Folder::open(&dir, &info)?;
    for warning in folder.warnings() {
        tracing::warn!("{warning}");
    }
    for warning in preview::warnings(&plan)? {
        tracing::warn!("{warning}");
    }
    let mut todo = Todo {
        sweep: sweep.as_ref(),
        failed: HashSet::new(),
    };
    if let Some(sweep) = &sweep {
        folder.count_too(&sweep.counted(&dir)?)?;
    }
    if let Some(workers) = workers {
        let begun;
        let sweep = match &sweep {
            Some(sweep) => sweep,
            None => {
                begun = Sweep::at(&dir, workers.count(), Reach::Machine)?;
                begun.begin(&plan)?;
                &begun
            }
        };
        todo.failed = share_out(&workers, sweep, share, &plan, &mut folder)?;
    }
    let mut shown = HashSet::new();
    let mut failed = todo.failed.len();
    // GPUs that have workers are theirs alone; what those leave undone is run by the same command.
    if let Some(device) = device {
        failed += run_cells(&plan, &device, &todo, &mut folder, &mut shown)?;
    }
    folder.close()?;
    samples::write(&plan, &dir)?;
    if sweep.is_none() {
        write_report(&dir, &shown)?;
    }
    Ok(match failed {
        0 => ExitCode::SUCCESS,
        _ => ExitCode::from(1),
    })
}

/// Has workers run the cells that are not finished, and takes over what they leave; gives the ids of cells that failed, or
/// that a worker has left undone although nobody else may do them.
fn share_out(
    workers: &Workers,
    sweep: &Sweep,
    share: Shard,
    plan: &Plan,
    folder: &mut Folder,
) -> anyhow::Result<HashSet<String>> {
    let times = |cell: &Cell| match workers.duty() {
        Duty::All => cell.identity.times.clone(),
        Duty::Answers => None,
    };
    let is_left = |folder: &Folder, cell: &&Cell| {
        let times = times(cell);
        !folder.is_done(&cell.identity.answers, times.as_ref(), sweep.ignoring())
    };
    let parts = workers.shards(share).map(|part| sweep.folder_of(part));
    let parts: Vec<PathBuf> = parts.collect();
    let is_ours = |dir: &PathBuf| share == Shard::WHOLE || parts.contains(dir);
    let (mut known, strangers) = sweep.folders()?;
    for Stranger { dir, reason } in strangers {
        tracing::warn!("{} {reason}; what it holds is not used", dir.display());
    }
    // What an earlier run was stopped before it could take over.
    known.retain(is_ours);
    sweep::merge(folder, &known)?;
    let left = plan.cells.iter().filter(|cell| is_left(folder, cell));
    let left = left.count();
    if left > 0 {
        workers.run(sweep, share, left)?;
        let (mut known, _) = sweep.folders()?;
        known.retain(is_ours);
        sweep::merge(folder, &known)?;
    }
    let mut failed = HashSet::new();
    for cell in plan.cells.iter().filter(|cell| is_left(folder, cell)) {
        let record = folder.record(&cell.id)?;
        match record.as_ref().and_then(Record::why_failed) {
            Some(reason) => tracing::error!("{} failed: {reason}", cell.name()),
            // This process may yet do what a worker did not come to.
            None if workers.duty() == Duty::Answers => continue,
            None => tracing::error!("{} is missing: its worker ended early", cell.name()),
        }
        failed.insert(cell.id.clone());
    }
    Ok(failed)
}

/// Says what makes times of this machine doubtful. Other load is told of each cell, and energy that is not counted is only absent.
fn warn(findings: &[Finding]) {
    let told = findings
        .iter()
        .filter(|finding| finding.what != "energy counters");
    for finding in told {
        if let Some(advice) = &finding.advice {
            tracing::warn!("{}: {}; {advice}", finding.what, finding.found);
        }
    }
}

/// What a table holds: the cells of one model, task, batch size and number of beams.
type Group = (String, String, usize, usize);

fn group(record: &Record) -> Group {
    let (model, task) = (record.model.name.clone(), record.task.name.clone());
    (model, task, record.search.batch_size, record.search.beams)
}

/// Prints the table of a group as soon as all of it is finished.
fn show(dir: &Path, finished: &Group) -> anyhow::Result<()> {
    let mut runs = [Run::read(dir)?];
    runs[0].records.retain(|record| group(record) == *finished);
    // Nobody who listens is no reason to stop the run.
    let _ = print(&Report::of(&runs)?.terminal_tables());
    Ok(())
}

/// Draws the report of a folder, and prints the tables that were not `shown` yet and what they all mean.
pub(super) fn write_report(dir: &Path, shown: &HashSet<Group>) -> anyhow::Result<()> {
    let mut runs = [Run::read(dir)?];
    let report = Report::of(&runs)?;
    report.write(dir)?;
    let notes = report.terminal_notes();
    runs[0]
        .records
        .retain(|record| !shown.contains(&group(record)));
    let tables = Report::of(&runs)?.terminal_tables();
    let path = dir.join("report.html");
    print(&format!("{tables}{notes}Report: {}\n", path.display()))
}

fn print(text: &str) -> anyhow::Result<()> {
    Ok(std::io::stdout().lock().write_all(text.as_bytes())?)
}

/// What is left to do of a cell.
enum Work {
    Everything,
    /// Its answers stand.
    Times,
}

/// Which cells are left to this process.
struct Todo<'a> {
    /// What other shards have finished is done.
    sweep: Option<&'a Sweep>,
    /// Ids of cells that have just failed elsewhere.
    failed: HashSet<String>,
}

impl Todo<'_> {
    /// What is left of a cell, saying why where it had been finished before.
    fn of(&self, folder: &Folder, cell: &Cell) -> Option<Work> {
        let identity = &cell.identity;
        let is_done = |sweep: &Sweep| {
            folder.is_done(&identity.answers, identity.times.as_ref(), sweep.ignoring())
        };
        if self.failed.contains(&cell.id) || self.sweep.is_some_and(is_done) {
            return None;
        }
        left(folder, cell)
    }
}

/// Gives the number of cells that failed, or in which a prompt failed.
fn run_cells(
    plan: &Plan,
    device: &Device,
    todo: &Todo<'_>,
    folder: &mut Folder,
    shown: &mut HashSet<Group>,
) -> anyhow::Result<usize> {
    let mut memo = match todo.sweep {
        Some(sweep) => sweep.memo(folder.dir())?,
        None => Memo::open(folder.dir())?,
    };
    let progress = Progress::new(plan.cells.len() as u64, "cells");
    let part = |name, done, total| progress.part(name, done, total);
    let mut failed = 0;
    for (index, model) in plan.models.iter().enumerate() {
        let mut rest = Vec::new();
        for cell in plan.cells.iter().filter(|cell| cell.model == index) {
            match todo.of(folder, cell) {
                Some(work) => rest.push((cell, work)),
                None => progress.skip(1),
            }
        }
        if rest.is_empty() {
            continue;
        }
        let loaded = load(plan, model, device)?;
        for task in 0..plan.tasks.len() {
            let cells: Vec<_> = rest.iter().filter(|(cell, _)| cell.task == task).collect();
            if cells.is_empty() {
                continue;
            }
            folder.add_prompts(&prompts(plan, task))?;
            let full_answers = RefCell::default();
            let mut calibrator = calibrator(plan, model, task, &loaded, &mut memo, &part)?;
            let mut rest = cells.iter().peekable();
            while let Some((cell, work)) = rest.next() {
                progress.set_message(cell.name());
                let run = CellRun {
                    plan,
                    cell,
                    loaded: &loaded,
                    full_answers: &full_answers,
                    part: &part,
                };
                let outcome = run_cell(run, work, folder, &mut calibrator);
                let (record, answers) = outcome.unwrap_or_else(|error| {
                    (
                        CellRun::failure(plan, cell, format!("{error:#}")),
                        Vec::new(),
                    )
                });
                if let Some(reason) = record.why_failed() {
                    failed += 1;
                    tracing::error!("{} failed: {reason}", cell.name());
                }
                folder.append(&record, &answers)?;
                progress.inc(1);
                let setting = (cell.batch_size, cell.beams);
                if rest
                    .peek()
                    .is_none_or(|(next, _)| (next.batch_size, next.beams) != setting)
                {
                    let finished = group(&record);
                    if todo.sweep.is_none() {
                        progress.suspend(|| show(folder.dir(), &finished))?;
                    }
                    shown.insert(finished);
                }
            }
        }
    }
    drop(progress);
    Ok(failed)
}

/// What is left of a cell, saying why where it had been finished before.
fn left(folder: &Folder, cell: &Cell) -> Option<Work> {
    let identity = &cell.identity;
    let name = cell.name();
    let say = |what: &str, changed: &[String]| {
        if !changed.is_empty() {
            let changed = changed.join(", ");
            tracing::warn!("{name}: {what}, since this has changed: {changed}");
        }
    };
    match folder.standing(&name, &identity.answers, identity.times.as_ref()) {
        Standing::Done => None,
        Standing::AnswersOnly(changed) => {
            say("timed again", &changed);
            Some(Work::Times)
        }
        Standing::Missing(changed) => {
            say("run again", &changed);
            Some(Work::Everything)
        }
    }
}

fn run_cell(
    run: CellRun<'_>,
    work: &Work,
    folder: &Folder,
    calibrator: &mut Calibrator<'_>,
) -> anyhow::Result<(Record, Vec<Answer>)> {
    if let Work::Times = work
        && let Some(earlier) = folder.record(&run.cell.id)?
    {
        return Ok((run.times(earlier)?, Vec::new()));
    }
    let calibrated = calibrated(run, calibrator)?;
    run.everything(&calibrated)
}

/// The strategy of a cell with everything that is found on calibration text.
fn calibrated(run: CellRun<'_>, calibrator: &mut Calibrator<'_>) -> anyhow::Result<Calibrated> {
    let (plan, cell) = (run.plan, run.cell);
    let timing = TimingPlan {
        batches: calibrator
            .prompts
            .chunks(cell.batch_size)
            .filter(|batch| batch.len() == cell.batch_size.min(calibrator.prompts.len()))
            .take(plan.experiment.timing.batches)
            .map(<[Vec<u32>]>::to_vec)
            .collect(),
        repeats: 2,
        ..cell::timing_plan(cell, &plan.tasks[cell.task], &plan.experiment)
    };
    let target = Target::of(plan.experiment.matching, cell.batch_size, timing);
    match (&target, cell.strategy.band()) {
        (Target::Wallclock(_), Some(band)) => {
            // All sets of a band have as many layers, whatever the clock says of each.
            let first = calibrator.calibrate(&band, &target)?;
            Ok(Calibrated {
                spec: match first.spec.target_speedup() {
                    Some(speedup) => cell.strategy.with_target(speedup),
                    None => cell.strategy.clone(),
                },
                ..first
            })
        }
        _ => calibrator.calibrate(&cell.strategy, &target),
    }
}

fn calibrator<'a>(
    plan: &'a Plan,
    model: &ModelPlan,
    task: usize,
    loaded: &'a Loaded,
    memo: &'a mut Memo,
    part: Part<'a>,
) -> anyhow::Result<Calibrator<'a>> {
    let (experiment, task) = (&plan.experiment, &plan.tasks[task]);
    let engine = Engine::new(loaded.model.as_ref());
    let longest = Options {
        max_new_tokens: task.max_new_tokens.max(experiment.timing.new_tokens),
        ..Options::default()
    };
    let prompter = task.prompter(&model.entry.path, loaded.tokenizer.as_ref())?;
    let prompts = prompter.all_ids(&task.calibration)?;
    let depends_on = computed_by(on_text(experiment, model, task), &plan.machine);
    Ok(Calibrator {
        engine,
        prompts: runnable(engine, prompts, &longest),
        options: cell::natural_end(&loaded.tokenizer, task)?,
        clocked_by: clocked_by(depends_on.clone(), &plan.machine)
            .with("timing settings", &experiment.timing)
            .with("seed", experiment.seed),
        depends_on,
        memo,
        answers: None,
        part,
    })
}

/// What a task asks, as the folder keeps it.
fn prompts(plan: &Plan, task: usize) -> Vec<Prompt> {
    let task = &plan.tasks[task];
    let texts = task.texts_digest();
    let items = task.ids.iter().zip(&task.requests).zip(&task.references);
    items
        .enumerate()
        .map(|(index, ((id, request), references))| {
            let (prompt, messages) = match request {
                Request::Text(text) => (text.clone(), None),
                // The user's turn, and all that was said.
                Request::Chat(messages) => (
                    messages
                        .last()
                        .map(Message::content)
                        .unwrap_or_default()
                        .to_owned(),
                    Some(serde_json::json!(messages)),
                ),
            };
            Prompt {
                task: texts.clone(),
                id: id.clone(),
                prompt,
                messages,
                references: references.clone(),
                choices: task.choices_of(index),
                right: task.right_of(index).choice,
            }
        })
        .collect()
}

fn load(plan: &Plan, model: &ModelPlan, device: &Device) -> anyhow::Result<Loaded> {
    let (decoder, tokenizer) = model.load(&plan.experiment, device)?;
    Ok(Loaded {
        model: Box::new(decoder),
        tokenizer,
    })
}
