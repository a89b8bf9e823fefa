//! What can be told of a plan before it runs: what each task asks, what looks like a slip, and about how long it takes.

mod estimate;
mod texts;

pub(crate) use estimate::estimate;
pub(crate) use texts::of_escapes;

use crate::experiment::TaskEntry;
use crate::plan::{ModelPlan, Plan};
use crate::task::{Given, TaskData};
use anyhow::Context;
use serde::Serialize;
use skipbench_model::{ModelConfig, Tokenize};
use std::sync::Arc;

/// What a task asks of a model.
#[derive(Debug, Serialize)]
pub(crate) struct TaskPreview {
    /// Name of the model whose tokenizer counts.
    pub(crate) model: String,
    /// Name of the task.
    pub(crate) task: String,
    /// The first prompt, exactly as the model gets it.
    pub(crate) prompt: String,
    /// Tokens of the first prompt.
    pub(crate) prompt_tokens: usize,
    /// Tokens of the longest.
    pub(crate) longest_prompt_tokens: usize,
    /// Longest answer in tokens.
    pub(crate) max_new_tokens: usize,
    /// Prompts that are run.
    pub(crate) prompts: usize,
    /// Prompts that there are, where the task is a file's first ones.
    pub(crate) available: Option<usize>,
    /// Prompts to calibrate on.
    pub(crate) calibration_prompts: usize,
    /// What looks like a slip.
    pub(crate) warnings: Vec<String>,
}

/// Every task under every model of the plan.
///
/// # Errors
/// A tokenizer that cannot be read, or that refuses a prompt.
pub(crate) fn tasks(plan: &Plan) -> anyhow::Result<Vec<TaskPreview>> {
    let mut previews = Vec::new();
    for model in &plan.models {
        let tokenizer = tokenizer(model)?;
        for (task, entry) in plan.tasks.iter().zip(&plan.experiment.tasks) {
            let preview = TaskPreview::of(plan, model, task, entry, tokenizer.as_ref())
                .with_context(|| format!("task `{}` with model `{}`", task.name, model.name))?;
            previews.push(preview);
        }
    }
    Ok(previews)
}

/// What looks like a slip in the tasks of a plan, a line each.
///
/// # Errors
/// As [`tasks`].
pub(crate) fn warnings(plan: &Plan) -> anyhow::Result<Vec<String>> {
    Ok(all_warnings(&tasks(plan)?))
}

/// Each warning once, whichever models it is about.
pub(crate) fn all_warnings(previews: &[TaskPreview]) -> Vec<String> {
    let mut all: Vec<String> = Vec::new();
    for warning in previews.iter().flat_map(|preview| &preview.warnings) {
        if !all.contains(warning) {
            all.push(warning.clone());
        }
    }
    all
}

fn tokenizer(model: &ModelPlan) -> anyhow::Result<Arc<dyn Tokenize>> {
    let config = ModelConfig::open(&model.entry.path)?;
    model.tokenizer(config.vocab_size)
}

impl TaskPreview {
    fn of(
        plan: &Plan,
        model: &ModelPlan,
        task: &TaskData,
        entry: &TaskEntry,
        tokenizer: &dyn Tokenize,
    ) -> anyhow::Result<Self> {
        let prompter = task.prompter(&model.entry.path, tokenizer)?;
        let ids = prompter.all_ids(&task.requests)?;
        tracing::info!(
            "task `{}`: {} prompts of {} tokens for model `{}`",
            task.name,
            ids.len(),
            ids.iter().map(Vec::len).sum::<usize>(),
            model.name
        );
        let mut warnings = texts::of_counts(task, entry);
        if let Some(template) = &entry.prompt {
            warnings.extend(texts::of_template(template));
        }
        let stops = task.stop.iter();
        warnings.extend(stops.flat_map(|text| texts::of_escapes("`stop`", text)));
        if task.given == Given::Nothing {
            warnings.extend(texts::of_endings(&task.requests));
        }
        warnings.extend(texts::of_examples(task, entry));
        warnings.extend(prompter.doubled(&ids));
        if prompter.tells_the_date() {
            warnings.push(format!(
                "the chat template of model `{}` writes today's date into every prompt, so answers change with the day; set it, as in `chat: {{date_string: 26 Jul 2024}}`",
                model.name
            ));
        }
        if let Some(positions) = model.max_positions {
            let timed = match plan.experiment.timing.batches {
                0 => 0,
                _ => plan.experiment.timing.new_tokens,
            };
            let new_tokens = match &task.given {
                Given::Nothing => Some(task.max_new_tokens.max(timed)),
                Given::Questions(_) => Some(1),
                // Texts are cut into windows.
                Given::Texts(..) => None,
            };
            warnings.extend(new_tokens.and_then(|new_tokens| {
                texts::of_lengths(&ids, new_tokens, positions, &model.name)
            }));
        }
        for warning in &mut warnings {
            *warning = format!("task `{}`: {warning}", task.name);
        }
        Ok(Self {
            model: model.name.clone(),
            task: task.name.clone(),
            prompt: match task.requests.first() {
                Some(request) => prompter.text(request)?,
                None => String::new(),
            },
            prompt_tokens: ids.first().map_or(0, Vec::len),
            longest_prompt_tokens: ids.iter().map(Vec::len).max().unwrap_or(0),
            max_new_tokens: task.max_new_tokens,
            prompts: task.requests.len(),
            available: task.available,
            calibration_prompts: task.calibration.len(),
            warnings,
        })
    }
}
