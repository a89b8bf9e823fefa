//! Accuracy of multiple choice.

use crate::{Counts, Reads, Scratch, Segment, Unit, yes_no};

/// Share of the questions whose likeliest choice is the right one, as lm-eval's `acc` and `acc_norm`; of choices that are as
/// likely the first counts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Accuracy {
    /// A choice's log-probability is divided by its length in characters, which is lm-eval's `acc_norm`.
    pub normalised: bool,
}

impl Counts for Accuracy {
    fn label(&self) -> String {
        if self.normalised { "acc-norm" } else { "acc" }.to_owned()
    }

    fn unit(&self) -> Unit {
        Unit::Fraction
    }

    fn is_right_or_wrong(&self) -> bool {
        true
    }

    fn reads(&self) -> Reads {
        Reads::Choices
    }

    fn width(&self) -> usize {
        1
    }

    /// 1 where it is right. A question that could not be scored is wrong.
    fn count(&self, _: &mut Scratch, segment: Segment<'_>, out: &mut [f64]) {
        let mut best: Option<(usize, f64)> = None;
        for (index, choice) in segment.hypothesis.evidence.choices.iter().enumerate() {
            let score = match self.normalised {
                true => choice.logprob / choice.characters as f64,
                false => choice.logprob,
            };
            if best.is_none_or(|(_, highest)| score > highest) {
                best = Some((index, score));
            }
        }
        let picked = best.map(|(index, _)| index);
        out[0] = f64::from(picked.is_some() && picked == segment.reference.choice);
    }

    fn score(&self, sum: &[f64], segments: usize) -> f64 {
        sum[0] / segments as f64
    }

    fn signature(&self) -> Vec<(&'static str, String)> {
        let norm = if self.normalised {
            "characters"
        } else {
            "none"
        };
        vec![
            ("norm", norm.to_owned()),
            ("ties", "first".to_owned()),
            ("failed-as-wrong", yes_no(true)),
        ]
    }
}
