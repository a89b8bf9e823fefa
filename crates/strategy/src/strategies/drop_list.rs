//! `drop-list`: all layers but those that a user lists.

use crate::budget::{MIN_KEPT, check_depth};
use crate::registry::Settings;
use crate::strategy::FixedLayers;
use crate::{LayerSet, Prefill, Strategy, StrategyError};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

const NAME: &str = "drop-list";

/// Skips the listed layers in decoding, wherever the list comes from: a paper's table, another program's scores. Takes no
/// target.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct DropList {
    /// Indices of the layers to skip, the lowest layer being 0; none if not given.
    drop: Vec<usize>,
    /// Which layers the prompt runs through.
    #[serde(
        deserialize_with = "crate::strict::named",
        skip_serializing_if = "Prefill::is_full"
    )]
    prefill: Prefill,
}

impl DropList {
    fn layers(&self, n_layers: usize) -> LayerSet {
        LayerSet::from_layers((0..n_layers).filter(|layer| !self.drop.contains(layer)))
    }
}

impl Settings for DropList {
    fn name(&self) -> &'static str {
        NAME
    }

    fn about(&self) -> &'static str {
        "all layers but those of a list"
    }

    fn validate(&self, n_layers: usize) -> Result<(), StrategyError> {
        check_depth(NAME, n_layers, MIN_KEPT)?;
        let setting = |message| StrategyError::Setting {
            strategy: NAME,
            key: "drop",
            message,
        };
        if let Some(layer) = self.drop.iter().find(|&&layer| layer >= n_layers) {
            return Err(setting(format!(
                "there is no layer {layer}; the {n_layers} layers are 0 to {}",
                n_layers - 1
            )));
        }
        match self.layers(n_layers).len() {
            kept if kept < MIN_KEPT => Err(setting(format!(
                "{kept} of {n_layers} layers are left, and at least {MIN_KEPT} must run"
            ))),
            _ => Ok(()),
        }
    }

    fn build(&self, n_layers: usize) -> Result<Box<dyn Strategy>, StrategyError> {
        self.validate(n_layers)?;
        Ok(FixedLayers::boxed(
            n_layers,
            self.layers(n_layers),
            self.prefill,
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_listed_is_skipped() {
        let list = |drop: &[usize]| DropList {
            drop: drop.to_vec(),
            ..DropList::default()
        };
        assert_eq!(list(&[1, 3, 3]).layers(6).to_vec(), [0, 2, 4, 5]);
        assert!(list(&[]).validate(2).is_ok());
        let error = |drop: &[usize]| list(drop).validate(4).unwrap_err().to_string();
        assert!(error(&[4]).contains("there is no layer 4"));
        assert!(error(&[0, 1, 2]).contains("1 of 4 layers are left"));
    }
}
