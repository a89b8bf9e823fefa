//! `paper:` of an experiment.

use super::parse_yaml;
use crate::load::read_text;
use anyhow::{anyhow, bail};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use skipbench_record::{Beside, Paper};
use std::path::PathBuf;

/// A paper's table that the report sets the run beside.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct PaperEntry {
    /// YAML file of the paper's figures with their source, of the form of `experiments/paper/table4-figures.yaml`.
    pub figures: PathBuf,
    /// How the checkpoints that run here were trained; the report says it beside what the paper did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fine_tuning: Option<String>,
    /// Where each approach has a checkpoint of its own, as in a paper that trains for each: the name of the model whose full
    /// network is the paper's. The rows of all models are then one table. If not given, each model has a table.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub full_of: Option<String>,
}

impl PaperEntry {
    /// Reads the figures.
    ///
    /// # Errors
    /// A file that cannot be read, lacks something or holds what it may not.
    pub(crate) fn read(&self) -> anyhow::Result<Beside> {
        let paper: Paper = parse_yaml(&read_text(&self.figures)?, &self.figures)?;
        paper
            .check()
            .map_err(|message| anyhow!("{}: {message}", self.figures.display()))?;
        Ok(Beside {
            paper,
            fine_tuning: self.fine_tuning.clone(),
            full_of: self.full_of.clone(),
        })
    }

    /// Refuses a `full-of` that is none of the models.
    ///
    /// # Errors
    /// Says which models there are.
    pub(crate) fn check_full_of(&self, models: &[&str]) -> anyhow::Result<()> {
        match &self.full_of {
            Some(name) if !models.contains(&name.as_str()) => bail!(
                "no model is called `{name}`; the models are {}",
                models.join(", ")
            ),
            _ => Ok(()),
        }
    }
}
