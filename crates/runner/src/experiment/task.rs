//! `tasks:` of an experiment.

use super::kinds::{Choices, SamplesFormat, ScoringMode, TaskKind};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{Error, MapAccess, Unexpected, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::{Map, Value, json};
use skipbench_metrics::Metric;
use skipbench_prompts::Message;
use skipbench_tasks::Task;
use std::fmt;
use std::path::PathBuf;

/// A task: built in, or a file of items: texts with a segment a line, JSON lines, or Parquet.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct TaskEntry {
    /// A file with keys of a task, by its path from this file's folder, which the keys here are laid over; ready ones lie in
    /// `experiments/tasks/`. Paths in it stay relative to its own folder.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub extends: Option<PathBuf>,
    /// What is asked of a model.
    #[serde(default, skip_serializing_if = "TaskKind::is_generate")]
    pub kind: TaskKind,
    /// Name in tables; if not given, that of the built-in task. A task of files needs one.
    #[serde(default)]
    pub name: Option<String>,
    /// A built-in task: `translation` is English to German, `summarization` a report to one sentence, both generated from
    /// a grammar of the project's own.
    #[serde(default)]
    #[schemars(schema_with = "task_schema")]
    pub builtin: Option<Task>,
    /// File of items, instead of a built-in task: JSON lines (`.jsonl`, `.jsonl.gz`), `.parquet`, or source texts, a line
    /// each (`.gz` too).
    #[serde(default)]
    pub source: Option<PathBuf>,
    /// For source texts, the file of the right answers, a line for each. In JSON lines and Parquet they are a field.
    #[serde(default)]
    pub reference: Option<PathBuf>,
    /// What the fields of JSON lines and Parquet are called.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fields: Option<Fields>,
    /// File of items on which thresholds, layer orders and expected lengths are found, of the form of `source`; none of them
    /// is scored.
    #[serde(default)]
    pub calibration: Option<PathBuf>,
    /// How an item becomes a prompt: a Jinja template in which `{{ source }}` is the source, and every field of the item
    /// has its own name. If not given, the source itself is the prompt.
    #[serde(default)]
    pub prompt: Option<String>,
    /// What stands in front of the examples and the prompt, once: a Jinja template.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// The choices of a question: a Jinja expression that gives a list, such as `endings` or `choices.text`, or a list of
    /// templates. Behind the prompt each is parted from it by a space, unless one of them has white space there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub choices: Option<Choices>,
    /// Which choice is right: a Jinja expression that gives its number, from 0, such as `label` or
    /// `choices.label | index(answerKey)`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub answer: Option<String>,
    /// What is scored where that is not the choice itself but what comes behind it: a Jinja template. The prompt then holds
    /// `{{ choice }}`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub continuation: Option<String>,
    /// How given text is scored.
    #[serde(default, skip_serializing_if = "ScoringMode::is_default")]
    pub scoring: ScoringMode,
    /// Tokens of a text that are read at once; if not given, as many as the model has positions, 2048 at most.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub window: Option<usize>,
    /// Tokens from the beginning of one window to that of the next, as in the guide of transformers: the first token of a text is
    /// not scored. If not given, windows are lm-eval's: every token is scored once, the first behind the beginning of sequence.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stride: Option<usize>,
    /// Write every answer for a program that runs code and scores it, into a folder of the program's name in the results; none is run
    /// here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub samples: Option<SamplesFormat>,
    /// File of instructions, a line each, whose first one is `{{ instruction }}` in `prompt`: templates that others publish
    /// stay in their own file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub instruction: Option<PathBuf>,
    /// Examples in front of every prompt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub few_shot: Option<FewShotEntry>,
    /// Whether the prompt is the user's turn of a chat: `true`, or a map of the system prompt (`system`) and whatever
    /// variables the model's chat template takes, such as `enable_thinking`. Few-shot examples are then earlier turns.
    #[serde(default, skip_serializing_if = "ChatEntry::is_off")]
    #[schemars(schema_with = "chat_schema")]
    pub chat: ChatEntry,
    /// Which special tokens stand in front of a prompt that is no chat.
    #[serde(default, skip_serializing_if = "SpecialTokensRule::is_auto")]
    pub special_tokens: SpecialTokensRule,
    /// Texts that end an answer, such as `"\n"`; they are cut from it, wherever tokens begin and end. The timing pass has
    /// its fixed length without them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub stop: Vec<String>,
    /// Prompts to score: the first of the items, at most 1,000,000, or `all`.
    #[serde(default)]
    #[schemars(schema_with = "limit_schema")]
    pub prompts: Limit,
    /// Prompts to calibrate on: the first of `calibration`, at most 1,000,000.
    #[serde(default = "default_calibration_prompts")]
    pub calibration_prompts: usize,
    /// Longest answer in tokens, at most 1,000,000; prompt and answer together must fit in the model's positions.
    #[serde(default = "default_max_new_tokens")]
    pub max_new_tokens: usize,
    /// Metrics, by their names or as maps with settings; [tasks](tasks.md#metrics) lists them. The first is the one that plots
    /// show. If not given, bleu and chrf, or rougeL, rouge1, rouge2 and rougeLsum for `summarization`; acc and acc-norm for
    /// multiple choice; perplexity, word-perplexity, byte-perplexity and bits-per-byte for perplexity.
    #[serde(default)]
    #[schemars(schema_with = "metrics_schema")]
    pub metrics: Vec<Metric>,
}

/// What the fields of an item are called.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Fields {
    /// Field that names the item, a text or a number, different in each; if not given, items are counted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// Field with the source text.
    #[serde(default = "default_source")]
    pub source: String,
    /// Field with the right answer, or with a list of several; or a list of such fields.
    #[serde(default)]
    #[schemars(schema_with = "names_schema")]
    pub reference: Names,
}

/// Examples in front of every prompt.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct FewShotEntry {
    /// How many, drawn once for the whole task; at most 1000.
    pub k: usize,
    /// Which of the items.
    #[serde(default, skip_serializing_if = "Draw::is_default")]
    pub draw: Draw,
    /// Field in which examples are like the item that they stand in front of, such as `subject`; they are then drawn once for
    /// each of its values.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub same: Option<String>,
    /// File that they are drawn from, of the form of `source`.
    pub from: PathBuf,
    /// For source texts, the file of their right answers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reference: Option<PathBuf>,
    /// What the fields are called there, where they are not called as in `fields` of the task.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fields: Option<Fields>,
    /// Seed of the draw.
    #[serde(default = "default_seed")]
    pub seed: u64,
    /// Between examples, and between the last one and the prompt.
    #[serde(default = "default_separator")]
    pub separator: String,
    /// Between the prompt of an example and its answer; if not given, a space, or nothing where the prompt ends in white
    /// space.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub delimiter: Option<String>,
}

/// Which items become examples.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Draw {
    /// Some of them, by the seed.
    #[default]
    Random,
    /// The first ones, in order.
    First,
}

impl Draw {
    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// Which special tokens stand in front of a prompt that is no chat.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema, clap::ValueEnum,
)]
#[serde(rename_all = "kebab-case")]
pub enum SpecialTokensRule {
    /// Those that the tokenizer adds, as transformers does; a beginning that the text has already gets a warning.
    #[default]
    Auto,
    /// Those, and the beginning of sequence where the tokenizer adds none; never twice.
    Add,
    /// None but those that stand in the text.
    None,
}

impl SpecialTokensRule {
    /// As the tokenizer says.
    pub fn is_auto(&self) -> bool {
        *self == Self::Auto
    }
}

/// Whether prompts are turns of a chat, with which system prompt, and with which variables of the template.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ChatEntry(Option<Map<String, Value>>);

/// The key of the system prompt; all others are variables.
const SYSTEM: &str = "system";

impl ChatEntry {
    /// A chat with this system prompt.
    pub(crate) fn with_system(system: Option<&str>) -> Self {
        let system = system.map(|text| (SYSTEM.to_owned(), Value::from(text)));
        Self(Some(system.into_iter().collect()))
    }

    /// Whether prompts are no turns of a chat.
    pub fn is_off(&self) -> bool {
        self.0.is_none()
    }

    /// The system prompt as a message.
    pub(crate) fn system(&self) -> Option<Message> {
        let text = self.0.as_ref()?.get(SYSTEM)?.as_str()?;
        Some(Message::system(text))
    }

    /// What the template is given beside the messages; `None` where there is no chat.
    pub(crate) fn variables(&self) -> Option<Map<String, Value>> {
        let all = self.0.clone()?.into_iter();
        Some(all.filter(|(name, _)| name != SYSTEM).collect())
    }
}

impl Serialize for ChatEntry {
    fn serialize<S: Serializer>(&self, out: S) -> Result<S::Ok, S::Error> {
        match &self.0 {
            None => out.serialize_bool(false),
            Some(settings) if settings.is_empty() => out.serialize_bool(true),
            Some(settings) => settings.serialize(out),
        }
    }
}

impl<'de> Deserialize<'de> for ChatEntry {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct ChatVisitor;

        impl<'de> Visitor<'de> for ChatVisitor {
            type Value = ChatEntry;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("`true`, or a map such as `{system: Be brief.}`")
            }

            fn visit_bool<E>(self, on: bool) -> Result<ChatEntry, E> {
                Ok(ChatEntry(on.then(Map::new)))
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<ChatEntry, A::Error> {
                let mut settings = Map::new();
                while let Some((key, value)) = map.next_entry::<String, Value>()? {
                    if key == SYSTEM && !value.is_string() {
                        return Err(A::Error::custom(format!(
                            "`system` is the text of the system prompt, not {value}"
                        )));
                    }
                    if key == "messages" {
                        return Err(A::Error::custom(
                            "`messages` are made of the prompt; `prompt` and `few-shot` say how",
                        ));
                    }
                    settings.insert(key, value);
                }
                Ok(ChatEntry(Some(settings)))
            }
        }

        from.deserialize_any(ChatVisitor)
    }
}

/// How many of the items.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Limit {
    /// The first so many.
    First(usize),
    /// All of them.
    All,
}

impl Limit {
    /// The most that are taken.
    pub fn most(self) -> usize {
        match self {
            Self::First(count) => count,
            Self::All => usize::MAX,
        }
    }
}

impl Default for Limit {
    fn default() -> Self {
        Self::First(64)
    }
}

impl Serialize for Limit {
    fn serialize<S: Serializer>(&self, out: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::First(count) => count.serialize(out),
            Self::All => out.serialize_str("all"),
        }
    }
}

impl<'de> Deserialize<'de> for Limit {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct LimitVisitor;

        impl Visitor<'_> for LimitVisitor {
            type Value = Limit;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a number of prompts, or `all`")
            }

            fn visit_u64<E: Error>(self, count: u64) -> Result<Limit, E> {
                let count = usize::try_from(count);
                count
                    .map(Limit::First)
                    .map_err(|_| E::custom("more prompts than there can be"))
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<Limit, E> {
                match text {
                    "all" => Ok(Limit::All),
                    other => Err(E::invalid_value(Unexpected::Str(other), &self)),
                }
            }
        }

        from.deserialize_any(LimitVisitor)
    }
}

/// One name or several.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Names(pub Vec<String>);

impl Default for Names {
    fn default() -> Self {
        Self(vec!["reference".to_owned()])
    }
}

impl Serialize for Names {
    fn serialize<S: Serializer>(&self, out: S) -> Result<S::Ok, S::Error> {
        match &self.0[..] {
            [one] => one.serialize(out),
            all => all.serialize(out),
        }
    }
}

impl<'de> Deserialize<'de> for Names {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct NamesVisitor;

        impl<'de> Visitor<'de> for NamesVisitor {
            type Value = Names;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("the name of a field, or a list of names")
            }

            fn visit_str<E>(self, name: &str) -> Result<Names, E> {
                Ok(Names(vec![name.to_owned()]))
            }

            fn visit_seq<A: serde::de::SeqAccess<'de>>(
                self,
                mut list: A,
            ) -> Result<Names, A::Error> {
                let mut names = Vec::new();
                while let Some(name) = list.next_element::<String>()? {
                    names.push(name);
                }
                match names.is_empty() {
                    true => Err(A::Error::custom(
                        "a list without any name; give at least one",
                    )),
                    false => Ok(Names(names)),
                }
            }
        }

        from.deserialize_any(NamesVisitor)
    }
}

impl Fields {
    /// The fields with the right answers.
    pub(crate) fn references(&self) -> &[String] {
        &self.reference.0
    }

    /// The same for items that need no name.
    pub(crate) fn without_id(&self) -> Self {
        Self {
            id: None,
            ..self.clone()
        }
    }
}

impl Default for Fields {
    fn default() -> Self {
        Self {
            id: None,
            source: default_source(),
            reference: Names::default(),
        }
    }
}

fn default_source() -> String {
    "source".to_owned()
}
fn default_seed() -> u64 {
    1
}
fn default_separator() -> String {
    "\n\n".to_owned()
}
fn default_calibration_prompts() -> usize {
    32
}
fn default_max_new_tokens() -> usize {
    64
}

fn task_schema(_: &mut SchemaGenerator) -> Schema {
    let names = Task::ALL.map(|task| Some(task.name()));
    let names: Vec<Option<&str>> = names.into_iter().chain([None]).collect();
    json_schema!({"enum": names})
}

fn limit_schema(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "anyOf": [{"type": "integer", "minimum": 1, "maximum": 1_000_000}, {"const": "all", "description": "All of them."}],
        "default": 64,
    })
}

fn names_schema(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "anyOf": [
            {"type": "string"},
            {"type": "array", "items": {"type": "string"}, "minItems": 1},
        ],
    })
}

fn metrics_schema(_: &mut SchemaGenerator) -> Schema {
    let name = json!({"type": "string", "description": "Name in tables, where a task has the metric twice."});
    let ignore_case =
        json!({"type": "boolean", "description": "Letters of either case are the same."});
    json_schema!({
        "type": "array",
        "items": {"anyOf": [
            {"type": "string"},
            {"type": "object", "additionalProperties": false, "required": ["exact-match"], "properties": {
                "exact-match": {"type": "object", "additionalProperties": false, "properties": {
                    "name": name,
                    "extract": {"type": "string", "description": "Regular expression for the part of an answer that counts, its first group where it has one; or `last-number`."},
                    "take": {"enum": ["first", "last"], "description": "Which match of several."},
                    "ignore": {"type": "array", "items": {"type": "string"}, "description": "Regular expressions for what is deleted from both, in order."},
                    "ignore-case": ignore_case,
                    "ignore-punctuation": {"type": "boolean", "description": "ASCII punctuation is deleted from both."},
                    "ignore-numbers": {"type": "boolean", "description": "ASCII digits are deleted from both."},
                }},
            }},
            {"type": "object", "additionalProperties": false, "required": ["contains"], "properties": {
                "contains": {"type": "object", "additionalProperties": false, "properties": {
                    "name": name,
                    "ignore-case": ignore_case,
                }},
            }},
        ]},
    })
}

fn chat_schema(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "anyOf": [
            {"type": "boolean"},
            {"type": "object", "properties": {"system": {"type": "string", "description": "The system prompt."}}},
        ],
        "default": false,
    })
}
