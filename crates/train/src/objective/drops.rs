//! Layers left out at random.

use crate::data::{Depths, Pair};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};
use skipbench_strategy::LayerSet;

/// What a draw holds for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Per {
    /// All pairs of a batch.
    Batch,
    /// One pair.
    Sample,
}

/// Chances of each layer to be left out of a whole pair, prompt and answer.
#[derive(Debug, Clone, PartialEq)]
pub struct Drops {
    rates: Vec<f64>,
    per: Per,
}

impl Drops {
    /// The same for all layers: LayerDrop (arXiv 1909.11556).
    pub fn uniform(n_layers: usize, rate: f64, per: Per) -> Self {
        Self::new(n_layers, per, |_| rate)
    }

    /// Rising linearly to `last` at the last layer, (l + 1) / L of it at layer l: stochastic depth (arXiv 1603.09382).
    pub fn linear(n_layers: usize, last: f64, per: Per) -> Self {
        Self::new(n_layers, per, |layer| {
            last * (layer + 1) as f64 / n_layers as f64
        })
    }

    /// None at layer 0 and `last` at the last layer, with 2 to the power of l / (L - 1), minus 1, in between: LayerSkip
    /// (arXiv 2404.16710).
    pub fn exponential(n_layers: usize, last: f64, per: Per) -> Self {
        let span = n_layers.saturating_sub(1).max(1) as f64;
        Self::new(n_layers, per, |layer| last * rise(layer as f64 / span))
    }

    fn new(n_layers: usize, per: Per, rate: impl Fn(usize) -> f64) -> Self {
        Self {
            rates: (0..n_layers).map(rate).collect(),
            per,
        }
    }

    /// The chance of each layer.
    pub fn rates(&self) -> &[f64] {
        &self.rates
    }

    /// The layers of a batch, its chances multiplied by `scale`; a function of the seed and the step alone.
    pub fn draw(&self, pairs: &[Pair], scale: f64, seed: u64, step: u64) -> Depths {
        let mut rng = stream(seed, 0xd209_0000, step);
        let mut set = || {
            // Each layer takes a number, so that the layers of a step do not depend on the chances of others.
            let layers = self.rates.iter().enumerate();
            LayerSet::from_layers(
                layers
                    .filter(|(_, rate)| rng.random::<f64>() >= **rate * scale)
                    .map(|(layer, _)| layer),
            )
        };
        let sets = match self.per {
            Per::Batch => vec![set(); pairs.len()],
            Per::Sample => pairs.iter().map(|_| set()).collect(),
        };
        Depths::of_rows(pairs, sets)
    }
}

/// LayerSkip's time curriculum for pre-training, from 0 at the first of `steps` to 1 at the last: 2 to the power of
/// t / (T - 1), minus 1 (arXiv 2404.16710).
pub fn rising(step: u64, steps: u64) -> f64 {
    rise(step as f64 / steps.saturating_sub(1).max(1) as f64)
}

/// The lowest layers, as many as are drawn between `lowest` and all of `n_layers`, for all tokens of a batch: a network that is
/// cut off anywhere is to work (arXiv 2105.00812).
pub fn prefix(pairs: &[Pair], lowest: usize, n_layers: usize, seed: u64, step: u64) -> Depths {
    let layers = stream(seed, 0x93ef_0000, step).random_range(lowest.min(n_layers)..=n_layers);
    Depths::of_rows(pairs, vec![LayerSet::full(layers); pairs.len()])
}

/// From 0 to 1 with `part`.
fn rise(part: f64) -> f64 {
    part.exp2() - 1.0
}

/// Random numbers of a step.
fn stream(seed: u64, purpose: u64, step: u64) -> ChaCha8Rng {
    ChaCha8Rng::seed_from_u64(seed ^ purpose ^ step.wrapping_mul(0x9e37_79b9_7f4a_7c15))
}

#[cfg(test)]
mod tests {
    use super::*;

    const LAYERS: usize = 5;

    fn pairs(rows: usize) -> Vec<Pair> {
        let pair = Pair {
            prompt: vec![1, 2],
            response: vec![3, 4, 2],
        };
        vec![pair; rows]
    }

    #[test]
    fn rates_are_those_of_the_papers() {
        let close = |found: &[f64], wanted: &[f64]| {
            let apart = found.iter().zip(wanted).map(|(a, b)| (a - b).abs());
            assert!(
                found.len() == wanted.len() && apart.fold(0.0, f64::max) < 1e-12,
                "{found:?}"
            );
        };
        close(Drops::uniform(3, 0.2, Per::Batch).rates(), &[0.2; 3]);
        close(
            Drops::linear(4, 0.4, Per::Batch).rates(),
            &[0.1, 0.2, 0.3, 0.4],
        );
        let root = 2.0_f64.sqrt();
        close(
            Drops::exponential(3, 0.2, Per::Sample).rates(),
            &[0.0, 0.2 * (root - 1.0), 0.2],
        );
        close(Drops::exponential(1, 0.2, Per::Sample).rates(), &[0.0]);
        close(
            &[rising(0, 5), rising(2, 5), rising(4, 5)],
            &[0.0, root - 1.0, 1.0],
        );
        assert!(rising(0, 1).abs() < 1e-12);
    }

    #[test]
    fn layers_are_left_out_as_often_as_they_are_to_be() {
        let drops = Drops::exponential(LAYERS, 0.8, Per::Sample);
        let mut kept = [0.0; LAYERS];
        let steps = 400;
        for step in 0..steps {
            let depths = drops.draw(&pairs(10), 0.5, 3, step);
            for (prompt, responses) in depths.prompts.iter().zip(&depths.responses) {
                assert_eq!(responses, &[*prompt; 2]);
                for (layer, kept) in kept.iter_mut().enumerate() {
                    *kept += f64::from(u8::from(prompt.contains(layer)));
                }
            }
        }
        for (layer, kept) in kept.into_iter().enumerate() {
            let (found, wanted) = (1.0 - kept / (steps * 10) as f64, 0.5 * drops.rates()[layer]);
            assert!(
                (found - wanted).abs() < 0.03,
                "layer {layer}: {found}, not {wanted}"
            );
        }
    }

    #[test]
    fn a_draw_is_one_of_its_step_for_a_batch_or_a_pair() {
        let of_batch = Drops::uniform(LAYERS, 0.5, Per::Batch);
        let of_pair = Drops::uniform(LAYERS, 0.5, Per::Sample);
        let draw = |drops: &Drops, seed, step| drops.draw(&pairs(8), 1.0, seed, step);
        assert_eq!(draw(&of_pair, 1, 2), draw(&of_pair, 1, 2));
        assert_ne!(draw(&of_pair, 1, 2), draw(&of_pair, 1, 3));
        assert_ne!(draw(&of_pair, 1, 2), draw(&of_pair, 2, 2));
        let alike = |depths: &Depths| depths.prompts.iter().all(|set| *set == depths.prompts[0]);
        assert!((0..20).all(|step| alike(&draw(&of_batch, 1, step))));
        assert!(!alike(&draw(&of_pair, 1, 2)));
        let all = Drops::uniform(LAYERS, 1.0, Per::Batch);
        assert!(draw(&all, 1, 2).prompts[0].is_empty());
    }

    #[test]
    fn every_prefix_is_drawn() {
        let drawn: Vec<LayerSet> = (0..60)
            .map(|step| {
                let depths = prefix(&pairs(2), 2, LAYERS, 7, step);
                assert_eq!(depths, prefix(&pairs(2), 2, LAYERS, 7, step));
                assert_eq!(depths.responses, vec![vec![depths.prompts[0]; 2]; 2]);
                depths.prompts[0]
            })
            .collect();
        let has = |layers| drawn.contains(&LayerSet::full(layers));
        assert_eq!([1, 2, 3, 4, 5].map(has), [false, true, true, true, true]);
        assert!(
            drawn
                .iter()
                .all(|set| (2..=5).any(|n| *set == LayerSet::full(n)))
        );
    }
}
