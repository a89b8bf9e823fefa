//! Chat templates.

use crate::environment::{self, Trim};
use crate::error::{PromptError, Result};
use crate::message::Message;
use crate::special::{SpecialTokens, read_object, read_text};
use minijinja::Environment;
use serde_json::{Map, Value};
use std::path::Path;

/// What turns messages into the text that a model was trained on.
#[derive(Debug)]
pub struct ChatTemplate {
    environment: Environment<'static>,
    source: String,
    special: SpecialTokens,
    origin: String,
}

impl ChatTemplate {
    /// From the text of a template, the special tokens that it may write, and where it is from, as messages say it:
    /// `the chat template of model.gguf`.
    ///
    /// # Errors
    /// A template that does not parse.
    pub fn new(
        source: impl Into<String>,
        special: SpecialTokens,
        origin: impl Into<String>,
    ) -> Result<Self> {
        let template = Self {
            environment: environment::of(Trim::Blocks),
            source: without_generation_tags(&source.into()),
            special,
            origin: origin.into(),
        };
        environment::check(&template.environment, &template.source, &template.origin)?;
        Ok(template)
    }

    /// The template of a checkpoint folder: `chat_template.jinja`, or failing that `chat_template` in
    /// `tokenizer_config.json`, which is a text or a list of named texts, of which `default` is taken.
    ///
    /// # Errors
    /// A folder without one, a file that cannot be read or is malformed, a template that does not parse.
    pub fn of_folder(dir: &Path) -> Result<Self> {
        const FILE: &str = "chat_template.jinja";
        const CONFIG: &str = "tokenizer_config.json";
        let special = SpecialTokens::of_folder(dir)?;
        let file = dir.join(FILE);
        if let Some(source) = read_text(&file)? {
            return Self::new(source, special, file.display().to_string());
        }
        let config = dir.join(CONFIG);
        let entry = read_object(&config)?.and_then(|mut object| object.remove("chat_template"));
        let malformed = |message: String| PromptError::Malformed {
            path: config.clone(),
            message,
        };
        let source = match entry {
            None | Some(Value::Null) => {
                return Err(PromptError::NoTemplate {
                    dir: dir.to_path_buf(),
                    looked: "chat_template.jinja and `chat_template` in tokenizer_config.json",
                });
            }
            Some(Value::String(source)) => source,
            Some(Value::Array(named)) => default_of(&named).map_err(malformed)?,
            Some(_) => {
                return Err(malformed(
                    "`chat_template` is neither a text nor a list of {name, template}".to_owned(),
                ));
            }
        };
        let origin = format!("`chat_template` in {}", config.display());
        Self::new(source, special, origin)
    }

    /// The messages as the model reads them, special tokens written out, up to where its answer begins. `variables` are
    /// what else the template may ask for, such as `enable_thinking`; they overrule what it is given anyway.
    ///
    /// # Errors
    /// No messages, messages that the template refuses, a template that fails, does not end or asks for a file.
    pub fn render(&self, messages: &[Message], variables: &Map<String, Value>) -> Result<String> {
        if messages.is_empty() {
            return Err(PromptError::Message(
                "a chat without any message; give at least the user's".to_owned(),
            ));
        }
        let mut context: Map<String, Value> = Map::new();
        for (name, text) in self.special.iter() {
            context.insert(name.to_owned(), Value::from(text));
        }
        let messages = messages.iter().map(Message::for_template).collect();
        context.insert("messages".to_owned(), Value::Array(messages));
        context.insert("tools".to_owned(), Value::Null);
        context.insert("documents".to_owned(), Value::Null);
        context.insert("add_generation_prompt".to_owned(), Value::Bool(true));
        for (name, value) in variables {
            context.insert(name.clone(), value.clone());
        }
        environment::render(&self.environment, &self.source, &context, &self.origin)
    }

    /// Whether what it writes depends on the day.
    pub fn tells_the_date(&self) -> bool {
        self.source.contains("strftime_now")
    }

    /// Where it is from.
    pub fn origin(&self) -> &str {
        &self.origin
    }
}

/// The template named `default` among `{name, template}`.
fn default_of(named: &[Value]) -> std::result::Result<String, String> {
    let pair = |entry: &Value| {
        let (name, template) = (
            entry.get("name")?.as_str()?,
            entry.get("template")?.as_str()?,
        );
        Some((name.to_owned(), template.to_owned()))
    };
    let pairs: Option<Vec<(String, String)>> = named.iter().map(pair).collect();
    let pairs = pairs.ok_or("an entry of the list `chat_template` lacks `name` or `template`")?;
    let names: Vec<String> = pairs.iter().map(|(name, _)| format!("`{name}`")).collect();
    let default = pairs.into_iter().rev().find(|(name, _)| name == "default");
    default.map(|(_, template)| template).ok_or_else(|| {
        format!(
            "none of the chat templates is called `default`; there are {}",
            names.join(", ")
        )
    })
}

/// `{% generation %}` marks what the model said, for training. Here only what stands in it matters.
fn without_generation_tags(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(at) = rest.find("{%") {
        let (before, tag) = rest.split_at(at);
        out.push_str(before);
        let Some(end) = tag.find("%}") else {
            rest = tag;
            break;
        };
        let inside = &tag[2..end];
        let word = inside
            .trim_start_matches(['-', '+'])
            .trim_end_matches(['-', '+'])
            .trim();
        let instead = match word {
            "generation" => Some("if true"),
            "endgeneration" => Some("endif"),
            _ => None,
        };
        match instead {
            Some(instead) => {
                out.push_str("{%");
                out.push_str(&inside.replacen(word, instead, 1));
                out.push_str("%}");
                rest = &tag[end + 2..];
            }
            None => {
                out.push_str("{%");
                rest = &tag[2..];
            }
        }
    }
    out.push_str(rest);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_tags_of_generation_change() {
        assert_eq!(
            without_generation_tags(
                "a{%- generation -%}b{% endgeneration %}{% if generation %}{% endif %}{%"
            ),
            "a{%- if true -%}b{% endif %}{% if generation %}{% endif %}{%"
        );
    }
}
