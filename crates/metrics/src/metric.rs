//! The registry of metrics.

use crate::exact_match::Settings;
use crate::{
    Accuracy, Bleu, Chrf, Contains, Counts, Divergence, ExactMatch, Perplexity, Reads, Repetition,
    Rouge, RougeKind, Ter, Tokenizer,
};
use serde::de::value::MapAccessDeserializer;
use serde::de::{Error, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::fmt;
use std::str::FromStr;

/// A metric with its settings. The name of each is parsed and printed; what a name does not say has its default, or is said by
/// a map, `{exact-match: {extract: last-number}}`, which is its form in files.
#[derive(Debug, Clone, PartialEq)]
pub enum Metric {
    /// BLEU.
    Bleu(Bleu),
    /// chrF and chrF++.
    Chrf(Chrf),
    /// Translation edit rate.
    Ter(Ter),
    /// ROUGE.
    Rouge(Rouge),
    /// Answers that are a right text.
    ExactMatch(ExactMatch),
    /// Answers that hold a right text.
    Contains(Contains),
    /// How much answers repeat themselves.
    Repetition(Repetition),
    /// Accuracy of multiple choice.
    Accuracy(Accuracy),
    /// Perplexity of texts.
    Perplexity(Perplexity),
    /// Distance from the full network.
    Divergence(Divergence),
}

/// Range of a score.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    /// 0..100.
    Percent,
    /// 0..1.
    Fraction,
    /// 1.., a ratio.
    Perplexity,
    /// 0.., nats or bits.
    Nats,
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
    /// A segment lacks what the metric reads.
    #[error("segment {} cannot be scored by `{metric}`: it has {}", index + 1, lacks(*reads))]
    NotScored {
        /// The metric.
        metric: String,
        /// Segment, from 0.
        index: usize,
        /// What it reads.
        reads: Reads,
    },
    /// A regular expression that is none.
    #[error("`{pattern}` is no regular expression: {reason}")]
    Pattern {
        /// The expression.
        pattern: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A name of the user's that cannot be one of a column.
    #[error(
        "a metric cannot be called {name:?}; take letters, digits, `-`, `_` and `.`, and no name that is another metric's"
    )]
    Name {
        /// The name.
        name: String,
    },
}

fn lacks(reads: Reads) -> &'static str {
    match reads {
        Reads::Answer => "no reference",
        Reads::Tokens => "no tokens",
        Reads::Choices => "no right choice; the metric is for multiple choice",
        Reads::Text => "no log-probability of a text; the metric is for perplexity",
        Reads::Distance => "no distance from the full network; the metric is for experiments",
    }
}

impl Metric {
    const NAMES: &str = "`bleu`, `bleu-intl`, `bleu-zh`, `bleu-char`, `bleu-none`, `chrf`, `chrf++`, `ter`, `rouge1` to `rouge9`, `rougeL`, `rougeLsum`, `exact-match`, `contains`, `repetition`, `acc`, `acc-norm`, `perplexity`, `word-perplexity`, `byte-perplexity`, `bits-per-byte`, `kl`, `top1`";

    pub(crate) fn counts(&self) -> &dyn Counts {
        match self {
            Metric::Bleu(bleu) => bleu,
            Metric::Chrf(chrf) => chrf,
            Metric::Ter(ter) => ter,
            Metric::Rouge(rouge) => rouge,
            Metric::ExactMatch(exact_match) => exact_match,
            Metric::Contains(contains) => contains,
            Metric::Repetition(repetition) => repetition,
            Metric::Accuracy(accuracy) => accuracy,
            Metric::Perplexity(perplexity) => perplexity,
            Metric::Divergence(divergence) => divergence,
        }
    }

    /// What it reads of a segment.
    pub fn reads(&self) -> Reads {
        self.counts().reads()
    }

    /// How many points a change of a score is: hundredths of the range of a score that has one, of the `baseline`'s perplexity,
    /// of a nat; above zero where it is for the better.
    pub fn points(&self, change: f64, baseline: f64) -> f64 {
        let points = match self.unit() {
            Unit::Percent => change,
            Unit::Fraction | Unit::Nats => 100.0 * change,
            Unit::Perplexity => 100.0 * change / baseline,
        };
        match self.higher_is_better() {
            true => points,
            false => -points,
        }
    }

    /// A score as a table shows it.
    pub fn format(&self, score: f64) -> String {
        let digits = match self.unit() {
            Unit::Percent => 1,
            Unit::Fraction => 3,
            Unit::Perplexity => 2,
            Unit::Nats => 4,
        };
        format!("{score:.digits$}")
    }

    /// Whether its name says all of it.
    pub fn is_plain(&self) -> bool {
        self.settings().is_none()
    }

    /// The map that says what its name does not.
    fn settings(&self) -> Option<WithSettings> {
        match self {
            Metric::ExactMatch(exact_match) => {
                let settings = exact_match.settings();
                (*settings != Settings::default())
                    .then(|| WithSettings::ExactMatch(settings.clone()))
            }
            Metric::Contains(contains) => {
                (*contains != Contains::default()).then(|| WithSettings::Contains(contains.clone()))
            }
            _ => None,
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
            other => f.write_str(&other.counts().label()),
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
            "exact-match" => Metric::ExactMatch(ExactMatch::default()),
            "contains" => Metric::Contains(Contains::default()),
            "repetition" => Metric::Repetition(Repetition),
            "acc" => Metric::Accuracy(Accuracy { normalised: false }),
            "acc-norm" => Metric::Accuracy(Accuracy { normalised: true }),
            "perplexity" => Metric::Perplexity(Perplexity::Token),
            "word-perplexity" => Metric::Perplexity(Perplexity::Word),
            "byte-perplexity" => Metric::Perplexity(Perplexity::Byte),
            "bits-per-byte" => Metric::Perplexity(Perplexity::BitsPerByte),
            "kl" => Metric::Divergence(Divergence::Kl),
            "top1" => Metric::Divergence(Divergence::Top1),
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

/// A metric with settings of a user's, as files write it.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum WithSettings {
    ExactMatch(Settings),
    Contains(Contains),
}

impl TryFrom<WithSettings> for Metric {
    type Error = MetricError;

    fn try_from(written: WithSettings) -> Result<Self, MetricError> {
        let name = match &written {
            WithSettings::ExactMatch(settings) => &settings.name,
            WithSettings::Contains(contains) => &contains.name,
        };
        if let Some(name) = name {
            let fits = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
            if name.is_empty() || !name.chars().all(fits) || name.parse::<Metric>().is_ok() {
                return Err(MetricError::Name { name: name.clone() });
            }
        }
        Ok(match written {
            WithSettings::ExactMatch(settings) => Metric::ExactMatch(settings.try_into()?),
            WithSettings::Contains(contains) => Metric::Contains(contains),
        })
    }
}

impl Serialize for Metric {
    fn serialize<S: Serializer>(&self, out: S) -> Result<S::Ok, S::Error> {
        match self.settings() {
            Some(settings) => settings.serialize(out),
            None => out.collect_str(self),
        }
    }
}

impl<'de> Deserialize<'de> for Metric {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct MetricVisitor;

        impl<'de> Visitor<'de> for MetricVisitor {
            type Value = Metric;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(
                    "the name of a metric, or a map such as `{exact-match: {extract: last-number}}`",
                )
            }

            fn visit_str<E: Error>(self, name: &str) -> Result<Metric, E> {
                name.parse().map_err(E::custom)
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Metric, A::Error> {
                let written = WithSettings::deserialize(MapAccessDeserializer::new(map))?;
                Metric::try_from(written).map_err(A::Error::custom)
            }
        }

        from.deserialize_any(MetricVisitor)
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
            "exact-match",
            "contains",
            "repetition",
            "acc",
            "acc-norm",
            "perplexity",
            "word-perplexity",
            "byte-perplexity",
            "bits-per-byte",
            "kl",
            "top1",
        ] {
            assert_eq!(name.parse::<Metric>().unwrap().to_string(), name);
        }
        for name in [
            "", "BLEU", "bleu-13b", "rouge0", "rouge10", "rouge", "rougel",
        ] {
            assert!(name.parse::<Metric>().is_err(), "{name}");
        }
    }

    #[test]
    fn settings_round_trip() {
        let read = |text: &str| serde_json::from_str::<Metric>(text);
        for text in [
            r#""bleu-zh""#,
            r#""exact-match""#,
            r#"{"exact-match":{"name":"strict","extract":"(x)","take":"last","ignore":[","],"ignore-case":true}}"#,
            r#"{"contains":{"ignore-case":true}}"#,
        ] {
            let metric = read(text).unwrap();
            assert_eq!(serde_json::to_string(&metric).unwrap(), text);
            assert_eq!(metric.is_plain(), text.starts_with('"'));
        }
        let named = read(r#"{"exact-match": {"name": "strict"}}"#).unwrap();
        assert_eq!(named.to_string(), "strict");
        let wrong = |text: &str| read(text).unwrap_err().to_string();
        for (text, says) in [
            (r#""exact""#, "unknown metric"),
            (
                r#"{"exact-match": {"extract": "("}}"#,
                "no regular expression",
            ),
            (r#"{"exact-match": {"name": "bleu"}}"#, "cannot be called"),
            (r#"{"exact-match": {"name": "a b"}}"#, "cannot be called"),
            (
                r#"{"exact-match": {"regex": "x"}}"#,
                "unknown field `regex`",
            ),
            ("3", "a map such as"),
        ] {
            assert!(wrong(text).contains(says), "{text}: {}", wrong(text));
        }
    }

    #[test]
    fn a_point_is_a_hundredth_whichever_way_is_better() {
        let points =
            |name: &str, change, baseline| name.parse::<Metric>().unwrap().points(change, baseline);
        assert_eq!(points("bleu", 1.5, 20.0), 1.5);
        assert_eq!(points("ter", 1.5, 20.0), -1.5);
        assert_eq!(points("acc", -0.25, 0.5), -25.0);
        assert_eq!(points("perplexity", 0.5, 10.0), -5.0);
        assert_eq!(points("kl", 0.25, 0.0), -25.0);
    }
}
