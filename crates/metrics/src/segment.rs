//! What there is of a segment to score.

use crate::MetricError;
use serde::{Deserialize, Serialize};

/// What a system gave for a segment: an answer of its own, or what it made of text that was given.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Hypothesis {
    /// Its answer; a segment may have an empty one, which scores 0 and counts.
    pub text: String,
    /// The tokens of the answer.
    pub tokens: Vec<u32>,
    /// What it made of text that was given.
    pub evidence: Evidence,
}

/// What a model made of text that was given to it, or that the full network wrote.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Evidence {
    /// The choices of a question, in order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub choices: Vec<Choice>,
    /// A text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text: Option<TextLikelihood>,
    /// How far it is from the full network.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub distance: Option<Distance>,
}

/// What a choice got.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Choice {
    /// Natural logarithm of its probability.
    pub logprob: f64,
    /// Its tokens.
    pub tokens: usize,
    /// Its length in characters, without what parts it from the question.
    pub characters: usize,
}

/// What a text got.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct TextLikelihood {
    /// Natural logarithm of the probability of the scored tokens.
    pub logprob: f64,
    /// Tokens that were scored.
    pub tokens: usize,
    /// Words of the text.
    pub words: usize,
    /// Bytes of the text.
    pub bytes: usize,
}

/// How far a model's next tokens are from the full network's, summed over the tokens of a text.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct Distance {
    /// Tokens that were compared.
    pub tokens: usize,
    /// Kullback-Leibler divergence of the full network's distribution from the model's, in nats.
    pub kl: f64,
    /// Tokens for which both find the same one likeliest.
    pub same: usize,
}

impl Evidence {
    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.choices.is_empty() && self.text.is_none() && self.distance.is_none()
    }
}

impl From<String> for Hypothesis {
    fn from(text: String) -> Self {
        Self {
            text,
            ..Self::default()
        }
    }
}

impl From<&str> for Hypothesis {
    fn from(text: &str) -> Self {
        text.to_owned().into()
    }
}

/// What is right of a segment.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Reference {
    /// The right texts.
    pub texts: Vec<String>,
    /// The right one of its choices, from 0.
    pub choice: Option<usize>,
}

/// What a metric reads of a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reads {
    /// The text of an answer, and the right texts.
    Answer,
    /// The tokens of an answer.
    Tokens,
    /// [`Evidence::choices`], and the right choice.
    Choices,
    /// [`Evidence::text`].
    Text,
    /// [`Evidence::distance`].
    Distance,
}

impl Reads {
    /// Whether it is what a model made of given text.
    pub fn is_evidence(self) -> bool {
        matches!(self, Self::Choices | Self::Text | Self::Distance)
    }
}

/// What a system gave for each segment.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Hypotheses(pub(crate) Vec<Hypothesis>);

/// What is right of each.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct References(pub(crate) Vec<Reference>);

impl Hypotheses {
    /// One per segment: texts, or whole [`Hypothesis`]es.
    pub fn new<T: Into<Hypothesis>>(segments: impl IntoIterator<Item = T>) -> Self {
        Self(segments.into_iter().map(Into::into).collect())
    }
}

impl References {
    /// From the texts of each segment, not necessarily equally many.
    ///
    /// # Errors
    /// A segment without any.
    pub fn new(texts: Vec<Vec<String>>) -> Result<Self, MetricError> {
        match texts.iter().position(Vec::is_empty) {
            Some(index) => Err(MetricError::NoReference { index }),
            None => Ok(Self::of(texts.into_iter().map(|texts| Reference {
                texts,
                choice: None,
            }))),
        }
    }

    /// From one text per segment.
    ///
    /// # Errors
    /// None; the signature is that of [`References::new`].
    pub fn single<T: Into<String>>(
        texts: impl IntoIterator<Item = T>,
    ) -> Result<Self, MetricError> {
        Self::new(texts.into_iter().map(|text| vec![text.into()]).collect())
    }

    /// From whatever is right of each segment; what a metric does not find there it says when it scores.
    pub fn of(segments: impl IntoIterator<Item = Reference>) -> Self {
        Self(segments.into_iter().collect())
    }

    /// Texts per segment, where all have as many.
    pub(crate) fn number(&self) -> Option<usize> {
        let first = self.0.first()?.texts.len();
        let mut all = self.0.iter();
        all.all(|segment| segment.texts.len() == first)
            .then_some(first)
    }
}

/// A segment as a metric sees it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Segment<'a> {
    pub(crate) hypothesis: &'a Hypothesis,
    pub(crate) reference: &'a Reference,
}

impl<'a> Segment<'a> {
    /// The answer.
    pub(crate) fn text(&self) -> &'a str {
        &self.hypothesis.text
    }

    /// The right texts, one at least where [`Reads::Answer`] was asked for.
    pub(crate) fn references(&self) -> &'a [String] {
        &self.reference.texts
    }

    /// Whether it has what a metric reads.
    pub(crate) fn has(&self, reads: Reads) -> bool {
        let evidence = &self.hypothesis.evidence;
        match reads {
            Reads::Answer => !self.reference.texts.is_empty(),
            Reads::Tokens => true,
            Reads::Choices => self.reference.choice.is_some(),
            Reads::Text => evidence.text.is_some(),
            Reads::Distance => evidence.distance.is_some(),
        }
    }
}
