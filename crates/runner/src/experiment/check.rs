//! What an experiment may ask for.

use super::{Experiment, FewShotEntry, Limit, Match, TaskEntry, TimingEntry};
use crate::task::Kind;
use skipbench_engine::MAX_LENGTH_PENALTY;
use skipbench_prompts::PromptTemplate;
use std::fmt::Debug;
use std::ops::RangeInclusive;

/// The most rows of a batch: more is a slip of the pen, and memory is gone before anything is said.
pub(crate) const MAX_BATCH_SIZE: usize = 4096;
/// The most beams of a search.
pub(crate) const MAX_BEAMS: usize = 64;
/// The most prompts of a task.
pub(crate) const MAX_PROMPTS: usize = 1_000_000;
/// The longest answer, in tokens.
pub(crate) const MAX_NEW_TOKENS: usize = 1_000_000;
/// The most batches that are timed, and the most times that each is.
const MAX_TIMED: usize = 10_000;
/// The most blocks of a timing pass: batches times repeats.
const MAX_BLOCKS: usize = 1_000_000;
/// No model has the layers for a larger target.
const MAX_SPEEDUP: f64 = 1000.0;

/// What is wrong with a value, and the key path of the value.
#[derive(Debug)]
pub(super) struct Misfit {
    pub(super) path: String,
    pub(super) message: String,
}

pub(super) type Checked = Result<(), Misfit>;

impl Experiment {
    pub(super) fn check(&self) -> Checked {
        check_name(&self.name)?;
        let lists = [
            ("models", self.models.len()),
            ("tasks", self.tasks.len()),
            ("strategies", self.strategies.len()),
            ("speedups", self.speedups.len()),
            ("batch-sizes", self.batch_sizes.len()),
            ("beams", self.beams.len()),
        ];
        if let Some((key, _)) = lists.iter().find(|(_, len)| *len == 0) {
            return misfit(*key, format!("`{key}` is empty; nothing would run"));
        }
        if self
            .out
            .as_ref()
            .is_some_and(|out| out.as_os_str().is_empty())
        {
            let default = format!("`out` is empty; leave it out for runs/{}", self.name);
            return misfit("out", default);
        }
        for (index, &speedup) in self.speedups.iter().enumerate() {
            within(format!("speedups.{index}"), speedup, 1.0..=MAX_SPEEDUP)?;
        }
        check_list("batch-sizes", &self.batch_sizes, MAX_BATCH_SIZE)?;
        check_list("beams", &self.beams, MAX_BEAMS)?;
        for (index, device) in self.devices.iter().enumerate() {
            let path = format!("devices.{index}");
            let earlier = &self.devices[..index];
            if earlier.contains(device) {
                let twice = "`devices` holds it twice; cells that are timed do not share a device";
                return misfit(path, twice.to_owned());
            }
            if earlier.iter().any(|other| other.kind() != device.kind()) {
                let mixed = "`devices` are all GPUs, or `cpu` alone: rows of both are not of one experiment";
                return misfit(path, mixed.to_owned());
            }
        }
        within(
            "length-penalty",
            self.length_penalty,
            -MAX_LENGTH_PENALTY..=MAX_LENGTH_PENALTY,
        )?;
        within("no-repeat-ngram", self.no_repeat_ngram, 0..=MAX_NEW_TOKENS)?;
        self.timing.check()?;
        if self.matching == Match::Wallclock && self.timing.batches == 0 {
            let needs = "`match: wallclock` needs a timing pass; `timing.batches` is 0";
            return misfit("match", needs.to_owned());
        }
        for (index, model) in self.models.iter().enumerate() {
            if let Some(fault) = model.fault() {
                return misfit(format!("models.{index}"), fault.to_owned());
            }
        }
        let mut tasks = self.tasks.iter().enumerate();
        tasks.try_for_each(|(index, task)| task.check(&format!("tasks.{index}")))
    }
}

impl TimingEntry {
    fn check(&self) -> Checked {
        within("timing.batches", self.batches, 0..=MAX_TIMED)?;
        within("timing.warm-up", self.warm_up, 0..=MAX_TIMED)?;
        if self.batches == 0 {
            return Ok(());
        }
        if self.repeats == 0 {
            let instead = "`timing.repeats` is 0; set `timing.batches: 0` to leave timing out";
            return misfit("timing.repeats", instead.to_owned());
        }
        within("timing.repeats", self.repeats, 1..=MAX_TIMED)?;
        if self.batches * self.repeats > MAX_BLOCKS {
            let blocks = format!(
                "`timing.batches` times `timing.repeats` is {}; a timing pass has at most {MAX_BLOCKS} blocks",
                self.batches * self.repeats
            );
            return misfit("timing.repeats", blocks);
        }
        // The first token comes from the prefill; what is timed are the steps after it.
        within("timing.new-tokens", self.new_tokens, 2..=MAX_NEW_TOKENS)?;
        if let Some(precision) = self.precision {
            within("timing.precision", precision, 0.001..=0.5)?;
        }
        if let Some(most) = self.max_repeats {
            within("timing.max-repeats", most, self.repeats..=MAX_TIMED)?;
            if self.precision.is_none() {
                let alone = "`timing.max-repeats` bounds how long `timing.precision` goes on; give one, or leave it out";
                return misfit("timing.max-repeats", alone.to_owned());
            }
        }
        Ok(())
    }
}

impl TaskEntry {
    fn check(&self, path: &str) -> Checked {
        let at = |key: &str| format!("{path}.{key}");
        match (&self.builtin, &self.source, &self.reference) {
            (Some(_), None, None) => {}
            (None, Some(_), _) if self.name.is_none() => {
                return misfit(path, "a task of files needs a `name`".to_owned());
            }
            (None, Some(source), reference) => match (Kind::of(source), reference) {
                (Kind::Text, Some(_)) => {}
                (Kind::Text, None) if !self.kind.is_generate() => {}
                (Kind::Text, None) => {
                    let lacks = "source texts need `reference`, a file of the right answers; JSON lines (`.jsonl`) and `.parquet` have them in a field";
                    return misfit(path, lacks.to_owned());
                }
                (_, Some(_)) => {
                    let field = "in JSON lines and Parquet the right answers are a field; name it by `fields: {reference: ...}`";
                    return misfit(at("reference"), field.to_owned());
                }
                (_, None) => {}
            },
            _ => {
                let either = "a task is either `builtin` or has a `source`";
                return misfit(path, either.to_owned());
            }
        }
        let of_files = [
            ("fields", self.fields.is_some()),
            ("calibration", self.calibration.is_some()),
            ("prompt", self.prompt.is_some()),
            ("instruction", self.instruction.is_some()),
            ("few-shot", self.few_shot.is_some()),
            ("description", self.description.is_some()),
        ];
        if self.builtin.is_some()
            && let Some((key, _)) = of_files.iter().find(|(_, given)| *given)
        {
            let own = format!("a built-in task has its own `{key}`; leave it out");
            return misfit(at(key), own);
        }
        if self.fields.is_some()
            && let Some(source) = &self.source
            && Kind::of(source) == Kind::Text
        {
            let text = format!(
                "`fields` are those of JSON lines (`.jsonl`) and `.parquet`; {} is taken for source texts",
                source.display()
            );
            return misfit(at("fields"), text);
        }
        if let Limit::First(count) = self.prompts {
            within(at("prompts"), count, 1..=MAX_PROMPTS)?;
        }
        let calibrated = self.calibration_prompts;
        within(at("calibration-prompts"), calibrated, 0..=MAX_PROMPTS)?;
        within(
            at("max-new-tokens"),
            self.max_new_tokens,
            1..=MAX_NEW_TOKENS,
        )?;
        if let Some(index) = self.stop.iter().position(String::is_empty) {
            let empty = "an empty text would end every answer before it begins";
            return misfit(format!("{path}.stop.{index}"), empty.to_owned());
        }
        if !self.chat.is_off() && !self.special_tokens.is_auto() {
            let own =
                "a chat template writes its special tokens itself; leave `special-tokens` out";
            return misfit(at("special-tokens"), own.to_owned());
        }
        self.check_kind(path)?;
        if let Some(few_shot) = &self.few_shot {
            few_shot.check(&at("few-shot"))?;
        }
        if let Some(prompt) = &self.prompt {
            PromptTemplate::new(prompt).map_err(|error| Misfit {
                path: at("prompt"),
                message: error.to_string(),
            })?;
        }
        Ok(())
    }
}

impl FewShotEntry {
    fn check(&self, path: &str) -> Checked {
        within(format!("{path}.k"), self.k, 1..=1000)?;
        match (Kind::of(&self.from), &self.reference) {
            (Kind::Text, None) => {
                let lacks = format!(
                    "{} is taken for source texts, which need `reference`, a file of their right answers",
                    self.from.display()
                );
                misfit(path, lacks)
            }
            (Kind::JsonLines | Kind::Parquet, Some(_)) => misfit(
                format!("{path}.reference"),
                "in JSON lines and Parquet the right answers are a field".to_owned(),
            ),
            _ => Ok(()),
        }
    }
}

fn check_name(name: &str) -> Checked {
    if name.is_empty() || name.contains(['/', '\\']) || name.starts_with('.') {
        let folder = format!("`name` becomes a folder's name, so it cannot be {name:?}");
        return misfit("name", folder);
    }
    if name.contains(char::is_control) {
        return misfit("name", format!("`name` {name:?} holds a control character"));
    }
    Ok(())
}

/// A list of whole numbers from 1 to `most`, none of them twice.
fn check_list(key: &str, values: &[usize], most: usize) -> Checked {
    for (index, &value) in values.iter().enumerate() {
        let path = format!("{key}.{index}");
        within(path.clone(), value, 1..=most)?;
        if values[..index].contains(&value) {
            return misfit(path, format!("`{key}` holds {value} twice"));
        }
    }
    Ok(())
}

pub(super) fn within<T: PartialOrd + Debug>(
    path: impl Into<String>,
    value: T,
    range: RangeInclusive<T>,
) -> Checked {
    if range.contains(&value) {
        return Ok(());
    }
    let path = path.into();
    // Debug writes 1e308 in five characters, and 10 as 10.0.
    let short = |value: &T| format!("{value:?}").trim_end_matches(".0").to_owned();
    let (value, lo, hi) = (short(&value), short(range.start()), short(range.end()));
    let message = format!("`{path}` is {value}; it is a number from {lo} to {hi}");
    misfit(path, message)
}

pub(super) fn misfit(path: impl Into<String>, message: String) -> Checked {
    Err(Misfit {
        path: path.into(),
        message,
    })
}
