//! Prompts for `generate`.

use crate::load::{read_lines, read_text};
use anyhow::{Context, bail};
use serde::Deserialize;
use std::path::Path;

/// A prompt with its id.
pub(crate) struct Prompt {
    pub(crate) id: serde_json::Value,
    pub(crate) text: String,
}

/// A line of JSON input; other keys are ignored.
#[derive(Deserialize)]
struct Line {
    #[serde(default)]
    id: Option<serde_json::Value>,
    prompt: String,
}

/// JSON lines with `prompt` (and perhaps `id`) where the name says so (`.jsonl`, `.jsonl.gz`), else a prompt a line.
///
/// # Errors
/// A file that cannot be read or is empty, a line that is not as it should be.
pub(crate) fn read_prompts(path: &Path) -> anyhow::Result<Vec<Prompt>> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let is_json = [".jsonl", ".jsonl.gz", ".json", ".ndjson"]
        .iter()
        .any(|end| name.ends_with(end));
    let prompts: Vec<Prompt> = if is_json {
        read_text(path)?
            .split('\n')
            .enumerate()
            .filter(|(_, line)| !line.trim().is_empty())
            .map(|(index, line)| {
                let line: Line = serde_json::from_str(line).with_context(|| {
                    format!(
                        "{}: line {}: expected an object with `prompt`",
                        path.display(),
                        index + 1
                    )
                })?;
                Ok(Prompt {
                    id: line.id.unwrap_or_else(|| index.into()),
                    text: line.prompt,
                })
            })
            .collect::<anyhow::Result<_>>()?
    } else {
        read_lines(path)?
            .into_iter()
            .enumerate()
            .map(|(index, text)| Prompt {
                id: index.into(),
                text,
            })
            .collect()
    };
    if prompts.is_empty() {
        bail!("{} holds no prompt", path.display());
    }
    if let Some(index) = prompts
        .iter()
        .position(|prompt| prompt.text.trim().is_empty())
    {
        bail!("{}: prompt {} is empty", path.display(), index + 1);
    }
    Ok(prompts)
}
