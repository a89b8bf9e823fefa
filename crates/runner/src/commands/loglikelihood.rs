//! `skipbench loglikelihood`.

use crate::load::read_text;
use crate::progress::{self, Progress};
use crate::prompter::pair;
use crate::scoring::{Scorer, ScoringArgs};
use crate::task::json_objects;
use anyhow::{Context, bail};
use clap::Args;
use serde::Serialize;
use serde_json::{Map, Value};
use skipbench_engine::ScoredText;
use skipbench_model::Tokenize;
use skipbench_record::layer_counts;
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

/// Arguments of `skipbench loglikelihood`.
#[derive(Debug, Args)]
pub struct LoglikelihoodArgs {
    #[command(flatten)]
    scoring: ScoringArgs,
    /// JSON lines with `context` and `continuation` (`.gz` too); an empty context is the beginning of sequence
    #[arg(long)]
    input: PathBuf,
}

/// A line of the output.
#[derive(Serialize)]
struct Line<'a> {
    id: &'a Value,
    /// Natural logarithm of the continuation's probability.
    logprob: f64,
    token_logprobs: &'a [f64],
    /// Whether greedy decoding would have given the continuation.
    greedy: bool,
    #[serde(serialize_with = "layer_counts")]
    layers: &'a [f64],
}

/// Scores each continuation behind its context.
///
/// # Errors
/// A checkpoint, input or strategy that cannot be used.
pub fn run(args: &LoglikelihoodArgs) -> anyhow::Result<ExitCode> {
    let text = read_text(&args.input)?;
    let text = text.strip_prefix('\u{feff}').unwrap_or(&text);
    let mut lines = Vec::new();
    for (place, object) in json_objects(text, &args.input) {
        let line = InputLine::of(&object?, lines.len())
            .with_context(|| format!("{}: {place}", args.input.display()))?;
        lines.push((place, line));
    }
    if lines.is_empty() {
        bail!(
            "{} holds no line; a line is an object with `id`, `context` and `continuation`",
            args.input.display()
        );
    }
    let scorer = Scorer::load(&args.scoring)?;
    // Every line is looked at before the first is scored, so that a bad one leaves no half of an output.
    let texts: Vec<ScoredText> = lines
        .iter()
        .map(|(place, line)| {
            let text = line.ids(&scorer)?;
            scorer.check(&text)?;
            Ok((place, text))
        })
        .zip(&lines)
        .map(|(text, (place, _)): (anyhow::Result<_>, _)| {
            let text = text.with_context(|| format!("{}: {place}", args.input.display()))?;
            Ok(text.1)
        })
        .collect::<anyhow::Result<_>>()?;
    let mut strategy = scorer.strategy(&texts)?;
    progress::end_on_signals("stopped; the scores up to here are written");
    let progress = Progress::new(texts.len() as u64, "texts");
    let mut out = std::io::stdout().lock();
    let mut ids = lines.iter().map(|(_, line)| &line.id);
    scorer.score(&texts, strategy.as_mut(), |scores| {
        // The scores come first: asked before there is none left of them, the ids would lose one with each batch.
        for (score, id) in scores.iter().zip(ids.by_ref()) {
            let line = Line {
                id,
                logprob: score.sum(),
                token_logprobs: &score.log_probabilities,
                greedy: score.is_greedy(),
                layers: &score.layers,
            };
            serde_json::to_writer(&mut out, &line)?;
            writeln!(out)?;
        }
        progress.inc(scores.len() as u64);
        Ok(())
    })?;
    Ok(ExitCode::SUCCESS)
}

/// A line of the input.
struct InputLine {
    id: Value,
    context: String,
    continuation: String,
}

impl InputLine {
    fn of(object: &Map<String, Value>, index: usize) -> anyhow::Result<Self> {
        let text = |key: &str| match object.get(key) {
            Some(Value::String(text)) => Ok(text.clone()),
            Some(other) => bail!("`{key}` is a text, not {other}"),
            None => bail!("`{key}` is missing; a line has `context` and `continuation`"),
        };
        let line = Self {
            id: object.get("id").cloned().unwrap_or_else(|| index.into()),
            context: text("context")?,
            continuation: text("continuation")?,
        };
        if line.continuation.is_empty() {
            bail!("`continuation` is empty; there is nothing to score");
        }
        Ok(line)
    }

    fn ids(&self, scorer: &Scorer<'_>) -> anyhow::Result<ScoredText> {
        let tokenizer = &scorer.tokenizer;
        pair(
            &self.context,
            &self.continuation,
            |text| Ok(tokenizer.encode(text)?),
            |text| Ok(tokenizer.encode_with(text, false)?),
            || scorer.beginning(),
        )
    }
}
