//! `skipbench score`.

use super::print_json;
use crate::load::read_lines;
use anyhow::bail;
use clap::Args;
use skipbench_metrics::{MetricSpec, evaluate};
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

/// Arguments of `skipbench score`.
#[derive(Debug, Args)]
pub struct ScoreArgs {
    /// Metrics, parted by commas
    #[arg(long, value_delimiter = ',', default_value = "bleu")]
    metric: Vec<MetricSpec>,
    /// Outputs, a segment a line (`.gz` too)
    #[arg(long)]
    hyp: PathBuf,
    /// References, a segment a line; give it again for more references
    #[arg(long = "ref", required = true)]
    references: Vec<PathBuf>,
    /// Seed of the resamples
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Print one JSON value
    #[arg(long)]
    json: bool,
}

/// Scores a file.
///
/// # Errors
/// Files that cannot be read or do not pair up.
pub fn run(args: ScoreArgs) -> anyhow::Result<ExitCode> {
    let hypotheses = read_lines(&args.hyp)?;
    let mut references = vec![Vec::new(); hypotheses.len()];
    for path in &args.references {
        let lines = read_lines(path)?;
        if lines.len() != hypotheses.len() {
            bail!(
                "{} has {} lines, {} has {}; they must pair up",
                args.hyp.display(),
                hypotheses.len(),
                path.display(),
                lines.len()
            );
        }
        for (segment, line) in references.iter_mut().zip(lines) {
            segment.push(line);
        }
    }
    let mut json = serde_json::Map::new();
    let mut out = std::io::stdout().lock();
    for metric in &args.metric {
        let evaluation = evaluate(metric, &hypotheses, &references, args.seed)?;
        if args.json {
            json.insert(
                metric.to_string(),
                serde_json::json!({"score": evaluation.score, "lo": evaluation.lo, "hi": evaluation.hi}),
            );
        } else {
            writeln!(
                out,
                "{metric} = {:.4} [{:.4}, {:.4}]",
                evaluation.score, evaluation.lo, evaluation.hi
            )?;
        }
    }
    if args.json {
        drop(out);
        print_json(&json)?;
    }
    Ok(ExitCode::SUCCESS)
}
