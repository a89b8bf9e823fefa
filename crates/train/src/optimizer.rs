//! AdamW (arXiv 1711.05101) over plain slices, with gradient clipping and an average of the weights.

use crate::config::OptimizerConfig;
use crate::error::Result;
use crate::net::Net;
use crate::ops::to_vec;
use candle_core::backprop::GradStore;
use candle_core::{Device, Tensor};
use skipbench_model::threads::SideBySide;

const EPS: f32 = 1e-8;

/// State of one weight.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Moments {
    pub(crate) value: Vec<f32>,
    pub(crate) first: Vec<f32>,
    pub(crate) second: Vec<f32>,
    /// Running average of the value; empty when none is kept.
    pub(crate) average: Vec<f32>,
}

pub(crate) struct AdamW {
    config: OptimizerConfig,
    /// In the order of `Net::names`.
    pub(crate) weights: Vec<Moments>,
}

impl AdamW {
    pub(crate) fn new(net: &Net, config: &OptimizerConfig) -> Result<Self> {
        let weights = net
            .names()
            .iter()
            .map(|name| {
                let value = to_vec(net.var(name).as_tensor())?;
                Ok(Moments {
                    first: vec![0.0; value.len()],
                    second: vec![0.0; value.len()],
                    average: match config.ema_decay > 0.0 {
                        true => value.clone(),
                        false => Vec::new(),
                    },
                    value,
                })
            })
            .collect::<Result<_>>()?;
        Ok(Self {
            config: config.clone(),
            weights,
        })
    }

    /// One update with gradients whose norm is finite. `step` counts from 0. A weight without a gradient stays as it is.
    pub(crate) fn step(
        &mut self,
        net: &Net,
        gradients: &Gradients,
        rate: f64,
        step: u64,
    ) -> Result<()> {
        let update = Update {
            rate: rate as f32,
            decay: self.config.weight_decay as f32,
            clip: (self.config.clip_norm / gradients.norm.max(self.config.clip_norm)) as f32,
            betas: [self.config.beta1 as f32, self.config.beta2 as f32],
            corrections: [self.config.beta1, self.config.beta2]
                .map(|beta| (1.0 - beta.powf((step + 1) as f64)) as f32),
            // Early weights are worth little: the average forgets faster at first.
            average: self
                .config
                .ema_decay
                .min((step + 1) as f64 / (step + 10) as f64) as f32,
        };
        self.weights
            .iter_mut()
            .zip(&gradients.values)
            .zip(net.names())
            .on_all_threads(|((weight, grad), name)| {
                let is_matrix = net.var(name).rank() > 1;
                update.apply(weight, grad, is_matrix);
            });
        for (name, weight) in net.names().iter().zip(&self.weights) {
            let var = net.var(name);
            var.set(&Tensor::from_slice(
                &weight.value,
                var.shape(),
                &Device::Cpu,
            )?)?;
        }
        Ok(())
    }

    /// Whether every weight and every average of one is a finite number.
    pub(crate) fn is_finite(&self) -> bool {
        let finite = self.weights.iter().map_on_all_threads(|weight| {
            let mut numbers = weight.value.iter().chain(&weight.average);
            numbers.all(|number| number.is_finite())
        });
        finite.into_iter().all(|finite| finite)
    }
}

/// Gradients of the weights, in the order of [`Net::names`].
pub(crate) struct Gradients {
    /// Empty for a weight that took no part.
    pub(crate) values: Vec<Vec<f32>>,
    /// Global norm.
    pub(crate) norm: f64,
}

impl Gradients {
    pub(crate) fn of(net: &Net, grads: &GradStore) -> Result<Self> {
        let found = net.take_found();
        let values = net
            .names()
            .iter()
            .map(|name| {
                let var = net.var(name);
                Ok(match (grads.get(var), found.get(&var.id())) {
                    (Some(grad), None) | (None, Some(grad)) => to_vec(grad)?,
                    (Some(one), Some(other)) => to_vec(&(one + other)?)?,
                    (None, None) => Vec::new(),
                })
            })
            .collect::<Result<Vec<Vec<f32>>>>()?;
        let norm = norm(&values);
        Ok(Self { values, norm })
    }

    /// Multiplies all of them.
    pub(crate) fn scale(&mut self, by: f32) {
        let values = self.values.iter_mut();
        values.on_all_threads(|grad| grad.iter_mut().for_each(|value| *value *= by));
        self.norm *= f64::from(by);
    }

    /// Adds those of another part of the batch.
    pub(crate) fn add(&mut self, other: &Self) {
        let values = self.values.iter_mut().zip(&other.values);
        values.on_all_threads(|(sum, grad)| match sum.is_empty() {
            true => sum.clone_from(grad),
            false => sum
                .iter_mut()
                .zip(grad)
                .for_each(|(sum, grad)| *sum += grad),
        });
        self.norm = norm(&self.values);
    }
}

/// Global norm.
fn norm(values: &[Vec<f32>]) -> f64 {
    values
        .iter()
        .map_on_all_threads(|grad| {
            grad.iter()
                .map(|g| f64::from(*g) * f64::from(*g))
                .sum::<f64>()
        })
        .iter()
        .sum::<f64>()
        .sqrt()
}

struct Update {
    rate: f32,
    decay: f32,
    clip: f32,
    betas: [f32; 2],
    corrections: [f32; 2],
    average: f32,
}

impl Update {
    fn apply(&self, weight: &mut Moments, grad: &[f32], is_matrix: bool) {
        let decay = if is_matrix {
            self.rate * self.decay
        } else {
            0.0
        };
        let [beta1, beta2] = self.betas;
        for (i, grad) in grad.iter().enumerate() {
            let grad = grad * self.clip;
            let first = beta1 * weight.first[i] + (1.0 - beta1) * grad;
            let second = beta2 * weight.second[i] + (1.0 - beta2) * grad * grad;
            weight.first[i] = first;
            weight.second[i] = second;
            let direction =
                first / self.corrections[0] / ((second / self.corrections[1]).sqrt() + EPS);
            weight.value[i] -= decay * weight.value[i] + self.rate * direction;
        }
        let averages = weight.average.iter_mut().zip(&weight.value);
        if grad.is_empty() {
            // In this form an average that has met its weight stays, bit for bit.
            averages
                .for_each(|(average, value)| *average += (1.0 - self.average) * (value - *average));
        } else {
            averages.for_each(|(average, value)| {
                *average = self.average * *average + (1.0 - self.average) * value;
            });
        }
    }
}
