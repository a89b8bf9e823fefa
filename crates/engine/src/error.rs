//! What can go wrong while generating.

use skipbench_model::ModelError;
use skipbench_strategy::StrategyError;

/// An error of this crate.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// The model refused a call.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// The strategy cannot be used with this model or batch.
    #[error(transparent)]
    Strategy(#[from] StrategyError),
    /// No prompt was given.
    #[error("the batch is empty; give at least one prompt")]
    EmptyBatch,
    /// Nothing to generate.
    #[error("max-new-tokens is 0; at least one token must be generated")]
    NoTokens,
    /// A continuation without a token.
    #[error("text {row} has no token to score; give a continuation that is not empty")]
    NothingToScore {
        /// Text of the batch, from 0.
        row: usize,
    },
    /// One pass over the whole text needs layers that are the same at each position.
    #[error(
        "its layers are not the same at every token, so it has none of its own for a pass over the whole text; score it as decoded (`--mode as-decoded`)"
    )]
    NoFixedLayers,
    /// An option of the search means nothing, or does not go with another.
    #[error("`{option}`: {message}")]
    Search {
        /// The option.
        option: &'static str,
        /// What is wrong, and what would work.
        message: String,
    },
    /// A strategy runs a layer that it has not announced, so that nothing was cached for it.
    #[error(
        "the strategy runs or announces layer {layer}, which the model does not have or which is not among the layers that its `reachable` names; this is a mistake in the strategy"
    )]
    NotReachable {
        /// The layer.
        layer: usize,
    },
    /// The model computes NaN or infinity where a token has to be chosen or a strategy has to decide.
    #[error(
        "the model gives {what} that are not numbers at token {token} of prompt {row}{}: the checkpoint is damaged, or its values overflow this dtype; try float32",
        layer.map_or(String::new(), |layer| format!(", after layer {layer}"))
    )]
    NotNumbers {
        /// Logits or hidden states.
        what: &'static str,
        /// Prompt of the batch, from 0.
        row: usize,
        /// Which token of its answer was next, from 1.
        token: usize,
        /// The layer behind which a strategy looked; `None` behind the last, where a token is chosen.
        layer: Option<usize>,
    },
    /// Layers have no order of importance.
    #[error("layers cannot be scored: {why}")]
    NoScores {
        /// What is wrong, and what to do.
        why: &'static str,
    },
}

impl From<candle_core::Error> for EngineError {
    fn from(error: candle_core::Error) -> Self {
        EngineError::Model(error.into())
    }
}

/// Result of this crate.
pub type Result<T> = std::result::Result<T, EngineError>;
