//! The YAML experiment: models x tasks x strategies x target speedups x batch sizes.

use anyhow::{Context, bail};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use skipbench_engine::MAX_LENGTH_PENALTY;
use skipbench_strategy::{KvFill, StrategySpec};
use std::path::{Path, PathBuf};

/// An experiment as written by a user. Relative paths are taken from the YAML file's folder.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Experiment {
    /// Short name: the folder of the results and a column of the table.
    pub name: String,
    /// Heading of the report.
    #[serde(default)]
    pub title: Option<String>,
    /// What a reader of the report must know, a sentence or two each.
    #[serde(default)]
    pub notes: Vec<String>,
    /// Checkpoints to run.
    pub models: Vec<ModelEntry>,
    /// Tasks to run them on.
    pub tasks: Vec<TaskEntry>,
    /// Strategies, as short forms (`unified:even`) or maps; one without a speedup is run at each of `speedups`.
    pub strategies: Vec<StrategySpec>,
    /// Target speedups.
    #[serde(default = "default_speedups")]
    pub speedups: Vec<f64>,
    /// What a target speedup means: a share of the layers, or of the time on this machine.
    #[serde(default, rename = "match")]
    pub matching: Match,
    /// KV fills to run every strategy with that leaves a choice and was given none; if not given, each keeps its own.
    #[serde(default)]
    pub kv_fills: Vec<KvFill>,
    /// Batch sizes, in prompts.
    #[serde(default = "default_batch_sizes")]
    pub batch_sizes: Vec<usize>,
    /// Beams to search with; 1 is greedy decoding.
    #[serde(default = "default_beams")]
    pub beams: Vec<usize>,
    /// Of a beam search: a finished answer's log-probability is divided by its length to this power.
    #[serde(default = "default_length_penalty")]
    pub length_penalty: f64,
    /// No n-gram of this length occurs twice in prompt and answer together; 0 for no such rule.
    #[serde(default)]
    pub no_repeat_ngram: usize,
    /// Where to compute.
    #[serde(default)]
    pub device: DeviceName,
    /// Element type of the weights; the default is f32 on a CPU and the checkpoint's own on a GPU.
    #[serde(default)]
    pub dtype: Option<DtypeName>,
    /// Seed of orders, resamples and calibration.
    #[serde(default = "default_seed")]
    pub seed: u64,
    /// How to time.
    #[serde(default)]
    pub timing: TimingEntry,
    /// Folder of the results; the default is `runs/<name>` in the current folder.
    #[serde(default)]
    pub out: Option<PathBuf>,
}

/// A checkpoint.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct ModelEntry {
    /// Name in tables; the default is the folder's.
    #[serde(default)]
    pub name: Option<String>,
    /// Hugging Face folder.
    pub path: PathBuf,
}

/// A task: built in, or text files with a segment a line.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct TaskEntry {
    /// Name in tables; the default is that of the built-in task.
    #[serde(default)]
    pub name: Option<String>,
    /// A built-in task: `translation` or `summarization`.
    #[serde(default)]
    pub builtin: Option<String>,
    /// Source texts, a line each (`.gz` too).
    #[serde(default)]
    pub source: Option<PathBuf>,
    /// Reference texts, a line each.
    #[serde(default)]
    pub reference: Option<PathBuf>,
    /// Source texts on which thresholds are calibrated; never scored.
    #[serde(default)]
    pub calibration: Option<PathBuf>,
    /// How a source becomes a prompt; `{source}` stands for it.
    #[serde(default)]
    pub prompt: Option<String>,
    /// Prompts to score.
    #[serde(default = "default_prompts")]
    pub prompts: usize,
    /// Prompts to calibrate on.
    #[serde(default = "default_calibration_prompts")]
    pub calibration_prompts: usize,
    /// Longest answer in tokens.
    #[serde(default = "default_max_new_tokens")]
    pub max_new_tokens: usize,
    /// Metrics; the first is the one that plots show.
    #[serde(default)]
    pub metrics: Vec<String>,
}

/// How the timing pass goes.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct TimingEntry {
    /// Batches of prompts that are timed, and of calibration prompts in a trial of `match: wallclock`; 0 leaves timing out.
    #[serde(default = "default_timing_batches")]
    pub batches: usize,
    /// Times that each batch is run under both the full network and the strategy.
    #[serde(default = "default_timing_repeats")]
    pub repeats: usize,
    /// Blocks run before the clock counts.
    #[serde(default = "default_timing_warm_up")]
    pub warm_up: usize,
    /// Tokens per row, always exactly this many.
    #[serde(default = "default_timing_new_tokens")]
    pub new_tokens: usize,
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

/// Where to compute.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema, clap::ValueEnum,
)]
#[serde(rename_all = "kebab-case")]
pub enum DeviceName {
    /// The processor.
    #[default]
    Cpu,
    /// The first CUDA GPU; needs a build with `--features cuda`.
    Cuda,
}

impl DeviceName {
    /// As in an experiment.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Cpu => "cpu",
            Self::Cuda => "cuda",
        }
    }
}

/// Element type of the weights.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema, clap::ValueEnum,
)]
#[serde(rename_all = "kebab-case")]
pub enum DtypeName {
    /// 32 bits.
    F32,
    /// Brain float, 16 bits.
    Bf16,
    /// IEEE half, 16 bits.
    F16,
}

/// The most rows of a batch: more is a slip of the pen, and memory is gone before anything is said.
pub(crate) const MAX_BATCH_SIZE: usize = 4096;
/// The most prompts of a task.
pub(crate) const MAX_PROMPTS: usize = 1_000_000;

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
fn default_prompts() -> usize {
    64
}
fn default_calibration_prompts() -> usize {
    32
}
fn default_max_new_tokens() -> usize {
    64
}
fn default_timing_batches() -> usize {
    16
}
fn default_timing_repeats() -> usize {
    2
}
fn default_timing_warm_up() -> usize {
    2
}
fn default_timing_new_tokens() -> usize {
    24
}

impl Default for TimingEntry {
    fn default() -> Self {
        Self {
            batches: default_timing_batches(),
            repeats: default_timing_repeats(),
            warm_up: default_timing_warm_up(),
            new_tokens: default_timing_new_tokens(),
        }
    }
}

impl Experiment {
    /// Reads an experiment and makes its paths independent of the current folder.
    ///
    /// # Errors
    /// A file that cannot be read, YAML that does not parse, an unknown key (with line and column), an empty list.
    pub fn read(path: &Path) -> anyhow::Result<Self> {
        let bytes =
            std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
        let text = String::from_utf8(bytes)
            .map_err(|error| anyhow::anyhow!("{}: not UTF-8: {error}", path.display()))?;
        let mut experiment: Experiment = parse_yaml(&text, path)?;
        experiment.check(path)?;
        let base = path.parent().unwrap_or(Path::new(""));
        for model in &mut experiment.models {
            model.path = base.join(&model.path);
        }
        for task in &mut experiment.tasks {
            let files = [&mut task.source, &mut task.reference, &mut task.calibration];
            for file in files.into_iter().flatten() {
                *file = base.join(&*file);
            }
        }
        Ok(experiment)
    }

    /// Folder of the results.
    pub fn out_dir(&self) -> PathBuf {
        self.out
            .clone()
            .unwrap_or_else(|| Path::new("runs").join(&self.name))
    }

    /// Element type of the weights in memory, for a record.
    pub(crate) fn dtype_name(&self) -> String {
        match (self.dtype, self.device) {
            (Some(DtypeName::F32), _) | (None, DeviceName::Cpu) => "f32",
            (Some(DtypeName::Bf16), _) => "bf16",
            (Some(DtypeName::F16), _) => "f16",
            (None, DeviceName::Cuda) => "as stored",
        }
        .to_owned()
    }

    fn check(&self, path: &Path) -> anyhow::Result<()> {
        let file = path.display();
        let empty = [
            ("models", self.models.is_empty()),
            ("tasks", self.tasks.is_empty()),
            ("strategies", self.strategies.is_empty()),
            ("speedups", self.speedups.is_empty()),
            ("batch-sizes", self.batch_sizes.is_empty()),
            ("beams", self.beams.is_empty()),
        ];
        if let Some((key, _)) = empty.iter().find(|(_, empty)| *empty) {
            bail!("{file}: `{key}` is empty; nothing would run");
        }
        if self.name.is_empty() || self.name.contains(['/', '\\']) || self.name.starts_with('.') {
            bail!(
                "{file}: `name` becomes a folder's name, so it cannot be {:?}",
                self.name
            );
        }
        if self.name.contains(char::is_control) {
            bail!("{file}: `name` {:?} holds a control character", self.name);
        }
        if self
            .out
            .as_ref()
            .is_some_and(|out| out.as_os_str().is_empty())
        {
            bail!(
                "{file}: `out` is empty; leave it out for runs/{}",
                self.name
            );
        }
        if let Some(bad) = self
            .batch_sizes
            .iter()
            .find(|rows| !(1..=MAX_BATCH_SIZE).contains(*rows))
        {
            bail!("{file}: `batch-sizes` holds {bad}; a batch has 1 to {MAX_BATCH_SIZE} rows");
        }
        for (key, values) in [("batch-sizes", &self.batch_sizes), ("beams", &self.beams)] {
            if let Some(index) = (1..values.len()).find(|&i| values[..i].contains(&values[i])) {
                bail!("{file}: `{key}` holds {} twice", values[index]);
            }
        }
        if let Some(bad) = self.beams.iter().find(|beams| !(1..=64).contains(*beams)) {
            bail!("{file}: `beams` holds {bad}; it is 1 (greedy) to 64");
        }
        if self.length_penalty.is_nan() || self.length_penalty.abs() > MAX_LENGTH_PENALTY {
            bail!(
                "{file}: `length-penalty` is {}; it is a number from -{MAX_LENGTH_PENALTY} to {MAX_LENGTH_PENALTY}",
                self.length_penalty
            );
        }
        if self.matching == Match::Wallclock && self.timing.batches == 0 {
            bail!("{file}: `match: wallclock` needs a timing pass; `timing.batches` is 0");
        }
        if let Some(bad) = self
            .speedups
            .iter()
            .find(|speedup| speedup.is_nan() || **speedup < 1.0)
        {
            bail!("{file}: `speedups` holds {bad}; a speedup is a number from 1 up");
        }
        if self.timing.batches > 0 && self.timing.repeats == 0 {
            bail!("{file}: `timing.repeats` is 0; set `timing.batches: 0` to leave timing out");
        }
        if self.timing.batches > 0 && self.timing.new_tokens < 2 {
            bail!(
                "{file}: `timing.new-tokens` must be at least 2: the first token comes from the prefill"
            );
        }
        for task in &self.tasks {
            task.check(path)?;
        }
        Ok(())
    }
}

impl TaskEntry {
    fn check(&self, path: &Path) -> anyhow::Result<()> {
        let file = path.display();
        match (&self.builtin, &self.source, &self.reference) {
            (Some(_), None, None) => {}
            (None, Some(_), Some(_)) if self.name.is_none() => {
                bail!("{file}: a task of text files needs a `name`")
            }
            (None, Some(_), Some(_)) => {}
            _ => bail!("{file}: a task is either `builtin` or has both `source` and `reference`"),
        }
        if self.prompts == 0 || self.max_new_tokens == 0 {
            bail!("{file}: `prompts` and `max-new-tokens` of a task must be at least 1");
        }
        for (key, found) in [
            ("prompts", self.prompts),
            ("calibration-prompts", self.calibration_prompts),
        ] {
            if found > MAX_PROMPTS {
                bail!("{file}: `{key}` of a task is {found}; it is at most {MAX_PROMPTS}");
            }
        }
        if let Some(prompt) = &self.prompt
            && !prompt.contains("{source}")
        {
            bail!("{file}: `prompt` must hold `{{source}}`, got {prompt:?}");
        }
        Ok(())
    }
}

/// Parses YAML with an error that shows line, column and the offending lines, and suggests the nearest key.
///
/// # Errors
/// YAML that does not parse or does not fit.
pub fn parse_yaml<T: serde::de::DeserializeOwned>(text: &str, path: &Path) -> anyhow::Result<T> {
    serde_saphyr::from_str(text).map_err(|error| {
        let message = error.to_string();
        let hint = nearest_field(&message).map_or_else(String::new, |near| {
            format!("\nhint: did you mean `{near}`?")
        });
        anyhow::anyhow!("{}: {message}{hint}", path.display())
    })
}

/// Of the parser's "unknown field `x`, expected one of a, b" the nearest to `x`.
fn nearest_field(message: &str) -> Option<String> {
    let rest = message.split_once("unknown field ")?.1;
    let (found, known) = rest.lines().next()?.split_once(", expected ")?;
    let bare = |name: &str| name.trim().trim_matches('`').to_owned();
    let found = bare(found);
    known
        .trim_start_matches("one of ")
        .split([',', ' '])
        .map(bare)
        .map(|name| (strsim::jaro_winkler(&found, &name), name))
        .filter(|(near, _)| *near > 0.7)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, name)| name)
}

/// A strategy as given on the command line: the short form, or the long form as YAML writes it in one line.
///
/// # Errors
/// A text that is neither.
pub(crate) fn strategy(text: &str) -> Result<StrategySpec, String> {
    let long = text
        .split_once('{')
        .map(|(head, _)| head.trim())
        .is_some_and(|head| head.is_empty() || head.ends_with(':'));
    match long {
        true => serde_saphyr::from_str(text).map_err(|error| error.to_string()),
        false => text
            .parse::<StrategySpec>()
            .map_err(|error| error.to_string()),
    }
}
