//! Distance from the full network, token by token: quality without references.

use crate::{Counts, Reads, Scratch, Segment, Unit};

/// How far next tokens are from the full network's, over the same text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Divergence {
    /// Mean over the tokens of the Kullback-Leibler divergence of the full network's distribution from the model's, in nats.
    Kl,
    /// Share of the tokens for which both find the same one likeliest.
    Top1,
}

impl Counts for Divergence {
    fn label(&self) -> String {
        match self {
            Self::Kl => "kl".to_owned(),
            Self::Top1 => "top1".to_owned(),
        }
    }

    fn unit(&self) -> Unit {
        match self {
            Self::Kl => Unit::Nats,
            Self::Top1 => Unit::Fraction,
        }
    }

    fn higher_is_better(&self) -> bool {
        *self == Self::Top1
    }

    fn reads(&self) -> Reads {
        Reads::Distance
    }

    fn width(&self) -> usize {
        2
    }

    /// The sum, and the tokens that it is over: none where the full network had nothing to say.
    fn count(&self, _: &mut Scratch, segment: Segment<'_>, out: &mut [f64]) {
        let distance = segment.hypothesis.evidence.distance.unwrap_or_default();
        out[0] = match self {
            Self::Kl => distance.kl,
            Self::Top1 => distance.same as f64,
        };
        out[1] = distance.tokens as f64;
    }

    fn score(&self, sum: &[f64], _segments: usize) -> f64 {
        match sum[1] > 0.0 {
            true => sum[0] / sum[1],
            // A resample may hold none but segments without tokens.
            false => match self {
                Self::Kl => 0.0,
                Self::Top1 => 1.0,
            },
        }
    }

    fn signature(&self) -> Vec<(&'static str, String)> {
        let base = match self {
            Self::Kl => ("log", "e"),
            Self::Top1 => ("ties", "lowest-id"),
        };
        vec![
            ("against", "full".to_owned()),
            ("mean", "tokens".to_owned()),
            (base.0, base.1.to_owned()),
        ]
    }
}
