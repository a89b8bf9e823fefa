//! The record of a cell: the only form in which a result travels.

use crate::identity::Identity;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use skipbench_engine::{Block, CheckAudit, DraftTally, End, Ledger, ScoreMode};
use skipbench_machine::Machine;
use skipbench_metrics::{Evidence, Hypothesis, Metric, MetricError, Reference};
use skipbench_strategy::StrategySpec;
use std::collections::BTreeMap;

/// Version of the form of the files in a run's folder. Raised whenever an older reader would misread a newer folder.
pub const VERSION: u32 = 4;

/// The result of one cell. Raw counts and times are kept; what is derived from them is derived when a report is drawn.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// [`VERSION`] of the skipbench that wrote it.
    pub version: u32,
    /// The cell: [`Identity::id`] of `answers_from`.
    pub id: String,
    /// [`Identity::id`] of what was asked for, whatever computed it: all of `answers_from` but the computing parts. Records
    /// of several machines have it in common.
    pub content: String,
    /// What the answers depend on.
    pub answers_from: Identity,
    /// What the times depend on beside that; `None` where nothing was timed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub times_from: Option<Identity>,
    /// Name of the experiment.
    pub experiment: String,
    /// The model.
    pub model: ModelRecord,
    /// The task.
    pub task: TaskRecord,
    /// The strategy that was asked for.
    pub strategy: StrategyRecord,
    /// How tokens were searched.
    pub search: Search,
    /// The strategy as it ran; `None` where the cell failed before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub executed: Option<Executed>,
    /// The pass to the natural end of sequence; `None` where the cell failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quality: Option<Quality>,
    /// The timing pass of fixed length.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timing: Option<Timing>,
    /// What a reader of the table must know.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
    /// Why there is no result, where there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<String>,
    /// Where, when and with what the answers were made.
    pub made: Made,
}

impl Record {
    /// Why the cell or one of its prompts failed, if one did.
    pub fn why_failed(&self) -> Option<String> {
        let quality = self.quality.as_ref();
        let in_part = quality.is_some_and(|quality| quality.failed > 0);
        match &self.failure {
            Some(reason) => Some(reason.clone()),
            None => in_part.then(|| self.notes.join("; ")),
        }
    }

    /// Where, when and with what it was timed, or its answers were made where nothing was timed.
    pub fn measured(&self) -> &Made {
        self.timing
            .as_ref()
            .map_or(&self.made, |timing| &timing.made)
    }
}

/// The model of a cell.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelRecord {
    /// Name in tables.
    pub name: String,
    /// Decoder layers.
    pub n_layers: usize,
    /// SHA-256 of all weight files, every byte of them.
    pub weights: String,
    /// SHA-256 of the tokenizer's files.
    pub tokenizer: String,
    /// SHA-256 of the configuration files.
    pub config: String,
    /// What the weights are kept in.
    pub dtype: String,
    /// What the KV cache is kept in, where it was chosen: else f32 on a CPU, and what is computed in on a GPU.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kv_dtype: Option<String>,
    /// `cpu` or `cuda`.
    pub device: String,
}

impl ModelRecord {
    /// What weights are kept in, and the KV cache where that was chosen.
    pub fn kept(&self) -> String {
        match &self.kv_dtype {
            None => self.dtype.clone(),
            Some(kv) => format!("{}, KV cache in {kv},", self.dtype),
        }
    }
}

/// The task of a cell.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskRecord {
    /// Name in tables.
    pub name: String,
    /// SHA-256 of its prompts and references; the key of its lines in `prompts.jsonl`.
    pub texts: String,
    /// Prompts that were asked.
    pub prompts: usize,
    /// Prompts that there are, where only some of them were asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prompts_available: Option<usize>,
    /// Longest answer in tokens.
    pub max_new_tokens: usize,
    /// Names of the metrics, the main one first.
    pub metrics: Vec<String>,
    /// Of metrics whose name does not say all of them, the rest, by name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub metric_settings: BTreeMap<String, Value>,
    /// How given text was scored, where some was; `None` where answers were generated and nothing else asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scoring: Option<Scoring>,
}

/// How given text was scored.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Scoring {
    /// What was scored.
    pub of: Scored,
    /// Which layers a scored token had behind it.
    pub mode: ScoreMode,
    /// Longest run of tokens that was fed, where texts were scored in windows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub window: Option<usize>,
    /// Tokens from the beginning of one window to that of the next; `None` for windows that score each token once behind the
    /// beginning of sequence or the token in front of the window.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stride: Option<usize>,
}

/// What was scored beside answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Scored {
    /// The full network's answers.
    Answers,
    /// The choices of questions.
    Choices,
    /// Texts.
    Texts,
}

impl std::fmt::Display for Scoring {
    /// As a signature has it.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let of = match self.of {
            Scored::Answers => "full-answers",
            Scored::Choices => "choices",
            Scored::Texts => "texts",
        };
        write!(f, "scored:{of}|mode:{}", self.mode)?;
        match (self.window, self.stride) {
            (Some(window), Some(stride)) => write!(f, "|window:{window}|stride:{stride}"),
            (Some(window), None) => write!(f, "|window:{window}|stride:rolling"),
            _ => Ok(()),
        }
    }
}

impl TaskRecord {
    /// One of its metrics with its settings.
    ///
    /// # Errors
    /// A metric that this program does not know.
    pub fn metric(&self, name: &str) -> Result<Metric, MetricError> {
        match self.metric_settings.get(name) {
            None => name.parse(),
            Some(settings) => {
                serde_json::from_value(settings.clone()).map_err(|_| MetricError::Unknown {
                    name: name.to_owned(),
                })
            }
        }
    }

    /// How many of the task's prompts were asked, `64 of 1,984`; `None` where all were.
    pub fn limit(&self) -> Option<String> {
        let available = self.prompts_available.filter(|&all| all > self.prompts)?;
        Some(format!(
            "{} of {}",
            grouped(self.prompts),
            grouped(available)
        ))
    }
}

/// A number with a comma between thousands.
pub fn grouped(number: usize) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// A strategy as data. Nothing of it has to be read out of its label, and a reader need not know the strategy.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StrategyRecord {
    /// The long form with every setting.
    pub spec: Value,
    /// As in `unified`.
    pub name: String,
    /// As in `published`; `None` for a strategy without variants.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub variant: Option<String>,
    /// The short form, for people: `unified:even@2`.
    pub label: String,
    /// What it has in common with the same strategy at other targets: a line of a plot.
    pub series: String,
    /// The speedup that was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target_speedup: Option<f64>,
    /// It is the full network, to which all others are compared.
    #[serde(default)]
    pub is_full: bool,
    /// It knows what no strategy can know.
    #[serde(default)]
    pub is_oracle: bool,
    /// It drafts tokens that all layers verify, so its answers are to be the full network's.
    #[serde(default)]
    pub is_lossless: bool,
    /// For one set of a random band: what all sets of the band have in common.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub band: Option<String>,
}

impl From<&StrategySpec> for StrategyRecord {
    fn from(spec: &StrategySpec) -> Self {
        Self {
            spec: serde_json::to_value(spec).unwrap_or(Value::Null),
            name: spec.name().to_owned(),
            variant: spec.variant().map(str::to_owned),
            label: spec.to_string(),
            series: spec.series(),
            target_speedup: spec.target_speedup(),
            is_full: spec.is_full(),
            is_oracle: spec.is_oracle(),
            is_lossless: spec.draft().is_some(),
            band: spec.band().map(|band| band.to_string()),
        }
    }
}

/// How tokens were searched.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Search {
    /// Rows of a batch.
    pub batch_size: usize,
    /// Beams; 1 is greedy decoding.
    pub beams: usize,
    /// A finished beam's log-probability is divided by its length to this power.
    pub length_penalty: f64,
    /// No n-gram of this length occurs twice; 0 for no such rule.
    pub no_repeat_ngram: usize,
}

/// A strategy as it ran, with everything that was found on calibration text.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Executed {
    /// The long form with every setting.
    pub spec: Value,
    /// The short form, for people.
    pub label: String,
    /// Its exit threshold, where it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub threshold: Option<f64>,
    /// How skipped positions of the KV cache were filled.
    pub kv_fill: String,
    /// How the settings were found.
    #[serde(default, skip_serializing_if = "Calibration::is_empty")]
    pub calibration: Calibration,
}

/// The settings that calibration tried, and what each of them gave.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Calibration {
    /// What was set and what was measured, as `threshold: layers`; empty where nothing was tried.
    pub of: String,
    /// (setting, outcome), in order.
    pub points: Vec<(f64, f64)>,
}

impl Calibration {
    /// Whether nothing was tried.
    pub fn is_empty(&self) -> bool {
        self.points.is_empty()
    }
}

/// The pass to the natural end of sequence.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Quality {
    /// Answers that belong to it, failed ones included.
    pub answers: usize,
    /// Of these, the ones that could not be made; they count as empty.
    pub failed: usize,
    /// Tokens that decode steps generated: all but the first of each answer.
    pub decoded_tokens: usize,
    /// Mean layers run for a decoded token; `None` where nothing was decoded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub layers_per_token: Option<f64>,
    /// What the decode steps cost.
    pub ledger: Ledger,
    /// Made-up and hidden keys and values that were read, and how far they are from the right ones.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kv_audit: Option<KvAuditRecord>,
    /// Exit checks that read a list of tokens against those that read the whole LM head, over the first prompts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub check_audit: Option<CheckAudit>,
    /// What became of drafts, where the strategy makes some.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub drafts: Option<DraftTally>,
    /// Largest KV cache of a batch, bytes.
    pub peak_kv_bytes: u64,
    /// Scores, the main metric first.
    #[serde(default)]
    pub scores: Vec<Score>,
}

/// What later tokens found where layers had been skipped.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct KvAuditRecord {
    /// Keys and values read that were made up, over all queries and layers.
    pub approximate_reads: u64,
    /// Positions that a query should have seen and did not, over all queries and layers.
    pub masked_reads: u64,
    /// Mean relative L2 distance of the made-up ones from a full-depth replay, over the first prompts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub distance: Option<f64>,
    /// Their mean cosine to the replay's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cosine: Option<f64>,
    /// Largest relative L2 distance of what was computed at a later step; exact up to rounding.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deferred_distance: Option<f64>,
}

/// A metric's score over all answers, and over each.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Score {
    /// Name of the metric.
    pub metric: String,
    /// The corpus score.
    pub score: f64,
    /// Low end of its 95% bootstrap interval.
    pub lo: f64,
    /// High end.
    pub hi: f64,
    /// The score of each prompt alone, in the order of the prompts.
    pub by_prompt: Vec<f64>,
}

/// The timing pass.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Timing {
    /// [`Identity::id`] of everything that the times depend on.
    pub id: String,
    /// Timed blocks, full network and strategy back to back.
    pub blocks: Vec<Block>,
    /// Tokens per row, always exactly this many.
    pub new_tokens: usize,
    /// Largest resident memory of the process while the cell ran, bytes; `None` where it cannot be read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peak_memory_bytes: Option<u64>,
    /// Largest memory of the process on the GPU, bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peak_gpu_bytes: Option<u64>,
    /// What a reader must know of the times: drift, outliers, other load.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
    /// Where, when and with what.
    pub made: Made,
}

/// Where, when and with what a result was made.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Made {
    /// Date and time, RFC 3339.
    pub at: String,
    /// The machine.
    pub machine: Machine,
    /// The program.
    pub binary: Binary,
}

/// The program that made a result; all but `digest` fixed when it was built.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Binary {
    /// Version of skipbench.
    pub version: String,
    /// Commit of its source, with `-dirty` where files differed from it; `None` outside a checkout.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub commit: Option<String>,
    /// Features that were built in.
    pub features: Vec<String>,
    /// The first 16 hexadecimal digits of the executable's SHA-256.
    pub digest: String,
}

impl std::fmt::Display for Binary {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "skipbench {}", self.version)?;
        if let Some(commit) = &self.commit {
            write!(f, " ({commit})")?;
        }
        if !self.features.is_empty() {
            write!(f, " with {}", self.features.join(", "))?;
        }
        Ok(())
    }
}

/// One answer: a line of `samples.jsonl`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Answer {
    /// [`Record::id`] of its cell.
    pub cell: String,
    /// [`Prompt::id`] of its prompt.
    pub id: String,
    /// Length of the prompt in tokens.
    pub prompt_tokens: usize,
    /// Generated ids, without the prompt.
    pub tokens: Vec<u32>,
    /// Their text.
    pub text: String,
    /// Layers run for each, half a layer for a sub-layer.
    #[serde(serialize_with = "layer_counts")]
    pub layers: Vec<f64>,
    /// Why it ended; `None` where there is no answer, and in records of before it was kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub end: Option<End>,
    /// What the model made of text that was given, where some was.
    #[serde(default, skip_serializing_if = "Evidence::is_empty")]
    pub evidence: Evidence,
    /// Why there is no answer, where there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

impl From<&Answer> for Hypothesis {
    fn from(answer: &Answer) -> Self {
        Self {
            text: answer.text.clone(),
            tokens: answer.tokens.clone(),
            evidence: answer.evidence.clone(),
        }
    }
}

/// What was asked, and the right answers: a line of `prompts.jsonl`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Prompt {
    /// [`TaskRecord::texts`] of its task.
    pub task: String,
    /// Its name, unique in the task.
    pub id: String,
    /// The text given to the model; of a chat, the user's last turn.
    pub prompt: String,
    /// All messages of a chat, as they were handed to the model's chat template.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub messages: Option<Value>,
    /// The right answers.
    pub references: Vec<String>,
    /// The choices of a question.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub choices: Vec<String>,
    /// The right one of them, from 0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub right: Option<usize>,
}

impl Prompt {
    /// What is right.
    pub fn reference(&self) -> Reference {
        Reference {
            texts: self.references.clone(),
            choice: self.right,
        }
    }
}

/// Serializes whole numbers of layers as integers: most are.
///
/// # Errors
/// What the serializer refuses.
pub fn layer_counts<S: serde::Serializer>(layers: &[f64], out: S) -> Result<S::Ok, S::Error> {
    out.collect_seq(layers.iter().map(|&layers| match layers.fract() == 0.0 {
        true => Value::from(layers as u64),
        false => Value::from(layers),
    }))
}
