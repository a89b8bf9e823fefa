//! Slips in prompts that no error ever reports: they only make every answer worse.

use crate::experiment::TaskEntry;
use crate::task::TaskData;

/// Fewer prompts than were asked for.
pub(super) fn of_counts(task: &TaskData, entry: &TaskEntry) -> Vec<String> {
    let few = |key: &str, asked: usize, found: usize| {
        (found < asked).then(|| format!("`{key}` asks for {asked}, but there are {found}"))
    };
    let calibrated = entry.builtin.is_some() || entry.calibration.is_some();
    let calibration = calibrated.then(|| {
        few(
            "calibration-prompts",
            entry.calibration_prompts,
            task.calibration.len(),
        )
    });
    [
        few("prompts", entry.prompts, task.prompts.len()),
        calibration.flatten(),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// What a template says that it hardly means.
pub(super) fn of_template(template: &str) -> Vec<String> {
    let mut warnings = Vec::new();
    let rest = template.replace("{source}", "");
    if let Some(name) = braced(&rest) {
        warnings.push(format!(
            "the prompt holds {{{name}}}, which nothing replaces; only {{source}} stands for something"
        ));
    }
    for (escape, meant) in [("\\n", "a line feed"), ("\\t", "a tab")] {
        if rest.contains(escape) {
            warnings.push(format!(
                "the prompt holds a backslash and a letter ({escape}) instead of {meant}; write it between double quotes"
            ));
        }
    }
    warnings
}

/// The first name in braces.
fn braced(text: &str) -> Option<&str> {
    text.split('{').skip(1).find_map(|after| {
        let (name, _) = after.split_once('}')?;
        let is_name = |c: char| c.is_alphanumeric() || "_- ".contains(c);
        (!name.trim().is_empty() && name.chars().all(is_name)).then_some(name)
    })
}

/// Prompts that end in a space, which most tokenizers attach to the next word: the answer's first token is one that the
/// model never saw there.
pub(super) fn of_endings(prompts: &[String]) -> Option<String> {
    let count = prompts
        .iter()
        .filter(|prompt| prompt.ends_with(' '))
        .count();
    (count > 0).then(|| {
        format!(
            "{count} of {} prompts end in a space, which belongs to the answer's first word for most tokenizers",
            prompts.len()
        )
    })
}

/// Prompts whose text begins with what the tokenizer puts in front anyway.
pub(super) fn of_beginnings(ids: &[Vec<u32>], beginning: Option<u32>) -> Option<String> {
    let beginning = beginning?;
    let doubled = |ids: &&Vec<u32>| ids.starts_with(&[beginning, beginning]);
    let count = ids.iter().filter(doubled).count();
    (count > 0).then(|| {
        format!(
            "{count} of {} prompts begin with the beginning-of-sequence token twice; the tokenizer adds one itself",
            ids.len()
        )
    })
}

/// Prompts that leave no room for an answer; the last token of an answer needs no position.
pub(super) fn of_lengths(
    ids: &[Vec<u32>],
    new_tokens: usize,
    positions: usize,
    model: &str,
) -> Option<String> {
    let needed = |ids: &Vec<u32>| (ids.len() + new_tokens).saturating_sub(1);
    let longest = ids.iter().map(needed).max()?;
    let count = ids.iter().filter(|ids| needed(ids) > positions).count();
    (count > 0).then(|| {
        format!(
            "{count} of {} prompts do not fit with {new_tokens} new tokens in the {positions} positions of model `{model}` (the longest needs {longest}); they will fail",
            ids.len()
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_template_is_taken_at_its_word() {
        for fine in [
            "{source}",
            "translate: {source} =>\n",
            "{source} {}",
            "f() { {source} }",
            "{ {source}, a: 1 }",
        ] {
            assert_eq!(of_template(fine), Vec::<String>::new(), "{fine:?}");
        }
        let target = of_template("{source} = {target}");
        assert!(target[0].contains("holds {target}"), "{target:?}");
        assert!(of_template("{source} {source_text}")[0].contains("{source_text}"));
        let feed = of_template("{source}\\n");
        assert!(feed[0].contains("(\\n) instead of a line feed"), "{feed:?}");
        assert_eq!(of_template("{a}\\n\\t{source}").len(), 3);
    }

    #[test]
    fn prompts_that_end_in_a_space_are_counted() {
        let prompts = |texts: &[&str]| {
            texts
                .iter()
                .map(|&text| text.to_owned())
                .collect::<Vec<_>>()
        };
        assert_eq!(of_endings(&prompts(&["a", "b\n", ""])), None);
        let found = of_endings(&prompts(&["a ", "b", "c "])).unwrap();
        assert!(
            found.starts_with("2 of 3 prompts end in a space"),
            "{found}"
        );
    }

    #[test]
    fn a_beginning_that_is_there_twice_is_told_from_a_repeated_word() {
        let ids = [vec![1, 1, 5], vec![1, 5], vec![1]];
        assert_eq!(of_beginnings(&ids, None), None);
        assert_eq!(of_beginnings(&ids, Some(2)), None);
        let found = of_beginnings(&ids, Some(1)).unwrap();
        assert!(found.starts_with("1 of 3 prompts"), "{found}");
    }

    #[test]
    fn the_last_token_of_an_answer_needs_no_position() {
        let ids = [vec![0; 10], vec![0; 13]];
        assert_eq!(of_lengths(&ids, 4, 16, "m"), None);
        let found = of_lengths(&ids, 5, 16, "m").unwrap();
        assert!(found.contains("1 of 2 prompts"), "{found}");
        assert!(found.contains("the longest needs 17"), "{found}");
        assert_eq!(of_lengths(&[], 5, 16, "m"), None);
    }
}
