//! Text as Python sees it: the reference implementations are written in Python, and a score is only the same where
//! white space and case are.

use std::borrow::Cow;

/// Whether Python's `str.split()` and `str.strip()` take `c` as white space. Beyond Rust's [`char::is_whitespace`] these
/// are the information separators U+001C to U+001F.
pub(crate) fn is_space(c: char) -> bool {
    // Nearly every character is an ASCII letter.
    !c.is_ascii_graphic() && (c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c))
}

/// Python's `str.split()`.
pub(crate) fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split(is_space).filter(|word| !word.is_empty())
}

/// Python's `str.rstrip()`.
pub(crate) fn trim_end(text: &str) -> &str {
    text.trim_end_matches(is_space)
}

/// Python's `str.strip()`.
pub(crate) fn trim(text: &str) -> &str {
    text.trim_matches(is_space)
}

/// Python's `str.lower()` where case is to be ignored.
pub(crate) fn without_case(text: &str, ignored: bool) -> Cow<'_, str> {
    match ignored {
        true => Cow::Owned(text.to_lowercase()),
        false => Cow::Borrowed(text),
    }
}

/// Each character that `pick` picks gets a space before and after it.
pub(crate) fn surround(text: &str, pick: impl Fn(char) -> bool) -> String {
    let mut out = String::with_capacity(2 * text.len());
    for c in text.chars() {
        match pick(c) {
            true => out.extend([' ', c, ' ']),
            false => out.push(c),
        }
    }
    out
}

/// Where [`split_pairs`] puts its spaces.
#[derive(Clone, Copy)]
pub(crate) enum Spaces {
    /// Between the two characters and after the second.
    Second,
    /// Between the two characters and before the first.
    First,
}

/// What a regular expression of two character classes does when it is replaced from left to right without overlap.
pub(crate) fn split_pairs(
    text: &str,
    first: impl Fn(char) -> bool,
    second: impl Fn(char) -> bool,
    spaces: Spaces,
) -> String {
    let mut out = String::with_capacity(text.len() + text.len() / 2);
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        match chars.peek() {
            Some(&next) if first(c) && second(next) => {
                match spaces {
                    Spaces::Second => out.extend([c, ' ', next, ' ']),
                    Spaces::First => out.extend([' ', c, ' ', next]),
                }
                chars.next();
            }
            _ => out.push(c),
        }
    }
    out
}

/// [`surround`] for ASCII characters.
pub(crate) fn surround_ascii(text: &str, pick: impl Fn(u8) -> bool) -> String {
    let mut out = String::with_capacity(2 * text.len());
    let mut copied = 0;
    for (at, byte) in text.bytes().enumerate() {
        if byte.is_ascii() && pick(byte) {
            out.push_str(&text[copied..at]);
            out.extend([' ', char::from(byte), ' ']);
            copied = at + 1;
        }
    }
    out.push_str(&text[copied..]);
    out
}

/// [`split_pairs`] where the character that gets the spaces, the second or the first, is ASCII; the classes are given
/// bytes, and what is not ASCII is one of the other class in all its bytes or in none.
pub(crate) fn split_ascii_pairs(
    text: &str,
    first: impl Fn(u8) -> bool,
    second: impl Fn(u8) -> bool,
    spaces: Spaces,
) -> String {
    let mut out = String::with_capacity(text.len() + text.len() / 2);
    let bytes = text.as_bytes();
    let (mut copied, mut at) = (0, 0);
    while at + 1 < bytes.len() {
        if !(first(bytes[at]) && second(bytes[at + 1])) {
            at += 1;
            continue;
        }
        let stop = match spaces {
            Spaces::Second => at + 1,
            Spaces::First => at,
        };
        out.push_str(&text[copied..stop]);
        out.extend([' ', char::from(bytes[stop]), ' ']);
        copied = stop + 1;
        at += 2;
    }
    out.push_str(&text[copied..]);
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn white_space_is_pythons() {
        // Every character for which Python 3.11's str.isspace() holds.
        let python: Vec<char> = ['\t', '\n', '\u{b}', '\u{c}', '\r', ' ', '\u{85}', '\u{a0}']
            .into_iter()
            .chain('\u{1c}'..='\u{1f}')
            .chain('\u{2000}'..='\u{200a}')
            .chain([
                '\u{1680}', '\u{2028}', '\u{2029}', '\u{202f}', '\u{205f}', '\u{3000}',
            ])
            .collect();
        for c in '\0'..=char::MAX {
            assert_eq!(is_space(c), python.contains(&c), "{c:?}");
        }
    }

    proptest! {
        #[test]
        fn bytes_split_as_characters_do(text in "[a.é,5 日\\-]{0,24}") {
            let digit = |c: char| c.is_ascii_digit();
            let stop = |c: char| matches!(c, '.' | ',');
            prop_assert_eq!(
                split_ascii_pairs(&text, |b| !b.is_ascii_digit(), |b| stop(b.into()), Spaces::Second),
                split_pairs(&text, |c| !digit(c), stop, Spaces::Second)
            );
            prop_assert_eq!(
                split_ascii_pairs(&text, |b| stop(b.into()), |b| !b.is_ascii_digit(), Spaces::First),
                split_pairs(&text, stop, |c| !digit(c), Spaces::First)
            );
            prop_assert_eq!(surround_ascii(&text, |b| stop(b.into())), surround(&text, stop));
        }
    }

    #[test]
    fn pairs_do_not_overlap() {
        let dot = |c| c == '.';
        let other = |c: char| !c.is_ascii_digit();
        assert_eq!(split_pairs("a...", other, dot, Spaces::Second), "a . . . ");
        assert_eq!(split_pairs("1.5.", dot, other, Spaces::First), "1.5.");
        assert_eq!(split_pairs(".é.", dot, other, Spaces::First), " . é.");
    }
}
