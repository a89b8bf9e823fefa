//! Shape of the model and schedule of the training.

use crate::error::{Result, TrainError};
use serde::{Deserialize, Serialize};
use skipbench_strategy::MAX_LAYERS;

/// No model has a dimension beyond this; what is below cannot overflow when multiplied.
const MAX_SIZE: usize = 1 << 24;
/// More pairs than this in a step are a slip of the pen.
const MAX_BATCH_SIZE: usize = 1 << 16;
/// And so are more steps than this.
const MAX_STEPS: u64 = 1_000_000_000;
/// AdamW moves a weight by about the rate in each step, and a weight is smaller than 1.
const MAX_RATE: f64 = 1.0;

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

/// How the learning rate falls behind the warm-up.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Schedule {
    /// Half a cosine down to the floor.
    #[default]
    Cosine,
    /// A straight line down to the floor.
    Linear,
    /// Not at all.
    Constant,
}

impl Schedule {
    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// AdamW with a schedule of its rate.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct OptimizerConfig {
    /// Largest learning rate, reached after the warm-up.
    pub learning_rate: f64,
    /// How it falls behind the warm-up.
    #[serde(default, skip_serializing_if = "Schedule::is_default")]
    pub schedule: Schedule,
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
    /// Parts that the pairs of a step are run in, one after the other: less memory for the same update.
    #[serde(default = "one", skip_serializing_if = "is_one")]
    pub accumulate: usize,
    /// Compute the layers a second time for their gradients, so that only the states between them are kept until then: less
    /// memory for a third more time.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub recompute: bool,
    /// Steps between checkpoints.
    #[serde(default = "default_checkpoint_every")]
    pub checkpoint_every: u64,
    /// The optimizer.
    pub optimizer: OptimizerConfig,
}

fn one() -> usize {
    1
}
#[expect(
    clippy::trivially_copy_pass_by_ref,
    reason = "serde passes a reference"
)]
fn is_one(count: &usize) -> bool {
    *count == 1
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
    /// A size that is zero, beyond all models, or does not divide as it must; a base or an epsilon that is no number.
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
        if let Some((name, size)) = sizes
            .iter()
            .find(|(_, size)| !(1..=MAX_SIZE).contains(size))
        {
            return Err(wrong(format!(
                "`{name}` is {size}; it must be 1 to {MAX_SIZE}"
            )));
        }
        if self.n_layers > MAX_LAYERS {
            return Err(wrong(format!(
                "`n-layers` is {}; it must be 1 to {MAX_LAYERS}",
                self.n_layers
            )));
        }
        let positive = |value: f64| value.is_finite() && value > 0.0;
        let reals = [("rope-theta", self.rope_theta), ("norm-eps", self.norm_eps)];
        if let Some((name, value)) = reals.iter().find(|(_, value)| !positive(*value)) {
            return Err(wrong(format!(
                "`{name}` is {value:e}; it must be a finite number above 0"
            )));
        }
        if !self.d_model.is_multiple_of(2 * self.n_heads) {
            return Err(wrong(format!(
                "`d-model` {} does not divide into {} heads of even width",
                self.d_model, self.n_heads
            )));
        }
        if !self.n_heads.is_multiple_of(self.n_kv_heads) {
            return Err(wrong(format!(
                "{} query heads cannot share {} key-value heads",
                self.n_heads, self.n_kv_heads
            )));
        }
        Ok(())
    }
}

impl OptimizerConfig {
    /// Learning rate of a step: linear warm-up, then what the schedule says.
    pub fn rate(&self, step: u64, steps: u64) -> f64 {
        if step < self.warm_up_steps {
            return self.learning_rate * (step + 1) as f64 / self.warm_up_steps as f64;
        }
        let span = steps.saturating_sub(self.warm_up_steps).max(1);
        let done = (step - self.warm_up_steps).min(span) as f64 / span as f64;
        let left = match self.schedule {
            Schedule::Cosine => 0.5 * (1.0 + (std::f64::consts::PI * done).cos()),
            Schedule::Linear => 1.0 - done,
            Schedule::Constant => 1.0,
        };
        self.learning_rate * (self.floor + (1.0 - self.floor) * left)
    }
}

impl TrainConfig {
    /// # Errors
    /// A step count, batch size or rate that cannot work.
    pub fn check(&self) -> Result<()> {
        let optimizer = &self.optimizer;
        let whole = |name, value: u64, most: u64| {
            (!(1..=most).contains(&value))
                .then(|| format!("`{name}` is {value}; it must be 1 to {most}"))
        };
        let real = |name, value: f64, fits: bool, range| {
            (!fits).then(|| format!("`{name}` is {value:e}; it must be {range}"))
        };
        let share = |value: f64| (0.0..1.0).contains(&value);
        let below_one = "at least 0 and below 1";
        let OptimizerConfig {
            learning_rate: rate,
            schedule: _,
            floor,
            warm_up_steps: warm_up,
            weight_decay: decay,
            beta1,
            beta2,
            clip_norm: clip,
            ema_decay: ema,
        } = *optimizer;
        let wrong_size = [
            whole("steps", self.steps, MAX_STEPS),
            whole("batch-size", self.batch_size as u64, MAX_BATCH_SIZE as u64),
            whole("checkpoint-every", self.checkpoint_every, u64::MAX),
            whole("accumulate", self.accumulate as u64, self.batch_size as u64),
            (warm_up > self.steps).then(|| {
                format!(
                    "`warm-up-steps` is {warm_up}, more than all {} steps",
                    self.steps
                )
            }),
        ];
        let wrong_number = [
            real(
                "learning-rate",
                rate,
                rate > 0.0 && rate <= MAX_RATE,
                "above 0 and at most 1",
            ),
            real("floor", floor, (0.0..=1.0).contains(&floor), "0 to 1"),
            real(
                "weight-decay",
                decay,
                (0.0..=1.0).contains(&decay),
                "0 to 1",
            ),
            real("beta1", beta1, share(beta1), below_one),
            real("beta2", beta2, share(beta2), below_one),
            real(
                "clip-norm",
                clip,
                clip.is_finite() && clip > 0.0,
                "a finite number above 0",
            ),
            real("ema-decay", ema, share(ema), below_one),
        ];
        match wrong_size.into_iter().chain(wrong_number).flatten().next() {
            Some(message) => Err(wrong(message)),
            None => Ok(()),
        }
    }
}

fn wrong(message: String) -> TrainError {
    TrainError::Config(message)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::architecture::Architecture;

    fn optimizer() -> OptimizerConfig {
        OptimizerConfig {
            learning_rate: 1.0,
            schedule: Schedule::Cosine,
            floor: 0.1,
            warm_up_steps: 10,
            weight_decay: 0.0,
            beta1: 0.9,
            beta2: 0.95,
            clip_norm: 1.0,
            ema_decay: 0.0,
        }
    }

    #[test]
    fn the_rate_rises_then_falls_to_its_floor() {
        let config = optimizer();
        assert!((config.rate(0, 100) - 0.1).abs() < 1e-12);
        assert!((config.rate(10, 100) - 1.0).abs() < 1e-12);
        assert!((config.rate(55, 100) - 0.55).abs() < 1e-12);
        assert!((config.rate(100, 100) - 0.1).abs() < 1e-12);
        let linear = OptimizerConfig {
            schedule: Schedule::Linear,
            ..optimizer()
        };
        for (step, rate) in [(0, 0.1), (10, 1.0), (28, 0.82), (100, 0.1)] {
            assert!((linear.rate(step, 100) - rate).abs() < 1e-12, "{step}");
        }
        let constant = OptimizerConfig {
            schedule: Schedule::Constant,
            ..optimizer()
        };
        assert!((constant.rate(4, 100) - 0.5).abs() < 1e-12);
        assert!((constant.rate(99, 100) - 1.0).abs() < 1e-12);
    }

    #[test]
    fn a_schedule_that_cannot_work_is_refused_by_its_key() {
        type Spoil = fn(&mut TrainConfig);
        let spoilt: [(&str, Spoil); 15] = [
            ("`accumulate` is 5", |config| config.accumulate = 5),
            ("`steps` is 0", |config| config.steps = 0),
            ("`steps`", |config| config.steps = u64::MAX),
            ("`batch-size` is 0", |config| config.batch_size = 0),
            ("`batch-size`", |config| config.batch_size = usize::MAX),
            ("`checkpoint-every`", |config| config.checkpoint_every = 0),
            ("`warm-up-steps` is 101", |config| {
                config.optimizer.warm_up_steps = 101
            }),
            ("`learning-rate` is NaN", |config| {
                config.optimizer.learning_rate = f64::NAN
            }),
            ("`learning-rate` is inf", |config| {
                config.optimizer.learning_rate = f64::INFINITY
            }),
            ("`learning-rate` is 1e300", |config| {
                config.optimizer.learning_rate = 1e300
            }),
            ("`floor`", |config| config.optimizer.floor = -0.1),
            ("`weight-decay` is NaN", |config| {
                config.optimizer.weight_decay = f64::NAN
            }),
            ("`beta2` is 1e0", |config| config.optimizer.beta2 = 1.0),
            ("`clip-norm`", |config| {
                config.optimizer.clip_norm = f64::INFINITY
            }),
            ("`ema-decay`", |config| config.optimizer.ema_decay = 1.0),
        ];
        let good = TrainConfig {
            steps: 100,
            batch_size: 4,
            seed: 0,
            loss_on: LossOn::Response,
            accumulate: 1,
            recompute: false,
            checkpoint_every: 10,
            optimizer: optimizer(),
        };
        assert!(good.check().is_ok());
        for (named, spoil) in spoilt {
            let mut config = good.clone();
            spoil(&mut config);
            let message = config.check().unwrap_err().to_string();
            assert!(message.contains(named), "{named}: {message}");
        }
    }

    #[test]
    fn a_shape_that_cannot_work_is_refused_by_its_key() {
        let good = ModelShape {
            vocab_size: 300,
            d_model: 16,
            n_layers: 4,
            n_heads: 2,
            n_kv_heads: 1,
            d_ff: 32,
            rope_theta: 1e4,
            norm_eps: 1e-5,
            max_positions: 64,
            tied_head: false,
        };
        assert!(good.check().is_ok());
        type Spoil = fn(&mut ModelShape);
        let spoilt: [(&str, Spoil); 8] = [
            ("`d-ff` is 0", |shape| shape.d_ff = 0),
            ("`vocab-size`", |shape| shape.vocab_size = usize::MAX),
            ("`n-layers` is 257", |shape| shape.n_layers = 257),
            ("`n-heads`", |shape| shape.n_heads = usize::MAX / 2 + 1),
            ("`rope-theta` is NaN", |shape| shape.rope_theta = f64::NAN),
            ("`norm-eps`", |shape| shape.norm_eps = 0.0),
            ("`d-model` 18", |shape| shape.d_model = 18),
            ("3 key-value heads", |shape| shape.n_kv_heads = 3),
        ];
        for (named, spoil) in spoilt {
            let mut shape = good.clone();
            spoil(&mut shape);
            let message = shape.check().unwrap_err().to_string();
            assert!(message.contains(named), "{named}: {message}");
        }
        let huge = ModelShape {
            vocab_size: MAX_SIZE,
            d_model: MAX_SIZE,
            d_ff: MAX_SIZE,
            ..good
        };
        let huge = Architecture::of_shape(&huge).unwrap();
        assert!(huge.state_bytes(None) > 1e15);
        assert!(huge.step_bytes(MAX_SIZE, MAX_SIZE, true) > 1e15);
    }
}
