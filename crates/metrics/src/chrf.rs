//! chrF and chrF++.

use crate::ngrams::Words;
use crate::text::{is_space, without_case, words};
use crate::{Counts, SACREBLEU_VERSION, Scratch, Segment, Unit, yes_no};
use std::borrow::Cow;

/// What an order without n-grams counts under epsilon smoothing.
const EPSILON: f64 = 1e-16;

/// chrF (Popović 2015, "chrF: character n-gram F-score for automatic MT evaluation"), and with `word_order` 2 chrF++
/// (Popović 2017), as sacrebleu 2.6.0 computes them, 0..100.
///
/// The F-score, recall weighing `beta` times as much as precision, of the precisions and recalls of all orders, each
/// averaged over the orders that both sides have. Of several references a segment takes the one with the best F-score.
/// Kept of sacrebleu: words are parted from one ASCII punctuation mark alone, at their end or else at their beginning.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Chrf {
    /// Longest character n-gram.
    pub char_order: usize,
    /// Longest word n-gram; 0 for chrF, 2 for chrF++.
    pub word_order: usize,
    /// Weight of recall.
    pub beta: u32,
    /// Case is ignored.
    pub lowercase: bool,
    /// Character n-grams run over white space.
    pub whitespace: bool,
    /// Every order counts, those without a match with next to nothing, as in chrF++.py, NLTK and Moses.
    pub eps_smoothing: bool,
}

impl Default for Chrf {
    fn default() -> Self {
        Self {
            char_order: 6,
            word_order: 0,
            beta: 2,
            lowercase: false,
            whitespace: false,
            eps_smoothing: false,
        }
    }
}

impl Chrf {
    fn orders(&self) -> usize {
        self.char_order + self.word_order
    }

    /// F-score from (hypothesis, reference, match) counts per order.
    fn f_score(&self, counts: &[f64]) -> f64 {
        let factor = f64::from(self.beta).powi(2);
        let f = |precision: f64, recall: f64| {
            (1.0 + factor) * precision * recall / (factor * precision + recall)
        };
        let (mut smoothed, mut precisions, mut recalls, mut effective) = (0.0, 0.0, 0.0, 0usize);
        for order in counts.chunks_exact(3) {
            let (hypothesis, reference, matches) = (order[0], order[1], order[2]);
            let share = |of: f64| if of > 0.0 { matches / of } else { EPSILON };
            let (precision, recall) = (share(hypothesis), share(reference));
            smoothed += match factor * precision + recall > 0.0 {
                true => f(precision, recall),
                false => EPSILON,
            };
            if hypothesis > 0.0 && reference > 0.0 {
                precisions += precision;
                recalls += recall;
                effective += 1;
            }
        }
        if self.eps_smoothing {
            return 100.0 * smoothed / self.orders() as f64;
        }
        if precisions + recalls == 0.0 {
            return 0.0;
        }
        100.0 * f(precisions / effective as f64, recalls / effective as f64)
    }
}

/// Words, parted from a punctuation mark.
fn parted(text: &str) -> impl Iterator<Item = &str> {
    words(text).flat_map(|word| {
        let first = word.chars().next().map_or(0, char::len_utf8);
        let (head, tail) = if word.len() == first {
            (word, "")
        } else if word.ends_with(|c: char| c.is_ascii_punctuation()) {
            word.split_at(word.len() - 1)
        } else if word.starts_with(|c: char| c.is_ascii_punctuation()) {
            word.split_at(1)
        } else {
            (word, "")
        };
        [head, tail].into_iter().filter(|part| !part.is_empty())
    })
}

impl Counts for Chrf {
    fn label(&self) -> String {
        format!("chrF{}{}", self.beta, "+".repeat(self.word_order))
    }

    fn unit(&self) -> Unit {
        Unit::Percent
    }

    fn width(&self) -> usize {
        3 * self.orders()
    }

    /// N-grams of the hypothesis, of its best reference, and matches, per order.
    fn count(&self, scratch: &mut Scratch, segment: Segment<'_>, out: &mut [f64]) {
        let (hypothesis, references) = (segment.text(), segment.references());
        let texts: Vec<Cow<'_, str>> = std::iter::once(hypothesis)
            .chain(references.iter().map(String::as_str))
            .map(|text| without_case(text, self.lowercase))
            .collect();
        let width = self.width();
        let mut counts = vec![0.0; references.len() * width];
        let ngrams = &mut scratch.ngrams;
        let mut add = |mut order: crate::ngrams::Order<'_>, before: usize| {
            for (index, counts) in counts.chunks_exact_mut(width).enumerate() {
                let (reference, at) = (index + 1, 3 * (before + order.n() - 1));
                let n_reference = order.total(reference);
                // N-grams of an order that the reference does not have are not held against the hypothesis.
                counts[at] = if n_reference > 0 { order.total(0) } else { 0 } as f64;
                counts[at + 1] = n_reference as f64;
                counts[at + 2] = order.matches(0, reference..reference + 1) as f64;
            }
        };
        ngrams.clear();
        for text in &texts {
            let chars = text.chars().filter(|&c| self.whitespace || !is_space(c));
            ngrams.push(chars.map(u32::from));
        }
        ngrams.for_each_order(self.char_order, |order| add(order, 0));
        if self.word_order > 0 {
            let mut ids = Words::default();
            ngrams.clear();
            for text in &texts {
                ngrams.push(parted(text).map(|word| ids.id(word)));
            }
            ngrams.for_each_order(self.word_order, |order| add(order, self.char_order));
        }
        let mut best = f64::NEG_INFINITY;
        for counts in counts.chunks_exact(width) {
            let score = self.f_score(counts);
            if score > best {
                best = score;
                out.copy_from_slice(counts);
            }
        }
    }

    fn score(&self, sum: &[f64], _segments: usize) -> f64 {
        self.f_score(sum)
    }

    fn signature(&self) -> Vec<(&'static str, String)> {
        vec![
            (
                "case",
                if self.lowercase { "lc" } else { "mixed" }.to_owned(),
            ),
            ("eff", yes_no(!self.eps_smoothing)),
            ("nc", self.char_order.to_string()),
            ("nw", self.word_order.to_string()),
            ("space", yes_no(self.whitespace)),
        ]
    }

    fn version(&self) -> String {
        SACREBLEU_VERSION.to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_mark_is_parted() {
        let parts: Vec<&str> = parted("(hi) \"x . a, é! ...").collect();
        assert_eq!(
            parts,
            ["(hi", ")", "\"", "x", ".", "a", ",", "é", "!", "..", "."]
        );
    }
}
