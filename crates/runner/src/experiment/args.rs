//! How a command line names an experiment.

use super::Experiment;
use crate::outputs;
use anyhow::bail;
use clap::Args;
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

/// The experiment of `skipbench run`, `plan` and `submit`.
#[derive(Debug, Clone, Args)]
pub struct ExperimentArgs {
    /// YAML experiment
    pub experiment: PathBuf,
    /// Set a key of the experiment, as in `timing.batches=4` or `tasks.0.prompts=8`; the value is YAML, and a path in it is
    /// taken from the current folder. May be given again
    #[arg(long = "set", value_name = "KEY.PATH=VALUE")]
    pub overrides: Vec<String>,
    /// Folder of the results, instead of the experiment's own
    #[arg(long)]
    pub out: Option<PathBuf>,
}

impl ExperimentArgs {
    /// Reads the experiment with what the command line changes in it.
    ///
    /// # Errors
    /// As [`Experiment::read`], and results that would be written into a checkpoint.
    pub fn read(&self) -> anyhow::Result<Experiment> {
        let mut experiment = Experiment::read(&self.experiment, &self.overrides)?;
        if self.out.is_some() {
            experiment.out.clone_from(&self.out);
        }
        let out = experiment.out_dir();
        if let Some(model) = experiment
            .models
            .iter()
            .find(|model| outputs::is_same(&model.path, &out))
        {
            bail!(
                "the results would be written into the checkpoint folder {}; give another `out`",
                model.path.display()
            );
        }
        Ok(experiment)
    }
}

/// The share of the cells of `skipbench run` and `skipbench plan`.
#[derive(Debug, Clone, Copy, Default, Args)]
pub struct ShardArgs {
    /// Only the I-th of N shares of the cells, for N jobs that each write a folder of their own
    #[arg(long, value_name = "I/N")]
    pub shard: Option<Shard>,
}

/// One of several shares of the cells of a plan.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shard {
    /// Which, from 1.
    pub index: usize,
    /// How many shares there are.
    pub of: usize,
}

impl Shard {
    /// Whether the cell at this place of a plan (from 0) belongs to the shard. Cells are dealt out in turn, so that each
    /// shard gets as many of the slow ones.
    pub fn holds(self, cell: usize) -> bool {
        cell % self.of == self.index - 1
    }

    /// All of the cells.
    pub const WHOLE: Self = Self { index: 1, of: 1 };

    /// The `part`-th (from 0) of `parts` shares of this share, which is a share of all cells too.
    #[must_use]
    pub fn split(self, part: usize, parts: usize) -> Self {
        Self {
            index: self.index + part * self.of,
            of: self.of * parts,
        }
    }
}

impl fmt::Display for Shard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.index, self.of)
    }
}

impl FromStr for Shard {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parts = text.split_once('/');
        let numbers = parts.and_then(|(index, of)| Some((index.parse().ok()?, of.parse().ok()?)));
        let Some((index, of)) = numbers else {
            return Err("a shard is written I/N, as in 1/4 for the first of four".to_owned());
        };
        match (index, of) {
            (_, 0) => Err("there is no share of 0; N is at least 1".to_owned()),
            (0, of) => Err(format!("shares count from 1, so the first is 1/{of}")),
            (index, of) if index > of => Err(format!(
                "there is no share {index} of {of}; the last is {of}/{of}"
            )),
            (index, of) => Ok(Self { index, of }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shards_deal_out_every_cell_once() {
        let shards: Vec<Shard> = ["1/3", "2/3", "3/3"]
            .map(|text| text.parse().unwrap())
            .to_vec();
        for cell in 0..10 {
            assert_eq!(shards.iter().filter(|shard| shard.holds(cell)).count(), 1);
        }
        assert_eq!(shards[1].to_string(), "2/3");
        for cell in 0..24 {
            let parts = (0..4).filter(|&part| shards[1].split(part, 4).holds(cell));
            assert_eq!(parts.count(), usize::from(shards[1].holds(cell)));
        }
        for wrong in [
            "0/3", "4/3", "1/0", "0/0", "1", "1/", "/2", "a/b", "-1/2", "1/2/3", "",
        ] {
            assert!(wrong.parse::<Shard>().is_err(), "{wrong}");
        }
    }
}
