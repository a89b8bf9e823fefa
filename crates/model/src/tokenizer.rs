//! Text to token ids and back.

use crate::config::ConfigFile;
use crate::error::{ModelError, Result};
use std::path::{Path, PathBuf};
use tokenizers::Tokenizer;

/// What the harness needs of a tokenizer.
pub trait Tokenize: Send + Sync {
    /// Token ids of a prompt, with the special tokens that the model expects in front.
    ///
    /// # Errors
    /// The tokenizer refuses the text.
    fn encode(&self, text: &str) -> Result<Vec<u32>> {
        self.encode_with(text, true)
    }

    /// Token ids of a text, with the tokenizer's own special tokens around it or without.
    ///
    /// # Errors
    /// The tokenizer refuses the text.
    fn encode_with(&self, text: &str, add_special_tokens: bool) -> Result<Vec<u32>>;

    /// Text of generated ids, special tokens left out.
    ///
    /// # Errors
    /// The tokenizer refuses an id.
    fn decode(&self, ids: &[u32]) -> Result<String>;

    /// Ids that end a sequence.
    fn eos_ids(&self) -> &[u32];
}

/// `tokenizer.json` of a checkpoint, with the end-of-sequence ids of `generation_config.json`, or failing that
/// of `config.json`.
pub struct TextTokenizer {
    tokenizer: Tokenizer,
    eos_ids: Vec<u32>,
    path: PathBuf,
}

impl TextTokenizer {
    /// Reads the tokenizer of a checkpoint folder and checks it against the model's vocabulary.
    ///
    /// # Errors
    /// A file that is missing or malformed, or ids beyond the model's embedding.
    pub fn load(dir: &Path, vocab_size: usize) -> Result<Self> {
        let path = dir.join("tokenizer.json");
        if !path.is_file() {
            return Err(ModelError::NotACheckpoint {
                dir: dir.to_path_buf(),
                missing: "tokenizer.json".to_owned(),
            });
        }
        let fail = |message: String| ModelError::Tokenizer {
            path: path.clone(),
            message,
        };
        let mut tokenizer = Tokenizer::from_file(&path).map_err(|error| fail(error.to_string()))?;
        // A prompt is taken whole or refused; truncation set in the file would hide that.
        tokenizer
            .with_truncation(None)
            .map_err(|error| fail(error.to_string()))?;
        tokenizer.with_padding(None);
        let largest = tokenizer.get_vocab(true).into_values().max().unwrap_or(0);
        if largest as usize >= vocab_size {
            return Err(fail(format!(
                "its largest id is {largest}, but the model has {vocab_size} embeddings; this tokenizer belongs to another model"
            )));
        }
        let eos_ids = eos_ids(dir)?;
        if let Some(id) = eos_ids.iter().find(|&&id| id as usize >= vocab_size) {
            return Err(fail(format!(
                "the end-of-sequence id {id} is outside the model's vocabulary of {vocab_size}"
            )));
        }
        Ok(Self {
            tokenizer,
            eos_ids,
            path,
        })
    }

    fn fail(&self, error: &dyn std::fmt::Display) -> ModelError {
        ModelError::Tokenizer {
            path: self.path.clone(),
            message: error.to_string(),
        }
    }
}

impl Tokenize for TextTokenizer {
    fn encode_with(&self, text: &str, add_special_tokens: bool) -> Result<Vec<u32>> {
        let encoding = self
            .tokenizer
            .encode(text, add_special_tokens)
            .map_err(|error| self.fail(&error))?;
        Ok(encoding.get_ids().to_vec())
    }

    fn decode(&self, ids: &[u32]) -> Result<String> {
        self.tokenizer
            .decode(ids, true)
            .map_err(|error| self.fail(&error))
    }

    fn eos_ids(&self) -> &[u32] {
        &self.eos_ids
    }
}

/// `eos_token_id`, a number or a list, of the first file that has one.
pub(crate) fn eos_ids(dir: &Path) -> Result<Vec<u32>> {
    for name in ["generation_config.json", "config.json"] {
        let path = dir.join(name);
        if !path.is_file() {
            continue;
        }
        let file = ConfigFile::read(&path)?;
        let Some(value) = file.get("eos_token_id") else {
            continue;
        };
        let ids: Option<Vec<u32>> = match value.as_array() {
            Some(list) => list
                .iter()
                .map(|id| id.as_u64().and_then(|id| u32::try_from(id).ok()))
                .collect(),
            None => value
                .as_u64()
                .and_then(|id| u32::try_from(id).ok())
                .map(|id| vec![id]),
        };
        return ids.ok_or_else(|| {
            file.error(format!(
                "key `eos_token_id` must be an id or a list of ids, got {value}"
            ))
        });
    }
    Ok(Vec::new())
}

/// A byte per token, with one end-of-sequence id behind the bytes: for tests.
#[derive(Debug, Default)]
pub struct ByteTokenizer;

impl ByteTokenizer {
    /// Bytes and the end of sequence.
    pub const VOCAB_SIZE: usize = 257;
}

impl Tokenize for ByteTokenizer {
    fn encode_with(&self, text: &str, _: bool) -> Result<Vec<u32>> {
        Ok(text.bytes().map(u32::from).collect())
    }

    fn decode(&self, ids: &[u32]) -> Result<String> {
        let bytes: Vec<u8> = ids.iter().filter_map(|&id| u8::try_from(id).ok()).collect();
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    fn eos_ids(&self) -> &[u32] {
        &[256]
    }
}
