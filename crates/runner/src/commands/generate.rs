//! `skipbench generate`.

use crate::experiment::{DeviceName, DtypeName};
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

/// Arguments of `skipbench generate`.
#[derive(Debug, Args)]
pub struct GenerateArgs {
    /// Checkpoint folder
    #[arg(long)]
    model: PathBuf,
    /// JSON lines with `prompt`, or text with a prompt a line (`.gz` too)
    #[arg(long)]
    input: PathBuf,
    /// Strategy, such as `unified@2`
    #[arg(long, default_value = "full")]
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
    if args.strategy.knob().is_some() {
        anyhow::bail!(
            "`{}` has no threshold yet: `skipbench run` calibrates one; here give it, as in `early-exit: {{signal: .., threshold: 0.9}}`",
            args.strategy
        );
    }
    let device = args.device.open()?;
    let backend = if args.composed {
        Backend::Composed
    } else {
        Backend::Auto
    };
    let model = Decoder::load(&args.model, &device, args.dtype.map(Into::into), backend)?;
    let tokenizer = TextTokenizer::load(&args.model, model.sizes().vocab_size)?;
    let mut strategy = args.strategy.build(model.sizes().n_layers)?;
    let options = Options {
        max_new_tokens: args.max_new_tokens as usize,
        eos_ids: match args.ignore_eos {
            true => Vec::new(),
            false => tokenizer.eos_ids().to_vec(),
        },
    };
    let bar = progress::bar(prompts.len() as u64, "generating");
    let mut out = std::io::stdout().lock();
    for (index, batch) in prompts.chunks(args.batch_size as usize).enumerate() {
        let ids = batch
            .iter()
            .map(|prompt| Ok(tokenizer.encode(&prompt.text)?))
            .collect::<anyhow::Result<Vec<_>>>()?;
        let generation = Engine::new(&model)
            .generate(&ids, strategy.as_mut(), &options)
            .with_context(|| {
                format!(
                    "prompts {} to {} of {}",
                    index * args.batch_size as usize + 1,
                    index * args.batch_size as usize + batch.len(),
                    args.input.display()
                )
            })?;
        for ((prompt, ids), row) in batch.iter().zip(&ids).zip(&generation.rows) {
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
        bar.inc(batch.len() as u64);
    }
    bar.finish_and_clear();
    Ok(ExitCode::SUCCESS)
}
