//! `skipbench generate`.

use crate::calibrate::calibrate;
use crate::experiment::{self, DeviceName, DtypeName};
use crate::input::read_prompts;
use crate::progress;
use anyhow::Context;
use clap::Args;
use serde::Serialize;
use skipbench_engine::{Engine, Options};
use skipbench_model::{Backend, CausalLm, Decoder, TextTokenizer, Tokenize};
use skipbench_strategy::StrategySpec;
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

/// Prompts that the threshold of a dynamic strategy is found on.
const CALIBRATION_PROMPTS: usize = 32;

/// Arguments of `skipbench generate`.
#[derive(Debug, Args)]
pub struct GenerateArgs {
    /// Checkpoint folder
    #[arg(long)]
    model: PathBuf,
    /// JSON lines with `prompt`, or text with a prompt a line (`.gz` too)
    #[arg(long)]
    input: PathBuf,
    /// Strategy, such as `unified@2` or `early-exit: {signal: entropy, threshold: 0.9}`
    #[arg(long, default_value = "full", value_parser = experiment::strategy)]
    strategy: StrategySpec,
    /// Prompts run together
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    batch_size: u32,
    /// Longest answer in tokens
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..))]
    max_new_tokens: u32,
    /// Always generate `max-new-tokens`
    #[arg(long)]
    ignore_eos: bool,
    /// Where to compute
    #[arg(long, default_value = "cpu")]
    device: DeviceName,
    /// Element type of the weights; the default is f32 on a CPU and the checkpoint's own on a GPU
    #[arg(long)]
    dtype: Option<DtypeName>,
    /// Run the layers composed from candle operations instead of the fused CPU ones
    #[arg(long)]
    composed: bool,
}

#[derive(Serialize)]
struct Line<'a> {
    id: &'a serde_json::Value,
    prompt_tokens: usize,
    tokens: &'a [u32],
    text: String,
    layers: &'a [usize],
}

/// Continues each prompt.
///
/// # Errors
/// A checkpoint, input or strategy that cannot be used.
pub fn run(args: GenerateArgs) -> anyhow::Result<ExitCode> {
    let prompts = read_prompts(&args.input)?;
    let device = args.device.open()?;
    let backend = match args.composed {
        true => Backend::Composed,
        false => Backend::Auto,
    };
    let model = Decoder::load(&args.model, &device, args.dtype.map(Into::into), backend)?;
    let tokenizer = TextTokenizer::load(&args.model, model.sizes().vocab_size)?;
    let engine = Engine::new(&model);
    let options = Options {
        max_new_tokens: args.max_new_tokens as usize,
        eos_ids: match args.ignore_eos {
            true => Vec::new(),
            false => tokenizer.eos_ids().to_vec(),
        },
        ..Options::default()
    };
    // Every prompt is looked at before the first is answered, so that a bad one leaves no half of an output.
    let ids = prompts
        .iter()
        .map(|prompt| {
            let ids = tokenizer.encode(&prompt.text)?;
            engine.check(std::slice::from_ref(&ids), &options)?;
            Ok(ids)
        })
        .enumerate()
        .map(|(index, ids): (usize, anyhow::Result<Vec<u32>>)| {
            ids.with_context(|| format!("{}: prompt {}", args.input.display(), index + 1))
        })
        .collect::<anyhow::Result<Vec<_>>>()?;
    let mut strategy = fixed_knob(engine, &args.strategy, &ids, &options)
        .and_then(|spec| Ok(spec.build(model.sizes().n_layers)?))
        .with_context(|| format!("strategy `{}`", args.strategy))?;

    let bar = progress::bar(prompts.len() as u64, "generating");
    let mut out = std::io::stdout().lock();
    let batch_size = args.batch_size as usize;
    for (prompts, ids) in prompts.chunks(batch_size).zip(ids.chunks(batch_size)) {
        let generation = engine.generate(ids, strategy.as_mut(), &options)?;
        for ((prompt, ids), row) in prompts.iter().zip(ids).zip(&generation.rows) {
            let line = Line {
                id: &prompt.id,
                prompt_tokens: ids.len(),
                tokens: &row.tokens,
                text: tokenizer.decode(&row.tokens)?,
                layers: &row.layers,
            };
            serde_json::to_writer(&mut out, &line)?;
            writeln!(out)?;
        }
        bar.inc(prompts.len() as u64);
    }
    bar.finish_and_clear();
    Ok(ExitCode::SUCCESS)
}

/// The strategy with its threshold: a target speedup is met on the first prompts, there being no other text here.
fn fixed_knob(
    engine: Engine<'_>,
    spec: &StrategySpec,
    ids: &[Vec<u32>],
    options: &Options,
) -> anyhow::Result<StrategySpec> {
    let sample = &ids[..ids.len().min(CALIBRATION_PROMPTS)];
    let calibrated = calibrate(engine, spec, sample, options)?;
    if spec.knob().is_some() {
        tracing::warn!(
            "the threshold of `{spec}`, {:.4}, was found on the first {} prompts themselves",
            calibrated.spec.threshold().unwrap_or_default(),
            sample.len()
        );
    }
    if let Some(note) = &calibrated.note {
        tracing::warn!("{spec}: {note}");
    }
    Ok(calibrated.spec)
}
