//! The built-in tasks: text made from a seed, so that the default run needs no download.
//!
//! * [`Task::Translation`]: English to German, from a grammar and a lexicon of our own. Case and gender agreement,
//!   verb-second and verb-final order and separable verbs make it need real reordering, and a reader can judge an
//!   output at a glance. Each English sentence has exactly one German one.
//! * [`Task::Summarization`]: short news-like reports of several sentences with a one-sentence summary.
//!
//! An example is a pure function of (task, split, seed, index), drawn by integers from a ChaCha stream: the same
//! bytes on every platform. The split of an example follows from a hash of what it says, so that no sentence, of a
//! source or of a reference, is ever in two splits.

mod draw;
mod lexicon;
mod summarization;
mod translation;

use draw::Draw;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::str::FromStr;

/// Seed behind the shipped checkpoints.
pub const DEFAULT_SEED: u64 = 240_406_954;

/// One source text and the only right answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Example {
    /// Task, split and index, such as `translation/test/17`.
    pub id: String,
    /// What is translated or summarised.
    pub source: String,
    /// The answer.
    pub reference: String,
}

/// A built-in task.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Task {
    /// English to German.
    Translation,
    /// A report to one sentence.
    Summarization,
}

/// Which examples.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Split {
    /// Nine tenths of what the grammar can say.
    Train,
    /// For thresholds.
    Calibration,
    /// For scores.
    Test,
}

/// There is no such task.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("unknown built-in task `{0}`; there are `translation` and `summarization`")]
pub struct UnknownTask(String);

impl Task {
    /// Both tasks.
    pub const ALL: [Task; 2] = [Task::Translation, Task::Summarization];

    /// The name in experiments and tables.
    pub fn name(self) -> &'static str {
        match self {
            Task::Translation => "translation",
            Task::Summarization => "summarization",
        }
    }

    /// How a source becomes a prompt; `{source}` stands for it.
    pub fn prompt_template(self) -> &'static str {
        match self {
            Task::Translation => "translate: {source} =>",
            Task::Summarization => "summarize: {source} =>",
        }
    }

    /// The prompt of a source.
    pub fn prompt(self, source: &str) -> String {
        self.prompt_template().replace("{source}", source)
    }
}

impl FromStr for Task {
    type Err = UnknownTask;

    fn from_str(name: &str) -> Result<Self, UnknownTask> {
        Self::ALL
            .into_iter()
            .find(|task| task.name() == name)
            .ok_or_else(|| UnknownTask(name.to_owned()))
    }
}

impl Split {
    fn name(self) -> &'static str {
        match self {
            Split::Train => "train",
            Split::Calibration => "calibration",
            Split::Test => "test",
        }
    }

    /// The split that a text belongs to.
    fn of(text: &str) -> Split {
        match draw::hash(text.as_bytes()) % 20 {
            0 => Split::Test,
            1 => Split::Calibration,
            _ => Split::Train,
        }
    }
}

/// Example `index` of a split. Indices are endless; far ones repeat an example.
pub fn example(task: Task, split: Split, seed: u64, index: u64) -> Example {
    let mut attempt = 0;
    loop {
        let key = format!("{}/{}/{seed}/{index}/{attempt}", task.name(), split.name());
        let mut draw = Draw::new(draw::hash(key.as_bytes()));
        let pair = match task {
            Task::Translation => {
                Some(translation::pair(&mut draw)).filter(|(_, german)| Split::of(german) == split)
            }
            Task::Summarization => summarization::pair(&mut draw, split),
        };
        if let Some((source, reference)) = pair {
            let id = format!("{}/{}/{index}", task.name(), split.name());
            return Example {
                id,
                source,
                reference,
            };
        }
        attempt += 1;
    }
}

/// The first `n` examples of a split, no two with the same source or the same reference; fewer where the split has
/// no more to give.
pub fn examples(task: Task, split: Split, seed: u64, n: usize) -> Vec<Example> {
    let (mut sources, mut references) = (BTreeSet::new(), BTreeSet::new());
    (0..20 * n as u64 + 100)
        .map(|index| example(task, split, seed, index))
        .filter(|example| {
            let new =
                !sources.contains(&example.source) && !references.contains(&example.reference);
            if new {
                sources.insert(example.source.clone());
                references.insert(example.reference.clone());
            }
            new
        })
        .take(n)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn splits_share_no_sentence() {
        for task in Task::ALL {
            let texts = |split| -> BTreeSet<String> {
                (0..3000)
                    .map(|index| example(task, split, DEFAULT_SEED, index))
                    .flat_map(|example| [example.source, example.reference])
                    .flat_map(|text| {
                        text.split(". ")
                            .map(|s| s.trim_end_matches('.').to_owned())
                            .collect::<Vec<_>>()
                    })
                    .collect()
            };
            let splits = [Split::Train, Split::Calibration, Split::Test].map(texts);
            assert!(splits[0].is_disjoint(&splits[1]));
            assert!(splits[0].is_disjoint(&splits[2]));
            assert!(splits[1].is_disjoint(&splits[2]));
        }
    }

    #[test]
    fn a_source_has_one_reference() {
        for task in Task::ALL {
            let mut answers = std::collections::BTreeMap::new();
            for index in 0..20_000 {
                let example = example(task, Split::Train, DEFAULT_SEED, index);
                let known = answers
                    .entry(example.source.clone())
                    .or_insert_with(|| example.reference.clone());
                assert_eq!(*known, example.reference, "{}", example.source);
            }
        }
    }

    #[test]
    fn the_bytes_are_pinned() {
        let digest = |task| {
            let text: String = examples(task, Split::Test, DEFAULT_SEED, 500)
                .into_iter()
                .map(|example| format!("{}\t{}\n", example.source, example.reference))
                .collect();
            format!("{:016x}", draw::hash(text.as_bytes()))
        };
        assert_eq!(digest(Task::Translation), "d18119e2978c1c86");
        assert_eq!(digest(Task::Summarization), "f0025dee7de41e5a");
    }

    #[test]
    fn a_test_split_has_enough_different_answers() {
        for task in Task::ALL {
            assert_eq!(examples(task, Split::Test, DEFAULT_SEED, 500).len(), 500);
        }
    }

    #[test]
    fn samples_read_well() {
        let lines: Vec<String> = Task::ALL
            .into_iter()
            .flat_map(|task| examples(task, Split::Test, DEFAULT_SEED, 12))
            .map(|example| format!("{}\n  {}", example.source, example.reference))
            .collect();
        insta::assert_snapshot!(lines.join("\n"));
    }
}
