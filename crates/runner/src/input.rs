//! Prompts for `generate`.

use crate::experiment::ChatEntry;
use crate::load::{read_lines, read_text};
use crate::prompter::Request;
use crate::task::{Kind, json_objects};
use anyhow::{Context, anyhow, bail};
use serde_json::{Map, Value};
use skipbench_prompts::Message;
use std::path::Path;

/// What is asked, with its id.
pub(crate) struct Prompt {
    pub(crate) id: Value,
    pub(crate) request: Request,
}

/// JSON lines with `prompt` or `messages` (and perhaps `id`) where the name says so (`.jsonl`, `.jsonl.gz`), else a prompt a
/// line. In a chat a prompt is the user's turn.
///
/// # Errors
/// A file that cannot be read or is empty, a line that is not as it should be.
pub(crate) fn read_prompts(path: &Path, chat: &ChatEntry) -> anyhow::Result<Vec<Prompt>> {
    let prompts: Vec<Prompt> = match Kind::of(path) {
        Kind::JsonLines => json_objects(&read_text(path)?, path)
            .enumerate()
            .map(|(index, (place, object))| {
                let object = object?;
                let request = request(&object, chat)
                    .with_context(|| format!("{}: {place}", path.display()))?;
                Ok(Prompt {
                    id: object.get("id").cloned().unwrap_or_else(|| index.into()),
                    request,
                })
            })
            .collect::<anyhow::Result<_>>()?,
        Kind::Parquet => bail!(
            "{}: prompts are JSON lines or text; a task of an experiment reads Parquet",
            path.display()
        ),
        Kind::Text => read_lines(path)?
            .into_iter()
            .enumerate()
            .map(|(index, text)| Prompt {
                id: index.into(),
                request: turn(text, chat),
            })
            .collect(),
    };
    if prompts.is_empty() {
        bail!("{} holds no prompt", path.display());
    }
    if let Some(index) = prompts.iter().position(Prompt::is_empty) {
        bail!("{}: prompt {} is empty", path.display(), index + 1);
    }
    Ok(prompts)
}

impl Prompt {
    fn is_empty(&self) -> bool {
        match &self.request {
            Request::Text(text) => text.trim().is_empty(),
            Request::Chat(messages) => messages.is_empty(),
        }
    }
}

/// What a line asks.
fn request(line: &Map<String, Value>, chat: &ChatEntry) -> anyhow::Result<Request> {
    let given = |key: &str| line.get(key).filter(|value| !value.is_null());
    if let Some(messages) = given("messages") {
        if chat.is_off() {
            bail!("`messages` are for a chat; add `--chat`");
        }
        let messages: Vec<Message> = serde_json::from_value(messages.clone()).context(
            "`messages` is a list such as [{\"role\": \"user\", \"content\": \"Hello\"}]",
        )?;
        let has_own = messages
            .first()
            .is_some_and(|first| first.role() == "system");
        // A line that brings its own system prompt keeps it.
        let system = chat.system().filter(|_| !has_own && !messages.is_empty());
        return Ok(Request::Chat(system.into_iter().chain(messages).collect()));
    }
    match given("prompt") {
        Some(Value::String(text)) => Ok(turn(text.clone(), chat)),
        Some(other) => bail!("`prompt` is a text, not {other}"),
        None => {
            let keys: Vec<String> = line.keys().map(|key| format!("`{key}`")).collect();
            Err(anyhow!(
                "expected an object with `prompt`; it has {}",
                match keys.is_empty() {
                    true => "no key".to_owned(),
                    false => keys.join(", "),
                }
            ))
        }
    }
}

/// A prompt by itself, or as the user's turn.
fn turn(text: String, chat: &ChatEntry) -> Request {
    match chat.is_off() {
        true => Request::Text(text),
        false => Request::Chat(
            chat.system()
                .into_iter()
                .chain([Message::user(text)])
                .collect(),
        ),
    }
}
