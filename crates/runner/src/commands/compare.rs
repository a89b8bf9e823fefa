//! `skipbench compare`.

use crate::compare::{self, Axis, Comparison, Limits, Settings, StrategyPair};
use crate::outputs::{self, Named};
use anyhow::{Context, ensure};
use clap::Args;
use skipbench_record::Run;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Files of a run, compressed or not.
const FILES: [&str; 7] = [
    "run.json",
    "cells.jsonl",
    "cells.jsonl.gz",
    "samples.jsonl",
    "samples.jsonl.gz",
    "prompts.jsonl",
    "prompts.jsonl.gz",
];

/// Arguments of `skipbench compare`.
#[derive(Debug, Args)]
pub struct CompareArgs {
    /// Folder of the run that is compared with, or an archived one
    baseline: PathBuf,
    /// Folder of the run that is judged
    new: PathBuf,
    /// How much longer a token may take, as 3% or 0.03
    #[arg(long, value_name = "SHARE", default_value = "3%", value_parser = slowdown)]
    max_slowdown: f64,
    /// Loss of quality that is allowed, in points of the main metric from 0 to 100
    #[arg(long, value_name = "POINTS", default_value = "0.5", value_parser = points)]
    max_quality_drop: f64,
    /// Chance that anything is called worse though nothing is, over all cells
    #[arg(long, default_value = "0.05", value_parser = alpha)]
    alpha: f64,
    /// Compare although these differ; give it again for more
    #[arg(long, value_enum)]
    across: Vec<Axis>,
    /// Set strategy OLD of BASELINE against strategy NEW of NEW, and compare nothing else; give it again for more
    #[arg(long, value_name = "OLD=NEW")]
    pair: Vec<StrategyPair>,
    /// Fail on a loss of tokens per second too, which whatever else the machine does can cause
    #[arg(long)]
    tokens_per_s: bool,
    /// Write one JSON value (`-` for stdout, instead of the table)
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Write JUnit XML, a test case for each thing that is compared (`-` for stdout)
    #[arg(long, value_name = "FILE")]
    junit: Option<PathBuf>,
    /// Write Markdown for a pull request (`-` for stdout)
    #[arg(long, value_name = "FILE")]
    markdown: Option<PathBuf>,
    /// Print GitHub annotations for what is worse or cannot be told
    #[arg(long)]
    github: bool,
}

/// Compares two runs; exit code 1 where anything is worse.
///
/// # Errors
/// Folders that hold no run, runs that are not comparable, outputs that cannot be written.
pub fn run(args: CompareArgs) -> anyhow::Result<ExitCode> {
    args.check_outputs()?;
    let baseline = Run::read(&args.baseline)?;
    let new = Run::read(&args.new)?;
    let comparison = compare::compare(&baseline, &new, &args.settings())?;
    for warning in &comparison.warnings {
        tracing::warn!("{warning}");
    }
    args.write(&comparison)?;
    Ok(match comparison.worse {
        true => ExitCode::FAILURE,
        false => ExitCode::SUCCESS,
    })
}

impl CompareArgs {
    fn settings(&self) -> Settings {
        Settings {
            limits: Limits {
                max_slowdown: self.max_slowdown,
                max_quality_drop: self.max_quality_drop,
                alpha: self.alpha,
                tokens_per_s: self.tokens_per_s,
            },
            across: self.across.clone(),
            pairs: self.pair.clone(),
        }
    }

    /// The outputs that were asked for, with the option of each.
    fn outputs(&self) -> impl Iterator<Item = (&'static str, &Path)> {
        [
            ("--json", &self.json),
            ("--junit", &self.junit),
            ("--markdown", &self.markdown),
        ]
        .into_iter()
        .filter_map(|(option, path)| Some((option, path.as_deref()?)))
    }

    /// Refuses what would destroy an input or another output, and more than one text on stdout.
    fn check_outputs(&self) -> anyhow::Result<()> {
        let sides = [("BASELINE", &self.baseline), ("NEW", &self.new)];
        let files = sides.map(|(side, dir)| FILES.map(|name| (side, dir.join(name))));
        let inputs: Vec<Named<'_>> = files
            .as_flattened()
            .iter()
            .map(|(option, path)| Named { option, path })
            .collect();
        let (to_stdout, outputs): (Vec<_>, Vec<_>) =
            self.outputs().partition(|(_, path)| is_stdout(path));
        let named = |(option, path)| Named { option, path };
        let outputs: Vec<Named<'_>> = outputs.into_iter().map(named).collect();
        outputs::check(&inputs, &outputs)?;
        let mut printed: Vec<&str> = to_stdout.iter().map(|(option, _)| *option).collect();
        if self.github && !printed.is_empty() {
            printed.push("--github");
        }
        ensure!(
            printed.len() < 2,
            "{} print to stdout together; give all but one of them a file",
            printed.join(" and ")
        );
        Ok(())
    }

    fn write(&self, comparison: &Comparison) -> anyhow::Result<()> {
        let mut printed = compare::table(comparison);
        if self.github {
            printed.push_str(&compare::annotations(comparison));
        }
        for (option, path) in self.outputs() {
            let text = match option {
                "--json" => serde_json::to_string_pretty(comparison)? + "\n",
                "--junit" => compare::junit(comparison),
                _ => compare::markdown(comparison),
            };
            match is_stdout(path) {
                true => printed = text,
                false => skipbench_fs::write_whole(path, text.as_bytes()).context(option)?,
            }
        }
        write!(std::io::stdout().lock(), "{printed}")?;
        Ok(())
    }
}

fn is_stdout(path: &Path) -> bool {
    path.as_os_str() == "-"
}

fn slowdown(text: &str) -> Result<f64, String> {
    share(text, 0.0..1.0).ok_or_else(|| {
        "write a share of the time as 3% or 0.03, from 0 to less than 100%".to_owned()
    })
}

fn alpha(text: &str) -> Result<f64, String> {
    share(text, 0.001..0.5)
        .ok_or_else(|| "write a chance as 5% or 0.05, from 0.001 to less than 0.5".to_owned())
}

fn share(text: &str, range: std::ops::Range<f64>) -> Option<f64> {
    let share = match text.strip_suffix('%') {
        Some(percent) => percent.trim_end().parse::<f64>().ok()? / 100.0,
        None => text.parse().ok()?,
    };
    range.contains(&share).then_some(share)
}

fn points(text: &str) -> Result<f64, String> {
    let points = text
        .parse()
        .ok()
        .filter(|points| (0.0..=100.0).contains(points));
    points.ok_or_else(|| "write points of the main metric as 0.5, from 0 to 100".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_percent_or_not() {
        assert_eq!(slowdown("3%"), Ok(0.03));
        assert_eq!(slowdown("0.03"), Ok(0.03));
        assert_eq!(slowdown("0"), Ok(0.0));
        for wrong in [
            "3",
            "100%",
            "-1%",
            "nan",
            "NaN%",
            "inf",
            "",
            "%",
            "3 percent",
        ] {
            assert!(slowdown(wrong).is_err(), "{wrong}");
        }
        assert_eq!(alpha("1%"), Ok(0.01));
        for wrong in ["0", "0.5", "1", "nan", "1e-9"] {
            assert!(alpha(wrong).is_err(), "{wrong}");
        }
        assert_eq!(points("0.5"), Ok(0.5));
        for wrong in ["-1", "101", "nan", "0.5%"] {
            assert!(points(wrong).is_err(), "{wrong}");
        }
    }
}
