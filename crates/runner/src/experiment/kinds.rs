//! What a task asks of a model, where that is not to answer.

use super::Misfit;
use super::check::{misfit, within};
use super::task::TaskEntry;
use crate::models;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use skipbench_engine::ScoreMode;
use skipbench_metrics::{Metric, Reads};
use std::path::PathBuf;

/// What a task asks of a model.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum TaskKind {
    /// To answer a prompt.
    #[default]
    Generate,
    /// Nothing: the choices of a question are scored behind it, and the likeliest is its answer.
    MultipleChoice,
    /// Nothing: texts are scored.
    Perplexity,
}

impl TaskKind {
    /// To answer.
    pub fn is_generate(&self) -> bool {
        *self == Self::Generate
    }

    /// Metrics where a task says none.
    pub(crate) fn default_metrics(self) -> &'static [&'static str] {
        match self {
            Self::Generate => &["bleu", "chrf"],
            Self::MultipleChoice => &["acc", "acc-norm"],
            Self::Perplexity => &[
                "perplexity",
                "word-perplexity",
                "byte-perplexity",
                "bits-per-byte",
            ],
        }
    }

    /// As a file says it.
    fn name(self) -> &'static str {
        match self {
            Self::Generate => "generate",
            Self::MultipleChoice => "multiple-choice",
            Self::Perplexity => "perplexity",
        }
    }

    /// Whether a metric finds what it reads.
    fn has(self, reads: Reads) -> bool {
        match reads {
            Reads::Distance => true,
            Reads::Answer | Reads::Tokens => self == Self::Generate,
            Reads::Choices => self == Self::MultipleChoice,
            Reads::Text => self == Self::Perplexity,
        }
    }

    fn of(reads: Reads) -> Self {
        match reads {
            Reads::Choices => Self::MultipleChoice,
            Reads::Text => Self::Perplexity,
            _ => Self::Generate,
        }
    }
}

/// Which layers a token of given text has behind it.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema, clap::ValueEnum,
)]
#[serde(rename_all = "kebab-case")]
pub enum ScoringMode {
    /// Those that would have run had the token been generated: prompt, decode steps, skipped layers, KV fills and exits.
    #[default]
    AsDecoded,
    /// The strategy's layers at every position, as papers on pruning report; not for a strategy that decides token by token.
    OnePass,
}

impl ScoringMode {
    /// As it is written.
    pub(crate) fn name(self) -> &'static str {
        ScoreMode::from(self).name()
    }

    /// Where no other was asked for.
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

impl From<ScoringMode> for ScoreMode {
    fn from(mode: ScoringMode) -> Self {
        match mode {
            ScoringMode::AsDecoded => Self::AsDecoded,
            ScoringMode::OnePass => Self::OnePass,
        }
    }
}

/// The choices of a question.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(
    untagged,
    expecting = "a Jinja expression that gives a list of texts, or a list of templates"
)]
pub enum Choices {
    /// A Jinja expression that gives a list of texts.
    Expression(String),
    /// A Jinja template for each.
    Templates(Vec<String>),
}

/// Where the samples of a task are written for another program to score.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum SamplesFormat {
    /// `{"task_id", "completion"}`, a line each, as evalplus and HumanEval take them; of a chat `{"task_id", "solution"}`.
    Evalplus,
}

impl TaskEntry {
    /// Makes its paths independent of the folders of the files that they are written in; `folder` gives that of a key.
    pub(crate) fn resolve(&mut self, folder: impl Fn(&str) -> PathBuf) {
        let files = [
            ("source", &mut self.source),
            ("reference", &mut self.reference),
            ("calibration", &mut self.calibration),
            ("instruction", &mut self.instruction),
        ];
        let files = files.map(|(key, file)| (key, file.as_mut()));
        let examples = self.few_shot.iter_mut().flat_map(|few_shot| {
            [
                ("few-shot.from", Some(&mut few_shot.from)),
                ("few-shot.reference", few_shot.reference.as_mut()),
            ]
        });
        for (key, file) in files.into_iter().chain(examples) {
            if let Some(file) = file {
                *file = models::join_data(&folder(key), file);
            }
        }
    }

    /// Refuses keys of another kind of task, of one that stands in no experiment.
    ///
    /// # Errors
    /// What is wrong, and where.
    pub(crate) fn check_alone(&self) -> Result<(), String> {
        self.check_kind("task")
            .map_err(|misfit| format!("{}: {}", misfit.path, misfit.message))
    }

    /// Refuses keys and metrics of another kind of task.
    pub(super) fn check_kind(&self, path: &str) -> Result<(), Misfit> {
        let at = |key: &str| format!("{path}.{key}");
        let kind = self.kind;
        if self.extends.is_some() {
            let late = "`extends` of a task is read with its file; write it there, or set the keys themselves";
            return misfit(at("extends"), late.to_owned());
        }
        let own = [
            ("choices", self.choices.is_some(), TaskKind::MultipleChoice),
            ("answer", self.answer.is_some(), TaskKind::MultipleChoice),
            (
                "continuation",
                self.continuation.is_some(),
                TaskKind::MultipleChoice,
            ),
            ("window", self.window.is_some(), TaskKind::Perplexity),
            ("stride", self.stride.is_some(), TaskKind::Perplexity),
            ("stop", !self.stop.is_empty(), TaskKind::Generate),
            ("samples", self.samples.is_some(), TaskKind::Generate),
        ];
        if let Some((key, _, of)) = own.iter().find(|(_, given, of)| *given && *of != kind) {
            let other = format!(
                "`{key}` is for `kind: {}`, and this task is `kind: {}`",
                of.name(),
                kind.name()
            );
            return misfit(at(key), other);
        }
        for (index, metric) in self.metrics.iter().enumerate() {
            let path = format!("{path}.metrics.{index}");
            self.check_metric(&path, index, metric)?;
        }
        match kind {
            TaskKind::Generate => return Ok(()),
            _ if self.builtin.is_some() => {
                return misfit(at("kind"), "a built-in task is `kind: generate`".to_owned());
            }
            TaskKind::MultipleChoice => {
                if self.choices.is_none() || self.answer.is_none() {
                    let lacks = "multiple choice takes `choices` (`choices: endings`, or a list of templates) and `answer`, which of them is right (`answer: label`)";
                    return misfit(path, lacks.to_owned());
                }
                if let Some(Choices::Templates(list)) = &self.choices
                    && list.len() < 2
                {
                    let few = "a question has two choices at least".to_owned();
                    return misfit(at("choices"), few);
                }
            }
            TaskKind::Perplexity => {
                let not = [
                    ("chat", !self.chat.is_off()),
                    ("few-shot", self.few_shot.is_some()),
                    ("description", self.description.is_some()),
                ];
                if let Some((key, _)) = not.iter().find(|(_, given)| *given) {
                    let none = format!("a text that is scored has no `{key}`; leave it out");
                    return misfit(at(key), none);
                }
                if let Some(window) = self.window {
                    within(at("window"), window, 2..=super::check::MAX_NEW_TOKENS)?;
                }
                if let Some(stride) = self.stride {
                    within(at("stride"), stride, 1..=super::check::MAX_NEW_TOKENS)?;
                    if self.window.is_some_and(|window| stride > window) {
                        let longer =
                            "`stride` is longer than `window`, so that tokens would be left out";
                        return misfit(at("stride"), longer.to_owned());
                    }
                }
            }
        }
        if self.description.is_some() && !self.chat.is_off() {
            let system = "in a chat a description is the system prompt: `chat: {system: ...}`";
            return misfit(at("description"), system.to_owned());
        }
        Ok(())
    }

    fn check_metric(&self, path: &str, index: usize, metric: &Metric) -> Result<(), Misfit> {
        let name = metric.to_string();
        let earlier = self.metrics[..index].iter();
        if earlier.map(ToString::to_string).any(|other| other == name) {
            let twice = format!(
                "`{name}` stands twice; give one of them a `name`, as in `{{exact-match: {{name: strict}}}}`"
            );
            return misfit(path, twice);
        }
        let reads = metric.reads();
        match self.kind.has(reads) {
            true => Ok(()),
            false => misfit(
                path,
                format!(
                    "`{name}` is for `kind: {}`, and this task is `kind: {}`",
                    TaskKind::of(reads).name(),
                    self.kind.name()
                ),
            ),
        }
    }
}
