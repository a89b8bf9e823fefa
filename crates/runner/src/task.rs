//! What a task gives the runner: prompts, references, and prompts to calibrate on.

use crate::digest;
use crate::experiment::TaskEntry;
use crate::load::{FilePairs, read_lines};
use anyhow::bail;
use skipbench_metrics::Metric;
use skipbench_tasks::{DEFAULT_SEED, Split, Task};

/// A task, ready to run.
#[derive(Debug, Clone)]
pub struct TaskData {
    /// Name in tables.
    pub name: String,
    /// One per prompt.
    pub ids: Vec<String>,
    /// Texts given to the model.
    pub prompts: Vec<String>,
    /// The right answers.
    pub references: Vec<String>,
    /// Prompts on which thresholds are calibrated, none of them scored.
    pub calibration: Vec<String>,
    /// Prompts that there are, where the task is a file's first ones.
    pub available: Option<usize>,
    /// Longest answer in tokens.
    pub max_new_tokens: usize,
    /// Metrics, the first being the main one.
    pub metrics: Vec<Metric>,
}

impl TaskData {
    /// Generates or reads a task.
    ///
    /// # Errors
    /// An unknown built-in task or metric, files that cannot be read or do not pair up.
    pub fn open(entry: &TaskEntry) -> anyhow::Result<Self> {
        match (&entry.builtin, &entry.source, &entry.reference) {
            (Some(task), _, _) => Self::builtin(entry, *task),
            (None, Some(source), Some(reference)) => {
                let pairs = FilePairs::read(source, reference)?;
                let template = entry.prompt.as_deref().unwrap_or("{source}");
                let prompt = |source: &str| template.replace("{source}", source);
                let calibration = match &entry.calibration {
                    None => Vec::new(),
                    Some(path) => read_lines(path)?
                        .iter()
                        .take(entry.calibration_prompts)
                        .map(|source| prompt(source))
                        .collect(),
                };
                let name = entry.name.clone().unwrap_or_default();
                let (sources, references): (Vec<_>, Vec<_>) = pairs
                    .first(entry.prompts)
                    .map(|(source, reference)| (prompt(source), reference.to_owned()))
                    .unzip();
                Ok(Self {
                    ids: (0..sources.len()).map(|i| format!("{name}/{i}")).collect(),
                    prompts: sources,
                    references,
                    calibration,
                    available: Some(pairs.len()),
                    max_new_tokens: entry.max_new_tokens,
                    metrics: metrics(entry, &["bleu", "chrf"])?,
                    name,
                })
            }
            _ => bail!("a task is either `builtin` or has both `source` and `reference`"),
        }
    }

    fn builtin(entry: &TaskEntry, task: Task) -> anyhow::Result<Self> {
        let test = skipbench_tasks::examples(task, Split::Test, DEFAULT_SEED, entry.prompts);
        let calibration = skipbench_tasks::examples(
            task,
            Split::Calibration,
            DEFAULT_SEED,
            entry.calibration_prompts,
        );
        let default: &[&str] = match task {
            Task::Translation => &["bleu", "chrf"],
            Task::Summarization => &["rougeL", "rouge1", "rouge2", "rougeLsum"],
        };
        Ok(Self {
            name: entry.name.clone().unwrap_or_else(|| task.name().to_owned()),
            prompts: test
                .iter()
                .map(|example| task.prompt(&example.source))
                .collect(),
            calibration: calibration
                .iter()
                .map(|example| task.prompt(&example.source))
                .collect(),
            available: None,
            max_new_tokens: entry.max_new_tokens,
            metrics: metrics(entry, default)?,
            ids: test.iter().map(|example| example.id.clone()).collect(),
            references: test.into_iter().map(|example| example.reference).collect(),
        })
    }

    /// Names of the metrics.
    pub(crate) fn metric_names(&self) -> Vec<String> {
        self.metrics.iter().map(ToString::to_string).collect()
    }

    /// Hash of what is asked and of the right answers.
    pub(crate) fn texts_digest(&self) -> String {
        let texts = [&self.ids, &self.prompts, &self.references];
        digest::of_texts(texts.into_iter().flatten().map(String::as_str))
    }

    /// Hash of the prompts that strategies are calibrated on.
    pub(crate) fn calibration_digest(&self) -> String {
        digest::of_texts(self.calibration.iter().map(String::as_str))
    }
}

/// The metrics of a task, by default those of these names.
fn metrics(entry: &TaskEntry, default: &[&str]) -> anyhow::Result<Vec<Metric>> {
    match entry.metrics.is_empty() {
        true => Ok(default
            .iter()
            .map(|name| name.parse())
            .collect::<Result<_, _>>()?),
        false => Ok(entry.metrics.clone()),
    }
}
