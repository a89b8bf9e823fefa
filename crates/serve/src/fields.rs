//! Reading a request field by field, so that whatever is wrong is named.

use crate::error::{ApiError, Result};
use axum::http::StatusCode;
use serde_json::{Map, Value};
use std::ops::RangeInclusive;

/// What OpenAI's API knows and what means nothing here.
const IGNORED: [&str; 7] = [
    "user",
    "metadata",
    "store",
    "service_tier",
    "safety_identifier",
    "prompt_cache_key",
    "parallel_tool_calls",
];

/// The fields of a request that are not read yet.
pub(crate) struct Fields(Map<String, Value>);

impl Fields {
    /// Of the body of a request.
    pub(crate) fn of(body: &[u8]) -> Result<Self> {
        let bad = |message: String| ApiError::new(StatusCode::BAD_REQUEST, message);
        let text = std::str::from_utf8(body).map_err(|error| {
            let at = error.valid_up_to();
            bad(format!(
                "the body is not UTF-8 at byte {at}; send JSON in UTF-8"
            ))
        })?;
        match serde_json::from_str(text) {
            Ok(Value::Object(fields)) => Ok(Self(fields)),
            Ok(other) => Err(bad(format!(
                "the body is {}; send a JSON object such as {{\"model\": \"…\", \"prompt\": \"…\"}}",
                kind(&other)
            ))),
            Err(error) => Err(bad(format!("the body is not JSON: {error}"))),
        }
    }

    /// A field that is there and not null.
    pub(crate) fn take(&mut self, key: &str) -> Option<Value> {
        self.0.remove(key).filter(|value| !value.is_null())
    }

    pub(crate) fn needed(&mut self, key: &str) -> Result<Value> {
        self.take(key)
            .ok_or_else(|| ApiError::field(key, format!("`{key}` is missing")))
    }

    pub(crate) fn flag(&mut self, key: &str) -> Result<bool> {
        match self.take(key) {
            None => Ok(false),
            Some(Value::Bool(flag)) => Ok(flag),
            Some(other) => Err(wrong(key, "true or false", &other)),
        }
    }

    pub(crate) fn integer(&mut self, key: &str, range: RangeInclusive<i64>) -> Result<Option<i64>> {
        let Some(value) = self.take(key) else {
            return Ok(None);
        };
        match value.as_i64() {
            Some(number) if range.contains(&number) => Ok(Some(number)),
            _ if range == (i64::MIN..=i64::MAX) => Err(wrong(key, "a whole number", &value)),
            _ => {
                let wanted = format!("a whole number from {} to {}", range.start(), range.end());
                Err(wrong(key, &wanted, &value))
            }
        }
    }

    /// A whole number from 0 to `most`.
    pub(crate) fn count(&mut self, key: &str, most: usize) -> Result<Option<usize>> {
        let most = i64::try_from(most).unwrap_or(i64::MAX);
        // It is not negative.
        Ok(self.integer(key, 0..=most)?.map(|count| count as usize))
    }

    pub(crate) fn number(&mut self, key: &str, range: RangeInclusive<f64>) -> Result<Option<f64>> {
        let Some(value) = self.take(key) else {
            return Ok(None);
        };
        match value.as_f64() {
            Some(number) if range.contains(&number) => Ok(Some(number)),
            _ => {
                let wanted = format!("a number from {} to {}", range.start(), range.end());
                Err(wrong(key, &wanted, &value))
            }
        }
    }

    /// Refuses a field that asks for what is not here, unless it has a value that changes nothing.
    pub(crate) fn refuse(&mut self, key: &str, harmless: &[Value]) -> Result<()> {
        match self.take(key) {
            Some(value) if !harmless.contains(&value) => Err(ApiError::field(
                key,
                format!("`{key}` is not supported here; leave it out"),
            )
            .with_code("unsupported_parameter")),
            _ => Ok(()),
        }
    }

    /// Refuses what nobody has read.
    pub(crate) fn end(mut self) -> Result<()> {
        for key in IGNORED {
            self.0.remove(key);
        }
        match self.0.keys().next() {
            None => Ok(()),
            Some(key) => Err(
                ApiError::field(key, format!("unknown field `{key}`; leave it out"))
                    .with_code("unknown_parameter"),
            ),
        }
    }
}

/// A value of another type, or outside of what there is.
pub(crate) fn wrong(param: &str, wanted: &str, found: &Value) -> ApiError {
    let found = match found {
        Value::Number(number) => number.to_string(),
        other => kind(other).to_owned(),
    };
    ApiError::field(param, format!("`{param}` is {wanted}, not {found}"))
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::String(_) => "a text",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}
