//! From an experiment to the cells that it asks for.

use crate::experiment::{Experiment, Match, ModelEntry};
use crate::task::TaskData;
use anyhow::{Context, bail};
use serde::Serialize;
use serde_json::json;
use sha2::{Digest, Sha256};
use skipbench_model::ModelConfig;
use skipbench_strategy::StrategySpec;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

/// Changed whenever the same cell would give another record, so that old results are not reused.
pub(crate) const RECORD_VERSION: u32 = 3;

/// Everything that an experiment runs, in order.
#[derive(Debug)]
pub struct Plan {
    /// The experiment.
    pub experiment: Experiment,
    /// Its models.
    pub models: Vec<ModelPlan>,
    /// Its tasks.
    pub tasks: Vec<TaskData>,
    /// What to run.
    pub cells: Vec<Cell>,
}

/// A model of the experiment, not loaded yet.
#[derive(Debug, Clone)]
pub struct ModelPlan {
    /// Name in tables.
    pub name: String,
    /// Where it lies.
    pub entry: ModelEntry,
    /// Decoder layers.
    pub n_layers: usize,
    /// Largest number of positions, where there is one.
    pub max_positions: Option<usize>,
    /// Hash of the config, the tokenizer and the weights.
    pub digest: String,
}

/// One model on one task under one strategy at one batch size.
#[derive(Debug, Clone, Serialize)]
pub struct Cell {
    /// Hash of everything that determines the result.
    pub id: String,
    /// Index into the models.
    #[serde(skip)]
    pub model: usize,
    /// Index into the tasks.
    #[serde(skip)]
    pub task: usize,
    /// Name of the model.
    #[serde(rename = "model")]
    pub model_name: String,
    /// Name of the task.
    #[serde(rename = "task")]
    pub task_name: String,
    /// The strategy with its target.
    #[serde(serialize_with = "short_form")]
    pub strategy: StrategySpec,
    /// Prompts of a batch.
    pub batch_size: usize,
    /// Beams of the search; 1 is greedy decoding.
    pub beams: usize,
    /// Whether it is timed: the time of an oracle means nothing, and all sets of a random band have as many layers.
    pub timed: bool,
}

fn short_form<S: serde::Serializer>(spec: &StrategySpec, out: S) -> Result<S::Ok, S::Error> {
    out.collect_str(spec)
}

impl Plan {
    /// Reads an experiment and works out its cells. Nothing is loaded but configs and texts; a strategy that cannot
    /// work with a model's number of layers is refused here.
    ///
    /// # Errors
    /// Whatever is wrong with the YAML, a checkpoint folder, a task or a strategy.
    pub fn from_yaml(path: &Path) -> anyhow::Result<Self> {
        let experiment = Experiment::read(path)?;
        let models = experiment
            .models
            .iter()
            .map(ModelPlan::open)
            .collect::<anyhow::Result<Vec<_>>>()?;
        let tasks = experiment
            .tasks
            .iter()
            .map(TaskData::open)
            .collect::<anyhow::Result<Vec<_>>>()?;
        told_apart("models", models.iter().map(|model| &model.name))?;
        told_apart("tasks", tasks.iter().map(|task| &task.name))?;
        for (model, task) in models
            .iter()
            .flat_map(|m| tasks.iter().map(move |t| (m, t)))
        {
            model.check_room(task, &experiment)?;
        }
        let mut plan = Plan {
            experiment,
            models,
            tasks,
            cells: Vec::new(),
        };
        plan.cells = plan.cells()?;
        Ok(plan)
    }

    fn cells(&self) -> anyhow::Result<Vec<Cell>> {
        let specs = self.specs()?;
        let searches = self.experiment.beams.iter().any(|&beams| beams > 1);
        for spec in &specs {
            let beams = if searches { 2 } else { 1 };
            spec.check_search(beams, false, self.experiment.no_repeat_ngram)?;
        }
        let mut cells = Vec::new();
        for (model, model_plan) in self.models.iter().enumerate() {
            for (task, task_data) in self.tasks.iter().enumerate() {
                if task_data.calibration.is_empty()
                    && let Some((spec, lacks)) = specs
                        .iter()
                        .find_map(|spec| Some((spec, self.lacks(spec, model_plan.n_layers)?)))
                {
                    bail!(
                        "task `{}` has no `calibration` texts, which `{spec}` needs to find {lacks}; give some, or what it is to find",
                        task_data.name
                    );
                }
                for &beams in &self.experiment.beams {
                    for &batch_size in &self.experiment.batch_sizes {
                        for spec in &specs {
                            let timed = !spec.is_oracle() && leads_its_band(spec, &specs);
                            let setting = (batch_size, beams, timed);
                            cells.push(Cell {
                                id: self.id(model_plan, task_data, spec, setting),
                                model,
                                task,
                                model_name: model_plan.name.clone(),
                                task_name: task_data.name.clone(),
                                strategy: spec.clone(),
                                batch_size,
                                beams,
                                timed,
                            });
                        }
                    }
                }
            }
        }
        Ok(cells)
    }

    /// What a strategy has to find on calibration text, if anything.
    fn lacks(&self, spec: &StrategySpec, n_layers: usize) -> Option<&'static str> {
        let timed = self.experiment.matching == Match::Wallclock;
        if spec.knob().is_some() {
            Some("its threshold")
        } else if spec.scoring(n_layers).is_some() {
            Some("the order of its layers")
        } else if spec.wants_expected_length() {
            Some("the expected length of an answer")
        } else if timed && spec.follows_target(n_layers) {
            Some("the layers that meet its target")
        } else {
            None
        }
    }

    /// Strategies with their targets and KV fills, without repetition, the full network always among them.
    fn specs(&self) -> anyhow::Result<Vec<StrategySpec>> {
        let mut specs = vec![StrategySpec::full()];
        for spec in &self.experiment.strategies {
            // One that has its target, or can do without, runs as it is.
            let complete = self
                .models
                .iter()
                .any(|model| spec.validate(model.n_layers).is_ok());
            if complete || spec.target_speedup().is_some() {
                specs.push(spec.clone());
            } else {
                let speedups = self.experiment.speedups.iter();
                specs.extend(speedups.map(|&speedup| spec.with_target(speedup)));
            }
        }
        for (model, spec) in self
            .models
            .iter()
            .flat_map(|m| specs.iter().map(move |s| (m, s)))
        {
            spec.validate(model.n_layers)
                .with_context(|| format!("strategy `{spec}` with model `{}`", model.name))?;
        }
        let specs = specs
            .into_iter()
            .flat_map(|spec| spec.members().unwrap_or_else(|| vec![spec]))
            .collect();
        let mut unique: Vec<StrategySpec> = Vec::new();
        for spec in self.with_kv_fills(specs)? {
            if !unique.contains(&spec) {
                unique.push(spec);
            }
        }
        Ok(unique)
    }

    /// Every strategy that leaves a choice with each of the experiment's KV fills that it can use.
    fn with_kv_fills(&self, specs: Vec<StrategySpec>) -> anyhow::Result<Vec<StrategySpec>> {
        let fills = &self.experiment.kv_fills;
        if fills.is_empty() {
            return Ok(specs);
        }
        // An oracle's own cache is exact, and a fill that was asked for by name stands.
        let open = |spec: &StrategySpec| !spec.is_oracle() && !spec.has_own_kv_fill();
        for fill in fills {
            let uses = |spec: &StrategySpec| spec.kv_fills().contains(fill) && open(spec);
            if !specs.iter().any(uses) {
                bail!(
                    "`kv-fills` holds `{fill}`, which none of the strategies can use; `early-exit` and `shallow-deep` can use propagate, copy, mask and deferred"
                );
            }
        }
        Ok(specs
            .into_iter()
            .flat_map(|spec| {
                let usable = fills
                    .iter()
                    .filter(|fill| spec.kv_fills().contains(fill) && open(&spec));
                let filled: Vec<StrategySpec> =
                    usable.map(|&fill| spec.with_kv_fill(fill)).collect();
                if filled.is_empty() {
                    vec![spec]
                } else {
                    filled
                }
            })
            .collect())
    }

    fn id(
        &self,
        model: &ModelPlan,
        task: &TaskData,
        spec: &StrategySpec,
        (batch_size, beams, timed): (usize, usize, bool),
    ) -> String {
        let experiment = &self.experiment;
        let determines = json!({
            "version": RECORD_VERSION,
            "model": model.digest,
            "task": task.digest(),
            "strategy": spec,
            "batch_size": batch_size,
            "beams": beams,
            "length_penalty": experiment.length_penalty,
            "no_repeat_ngram": experiment.no_repeat_ngram,
            "match": experiment.matching,
            "device": experiment.device,
            "dtype": experiment.dtype,
            "seed": experiment.seed,
            // Where time is matched, it settles the layers of what is not timed as well.
            "timing": (timed || experiment.matching == Match::Wallclock).then_some(&experiment.timing),
            // An oracle of answers goes by the task's main metric.
            "metric": task.metrics.first().filter(|_| spec.is_oracle()).map(ToString::to_string),
        });
        let digest = Sha256::digest(determines.to_string());
        format!("{digest:x}")[..16].to_owned()
    }
}

/// Refuses equal names, which would be mixed in one table.
fn told_apart<'a>(key: &str, names: impl Iterator<Item = &'a String>) -> anyhow::Result<()> {
    let mut seen: Vec<&String> = Vec::new();
    for name in names {
        if seen.contains(&name) {
            bail!("two of the `{key}` are called `{name}`; give one of them another `name`");
        }
        seen.push(name);
    }
    Ok(())
}

/// Sets of a random strategy with the same target from which on they are shown as a band.
pub(crate) const BAND: usize = 3;

/// Whether a strategy is none of a random band, or the first of its own.
fn leads_its_band(spec: &StrategySpec, specs: &[StrategySpec]) -> bool {
    let mut band = specs
        .iter()
        .filter(|other| spec.band().is_some() && other.band() == spec.band());
    band.clone().count() < BAND || band.next() == Some(spec)
}

impl ModelPlan {
    fn open(entry: &ModelEntry) -> anyhow::Result<Self> {
        let config_path = entry.path.join("config.json");
        if !config_path.is_file() {
            bail!(
                "{} is not a checkpoint folder: config.json is missing",
                entry.path.display()
            );
        }
        let config = ModelConfig::read(&config_path)?;
        let name = match &entry.name {
            Some(name) => name.clone(),
            None => entry.path.file_name().map_or_else(
                || "model".to_owned(),
                |name| name.to_string_lossy().into_owned(),
            ),
        };
        Ok(Self {
            name,
            entry: entry.clone(),
            n_layers: config.n_layers,
            max_positions: config.max_positions,
            digest: folder_digest(&entry.path)?,
        })
    }

    /// Refuses answers that cannot fit behind a prompt of a single token; how long prompts are shows when they are tokenized.
    fn check_room(&self, task: &TaskData, experiment: &Experiment) -> anyhow::Result<()> {
        let Some(limit) = self.max_positions else {
            return Ok(());
        };
        let timed = match experiment.timing.batches {
            0 => 0,
            _ => experiment.timing.new_tokens,
        };
        let asked = [
            (
                format!("`max-new-tokens` of task `{}`", task.name),
                task.max_new_tokens,
            ),
            ("`timing.new-tokens`".to_owned(), timed),
        ];
        for (key, tokens) in asked {
            if tokens > limit {
                bail!(
                    "{key} is {tokens}, but model `{}` has {limit} positions for prompt and answer together",
                    self.name
                );
            }
        }
        Ok(())
    }
}

/// Hash of a checkpoint folder: small files whole, of larger ones the length and both ends (16 GB of weights would
/// otherwise be read before every run).
fn folder_digest(dir: &Path) -> anyhow::Result<String> {
    const END: u64 = 1 << 20;
    let read = || format!("cannot read {}", dir.display());
    let mut paths: Vec<_> = std::fs::read_dir(dir)
        .with_context(read)?
        .collect::<Result<Vec<_>, _>>()
        .with_context(read)?
        .into_iter()
        .map(|entry| entry.path())
        .filter(|path| {
            let wanted = ["json", "safetensors"];
            path.is_file()
                && path
                    .extension()
                    .is_some_and(|extension| wanted.iter().any(|wanted| extension == *wanted))
        })
        .collect();
    paths.sort();
    let mut hash = Sha256::new();
    for path in paths {
        let failed = || format!("cannot read {}", path.display());
        let mut file = std::fs::File::open(&path).with_context(failed)?;
        let len = file.metadata().with_context(failed)?.len();
        hash.update(path.file_name().unwrap_or_default().as_encoded_bytes());
        hash.update(len.to_le_bytes());
        let mut bytes = Vec::new();
        (&mut file)
            .take(END)
            .read_to_end(&mut bytes)
            .with_context(failed)?;
        if len > END {
            file.seek(SeekFrom::Start(END.max(len.saturating_sub(END))))
                .with_context(failed)?;
            file.read_to_end(&mut bytes).with_context(failed)?;
        }
        hash.update(&bytes);
    }
    Ok(format!("{:x}", hash.finalize()))
}
