//! `skipbench score`.

use super::print_json;
use crate::load::{read_lines, read_text};
use anyhow::{Context, bail, ensure};
use clap::{Args, ValueEnum};
use serde::Deserialize;
use skipbench_metrics::{
    Bleu, Chrf, Contains, Evaluation, Hypotheses, Metric, RANDOMISATION, References, Resampling,
    Rouge, Smoothing, Ter, Tokenizer, evaluate, paired, tested,
};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Arguments of `skipbench score`.
#[derive(Debug, Args)]
pub struct ScoreArgs {
    /// Metrics, parted by commas: bleu, chrf, chrf++, ter, rouge1 to rouge9, rougeL, rougeLsum, exact-match, contains
    #[arg(long, value_delimiter = ',', default_value = "bleu")]
    metric: Vec<Metric>,
    /// Outputs, a segment a line (`.gz` too); lines end at line feeds only
    #[arg(long, requires = "references", required_unless_present = "input")]
    hyp: Option<PathBuf>,
    /// References, a segment a line; give it again for more references
    #[arg(long = "ref", requires = "hyp")]
    references: Vec<PathBuf>,
    /// JSON lines with `hypothesis` and `references`, instead of `--hyp` and `--ref` (`.gz` too)
    #[arg(long, conflicts_with_all = ["hyp", "references"])]
    input: Option<PathBuf>,
    /// Outputs of a baseline on the same segments, in the form of the others: adds paired tests
    #[arg(long, value_name = "BASELINE_HYP")]
    paired: Option<PathBuf>,
    /// Add the 95% bootstrap interval
    #[arg(long)]
    confidence: bool,
    /// Add a score for each segment, with the same settings (BLEU: consider `--effective-order`)
    #[arg(long)]
    sentence: bool,
    /// Ignore case (TER and ROUGE always do)
    #[arg(long)]
    lowercase: bool,
    /// BLEU: 13a, intl, zh, char or none
    #[arg(long)]
    tokenize: Option<Tokenizer>,
    /// BLEU: what an order without a match counts
    #[arg(long, value_enum, default_value_t = Smooth::Exp)]
    smooth: Smooth,
    /// BLEU: how much `floor` (0.1) or `add-k` (1) put in
    #[arg(long)]
    smooth_value: Option<f64>,
    /// BLEU: leave out orders that a short text does not have
    #[arg(long)]
    effective_order: bool,
    /// BLEU: longest n-gram
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u8).range(1..=32))]
    max_ngram_order: u8,
    /// chrF: longest word n-gram (2 is chrF++)
    #[arg(long, value_parser = clap::value_parser!(u8).range(0..=32))]
    word_order: Option<u8>,
    /// chrF: longest character n-gram
    #[arg(long, default_value_t = 6, value_parser = clap::value_parser!(u8).range(1..=32))]
    char_order: u8,
    /// chrF: weight of recall
    #[arg(long, default_value_t = 2)]
    beta: u32,
    /// chrF: character n-grams run over white space
    #[arg(long)]
    whitespace: bool,
    /// chrF: every order counts, with next to nothing where there is no match
    #[arg(long)]
    eps_smoothing: bool,
    /// TER: normalize as Tercom does
    #[arg(long)]
    ter_normalized: bool,
    /// TER: drop punctuation
    #[arg(long)]
    ter_no_punct: bool,
    /// TER: treat Asian characters as tokens
    #[arg(long)]
    ter_asian_support: bool,
    /// TER: case counts
    #[arg(long)]
    ter_case_sensitive: bool,
    /// exact-match: regular expression for the part of an output that counts, or `last-number`
    #[arg(long)]
    extract: Option<String>,
    /// ROUGE: stem words
    #[arg(long)]
    stemmer: bool,
    /// Seed of the resamples
    #[arg(long, default_value_t = Resampling::default().seed)]
    seed: u64,
    /// Print one JSON value
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, ValueEnum)]
enum Smooth {
    Exp,
    Floor,
    AddK,
    None,
}

/// A line of `--input`.
#[derive(Debug, Deserialize)]
struct Segment {
    hypothesis: String,
    /// Missing references are `null`, as in sacrebleu.
    #[serde(default)]
    references: Vec<Option<String>>,
}

/// Scores a file.
///
/// # Errors
/// Files that cannot be read or do not pair up, settings that cannot work.
pub fn run(args: ScoreArgs) -> anyhow::Result<ExitCode> {
    let (hypotheses, references) = args.texts()?;
    let baseline = match &args.paired {
        Some(path) => Some(args.baseline(path, hypotheses.len())?),
        None => None,
    };
    let hypotheses = Hypotheses::new(hypotheses);
    let mut json = serde_json::Map::new();
    let mut out = std::io::stdout().lock();
    for named in &args.metric {
        let metric = args.configured(named.clone())?;
        let scored = Scored {
            args: &args,
            system: evaluate(&metric, &hypotheses, &references)?,
            baseline: match &baseline {
                Some(baseline) => Some(evaluate(&metric, baseline, &references)?),
                None => None,
            },
        };
        match args.json {
            true => drop(json.insert(named.to_string(), scored.json()?)),
            false => scored.print(&mut out)?,
        }
    }
    drop(out);
    if args.json {
        print_json(&json)?;
    }
    Ok(ExitCode::SUCCESS)
}

impl ScoreArgs {
    /// Hypotheses and references from whichever files were given.
    fn texts(&self) -> anyhow::Result<(Vec<String>, References)> {
        let (hypotheses, references) = match (&self.input, &self.hyp) {
            (Some(path), _) => {
                let segments = read_segments(path)?;
                segments
                    .into_iter()
                    .map(|segment| {
                        let references = segment.references.into_iter().flatten().collect();
                        (segment.hypothesis, references)
                    })
                    .unzip()
            }
            (None, Some(path)) => {
                let hypotheses = read_lines(path)?;
                let mut references = vec![Vec::new(); hypotheses.len()];
                for reference in &self.references {
                    let lines = read_lines(reference)?;
                    same_length(path, hypotheses.len(), reference, lines.len())?;
                    for (segment, line) in references.iter_mut().zip(lines) {
                        segment.push(line);
                    }
                }
                (hypotheses, references)
            }
            (None, None) => bail!("give `--hyp` and `--ref`, or `--input`"),
        };
        let path = self.source();
        ensure!(
            !hypotheses.is_empty(),
            "{}: there is no segment to score",
            path.display()
        );
        let references: Vec<Vec<String>> = references;
        if let Some(index) = references.iter().position(Vec::is_empty) {
            bail!("{}: segment {} has no reference", path.display(), index + 1);
        }
        Ok((hypotheses, References::new(references)?))
    }

    fn source(&self) -> &Path {
        let path = self.input.as_ref().or(self.hyp.as_ref());
        path.map_or(Path::new(""), PathBuf::as_path)
    }

    fn baseline(&self, path: &Path, segments: usize) -> anyhow::Result<Hypotheses> {
        let texts = match self.input {
            Some(_) => read_segments(path)?
                .into_iter()
                .map(|segment| segment.hypothesis)
                .collect(),
            None => read_lines(path)?,
        };
        same_length(self.source(), segments, path, texts.len())?;
        Ok(Hypotheses::new(texts))
    }

    /// The metric with the settings of the command line.
    fn configured(&self, metric: Metric) -> anyhow::Result<Metric> {
        if let Some(value) = self.smooth_value {
            ensure!(
                value.is_finite() && value >= 0.0,
                "`--smooth-value` must be 0 or more, not {value}"
            );
            ensure!(
                matches!(self.smooth, Smooth::Floor | Smooth::AddK),
                "`--smooth-value` belongs to `--smooth floor` and `--smooth add-k`"
            );
        }
        Ok(match metric {
            Metric::Bleu(bleu) => Metric::Bleu(Bleu {
                tokenizer: self.tokenize.unwrap_or(bleu.tokenizer),
                smoothing: match self.smooth {
                    Smooth::Exp => Smoothing::Exp,
                    Smooth::Floor => Smoothing::Floor(self.smooth_value.unwrap_or(0.1)),
                    Smooth::AddK => Smoothing::AddK(self.smooth_value.unwrap_or(1.0)),
                    Smooth::None => Smoothing::None,
                },
                lowercase: self.lowercase,
                effective_order: self.effective_order,
                max_order: usize::from(self.max_ngram_order),
            }),
            Metric::Chrf(chrf) => Metric::Chrf(Chrf {
                char_order: usize::from(self.char_order),
                word_order: self.word_order.map_or(chrf.word_order, usize::from),
                beta: self.beta,
                lowercase: self.lowercase,
                whitespace: self.whitespace,
                eps_smoothing: self.eps_smoothing,
            }),
            Metric::Ter(_) => Metric::Ter(Ter {
                normalized: self.ter_normalized,
                no_punct: self.ter_no_punct,
                asian_support: self.ter_asian_support,
                case_sensitive: self.ter_case_sensitive,
            }),
            Metric::Rouge(Rouge { kind, .. }) => Metric::Rouge(Rouge {
                kind,
                stemmer: self.stemmer,
            }),
            Metric::ExactMatch(_) => self.exact_match()?,
            Metric::Contains(contains) => Metric::Contains(Contains {
                ignore_case: self.lowercase,
                ..contains
            }),
            other => bail!(
                "`{other}` is not scored from texts alone; it is for experiments, whose tasks say it under `metrics`"
            ),
        })
    }
}

impl ScoreArgs {
    fn exact_match(&self) -> anyhow::Result<Metric> {
        let mut settings = serde_json::Map::new();
        if let Some(extract) = &self.extract {
            settings.insert("extract".to_owned(), extract.as_str().into());
        }
        if self.lowercase {
            settings.insert("ignore-case".to_owned(), true.into());
        }
        Ok(serde_json::from_value(
            serde_json::json!({"exact-match": settings}),
        )?)
    }
}

fn same_length(a: &Path, a_len: usize, b: &Path, b_len: usize) -> anyhow::Result<()> {
    ensure!(
        a_len == b_len,
        "{} has {a_len} segments, {} has {b_len}; they must pair up",
        a.display(),
        b.display()
    );
    Ok(())
}

fn read_segments(path: &Path) -> anyhow::Result<Vec<Segment>> {
    let text = read_text(path)?;
    text.split('\n')
        .enumerate()
        .filter(|(_, line)| !line.trim().is_empty())
        .map(|(index, line)| {
            serde_json::from_str(line)
                .with_context(|| format!("{}: line {}", path.display(), index + 1))
        })
        .collect()
}

/// One metric's results.
struct Scored<'a> {
    args: &'a ScoreArgs,
    system: Evaluation,
    baseline: Option<Evaluation>,
}

impl Scored<'_> {
    fn resampling(&self) -> Resampling {
        Resampling {
            seed: self.args.seed,
            ..Resampling::default()
        }
    }

    /// What the intervals and p-values come from, where there are any.
    fn used(&self) -> Option<Resampling> {
        match &self.baseline {
            Some(_) => Some(self.resampling()),
            None => self.args.confidence.then(|| Resampling {
                shuffles: 0,
                ..self.resampling()
            }),
        }
    }

    fn json(&self) -> anyhow::Result<serde_json::Value> {
        let system = &self.system;
        let mut value = serde_json::json!({
            "score": system.score(),
            "higher_is_better": system.metric().higher_is_better(),
        });
        value["signature"] = system.signature(self.used().as_ref()).into();
        for (name, part) in system.parts() {
            value[name] = part.into();
        }
        if let Some(details) = system.details() {
            value["details"] = details.into();
        }
        if let Some(resampling) = self.used() {
            let interval = system.interval(&resampling);
            value["interval"] = serde_json::json!({
                "mean": interval.mean, "lo": interval.lo, "hi": interval.hi,
            });
        }
        if let Some(baseline) = &self.baseline {
            let test = paired(baseline, system, &self.resampling())?;
            value["paired"] = serde_json::json!({
                "baseline_score": baseline.score(),
                "difference": test.difference,
                "bootstrap_p": test.bootstrap_p,
                "randomisation_p": test.randomisation_p,
            });
            let change = tested(baseline, system, &self.resampling())?;
            if change.test != RANDOMISATION {
                value["paired"]["mcnemar_p"] = change.p.into();
            }
        }
        if self.args.sentence {
            value["segments"] = system.segment_scores().into();
        }
        Ok(value)
    }

    fn print(&self, out: &mut impl Write) -> anyhow::Result<()> {
        writeln!(out, "{}", self.system.line(self.used().as_ref()))?;
        if let Some(baseline) = &self.baseline {
            let test = paired(baseline, &self.system, &self.resampling())?;
            writeln!(
                out,
                "  baseline {:.4}, difference {:+.4}, p = {:.4} (paired bootstrap), p = {:.4} (approximate randomisation)",
                baseline.score(),
                test.difference,
                test.bootstrap_p,
                test.randomisation_p
            )?;
            let change = tested(baseline, &self.system, &self.resampling())?;
            if change.test != RANDOMISATION {
                writeln!(out, "  p = {:.4} ({})", change.p, change.test)?;
            }
        }
        if self.args.sentence {
            for score in self.system.segment_scores() {
                writeln!(out, "{score}")?;
            }
        }
        Ok(())
    }
}
