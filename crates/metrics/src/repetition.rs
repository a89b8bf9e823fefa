//! How much an answer repeats itself.

use crate::{Counts, Reads, Scratch, Segment, Unit};
use rustc_hash::FxHashSet;

/// Length of the n-grams that are looked for again.
const N: usize = 4;

/// Mean over the answers of the share of their 4-grams of tokens that stood in them before: seq-rep-4 of Welleck et al.
/// (2020, arXiv 1908.04319). A shorter answer repeats nothing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Repetition;

/// The share of the 4-grams of `tokens` that stood in it before.
pub fn repeated_4_grams(tokens: &[u32]) -> f64 {
    let all = (tokens.len() + 1).saturating_sub(N);
    if all == 0 {
        return 0.0;
    }
    let distinct: FxHashSet<&[u32]> = tokens.windows(N).collect();
    (all - distinct.len()) as f64 / all as f64
}

impl Counts for Repetition {
    fn label(&self) -> String {
        "repetition".to_owned()
    }

    fn unit(&self) -> Unit {
        Unit::Fraction
    }

    fn higher_is_better(&self) -> bool {
        false
    }

    fn reads(&self) -> Reads {
        Reads::Tokens
    }

    fn width(&self) -> usize {
        1
    }

    fn count(&self, _: &mut Scratch, segment: Segment<'_>, out: &mut [f64]) {
        out[0] = repeated_4_grams(&segment.hypothesis.tokens);
    }

    fn score(&self, sum: &[f64], segments: usize) -> f64 {
        sum[0] / segments as f64
    }

    fn signature(&self) -> Vec<(&'static str, String)> {
        vec![("n", N.to_string()), ("of", "tokens".to_owned())]
    }
}

#[cfg(test)]
mod tests {
    use super::repeated_4_grams;

    #[test]
    fn what_stood_before_is_counted() {
        assert_eq!(
            repeated_4_grams(&[7, 7, 7, 7, 7, 7, 7]),
            0.75,
            "one of four is new"
        );
        assert_eq!(repeated_4_grams(&[1, 2, 3, 4, 5, 1, 2, 3]), 0.0);
        assert_eq!(repeated_4_grams(&[1, 2, 3, 4, 1, 2, 3, 4]), 0.2);
        assert_eq!(repeated_4_grams(&[7, 7, 7]), 0.0);
        assert_eq!(repeated_4_grams(&[]), 0.0);
    }
}
