//! Slips in prompts that no error ever reports: they only make every answer worse.

use crate::experiment::{Limit, TaskEntry};
use crate::prompter::Request;
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
        match entry.prompts {
            Limit::First(asked) => few("prompts", asked, task.requests.len()),
            Limit::All => None,
        },
        calibration.flatten(),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// What a template says that it hardly means.
pub(super) fn of_template(template: &str) -> Vec<String> {
    let mut warnings = Vec::new();
    if let Some(name) = braced(template) {
        warnings.push(format!(
            "the prompt holds {{{name}}} in single braces, which nothing replaces; write {{{{ {name} }}}} for a field"
        ));
    }
    warnings.extend(of_escapes("the prompt", template));
    warnings
}

/// What stands where a control character was meant.
pub(crate) fn of_escapes(what: &str, text: &str) -> Vec<String> {
    let escapes = [("\\n", "a line feed"), ("\\t", "a tab")].into_iter();
    let found = escapes.filter(|(escape, _)| text.contains(escape));
    let warning = |(escape, meant)| {
        format!(
            "{what} holds a backslash and a letter ({escape}) instead of {meant}; write it between double quotes in YAML, as $'{escape}' in a shell"
        )
    };
    found.map(warning).collect()
}

/// The first name in single braces.
fn braced(template: &str) -> Option<&str> {
    let is_name = |name: &str| {
        let is_part = |c: char| c.is_alphanumeric() || "_-".contains(c);
        !name.is_empty() && name.chars().all(is_part)
    };
    template.match_indices('{').find_map(|(at, _)| {
        let (name, rest) = template[at + 1..].split_once('}')?;
        let doubled = template[..at].ends_with('{') || rest.starts_with('}');
        (!doubled && is_name(name)).then_some(name)
    })
}

/// Examples that are scored as well: their answers stand in every prompt.
pub(super) fn of_examples(task: &TaskData, entry: &TaskEntry) -> Option<String> {
    let few_shot = entry.few_shot.as_ref()?;
    (task.leaked > 0).then(|| {
        format!(
            "{} of the prompts are asked about a few-shot example, whose answer they hold; draw from other items than {}",
            task.leaked,
            few_shot.from.display()
        )
    })
}

/// Prompts that end in a space, which most tokenizers attach to the next word: the answer's first token is one that the
/// model never saw there.
pub(super) fn of_endings(prompts: &[Request]) -> Option<String> {
    let ends = |prompt: &&Request| matches!(prompt, Request::Text(text) if text.ends_with(' '));
    let count = prompts.iter().filter(ends).count();
    (count > 0).then(|| {
        format!(
            "{count} of {} prompts end in a space, which belongs to the answer's first word for most tokenizers",
            prompts.len()
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
            "{{ source }}",
            "translate: {{source}} =>\n",
            "{{ source }} {}",
            "f() { {{ source }} }",
            "{ {{ source }}, a: 1 }",
            "{{ {'a': source}.a }}",
        ] {
            assert_eq!(of_template(fine), Vec::<String>::new(), "{fine:?}");
        }
        let target = of_template("{{ source }} = {target}");
        assert!(target[0].contains("holds {target}"), "{target:?}");
        let feed = of_template("{{ source }}\\n");
        assert!(feed[0].contains("(\\n) instead of a line feed"), "{feed:?}");
        assert_eq!(of_template("{a}\\n\\t{{ source }}").len(), 3);
    }

    #[test]
    fn prompts_that_end_in_a_space_are_counted() {
        let prompts = |texts: &[&str]| {
            texts
                .iter()
                .map(|&text| Request::Text(text.to_owned()))
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
    fn the_last_token_of_an_answer_needs_no_position() {
        let ids = [vec![0; 10], vec![0; 13]];
        assert_eq!(of_lengths(&ids, 4, 16, "m"), None);
        let found = of_lengths(&ids, 5, 16, "m").unwrap();
        assert!(found.contains("1 of 2 prompts"), "{found}");
        assert!(found.contains("the longest needs 17"), "{found}");
        assert_eq!(of_lengths(&[], 5, 16, "m"), None);
    }
}
