//! Answers that are right or wrong: the very text, or one that holds it.

use crate::{Counts, MetricError, Scratch, Segment, Unit, yes_no};
use regex::Regex;
use serde::{Deserialize, Serialize};
use std::borrow::Cow;

/// What lm-eval's `flexible-extract` finds numbers by; `extract: last-number` takes its last match.
pub const LAST_NUMBER: &str = "(-?[$0-9.,]{2,})|(-?[0-9]+)";
const LAST_NUMBER_NAME: &str = "last-number";

/// What an answer is from which nothing could be extracted, as in lm-eval.
const NOTHING: &str = "[invalid]";

/// Share of the answers that are a right text, as lm-eval's `exact_match` with its filters.
#[derive(Debug, Clone, Default)]
pub struct ExactMatch {
    settings: Settings,
    extract: Option<Regex>,
    ignore: Vec<Regex>,
}

/// Which match of several.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Take {
    /// The first.
    #[default]
    First,
    /// The last.
    Last,
}

/// As a file writes it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct Settings {
    /// Name in tables.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) name: Option<String>,
    /// Regular expression for the part of an answer that counts, or `last-number`.
    #[serde(skip_serializing_if = "Option::is_none")]
    extract: Option<String>,
    #[serde(skip_serializing_if = "is_default")]
    take: Take,
    /// What is deleted from both, in order.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    ignore: Vec<String>,
    #[serde(skip_serializing_if = "is_default")]
    ignore_case: bool,
    #[serde(skip_serializing_if = "is_default")]
    ignore_punctuation: bool,
    #[serde(skip_serializing_if = "is_default")]
    ignore_numbers: bool,
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

impl PartialEq for ExactMatch {
    fn eq(&self, other: &Self) -> bool {
        self.settings == other.settings
    }
}

impl TryFrom<Settings> for ExactMatch {
    type Error = MetricError;

    fn try_from(settings: Settings) -> Result<Self, MetricError> {
        let compiled = |pattern: &str| {
            Regex::new(pattern).map_err(|error| MetricError::Pattern {
                pattern: pattern.to_owned(),
                reason: error.to_string(),
            })
        };
        let extract = settings.extract.as_deref().map(|pattern| match pattern {
            LAST_NUMBER_NAME => compiled(LAST_NUMBER),
            pattern => compiled(pattern),
        });
        Ok(Self {
            extract: extract.transpose()?,
            ignore: settings
                .ignore
                .iter()
                .map(|pattern| compiled(pattern))
                .collect::<Result<_, _>>()?,
            settings,
        })
    }
}

impl ExactMatch {
    pub(crate) fn settings(&self) -> &Settings {
        &self.settings
    }

    fn take(&self) -> Take {
        match self.settings.extract.as_deref() {
            Some(LAST_NUMBER_NAME) => Take::Last,
            _ => self.settings.take,
        }
    }

    /// The part of an answer that counts: of a match the first group that is not empty, or all of it where the expression has
    /// no group.
    fn extracted<'t>(&self, answer: &'t str) -> &'t str {
        let Some(pattern) = &self.extract else {
            return answer;
        };
        let mut found = pattern.captures_iter(answer);
        let found = match self.take() {
            Take::First => found.next(),
            Take::Last => found.last(),
        };
        let Some(found) = found else {
            return NOTHING;
        };
        let mut groups = found.iter().skip(usize::from(found.len() > 1)).flatten();
        let part = match found.len() {
            // One group counts even where it is empty, as Python's `findall` gives it.
            1 | 2 => groups.next().map(|group| group.as_str()).or(Some("")),
            _ => groups
                .map(|group| group.as_str())
                .find(|part| !part.is_empty()),
        };
        part.map_or(NOTHING, str::trim)
    }

    fn normalised<'t>(&self, text: &'t str) -> Cow<'t, str> {
        let mut text = Cow::Borrowed(text);
        for pattern in &self.ignore {
            if let Cow::Owned(without) = pattern.replace_all(&text, "") {
                text = Cow::Owned(without);
            }
        }
        if self.settings.ignore_case {
            text = Cow::Owned(text.to_lowercase());
        }
        let kept = |c: char| {
            !(self.settings.ignore_punctuation && c.is_ascii_punctuation()
                || self.settings.ignore_numbers && c.is_ascii_digit())
        };
        match text.chars().all(kept) {
            true => text,
            false => Cow::Owned(text.chars().filter(|&c| kept(c)).collect()),
        }
    }
}

impl Counts for ExactMatch {
    fn label(&self) -> String {
        let name = self.settings.name.clone();
        name.unwrap_or_else(|| "exact-match".to_owned())
    }

    fn unit(&self) -> Unit {
        Unit::Fraction
    }

    fn is_right_or_wrong(&self) -> bool {
        true
    }

    fn width(&self) -> usize {
        1
    }

    fn count(&self, _: &mut Scratch, segment: Segment<'_>, out: &mut [f64]) {
        let answer = self.normalised(self.extracted(segment.text()));
        let mut right = segment.references().iter();
        out[0] = f64::from(right.any(|text| self.normalised(text) == answer));
    }

    fn score(&self, sum: &[f64], segments: usize) -> f64 {
        sum[0] / segments as f64
    }

    fn signature(&self) -> Vec<(&'static str, String)> {
        let settings = &self.settings;
        let or_none = |text: String| match text.is_empty() {
            true => "none".to_owned(),
            false => text,
        };
        let take = match self.take() {
            Take::First => "first",
            Take::Last => "last",
        };
        let ignored: Vec<String> = settings.ignore.iter().map(|p| format!("/{p}/")).collect();
        let extract = self.extract.as_ref().map(|pattern| format!("/{pattern}/"));
        vec![
            ("extract", or_none(extract.unwrap_or_default())),
            ("take", take.to_owned()),
            ("ignore", or_none(ignored.concat())),
            (
                "case",
                if settings.ignore_case { "lc" } else { "mixed" }.to_owned(),
            ),
            ("punct", yes_no(!settings.ignore_punctuation)),
            ("numbers", yes_no(!settings.ignore_numbers)),
        ]
    }
}

/// Share of the answers that hold a right text.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Contains {
    /// Name in tables.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Letters of either case are the same.
    #[serde(skip_serializing_if = "is_default")]
    pub ignore_case: bool,
}

impl Counts for Contains {
    fn label(&self) -> String {
        let name = self.name.clone();
        name.unwrap_or_else(|| "contains".to_owned())
    }

    fn unit(&self) -> Unit {
        Unit::Fraction
    }

    fn is_right_or_wrong(&self) -> bool {
        true
    }

    fn width(&self) -> usize {
        1
    }

    fn count(&self, _: &mut Scratch, segment: Segment<'_>, out: &mut [f64]) {
        let cased = |text: &str| match self.ignore_case {
            true => text.to_lowercase(),
            false => text.to_owned(),
        };
        let answer = cased(segment.text());
        let mut right = segment.references().iter();
        out[0] = f64::from(right.any(|text| answer.contains(&cased(text))));
    }

    fn score(&self, sum: &[f64], segments: usize) -> f64 {
        sum[0] / segments as f64
    }

    fn signature(&self) -> Vec<(&'static str, String)> {
        let case = if self.ignore_case { "lc" } else { "mixed" };
        vec![("case", case.to_owned())]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn metric(settings: Settings) -> ExactMatch {
        ExactMatch::try_from(settings).unwrap()
    }

    /// What Python's `re.findall` and lm-eval's filter give for the same texts.
    #[test]
    fn extraction_is_that_of_lm_eval() {
        let strict = metric(Settings {
            extract: Some("#### (\\-?[0-9\\.\\,]+)".to_owned()),
            ..Settings::default()
        });
        assert_eq!(strict.extracted("2+2=4\n#### 1,234.\n#### 7"), "1,234.");
        assert_eq!(strict.extracted("the answer is 4"), NOTHING);
        let last = metric(Settings {
            extract: Some("last-number".to_owned()),
            ..Settings::default()
        });
        assert_eq!(last.extracted("costs $18.50, not -3"), "-3");
        assert_eq!(last.extracted("costs 3 or $18.50."), "$18.50.");
        assert_eq!(last.extracted("none"), NOTHING);
        let whole = metric(Settings {
            extract: Some("[A-D]".to_owned()),
            take: Take::Last,
            ..Settings::default()
        });
        assert_eq!(whole.extracted("B, no: C."), "C");
        let empty = metric(Settings {
            extract: Some("x(y*)".to_owned()),
            ..Settings::default()
        });
        assert_eq!(empty.extracted("x"), "");
    }

    #[test]
    fn normalisation_is_that_of_lm_eval() {
        let gsm8k = metric(Settings {
            ignore: [",", "\\$", "(?s).*#### ", "\\.$"]
                .map(str::to_owned)
                .to_vec(),
            ignore_case: true,
            ..Settings::default()
        });
        assert_eq!(gsm8k.normalised("He has\n9 eggs.\n#### 1,234"), "1234");
        assert_eq!(gsm8k.normalised("$18.50."), "18.50");
        let bare = metric(Settings {
            ignore_punctuation: true,
            ignore_numbers: true,
            ..Settings::default()
        });
        assert_eq!(bare.normalised("a-1: b (2)"), "a b ");
    }

    #[test]
    fn an_expression_that_is_none_is_told() {
        let error = ExactMatch::try_from(Settings {
            extract: Some("(".to_owned()),
            ..Settings::default()
        });
        let message = error.unwrap_err().to_string();
        assert!(message.contains("`(`"), "{message}");
    }
}
