//! The text of tokens one by one.

use skipbench_model::{Result, Tokenize};
use std::sync::Arc;

/// What a decoder writes for bytes that are no character, or not one yet.
const NO_CHARACTER: char = '\u{fffd}';

/// Turns tokens into text as they come. A token that ends within a character gives no text; the one that completes the
/// character gives all of it.
pub(crate) struct Detokenizer {
    tokenizer: Arc<dyn Tokenize>,
    /// The tokens whose text still matters to that of the next.
    ids: Vec<u32>,
    /// Of these, those whose text was given.
    given: usize,
}

impl Detokenizer {
    pub(crate) fn new(tokenizer: &Arc<dyn Tokenize>) -> Self {
        Self {
            tokenizer: tokenizer.clone(),
            ids: Vec::new(),
            given: 0,
        }
    }

    /// What the text gains by the next token.
    pub(crate) fn push(&mut self, id: u32) -> Result<String> {
        self.ids.push(id);
        let before = self.tokenizer.decode(&self.ids[..self.given])?;
        let now = self.tokenizer.decode(&self.ids)?;
        if now.ends_with(NO_CHARACTER) {
            return Ok(String::new());
        }
        let gained = now
            .strip_prefix(&before)
            .or(now.get(before.len()..))
            .unwrap_or_default();
        // A decoder looks no further back than to the last token that has a text.
        if !gained.is_empty() {
            self.ids.drain(..self.given);
            self.given = self.ids.len();
        }
        Ok(gained.to_owned())
    }
}

/// What a token is called: the text that it adds behind `before`, or its id where it adds none of its own, as a special token
/// or a part of a character does.
pub(crate) fn name(tokenizer: &dyn Tokenize, before: Option<u32>, id: u32) -> Result<String> {
    let text = match before {
        None => tokenizer.decode(&[id])?,
        Some(before) => {
            let both = tokenizer.decode(&[before, id])?;
            let first = tokenizer.decode(&[before])?;
            both.strip_prefix(&first).unwrap_or_default().to_owned()
        }
    };
    Ok(named(text, id))
}

/// The text of a token, or its id where it has none.
pub(crate) fn named(text: String, id: u32) -> String {
    match text.is_empty() || text.contains(NO_CHARACTER) {
        true => format!("token_id:{id}"),
        false => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use skipbench_model::ByteTokenizer;

    #[test]
    fn a_character_comes_with_its_last_byte() {
        let tokenizer: Arc<dyn Tokenize> = Arc::new(ByteTokenizer);
        let mut detokenizer = Detokenizer::new(&tokenizer);
        let text = "aé€\u{1f600}b";
        let pieces: Vec<String> = text
            .bytes()
            .map(|byte| detokenizer.push(byte.into()).unwrap())
            .collect();
        assert_eq!(pieces.concat(), text);
        let expected = ["a", "", "é", "", "", "€", "", "", "", "\u{1f600}", "b"];
        assert_eq!(pieces, expected);
        assert_eq!(detokenizer.push(256).unwrap(), "", "the end of sequence");
        assert_eq!(detokenizer.push(b'!'.into()).unwrap(), "!");
    }

    #[test]
    fn a_token_without_a_text_of_its_own_is_called_by_its_id() {
        let name = |before, id| name(&ByteTokenizer, before, id).unwrap();
        assert_eq!(name(None, 97), "a");
        assert_eq!(name(Some(98), 97), "a");
        assert_eq!(name(Some(98), 256), "token_id:256");
        assert_eq!(name(Some(98), 0xc3), "token_id:195");
    }
}
