//! `paper:` of an experiment.

use super::parse_yaml;
use crate::load::read_text;
use anyhow::anyhow;
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
        })
    }
}
