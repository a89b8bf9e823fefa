//! `skipbench perplexity`.

use super::print_json;
use crate::digest::CheckpointDigest;
use crate::load::read_text;
use crate::progress::{self, Progress};
use crate::scoring::{Scorer, ScoringArgs};
use anyhow::bail;
use clap::Args;
use serde::Serialize;
use skipbench_engine::ScoredText;
use skipbench_model::Tokenize;
use std::path::PathBuf;
use std::process::ExitCode;

/// Arguments of `skipbench perplexity`.
#[derive(Debug, Args)]
pub struct PerplexityArgs {
    #[command(flatten)]
    scoring: ScoringArgs,
    /// A text (`.gz` too), taken as it is
    #[arg(long)]
    input: PathBuf,
    /// Positions that are seen at once; 2048 or as many as the model has if not given
    #[arg(long, value_parser = clap::value_parser!(u32).range(2..))]
    window: Option<u32>,
    /// Positions from one window to the next; half a window if not given
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    stride: Option<u32>,
}

/// The default of `--window`.
const WINDOW: usize = 2048;

/// What is printed.
#[derive(Serialize)]
struct Found {
    token_perplexity: f64,
    word_perplexity: f64,
    byte_perplexity: f64,
    /// Sum of the natural logarithms of the scored tokens' probabilities.
    logprob: f64,
    /// Tokens that were scored: all but the first, or but the first of each window where windows do not overlap.
    tokens: usize,
    /// Words of the text, split at white space.
    words: usize,
    /// Bytes of the text.
    bytes: usize,
    /// Mean layers run for a scored token.
    layers_per_token: f64,
    signature: String,
}

/// Perplexity of a text in windows ([`ScoredText::windows`]).
///
/// # Errors
/// A checkpoint, text or strategy that cannot be used.
pub fn run(args: &PerplexityArgs) -> anyhow::Result<ExitCode> {
    let text = read_text(&args.input)?;
    let scorer = Scorer::load(&args.scoring)?;
    let (window, stride) = window_and_stride(args, scorer.max_positions())?;
    let ids = scorer.tokenizer.encode(&text)?;
    if ids.len() < 2 {
        bail!(
            "{} has {} token{}; perplexity takes at least two, so give a longer text",
            args.input.display(),
            ids.len(),
            if ids.len() == 1 { "" } else { "s" }
        );
    }
    let windows = ScoredText::windows(&ids, window, stride);
    let mut strategy = scorer.strategy(&windows)?;
    progress::end_on_signals("stopped; nothing was printed");
    let progress = Progress::new(windows.len() as u64, "windows");
    let (mut logprob, mut tokens, mut layers) = (0.0, 0, 0.0);
    scorer.score(&windows, strategy.as_mut(), |scores| {
        for score in &scores {
            logprob += score.sum();
            tokens += score.log_probabilities.len();
            layers += score.layers.iter().sum::<f64>();
        }
        progress.inc(scores.len() as u64);
        Ok(())
    })?;
    drop(progress);
    let per = |count: usize| (-logprob / count as f64).exp();
    let words = text.split_whitespace().count();
    let adds_beginning = !scorer.tokenizer.encode("")?.is_empty();
    let tokenizer = CheckpointDigest::of(&scorer.path)?.tokenizer;
    print_json(&Found {
        token_perplexity: per(tokens),
        word_perplexity: per(words.max(1)),
        byte_perplexity: per(text.len()),
        logprob,
        tokens,
        words,
        bytes: text.len(),
        layers_per_token: layers / tokens as f64,
        signature: format!(
            "window:{window}|stride:{stride}|bos:{}|tokenizer:{}|detokenisation:none|mode:{}|strategy:{}|version:{}",
            if adds_beginning { "yes" } else { "no" },
            &tokenizer[..16.min(tokenizer.len())],
            args.scoring.mode.name(),
            args.scoring.strategy,
            env!("CARGO_PKG_VERSION"),
        ),
    })?;
    Ok(ExitCode::SUCCESS)
}

fn window_and_stride(
    args: &PerplexityArgs,
    limit: Option<usize>,
) -> anyhow::Result<(usize, usize)> {
    let window = match (args.window, limit) {
        (Some(window), Some(limit)) if window as usize > limit => {
            bail!("--window {window}: the model has {limit} positions; give at most as many")
        }
        (Some(window), _) => window as usize,
        (None, limit) => limit.unwrap_or(WINDOW).clamp(2, WINDOW),
    };
    let stride = args.stride.map_or(window / 2, |stride| stride as usize);
    if stride > window {
        bail!(
            "--stride {stride} is longer than the window of {window}, so that tokens would be left out; give at most {window}"
        );
    }
    Ok((window, stride))
}
