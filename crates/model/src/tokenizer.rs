//! Text to token ids and back.

use crate::added_tokens;
use crate::config::ConfigFile;
use crate::error::{ModelError, Result};
use crate::gguf::{self, Gguf, PieceTokenizer};
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

/// The tokens with a name, by their texts, and the template that puts them around the turns of a chat.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SpecialTokens {
    /// Beginning of sequence.
    pub bos: Option<String>,
    /// End of sequence.
    pub eos: Option<String>,
    /// Stands for what has no token.
    pub unknown: Option<String>,
    /// Fills up rows.
    pub padding: Option<String>,
    /// The chat template of a GGUF file, as it is written there; `None` for a folder, which has files for it.
    pub chat_template: Option<String>,
}

impl SpecialTokens {
    /// Those of a `.gguf` file, without making its tokenizer; `None` for a folder, which has files for them.
    ///
    /// # Errors
    /// A file that is no GGUF, or holds no tokenizer.
    pub fn of_gguf(model: &Path) -> Result<Option<Self>> {
        match gguf::is_gguf(model) {
            true => gguf::special_tokens(&Gguf::open(model)?).map(Some),
            false => Ok(None),
        }
    }
}

/// What turns text into ids.
pub(crate) enum Engine {
    /// A tokenizer that the library has all parts of.
    Library(Box<Tokenizer>),
    /// SentencePiece's BPE by scores.
    SentencePiece(Box<PieceTokenizer>),
}

impl Engine {
    /// Ids of a text, with what the model expects in front and behind if `special`.
    fn encode(&self, text: &str, special: bool) -> tokenizers::Result<Vec<u32>> {
        let encoding = match self {
            Self::Library(tokenizer) => tokenizer.encode(text, special),
            Self::SentencePiece(tokenizer) => tokenizer.encode(text, special),
        };
        Ok(encoding?.get_ids().to_vec())
    }

    /// Text of ids, special tokens left out.
    fn decode(&self, ids: &[u32]) -> tokenizers::Result<String> {
        match self {
            Self::Library(tokenizer) => tokenizer.decode(ids, true),
            Self::SentencePiece(tokenizer) => tokenizer.decode(ids, true),
        }
    }

    fn token(&self, id: u32) -> Option<String> {
        match self {
            Self::Library(tokenizer) => tokenizer.id_to_token(id),
            Self::SentencePiece(tokenizer) => tokenizer.id_to_token(id),
        }
    }
}

/// The tokenizer of a checkpoint, with the ids that end an answer: of a folder, `tokenizer.json` and the ids of
/// `generation_config.json`, or failing that of `config.json`; of a `.gguf` file, its metadata.
pub struct TextTokenizer {
    engine: Engine,
    special: SpecialTokens,
    eos_ids: Vec<u32>,
    vocab_size: usize,
    path: PathBuf,
}

impl TextTokenizer {
    /// Reads the tokenizer of a checkpoint: of a Hugging Face folder or a `.gguf` file. It may have more tokens than the
    /// model has embeddings, or fewer; a text with a token that the model cannot embed is refused by
    /// [`encode`](Tokenize::encode).
    ///
    /// # Errors
    /// A file that is missing or malformed.
    pub fn load(model: &Path, vocab_size: usize) -> Result<Self> {
        let (path, engine, special, mut eos_ids) = match gguf::is_gguf(model) {
            true => {
                let read = gguf::tokenizer(&Gguf::open(model)?)?;
                (model.to_path_buf(), read.engine, read.special, read.eos_ids)
            }
            false => {
                let path = model.join("tokenizer.json");
                let (tokenizer, special) = from_folder(model, &path)?;
                let engine = Engine::Library(Box::new(tokenizer));
                (path, engine, special, eos_ids(model)?)
            }
        };
        eos_ids.retain(|&id| {
            let embedded = (id as usize) < vocab_size;
            if !embedded {
                tracing::warn!(
                    "{}: the end-of-sequence id {id} is outside the model's vocabulary of {vocab_size}, so it never comes",
                    path.display()
                );
            }
            embedded
        });
        Ok(Self {
            engine,
            special,
            eos_ids,
            vocab_size,
            path,
        })
    }

    /// The tokens with a name, and the chat template of a GGUF file.
    pub fn special_tokens(&self) -> &SpecialTokens {
        &self.special
    }

    /// The contents of a `tokenizer.json`; `None` for SentencePiece's BPE by scores, which has no such form here.
    ///
    /// # Errors
    /// The library cannot write it.
    pub fn to_json(&self) -> Result<Option<String>> {
        match &self.engine {
            Engine::Library(tokenizer) => tokenizer
                .to_string(true)
                .map(Some)
                .map_err(|error| self.fail(&error)),
            Engine::SentencePiece(_) => Ok(None),
        }
    }

    /// Whether [`encode`](Tokenize::encode) puts a beginning of sequence in front of a text.
    ///
    /// # Errors
    /// The tokenizer refuses the empty text.
    pub fn adds_bos(&self) -> Result<bool> {
        let ids = self
            .engine
            .encode("", true)
            .map_err(|error| self.fail(&error))?;
        let first = ids.first().and_then(|&id| self.engine.token(id));
        Ok(first.is_some() && first == self.special.bos)
    }

    fn fail(&self, error: &dyn std::fmt::Display) -> ModelError {
        ModelError::Tokenizer {
            path: self.path.clone(),
            message: error.to_string(),
        }
    }
}

/// `tokenizer.json` with the tokens that stand in the files beside it.
fn from_folder(dir: &Path, path: &Path) -> Result<(Tokenizer, SpecialTokens)> {
    if !path.is_file() {
        return Err(ModelError::NotACheckpoint {
            dir: dir.to_path_buf(),
            missing: "tokenizer.json".to_owned(),
        });
    }
    let fail = |error: tokenizers::Error| ModelError::Tokenizer {
        path: path.to_path_buf(),
        message: error.to_string(),
    };
    let bytes = std::fs::read(path).map_err(|source| ModelError::Read {
        path: path.to_path_buf(),
        source,
    })?;
    let json = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(&bytes);
    let mut tokenizer = Tokenizer::from_bytes(json).map_err(fail)?;
    // A prompt is taken whole or refused; truncation set in the file would hide that.
    tokenizer.with_truncation(None).map_err(fail)?;
    tokenizer.with_padding(None);
    let special = added_tokens::add(dir, &mut tokenizer)?;
    Ok((tokenizer, special))
}

impl Tokenize for TextTokenizer {
    fn encode_with(&self, text: &str, add_special_tokens: bool) -> Result<Vec<u32>> {
        let ids = self
            .engine
            .encode(text, add_special_tokens)
            .map_err(|error| self.fail(&error))?;
        match ids.iter().find(|&&id| id as usize >= self.vocab_size) {
            None => Ok(ids),
            Some(&id) => Err(self.fail(&format!(
                "the text holds the token `{}` with the id {id}, and the model has {} embeddings; leave it out of the text",
                self.engine.token(id).unwrap_or_default(),
                self.vocab_size
            ))),
        }
    }

    fn decode(&self, ids: &[u32]) -> Result<String> {
        self.engine.decode(ids).map_err(|error| self.fail(&error))
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
