//! What is said in a chat.

use serde::de::{Deserialize, Deserializer, Error};
use serde::{Serialize, Serializer};
use serde_json::{Map, Value};

/// A message of a chat: `role`, most often `content`, and whatever else the template reads.
#[derive(Clone, Debug, PartialEq)]
pub struct Message(Map<String, Value>);

impl Message {
    /// What someone says.
    pub fn new(role: &str, content: impl Into<String>) -> Self {
        let fields = [
            ("role", Value::from(role)),
            ("content", Value::from(content.into())),
        ];
        Self(
            fields
                .map(|(key, value)| (key.to_owned(), value))
                .into_iter()
                .collect(),
        )
    }

    /// What the system prompt says.
    pub fn system(content: impl Into<String>) -> Self {
        Self::new("system", content)
    }

    /// What a user says.
    pub fn user(content: impl Into<String>) -> Self {
        Self::new("user", content)
    }

    /// What the model says.
    pub fn assistant(content: impl Into<String>) -> Self {
        Self::new("assistant", content)
    }

    /// Who says it.
    pub fn role(&self) -> &str {
        self.0
            .get("role")
            .and_then(Value::as_str)
            .unwrap_or_default()
    }

    /// What is said, where that is a text.
    pub fn content(&self) -> &str {
        self.0
            .get("content")
            .and_then(Value::as_str)
            .unwrap_or_default()
    }

    /// As transformers hands it to a template: keys without a value are left out, and what the model thought stands under
    /// every name that templates read it by.
    pub(crate) fn for_template(&self) -> Value {
        let set = |(_, value): &(&String, &Value)| !value.is_null();
        let mut fields: Map<String, Value> = Map::new();
        let thought = ["reasoning_content", "thinking", "reasoning"]
            .iter()
            .find_map(|key| self.0.get(*key).filter(|value| !value.is_null()));
        if let Some(thought) = thought {
            fields.insert("thinking".to_owned(), thought.clone());
        }
        for (key, value) in self.0.iter().filter(set) {
            fields.insert(key.clone(), value.clone());
        }
        if let Some(thought) = thought {
            fields.insert("reasoning_content".to_owned(), thought.clone());
        }
        Value::Object(fields)
    }
}

impl Serialize for Message {
    fn serialize<S: Serializer>(&self, out: S) -> Result<S::Ok, S::Error> {
        self.0.serialize(out)
    }
}

impl<'de> Deserialize<'de> for Message {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let fields = Map::deserialize(from)?;
        match fields.get("role") {
            Some(Value::String(_)) => Ok(Self(fields)),
            Some(other) => Err(D::Error::custom(format!(
                "the `role` of a message is a word such as `user`, not {other}"
            ))),
            None => Err(D::Error::custom(
                "a message has a `role` and a `content`, as in {\"role\": \"user\", \"content\": \"Hello\"}",
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_has_no_value_is_left_out_and_thoughts_have_every_name() {
        let message: Message = serde_json::from_value(json!({
            "role": "assistant", "content": null, "reasoning": "so", "tool_calls": null
        }))
        .unwrap();
        assert_eq!(
            message.for_template(),
            json!({"role": "assistant", "reasoning": "so", "thinking": "so", "reasoning_content": "so"})
        );
    }

    #[test]
    fn a_message_without_a_role_is_none() {
        for wrong in [json!({"content": "x"}), json!({"role": 1}), json!("x")] {
            assert!(serde_json::from_value::<Message>(wrong).is_err());
        }
    }
}
