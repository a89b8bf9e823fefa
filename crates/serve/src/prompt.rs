//! Prompts and messages as they are sent.

use crate::Limits;
use crate::error::{ApiError, Result};
use crate::fields::wrong;
use crate::served::Served;
use serde_json::Value;
use skipbench_prompts::Message;

/// A prompt as it was sent.
pub(crate) enum Prompt {
    Text(String),
    Ids(Vec<Value>),
}

impl Prompt {
    /// Its tokens.
    pub(crate) fn ids(self, served: &Served, param: &str) -> Result<Vec<u32>> {
        let ids = match self {
            Self::Text(text) if text.is_empty() => Vec::new(),
            Self::Text(text) => {
                let ids = served.tokenizer.encode(&text);
                ids.map_err(|error| ApiError::field(param, error.to_string()))?
            }
            Self::Ids(values) => {
                let vocab_size = served.model.sizes().vocab_size;
                let id = |value: &Value| {
                    let id = value.as_u64().filter(|&id| id < vocab_size as u64);
                    let wanted = format!("a token id from 0 to {}", vocab_size - 1);
                    // It is less than a size of the model, which are all small.
                    id.map(|id| id as u32)
                        .ok_or_else(|| wrong(param, &wanted, value))
                };
                values.iter().map(id).collect::<Result<_>>()?
            }
        };
        match ids.is_empty() {
            true => Err(ApiError::field(
                param,
                "the prompt is empty; a decoder needs at least one token to start from",
            )),
            false => Ok(ids),
        }
    }
}

/// A text, a list of texts, a list of token ids, or a list of such lists.
pub(crate) fn prompts_of(value: Value, limits: &Limits) -> Result<Vec<Prompt>> {
    const WANTED: &str = "a text, a list of texts, a list of token ids, or a list of such lists";
    let list = match value {
        Value::String(text) => return Ok(vec![Prompt::Text(text)]),
        Value::Array(list) => list,
        other => return Err(wrong("prompt", WANTED, &other)),
    };
    if list.iter().all(Value::is_number) {
        return Ok(vec![Prompt::Ids(list)]);
    }
    if list.len() > limits.queue {
        let message = format!(
            "`prompt` has {} prompts, and no more than {} may wait; send fewer at once",
            list.len(),
            limits.queue
        );
        return Err(ApiError::field("prompt", message));
    }
    let each = list
        .into_iter()
        .enumerate()
        .map(|(index, value)| match value {
            Value::String(text) => Ok(Prompt::Text(text)),
            Value::Array(ids) => Ok(Prompt::Ids(ids)),
            other => Err(wrong(
                &format!("prompt[{index}]"),
                "a text or a list of token ids",
                &other,
            )),
        });
    each.collect()
}

/// What is said in a chat.
pub(crate) fn messages(value: Value) -> Result<Vec<Message>> {
    let Value::Array(list) = value else {
        let wanted = "a list such as [{\"role\": \"user\", \"content\": \"Hello\"}]";
        return Err(wrong("messages", wanted, &value));
    };
    let message = |(index, mut value): (usize, Value)| {
        let param = format!("messages[{index}]");
        if let Some(content) = value.get_mut("content") {
            *content = content_of(content.take(), &format!("{param}.content"))?;
        }
        serde_json::from_value(value).map_err(|error| ApiError::field(&param, error.to_string()))
    };
    list.into_iter().enumerate().map(message).collect()
}

/// What is said: a text, or a list of parts that are texts.
fn content_of(content: Value, param: &str) -> Result<Value> {
    let parts = match content {
        Value::String(_) | Value::Null => return Ok(content),
        Value::Array(parts) => parts,
        other => return Err(wrong(param, "a text or a list of parts", &other)),
    };
    let text = |part: &Value| {
        let text = part.get("text").and_then(Value::as_str);
        let is_text = part.get("type").and_then(Value::as_str) == Some("text");
        text.filter(|_| is_text).map(str::to_owned).ok_or_else(|| {
            let message = "a part of a message is {\"type\": \"text\", \"text\": \"…\"}; nothing else is read";
            ApiError::field(param, message)
        })
    };
    let texts: Vec<String> = parts.iter().map(text).collect::<Result<_>>()?;
    Ok(Value::String(texts.concat()))
}
