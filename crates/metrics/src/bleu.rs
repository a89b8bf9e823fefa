//! BLEU.

use crate::ngrams::Words;
use crate::text::{trim_end, without_case, words};
use crate::tokenizer::Tokenizer;
use crate::{Counts, SACREBLEU_VERSION, Scratch, Segment, Unit};

/// Corpus BLEU (Papineni et al. 2002, "BLEU: a Method for Automatic Evaluation of Machine Translation"), as sacrebleu
/// 2.6.0 computes it (Post 2018, arXiv 1804.08771), 0..100.
///
/// The geometric mean of the precisions of 1- to 4-grams (`max_order`), each clipped to its largest count in one reference, times the
/// brevity penalty against the reference that is nearest in length (the shorter of two that are equally near).
/// Kept of sacrebleu: a corpus without a single match scores 0 before any smoothing; white space at the end of a segment
/// is dropped before it is tokenized; `floor` and `exp` put something where an order has no match, and no order that has
/// no n-gram at all counts.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Bleu {
    /// How tokens are found.
    pub tokenizer: Tokenizer,
    /// What an order without a match counts.
    pub smoothing: Smoothing,
    /// Case is ignored.
    pub lowercase: bool,
    /// Orders beyond the longest hypothesis are left out of the mean; meant for single sentences.
    pub effective_order: bool,
    /// Longest n-gram, at least 1.
    pub max_order: usize,
}

impl Default for Bleu {
    fn default() -> Self {
        Self {
            tokenizer: Tokenizer::default(),
            smoothing: Smoothing::default(),
            lowercase: false,
            effective_order: false,
            max_order: 4,
        }
    }
}

/// What BLEU makes of an order without a match (Chen and Cherry 2014).
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub enum Smoothing {
    /// 1/2, 1/4, .. of a match for the first, second, .. such order (NIST; method 3).
    #[default]
    Exp,
    /// So much of a match; 0.1 unless told (method 1).
    Floor(f64),
    /// So much is added to matches and totals of the orders above 1; 1 unless told (method 2).
    AddK(f64),
    /// Nothing: the score is 0.
    None,
}

/// BLEU's parts: what sacrebleu prints behind the score.
#[derive(Debug, Clone, PartialEq)]
struct Anatomy {
    score: f64,
    precisions: Vec<f64>,
    brevity_penalty: f64,
    hypothesis_len: f64,
    reference_len: f64,
}

impl Bleu {
    fn tokenized(&self, segment: &str) -> String {
        self.tokenizer
            .apply(trim_end(&without_case(segment, self.lowercase)))
    }

    /// The score and its parts from summed counts.
    fn anatomy(&self, sum: &[f64]) -> Anatomy {
        let (lens, counts) = sum.split_at(2);
        let (matches, totals) = counts.split_at(self.max_order);
        let (hypothesis_len, reference_len) = (lens[0], lens[1]);
        let brevity_penalty = if hypothesis_len >= reference_len {
            1.0
        } else if hypothesis_len > 0.0 {
            (1.0 - reference_len / hypothesis_len).exp()
        } else {
            0.0
        };
        let mut parts = Anatomy {
            score: 0.0,
            precisions: vec![0.0; self.max_order],
            brevity_penalty,
            hypothesis_len,
            reference_len,
        };
        if matches.iter().all(|&count| count == 0.0) {
            return parts;
        }
        let mut orders = self.max_order;
        let mut halved = 1.0;
        for n in 0..self.max_order {
            let added = match self.smoothing {
                Smoothing::AddK(k) if n > 0 => k,
                _ => 0.0,
            };
            let (matched, total) = (matches[n] + added, totals[n] + added);
            if total == 0.0 {
                break;
            }
            if self.effective_order {
                orders = n + 1;
            }
            parts.precisions[n] = match self.smoothing {
                _ if matched != 0.0 => 100.0 * matched / total,
                Smoothing::Exp => {
                    halved *= 2.0;
                    100.0 / (halved * total)
                }
                Smoothing::Floor(floor) => 100.0 * floor / total,
                Smoothing::AddK(_) | Smoothing::None => 0.0,
            };
        }
        let log_sum: f64 = parts.precisions[..orders].iter().map(|&p| log(p)).sum();
        parts.score = brevity_penalty * (log_sum / orders as f64).exp();
        parts
    }
}

/// sacrebleu's logarithm, for which that of 0 is finite.
fn log(x: f64) -> f64 {
    match x == 0.0 {
        true => -9_999_999_999.0,
        false => x.ln(),
    }
}

impl Counts for Bleu {
    fn label(&self) -> String {
        "BLEU".to_owned()
    }

    fn unit(&self) -> Unit {
        Unit::Percent
    }

    fn width(&self) -> usize {
        2 + 2 * self.max_order
    }

    /// Length of the hypothesis, length of the nearest reference, matches per order, n-grams per order.
    fn count(&self, scratch: &mut Scratch, segment: Segment<'_>, out: &mut [f64]) {
        let (hypothesis, references) = (segment.text(), segment.references());
        let texts: Vec<String> = std::iter::once(hypothesis)
            .chain(references.iter().map(String::as_str))
            .map(|text| self.tokenized(text))
            .collect();
        let mut ids = Words::default();
        let ngrams = &mut scratch.ngrams;
        ngrams.clear();
        for text in &texts {
            ngrams.push(words(text).map(|word| ids.id(word)));
        }
        ngrams.for_each_order(self.max_order, |mut order| {
            if order.n() == 1 {
                let len = order.total(0);
                out[0] = len as f64;
                // The first of the nearest; of two that are equally near, the shorter.
                out[1] = (1..texts.len())
                    .map(|text| order.total(text))
                    .min_by_key(|&reference| (reference.abs_diff(len), reference))
                    .unwrap_or(0) as f64;
            }
            out[1 + order.n()] = order.matches(0, 1..texts.len()) as f64;
            out[1 + self.max_order + order.n()] = order.total(0) as f64;
        });
    }

    fn score(&self, sum: &[f64], _segments: usize) -> f64 {
        self.anatomy(sum).score
    }

    fn signature(&self) -> Vec<(&'static str, String)> {
        let smooth = match self.smoothing {
            Smoothing::Exp => "exp".to_owned(),
            Smoothing::Floor(value) => format!("floor[{value:.2}]"),
            Smoothing::AddK(value) => format!("add-k[{value:.2}]"),
            Smoothing::None => "none".to_owned(),
        };
        vec![
            (
                "case",
                if self.lowercase { "lc" } else { "mixed" }.to_owned(),
            ),
            ("eff", crate::yes_no(self.effective_order)),
            ("tok", self.tokenizer.to_string()),
            ("smooth", smooth),
        ]
    }

    fn version(&self) -> String {
        SACREBLEU_VERSION.to_owned()
    }

    fn parts(&self, sum: &[f64], _segments: usize) -> Vec<(&'static str, f64)> {
        let parts = self.anatomy(sum);
        vec![
            ("brevity_penalty", parts.brevity_penalty),
            ("hypothesis_len", parts.hypothesis_len),
            ("reference_len", parts.reference_len),
        ]
    }

    fn details(&self, sum: &[f64], _segments: usize) -> Option<String> {
        let parts = self.anatomy(sum);
        let precisions: Vec<String> = parts.precisions.iter().map(|p| format!("{p:.1}")).collect();
        let precisions = precisions.join("/");
        let ratio = match parts.reference_len == 0.0 {
            true => 0.0,
            false => parts.hypothesis_len / parts.reference_len,
        };
        Some(format!(
            "{precisions} (BP = {:.3} ratio = {ratio:.3} hyp_len = {} ref_len = {})",
            parts.brevity_penalty, parts.hypothesis_len, parts.reference_len
        ))
    }
}
