//! Texts that end an answer.

use crate::error::Result;
use skipbench_model::Tokenize;
use std::fmt;
use std::sync::Arc;

/// Texts that end an answer, found in the text of its tokens wherever tokens begin and end. The answer goes up to the first
/// of them.
#[derive(Clone)]
pub struct StopTexts {
    tokenizer: Arc<dyn Tokenize>,
    texts: Vec<String>,
}

impl StopTexts {
    /// These texts, looked for in what `tokenizer` makes of tokens. Empty ones are never found.
    pub fn new(tokenizer: Arc<dyn Tokenize>, texts: impl IntoIterator<Item = String>) -> Self {
        let texts = texts.into_iter().filter(|text| !text.is_empty());
        Self {
            tokenizer,
            texts: texts.collect(),
        }
    }

    /// Texts that end an answer as the options take them: ids that end it, and texts to look for. A text that is a special
    /// token never shows in what is decoded, so it is an id.
    ///
    /// # Errors
    /// A text that the tokenizer refuses.
    pub fn with_ids(
        tokenizer: &Arc<dyn Tokenize>,
        texts: &[String],
    ) -> Result<(Vec<u32>, Option<Self>)> {
        let (mut ids, mut shown) = (Vec::new(), Vec::new());
        for text in texts {
            match tokenizer.encode_with(text, false)?[..] {
                [id] if tokenizer.decode(&[id])?.is_empty() => ids.push(id),
                _ => shown.push(text.clone()),
            }
        }
        let stop = (!shown.is_empty()).then(|| Self::new(tokenizer.clone(), shown));
        Ok((ids, stop))
    }

    /// The part of the text that stands whatever comes behind it: up to the first stop, or to where one may have begun.
    pub fn settled<'t>(&self, text: &'t str) -> &'t str {
        let end = first(text, &self.texts).unwrap_or(text.len());
        let begun = |&(from, _): &(usize, char)| may_begin_at(text, from, &self.texts);
        let open = text[..end].char_indices().find(begun);
        &text[..open.map_or(end, |(from, _)| from)]
    }

    /// The text up to the first stop.
    pub fn cut<'t>(&self, text: &'t str) -> &'t str {
        first(text, &self.texts).map_or(text, |at| &text[..at])
    }

    /// Whether the text of `tokens` holds a stop that no later token can put behind another one. Where these are the
    /// `last` tokens, any stop will do.
    pub(crate) fn ends(&self, tokens: &[u32], last: bool) -> Result<bool> {
        let text = self.tokenizer.decode(tokens)?;
        Ok(match first(&text, &self.texts) {
            None => false,
            Some(at) => last || !may_begin_earlier(&text, at, &self.texts),
        })
    }

    /// How many of `tokens` it takes until they end; `None` where they do not.
    pub(crate) fn length(&self, tokens: &[u32]) -> Result<Option<usize>> {
        if !self.ends(tokens, true)? {
            return Ok(None);
        }
        for length in 1..tokens.len() {
            if self.ends(&tokens[..length], false)? {
                return Ok(Some(length));
            }
        }
        Ok(Some(tokens.len()))
    }
}

impl fmt::Debug for StopTexts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("StopTexts").field(&self.texts).finish()
    }
}

impl PartialEq for StopTexts {
    fn eq(&self, other: &Self) -> bool {
        self.texts == other.texts
    }
}

/// Where the first stop begins.
fn first(text: &str, stops: &[String]) -> Option<usize> {
    stops.iter().filter_map(|stop| text.find(stop)).min()
}

/// Whether a longer stop may have begun in front of `at` and still lack its end.
fn may_begin_earlier(text: &str, at: usize, stops: &[String]) -> bool {
    let mut places = text[..at].char_indices();
    places.any(|(from, _)| may_begin_at(text, from, stops))
}

/// Whether all of the text from `from` on is the beginning of a longer stop.
fn may_begin_at(text: &str, from: usize, stops: &[String]) -> bool {
    let rest = &text[from..];
    stops
        .iter()
        .any(|stop| stop.len() > rest.len() && stop.starts_with(rest))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use skipbench_model::ByteTokenizer;

    fn stops(texts: &[&str]) -> StopTexts {
        StopTexts::new(
            Arc::new(ByteTokenizer),
            texts.iter().map(|&text| text.to_owned()),
        )
    }

    fn ids(text: &str) -> Vec<u32> {
        text.bytes().map(u32::from).collect()
    }

    #[test]
    fn a_stop_is_found_as_soon_as_it_is_the_first() {
        let lines = stops(&["\n", "###"]);
        assert!(!lines.ends(&ids("a##"), false).unwrap());
        assert!(lines.ends(&ids("a###"), false).unwrap());
        assert_eq!(lines.cut("a#b\n###"), "a#b");
        assert_eq!(lines.cut("plain"), "plain");
        assert_eq!(lines.length(&ids("ab\ncd\n")).unwrap(), Some(3));
        assert_eq!(lines.length(&ids("ab")).unwrap(), None);
        assert_eq!(stops(&[""]).length(&ids("ab")).unwrap(), None);
    }

    #[test]
    fn a_longer_stop_that_began_earlier_is_waited_for() {
        let two = stops(&["b", "abc"]);
        assert!(!two.ends(&ids("xab"), false).unwrap(), "`abc` may come yet");
        assert!(two.ends(&ids("xab"), true).unwrap());
        assert_eq!(two.length(&ids("xabc")).unwrap(), Some(4));
        assert_eq!(two.cut("xabc"), "x");
        assert_eq!(two.length(&ids("xabd")).unwrap(), Some(4));
        assert_eq!(two.cut("xabd"), "xa");
    }

    proptest! {
        /// What is left of an answer that ended is what is left of one that went on.
        #[test]
        fn an_answer_that_ended_is_cut_as_one_that_went_on(
            text in "[ab#\n]{0,24}",
            texts in proptest::collection::vec("[ab#\n]{1,4}", 1..4),
        ) {
            let stops = StopTexts::new(Arc::new(ByteTokenizer), texts);
            let ended = match stops.length(&ids(&text)).unwrap() {
                Some(length) => &text[..length],
                None => &text,
            };
            prop_assert_eq!(stops.cut(ended), stops.cut(&text));
            // What settles on the way is never taken back, and only the beginning of a stop is waited for.
            for length in 0..=text.len() {
                let settled = stops.settled(&text[..length]);
                prop_assert!(stops.cut(&text).starts_with(settled));
                prop_assert!(stops.cut(&text[..length]).len() - settled.len() < 4);
            }
        }
    }
}
