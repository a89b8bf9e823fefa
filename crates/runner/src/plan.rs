//! From an experiment to the cells that it asks for.

use crate::adapters;
use crate::cell;
use crate::digest::CheckpointDigest;
use crate::experiment::{
    Experiment, ExperimentArgs, Match, ModelEntry, PaperEntry, Shard, TaskKind,
};
use crate::identity::{Asked, CellIdentity, this_machine};
use crate::models::{self, Download};
use crate::prompter;
use crate::task::{Given, TaskData, TaskError};
use anyhow::{Context, anyhow, bail};
use candle_core::Device;
use serde::Serialize;
use skipbench_machine::Machine;
use skipbench_model::{
    Backend, CausalLm, Decoder, ModelConfig, ShapeTokenizer, TextTokenizer, Tokenize,
};
use skipbench_record::{Beside, PlannedCell, RunInfo, VERSION};
use skipbench_report::BAND;
use skipbench_strategy::{KvFill, StrategySpec};
use std::sync::Arc;

/// Everything that an experiment runs, in order.
#[derive(Debug)]
pub struct Plan {
    /// The experiment.
    pub experiment: Experiment,
    /// Its models.
    pub models: Vec<ModelPlan>,
    /// Its tasks.
    pub tasks: Vec<TaskData>,
    /// The machine that it runs on.
    pub machine: Machine,
    /// A paper's table that the report sets it beside.
    pub paper: Option<Beside>,
    /// What to run.
    pub cells: Vec<Cell>,
}

/// A model of the experiment, not loaded yet.
#[derive(Debug, Clone)]
pub struct ModelPlan {
    /// Name in tables.
    pub name: String,
    /// What was asked for, its path that of a folder or file of this machine.
    pub entry: ModelEntry,
    /// Decoder layers.
    pub n_layers: usize,
    /// Largest number of positions, where there is one.
    pub max_positions: Option<usize>,
    /// Hashes of the weights, the tokenizer and the configuration.
    pub(crate) digest: CheckpointDigest,
    /// What of it is yet to be downloaded.
    pub(crate) download: Option<Download>,
    /// Its weights are random numbers, so that nothing it says can be scored.
    pub(crate) is_shape: bool,
}

/// Whether the weights of a model of the hub are downloaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Weights {
    /// Before anything else.
    Needed,
    /// No; only the settings and the tokenizer are, which are small.
    LookedAt,
}

/// One model on one task under one strategy at one batch size.
#[derive(Debug, Clone, Serialize)]
pub struct Cell {
    /// Hash of everything that determines the answers.
    pub id: String,
    /// What the result depends on.
    #[serde(skip)]
    pub(crate) identity: CellIdentity,
    /// Its place among all cells of the experiment.
    #[serde(skip)]
    pub place: usize,
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
    pub fn of(args: &ExperimentArgs, weights: Weights) -> anyhow::Result<Self> {
        let experiment = args.read()?;
        let at = |key: &str, index: usize| format!("{key}.{index}");
        let models = experiment.models.iter().enumerate().map(|(index, entry)| {
            ModelPlan::open(entry, weights)
                .map_err(|error| experiment.fault(&at("models", index), error))
        });
        let models = models.collect::<anyhow::Result<Vec<_>>>()?;
        let tasks = experiment.tasks.iter().enumerate().map(|(index, entry)| {
            TaskData::open(entry).map_err(|TaskError { key, error }| {
                let path = at("tasks", index);
                match key {
                    "" => experiment.fault(&path, error),
                    key => experiment.fault(&format!("{path}.{key}"), error),
                }
            })
        });
        let tasks = tasks.collect::<anyhow::Result<Vec<_>>>()?;
        told_apart("models", models.iter().map(|model| &model.name))?;
        told_apart("tasks", tasks.iter().map(|task| &task.name))?;
        for (model, shape) in models
            .iter()
            .enumerate()
            .filter(|(_, model)| model.is_shape)
        {
            let mut strategies = experiment.strategies_of(&shape.entry).iter();
            if let Some(oracle) = strategies.find(|strategy| strategy.is_oracle()) {
                let error = anyhow!(
                    "an oracle is about what a model says, and `{}` says nothing; leave it out, or run a checkpoint",
                    shape.name
                );
                return Err(experiment.fault(&experiment.path_of(model, oracle), error));
            }
        }
        for model in &models {
            for (index, task) in tasks.iter().enumerate() {
                if model.is_shape && experiment.tasks[index].kind != TaskKind::Generate {
                    let error = anyhow!(
                        "`{}` says nothing that could be scored; it takes tasks of `kind: generate`",
                        model.name
                    );
                    return Err(experiment.fault(&format!("tasks.{index}.kind"), error));
                }
                model
                    .check_room(task, &experiment)
                    .map_err(|error| experiment.fault(&at("tasks", index), error))?;
                if task.form.chat.is_some() {
                    prompter::chat_template(&model.entry.path)
                        .map_err(|error| experiment.fault(&format!("tasks.{index}.chat"), error))?;
                }
            }
        }
        let paper = experiment.paper.as_ref().map(PaperEntry::read);
        let paper = paper
            .transpose()
            .map_err(|error| experiment.fault("paper.figures", error))?;
        if let Some(paper) = &experiment.paper {
            let names: Vec<&str> = models.iter().map(|model| model.name.as_str()).collect();
            paper
                .check_full_of(&names)
                .map_err(|error| experiment.fault("paper.full-of", error))?;
        }
        let mut plan = Plan {
            paper,
            machine: this_machine(experiment.device),
            experiment,
            models,
            tasks,
            cells: Vec::new(),
        };
        plan.cells = plan.cells()?;
        Ok(plan)
    }

    /// Leaves the cells of a share alone.
    pub fn keep(&mut self, shard: Shard) {
        self.cells.retain(|cell| shard.holds(cell.place));
    }

    /// Leaves the times out, and with them the cells whose layers the clock settles.
    pub(crate) fn leave_times(&mut self) {
        if self.experiment.matching == Match::Wallclock {
            self.cells.clear();
        }
        for cell in &mut self.cells {
            cell.timed = false;
            cell.identity.times = None;
        }
    }

    fn cells(&self) -> anyhow::Result<Vec<Cell>> {
        let specs = (0..self.models.len()).map(|model| self.specs(model));
        let specs = specs.collect::<anyhow::Result<Vec<_>>>()?;
        self.check_kv_fills(&specs)?;
        let mut cells = Vec::new();
        for (model, (model_plan, specs)) in self.models.iter().zip(&specs).enumerate() {
            let specs = self.with_kv_fills(specs);
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
                            let timed = self.experiment.timing.batches > 0
                                && !spec.is_oracle()
                                && leads_its_band(spec, &specs);
                            let asked = Asked {
                                experiment: &self.experiment,
                                model: model_plan,
                                task: task_data,
                                strategy: spec,
                                batch_size,
                                beams,
                                timed,
                            };
                            let identity = CellIdentity::of(asked, &self.machine);
                            cells.push(Cell {
                                id: identity.answers.id(),
                                identity,
                                place: cells.len(),
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

    /// Names of the metrics that a model is scored by on a task; none where what it says means nothing.
    pub(crate) fn metric_names(&self, model: usize, task: usize) -> Vec<String> {
        match self.models[model].is_shape {
            true => Vec::new(),
            false => self.tasks[task].metric_names(),
        }
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

    /// Strategies of a model with their targets, the full network always among them.
    fn specs(&self, model: usize) -> anyhow::Result<Vec<StrategySpec>> {
        let experiment = &self.experiment;
        let plan = &self.models[model];
        let mut specs = vec![StrategySpec::full()];
        for spec in experiment.strategies_of(&plan.entry) {
            // One that has its target, or can do without, runs as it is.
            if spec.target_speedup().is_some() || spec.validate(plan.n_layers).is_ok() {
                specs.push(spec.clone());
            } else {
                let speedups = experiment.speedups.iter();
                specs.extend(speedups.map(|&speedup| spec.with_target(speedup)));
            }
        }
        let beams = match experiment.beams.iter().any(|&beams| beams > 1) {
            true => 2,
            false => 1,
        };
        for spec in &specs {
            spec.validate(plan.n_layers)
                .with_context(|| format!("strategy `{spec}` with model `{}`", plan.name))
                .and_then(|()| Ok(spec.check_search(beams, false, experiment.no_repeat_ngram)?))
                .map_err(|error| experiment.fault(&experiment.path_of(model, spec), error))?;
        }
        let members = specs.into_iter();
        Ok(members
            .flat_map(|spec| spec.members().unwrap_or_else(|| vec![spec]))
            .collect())
    }

    /// The KV fills of the experiment that a strategy is run with: none where it leaves no choice. An oracle's own cache is exact,
    /// and a fill that was asked for by name stands.
    fn fills_of(&self, spec: &StrategySpec) -> Vec<KvFill> {
        let open = !spec.is_oracle() && !spec.has_own_kv_fill();
        let fills = self.experiment.kv_fills.iter().copied();
        fills
            .filter(|fill| open && spec.kv_fills().contains(fill))
            .collect()
    }

    fn check_kv_fills(&self, specs: &[Vec<StrategySpec>]) -> anyhow::Result<()> {
        for fill in &self.experiment.kv_fills {
            let mut specs = specs.iter().flatten();
            if !specs.any(|spec| self.fills_of(spec).contains(fill)) {
                let error = anyhow!(
                    "`kv-fills` holds `{fill}`, which none of the strategies can use; `early-exit` and `shallow-deep` can use propagate, copy, mask and deferred"
                );
                return Err(self.experiment.fault("kv-fills", error));
            }
        }
        Ok(())
    }

    /// Every strategy that leaves a choice with each of the experiment's KV fills that it can use, without repetition.
    fn with_kv_fills(&self, specs: &[StrategySpec]) -> Vec<StrategySpec> {
        let mut unique: Vec<StrategySpec> = Vec::new();
        for spec in specs {
            let fills = self.fills_of(spec);
            let filled = match fills.is_empty() {
                true => vec![spec.clone()],
                false => fills.iter().map(|&fill| spec.with_kv_fill(fill)).collect(),
            };
            for spec in filled {
                if !unique.contains(&spec) {
                    unique.push(spec);
                }
            }
        }
        unique
    }

    /// What `run.json` says of it.
    pub fn info(&self) -> anyhow::Result<RunInfo> {
        let experiment = &self.experiment;
        Ok(RunInfo {
            version: VERSION,
            name: experiment.name.clone(),
            title: experiment
                .title
                .clone()
                .unwrap_or_else(|| experiment.name.clone()),
            notes: experiment.notes.clone(),
            seed: experiment.seed,
            written: cell::written(self),
            experiment: serde_json::to_value(experiment)?,
            models: self
                .models
                .iter()
                .map(|model| cell::model_record(self, model))
                .collect(),
            tasks: self
                .tasks
                .iter()
                .map(|task| cell::task_record(task, None))
                .collect(),
            cells: self
                .cells
                .iter()
                .map(|cell| PlannedCell {
                    id: cell.id.clone(),
                    place: cell.place,
                    content: cell.identity.content.id(),
                    name: cell.name(),
                    model: cell.model_name.clone(),
                    task: cell.task_name.clone(),
                    metrics: self.metric_names(cell.model, cell.task),
                })
                .collect(),
            paper: self.paper.clone(),
        })
    }
}

impl Cell {
    /// The cell in words: `model task batch 8 unified@2`.
    pub fn name(&self) -> String {
        let beams = match self.beams {
            1 => String::new(),
            beams => format!(" {beams} beams"),
        };
        format!(
            "{} {} batch {}{beams} {}",
            self.model_name, self.task_name, self.batch_size, self.strategy
        )
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

/// Whether a strategy is none of a random band, or the first of its own.
fn leads_its_band(spec: &StrategySpec, specs: &[StrategySpec]) -> bool {
    let mut band = specs
        .iter()
        .filter(|other| spec.band().is_some() && other.band() == spec.band());
    band.clone().count() < BAND || band.next() == Some(spec)
}

impl ModelPlan {
    fn open(entry: &ModelEntry, weights: Weights) -> anyhow::Result<Self> {
        let located = match weights {
            Weights::Needed => models::fetch_located(&entry.path)?,
            Weights::LookedAt => models::look(&entry.path)?,
        };
        let config = ModelConfig::open(&located.path)?;
        let shape = entry.shape.as_ref().map(|shape| shape.name().to_owned());
        let is_shape = shape.is_some();
        let adapter = entry.adapter.as_deref();
        let name = entry
            .name
            .clone()
            .or(shape)
            .unwrap_or_else(|| match adapter {
                None => located.name.clone(),
                Some(adapter) => {
                    let adapter = adapter.file_name().unwrap_or_default().to_string_lossy();
                    format!("{}+{adapter}", located.name)
                }
            });
        let absent = located.download.as_ref();
        let absent = absent.map_or(&[][..], |download| &download.files);
        let mut digest = CheckpointDigest::with(&located.path, absent)?;
        if let Some(adapter) = adapter {
            digest = adapters::adapted(digest, adapter)?;
        }
        Ok(Self {
            // Wherever the row goes, it says what it is.
            name: match is_shape {
                true => format!("{name} (random weights)"),
                false => name,
            },
            is_shape,
            n_layers: config.n_layers,
            max_positions: config.max_positions,
            digest,
            entry: ModelEntry {
                path: located.path,
                ..entry.clone()
            },
            download: located.download,
        })
    }

    /// Reads the model with its tokenizer, or makes it where it is a shape alone.
    ///
    /// # Errors
    /// A checkpoint that cannot be used, or one that the memory does not hold.
    pub(crate) fn load(
        &self,
        experiment: &Experiment,
        device: &Device,
    ) -> anyhow::Result<(Decoder, Arc<dyn Tokenize>)> {
        let weights = experiment.dtype_of(&self.entry).map(Into::into);
        let adapter = self.entry.adapter.as_deref();
        let path = &self.entry.path;
        let decoder = Decoder::load_adapted(path, adapter, device, weights, Backend::Auto);
        let decoder = decoder.with_context(|| format!("model `{}`", self.name))?;
        let decoder = decoder.with_kv_type(experiment.kv_dtype_of(&self.entry).map(Into::into));
        let tokenizer = self.tokenizer(decoder.sizes().vocab_size)?;
        Ok((decoder, tokenizer))
    }

    /// What turns texts into ids for a vocabulary of this size.
    ///
    /// # Errors
    /// A checkpoint without a tokenizer, or one of another model.
    pub(crate) fn tokenizer(&self, vocab_size: usize) -> anyhow::Result<Arc<dyn Tokenize>> {
        Ok(match self.is_shape {
            true => Arc::new(ShapeTokenizer::new(vocab_size)),
            false => Arc::new(TextTokenizer::load(&self.entry.path, vocab_size)?),
        })
    }

    /// Refuses answers that cannot fit behind a prompt of a single token; how long prompts are shows when they are tokenized.
    fn check_room(&self, task: &TaskData, experiment: &Experiment) -> anyhow::Result<()> {
        if let Given::Texts(_, windows) = &task.given {
            let window = windows.window(self.max_positions);
            window.with_context(|| format!("model `{}`", self.name))?;
        }
        let Some(limit) = self.max_positions else {
            return Ok(());
        };
        let timed = match experiment.timing.batches {
            0 => 0,
            _ => experiment.timing.new_tokens,
        };
        let answered = match &task.given {
            Given::Nothing => task.max_new_tokens,
            Given::Questions(_) | Given::Texts(..) => 0,
        };
        let asked = [
            (
                format!("`max-new-tokens` of task `{}`", task.name),
                answered,
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
