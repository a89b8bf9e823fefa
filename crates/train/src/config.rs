//! Shape of the model and schedule of the training.

use crate::error::{Result, TrainError};
use serde::{Deserialize, Serialize};

/// Shape of a LLaMA model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct ModelShape {
    /// Size of the vocabulary.
    pub vocab_size: usize,
    /// Width of the hidden state.
    pub d_model: usize,
    /// Decoder layers.
    pub n_layers: usize,
    /// Query heads.
    pub n_heads: usize,
    /// Key-value heads.
    pub n_kv_heads: usize,
    /// Width of the MLP.
    pub d_ff: usize,
    /// Base of the RoPE frequencies.
    #[serde(default = "default_rope_theta")]
    pub rope_theta: f64,
    /// Added to the mean square in the norms.
    #[serde(default = "default_norm_eps")]
    pub norm_eps: f64,
    /// Largest number of positions.
    #[serde(default = "default_max_positions")]
    pub max_positions: usize,
    /// Whether the LM head is the embedding.
    #[serde(default)]
    pub tied_head: bool,
}

/// AdamW with a cosine schedule.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct OptimizerConfig {
    /// Largest learning rate, reached after the warm-up.
    pub learning_rate: f64,
    /// Learning rate at the end, as a part of the largest.
    #[serde(default = "default_floor")]
    pub floor: f64,
    /// Steps of linear warm-up.
    #[serde(default)]
    pub warm_up_steps: u64,
    /// Decoupled weight decay, on matrices only.
    #[serde(default)]
    pub weight_decay: f64,
    /// Decay of the first moment.
    #[serde(default = "default_beta1")]
    pub beta1: f64,
    /// Decay of the second moment.
    #[serde(default = "default_beta2")]
    pub beta2: f64,
    /// Largest global norm of the gradient.
    #[serde(default = "default_clip")]
    pub clip_norm: f64,
    /// Decay of the average of the weights that is exported; 0 exports the last weights.
    #[serde(default)]
    pub ema_decay: f64,
}

/// Which tokens the loss counts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LossOn {
    /// Response tokens, as in arXiv 2404.06954.
    #[default]
    Response,
    /// Every token.
    All,
}

/// A training run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct TrainConfig {
    /// Optimizer steps.
    pub steps: u64,
    /// Pairs per step.
    pub batch_size: usize,
    /// Seed of the initial weights.
    #[serde(default)]
    pub seed: u64,
    /// Which tokens the loss counts.
    #[serde(default)]
    pub loss_on: LossOn,
    /// Steps between checkpoints.
    #[serde(default = "default_checkpoint_every")]
    pub checkpoint_every: u64,
    /// The optimizer.
    pub optimizer: OptimizerConfig,
}

fn default_rope_theta() -> f64 {
    10_000.0
}
fn default_norm_eps() -> f64 {
    1e-5
}
fn default_max_positions() -> usize {
    512
}
fn default_floor() -> f64 {
    0.1
}
fn default_beta1() -> f64 {
    0.9
}
fn default_beta2() -> f64 {
    0.95
}
fn default_clip() -> f64 {
    1.0
}
fn default_checkpoint_every() -> u64 {
    200
}

impl ModelShape {
    /// Width of a head.
    pub fn head_dim(&self) -> usize {
        self.d_model / self.n_heads.max(1)
    }

    /// # Errors
    /// A size that is zero or does not divide as it must.
    pub fn check(&self) -> Result<()> {
        let sizes = [
            ("vocab-size", self.vocab_size),
            ("d-model", self.d_model),
            ("n-layers", self.n_layers),
            ("n-heads", self.n_heads),
            ("n-kv-heads", self.n_kv_heads),
            ("d-ff", self.d_ff),
            ("max-positions", self.max_positions),
        ];
        if let Some((name, _)) = sizes.iter().find(|(_, size)| *size == 0) {
            return Err(TrainError::Config(format!("`{name}` must be at least 1")));
        }
        if !self.d_model.is_multiple_of(2 * self.n_heads) {
            return Err(TrainError::Config(format!(
                "`d-model` {} does not divide into {} heads of even width",
                self.d_model, self.n_heads
            )));
        }
        if !self.n_heads.is_multiple_of(self.n_kv_heads) {
            return Err(TrainError::Config(format!(
                "{} query heads cannot share {} key-value heads",
                self.n_heads, self.n_kv_heads
            )));
        }
        Ok(())
    }
}

impl OptimizerConfig {
    /// Learning rate of a step: linear warm-up, then a half cosine down to the floor.
    pub fn rate(&self, step: u64, steps: u64) -> f64 {
        if step < self.warm_up_steps {
            return self.learning_rate * (step + 1) as f64 / self.warm_up_steps as f64;
        }
        let span = steps.saturating_sub(self.warm_up_steps).max(1);
        let done = (step - self.warm_up_steps).min(span) as f64 / span as f64;
        let cosine = 0.5 * (1.0 + (std::f64::consts::PI * done).cos());
        self.learning_rate * (self.floor + (1.0 - self.floor) * cosine)
    }
}

impl TrainConfig {
    /// # Errors
    /// A step count, batch size or rate that cannot work.
    pub fn check(&self) -> Result<()> {
        let optimizer = &self.optimizer;
        let positive = |value: f64| value.is_finite() && value > 0.0;
        let wrong = [
            (self.steps == 0, "`steps` must be at least 1"),
            (self.batch_size == 0, "`batch-size` must be at least 1"),
            (
                self.checkpoint_every == 0,
                "`checkpoint-every` must be at least 1",
            ),
            (
                !positive(optimizer.learning_rate),
                "`learning-rate` must be above 0",
            ),
            (
                !positive(optimizer.clip_norm),
                "`clip-norm` must be above 0",
            ),
            (
                !(0.0..1.0).contains(&optimizer.ema_decay),
                "`ema-decay` must be from 0 up to, not including, 1",
            ),
        ];
        match wrong.into_iter().find(|(wrong, _)| *wrong) {
            Some((_, message)) => Err(TrainError::Config(message.to_owned())),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_rises_then_falls_to_its_floor() {
        let config = OptimizerConfig {
            learning_rate: 1.0,
            floor: 0.1,
            warm_up_steps: 10,
            weight_decay: 0.0,
            beta1: 0.9,
            beta2: 0.95,
            clip_norm: 1.0,
            ema_decay: 0.0,
        };
        assert!((config.rate(0, 100) - 0.1).abs() < 1e-12);
        assert!((config.rate(10, 100) - 1.0).abs() < 1e-12);
        assert!((config.rate(55, 100) - 0.55).abs() < 1e-12);
        assert!((config.rate(100, 100) - 0.1).abs() < 1e-12);
    }
}
