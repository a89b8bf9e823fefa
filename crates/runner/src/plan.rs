//! From an experiment to the cells that it asks for.

use crate::experiment::{Experiment, ModelEntry};
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
const RECORD_VERSION: u32 = 1;

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
    /// Rows of a batch.
    pub batch_size: usize,
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
        let specs = self.specs();
        let mut cells = Vec::new();
        for (model, model_plan) in self.models.iter().enumerate() {
            for spec in &specs {
                spec.validate(model_plan.n_layers).with_context(|| {
                    format!("strategy `{spec}` with model `{}`", model_plan.name)
                })?;
            }
            for (task, task_data) in self.tasks.iter().enumerate() {
                if task_data.calibration.is_empty()
                    && let Some(spec) = specs.iter().find(|spec| spec.knob().is_some())
                {
                    bail!(
                        "task `{}` has no `calibration` texts, which `{spec}` needs to find its threshold; give some, or a `threshold`",
                        task_data.name
                    );
                }
                for &batch_size in &self.experiment.batch_sizes {
                    for spec in &specs {
                        cells.push(Cell {
                            id: self.id(model_plan, task_data, spec, batch_size),
                            model,
                            task,
                            model_name: model_plan.name.clone(),
                            task_name: task_data.name.clone(),
                            strategy: spec.clone(),
                            batch_size,
                        });
                    }
                }
            }
        }
        Ok(cells)
    }

    /// Strategies with their targets, without repetition, the full network always among them.
    fn specs(&self) -> Vec<StrategySpec> {
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
        let mut unique: Vec<StrategySpec> = Vec::new();
        for spec in specs {
            if !unique.contains(&spec) {
                unique.push(spec);
            }
        }
        unique
    }

    fn id(&self, model: &ModelPlan, task: &TaskData, spec: &StrategySpec, batch: usize) -> String {
        let experiment = &self.experiment;
        let determines = json!({
            "version": RECORD_VERSION,
            "model": model.digest,
            "task": task.digest(),
            "strategy": spec,
            "batch_size": batch,
            "device": experiment.device,
            "dtype": experiment.dtype,
            "seed": experiment.seed,
            "timing": experiment.timing,
        });
        let digest = Sha256::digest(determines.to_string());
        format!("{digest:x}")[..16].to_owned()
    }
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
            digest: folder_digest(&entry.path)?,
        })
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
