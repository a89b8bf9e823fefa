//! Answers as data for the page, where two strategies' are laid side by side.

use crate::row::Row;
use serde::Serialize;
use skipbench_record::Prompt;
use std::collections::HashMap;

/// Bytes of text that a page holds.
const MOST_BYTES: usize = 1_500_000;
/// Characters of a prompt that are shown; the rest is left out in the middle.
const PROMPT: usize = 600;

/// All there is to show. Texts are kept once: most answers of two batch sizes are the same.
#[derive(Serialize, Default)]
struct Samples<'a> {
    texts: Vec<&'a str>,
    tasks: Vec<Task>,
    rows: Vec<Line>,
}

#[derive(Serialize)]
struct Task {
    name: String,
    /// Prompts that it has; fewer may be shown.
    all: usize,
    ids: Vec<String>,
    prompts: Vec<String>,
    references: Vec<Vec<String>>,
}

#[derive(Serialize)]
struct Line {
    name: String,
    group: String,
    task: usize,
    is_full: bool,
    /// An index into the texts for each prompt; -1 for an answer that failed.
    answers: Vec<i64>,
}

/// The JSON, fit to stand in a script element; `None` where there is nothing to show.
pub(super) fn json(groups: &[Vec<Row<'_>>]) -> Option<String> {
    let mut shown = usize::MAX;
    loop {
        let samples = collect(groups, shown);
        let longest = samples.tasks.iter().map(|task| task.ids.len()).max()?;
        let json = serde_json::to_string(&samples).ok()?;
        if json.len() <= MOST_BYTES || longest <= 4 {
            // A text may say `</script>`.
            return Some(json.replace('<', "\\u003c"));
        }
        shown = (longest / 2).max(4);
    }
}

/// The first `shown` prompts of every task with all answers to them.
fn collect<'a>(groups: &[Vec<Row<'a>>], shown: usize) -> Samples<'a> {
    let mut samples = Samples::default();
    let mut texts: HashMap<&str, i64> = HashMap::new();
    let mut tasks: HashMap<&str, usize> = HashMap::new();
    for row in groups.iter().flatten().filter(|row| row.sets.is_none()) {
        let record = row.record;
        let Some(answers) = row.source.answers(record) else {
            continue;
        };
        let task = *tasks.entry(&record.task.texts).or_insert_with(|| {
            let prompts = row.source.prompts(record);
            samples.tasks.push(task(&record.task.name, prompts, shown));
            samples.tasks.len() - 1
        });
        let mut index = |text: &'a str| {
            *texts.entry(text).or_insert_with(|| {
                samples.texts.push(text);
                samples.texts.len() as i64 - 1
            })
        };
        let of = answers
            .into_iter()
            .take(shown)
            .map(|answer| match answer.error {
                Some(_) => -1,
                None => index(answer.text.as_str()),
            });
        let answers = of.collect();
        samples.rows.push(Line {
            name: row.label(),
            group: format!(
                "{}, {}, {}",
                record.task.name,
                row.setting(),
                record.model.name
            ),
            task,
            is_full: row.is_full(),
            answers,
        });
    }
    samples
}

fn task(name: &str, prompts: &[Prompt], shown: usize) -> Task {
    let some = || prompts.iter().take(shown);
    Task {
        name: name.to_owned(),
        all: prompts.len(),
        ids: some().map(|prompt| prompt.id.clone()).collect(),
        prompts: some().map(|prompt| shortened(&prompt.prompt)).collect(),
        references: some().map(|prompt| prompt.references.clone()).collect(),
    }
}

/// Beginning and end of a long text.
fn shortened(text: &str) -> String {
    let count = text.chars().count();
    if count <= PROMPT {
        return text.to_owned();
    }
    let (first, last) = (PROMPT * 2 / 3, PROMPT / 3);
    let start: String = text.chars().take(first).collect();
    let end: String = text.chars().skip(count - last).collect();
    format!("{start} […] {end}")
}

#[cfg(test)]
mod tests {
    use super::shortened;

    #[test]
    fn a_long_prompt_keeps_both_ends() {
        let long = format!("a{}z", "é".repeat(2000));
        let short = shortened(&long);
        assert!(short.starts_with("aé") && short.ends_with("éz"));
        assert!(short.chars().count() < 620);
        assert_eq!(shortened("short"), "short");
    }
}
