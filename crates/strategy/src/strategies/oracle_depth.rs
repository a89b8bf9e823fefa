//! `oracle-depth`: the least depth of a menu that keeps a sequence's quality, the bound that every choice by the prompt
//! chases (Glavas et al. 2024, arXiv 2410.20022).

use super::prompt_depth::{MENU, menu_of};
use crate::settings::{Asked, Definition, Settings};
use crate::{Strategy, StrategyError, StrategySpec};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

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
            menu: MENU.to_vec(),
        }
    }
}

impl OracleDepth {
    /// The depths to choose from, the full network among them.
    pub(crate) fn menu(&self, asked: &Asked<'_>) -> Result<Vec<StrategySpec>, StrategyError> {
        let speedups: Vec<f64> = self.menu.iter().copied().chain([1.0]).collect();
        menu_of(asked, &speedups)
    }
}

impl Settings for OracleDepth {
    fn definition(&self) -> Definition {
        Definition {
            is_oracle: true,
            ..Definition::new(
                "oracle-depth",
                "an oracle: the least depth of a menu that keeps a sequence's score (arXiv 2410.20022)",
            )
        }
    }

    fn build(&self, asked: &Asked<'_>) -> Result<Box<dyn Strategy>, StrategyError> {
        let strategy = asked.name;
        self.menu(asked)?;
        Err(StrategyError::NeedsReferences { strategy })
    }
}
