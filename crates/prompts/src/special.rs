//! The special tokens that templates write.

use crate::error::{PromptError, Result};
use serde_json::{Map, Value};
use std::path::Path;

/// The names that transformers gives to templates.
const NAMES: [&str; 7] = [
    "bos_token",
    "eos_token",
    "unk_token",
    "sep_token",
    "pad_token",
    "cls_token",
    "mask_token",
];

/// Texts of special tokens by name: `bos_token`, `eos_token`, ...
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SpecialTokens(Vec<(String, String)>);

impl SpecialTokens {
    /// From names and texts.
    pub fn new<N: Into<String>, T: Into<String>>(tokens: impl IntoIterator<Item = (N, T)>) -> Self {
        let tokens = tokens.into_iter();
        Self(
            tokens
                .map(|(name, text)| (name.into(), text.into()))
                .collect(),
        )
    }

    /// What `tokenizer_config.json` and, where it lacks one, `special_tokens_map.json` of a checkpoint folder name.
    ///
    /// # Errors
    /// A file that cannot be read or is no JSON object.
    pub fn of_folder(dir: &Path) -> Result<Self> {
        let mut found: Vec<(String, String)> = Vec::new();
        for file in ["tokenizer_config.json", "special_tokens_map.json"] {
            let Some(file) = read_object(&dir.join(file))? else {
                continue;
            };
            for name in NAMES {
                let known = found.iter().any(|(known, _)| known == name);
                if let Some(text) = file.get(name).and_then(text).filter(|_| !known) {
                    found.push((name.to_owned(), text.to_owned()));
                }
            }
        }
        Ok(Self(found))
    }

    /// The text of a token, where there is one.
    pub fn get(&self, name: &str) -> Option<&str> {
        let found = self.0.iter().find(|(known, _)| known == name);
        found.map(|(_, text)| text.as_str())
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0
            .iter()
            .map(|(name, text)| (name.as_str(), text.as_str()))
    }
}

/// A token is written as its text or as an object that holds it.
fn text(token: &Value) -> Option<&str> {
    token.as_str().or_else(|| token.get("content")?.as_str())
}

/// The JSON object of a file; `None` where there is no such file.
pub(crate) fn read_object(path: &Path) -> Result<Option<Map<String, Value>>> {
    let Some(text) = read_text(path)? else {
        return Ok(None);
    };
    let malformed = |message: String| PromptError::Malformed {
        path: path.to_path_buf(),
        message,
    };
    match serde_json::from_str(&text) {
        Ok(Value::Object(object)) => Ok(Some(object)),
        Ok(_) => Err(malformed("expected a JSON object".to_owned())),
        Err(error) => Err(malformed(error.to_string())),
    }
}

/// The text of a file without its byte-order mark; `None` where there is no such file.
pub(crate) fn read_text(path: &Path) -> Result<Option<String>> {
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(Some(match text.strip_prefix('\u{feff}') {
            Some(text) => text.to_owned(),
            None => text,
        })),
        Err(error) if is_absent(&error) => Ok(None),
        Err(source) => Err(PromptError::Read {
            path: path.to_path_buf(),
            source,
        }),
    }
}

fn is_absent(error: &std::io::Error) -> bool {
    use std::io::ErrorKind::{NotADirectory, NotFound};
    [NotFound, NotADirectory].contains(&error.kind())
}
