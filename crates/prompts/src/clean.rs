//! Texts of published data sets as lm-eval 0.4.13 cleans them, as filters of templates.

use minijinja::value::{Value, ValueKind};
use minijinja::{Error, ErrorKind};
use regex::Regex;
use std::sync::LazyLock;

fn pattern(source: &str) -> Option<Regex> {
    Regex::new(source).ok()
}

fn replaced(text: &str, pattern: &Option<Regex>, by: &str) -> String {
    match pattern {
        Some(pattern) => pattern.replace_all(text, by).into_owned(),
        // The patterns are constants, and a test looks at each.
        None => text.to_owned(),
    }
}

static BRACKETS: LazyLock<Option<Regex>> = LazyLock::new(|| pattern(r"\[.*?\]"));

/// `hellaswag`: a line of HellaSwag without the marks that WikiHow left in it.
pub(crate) fn hellaswag(text: &str) -> String {
    let text = text.trim().replace(" [title]", ". ");
    replaced(&text, &BRACKETS, "").replace("  ", " ")
}

/// The patterns of [`wikitext`] in order, with what stands in their place.
static PAIRS: LazyLock<Vec<(Option<Regex>, &'static str)>> = LazyLock::new(|| {
    [
        (r"\(\s*([^\)]*?)\s*\)", "(${1})"),
        (r"\[\s*([^\]]*?)\s*\]", "[${1}]"),
        (r"\{\s*([^}]*?)\s*\}", "{${1}}"),
        (r#""\s*([^"]*?)\s*""#, r#""${1}""#),
        (r"'\s*([^']*?)\s*'", "'${1}'"),
    ]
    .into_iter()
    .map(|(source, by)| (pattern(source), by))
    .collect()
});
static SLASHES: LazyLock<Option<Regex>> = LazyLock::new(|| pattern("/' [0-9]/"));

/// `wikitext`: a page of WikiText as it was before it was tokenized. lm-eval's slips are kept: what is scored is the same.
pub(crate) fn wikitext(text: &str) -> String {
    let mut text = replaced(&text.replace("s '", "s'"), &SLASHES, "/'[0-9]/");
    for (from, to) in [
        (" @-@ ", "-"),
        (" @,@ ", ","),
        (" @.@ ", "."),
        (" : ", ": "),
        (" ; ", "; "),
        (" . ", ". "),
        (" ! ", "! "),
        (" ? ", "? "),
        (" , ", ", "),
    ] {
        text = text.replace(from, to);
    }
    for (pattern, by) in PAIRS.iter() {
        text = replaced(&text, pattern, by);
    }
    for (from, to) in [
        ("= = = =", "===="),
        ("= = =", "==="),
        ("= =", "=="),
        (" \u{b0} ", "\u{b0}"),
        (" \n", "\n"),
        ("\n ", "\n"),
        (" N ", " 1 "),
        (" 's", "'s"),
    ] {
        text = text.replace(from, to);
    }
    text
}

/// `index`: the place of an item in a list, from 0, as Python's `list.index`.
pub(crate) fn index(list: &Value, wanted: &Value) -> Result<usize, Error> {
    let wrong = |what: String| Error::new(ErrorKind::InvalidOperation, what);
    if list.kind() != ValueKind::Seq {
        return Err(wrong(format!("index: {list} is no list")));
    }
    let place = list.try_iter()?.position(|item| item == *wanted);
    place.ok_or_else(|| wrong(format!("index: {wanted} is none of {list}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_pattern_is_one() {
        assert!(BRACKETS.is_some() && SLASHES.is_some());
        assert!(PAIRS.iter().all(|(pattern, _)| pattern.is_some()));
    }

    /// What lm-eval's own functions give for the same texts.
    #[test]
    fn texts_are_cleaned_as_lm_eval_does() {
        assert_eq!(
            hellaswag(" How to do [title] A thing.  [step] Go [substeps] on. "),
            "How to do. A thing.  Go on."
        );
        assert_eq!(
            wikitext(
                " \n = Title = \n \n = = Part = = \n He 's 3 @.@ 5 m , a well @-@ known ( \" one \" ) : yes ; N 1 @,@ 000 . \n"
            ),
            "\n= Title =\n\n== Part ==\nHe's 3.5 m, a well-known (\"one\"): yes; 1 1,000.\n"
        );
    }
}
