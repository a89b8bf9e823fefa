//! `full`: every layer at every step.

use crate::settings::{Asked, Definition, Settings};
use crate::{LayerSet, Strategy, StrategyError};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The network as it was trained, to which everything else is compared. Takes no target.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Full {}

impl Settings for Full {
    fn definition(&self) -> Definition {
        Definition {
            min_layers: 1,
            ..Definition::new("full", "every layer: the network as it was trained")
        }
    }

    fn build(&self, asked: &Asked<'_>) -> Result<Box<dyn Strategy>, StrategyError> {
        Ok(asked.run(LayerSet::full(asked.n_layers)))
    }
}
