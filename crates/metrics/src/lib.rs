//! Quality metrics over per-segment counts: corpus BLEU and ROUGE, with bootstrap intervals and paired tests.
//!
//! Each metric turns a segment into a small vector of counts; the corpus score, its interval and the paired tests
//! all work on those vectors.

mod bleu;
mod rouge;
mod significance;

pub use bleu::{Tokenizer, corpus_bleu};
pub use significance::{Paired, holm};

use significance::{interval, randomisation};
use std::fmt;
use std::str::FromStr;

/// A metric by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MetricSpec {
    /// Corpus BLEU (Papineni et al. 2002) as sacrebleu computes it, 0..100.
    Bleu(Tokenizer),
    /// ROUGE-1 F1 (Lin 2004), 0..1.
    Rouge1,
    /// ROUGE-2 F1.
    Rouge2,
    /// ROUGE-L F1: longest common subsequence of the whole segment.
    RougeL,
    /// ROUGE-L F1 with a union over sentences, which line feeds part.
    RougeLsum,
}

/// There is no such metric.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MetricError {
    /// The name is not known.
    #[error("unknown metric `{name}`; there are {}", MetricSpec::names())]
    Unknown {
        /// What was asked for.
        name: String,
    },
    /// Hypotheses and references do not pair up.
    #[error(
        "{hypotheses} hypotheses but {references} references; each hypothesis needs its references"
    )]
    Lengths {
        /// Number of hypotheses.
        hypotheses: usize,
        /// Number of reference sets.
        references: usize,
    },
    /// Nothing to score.
    #[error("there is no segment to score")]
    Empty,
    /// A segment without reference.
    #[error("segment {index} has no reference")]
    NoReference {
        /// Segment, from 0.
        index: usize,
    },
}

/// A system's score with what significance needs.
#[derive(Debug, Clone, PartialEq)]
pub struct Evaluation {
    metric: MetricSpec,
    /// Corpus score.
    pub score: f64,
    /// 2.5th percentile of the bootstrap.
    pub lo: f64,
    /// 97.5th percentile of the bootstrap.
    pub hi: f64,
    /// Counts of each segment.
    stats: Vec<Vec<f64>>,
}

impl MetricSpec {
    const ALL: [MetricSpec; 7] = [
        MetricSpec::Bleu(Tokenizer::V13a),
        MetricSpec::Bleu(Tokenizer::Zh),
        MetricSpec::Bleu(Tokenizer::None),
        MetricSpec::Rouge1,
        MetricSpec::Rouge2,
        MetricSpec::RougeL,
        MetricSpec::RougeLsum,
    ];

    fn names() -> String {
        Self::ALL.map(|metric| format!("`{metric}`")).join(", ")
    }

    fn stats(self, hypothesis: &str, references: &[String]) -> Vec<f64> {
        let references: Vec<&str> = references.iter().map(String::as_str).collect();
        match self {
            MetricSpec::Bleu(tokenizer) => bleu::stats(tokenizer, hypothesis, &references),
            MetricSpec::Rouge1 => vec![rouge::best(&references, |r| {
                rouge::rouge_n(hypothesis, r, 1)
            })],
            MetricSpec::Rouge2 => vec![rouge::best(&references, |r| {
                rouge::rouge_n(hypothesis, r, 2)
            })],
            MetricSpec::RougeL => vec![rouge::best(&references, |r| rouge::rouge_l(hypothesis, r))],
            MetricSpec::RougeLsum => {
                vec![rouge::best(&references, |r| {
                    rouge::rouge_lsum(hypothesis, r)
                })]
            }
        }
    }

    /// Corpus score from the sum of `n` segments' counts.
    fn score(self, sum: &[f64], n: usize) -> f64 {
        match self {
            MetricSpec::Bleu(_) => bleu::score(sum),
            _ => sum[0] / n as f64,
        }
    }

    fn corpus<'a>(self, stats: impl Iterator<Item = &'a Vec<f64>>) -> f64 {
        let mut sum = Vec::new();
        let mut n = 0;
        for stats in stats {
            sum.resize(stats.len(), 0.0);
            sum.iter_mut()
                .zip(stats)
                .for_each(|(sum, stat)| *sum += stat);
            n += 1;
        }
        match n {
            0 => 0.0,
            n => self.score(&sum, n),
        }
    }
}

impl fmt::Display for MetricSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            MetricSpec::Bleu(Tokenizer::V13a) => "bleu",
            MetricSpec::Bleu(Tokenizer::Zh) => "bleu-zh",
            MetricSpec::Bleu(Tokenizer::None) => "bleu-none",
            MetricSpec::Rouge1 => "rouge1",
            MetricSpec::Rouge2 => "rouge2",
            MetricSpec::RougeL => "rougeL",
            MetricSpec::RougeLsum => "rougeLsum",
        })
    }
}

impl FromStr for MetricSpec {
    type Err = MetricError;

    fn from_str(name: &str) -> Result<Self, MetricError> {
        Self::ALL
            .into_iter()
            .find(|metric| metric.to_string() == name)
            .ok_or_else(|| MetricError::Unknown {
                name: name.to_owned(),
            })
    }
}

/// Scores a system. `references` holds one or more per hypothesis.
///
/// # Errors
/// Lists that do not pair up, are empty, or lack a reference.
pub fn evaluate(
    metric: &MetricSpec,
    hypotheses: &[String],
    references: &[Vec<String>],
    seed: u64,
) -> Result<Evaluation, MetricError> {
    if hypotheses.len() != references.len() {
        return Err(MetricError::Lengths {
            hypotheses: hypotheses.len(),
            references: references.len(),
        });
    }
    if hypotheses.is_empty() {
        return Err(MetricError::Empty);
    }
    if let Some(index) = references.iter().position(Vec::is_empty) {
        return Err(MetricError::NoReference { index });
    }
    let stats: Vec<Vec<f64>> = hypotheses
        .iter()
        .zip(references)
        .map(|(hypothesis, references)| metric.stats(hypothesis, references))
        .collect();
    let (lo, hi) = interval(&stats, |picked| metric.corpus(picked), seed);
    Ok(Evaluation {
        metric: *metric,
        score: metric.corpus(stats.iter()),
        lo,
        hi,
        stats,
    })
}

/// Paired test of two systems on the same segments under the same metric.
///
/// # Errors
/// Systems with different numbers of segments.
pub fn paired(
    baseline: &Evaluation,
    system: &Evaluation,
    seed: u64,
) -> Result<Paired, MetricError> {
    if baseline.stats.len() != system.stats.len() {
        return Err(MetricError::Lengths {
            hypotheses: system.stats.len(),
            references: baseline.stats.len(),
        });
    }
    let metric = baseline.metric;
    Ok(Paired {
        difference: system.score - baseline.score,
        randomisation_p: randomisation(
            &baseline.stats,
            &system.stats,
            |sum, n| metric.score(sum, n),
            seed,
        ),
    })
}
