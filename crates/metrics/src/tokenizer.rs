//! The tokenizers of sacrebleu's BLEU.

use crate::text::{Spaces, split_ascii_pairs, split_pairs, surround, surround_ascii, trim};
use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;
use unicode_properties::{GeneralCategoryGroup, UnicodeGeneralCategory};

/// How BLEU finds the tokens of a segment. The names are sacrebleu's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Tokenizer {
    /// That of the WMT script mteval-v13a: ASCII punctuation stands alone, except `.` and `,` between digits, `-` before
    /// a digit, and the apostrophe.
    #[default]
    V13a,
    /// That of mteval-v14 with `--international-tokenization`: Unicode punctuation and symbols stand alone. A full stop
    /// after a number at the end of a segment stays with the number, as in the script.
    Intl,
    /// Each Chinese character is a token, the rest as in `13a`. sacrebleu writes two of its ranges such that they take in
    /// U+2001..U+2A6D and U+2F81..U+2FA1 instead of the supplementary ideographs; so do we.
    Zh,
    /// Each character is a token.
    Char,
    /// The text is tokenized already: split at white space.
    None,
}

impl Tokenizer {
    pub(crate) const ALL: [Tokenizer; 5] = [
        Tokenizer::V13a,
        Tokenizer::Intl,
        Tokenizer::Zh,
        Tokenizer::Char,
        Tokenizer::None,
    ];

    /// Name in a signature.
    pub fn name(self) -> &'static str {
        match self {
            Tokenizer::V13a => "13a",
            Tokenizer::Intl => "intl",
            Tokenizer::Zh => "zh",
            Tokenizer::Char => "char",
            Tokenizer::None => "none",
        }
    }

    /// The segment with white space between its tokens.
    pub(crate) fn apply(self, segment: &str) -> String {
        match self {
            Tokenizer::V13a => western(&format!(" {} ", unescaped(segment))),
            Tokenizer::Intl => {
                let text = split_pairs(segment, |c| !is_number(c), is_punctuation, Spaces::Second);
                let text = split_pairs(&text, is_punctuation, |c| !is_number(c), Spaces::First);
                surround(&text, is_symbol)
            }
            Tokenizer::Zh => western(&surround(trim(segment), is_chinese)),
            Tokenizer::Char => surround(segment, |_| true),
            Tokenizer::None => segment.to_owned(),
        }
    }
}

/// The language-independent part of mteval-v13a.
fn unescaped(segment: &str) -> Cow<'_, str> {
    if !segment
        .bytes()
        .any(|byte| matches!(byte, b'<' | b'\n' | b'&'))
    {
        return Cow::Borrowed(segment);
    }
    let text = segment
        .replace("<skipped>", "")
        .replace("-\n", "")
        .replace('\n', " ")
        .replace("&quot;", "\"")
        .replace("&amp;", "&")
        .replace("&lt;", "<")
        .replace("&gt;", ">");
    Cow::Owned(text)
}

/// The part of mteval-v13a for Western languages; TER's tokenizer begins with it too.
fn western(text: &str) -> String {
    separate_stops(&surround_ascii(text, is_western_symbol))
}

/// ASCII but for letters, digits, control characters, the apostrophe, `,`, `-` and `.`.
pub(crate) fn is_western_symbol(byte: u8) -> bool {
    matches!(byte, b'{'..=b'~' | b'['..=b'`' | b' '..=b'&' | b'('..=b'+' | b':'..=b'@' | b'/')
}

/// Parts `.` and `,` from what is not a digit, and `-` from a digit before it.
pub(crate) fn separate_stops(text: &str) -> String {
    let digit = |byte: u8| byte.is_ascii_digit();
    let stop = |byte: u8| matches!(byte, b'.' | b',');
    let text = split_ascii_pairs(text, |byte| !digit(byte), stop, Spaces::Second);
    let text = split_ascii_pairs(&text, stop, |byte| !digit(byte), Spaces::First);
    split_ascii_pairs(&text, digit, |byte| byte == b'-', Spaces::Second)
}

fn is_number(c: char) -> bool {
    c.general_category_group() == GeneralCategoryGroup::Number
}

fn is_punctuation(c: char) -> bool {
    c.general_category_group() == GeneralCategoryGroup::Punctuation
}

fn is_symbol(c: char) -> bool {
    c.general_category_group() == GeneralCategoryGroup::Symbol
}

fn is_chinese(c: char) -> bool {
    matches!(c,
        '\u{3400}'..='\u{4db5}' | '\u{4e00}'..='\u{9fbb}'
        | '\u{f900}'..='\u{fa2d}' | '\u{fa30}'..='\u{fa6a}' | '\u{fa70}'..='\u{fad9}'
        // U+20000..U+2A6D6 and U+2F800..U+2FA1D as sacrebleu writes them.
        | '\u{2001}'..='\u{2a6d}' | '\u{2f81}'..='\u{2fa1}'
        | '\u{ff00}'..='\u{ffef}' | '\u{2e80}'..='\u{2eff}' | '\u{3000}'..='\u{303f}'
        | '\u{31c0}'..='\u{31ef}' | '\u{2f00}'..='\u{2fdf}' | '\u{2ff0}'..='\u{2fff}'
        | '\u{3100}'..='\u{312f}' | '\u{31a0}'..='\u{31bf}'
        | '\u{fe10}'..='\u{fe1f}' | '\u{fe30}'..='\u{fe4f}'
        | '\u{3200}'..='\u{33ff}')
}

impl fmt::Display for Tokenizer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Tokenizer {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        Self::ALL
            .into_iter()
            .find(|tokenizer| tokenizer.name() == name)
            .ok_or_else(|| {
                format!(
                    "unknown tokenizer `{name}`; there are {}",
                    Self::ALL.map(|t| format!("`{t}`")).join(", ")
                )
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::text::words;

    fn tokens(tokenizer: Tokenizer, text: &str) -> String {
        words(&tokenizer.apply(text)).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn numbers_keep_their_stops() {
        let text = "It's 1,234.5 (about 3-4%), e.g. 7.";
        assert_eq!(
            tokens(Tokenizer::V13a, text),
            "It's 1,234.5 ( about 3 - 4 % ) , e . g . 7 ."
        );
        assert_eq!(
            tokens(Tokenizer::Intl, text),
            "It ' s 1,234.5 ( about 3-4 % ) , e . g . 7."
        );
    }

    #[test]
    fn quotes_of_the_reference() {
        assert_eq!(
            tokens(Tokenizer::Zh, "他“说”a\u{20000}b"),
            "他 “ 说 ” a\u{20000}b"
        );
        assert_eq!(tokens(Tokenizer::Char, "ab c"), "a b c");
        assert_eq!(tokens(Tokenizer::None, "a, b\u{1c}c"), "a, b c");
    }
}
