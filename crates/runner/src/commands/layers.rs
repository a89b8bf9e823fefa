//! `skipbench layers`.

use super::print_json;
use crate::experiment;
use anyhow::Context;
use clap::Args;
use skipbench_strategy::StrategySpec;
use std::io::Write;
use std::process::ExitCode;

/// Arguments of `skipbench layers`.
#[derive(Debug, Args)]
pub struct LayersArgs {
    /// Strategy, such as `unified@2` or `early-exit: {signal: entropy, threshold: 0.9}`
    #[arg(long, value_parser = experiment::strategy)]
    strategy: StrategySpec,
    /// Decoder layers of the model
    #[arg(long)]
    n_layers: usize,
    /// Longest answer in tokens, for strategies that go by position
    #[arg(long, default_value_t = 64)]
    max_new_tokens: usize,
    /// Print one JSON value
    #[arg(long)]
    json: bool,
}

/// Prints the layer set.
///
/// # Errors
/// A strategy that cannot work with so many layers.
pub fn run(args: LayersArgs) -> anyhow::Result<ExitCode> {
    let explanation = args
        .strategy
        .explain(args.n_layers, args.max_new_tokens)
        .with_context(|| format!("strategy `{}`", args.strategy))?;
    if args.json {
        print_json(&explanation)?;
        return Ok(ExitCode::SUCCESS);
    }
    let layers: Vec<String> = explanation.layers.iter().map(usize::to_string).collect();
    let blocks: String = (0..args.n_layers)
        .map(|layer| match explanation.layers.contains(&layer) {
            true => '■',
            false => '·',
        })
        .collect();
    let mut out = std::io::stdout().lock();
    writeln!(out, "{} of {} layers", layers.len(), args.n_layers)?;
    writeln!(out, "{blocks}")?;
    writeln!(out, "{}", layers.join(", "))?;
    if let Some(length) = explanation.draft_length {
        writeln!(
            out,
            "they draft {length} tokens at a time; all {} layers verify them",
            args.n_layers
        )?;
    }
    Ok(ExitCode::SUCCESS)
}
