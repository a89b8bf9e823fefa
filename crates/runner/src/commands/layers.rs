//! `skipbench layers`.

use super::print_json;
use crate::experiment;
use anyhow::Context;
use clap::Args;
use skipbench_strategy::{Explanation, StrategySpec};
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
    let mut out = std::io::stdout().lock();
    write!(out, "{}", describe(&explanation))?;
    Ok(ExitCode::SUCCESS)
}

/// The explanation for people.
fn describe(explanation: &Explanation) -> String {
    let n_layers = explanation.n_layers;
    let numbers = |layers: &[usize]| -> String {
        let numbers: Vec<String> = layers.iter().map(usize::to_string).collect();
        numbers.join(", ")
    };
    let mut text = format!("{}: {}\n", explanation.strategy, explanation.about);
    let mut line = |line: String| {
        text.push_str(&line);
        text.push('\n');
    };
    let count = match (explanation.chosen_by, explanation.layers_per_step) {
        (None, _) => format!("{} of {n_layers} layers", explanation.layers.len()),
        (Some(by), Some(layers)) => format!("{layers} of {n_layers} layers, chosen by {by}"),
        (Some(by), None) => format!("up to {n_layers} layers, chosen by {by}"),
    };
    line(count);
    if explanation.steps.is_empty() && explanation.menu.is_empty() && !explanation.layers.is_empty()
    {
        line(blocks(explanation, &explanation.layers));
        if explanation.layers.len() < n_layers {
            line(numbers(&explanation.layers));
        }
    }
    for (kind, layers) in [
        ("attention", &explanation.attention_only),
        ("MLP", &explanation.mlp_only),
    ] {
        if !layers.is_empty() {
            line(format!("{kind} alone: {}", numbers(layers)));
        }
    }
    if !explanation.checks.is_empty() {
        line(format!(
            "a token may leave after layer {}",
            numbers(&explanation.checks)
        ));
    }
    for range in &explanation.steps {
        let tokens = match range.first == range.last {
            true => format!("token {}", range.first),
            false => format!("tokens {} to {}", range.first, range.last),
        };
        let drawn = blocks(explanation, &range.layers);
        line(format!("{drawn}  {} layers, {tokens}", range.layers.len()));
    }
    for layers in &explanation.menu {
        let drawn = blocks(explanation, layers);
        line(format!("{drawn}  {} layers", layers.len()));
    }
    if let Some(length) = explanation.draft_length {
        line(format!(
            "they draft {length} tokens at a time; all {n_layers} layers verify them"
        ));
    }
    text
}

/// A block a layer: whole, attention alone, MLP alone or none.
fn blocks(explanation: &Explanation, layers: &[usize]) -> String {
    (0..explanation.n_layers)
        .map(|layer| {
            if explanation.attention_only.contains(&layer) {
                '▀'
            } else if explanation.mlp_only.contains(&layer) {
                '▄'
            } else if layers.contains(&layer) {
                '■'
            } else {
                '·'
            }
        })
        .collect()
}
