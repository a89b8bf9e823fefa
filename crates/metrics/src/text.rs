//! Text as Python sees it: the reference implementations are written in Python, and a score is only the same where
//! white space and case are.

/// Whether Python's `str.split()` and `str.strip()` take `c` as white space. Beyond Rust's [`char::is_whitespace`] these
/// are the information separators U+001C to U+001F.
pub(crate) fn is_space(c: char) -> bool {
    c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c)
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

#[cfg(test)]
mod tests {
    use super::*;

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

    #[test]
    fn pairs_do_not_overlap() {
        let dot = |c| c == '.';
        let other = |c: char| !c.is_ascii_digit();
        assert_eq!(split_pairs("a...", other, dot, Spaces::Second), "a . . . ");
        assert_eq!(split_pairs("1.5.", dot, other, Spaces::First), "1.5.");
        assert_eq!(split_pairs(".é.", dot, other, Spaces::First), " . é.");
    }
}
