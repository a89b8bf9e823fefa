//! The tokenizer of a GGUF file, from `tokenizer.ggml.*`.

use super::Gguf;
use super::pre::Pre;
use super::sentencepiece::SentencePiece;
use crate::error::{ModelError, Result};
use crate::tokenizer::{Engine, SpecialTokens};
use std::collections::HashSet;
use tokenizers::decoders::DecoderWrapper;
use tokenizers::decoders::byte_fallback::ByteFallback;
use tokenizers::decoders::byte_level::ByteLevel;
use tokenizers::decoders::fuse::Fuse;
use tokenizers::decoders::sequence::Sequence as Decoders;
use tokenizers::decoders::strip::Strip;
use tokenizers::models::bpe::{BPE, Vocab};
use tokenizers::normalizers::{NormalizerWrapper, Prepend, Replace, Sequence as Normalizers};
use tokenizers::processors::template::{SpecialToken, TemplateProcessing};
use tokenizers::{AddedToken, Tokenizer, TokenizerImpl};

/// A tokenizer with what the file says of its use.
pub(crate) struct GgufTokenizer {
    pub(crate) engine: Engine,
    pub(crate) special: SpecialTokens,
    /// Ids that end an answer.
    pub(crate) eos_ids: Vec<u32>,
}

/// Texts of tokens that end a turn or a text, as llama.cpp knows them: files often name only one of several. `</s>` is none of
/// them where the file does not name it: it is an HTML tag to Gemma.
const ENDS: [&str; 11] = [
    "<|eot_id|>",
    "<|im_end|>",
    "<|end|>",
    "<end_of_turn>",
    "<|endoftext|>",
    "<|end_of_text|>",
    "<|eom_id|>",
    "<EOT>",
    "[EOT]",
    "<eos>",
    "<end_of_utterance>",
];

/// SentencePiece's sign for a space.
const SPACE: &str = "▁";

/// `tokenizer.ggml.token_type`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Role {
    Normal,
    /// Unknown or control: has a meaning and no text.
    Special,
    /// Text that is always one token.
    UserDefined,
}

/// The vocabulary as the file has it.
struct Vocabulary {
    tokens: Vec<String>,
    roles: Vec<Role>,
}

impl Vocabulary {
    fn read(gguf: &Gguf) -> Result<Self> {
        let missing = || gguf.error("`tokenizer.ggml.tokens` is missing: it holds no tokenizer");
        let mut tokens = gguf.texts("tokenizer.ggml.tokens")?.ok_or_else(missing)?;
        for (id, token) in tokens.iter_mut().enumerate() {
            if token.is_empty() {
                *token = format!("[EMPTY_{id}]");
            }
        }
        let types = gguf.numbers("tokenizer.ggml.token_type")?;
        if types
            .as_ref()
            .is_some_and(|types| types.len() != tokens.len())
        {
            return Err(gguf.error(
                "`tokenizer.ggml.token_type` has not as many entries as `tokenizer.ggml.tokens`",
            ));
        }
        let role = |kind: f64| match kind as i64 {
            2 | 3 => Role::Special,
            4 => Role::UserDefined,
            _ => Role::Normal,
        };
        let roles = match types {
            Some(types) => types.into_iter().map(role).collect(),
            None => vec![Role::Normal; tokens.len()],
        };
        let mut vocabulary = Self { tokens, roles };
        vocabulary.mark_ends();
        Ok(vocabulary)
    }

    /// Converters have left ends of turns as ordinary tokens.
    fn mark_ends(&mut self) {
        for (token, role) in self.tokens.iter().zip(&mut self.roles) {
            if ENDS.contains(&token.as_str()) {
                *role = Role::Special;
            }
        }
    }

    fn text(&self, id: u32) -> Option<&str> {
        self.tokens.get(id as usize).map(String::as_str)
    }

    /// Tokens that are found in a text before anything else is done to it.
    fn added(&self, strip: impl Fn(&str) -> bool) -> Vec<AddedToken> {
        let mut seen = HashSet::new();
        let entries = self.tokens.iter().zip(&self.roles);
        entries
            .filter(|(token, role)| **role != Role::Normal && seen.insert(token.as_str()))
            .map(|(token, role)| {
                let special = *role == Role::Special;
                AddedToken::from(token.clone(), special)
                    .normalized(false)
                    .rstrip(strip(token))
            })
            .collect()
    }

    fn ends(&self) -> impl Iterator<Item = u32> {
        let tokens = self.tokens.iter().enumerate();
        tokens
            .filter(|(_, token)| ENDS.contains(&token.as_str()))
            .map(|(id, _)| id as u32)
    }
}

/// Ids that the file names.
struct Named {
    bos: Option<u32>,
    eos: Option<u32>,
    unknown: Option<u32>,
    padding: Option<u32>,
}

impl Named {
    fn read(gguf: &Gguf, vocabulary: &Vocabulary) -> Result<Self> {
        let pieces = gguf.text("tokenizer.ggml.model")? == Some("llama");
        let id = |name: &str, default: Option<u32>| named_id(gguf, vocabulary, name, default);
        Ok(Self {
            bos: id("bos", pieces.then_some(1))?,
            eos: id("eos", pieces.then_some(2))?,
            unknown: id("unknown", pieces.then_some(0))?,
            padding: id("padding", None)?,
        })
    }

    fn texts(&self, gguf: &Gguf, vocabulary: &Vocabulary) -> Result<SpecialTokens> {
        let text = |id: Option<u32>| Some(vocabulary.text(id?)?.to_owned());
        Ok(SpecialTokens {
            bos: text(self.bos),
            eos: text(self.eos),
            unknown: text(self.unknown),
            padding: text(self.padding),
            chat_template: gguf.text("tokenizer.chat_template")?.map(str::to_owned),
        })
    }
}

/// The id under `tokenizer.ggml.NAME_token_id`, if it is one of the vocabulary.
fn named_id(
    gguf: &Gguf,
    vocabulary: &Vocabulary,
    name: &str,
    default: Option<u32>,
) -> Result<Option<u32>> {
    let key = format!("tokenizer.ggml.{name}_token_id");
    let id = gguf.id(&key)?.or(default);
    Ok(id.filter(|&id| vocabulary.text(id).is_some()))
}

/// The tokens with a name and the chat template of a file, without its tokenizer.
///
/// # Errors
/// Metadata that are missing or of the wrong kind.
pub(crate) fn special_tokens(gguf: &Gguf) -> Result<SpecialTokens> {
    let vocabulary = Vocabulary::read(gguf)?;
    Named::read(gguf, &vocabulary)?.texts(gguf, &vocabulary)
}

/// The tokenizer of a file.
///
/// # Errors
/// Metadata that are missing, contradict one another or name a kind that is not known.
pub(crate) fn tokenizer(gguf: &Gguf) -> Result<GgufTokenizer> {
    let vocabulary = Vocabulary::read(gguf)?;
    let named = Named::read(gguf, &vocabulary)?;
    let mut eos_ids: Vec<u32> = named.eos.into_iter().collect();
    eos_ids.extend(named_id(gguf, &vocabulary, "eot", None)?);
    eos_ids.extend(named_id(gguf, &vocabulary, "eom", None)?);
    eos_ids.extend(vocabulary.ends());
    let mut seen = HashSet::new();
    eos_ids.retain(|&id| seen.insert(id));
    let special = named.texts(gguf, &vocabulary)?;
    let engine = match gguf.text("tokenizer.ggml.model")? {
        Some("gpt2") => byte_level(gguf, vocabulary, &named)?,
        Some("llama") => sentence_piece(gguf, vocabulary, &named)?,
        Some(other) => {
            return Err(gguf.error(format!(
                "`tokenizer.ggml.model` is `{other}`, which is not supported; gpt2 and llama are"
            )));
        }
        None => return Err(gguf.error("`tokenizer.ggml.model` is missing: it holds no tokenizer")),
    };
    Ok(GgufTokenizer {
        engine,
        special,
        eos_ids,
    })
}

/// Byte-level BPE, as GPT-2's (Radford et al., 2019).
fn byte_level(gguf: &Gguf, vocabulary: Vocabulary, named: &Named) -> Result<Engine> {
    let name = gguf.text("tokenizer.ggml.pre")?.unwrap_or_default();
    let pre = Pre::of(name).ok_or_else(|| {
        gguf.error(format!(
            "`tokenizer.ggml.pre` is `{name}`, which is not known; {} are",
            Pre::names()
        ))
    })?;
    let merges = gguf
        .texts("tokenizer.ggml.merges")?
        .ok_or_else(|| gguf.error("`tokenizer.ggml.merges` is missing"))?;
    let mut ids = Vocab::with_capacity(vocabulary.tokens.len());
    for (id, token) in vocabulary.tokens.iter().enumerate() {
        ids.entry(token.clone()).or_insert(id as u32);
    }
    let known = |text: &str| ids.contains_key(text);
    let merges = merges.iter().filter_map(|merge| {
        // A part may begin with a space that was written as itself.
        let (at, _) = merge
            .char_indices()
            .skip(1)
            .find(|(_, char)| *char == ' ')?;
        let (left, right) = (&merge[..at], &merge[at + 1..]);
        // The library knows only merges of tokens to a token; llama.cpp never reaches others either.
        let usable = known(left) && known(right) && known(&format!("{left}{right}"));
        usable.then(|| (left.to_owned(), right.to_owned()))
    });
    let merges = merges.collect();
    let fail = |error| failed(gguf, error);
    let model = BPE::builder()
        .vocab_and_merges(ids, merges)
        .ignore_merges(pre.ignore_merges)
        .build()
        .map_err(fail)?;
    let mut tokenizer = Tokenizer::new(model);
    tokenizer.with_pre_tokenizer(Some(pre.build().map_err(fail)?));
    tokenizer.with_decoder(Some(ByteLevel::default()));
    tokenizer.with_post_processor(frame(gguf, &vocabulary, named, pre.add_bos)?);
    let added = vocabulary.added(strip_rule(gguf)?);
    tokenizer.add_tokens(added).map_err(fail)?;
    Ok(Engine::Library(Box::new(tokenizer)))
}

/// SentencePiece's BPE, as LLaMA's and Gemma's.
fn sentence_piece(gguf: &Gguf, vocabulary: Vocabulary, named: &Named) -> Result<Engine> {
    let scores = gguf.numbers("tokenizer.ggml.scores")?.ok_or_else(|| {
        gguf.error("`tokenizer.ggml.scores` is missing, and the merges follow from it")
    })?;
    if scores.len() != vocabulary.tokens.len() {
        return Err(gguf
            .error("`tokenizer.ggml.scores` has not as many entries as `tokenizer.ggml.tokens`"));
    }
    let scores = scores.into_iter().map(|score| score as f32).collect();
    let prefix = gguf
        .bool("tokenizer.ggml.add_space_prefix")?
        .unwrap_or(true);
    let post = frame(gguf, &vocabulary, named, true)?;
    let added = vocabulary.added(strip_rule(gguf)?);
    let model = SentencePiece::new(vocabulary.tokens, scores, named.unknown);
    let fail = |error| failed(gguf, error);
    let mut normalizers = Vec::new();
    if prefix {
        normalizers.push(NormalizerWrapper::Prepend(Prepend::new(SPACE.to_owned())));
    }
    let spaces = Replace::new(" ", SPACE).map_err(fail)?;
    normalizers.push(NormalizerWrapper::Replace(spaces));
    let mut decoders = vec![
        DecoderWrapper::Replace(Replace::new(SPACE, " ").map_err(fail)?),
        DecoderWrapper::ByteFallback(ByteFallback::new()),
        DecoderWrapper::Fuse(Fuse::new()),
    ];
    if prefix {
        decoders.push(DecoderWrapper::Strip(Strip::new(' ', 1, 0)));
    }
    let mut tokenizer = TokenizerImpl::new(model);
    tokenizer
        .with_normalizer(Some(Normalizers::new(normalizers)))
        .map_err(fail)?;
    tokenizer.with_decoder(Some(Decoders::new(decoders)));
    tokenizer.with_post_processor(post);
    tokenizer.add_tokens(added).map_err(fail)?;
    Ok(Engine::SentencePiece(Box::new(tokenizer)))
}

/// Which tokens swallow the white space behind them: Phi-3's, which the file does not say.
fn strip_rule(gguf: &Gguf) -> Result<impl Fn(&str) -> bool> {
    let name = gguf
        .text("general.name")?
        .unwrap_or_default()
        .to_lowercase();
    let phi3 = name.contains("phi-3") || name.contains("phi3");
    Ok(move |token: &str| phi3 && !matches!(token, "<unk>" | "<s>" | "<|endoftext|>"))
}

/// What is put in front of a text and behind it.
fn frame(
    gguf: &Gguf,
    vocabulary: &Vocabulary,
    named: &Named,
    add_bos: bool,
) -> Result<Option<TemplateProcessing>> {
    let wanted = |name: &str, default: bool, id: Option<u32>| -> Result<Option<SpecialToken>> {
        let key = format!("tokenizer.ggml.add_{name}_token");
        let stated = gguf.bool(&key)?;
        match (stated.unwrap_or(default), id) {
            (false, _) => Ok(None),
            (true, None) if stated.is_none() => Ok(None),
            (true, None) => Err(gguf.error(format!(
                "`{key}` is true, and no `tokenizer.ggml.{name}_token_id` of the vocabulary is given"
            ))),
            (true, Some(id)) => {
                let text = vocabulary.text(id).unwrap_or_default().to_owned();
                SpecialToken::new(name.to_owned(), vec![id], vec![text])
                    .map(Some)
                    .map_err(|error| failed(gguf, error))
            }
        }
    };
    let bos = wanted("bos", add_bos, named.bos)?;
    let eos = wanted("eos", false, named.eos)?;
    let template = match (&bos, &eos) {
        (None, None) => return Ok(None),
        (Some(_), None) => "bos $A",
        (None, Some(_)) => "$A eos",
        (Some(_), Some(_)) => "bos $A eos",
    };
    let tokens: Vec<SpecialToken> = [bos, eos].into_iter().flatten().collect();
    let built = TemplateProcessing::builder()
        .try_single(template)
        .map_err(|error| failed(gguf, error.into()))?
        .special_tokens(tokens)
        .build()
        .map_err(|error| failed(gguf, Box::new(error)))?;
    Ok(Some(built))
}

fn failed(gguf: &Gguf, error: tokenizers::Error) -> ModelError {
    gguf.error(format!("its tokenizer cannot be built: {error}"))
}
