//! `skipbench train`.

mod config;
mod data;
mod depths;
mod objective;
mod out;
mod start;
mod task;
#[cfg(test)]
mod testing;
mod validation;

use crate::digest::CheckpointDigest;
use crate::progress::Progress;
use anyhow::{Context, bail};
use clap::Args;
use config::TrainFile;
use data::{PairSource, TooLong};
use skipbench_report::LossSeries;
use skipbench_train::objective::Term;
use skipbench_train::{Batch, Net, StepReport, Trainer};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};
use validation::Validation;

/// Arguments of `skipbench train`.
#[derive(Debug, Args)]
pub struct TrainArgs {
    /// YAML config of the run
    config: PathBuf,
    /// Stop behind the step that is under way after this many minutes; the same command goes on
    #[arg(long, value_parser = minutes, allow_negative_numbers = true)]
    minutes: Option<Duration>,
    /// Train anew where `out` holds a finished checkpoint, and replace that once the training has ended
    #[arg(long)]
    force: bool,
}

fn minutes(text: &str) -> Result<Duration, String> {
    match text.parse::<f64>() {
        Ok(minutes) if minutes.is_finite() && minutes > 0.0 => {
            Duration::try_from_secs_f64(minutes * 60.0)
                .map_err(|_| "more than a clock can count; leave it out for no limit".to_owned())
        }
        Ok(_) => Err("it must be above 0 and finite; leave it out for no limit".to_owned()),
        Err(_) => Err("not a number of minutes, such as 30 or 0.5".to_owned()),
    }
}

/// Trains, or goes on with what was cut off.
///
/// # Errors
/// A config that does not parse or cannot work, data that cannot be read, a folder that cannot be written or holds
/// what this run may not replace.
pub fn run(args: TrainArgs) -> anyhow::Result<ExitCode> {
    crate::allocator::keep_freed_memory();
    // A clock that does not reach so far never stops the run.
    let deadline = args
        .minutes
        .and_then(|minutes| Instant::now().checked_add(minutes));
    let file = TrainFile::read(&args.config)?;
    let in_file = || args.config.display().to_string();
    let start = file.start()?;
    let start = start.as_ref();
    let architecture = file.architecture(start)?;
    let objective = file.objective(architecture.config().n_layers)?;
    let state_bytes = architecture.state_bytes(file.adapter.as_ref());
    check_memory("this model", state_bytes).with_context(in_file)?;
    if let (Some(start), Some(adapter)) = (start, &file.adapter) {
        Net::check_adapter(&start.path, adapter).with_context(in_file)?;
    }
    let digest = start.map(|start| CheckpointDigest::of(&start.path));
    let digest = digest.transpose()?;
    let sources = file.sources()?;
    let context = file.context(&sources, digest.as_ref())?;

    let settings = skipbench_train::settings_of_run(&file.train, &architecture, &context)?;
    if out::is_finished(&file.out, &settings, args.force)? {
        say(&format!(
            "nothing to do: {} is finished; --force trains anew",
            file.out.display()
        ));
        return Ok(ExitCode::SUCCESS);
    }
    let work = out::Work::open(&file.out)?;
    let words = file.words(&sources, work.dir(), start)?;
    let finished = file.finished(&words, start.zip(digest.as_ref()))?;
    let longest = architecture.max_positions();
    let mut pairs = PairSource::new(sources, &words, start, &file.train, longest, file.too_long)?;
    let net = file.net(start)?.recomputing(file.train.recompute)?;
    let mut trainer = Trainer::new(work.dir(), &file.train, &context, net)?;

    let validation = file.validation.as_ref();
    let mut validation = validation
        .map(|entry| {
            let sources = entry.sources().with_context(in_file)?;
            // What is refused in the data that is learnt is left out here.
            let too_long = match file.too_long {
                TooLong::Refuse => TooLong::LeaveOut,
                other => other,
            };
            let pairs = PairSource::new(sources, &words, start, &file.train, longest, too_long)?;
            Validation::open(entry, &pairs, &file.train, &trainer, work.dir())
        })
        .transpose()?;

    let mut account = Account::begin(&file, &trainer);
    for fit in pairs.fits() {
        say(&fit.text());
    }
    if validation.as_ref().is_some_and(Validation::is_over) {
        trainer.stop_early();
    }
    while !trainer.is_done() {
        let step = trainer.step();
        let pairs = pairs.batch(step)?;
        let batch = Batch::new(pairs, file.train.loss_on);
        let step = objective.step(step, pairs, &batch, trainer.net())?;
        let parts = file.train.accumulate;
        let bytes = architecture.step_bytes(
            batch.rows.div_ceil(parts) * batch.seq * step.tracked_passes(),
            batch.counted.len().div_ceil(parts) * step.heads_at_once(),
            file.train.recompute,
        );
        check_memory("a step of this batch size", state_bytes + bytes).with_context(in_file)?;
        let done = trainer.update(&batch, &step)?;
        account.tell(&done, &step.terms);
        if let Some(validation) = &mut validation
            && validation.is_due(&trainer)
        {
            account.say(&validation.run(&trainer)?);
            if validation.is_best() {
                trainer.keep_best()?;
            }
            if validation.is_over() {
                trainer.stop_early();
            }
        }
        if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
            break;
        }
    }
    if trainer.is_done() {
        let ends = match trainer.step() {
            step if step < file.train.steps => {
                format!("ended early at step {step} of {}", file.train.steps)
            }
            steps => format!("finished all {steps} steps"),
        };
        if validation.as_ref().is_some_and(Validation::takes_best) {
            trainer.take_best()?;
        }
        trainer.export(&file.out, &finished)?;
        account.end(&format!("{ends}: {}", file.out.display()));
    } else {
        trainer.save()?;
        account.end(&format!(
            "stopped at step {} of {}: the same command goes on from there; {} gets its checkpoint behind the last step",
            trainer.step(),
            file.train.steps,
            file.out.display()
        ));
    }
    let curves = validation.map_or_else(Vec::new, |validation| validation.series());
    draw_loss(work.dir(), curves)?;
    Ok(ExitCode::SUCCESS)
}

/// Refuses what does not fit into this machine's memory before it is tried.
fn check_memory(what: &str, bytes: f64) -> anyhow::Result<()> {
    let mut system = sysinfo::System::new();
    system.refresh_memory();
    let gib = |bytes: f64| bytes / (1u64 << 30) as f64;
    let (needed, there) = (gib(bytes), gib(system.total_memory() as f64));
    if needed > there {
        bail!(
            "training {what} takes about {needed:.0} GiB of memory, and this machine has {there:.0} GiB; use a smaller `shape` or `batch-size`"
        );
    }
    Ok(())
}

/// What a run says on stderr.
struct Account {
    progress: Progress,
    steps: u64,
    loss: Option<f64>,
}

impl Account {
    fn begin(file: &TrainFile, trainer: &Trainer) -> Self {
        let steps = file.train.steps;
        let progress = Progress::new(steps, "steps");
        progress.skip(trainer.step());
        let replaces = match out::has_weights(&file.out) {
            true => "; the checkpoint there stays until it has ended",
            false => "",
        };
        let out = file.out.display();
        let message = match trainer.step() {
            0 => format!(
                "training {out}: {steps} steps of {} pairs{replaces}",
                file.train.batch_size
            ),
            step => format!("training {out}: goes on at step {step} of {steps}{replaces}"),
        };
        say(&message);
        Self {
            progress,
            steps,
            loss: None,
        }
    }

    fn tell(&mut self, done: &StepReport, terms: &[Term]) {
        let last = f64::from(done.loss);
        let loss = self.loss.map_or(last, |mean| 0.98 * mean + 0.02 * last);
        self.loss = Some(loss);
        self.progress.set_message(format!(
            "loss {loss:.4}, {:.0} tokens/s",
            done.tokens as f64 / done.step_s
        ));
        self.progress.inc(1);
        let every = self.steps.div_ceil(100);
        self.progress.suspend(|| {
            if done.step.is_multiple_of(every) {
                tracing::info!(
                    "step {}: loss {last:.4}{}, {:.2} layers per token, gradient norm {:.3}, rate {:.2e}",
                    done.step,
                    single_losses(done, terms),
                    done.layers_per_token(),
                    done.grad_norm,
                    done.rate
                );
            }
            if done.saved {
                say(&format!(
                    "checkpoint at step {} of {}: loss {loss:.4}",
                    done.step, self.steps
                ));
            }
        });
    }

    /// Says something above the progress bar.
    fn say(&self, message: &str) {
        self.progress.suspend(|| say(message));
    }

    fn end(self, message: &str) {
        drop(self.progress);
        say(message);
    }
}

/// The losses of a step that has several, before they are weighed.
fn single_losses(done: &StepReport, terms: &[Term]) -> String {
    if terms.len() < 2 {
        return String::new();
    }
    let losses = terms.iter().zip(&done.terms);
    let losses: Vec<String> = losses
        .map(|(term, loss)| format!("{} {loss:.4}", term.loss))
        .collect();
    format!(" ({})", losses.join(", "))
}

/// Nothing is left to tell if stderr is gone.
fn say(message: &str) {
    let _ = writeln!(std::io::stderr(), "{message}");
}

/// `loss.csv` as a plot beside it.
fn draw_loss(work: &Path, validation: Vec<LossSeries>) -> anyhow::Result<()> {
    let path = work.join("loss.csv");
    let text = std::fs::read_to_string(&path)
        .with_context(|| format!("cannot read {}", path.display()))?;
    let points = text
        .lines()
        .skip(1)
        .filter_map(|line| {
            let mut cells = line.split(',');
            Some((cells.next()?.parse().ok()?, cells.next()?.parse().ok()?))
        })
        .collect();
    let series = LossSeries {
        name: "training loss".to_owned(),
        points,
    };
    let mut curves = vec![series];
    curves.extend(validation);
    skipbench_report::loss_plot(&work.join("loss.svg"), &curves)?;
    Ok(())
}
