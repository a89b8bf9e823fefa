//! Depths drawn for the batches of skip-aware fine-tuning.

use anyhow::{Context, bail};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::Deserialize;
use skipbench_strategy::{BatchShape, LayerSet, StrategySpec};
use skipbench_train::Pair;

/// A depth drawn for each batch.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct DepthEntry {
    /// Strategies, one of which is drawn for each batch.
    strategies: Vec<StrategySpec>,
    /// Speedups, one of which is drawn for each batch.
    speedups: Vec<f64>,
    /// Percent of batches at full depth.
    #[serde(default)]
    full_percent: u32,
}

/// Whether (layer, row, response token) runs.
pub(super) type Runs = Box<dyn Fn(usize, usize, usize) -> bool>;

impl DepthEntry {
    pub(super) fn check(&self, n_layers: usize) -> anyhow::Result<()> {
        for spec in &self.strategies {
            for &speedup in &self.speedups {
                let spec = spec.with_target(speedup);
                spec.validate(n_layers)
                    .with_context(|| format!("strategy `{spec}`"))?;
            }
        }
        if self.strategies.is_empty() || self.speedups.is_empty() {
            bail!("`depths` needs at least one strategy and one speedup");
        }
        Ok(())
    }

    /// Which layers the responses of a batch run; `None` for full depth.
    pub(super) fn draw(
        &self,
        step: u64,
        seed: u64,
        n_layers: usize,
        pairs: &[Pair],
    ) -> Option<Runs> {
        let mut rng =
            ChaCha8Rng::seed_from_u64(seed ^ 0xdee9_0000 ^ step.wrapping_mul(0x9e37_79b9));
        if rng.random_range(0..100) < self.full_percent {
            return None;
        }
        let spec = &self.strategies[rng.random_range(0..self.strategies.len())];
        let speedup = self.speedups[rng.random_range(0..self.speedups.len())];
        let longest = pairs.iter().map(|pair| pair.response.len()).max()?;
        if spec.name() == "early-exit" {
            // Where a token will exit is not known in training: depths around the mean that the speedup asks for.
            let mean = n_layers as f64 / speedup;
            let exits: Vec<Vec<usize>> = pairs
                .iter()
                .map(|pair| {
                    let spread = (mean - 2.0).max(0.0).min(n_layers as f64 - mean);
                    let depth = |rng: &mut ChaCha8Rng| {
                        let at = mean + spread * (2.0 * rng.random::<f64>() - 1.0);
                        (at.round() as usize).clamp(2, n_layers)
                    };
                    pair.response.iter().map(|_| depth(&mut rng)).collect()
                })
                .collect();
            return Some(Box::new(move |layer, row, t| layer < exits[row][t]));
        }
        let mut strategy = spec.with_target(speedup).build(n_layers).ok()?;
        let shape = BatchShape {
            prompt_lens: pairs.iter().map(|pair| pair.prompt.len()).collect(),
            n_layers,
            max_new_tokens: longest,
        };
        strategy.begin(&shape).ok()?;
        let sets: Vec<LayerSet> = (0..longest).map(|t| strategy.plan(t).layers).collect();
        Some(Box::new(move |layer, _, t| sets[t].contains(layer)))
    }
}
