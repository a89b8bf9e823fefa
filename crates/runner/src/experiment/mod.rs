//! The YAML experiment: models x tasks x strategies x target speedups x batch sizes.

mod args;
mod check;
mod device;
mod dtype;
mod kinds;
mod model;
mod paper;
mod task;
mod timing;

pub use args::{ExperimentArgs, Shard, ShardArgs};
pub(crate) use check::{MAX_BATCH_SIZE, MAX_BEAMS, MAX_NEW_TOKENS, MAX_PROMPTS};
pub use device::{DeviceId, DeviceName};
pub use dtype::{DtypeName, KvDtypeName};
pub use kinds::{Choices, SamplesFormat, ScoringMode, TaskKind};
pub use model::{ModelEntry, ShapeEntry};
pub use paper::PaperEntry;
pub use task::{ChatEntry, Draw, FewShotEntry, Fields, Limit, Names, SpecialTokensRule, TaskEntry};
pub use timing::TimingEntry;

use crate::yaml::Document;
use crate::{layer_files, models};
use check::Misfit;
use schemars::{JsonSchema, Schema};
use serde::{Deserialize, Serialize};
use skipbench_model::WeightType;
use skipbench_strategy::{KvFill, StrategySpec};
use std::path::{Path, PathBuf};

/// An experiment as written by a user. Relative paths are taken from the YAML file's folder.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
#[schemars(transform = whole_unless_extended)]
pub struct Experiment {
    /// Another experiment file, by its path from this one's folder, which this one is laid over: maps key by key, lists
    /// and single values whole. Paths in it stay relative to its own folder.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub extends: Option<PathBuf>,
    /// Short name: the folder of the results and a column of the table.
    pub name: String,
    /// Heading of the report.
    #[serde(default)]
    pub title: Option<String>,
    /// What a reader of the report must know, a sentence or two each; the report prints them above its tables.
    #[serde(default)]
    pub notes: Vec<String>,
    /// Models to run, one after another.
    pub models: Vec<ModelEntry>,
    /// Tasks to run each of them on.
    pub tasks: Vec<TaskEntry>,
    /// Strategies, as short forms (`unified:even`) or maps; one without a speedup is run at each of `speedups`.
    pub strategies: Vec<StrategySpec>,
    /// Target speedups, as ratios from 1 to 1000: 2 asks for half of the full network's layers, or of its time.
    #[serde(default = "default_speedups")]
    pub speedups: Vec<f64>,
    /// What a target speedup means: a share of the layers, or of the time on this machine.
    #[serde(default, rename = "match")]
    pub matching: Match,
    /// KV fills to run every strategy with that leaves a choice and was given none; if not given, each keeps its own.
    #[serde(default)]
    pub kv_fills: Vec<KvFill>,
    /// Batch sizes, in prompts from 1 to 4096; every strategy is run at each.
    #[serde(default = "default_batch_sizes")]
    pub batch_sizes: Vec<usize>,
    /// Beams to search with, from 1 to 64; 1 is greedy decoding. Every strategy is run with each.
    #[serde(default = "default_beams")]
    pub beams: Vec<usize>,
    /// A beam search divides a finished answer's log-probability by its length in tokens to this power, from -10 to 10.
    #[serde(default = "default_length_penalty")]
    pub length_penalty: f64,
    /// No n-gram of this many tokens occurs twice in prompt and answer together; 0 for no such rule.
    #[serde(default)]
    pub no_repeat_ngram: usize,
    /// Where to compute.
    #[serde(default)]
    pub device: DeviceName,
    /// GPUs of this machine that share the cells, such as `[cuda:0, cuda:1]`, each with a worker of its own; `device` follows
    /// from it. If not given, the first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub devices: Vec<DeviceId>,
    /// What weights are kept in; the default is f32 on a CPU, of a GGUF file too, and the checkpoint's own type on a GPU. Whatever it is,
    /// a CPU computes in f32, but for products with weights in blocks, which are of 8-bit integers.
    #[serde(default)]
    pub dtype: Option<DtypeName>,
    /// What the KV cache is kept in; the default is f32 on a CPU, and the type that is computed in on a GPU. Keys and values are
    /// rounded to it when they are written; a CPU computes with them in f32.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kv_dtype: Option<KvDtypeName>,
    /// Seed of everything that is drawn: the order of timed blocks, resamples of intervals, calibration.
    #[serde(default = "default_seed")]
    pub seed: u64,
    /// How the timing pass goes.
    #[serde(default)]
    pub timing: TimingEntry,
    /// A paper's table that the report sets the run beside, row by row.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub paper: Option<PaperEntry>,
    /// Folder of the results; the default is `runs/<name>` in the current folder.
    #[serde(default)]
    pub out: Option<PathBuf>,
    /// Where each value was written.
    #[serde(skip)]
    document: Document,
}

/// What a target speedup means.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Match {
    /// A share of the layers, as in the papers.
    #[default]
    Layers,
    /// A share of the decode time, measured on the calibration prompts: static strategies get as many layers as meet it,
    /// dynamic ones the threshold.
    Wallclock,
}

fn default_speedups() -> Vec<f64> {
    vec![2.0]
}
fn default_batch_sizes() -> Vec<usize> {
    vec![1]
}
fn default_beams() -> Vec<usize> {
    vec![1]
}
fn default_length_penalty() -> f64 {
    1.0
}
fn default_seed() -> u64 {
    1
}
impl Experiment {
    /// Reads an experiment with what it `extends`, sets `overrides` (`key.path=value`) in it, and makes its paths
    /// independent of the folder of its file.
    ///
    /// # Errors
    /// A file that cannot be read, YAML that does not parse, an unknown or missing key, a value of the wrong kind or out of
    /// its range: each with file, line and column.
    pub fn read(path: &Path, overrides: &[String]) -> anyhow::Result<Self> {
        let document = Document::read(path, overrides)?;
        let mut experiment: Experiment = document.to()?;
        experiment
            .check()
            .map_err(|misfit| document.fault(&misfit.path, misfit.message))?;
        for (index, model) in experiment.models.iter_mut().enumerate() {
            let folder = document.folder_of(&format!("models.{index}.path"));
            model.path = match &model.shape {
                Some(shape) => shape.path(),
                None => models::join(folder, &model.path),
            };
            if let Some(adapter) = &mut model.adapter {
                let folder = document.folder_of(&format!("models.{index}.adapter"));
                *adapter = folder.join(&*adapter);
            }
        }
        for (key, strategy) in experiment.strategies_mut() {
            *strategy = layer_files::read(strategy, document.folder_of(&key))
                .map_err(|error| document.fault(&key, format!("{error:#}")))?;
        }
        if let Some(paper) = &mut experiment.paper {
            paper.figures = document.folder_of("paper.figures").join(&paper.figures);
        }
        for (index, task) in experiment.tasks.iter_mut().enumerate() {
            task.resolve(|key| {
                document
                    .folder_of(&format!("tasks.{index}.{key}"))
                    .to_path_buf()
            });
        }
        if let Some(first) = experiment.devices.first() {
            experiment.device = first.kind();
        }
        experiment.document = document;
        Ok(experiment)
    }

    /// The same with every path absolute and nothing left to other files or to the command line, to be written down and
    /// read again from anywhere on a machine that sees the same files.
    ///
    /// # Errors
    /// A current folder that is gone.
    pub(crate) fn frozen(&self) -> std::io::Result<Self> {
        let mut frozen = self.clone();
        (frozen.extends, frozen.out) = (None, None);
        let here = std::env::current_dir()?;
        for model in frozen.models.iter_mut().filter(|m| m.shape.is_none()) {
            model.path = models::join(&here, &model.path);
            model.adapter = model.adapter.as_ref().map(|adapter| here.join(adapter));
        }
        if let Some(paper) = &mut frozen.paper {
            paper.figures = here.join(&paper.figures);
        }
        for task in &mut frozen.tasks {
            task.extends = None;
            let examples = task.few_shot.iter_mut();
            let examples = examples.flat_map(|few_shot| {
                std::iter::once(&mut few_shot.from).chain(&mut few_shot.reference)
            });
            let items = [&mut task.source, &mut task.reference, &mut task.calibration];
            for path in items.into_iter().flatten().chain(examples) {
                *path = models::join_data(&here, path);
            }
        }
        Ok(frozen)
    }

    /// As a file that is read gives it again: a model of a shape has no path there.
    pub(crate) fn as_written(&self) -> Self {
        let mut written = self.clone();
        for model in written.models.iter_mut().filter(|m| m.shape.is_some()) {
            model.path = PathBuf::new();
        }
        written
    }

    /// The error that says where the value at a key path, such as `tasks.0`, was written, and what is wrong with it.
    pub(crate) fn fault(&self, path: &str, error: impl Into<anyhow::Error>) -> anyhow::Error {
        self.document.fault(path, format!("{:#}", error.into()))
    }

    /// The strategies of a model.
    pub(crate) fn strategies_of<'a>(&'a self, model: &'a ModelEntry) -> &'a [StrategySpec] {
        match model.strategies.is_empty() {
            true => &self.strategies,
            false => &model.strategies,
        }
    }

    /// All strategies that are written down, with their key paths.
    fn strategies_mut(&mut self) -> impl Iterator<Item = (String, &mut StrategySpec)> {
        let models = self.models.iter_mut().enumerate();
        let models = models.map(|(index, model)| {
            let key = format!("models.{index}.strategies");
            (key, &mut model.strategies)
        });
        std::iter::once(("strategies".to_owned(), &mut self.strategies))
            .chain(models)
            .flat_map(|(key, strategies)| {
                let strategies = strategies.iter_mut().enumerate();
                strategies.map(move |(index, strategy)| (format!("{key}.{index}"), strategy))
            })
    }

    /// The key path of a strategy of the model at `model`, with whatever target it was given since.
    pub(crate) fn path_of(&self, model: usize, spec: &StrategySpec) -> String {
        let model_entry = &self.models[model];
        let key = match model_entry.strategies.is_empty() {
            true => "strategies".to_owned(),
            false => format!("models.{model}.strategies"),
        };
        let written = self.strategies_of(model_entry).iter().position(|written| {
            let targeted = spec
                .target_speedup()
                .map(|speedup| written.with_target(speedup));
            written == spec || targeted.as_ref() == Some(spec)
        });
        written.map_or(key.clone(), |index| format!("{key}.{index}"))
    }

    /// Folder of the results.
    pub fn out_dir(&self) -> PathBuf {
        self.out
            .clone()
            .unwrap_or_else(|| Path::new("runs").join(&self.name))
    }

    /// What the weights of one of the models are to be kept in, where it is said.
    pub(crate) fn dtype_of(&self, model: &ModelEntry) -> Option<DtypeName> {
        model.dtype.or(self.dtype)
    }

    /// What the KV cache of one of the models is to be kept in, where it is said.
    pub(crate) fn kv_dtype_of(&self, model: &ModelEntry) -> Option<KvDtypeName> {
        model.kv_dtype.or(self.kv_dtype)
    }

    /// What the weights of one of the models are kept in, for a record.
    pub(crate) fn dtype_name(&self, model: &ModelEntry) -> String {
        match (self.dtype_of(model), self.device) {
            (Some(DtypeName::Stored), _) | (None, DeviceName::Cuda) => "as stored",
            (None, DeviceName::Cpu) => "f32",
            (Some(dtype), _) => WeightType::from(dtype).name(),
        }
        .to_owned()
    }
}

/// Parses YAML that messages call `path`.
///
/// # Errors
/// YAML that does not parse or does not fit, with line, column and the nearest key where one is not known.
pub fn parse_yaml<T: serde::de::DeserializeOwned>(text: &str, path: &Path) -> anyhow::Result<T> {
    Document::parse(text, &path.display().to_string())?.to()
}

/// A file that extends another need not say what the other does.
fn whole_unless_extended(schema: &mut Schema) {
    if let Some(required) = schema.remove("required") {
        let alternatives = serde_json::json!([{"required": required}, {"required": ["extends"]}]);
        schema.insert("anyOf".to_owned(), alternatives);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(more: &str) -> Result<Experiment, String> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("e.yaml");
        let text = format!(
            "name: e\nmodels: [{{path: m}}]\ntasks: [{{builtin: translation}}]\nstrategies: [full]\n{more}"
        );
        std::fs::write(&path, text).unwrap();
        Experiment::read(&path, &[]).map_err(|error| {
            let text = format!("{error:#}");
            text.replace(&format!("{}/", folder.path().display()), "")
        })
    }

    /// The experiments in a folder and those in it.
    fn experiments(folder: &Path) -> Vec<PathBuf> {
        let entries = std::fs::read_dir(folder).unwrap();
        let entries = entries.map(|entry| entry.unwrap().path());
        entries
            .flat_map(|path| match path.is_dir() {
                true => experiments(&path),
                false => vec![path],
            })
            .filter(|path| path.extension().is_some_and(|end| end == "yaml"))
            .filter(|path| Experiment::read(path, &[]).is_ok())
            .collect()
    }

    #[test]
    fn an_experiment_that_is_written_down_reads_the_same_anywhere() {
        let folder = tempfile::tempdir().unwrap();
        let full = "name: e\nmodels: [{path: m, strategies: [top@2, unified]}, {path: hub:a/b, kv-dtype: f16}]\ntasks: [{builtin: translation, metrics: [chrf, bleu], stop: [x]}, {name: t, source: s.txt, reference: s.txt, prompt: \"a {{ source }}\", few-shot: {k: 1, from: s.txt, reference: s.txt}, calibration: s.txt}]\nstrategies: [unified:even@2, {early-exit: {speedup: 2, kv-fill: deferred}}, {random: {seeds: 12, speedup: 2}}, self-speculative]\nkv-fills: [propagate]\ndevices: [cuda:1, cuda:0]\ntiming: {precision: 2.5%}\nlength-penalty: 0.6\nkv-dtype: bf16\nnotes: [\"a: b\"]\nout: here\n";
        std::fs::write(folder.path().join("e.yaml"), full).unwrap();
        let mut all = experiments(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../../experiments"));
        assert!(all.len() > 3, "{all:?}");
        all.push(folder.path().join("e.yaml"));
        for path in all {
            let frozen = Experiment::read(&path, &[]).unwrap().frozen().unwrap();
            let value = serde_json::to_value(&frozen).unwrap();
            let written = folder.path().join("written.json");
            std::fs::write(&written, serde_json::to_vec(&frozen.as_written()).unwrap()).unwrap();
            let read = Experiment::read(&written, &[]).unwrap();
            assert_eq!(
                serde_json::to_value(&read).unwrap(),
                value,
                "{}",
                path.display()
            );
            assert!(read.models.iter().all(|m| m.path.is_absolute()
                || m.shape.is_some()
                || m.path.to_string_lossy().starts_with("hub:")));
        }
    }

    #[test]
    fn a_precision_is_percent_or_a_number() {
        let precision = |text: &str| read(&format!("timing: {{precision: {text}}}\n"));
        assert_eq!(precision("1%").unwrap().timing.precision, Some(0.01));
        assert_eq!(
            precision("\"2.5 %\"").unwrap().timing.precision,
            Some(0.025)
        );
        assert_eq!(precision("0.05").unwrap().timing.precision, Some(0.05));
        assert_eq!(precision("").unwrap().timing.precision, None);
        for wrong in ["1", "0", "90%", "-1%", "one", ".nan", "%", "[1]"] {
            let error = precision(wrong).unwrap_err();
            assert!(error.starts_with("e.yaml:5:21: "), "{error}");
        }
    }

    #[test]
    fn a_value_out_of_its_range_is_shown_where_it_stands() {
        insta::assert_snapshot!(
            [
                "timing: {batches: 18446744073709551615}",
                "timing: {batches: 99999999999}",
                "timing:\n  repeats: 100000000000",
                "timing: {batches: 10000, repeats: 10000}",
                "timing: {repeats: 0}",
                "timing: {new-tokens: 1}",
                "timing: {warm-up: 99999999999}",
                "timing: {precision: 1%, max-repeats: 1}",
                "timing: {max-repeats: 8}",
                "speedups: [2, 1e308]",
                "speedups: [.nan]",
                "speedups: [0.5]",
                "speedups: 2",
                "speedups: []",
                "batch-sizes: [1, 0]",
                "batch-sizes: [2, 1, 2]",
                "beams: [65]",
                "length-penalty: 1e308",
                "match: wallclock\ntiming: {batches: 0}",
                "out: \"\"",
                "dtype: fp16",
                "kv-fills: [propagte]",
            ]
            .map(|more| read(more).unwrap_err())
            .join("\n\n")
        );
    }

    #[test]
    fn a_wrong_task_is_shown_where_it_stands() {
        let task = |task: &str| {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("e.yaml");
            let text =
                format!("name: e\nmodels: [{{path: m}}]\ntasks:\n  - {task}\nstrategies: [full]\n");
            std::fs::write(&path, text).unwrap();
            let error = Experiment::read(&path, &[]).unwrap_err();
            format!("{error:#}").replace(&format!("{}/", folder.path().display()), "")
        };
        insta::assert_snapshot!(
            [
                "{builtin: tranlation}",
                "{builtin: translation, metrics: [bleu, blue]}",
                "{builtin: translation, max-new-tokens: 4000000000}",
                "{builtin: translation, prompts: 0}",
                "{builtin: translation, prompt: \"{{ source }}\"}",
                "{source: a, reference: b}",
                "{name: t, source: a}",
                "{name: t, source: a, reference: b, prompt: \"translate\"}",
                "{name: t, source: a, reference: b, prompt: \"{source}\"}",
                "{name: t, source: a, reference: b, prompt: \"{{ source\"}",
                "{name: t, source: a, reference: b, fields: {source: x}}",
                "{name: t, source: a.jsonl, reference: b}",
                "{name: t, source: a.jsonl, fields: {sourc: x}}",
                "{name: t, source: a.jsonl, fields: {reference: []}}",
                "{name: t, source: a.jsonl, prompts: every}",
                "{name: t, source: a.jsonl, prompts: 2000000}",
                "{name: t, source: a.jsonl, stop: [\"\"]}",
                "{name: t, source: a.jsonl, stop: \"x\"}",
                "{name: t, source: a.jsonl, chat: maybe}",
                "{name: t, source: a.jsonl, chat: {system: 3}}",
                "{name: t, source: a.jsonl, chat: true, special-tokens: none}",
                "{name: t, source: a.jsonl, special-tokens: some}",
                "{name: t, source: a.jsonl, few-shot: {k: 0, from: b.jsonl}}",
                "{name: t, source: a.jsonl, few-shot: {k: 3}}",
                "{name: t, source: a, reference: b, few-shot: {k: 3, from: c}}",
                "{builtin: translation, few-shot: {k: 3, from: c}}",
            ]
            .map(task)
            .join("\n\n")
        );
    }
}
