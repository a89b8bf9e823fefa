//! A token drawn from logits.

use crate::error::Result;
use crate::options::Sampling;
use candle_core::Error;
use rand::SeedableRng;
use rand::distr::Distribution;
use rand::distr::weighted::WeightedIndex;
use rand::rngs::StdRng;

/// Draws the tokens of one row.
pub(crate) struct Draw {
    rng: StdRng,
    temperature: f64,
    kept: Kept,
}

/// Which tokens may be drawn.
#[derive(Debug, Clone, Copy)]
enum Kept {
    All,
    /// So many of the likeliest.
    TopK(usize),
    /// The fewest of the likeliest whose probabilities reach this sum (arXiv 1904.09751).
    TopP(f32),
}

impl Draw {
    pub(crate) fn new(sampling: &Sampling, row: u64) -> Self {
        // Neighbouring seeds and rows must not share a stream.
        let stream = (sampling.first_row + row).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        Self {
            rng: StdRng::seed_from_u64(sampling.seed ^ stream),
            temperature: sampling.temperature,
            kept: match (sampling.top_k, sampling.top_p) {
                // Of both, the caller has left the k likeliest; their probabilities then sum to 1.
                (_, Some(p)) if p > 0.0 && p < 1.0 => Kept::TopP(p as f32),
                (Some(k), None) => Kept::TopK(k),
                _ => Kept::All,
            },
        }
    }

    /// `logits`: `[vocab_size]`.
    ///
    /// # Errors
    /// Logits of which none has a probability.
    pub(crate) fn token(&mut self, logits: &[f32]) -> Result<u32> {
        let mut probabilities = softmax(logits, self.temperature);
        let mut order: Vec<usize> = (0..probabilities.len()).collect();
        match self.kept {
            Kept::TopK(k) if k < order.len() => {
                let (likeliest, ..) = order.select_nth_unstable_by(k, |&a, &b| {
                    probabilities[b].total_cmp(&probabilities[a])
                });
                let theirs: Vec<f32> = likeliest.iter().map(|&id| probabilities[id]).collect();
                return Ok(likeliest[self.index(&theirs)?] as u32);
            }
            Kept::TopP(p) => {
                order.sort_by(|&a, &b| probabilities[b].total_cmp(&probabilities[a]));
                let mut sum = 0.0;
                for id in order {
                    match sum >= p {
                        true => probabilities[id] = 0.0,
                        false => sum += probabilities[id],
                    }
                }
            }
            Kept::TopK(_) | Kept::All => {}
        }
        Ok(self.index(&probabilities)? as u32)
    }

    fn index(&mut self, weights: &[f32]) -> Result<usize> {
        let weighted = WeightedIndex::new(weights).map_err(Error::wrap)?;
        Ok(weighted.sample(&mut self.rng))
    }
}

fn softmax(logits: &[f32], temperature: f64) -> Vec<f32> {
    let scale = (1.0 / temperature) as f32;
    let scaled = logits.iter().map(|logit| logit * scale);
    let largest = scaled.clone().fold(f32::NEG_INFINITY, f32::max);
    let mut values: Vec<f32> = scaled.map(|logit| (logit - largest).exp()).collect();
    let sum: f32 = values.iter().sum();
    values.iter_mut().for_each(|value| *value /= sum);
    values
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{Device, Tensor};
    use candle_transformers::generation::{LogitsProcessor, Sampling as Peer};

    #[test]
    fn tokens_are_those_of_the_peer() {
        let logits: Vec<f32> = (0..300)
            .map(|id| ((id * 7919) % 613) as f32 / 40.0)
            .collect();
        let tensor = Tensor::new(logits.clone(), &Device::Cpu).unwrap();
        let temperature = 1.3;
        for (top_k, top_p, peer) in [
            (None, None, Peer::All { temperature }),
            (Some(20), None, Peer::TopK { k: 20, temperature }),
            (
                Some(900),
                None,
                Peer::TopK {
                    k: 900,
                    temperature,
                },
            ),
            (
                None,
                Some(0.8),
                Peer::TopP {
                    p: 0.8,
                    temperature,
                },
            ),
            (
                None,
                Some(1.0),
                Peer::TopP {
                    p: 1.0,
                    temperature,
                },
            ),
        ] {
            let sampling = Sampling {
                temperature,
                top_k,
                top_p,
                seed: 11,
                first_row: 0,
            };
            let mut ours = Draw::new(&sampling, 0);
            let mut theirs = LogitsProcessor::from_sampling(11, peer.clone());
            let mut seen = std::collections::BTreeSet::new();
            for _ in 0..200 {
                let token = ours.token(&logits).unwrap();
                assert_eq!(token, theirs.sample(&tensor).unwrap(), "{peer:?}");
                seen.insert(token);
            }
            assert!(seen.len() > 5, "{peer:?}");
        }
    }

    #[test]
    fn logits_that_are_no_numbers_are_an_error() {
        let logits = [f32::NAN; 4];
        let sampling = Sampling {
            temperature: 1.0,
            top_k: None,
            top_p: None,
            seed: 1,
            first_row: 0,
        };
        assert!(Draw::new(&sampling, 0).token(&logits).is_err());
    }
}
