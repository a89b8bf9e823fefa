//! ROUGE.

use crate::lcs::Lcs;
use crate::ngrams::Words;
use crate::{Counts, Scratch, Segment, Unit, porter, yes_no};

/// ROUGE (Lin 2004, "ROUGE: A Package for Automatic Evaluation of Summaries"), as rouge_score 0.1.2 computes it, 0..1.
///
/// Tokens are runs of ASCII letters and digits in lower case, everything else parts them. A segment takes the first of
/// the references with the best F1; the corpus score is the mean over segments. Differences from Perl ROUGE-1.5.5 are
/// rouge_score's: no stop words, no bootstrap mean, and Porter's stemmer as NLTK extends it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rouge {
    /// What is matched.
    pub kind: RougeKind,
    /// Words of more than three characters are stemmed.
    pub stemmer: bool,
}

/// What ROUGE matches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RougeKind {
    /// ROUGE-N: n-grams, N from 1 to 9.
    N(usize),
    /// ROUGE-L: the longest common subsequence of the whole segments.
    L,
    /// ROUGE-Lsum: the union of the longest common subsequences of each reference sentence with all those of the
    /// hypothesis; a line feed ends a sentence.
    Lsum,
}

/// Precision, recall and F1.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
struct RougeScore {
    /// Matched share of the hypothesis.
    precision: f64,
    /// Matched share of the reference.
    recall: f64,
    /// Their harmonic mean.
    f1: f64,
}

impl RougeScore {
    fn new(matches: usize, hypothesis: usize, reference: usize) -> Self {
        let precision = matches as f64 / hypothesis.max(1) as f64;
        let recall = matches as f64 / reference.max(1) as f64;
        let f1 = match precision + recall > 0.0 {
            true => 2.0 * precision * recall / (precision + recall),
            false => 0.0,
        };
        Self {
            precision,
            recall,
            f1,
        }
    }
}

impl Rouge {
    /// The tokens of a text, with spaces between them.
    fn tokenized(&self, text: &str) -> String {
        let mut out = String::with_capacity(text.len());
        for c in text.chars() {
            match c {
                'a'..='z' | '0'..='9' => out.push(c),
                'A'..='Z' => out.push(c.to_ascii_lowercase()),
                // The two other characters whose lower case has an ASCII letter: the Kelvin sign, and the dotted capital I,
                // which becomes `i` and a combining dot.
                '\u{212a}' => out.push('k'),
                '\u{130}' => out.push_str("i "),
                _ => out.push(' '),
            }
        }
        match self.stemmer {
            true => tokens(&out)
                .map(|word| match word.len() > 3 {
                    true => porter::stem(word),
                    false => word.to_owned(),
                })
                .collect::<Vec<_>>()
                .join(" "),
            false => out,
        }
    }

    /// One tokenized text per sentence; a single one but for ROUGE-Lsum.
    fn sentences(&self, text: &str) -> Vec<String> {
        match self.kind {
            RougeKind::Lsum => text
                .split('\n')
                .filter(|sentence| !sentence.is_empty())
                .map(|sentence| self.tokenized(sentence))
                .collect(),
            _ => vec![self.tokenized(text)],
        }
    }

    fn compare(
        &self,
        scratch: &mut Scratch,
        hypothesis: &[Vec<u32>],
        reference: &[Vec<u32>],
    ) -> RougeScore {
        let len = |sentences: &[Vec<u32>]| sentences.iter().map(Vec::len).sum::<usize>();
        match self.kind {
            RougeKind::N(n) => {
                let ngrams = &mut scratch.ngrams;
                ngrams.clear();
                ngrams.push(hypothesis.iter().flatten().copied());
                ngrams.push(reference.iter().flatten().copied());
                let mut score = RougeScore::default();
                ngrams.for_each_order(n, |mut order| {
                    if order.n() == n {
                        let matches = order.matches(0, 1..2);
                        score = RougeScore::new(matches, order.total(0), order.total(1));
                    }
                });
                score
            }
            RougeKind::L => {
                let matches = match (hypothesis, reference) {
                    ([hypothesis], [reference]) => scratch.lcs.len(reference, hypothesis),
                    _ => 0,
                };
                RougeScore::new(matches, len(hypothesis), len(reference))
            }
            RougeKind::Lsum => {
                let matches = union_matches(&mut scratch.lcs, hypothesis, reference);
                RougeScore::new(matches, len(hypothesis), len(reference))
            }
        }
    }
}

fn tokens(text: &str) -> impl Iterator<Item = &str> {
    text.split(' ').filter(|word| !word.is_empty())
}

/// Words of the reference in the union of its sentences' longest common subsequences with those of the hypothesis, none
/// more often than either side has it.
fn union_matches(lcs: &mut Lcs, hypothesis: &[Vec<u32>], reference: &[Vec<u32>]) -> usize {
    let words = || hypothesis.iter().chain(reference).flatten();
    let size = words().max().map_or(0, |&largest| largest as usize + 1);
    let counts = |sentences: &[Vec<u32>]| {
        let mut counts = vec![0usize; size];
        for &word in sentences.iter().flatten() {
            counts[word as usize] += 1;
        }
        counts
    };
    let (mut in_hypothesis, mut in_reference) = (counts(hypothesis), counts(reference));
    let mut matches = 0;
    for sentence in reference {
        let mut union = vec![false; sentence.len()];
        for other in hypothesis {
            lcs.mark(sentence, other, &mut union);
        }
        for (&word, _) in sentence.iter().zip(&union).filter(|(_, marked)| **marked) {
            let (a, b) = (
                &mut in_hypothesis[word as usize],
                &mut in_reference[word as usize],
            );
            if *a > 0 && *b > 0 {
                *a -= 1;
                *b -= 1;
                matches += 1;
            }
        }
    }
    matches
}

impl Counts for Rouge {
    fn label(&self) -> String {
        match self.kind {
            RougeKind::N(n) => format!("rouge{n}"),
            RougeKind::L => "rougeL".to_owned(),
            RougeKind::Lsum => "rougeLsum".to_owned(),
        }
    }

    fn unit(&self) -> Unit {
        Unit::Fraction
    }

    fn width(&self) -> usize {
        3
    }

    /// Precision, recall and F1 against the best reference.
    fn count(&self, scratch: &mut Scratch, segment: Segment<'_>, out: &mut [f64]) {
        let (hypothesis, references) = (segment.text(), segment.references());
        let texts: Vec<Vec<String>> = std::iter::once(hypothesis)
            .chain(references.iter().map(String::as_str))
            .map(|text| self.sentences(text))
            .collect();
        let mut ids = Words::default();
        let texts: Vec<Vec<Vec<u32>>> = texts
            .iter()
            .map(|sentences| {
                sentences
                    .iter()
                    .map(|text| tokens(text).map(|word| ids.id(word)).collect())
                    .collect()
            })
            .collect();
        let mut best: Option<RougeScore> = None;
        for reference in &texts[1..] {
            let score = self.compare(scratch, &texts[0], reference);
            if best.is_none_or(|best| score.f1 > best.f1) {
                best = Some(score);
            }
        }
        let best = best.unwrap_or_default();
        out.copy_from_slice(&[best.precision, best.recall, best.f1]);
    }

    fn score(&self, sum: &[f64], segments: usize) -> f64 {
        sum[2] / segments as f64
    }

    fn parts(&self, sum: &[f64], segments: usize) -> Vec<(&'static str, f64)> {
        ["precision", "recall", "f1"]
            .into_iter()
            .zip(sum.iter().map(|sum| sum / segments as f64))
            .collect()
    }

    fn signature(&self) -> Vec<(&'static str, String)> {
        vec![("case", "lc".to_owned()), ("stem", yes_no(self.stemmer))]
    }

    fn version(&self) -> String {
        "rouge_score-0.1.2".to_owned()
    }

    fn details(&self, sum: &[f64], segments: usize) -> Option<String> {
        let mean = |index: usize| sum[index] / segments as f64;
        Some(format!("(P = {:.4} R = {:.4})", mean(0), mean(1)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_character_that_becomes_an_ascii_letter_is_known() {
        let rouge = Rouge {
            kind: RougeKind::L,
            stemmer: false,
        };
        for c in '\0'..=char::MAX {
            let lower: String = c
                .to_lowercase()
                .map(|c| {
                    if c.is_ascii_lowercase() || c.is_ascii_digit() {
                        c
                    } else {
                        ' '
                    }
                })
                .collect();
            let found = rouge.tokenized(&c.to_string());
            assert_eq!(found.trim_end(), lower.trim_end(), "{c:?}");
        }
    }
}
