//! What a task gives the runner: what is asked, references, and what to calibrate on.

mod few_shot;
mod given;
mod items;
mod parquet;
mod rows;

pub(crate) use few_shot::delimiter;
pub(crate) use given::{Given, Question, Text, Windows};
pub(crate) use rows::{Kind, json_objects};

use crate::digest;
use crate::experiment::{ChatEntry, SamplesFormat, TaskEntry, TaskKind};
use crate::prompter::{Form, Prompter, Request};
use anyhow::anyhow;
use few_shot::Examples;
use given::Asker;
use items::{Item, Items};
use serde_json::{Map, Value, json};
use skipbench_engine::ScoreMode;
use skipbench_metrics::{Metric, Reads, Reference, References};
use skipbench_model::Tokenize;
use skipbench_prompts::Message;
use skipbench_record::{Scored, Scoring};
use skipbench_tasks::{DEFAULT_SEED, Split, Task};
use std::collections::BTreeMap;
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
    /// What is scored, where no answer is made.
    pub(crate) given: Given,
    /// How it is.
    pub(crate) mode: ScoreMode,
    /// Where its answers are written for another program.
    pub(crate) samples: Option<SamplesFormat>,
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

impl From<given::Misfit> for TaskError {
    fn from((key, error): given::Misfit) -> Self {
        Self { key, error }
    }
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
        let most = entry.prompts.most();
        let items = match entry.kind {
            TaskKind::Generate => Items::read(source, entry.reference.as_deref(), &fields, most),
            TaskKind::MultipleChoice => Items::asked(source, &fields, most),
            TaskKind::Perplexity => Items::texts(source, &fields, most),
        };
        let asker = Asker::new(entry)?;
        let items = asker.named(items.of("source")?);
        asker.check(&items)?;
        let is_question = entry.kind == TaskKind::MultipleChoice;
        let examples = match &entry.few_shot {
            None => Examples::default(),
            Some(few_shot) => {
                Examples::draw(few_shot, &fields, is_question, &asker).of("few-shot")?
            }
        };
        let request = |items: &Items, item: &Item| asker.request(items, item, &examples);
        let calibration = match &entry.calibration {
            None => Vec::new(),
            Some(path) => {
                let items = Items::sources(path, &fields, entry.calibration_prompts);
                let items = asker.named(items.of("calibration")?);
                let requests = items.items.iter().map(|item| request(&items, item));
                requests.collect::<anyhow::Result<_>>().of("calibration")?
            }
        };
        let name = entry.name.clone().unwrap_or_default();
        let mut requests = Vec::new();
        let mut questions = Vec::new();
        let mut texts = Vec::new();
        let mut leaked = 0;
        for item in &items.items {
            let prompt = asker.prompt(&items, item).of("prompt")?;
            leaked += usize::from(examples.hold(&prompt));
            match asker.question(&items, item, &examples).of("choices")? {
                None => requests.push(request(&items, item).of("prompt")?),
                Some(question) => {
                    // What is in front of the first choice stands for the question.
                    requests.push(question.choices[0].context.clone());
                    questions.push(question);
                }
            }
            if entry.kind == TaskKind::Perplexity {
                let own = item.source().unwrap_or(&prompt);
                texts.push(Text::of(prompt.clone(), own));
            }
        }
        let ids = items.ids(&name);
        let metrics = metrics(entry, entry.kind.default_metrics()).of("metrics")?;
        let references = match entry.kind {
            TaskKind::MultipleChoice => questions
                .iter()
                .map(|question| vec![question.choices[question.right].text.clone()])
                .collect(),
            _ => items
                .items
                .into_iter()
                .map(|item| item.references)
                .collect(),
        };
        Ok(Self {
            leaked,
            requests,
            calibration,
            available: Some(items.count),
            max_new_tokens: entry.max_new_tokens,
            stop: entry.stop.clone(),
            metrics,
            form: Form::new(&entry.chat, entry.special_tokens),
            ids,
            references,
            given: match entry.kind {
                TaskKind::Generate => Given::Nothing,
                TaskKind::MultipleChoice => Given::Questions(questions),
                TaskKind::Perplexity => Given::Texts(texts, Windows::of(entry)),
            },
            mode: entry.scoring.into(),
            samples: entry.samples,
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
            given: Given::Nothing,
            mode: entry.scoring.into(),
            samples: entry.samples,
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

    /// Of metrics whose name does not say all of them, the rest, by name.
    pub(crate) fn metric_settings(&self) -> BTreeMap<String, Value> {
        let settings = self.metrics.iter().filter(|metric| !metric.is_plain());
        settings
            .map(|metric| (metric.to_string(), json!(metric)))
            .collect()
    }

    /// Whether a metric asks how far tokens are from the full network's.
    pub(crate) fn asks_for_distance(&self) -> bool {
        let mut metrics = self.metrics.iter();
        metrics.any(|metric| metric.reads() == Reads::Distance)
    }

    /// How text is scored, where some is, by a model with so many positions.
    pub(crate) fn scoring(&self, positions: Option<usize>) -> Option<Scoring> {
        let (of, windows) = match &self.given {
            Given::Nothing if !self.asks_for_distance() => return None,
            Given::Nothing => (Scored::Answers, None),
            Given::Questions(_) => (Scored::Choices, None),
            Given::Texts(_, windows) => (Scored::Texts, Some(windows)),
        };
        Some(Scoring {
            of,
            mode: self.mode,
            window: windows.and_then(|windows| windows.window(positions).ok()),
            stride: windows.and_then(|windows| windows.stride),
        })
    }

    /// What is right of each item.
    pub(crate) fn right(&self) -> References {
        References::of((0..self.ids.len()).map(|index| self.right_of(index)))
    }

    /// What is right of one.
    pub(crate) fn right_of(&self, index: usize) -> Reference {
        Reference {
            texts: self.references[index].clone(),
            choice: match &self.given {
                Given::Questions(questions) => Some(questions[index].right),
                _ => None,
            },
        }
    }

    /// The texts of an item's choices.
    pub(crate) fn choices_of(&self, index: usize) -> Vec<String> {
        match &self.given {
            Given::Questions(questions) => {
                let choices = questions[index].choices.iter();
                choices.map(|choice| choice.text.clone()).collect()
            }
            _ => Vec::new(),
        }
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
        match &self.given {
            Given::Nothing => {}
            Given::Questions(questions) => {
                texts.extend(questions.iter().map(|question| format!("{question:?}")));
            }
            Given::Texts(given, _) => texts.extend(given.iter().map(|text| format!("{text:?}"))),
        }
        digest::of_texts(texts.iter().map(String::as_str))
    }

    /// Hash of the prompts that strategies are calibrated on.
    pub(crate) fn calibration_digest(&self) -> String {
        let texts: Vec<String> = self.calibration.iter().map(Request::content).collect();
        digest::of_texts(texts.iter().map(String::as_str))
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
