//! From logits to tokens: the most likely one, or a drawn one.

use crate::draw::Draw;
use crate::error::Result;
use crate::options::Sampling;

/// Chooses each row's next token.
pub(crate) struct Chooser {
    /// One for each row; `None` for the likeliest token.
    draws: Vec<Option<Drawn>>,
}

/// How a row's tokens are drawn.
struct Drawn {
    draw: Draw,
    /// Keep so many likeliest tokens before one is drawn.
    top_k: Option<usize>,
}

impl Chooser {
    /// For rows with these samplings and these numbers of their streams.
    pub(crate) fn new<'s>(rows: impl Iterator<Item = (Option<&'s Sampling>, u64)>) -> Self {
        let draw = |(sampling, stream): (Option<&Sampling>, u64)| {
            sampling.map(|sampling| Drawn {
                draw: Draw::new(sampling, stream),
                top_k: sampling.top_k.filter(|_| sampling.top_p.is_some()),
            })
        };
        Self {
            draws: rows.map(draw).collect(),
        }
    }

    /// Whether any row draws.
    pub(crate) fn draws(&self) -> bool {
        self.draws.iter().any(Option::is_some)
    }

    /// `likeliest` of each row or another one; `logits`: `[rows.len()][vocab_size]`.
    pub(crate) fn choose(
        &mut self,
        rows: &[usize],
        likeliest: Vec<u32>,
        logits: &[Vec<f32>],
    ) -> Result<Vec<u32>> {
        rows.iter()
            .zip(likeliest)
            .zip(logits)
            .map(|((&row, likeliest), logits)| {
                let Some(draw) = &mut self.draws[row] else {
                    return Ok(likeliest);
                };
                match draw.top_k {
                    Some(k) => draw.draw.token(&only_likeliest(logits, k)),
                    None => draw.draw.token(logits),
                }
            })
            .collect()
    }
}

/// `logits`: `[vocab_size]` without all but the `k` largest; of equal ones the lower ids stay.
fn only_likeliest(logits: &[f32], k: usize) -> Vec<f32> {
    let mut values = logits.to_vec();
    let mut order: Vec<usize> = (0..values.len()).collect();
    if k < order.len() {
        order.select_nth_unstable_by(k, |&a, &b| values[b].total_cmp(&values[a]).then(a.cmp(&b)));
        for &id in &order[k..] {
            values[id] = f32::NEG_INFINITY;
        }
    }
    values
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Temperature 100 makes 64 tokens all but equally likely: 16 of them hold a quarter of the probability, and half of that
    /// is left to top-p only if they are looked at alone.
    #[test]
    fn top_p_counts_among_the_top_k() {
        let logits: Vec<f32> = (0..64).map(|id| -(id as f32) / 100.0).collect();
        let logits = [logits];
        let drawn = |top_k, top_p| {
            let sampling = Sampling {
                temperature: 100.0,
                top_k,
                top_p,
                seed: 3,
                first_row: 0,
            };
            let mut chooser = Chooser::new([(Some(&sampling), 0)].into_iter());
            let tokens = (0..400).map(|_| chooser.choose(&[0], vec![0], &logits).unwrap()[0]);
            tokens.max().unwrap()
        };
        assert!(drawn(None, None) > 48);
        assert!((14..16).contains(&drawn(Some(16), None)));
        assert!((6..9).contains(&drawn(Some(16), Some(0.5))));
    }

    #[test]
    fn of_equal_tokens_the_first_stay() {
        let logits = [1f32, 3.0, 3.0, 0.0, 3.0];
        let kept = only_likeliest(&logits, 2);
        let kept: Vec<bool> = kept.iter().map(|logit| logit.is_finite()).collect();
        assert_eq!(kept, [false, true, true, false, false]);
        assert_eq!(only_likeliest(&logits, 9).len(), 5);
    }
}
