//! What a step trains: the layers that its tokens run, and a weighted sum of losses.
//!
//! Every training objective of this crate comes down to a [`Step`] for each batch. [`exits`] weighs the losses of several
//! exits, [`drops`] leaves layers out at random, and [`Net::losses`](crate::Net::losses) computes the sum. A new objective is
//! a function from the number of the step to a [`Step`]; a new loss is a variant of [`Loss`] and its arm there.

pub mod drops;
mod evaluate;
pub mod exits;
mod losses;
#[cfg(test)]
mod tests;

pub use evaluate::Pass;

use crate::data::Depths;
use crate::error::{Result, TrainError};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::ops::Range;

/// What one update trains.
#[derive(Debug, Clone, PartialEq)]
pub struct Step {
    /// The layers that the tokens run; `None` for all of them.
    pub depths: Option<Depths>,
    /// The losses that are added.
    pub terms: Vec<Term>,
}

/// A loss with its weight.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Term {
    /// Factor of the loss in the sum.
    pub weight: f64,
    /// The loss.
    pub loss: Loss,
}

/// A mean over the tokens of a batch.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Loss {
    /// Cross-entropy of what the shared final norm and LM head make of the state after so many layers.
    Exit {
        /// Layers below the exit, 1 to all.
        layers: usize,
    },
    /// Cross-entropy of the whole network, in a second pass through all layers.
    Full,
    /// Kullback-Leibler divergence of the distribution at an exit from that of the whole network, which is not trained by it,
    /// times the square of the temperature (Hinton et al. 2015, arXiv 1503.02531, section 2).
    Logits {
        /// Layers below the exit.
        layers: usize,
        /// What both logits are divided by.
        temperature: f64,
    },
    /// How far the states at the layers that a response token runs are from those of the whole network, mean over
    /// tokens and layers.
    States {
        /// How far two states are apart.
        measure: Measure,
        /// On which side of the layer.
        at: Side,
        /// Whether the whole network is trained by it too.
        trains_full: bool,
    },
}

/// How far two states are apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Measure {
    /// One minus their cosine.
    Cosine,
    /// The mean square of the difference of their elements.
    #[serde(rename = "mse")]
    SquaredError,
}

/// A side of a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// The state that it reads.
    Input,
    /// The state that it writes.
    Output,
}

impl fmt::Display for Loss {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exit { layers } => write!(f, "exit {layers}"),
            Self::Full => f.write_str("full"),
            Self::Logits { layers, .. } => write!(f, "logits {layers}"),
            Self::States { .. } => f.write_str("states"),
        }
    }
}

impl Step {
    /// Cross-entropy of the last layer alone.
    pub fn plain(depths: Option<Depths>, n_layers: usize) -> Self {
        let last = Loss::Exit { layers: n_layers };
        Self {
            depths,
            terms: vec![Term {
                weight: 1.0,
                loss: last,
            }],
        }
    }

    /// The same for some rows of its batch.
    pub(crate) fn part(&self, rows: Range<usize>) -> Self {
        Self {
            depths: self.depths.as_ref().map(|depths| depths.part(rows)),
            terms: self.terms.clone(),
        }
    }

    /// Passes through the layers whose activations the backward pass reads.
    pub fn tracked_passes(&self) -> usize {
        1 + usize::from(self.depths.is_some() && self.trains_full())
    }

    /// Outputs of the LM head that are held at a time.
    pub fn heads_at_once(&self) -> usize {
        1 + usize::from(self.has_teacher_logits())
    }

    fn trains_full(&self) -> bool {
        let mut terms = self.terms.iter();
        terms.any(|term| match term.loss {
            Loss::Full => true,
            Loss::States { trains_full, .. } => trains_full,
            Loss::Exit { .. } | Loss::Logits { .. } => false,
        })
    }

    fn has_teacher_logits(&self) -> bool {
        let mut terms = self.terms.iter();
        terms.any(|term| matches!(term.loss, Loss::Logits { .. }))
    }

    /// Refuses what cannot be computed in a model of `n_layers`.
    fn check(&self, n_layers: usize) -> Result<()> {
        let wrong = |message: String| Err(TrainError::Config(message));
        if self.terms.is_empty() {
            return wrong("a step has no loss to learn from".to_owned());
        }
        for Term { weight, loss } in &self.terms {
            if !(weight.is_finite() && *weight >= 0.0) {
                return wrong(format!(
                    "the weight of {loss:?} is {weight:e}; it must be a finite number, at least 0"
                ));
            }
            match *loss {
                Loss::Exit { layers } | Loss::Logits { layers, .. }
                    if !(1..=n_layers).contains(&layers) =>
                {
                    return wrong(format!(
                        "an exit after {layers} layers; it must be 1 to {n_layers}"
                    ));
                }
                Loss::Logits { temperature, .. }
                    if !(temperature.is_finite() && temperature > 0.0) =>
                {
                    return wrong(format!(
                        "a temperature of {temperature:e}; it must be a finite number above 0"
                    ));
                }
                _ => {}
            }
        }
        Ok(())
    }
}
