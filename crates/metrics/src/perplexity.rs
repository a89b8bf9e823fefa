//! Perplexity of texts.

use crate::{Counts, Reads, Scratch, Segment, Unit};

/// How unlikely texts are: the geometric mean of what a unit's probability is the inverse of, as lm-eval's `word_perplexity`,
/// `byte_perplexity` and `bits_per_byte`; words are those between white space.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Perplexity {
    /// By token that was scored.
    Token,
    /// By word.
    Word,
    /// By byte.
    Byte,
    /// The binary logarithm of the perplexity by byte.
    BitsPerByte,
}

impl Counts for Perplexity {
    fn label(&self) -> String {
        match self {
            Self::Token => "perplexity",
            Self::Word => "word-perplexity",
            Self::Byte => "byte-perplexity",
            Self::BitsPerByte => "bits-per-byte",
        }
        .to_owned()
    }

    fn unit(&self) -> Unit {
        match self {
            Self::BitsPerByte => Unit::Nats,
            _ => Unit::Perplexity,
        }
    }

    fn higher_is_better(&self) -> bool {
        false
    }

    fn reads(&self) -> Reads {
        Reads::Text
    }

    fn width(&self) -> usize {
        2
    }

    /// Negative log-probability in nats, and units.
    fn count(&self, _: &mut Scratch, segment: Segment<'_>, out: &mut [f64]) {
        let Some(text) = segment.hypothesis.evidence.text else {
            return;
        };
        out[0] = -text.logprob;
        out[1] = match self {
            Self::Token => text.tokens,
            Self::Word => text.words,
            Self::Byte | Self::BitsPerByte => text.bytes,
        } as f64;
    }

    fn score(&self, sum: &[f64], _segments: usize) -> f64 {
        let nats = sum[0] / sum[1].max(1.0);
        match self {
            Self::BitsPerByte => nats / std::f64::consts::LN_2,
            _ => nats.exp(),
        }
    }

    fn signature(&self) -> Vec<(&'static str, String)> {
        let unit = match self {
            Self::Token => "token",
            Self::Word => "word",
            Self::Byte | Self::BitsPerByte => "byte",
        };
        vec![("by", unit.to_owned())]
    }
}
