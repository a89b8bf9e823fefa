//! `skipbench doctor`.

use super::print_json;
use crate::experiment::DeviceName;
use crate::identity::this_machine;
use crate::models;
use anyhow::Context;
use clap::Args;
use serde::Serialize;
use skipbench_engine::{Engine, Options, TimingPlan, copied_bytes_per_s, measure, speedup};
use skipbench_machine::{Checkup, Finding, Machine};
use skipbench_model::{Backend, CausalLm, Decoder, TextTokenizer, Tokenize};
use skipbench_strategy::StrategySpec;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Arguments of `skipbench doctor`.
#[derive(Debug, Args)]
pub struct DoctorArgs {
    /// Model whose full network is timed against itself; if not given, the one of this repository, where it is there
    #[arg(long)]
    model: Option<PathBuf>,
    /// Where it computes
    #[arg(long, default_value = "cpu")]
    device: DeviceName,
    /// Print one JSON value
    #[arg(long)]
    json: bool,
}

/// The shipped model, from the root of the repository.
const SHIPPED: &str = "data/checkpoints/adapted";
/// What is timed: texts of a row each, passes over them, and new tokens of each.
const TEXTS: [&str; 8] = [
    "the dog sees a cat",
    "a teacher reads the old book",
    "the small child finds a red ball",
    "some workers build a house near the river",
    "the doctor calls her friend in the evening",
    "an old man sells bread",
    "the students write a long letter",
    "a bird sings behind the garden",
];
const PASSES: usize = 4;
const NEW_TOKENS: usize = 24;

/// What is printed.
#[derive(Serialize)]
struct Diagnosis {
    machine: Machine,
    checkup: Checkup,
    findings: Vec<Finding>,
    /// Bytes read and written per second where the GPU copies its own memory; `None` without one.
    #[serde(skip_serializing_if = "Option::is_none")]
    gpu_copied_bytes_per_s: Option<f64>,
    /// `None` where there is no model to time.
    noise: Option<Noise>,
}

/// The full network timed against itself.
#[derive(Serialize)]
struct Noise {
    model: PathBuf,
    /// Its speedup over itself, with the 95% interval.
    ratio: f64,
    lo: f64,
    hi: f64,
    /// The smallest difference in speed that such a measurement can tell from none, as a share.
    smallest_difference: f64,
}

/// Looks at the machine, times the full network against itself, and says what a timing run here can trust.
///
/// # Errors
/// A model that cannot be run, a device that is not there.
pub fn run(args: &DoctorArgs) -> anyhow::Result<ExitCode> {
    let machine = this_machine(args.device);
    let checkup = Checkup::here(machine.threads, machine.gpu.is_some());
    let mut findings = checkup.findings(&machine);
    let gpu_copied_bytes_per_s = match args.device.open()? {
        device if device.is_cpu() => None,
        device => Some(copied_bytes_per_s(&device)?),
    };
    if let Some(rate) = gpu_copied_bytes_per_s {
        findings.push(Finding {
            what: "GPU copy bandwidth".to_owned(),
            found: format!("{:.0} GB/s read and written", rate / 1e9),
            is_good: true,
            advice: None,
        });
    }
    let shipped = Path::new(SHIPPED);
    let model = match &args.model {
        Some(model) => Some(models::fetch(model)?),
        None => shipped.is_dir().then(|| shipped.to_path_buf()),
    };
    let diagnosis = Diagnosis {
        findings,
        gpu_copied_bytes_per_s,
        machine,
        checkup,
        noise: match model {
            Some(model) => Some(noise(&model, args.device)?),
            None => None,
        },
    };
    match args.json {
        true => print_json(&diagnosis)?,
        false => std::io::stdout()
            .lock()
            .write_all(text(&diagnosis).as_bytes())?,
    }
    Ok(ExitCode::SUCCESS)
}

/// Times the full network of a model against itself, as a cell of an experiment is timed.
fn noise(path: &Path, device: DeviceName) -> anyhow::Result<Noise> {
    let model = Decoder::load(path, &device.open()?, None, Backend::Auto)?;
    let tokenizer = TextTokenizer::load(path, model.sizes().vocab_size)?;
    let prompts = TEXTS.iter().map(|text| Ok(vec![tokenizer.encode(text)?]));
    let plan = TimingPlan {
        batches: prompts.collect::<anyhow::Result<_>>()?,
        new_tokens: NEW_TOKENS,
        planned_tokens: NEW_TOKENS,
        repeats: PASSES,
        precision: None,
        max_repeats: PASSES,
        warm_up: 2,
        seed: 1,
        beam: None,
        no_repeat_ngram: Options::default().no_repeat_ngram,
    };
    let blocks = measure(
        Engine::new(&model),
        &StrategySpec::full(),
        &plan,
        &mut |_, _| (),
    )
    .with_context(|| format!("{}: the full network could not be timed", path.display()))?;
    let found = speedup(&blocks).context("the clock did not move while the model ran")?;
    let interval = found.interval.context("one batch has no interval")?;
    let off = |end: f64| (end - 1.0).abs();
    Ok(Noise {
        model: path.to_path_buf(),
        ratio: found.ratio,
        lo: interval.lo,
        hi: interval.hi,
        smallest_difference: off(interval.lo).max(off(interval.hi)),
    })
}

/// The diagnosis for people.
fn text(diagnosis: &Diagnosis) -> String {
    let mut text = String::new();
    for finding in &diagnosis.findings {
        let mark = if finding.is_good { "ok" } else { "!!" };
        text.push_str(&format!("{mark}  {:<19} {}\n", finding.what, finding.found));
        if let Some(advice) = &finding.advice {
            text.push_str(&format!("    {:<19} {advice}\n", ""));
        }
    }
    text.push('\n');
    text.push_str(&match &diagnosis.noise {
        Some(noise) => format!(
            "The full network of {} against itself: {:.3}x [{:.3}, {:.3}] over {} prompts, {PASSES} passes of {NEW_TOKENS} tokens.\n\
             Differences in speed below {:.1}% cannot be seen here by a measurement of this length; more batches see smaller ones.\n",
            noise.model.display(),
            noise.ratio,
            noise.lo,
            noise.hi,
            TEXTS.len(),
            100.0 * noise.smallest_difference
        ),
        None => format!(
            "The noise of timing was not measured: there is no model at {SHIPPED}. Say this from the root of a checkout, or give --model.\n"
        ),
    });
    text
}
