//! Which tokens of a prompt are scored, and how.

use crate::error::{ApiError, Result};
use crate::fields::{Fields, wrong};
use serde_json::Value;
use skipbench_engine::{ScoreMode, ScoredText};

/// Where the context of each prompt ends.
pub(crate) fn borders(fields: &mut Fields, prompts: usize) -> Result<Option<Vec<usize>>> {
    let values = match fields.take("context_tokens") {
        None => return Ok(None),
        Some(Value::Array(values)) => values,
        Some(value) => vec![value],
    };
    if values.len() != prompts {
        let message = format!(
            "`context_tokens` has {} numbers for {prompts} prompts; give one for each",
            values.len()
        );
        return Err(ApiError::field("context_tokens", message));
    }
    let border = |value: &Value| {
        let border = value.as_u64().filter(|&border| border > 0);
        let wanted = "the number of tokens of each context, 1 or more";
        border
            .and_then(|border| usize::try_from(border).ok())
            .ok_or_else(|| wrong("context_tokens", wanted, value))
    };
    values.iter().map(border).collect::<Result<_>>().map(Some)
}

/// Without a border between context and continuation no token is known to be decoded, so the strategy's layers run at
/// every position.
pub(crate) fn score_mode(fields: &mut Fields, has_borders: bool) -> Result<ScoreMode> {
    let asked = match fields.take("score_mode") {
        None => None,
        Some(value) => match value.as_str() {
            Some("as-decoded") => Some(ScoreMode::AsDecoded),
            Some("one-pass") => Some(ScoreMode::OnePass),
            _ => {
                let message = "`score_mode` is \"as-decoded\" or \"one-pass\"";
                return Err(ApiError::field("score_mode", message));
            }
        },
    };
    match (asked, has_borders) {
        (Some(ScoreMode::AsDecoded), false) => Err(ApiError::field(
            "context_tokens",
            "what is scored as decoded needs `context_tokens`: how many tokens of the prompt stand in front of those that count as decoded",
        )),
        (Some(mode), _) => Ok(mode),
        (None, true) => Ok(ScoreMode::AsDecoded),
        (None, false) => Ok(ScoreMode::OnePass),
    }
}

/// What of a prompt is scored; nothing of a single token. In one pass the border makes no difference, so all is.
pub(crate) fn scored(
    prompt: &[u32],
    border: Option<usize>,
    mode: ScoreMode,
) -> Result<Option<ScoredText>> {
    let border = match (border, mode) {
        (Some(border), _) if border >= prompt.len() => {
            let message = format!(
                "`context_tokens` is {border}, and the prompt has {} tokens, so none is left to score",
                prompt.len()
            );
            return Err(ApiError::field("context_tokens", message));
        }
        (Some(border), ScoreMode::AsDecoded) => border,
        _ => 1,
    };
    Ok((prompt.len() > 1).then(|| ScoredText {
        context: prompt[..border].to_vec(),
        continuation: prompt[border..].to_vec(),
    }))
}
