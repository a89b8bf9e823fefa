//! What a task gives the runner: what is asked, references, and what to calibrate on.

mod few_shot;
mod items;
mod parquet;
mod rows;

pub(crate) use rows::{Kind, json_objects};

use crate::digest;
use crate::experiment::{ChatEntry, TaskEntry};
use crate::prompter::{Form, Prompter, Request};
use anyhow::anyhow;
use few_shot::Examples;
use items::{Item, Items};
use serde_json::{Map, Value};
use skipbench_metrics::Metric;
use skipbench_model::Tokenize;
use skipbench_prompts::{Message, PromptTemplate};
use skipbench_tasks::{DEFAULT_SEED, Split, Task};
use std::path::Path;

/// The fields of the first `most` rows of a task's file; a text file's have the one field `source`.
///
/// # Errors
/// A file that cannot be read or holds nothing.
pub(crate) fn peek(path: &Path, most: usize) -> anyhow::Result<Vec<Map<String, Value>>> {
    let rows = rows::read(path, most)?.rows;
    Ok(rows.into_iter().map(|row| row.fields).collect())
}

/// A task, ready to run.
#[derive(Debug, Clone)]
pub struct TaskData {
    /// Name in tables.
    pub name: String,
    /// One per prompt.
    pub ids: Vec<String>,
    /// What is asked.
    pub requests: Vec<Request>,
    /// The right answers, one or more of each.
    pub references: Vec<Vec<String>>,
    /// Requests on which thresholds are calibrated, none of them scored.
    pub calibration: Vec<Request>,
    /// Prompts that there are, where the task is a file's first ones.
    pub available: Option<usize>,
    /// Longest answer in tokens.
    pub max_new_tokens: usize,
    /// Texts that end an answer.
    pub stop: Vec<String>,
    /// Metrics, the first being the main one.
    pub metrics: Vec<Metric>,
    /// How requests become what a model reads.
    pub(crate) form: Form,
    /// Of the examples in front of the prompts, those that are scored as well.
    pub(crate) leaked: usize,
}

/// What is wrong with a task, and the key of the entry that it is about; empty for the entry itself.
#[derive(Debug)]
pub(crate) struct TaskError {
    pub(crate) key: &'static str,
    pub(crate) error: anyhow::Error,
}

/// Says which key an error is about.
trait Keyed<T> {
    fn of(self, key: &'static str) -> Result<T, TaskError>;
}

impl<T, E: Into<anyhow::Error>> Keyed<T> for Result<T, E> {
    fn of(self, key: &'static str) -> Result<T, TaskError> {
        self.map_err(|error| TaskError {
            key,
            error: error.into(),
        })
    }
}

impl TaskData {
    /// Generates or reads a task.
    ///
    /// # Errors
    /// Files that cannot be read, do not pair up or lack a field, a prompt that names what there is not.
    pub(crate) fn open(entry: &TaskEntry) -> Result<Self, TaskError> {
        match (&entry.builtin, &entry.source) {
            (Some(task), _) => Self::builtin(entry, *task).of(""),
            (None, Some(source)) => Self::files(entry, source),
            (None, None) => Err(anyhow!("a task is either `builtin` or has a `source`")).of(""),
        }
    }

    fn files(entry: &TaskEntry, source: &Path) -> Result<Self, TaskError> {
        let fields = entry.fields.clone().unwrap_or_default();
        let items = Items::read(
            source,
            entry.reference.as_deref(),
            &fields,
            entry.prompts.most(),
        );
        let items = items.of("source")?;
        let template = PromptTemplate::new(entry.prompt.as_deref().unwrap_or("{{ source }}"));
        let template = template.of("prompt")?;
        template.check(items.names()).of("prompt")?;
        let examples = match &entry.few_shot {
            None => Examples::default(),
            Some(few_shot) => Examples::draw(few_shot, &fields, &template).of("few-shot")?,
        };
        let asker = Asker {
            template: &template,
            examples: &examples,
            chat: &entry.chat,
        };
        let calibration = match &entry.calibration {
            None => Vec::new(),
            Some(path) => {
                let items = Items::sources(path, &fields, entry.calibration_prompts);
                let items = items.of("calibration")?;
                asker.requests(&items).of("calibration")?
            }
        };
        let name = entry.name.clone().unwrap_or_default();
        let requests = asker.requests(&items).of("prompt")?;
        let leaked = items
            .items
            .iter()
            .filter(|item| examples.hold(item.source()));
        Ok(Self {
            leaked: leaked.count(),
            requests,
            calibration,
            available: Some(items.count),
            max_new_tokens: entry.max_new_tokens,
            stop: entry.stop.clone(),
            metrics: metrics(entry, &["bleu", "chrf"]).of("metrics")?,
            form: Form::new(&entry.chat, entry.special_tokens),
            ids: items.ids(&name),
            references: items
                .items
                .into_iter()
                .map(|item| item.references)
                .collect(),
            name,
        })
    }

    fn builtin(entry: &TaskEntry, task: Task) -> anyhow::Result<Self> {
        let count = entry.prompts.most();
        if count == usize::MAX {
            return Err(anyhow!(
                "a built-in task is drawn as it is needed and has no end; give a number of `prompts`"
            ));
        }
        let test = skipbench_tasks::examples(task, Split::Test, DEFAULT_SEED, count);
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
        let request = |source: &str| request(task.prompt(source), &entry.chat, &[]);
        Ok(Self {
            name: entry.name.clone().unwrap_or_else(|| task.name().to_owned()),
            requests: test
                .iter()
                .map(|example| request(&example.source))
                .collect(),
            calibration: calibration
                .iter()
                .map(|example| request(&example.source))
                .collect(),
            available: None,
            max_new_tokens: entry.max_new_tokens,
            stop: entry.stop.clone(),
            metrics: metrics(entry, default)?,
            form: Form::new(&entry.chat, entry.special_tokens),
            leaked: 0,
            ids: test.iter().map(|example| example.id.clone()).collect(),
            references: test
                .into_iter()
                .map(|example| vec![example.reference])
                .collect(),
        })
    }

    /// What turns its requests into what the model at `model` reads.
    ///
    /// # Errors
    /// As [`Prompter::new`].
    pub(crate) fn prompter<'a>(
        &'a self,
        model: &Path,
        tokenizer: &'a dyn Tokenize,
    ) -> anyhow::Result<Prompter<'a>> {
        Prompter::new(model, tokenizer, &self.form)
    }

    /// Names of the metrics.
    pub(crate) fn metric_names(&self) -> Vec<String> {
        self.metrics.iter().map(ToString::to_string).collect()
    }

    /// Hash of what is asked and of the right answers.
    pub(crate) fn texts_digest(&self) -> String {
        let requests = self.requests.iter().map(Request::content);
        let mut texts: Vec<String> = self.ids.iter().cloned().chain(requests).collect();
        match self.references.iter().all(|texts| texts.len() == 1) {
            true => texts.extend(self.references.iter().flatten().cloned()),
            // Which of them belong together counts.
            false => texts.extend(self.references.iter().map(|texts| format!("{texts:?}"))),
        }
        digest::of_texts(texts.iter().map(String::as_str))
    }

    /// Hash of the prompts that strategies are calibrated on.
    pub(crate) fn calibration_digest(&self) -> String {
        let texts: Vec<String> = self.calibration.iter().map(Request::content).collect();
        digest::of_texts(texts.iter().map(String::as_str))
    }
}

/// Makes requests of items.
struct Asker<'a> {
    template: &'a PromptTemplate,
    examples: &'a Examples,
    chat: &'a ChatEntry,
}

impl Asker<'_> {
    fn requests(&self, items: &Items) -> anyhow::Result<Vec<Request>> {
        items
            .items
            .iter()
            .map(|item| self.request(items, item))
            .collect()
    }

    fn request(&self, items: &Items, item: &Item) -> anyhow::Result<Request> {
        let prompt = items.prompt(self.template, item)?;
        Ok(match self.chat.is_off() {
            true => Request::Text(self.examples.in_front_of(prompt)),
            false => request(prompt, self.chat, &self.examples.turns()),
        })
    }
}

/// A prompt as a text, or as the last turn of a chat.
fn request(prompt: String, chat: &ChatEntry, turns: &[Message]) -> Request {
    if chat.is_off() {
        return Request::Text(prompt);
    }
    let system = chat.system().into_iter();
    let turns = turns.iter().cloned();
    Request::Chat(system.chain(turns).chain([Message::user(prompt)]).collect())
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
