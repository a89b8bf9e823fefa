//! `oracle-depth`: the least depth of a menu that keeps a sequence's quality, the bound that every choice by the prompt
//! chases (Glavas et al. 2024, arXiv 2410.20022).

use super::prompt_depth::menu_of;
use crate::budget::{MIN_KEPT, check_depth};
use crate::registry::Settings;
use crate::{Strategy, StrategyError, StrategySpec};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

const NAME: &str = "oracle-depth";

/// Every depth of the menu answers every prompt, and of each prompt the answer of least depth counts whose score against
/// the reference is no worse than the full network's. It needs the references, so only an experiment can run it, and its
/// time means nothing.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct OracleDepth {
    /// Speedups of the unified depths to choose from, the full network always among them; those that are too fast for the
    /// model are left out.
    menu: Vec<f64>,
}

impl Default for OracleDepth {
    fn default() -> Self {
        Self {
            menu: vec![1.0, 1.5, 2.0, 3.0, 5.0, 8.0],
        }
    }
}

impl Settings for OracleDepth {
    fn name(&self) -> &'static str {
        NAME
    }

    fn about(&self) -> &'static str {
        "an oracle: the least depth of a menu that keeps a sequence's score (arXiv 2410.20022)"
    }

    fn menu(&self, n_layers: usize) -> Option<Vec<StrategySpec>> {
        let speedups: Vec<f64> = self.menu.iter().copied().chain([1.0]).collect();
        menu_of(NAME, &speedups, n_layers).ok()
    }

    fn is_oracle(&self) -> bool {
        true
    }

    fn validate(&self, n_layers: usize) -> Result<(), StrategyError> {
        check_depth(NAME, n_layers, MIN_KEPT)?;
        let speedups: Vec<f64> = self.menu.iter().copied().chain([1.0]).collect();
        menu_of(NAME, &speedups, n_layers).map(drop)
    }

    fn build(&self, n_layers: usize) -> Result<Box<dyn Strategy>, StrategyError> {
        self.validate(n_layers)?;
        Err(StrategyError::NeedsReferences { strategy: NAME })
    }
}
