//! Tokens that stand beside `tokenizer.json`: in `tokenizer_config.json`, `special_tokens_map.json` and
//! `added_tokens.json`, taken in the order and by the rules of transformers 5 (`PreTrainedTokenizerBase._from_pretrained`
//! and `TokenizersBackend.__init__`).

use crate::config::ConfigFile;
use crate::error::Result;
use crate::tokenizer::SpecialTokens;
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::path::Path;
use tokenizers::{AddedToken, Tokenizer};

/// What transformers calls `SPECIAL_TOKENS_ATTRIBUTES`.
const NAMED: [&str; 7] = [
    "bos_token",
    "eos_token",
    "unk_token",
    "sep_token",
    "pad_token",
    "cls_token",
    "mask_token",
];

/// Adds the tokens that the folder names beside `tokenizer.json`; says which of them are the special ones.
///
/// # Errors
/// A file that is not what it should be.
pub(crate) fn add(dir: &Path, tokenizer: &mut Tokenizer) -> Result<SpecialTokens> {
    let mut settings = object(dir, "tokenizer_config.json")?;
    let decoder = settings.remove("added_tokens_decoder");
    let mut listed: BTreeMap<u64, AddedToken> = BTreeMap::new();
    match decoder {
        Some(Value::Object(decoder)) => {
            for (id, token) in decoder {
                if let (Ok(id), Some(token)) = (id.parse(), added(&token, None)) {
                    listed.insert(id, token);
                }
            }
        }
        _ => {
            // The `additional_special_tokens` of the map come too late in transformers to make a listed token special.
            let mut special: Vec<String> = extra(&settings).filter_map(text).collect();
            settings.extend(object(dir, "special_tokens_map.json")?);
            special.extend(named(&settings).filter_map(text));
            for (token, id) in object(dir, "added_tokens.json")? {
                if let Some(id) = id.as_u64() {
                    let is_special = special.contains(&token);
                    listed.insert(id, AddedToken::from(token, is_special));
                }
            }
        }
    }
    let present: Vec<AddedToken> = tokenizer.get_added_tokens_decoder().into_values().collect();
    let mut wanted: Vec<AddedToken> = listed.values().cloned().collect();
    wanted.retain(|token| !present.contains(token));
    let known = |token: &str, wanted: &[AddedToken]| {
        present
            .iter()
            .chain(wanted)
            .any(|known| known.content == token)
    };
    for value in named(&settings).chain(extra(&settings)) {
        let token = text(value).and_then(|content| added(value, Some(content)));
        if let Some(token) = token.filter(|token| !known(&token.content, &wanted)) {
            wanted.push(token);
        }
    }
    let names: Vec<String> = named(&settings).filter_map(text).collect();
    for token in &mut wanted {
        token.special |= names.contains(&token.content);
    }
    let texts: Vec<String> = wanted.iter().map(|token| token.content.clone()).collect();
    if let Err(error) = tokenizer.add_tokens(wanted) {
        let file = ConfigFile::of(&dir.join("tokenizer_config.json"), Value::Null);
        return Err(file.error(format!("its tokens cannot be added: {error}")));
    }
    for (&id, token) in &listed {
        let found = tokenizer.token_to_id(&token.content).map(u64::from);
        if texts.contains(&token.content) && found != Some(id) {
            tracing::warn!(
                "{}: token `{}` is said to have the id {id}; transformers gives it {}, and so does this",
                dir.display(),
                token.content,
                found.map_or_else(|| "none".to_owned(), |id| id.to_string())
            );
        }
    }
    let of = |key: &str| settings.get(key).and_then(text);
    Ok(SpecialTokens {
        bos: of("bos_token"),
        eos: of("eos_token"),
        unknown: of("unk_token"),
        padding: of("pad_token"),
        chat_template: None,
    })
}

/// The object in a file; empty where there is none.
fn object(dir: &Path, name: &str) -> Result<Map<String, Value>> {
    let path = dir.join(name);
    if !path.is_file() {
        return Ok(Map::new());
    }
    let file = ConfigFile::read(&path)?;
    let object = file.object().cloned();
    object.ok_or_else(|| file.error("not a JSON object"))
}

/// The special tokens that have a name: the usual ones, those that a model has beside them, and those of a dictionary of
/// extra ones.
fn named(settings: &Map<String, Value>) -> impl Iterator<Item = &Value> {
    let usual = NAMED.iter().filter_map(|key| settings.get(*key));
    let own = settings.iter().filter(|(key, value)| {
        key.ends_with("_token") && !NAMED.contains(&key.as_str()) && value.is_string()
    });
    let extra = settings.get("extra_special_tokens");
    let extra = extra.and_then(Value::as_object).into_iter().flatten();
    usual
        .chain(own.map(|(_, value)| value))
        .chain(extra.map(|(_, value)| value))
}

/// The special tokens that stand in a list.
fn extra(settings: &Map<String, Value>) -> impl Iterator<Item = &Value> {
    let list = |key: &str| {
        let list = settings.get(key).and_then(Value::as_array);
        list.filter(|list| !list.is_empty())
    };
    let list = list("extra_special_tokens").or_else(|| list("additional_special_tokens"));
    list.into_iter().flatten()
}

/// The text of a token that is written as a text or as an object.
fn text(value: &Value) -> Option<String> {
    let content = value.as_str().or_else(|| value.get("content")?.as_str());
    content.map(str::to_owned)
}

/// A token as an object describes it; one that is only a text is special.
fn added(value: &Value, plain: Option<String>) -> Option<AddedToken> {
    let flag = |key: &str| value.get(key).and_then(Value::as_bool);
    let content = match value.get("content") {
        Some(content) => content.as_str()?.to_owned(),
        None => plain?,
    };
    let special = flag("special").unwrap_or(!value.is_object());
    Some(
        AddedToken::from(content, special)
            .single_word(flag("single_word").unwrap_or(false))
            .lstrip(flag("lstrip").unwrap_or(false))
            .rstrip(flag("rstrip").unwrap_or(false))
            .normalized(flag("normalized").unwrap_or(!special)),
    )
}
