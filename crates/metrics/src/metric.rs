//! The registry of metrics.

use crate::{Bleu, Chrf, Counts, Rouge, RougeKind, Ter, Tokenizer};
use std::fmt;
use std::str::FromStr;

/// A metric with its settings. The name of each is parsed and printed; what a name does not say has its default.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Metric {
    /// BLEU.
    Bleu(Bleu),
    /// chrF and chrF++.
    Chrf(Chrf),
    /// Translation edit rate.
    Ter(Ter),
    /// ROUGE.
    Rouge(Rouge),
}

/// Range of a score.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    /// 0..100.
    Percent,
    /// 0..1.
    Fraction,
}

/// What cannot be scored.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MetricError {
    /// The name is not known.
    #[error("unknown metric `{name}`; there are {}", Metric::NAMES)]
    Unknown {
        /// What was asked for.
        name: String,
    },
    /// Hypotheses and references do not pair up.
    #[error(
        "{found} segments where {expected} were expected; hypotheses and references must pair up"
    )]
    Lengths {
        /// Number of segments of the one.
        found: usize,
        /// Number of segments of the other.
        expected: usize,
    },
    /// Nothing to score.
    #[error("there is no segment to score")]
    Empty,
    /// A segment without reference.
    #[error("segment {} has no reference", index + 1)]
    NoReference {
        /// Segment, from 0.
        index: usize,
    },
    /// Systems under different metrics.
    #[error(
        "`{baseline}` and `{system}` cannot be compared; both systems need the same metric and settings"
    )]
    Different {
        /// Metric of the baseline.
        baseline: String,
        /// Metric of the system.
        system: String,
    },
}

impl Metric {
    const NAMES: &str = "`bleu`, `bleu-intl`, `bleu-zh`, `bleu-char`, `bleu-none`, `chrf`, `chrf++`, `ter`, `rouge1` to `rouge9`, `rougeL`, `rougeLsum`";

    pub(crate) fn counts(&self) -> &dyn Counts {
        match self {
            Metric::Bleu(bleu) => bleu,
            Metric::Chrf(chrf) => chrf,
            Metric::Ter(ter) => ter,
            Metric::Rouge(rouge) => rouge,
        }
    }

    /// Range of the score.
    pub fn unit(&self) -> Unit {
        self.counts().unit()
    }

    /// Whether a larger score is the better one.
    pub fn higher_is_better(&self) -> bool {
        self.counts().higher_is_better()
    }
}

impl fmt::Display for Metric {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Metric::Bleu(bleu) => match bleu.tokenizer {
                Tokenizer::V13a => f.write_str("bleu"),
                tokenizer => write!(f, "bleu-{tokenizer}"),
            },
            Metric::Chrf(chrf) => write!(f, "chrf{}", "+".repeat(chrf.word_order)),
            Metric::Ter(_) => f.write_str("ter"),
            Metric::Rouge(rouge) => f.write_str(&rouge.label()),
        }
    }
}

impl FromStr for Metric {
    type Err = MetricError;

    fn from_str(name: &str) -> Result<Self, MetricError> {
        let unknown = || MetricError::Unknown {
            name: name.to_owned(),
        };
        let rouge = |kind| {
            Metric::Rouge(Rouge {
                kind,
                stemmer: false,
            })
        };
        Ok(match name {
            "bleu" => Metric::Bleu(Bleu::default()),
            "chrf" => Metric::Chrf(Chrf::default()),
            "chrf++" => Metric::Chrf(Chrf {
                word_order: 2,
                ..Chrf::default()
            }),
            "ter" => Metric::Ter(Ter::default()),
            "rougeL" => rouge(RougeKind::L),
            "rougeLsum" => rouge(RougeKind::Lsum),
            _ => {
                if let Some(tokenizer) = name.strip_prefix("bleu-") {
                    Metric::Bleu(Bleu {
                        tokenizer: tokenizer.parse().map_err(|_| unknown())?,
                        ..Bleu::default()
                    })
                } else {
                    match name.strip_prefix("rouge").map(str::as_bytes) {
                        Some([n @ b'1'..=b'9']) => rouge(RougeKind::N(usize::from(n - b'0'))),
                        _ => return Err(unknown()),
                    }
                }
            }
        })
    }
}

pub(crate) fn yes_no(yes: bool) -> String {
    if yes { "yes" } else { "no" }.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_round_trip() {
        for name in [
            "bleu",
            "bleu-intl",
            "bleu-zh",
            "chrf",
            "chrf++",
            "ter",
            "rouge1",
            "rouge9",
            "rougeL",
            "rougeLsum",
        ] {
            assert_eq!(name.parse::<Metric>().unwrap().to_string(), name);
        }
        for name in [
            "", "BLEU", "bleu-13b", "rouge0", "rouge10", "rouge", "rougel",
        ] {
            assert!(name.parse::<Metric>().is_err(), "{name}");
        }
    }
}
