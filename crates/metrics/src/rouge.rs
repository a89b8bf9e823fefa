//! ROUGE F1 as rouge_score computes it, without its stemmer.

use std::collections::{BTreeSet, HashMap};

fn tokens(text: &str) -> Vec<String> {
    text.to_lowercase()
        .split(|c: char| !matches!(c, 'a'..='z' | '0'..='9'))
        .filter(|token| !token.is_empty())
        .map(str::to_owned)
        .collect()
}

/// The best of several references.
pub(crate) fn best(references: &[&str], score: impl Fn(&str) -> f64) -> f64 {
    references
        .iter()
        .map(|reference| score(reference))
        .fold(0.0, f64::max)
}

fn f1(hits: usize, hypothesis: usize, reference: usize) -> f64 {
    if hits == 0 {
        return 0.0;
    }
    let precision = hits as f64 / hypothesis as f64;
    let recall = hits as f64 / reference as f64;
    2.0 * precision * recall / (precision + recall)
}

pub(crate) fn rouge_n(hypothesis: &str, reference: &str, n: usize) -> f64 {
    let (hypothesis, reference) = (tokens(hypothesis), tokens(reference));
    let mut counts: HashMap<&[String], usize> = HashMap::new();
    for gram in reference.windows(n) {
        *counts.entry(gram).or_insert(0) += 1;
    }
    let mut hits = 0;
    for gram in hypothesis.windows(n) {
        if let Some(count) = counts.get_mut(gram).filter(|count| **count > 0) {
            *count -= 1;
            hits += 1;
        }
    }
    let grams = |tokens: &[String]| (tokens.len() + 1).saturating_sub(n);
    f1(hits, grams(&hypothesis), grams(&reference))
}

/// Lengths of longest common subsequences: `table[i][j]` of the first `i` and `j` tokens.
fn lcs_table(a: &[String], b: &[String]) -> Vec<Vec<usize>> {
    let mut table = vec![vec![0; b.len() + 1]; a.len() + 1];
    for (i, x) in a.iter().enumerate() {
        for (j, y) in b.iter().enumerate() {
            table[i + 1][j + 1] = match x == y {
                true => table[i][j] + 1,
                false => table[i][j + 1].max(table[i + 1][j]),
            };
        }
    }
    table
}

pub(crate) fn rouge_l(hypothesis: &str, reference: &str) -> f64 {
    let (hypothesis, reference) = (tokens(hypothesis), tokens(reference));
    let hits = lcs_table(&reference, &hypothesis)[reference.len()][hypothesis.len()];
    f1(hits, hypothesis.len(), reference.len())
}

/// Positions in `a` of one longest common subsequence with `b`, chosen as rouge_score walks back.
fn lcs_positions(a: &[String], b: &[String]) -> Vec<usize> {
    let table = lcs_table(a, b);
    let (mut i, mut j) = (a.len(), b.len());
    let mut positions = Vec::new();
    while i > 0 && j > 0 {
        if a[i - 1] == b[j - 1] {
            positions.push(i - 1);
            i -= 1;
            j -= 1;
        } else if table[i][j - 1] > table[i - 1][j] {
            j -= 1;
        } else {
            i -= 1;
        }
    }
    positions
}

pub(crate) fn rouge_lsum(hypothesis: &str, reference: &str) -> f64 {
    let sentences = |text: &str| -> Vec<Vec<String>> {
        text.split('\n')
            .filter(|line| !line.is_empty())
            .map(tokens)
            .collect()
    };
    let (hypothesis, reference) = (sentences(hypothesis), sentences(reference));
    let count = |sentences: &[Vec<String>]| {
        let mut counts: HashMap<String, usize> = HashMap::new();
        for token in sentences.iter().flatten() {
            *counts.entry(token.clone()).or_insert(0) += 1;
        }
        counts
    };
    let (mut left_hypothesis, mut left_reference) = (count(&hypothesis), count(&reference));
    let mut hits = 0;
    for sentence in &reference {
        let union: BTreeSet<usize> = hypothesis
            .iter()
            .flat_map(|other| lcs_positions(sentence, other))
            .collect();
        for position in union {
            let token = &sentence[position];
            if let (Some(a), Some(b)) = (
                left_hypothesis.get_mut(token),
                left_reference.get_mut(token),
            ) && *a > 0
                && *b > 0
            {
                *a -= 1;
                *b -= 1;
                hits += 1;
            }
        }
    }
    let len = |sentences: &[Vec<String>]| sentences.iter().map(Vec::len).sum();
    f1(hits, len(&hypothesis), len(&reference))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scores_of_the_reference_implementation() {
        // rouge_score 0.1.2 without stemmer, from its own unit tests.
        assert!((rouge_n("testing one two", "testing", 1) - 0.5).abs() < 1e-9);
        assert!((rouge_n("testing one two", "testing one", 2) - 2.0 / 3.0).abs() < 1e-9);
        assert!((rouge_l("testing one two", "testing") - 0.5).abs() < 1e-9);
        assert!(
            (rouge_lsum("w1 w2 w6 w7 w8\nw1 w3 w8 w9 w5", "w1 w2 w3 w4 w5") - 8.0 / 15.0).abs()
                < 1e-9
        );
    }
}
