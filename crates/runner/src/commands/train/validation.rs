//! Losses on pairs that are not learnt, at several depths, while a run goes on.

use super::data::{DataEntry, PairSource, Source};
use super::depths::{DepthEntry, DepthPlan};
use anyhow::{Context, bail};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use skipbench_report::LossSeries;
use skipbench_strategy::StrategySpec;
use skipbench_train::{Batch, LossOn, Pair, TrainConfig, Trainer};
use std::io::Write;
use std::path::{Path, PathBuf};

/// More pairs than this are a slip of the pen.
const MAX_PAIRS: u64 = 1_000_000;
/// And so are more depths.
const MAX_DEPTHS: usize = 64;

/// What is validated, and when.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct ValidationEntry {
    /// Where the pairs come from.
    pub(super) data: Vec<DataEntry>,
    /// Steps between two validations; there is one behind the last step too.
    every: u64,
    /// Pairs, which are the same each time.
    #[serde(default = "default_pairs")]
    pairs: u64,
    /// Strategies whose layers run, with their speedups; if not given, all layers run. Early stopping goes by the first.
    #[serde(default)]
    depths: Vec<StrategySpec>,
    /// Validations without a better loss after which the training ends. The weights of the best one are the result.
    #[serde(default)]
    patience: Option<u64>,
}

fn default_pairs() -> u64 {
    64
}

/// What a result depends on of it: which weights are the best.
#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
struct Deciding<'a> {
    every: u64,
    pairs: u64,
    depth: Option<&'a StrategySpec>,
    patience: u64,
}

impl ValidationEntry {
    /// # Errors
    /// A number that cannot work.
    pub(super) fn check(&self) -> anyhow::Result<()> {
        if self.every == 0 {
            bail!("`validation.every` is 0; it must be 1 or more");
        }
        if !(1..=MAX_PAIRS).contains(&self.pairs) {
            bail!(
                "`validation.pairs` is {}; it must be 1 to {MAX_PAIRS}",
                self.pairs
            );
        }
        if self.depths.len() > MAX_DEPTHS {
            bail!(
                "`validation.depths` names {} strategies; {MAX_DEPTHS} at most",
                self.depths.len()
            );
        }
        if self.patience == Some(0) {
            bail!("`validation.patience` is 0; it must be 1 or more, or left out");
        }
        DataEntry::check_weights(&self.data, "validation.data")
    }

    /// What the result depends on; nothing without early stopping.
    ///
    /// # Errors
    /// A source that cannot be read.
    pub(super) fn identity(&self) -> anyhow::Result<Option<Value>> {
        let Some(patience) = self.patience else {
            return Ok(None);
        };
        let data: Vec<Value> = self.sources()?.iter().map(Source::identity).collect();
        let deciding = Deciding {
            every: self.every,
            pairs: self.pairs,
            depth: self.depths.first(),
            patience,
        };
        Ok(Some(json!({"data": data, "when": deciding})))
    }

    /// # Errors
    /// An entry that names no source, a file that cannot be read.
    pub(super) fn sources(&self) -> anyhow::Result<Vec<Source>> {
        let open = |(index, entry)| {
            Source::open(entry).with_context(|| format!("`validation.data[{index}]`"))
        };
        self.data.iter().enumerate().map(open).collect()
    }
}

/// A validation that goes on beside a training.
pub(super) struct Validation {
    every: u64,
    patience: Option<u64>,
    loss_on: LossOn,
    /// The pairs, the shortest first.
    batches: Vec<Vec<Pair>>,
    /// `None` for all layers.
    depths: Vec<(String, Option<DepthPlan>)>,
    path: PathBuf,
    rows: Vec<Row>,
}

/// The losses of a step, by depth.
struct Row {
    step: u64,
    losses: Vec<f64>,
}

impl Validation {
    /// Draws the pairs and takes up the log in `work` where `trainer` stands.
    ///
    /// # Errors
    /// A strategy that cannot be trained, data or a log that cannot be read.
    pub(super) fn open(
        entry: &ValidationEntry,
        pairs: &PairSource<'_>,
        config: &TrainConfig,
        trainer: &Trainer,
        work: &Path,
    ) -> anyhow::Result<Self> {
        let n_layers = trainer.net().shape().n_layers;
        let mut drawn = pairs.first(entry.pairs)?;
        drawn.sort_by_key(|pair| pair.prompt.len() + pair.response.len());
        let plan = |spec: &StrategySpec| -> anyhow::Result<_> {
            let plan = DepthEntry::of(spec.clone(), Vec::new(), 0).resolve(n_layers, 0);
            let plan = plan.context("`validation.depths`")?;
            Ok((spec.to_string(), Some(plan)))
        };
        let depths = match entry.depths.is_empty() {
            true => vec![("full".to_owned(), None)],
            false => entry
                .depths
                .iter()
                .map(plan)
                .collect::<anyhow::Result<_>>()?,
        };
        let mut validation = Self {
            every: entry.every,
            patience: entry.patience,
            loss_on: config.loss_on,
            batches: drawn
                .chunks(config.batch_size.div_ceil(config.accumulate).max(1))
                .map(<[Pair]>::to_vec)
                .collect(),
            depths,
            path: work.join("validation.csv"),
            rows: Vec::new(),
        };
        validation.resume(trainer.step())?;
        Ok(validation)
    }

    /// Whether there is one behind the step that `trainer` has done.
    pub(super) fn is_due(&self, trainer: &Trainer) -> bool {
        let step = trainer.step();
        let is_done = self.rows.last().is_some_and(|row| row.step == step);
        step > 0 && !is_done && (step.is_multiple_of(self.every) || trainer.is_done())
    }

    /// The losses at all depths, which are logged too.
    ///
    /// # Errors
    /// A pair that is too long, a log that cannot be written.
    pub(super) fn run(&mut self, trainer: &Trainer) -> anyhow::Result<String> {
        let mut losses = Vec::new();
        for (_, plan) in &self.depths {
            let (mut sum, mut tokens) = (0.0, 0);
            for pairs in &self.batches {
                let batch = Batch::new(pairs, self.loss_on);
                let depths = match plan {
                    None => None,
                    Some(plan) => plan.draw(0, pairs, &batch, trainer.net())?,
                };
                let (loss, counted) = trainer.net().loss_of(&batch, depths.as_ref())?;
                sum += loss * counted as f64;
                tokens += counted;
            }
            losses.push(sum / tokens.max(1) as f64);
        }
        let step = trainer.step();
        let said: Vec<String> = self
            .depths
            .iter()
            .zip(&losses)
            .map(|((name, _), loss)| format!("{name} {loss:.4}"))
            .collect();
        self.rows.push(Row { step, losses });
        self.write()?;
        Ok(format!("validation at step {step}: {}", said.join(", ")))
    }

    /// Whether the last loss at the first depth is the best so far, and early stopping goes by that.
    pub(super) fn is_best(&self) -> bool {
        self.patience.is_some() && self.since_best() == Some(0)
    }

    /// Whether losses at the first depth have not become better for too long.
    pub(super) fn is_over(&self) -> bool {
        match (self.patience, self.since_best()) {
            (Some(patience), Some(since)) => since >= patience,
            _ => false,
        }
    }

    /// Whether the weights of the best step are the result.
    pub(super) fn takes_best(&self) -> bool {
        self.patience.is_some() && !self.rows.is_empty()
    }

    /// Validations behind the best one.
    fn since_best(&self) -> Option<u64> {
        let losses = self.rows.iter().map(|row| row.losses[0]);
        let best = losses
            .enumerate()
            .fold(None, |best, (at, loss)| match best {
                Some((_, least)) if least <= loss => best,
                _ => Some((at, loss)),
            });
        best.map(|(at, _)| (self.rows.len() - 1 - at) as u64)
    }

    /// A curve for each depth.
    pub(super) fn series(&self) -> Vec<LossSeries> {
        let depths = self.depths.iter().enumerate();
        depths
            .map(|(at, (name, _))| LossSeries {
                name: format!("validation, {name}"),
                points: self
                    .rows
                    .iter()
                    .map(|row| (row.step as f64, row.losses[at]))
                    .collect(),
            })
            .collect()
    }

    /// Takes up the rows of steps that the checkpoint has.
    fn resume(&mut self, step: u64) -> anyhow::Result<()> {
        let text = match std::fs::read(&self.path) {
            Ok(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
            Err(error) => {
                return Err(error).with_context(|| format!("cannot read {}", self.path.display()));
            }
        };
        // Of other depths there is nothing to go on with.
        if text.lines().next() == Some(self.header().as_str()) {
            for line in text.lines().skip(1) {
                let mut cells = line.split(',');
                let at = cells.next().and_then(|cell| cell.parse::<u64>().ok());
                let losses: Option<Vec<f64>> = cells.map(|cell| cell.parse().ok()).collect();
                if let (Some(at), Some(losses)) = (at, losses)
                    && at <= step
                    && losses.len() == self.depths.len()
                {
                    self.rows.push(Row { step: at, losses });
                }
            }
        }
        self.write()
    }

    fn header(&self) -> String {
        let names = self.depths.iter().map(|(name, _)| name.replace(',', ";"));
        let names: Vec<String> = names.collect();
        format!("step,{}", names.join(","))
    }

    fn write(&self) -> anyhow::Result<()> {
        let mut text = Vec::new();
        writeln!(text, "{}", self.header())?;
        for row in &self.rows {
            let losses: Vec<String> = row.losses.iter().map(f64::to_string).collect();
            writeln!(text, "{},{}", row.step, losses.join(","))?;
        }
        Ok(skipbench_fs::write_whole(&self.path, &text)?)
    }
}
