//! Corpus BLEU as sacrebleu computes it: exponential smoothing, closest reference length.

use std::collections::HashMap;

const ORDER: usize = 4;

/// How text becomes tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Tokenizer {
    /// `mteval-v13a`, for languages with spaces.
    #[default]
    V13a,
    /// Chinese characters one by one, the rest as in `mteval-v13a`.
    Zh,
    /// White space alone.
    None,
}

impl Tokenizer {
    fn tokenize(self, text: &str) -> Vec<String> {
        let text = text.trim_end();
        let spaced = match self {
            Tokenizer::None => text.to_owned(),
            Tokenizer::V13a => v13a(text),
            Tokenizer::Zh => {
                let mut apart = String::with_capacity(text.len() * 2);
                for c in text.trim().chars() {
                    if is_chinese(c) {
                        apart.extend([' ', c, ' ']);
                    } else {
                        apart.push(c);
                    }
                }
                split_punctuation(&apart)
            }
        };
        spaced.split_whitespace().map(str::to_owned).collect()
    }
}

/// sacrebleu's ranges; the two that its source writes as five-digit escapes come out as U+2001..U+2A6D.
fn is_chinese(c: char) -> bool {
    matches!(u32::from(c),
        0x2001..=0x2a6d | 0x2e80..=0x2eff | 0x2f00..=0x2fdf | 0x2ff0..=0x303f | 0x3100..=0x312f | 0x31a0..=0x31bf
        | 0x31c0..=0x31ef | 0x3200..=0x33ff | 0x3400..=0x4db5 | 0x4e00..=0x9fbb | 0xf900..=0xfa2d | 0xfa30..=0xfa6a
        | 0xfa70..=0xfad9 | 0xfe10..=0xfe1f | 0xfe30..=0xfe4f | 0xff00..=0xffef)
}

fn v13a(text: &str) -> String {
    let text = text
        .replace("<skipped>", "")
        .replace("-\n", "")
        .replace('\n', " ")
        .replace("&quot;", "\"")
        .replace("&amp;", "&")
        .replace("&lt;", "<")
        .replace("&gt;", ">");
    split_punctuation(&format!(" {text} "))
}

/// Parts symbols from words; a period or comma stays between digits, a hyphen parts only after a digit.
fn split_punctuation(text: &str) -> String {
    let mut symbols = String::with_capacity(text.len() * 2);
    for c in text.chars() {
        if matches!(c, '{'..='~' | '['..='`' | ' '..='&' | '('..='+' | ':'..='@' | '/') {
            symbols.extend([' ', c, ' ']);
        } else {
            symbols.push(c);
        }
    }
    let symbols = after_non_digit(&symbols);
    let symbols = before_non_digit(&symbols);
    digit_hyphen(&symbols)
}

/// `([^0-9])([.,])` to `\1 \2 `.
fn after_non_digit(text: &str) -> String {
    pairs(text, |a, b| {
        (!a.is_ascii_digit() && matches!(b, '.' | ',')).then(|| format!("{a} {b} "))
    })
}

/// `([.,])([^0-9])` to ` \1 \2`.
fn before_non_digit(text: &str) -> String {
    pairs(text, |a, b| {
        (matches!(a, '.' | ',') && !b.is_ascii_digit()).then(|| format!(" {a} {b}"))
    })
}

/// `([0-9])(-)` to `\1 \2 `.
fn digit_hyphen(text: &str) -> String {
    pairs(text, |a, b| {
        (a.is_ascii_digit() && b == '-').then(|| format!("{a} {b} "))
    })
}

/// Replaces pairs of characters from left to right without overlap.
fn pairs(text: &str, replace: impl Fn(char, char) -> Option<String>) -> String {
    let chars: Vec<char> = text.chars().collect();
    let mut out = String::with_capacity(text.len() + 16);
    let mut at = 0;
    while at < chars.len() {
        let replaced = chars.get(at + 1).and_then(|&next| replace(chars[at], next));
        match replaced {
            Some(replacement) => {
                out.push_str(&replacement);
                at += 2;
            }
            None => {
                out.push(chars[at]);
                at += 1;
            }
        }
    }
    out
}

type Counts<'a> = HashMap<&'a [String], usize>;

fn ngrams(tokens: &[String], n: usize) -> Counts<'_> {
    let mut counts = HashMap::new();
    for gram in tokens.windows(n) {
        *counts.entry(gram).or_insert(0) += 1;
    }
    counts
}

/// Hypothesis length, reference length, then matches and totals of each order.
pub(crate) fn stats(tokenizer: Tokenizer, hypothesis: &str, references: &[&str]) -> Vec<f64> {
    let hypothesis = tokenizer.tokenize(hypothesis);
    let references: Vec<Vec<String>> = references
        .iter()
        .map(|reference| tokenizer.tokenize(reference))
        .collect();
    let closest = references
        .iter()
        .map(Vec::len)
        .min_by_key(|&len| (len.abs_diff(hypothesis.len()), len))
        .unwrap_or(0);
    let mut stats = vec![hypothesis.len() as f64, closest as f64];
    for n in 1..=ORDER {
        let mut best: Counts<'_> = HashMap::new();
        for reference in &references {
            for (gram, count) in ngrams(reference, n) {
                let most = best.entry(gram).or_insert(0);
                *most = count.max(*most);
            }
        }
        let matches: usize = ngrams(&hypothesis, n)
            .into_iter()
            .map(|(gram, count)| count.min(best.get(gram).copied().unwrap_or(0)))
            .sum();
        stats.extend([
            matches as f64,
            (hypothesis.len() + 1).saturating_sub(n) as f64,
        ]);
    }
    stats
}

/// 0..100.
pub(crate) fn score(sum: &[f64]) -> f64 {
    let (hypothesis_len, reference_len) = (sum[0], sum[1]);
    let orders = || sum[2..].chunks_exact(2).map(|pair| (pair[0], pair[1]));
    if orders().all(|(matches, _)| matches == 0.0) {
        return 0.0;
    }
    let mut smooth = 1.0;
    let mut log_sum = 0.0;
    for (matches, total) in orders() {
        if total == 0.0 {
            return 0.0;
        }
        let precision = if matches == 0.0 {
            smooth *= 2.0;
            100.0 / (smooth * total)
        } else {
            100.0 * matches / total
        };
        log_sum += precision.ln();
    }
    let brevity = match hypothesis_len < reference_len {
        true if hypothesis_len > 0.0 => (1.0 - reference_len / hypothesis_len).exp(),
        true => 0.0,
        false => 1.0,
    };
    brevity * (log_sum / ORDER as f64).exp()
}

/// Corpus BLEU of hypotheses against one reference each.
pub fn corpus_bleu(tokenizer: Tokenizer, hypotheses: &[&str], references: &[&str]) -> f64 {
    let mut sum = vec![0.0; 2 + 2 * ORDER];
    for (hypothesis, reference) in hypotheses.iter().zip(references) {
        let stats = stats(tokenizer, hypothesis, &[reference]);
        sum.iter_mut()
            .zip(stats)
            .for_each(|(sum, stat)| *sum += stat);
    }
    score(&sum)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn v13a_splits_as_the_reference_does() {
        let tokens = |text| Tokenizer::V13a.tokenize(text).join(" ");
        assert_eq!(
            tokens("Hello, world! It costs 1,000.50."),
            "Hello , world ! It costs 1,000.50 ."
        );
        assert_eq!(tokens("5-year plan (new)"), "5 - year plan ( new )");
        assert_eq!(tokens("&quot;a&quot;"), "\" a \"");
    }

    #[test]
    fn a_perfect_corpus_scores_100_and_an_empty_one_0() {
        let text = "the cat sat on the mat";
        assert!((corpus_bleu(Tokenizer::V13a, &[text], &[text]) - 100.0).abs() < 1e-9);
        assert_eq!(corpus_bleu(Tokenizer::V13a, &[""], &[text]), 0.0);
    }
}
