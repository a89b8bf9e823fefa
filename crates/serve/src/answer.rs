//! From what the model gave to what a client reads.

use crate::error::Result;
use crate::pieces::{Detokenizer, name, named};
use crate::request::{Asked, AskedRow, Form};
use crate::served::Served;
use serde_json::{Map, Value, json};
use skipbench_engine::{End, Likelihood, RowOutput, ScoreMode, TokenScore};
use skipbench_model::Tokenize;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

/// What OpenAI writes for a probability of nothing, which JSON has no logarithm of.
const NEVER: f64 = -9999.0;

/// What came of a prompt.
#[derive(Default)]
pub(crate) struct RowAnswer {
    pub(crate) scored: Option<Likelihood>,
    pub(crate) output: RowOutput,
}

/// What every answer to a request, and every part of one, begins with.
pub(crate) struct Envelope {
    id: String,
    created: u64,
    model: String,
    form: Form,
}

impl Envelope {
    pub(crate) fn new(asked: &Asked) -> Self {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let created = SystemTime::now().duration_since(UNIX_EPOCH);
        let created = created.map_or(0, |since| since.as_secs());
        let prefix = match asked.form {
            Form::Completion => "cmpl",
            Form::Chat => "chatcmpl",
        };
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        Self {
            id: format!("{prefix}-{created:x}{count:08x}"),
            created,
            model: asked.model.clone(),
            form: asked.form,
        }
    }

    pub(crate) fn with(&self, is_part: bool, choices: Vec<Value>, usage: Value) -> Value {
        let object = match (self.form, is_part) {
            (Form::Completion, _) => "text_completion",
            (Form::Chat, false) => "chat.completion",
            (Form::Chat, true) => "chat.completion.chunk",
        };
        json!({
            "id": self.id,
            "object": object,
            "created": self.created,
            "model": self.model,
            "choices": choices,
            "usage": usage,
        })
    }
}

/// The whole answer to a request.
pub(crate) fn whole(served: &Served, asked: &Asked, rows: &[RowAnswer]) -> Result<Value> {
    let each = asked.rows.iter().zip(rows).enumerate();
    let choices = each.map(|(index, (row, answer))| {
        let texts = Texts::of(served, row, &answer.output, asked.echo)?;
        let mut names = Names::new(&served.tokenizer);
        let mut views = Vec::new();
        if asked.logprobs {
            if asked.echo {
                views = names.prompt(&row.prompt, answer.scored.as_ref())?;
            }
            let scores = answer.output.scores.iter().cloned().map(Some);
            for (&id, score) in answer.output.tokens.iter().zip(scores) {
                views.push(names.next(id, score)?.0);
            }
        }
        let logprobs = asked.logprobs.then(|| logprobs(asked.form, &views));
        let mut choice = json!({
            "index": index,
            "logprobs": logprobs,
            "finish_reason": finish_reason(answer.output.end),
        });
        match asked.form {
            Form::Completion => choice["text"] = (texts.prompt + &texts.answer).into(),
            Form::Chat => {
                choice["message"] = json!({
                    "role": "assistant",
                    "content": texts.answer,
                    "refusal": null,
                });
            }
        }
        Ok(choice)
    });
    let choices = choices.collect::<Result<_>>()?;
    Ok(Envelope::new(asked).with(false, choices, usage(asked, rows)))
}

pub(crate) fn finish_reason(end: End) -> &'static str {
    match end {
        End::Length => "length",
        End::Eos | End::Stop => "stop",
    }
}

/// Tokens and layers of all rows.
pub(crate) fn usage(asked: &Asked, rows: &[RowAnswer]) -> Value {
    let prompt: usize = asked.rows.iter().map(|row| row.prompt.len()).sum();
    let generated: usize = rows.iter().map(|row| row.output.tokens.len()).sum();
    let all = || rows.iter().flat_map(|row| &row.output.layers);
    let layers: Vec<Value> = rows.iter().map(|row| counts(&row.output.layers)).collect();
    let mut usage = json!({
        "prompt_tokens": prompt,
        "completion_tokens": generated,
        "total_tokens": prompt + generated,
        "layers_per_token": (generated > 0).then(|| all().sum::<f64>() / generated as f64),
        "layers": layers,
    });
    if let Some(scores) = asked.scores {
        let scored = rows.iter().map(|row| match &row.scored {
            Some(likelihood) => counts(&likelihood.layers),
            None => json!([]),
        });
        usage["prompt_layers"] = scored.collect();
        usage["score_mode"] = match scores.mode {
            ScoreMode::AsDecoded => "as-decoded",
            ScoreMode::OnePass => "one-pass",
        }
        .into();
    }
    usage
}

/// Layers as whole numbers where they are.
fn counts(layers: &[f64]) -> Value {
    let count = |&layers: &f64| match layers.fract() == 0.0 {
        true => Value::from(layers as u64),
        false => Value::from(layers),
    };
    layers.iter().map(count).collect()
}

/// A prompt and its answer as texts, which together are what a completion with `echo` gives.
pub(crate) struct Texts {
    /// Nothing without `echo`.
    pub(crate) prompt: String,
    pub(crate) answer: String,
}

impl Texts {
    pub(crate) fn of(
        served: &Served,
        row: &AskedRow,
        output: &RowOutput,
        echo: bool,
    ) -> Result<Self> {
        let tokenizer = &served.tokenizer;
        let answer = tokenizer.decode(&output.tokens)?;
        let stop = row.options.stop.as_ref();
        let cut = stop.map_or(&*answer, |stop| stop.cut(&answer));
        if !echo {
            return Ok(Self {
                prompt: String::new(),
                answer: cut.to_owned(),
            });
        }
        // Some decoders drop a space in front of the first token.
        let both = tokenizer.decode(&[&row.prompt[..], &output.tokens].concat())?;
        let prompt = tokenizer.decode(&row.prompt)?;
        let between = both
            .strip_suffix(&answer)
            .and_then(|head| head.strip_prefix(&prompt));
        let answer = format!("{}{cut}", between.unwrap_or_default());
        Ok(Self { prompt, answer })
    }
}

/// A token as it is shown.
pub(crate) struct TokenView {
    name: String,
    /// Where its text begins, in characters.
    offset: usize,
    score: Option<TokenScore>,
    /// The likeliest tokens by their names, this one among them.
    likeliest: Vec<(String, f64)>,
}

/// Names the tokens of a text, one after the other.
pub(crate) struct Names {
    tokenizer: Arc<dyn Tokenize>,
    detokenizer: Detokenizer,
    before: Option<u32>,
    offset: usize,
}

impl Names {
    pub(crate) fn new(tokenizer: &Arc<dyn Tokenize>) -> Self {
        Self {
            tokenizer: tokenizer.clone(),
            detokenizer: Detokenizer::new(tokenizer),
            before: None,
            offset: 0,
        }
    }

    /// The next token, and what the text gains by it.
    pub(crate) fn next(
        &mut self,
        id: u32,
        score: Option<TokenScore>,
    ) -> Result<(TokenView, String)> {
        let gained = self.detokenizer.push(id)?;
        let own = named(gained.clone(), id);
        let mut likeliest: Vec<(String, f64)> = Vec::new();
        if let Some(score) = &score {
            for &(other, log_probability) in &score.likeliest {
                let name = match other == id {
                    true => own.clone(),
                    false => name(self.tokenizer.as_ref(), self.before, other)?,
                };
                // Two tokens may have one text.
                let is_new = likeliest.iter().all(|(known, _)| *known != name)
                    && (other == id || name != own);
                let name = if is_new {
                    name
                } else {
                    format!("token_id:{other}")
                };
                likeliest.push((name, log_probability));
            }
            if score.likeliest.iter().all(|&(other, _)| other != id) {
                likeliest.push((own.clone(), score.log_probability));
            }
        }
        let view = TokenView {
            name: own,
            offset: self.offset,
            score,
            likeliest,
        };
        self.offset += gained.chars().count();
        self.before = Some(id);
        Ok((view, gained))
    }

    /// The tokens of a prompt, the last of which were scored.
    pub(crate) fn prompt(
        &mut self,
        prompt: &[u32],
        scored: Option<&Likelihood>,
    ) -> Result<Vec<TokenView>> {
        let first = prompt.len() - scored.map_or(0, |found| found.log_probabilities.len());
        let views = prompt.iter().enumerate().map(|(index, &id)| {
            let score = scored.filter(|_| index >= first).map(|found| TokenScore {
                log_probability: found.log_probabilities[index - first],
                likeliest: found.likeliest[index - first].clone(),
            });
            Ok(self.next(id, score)?.0)
        });
        views.collect()
    }
}

/// The log-probabilities of tokens as the endpoint gives them.
pub(crate) fn logprobs(form: Form, views: &[TokenView]) -> Value {
    match form {
        Form::Completion => {
            let scores = views.iter().map(|view| view.score.as_ref());
            let likeliest = views.iter().map(|view| {
                let likeliest = view.likeliest.iter();
                let all = likeliest.map(|(name, value)| (name.clone(), number(*value)));
                view.score
                    .as_ref()
                    .map(|_| Value::Object(all.collect::<Map<_, _>>()))
            });
            json!({
                "tokens": views.iter().map(|view| &*view.name).collect::<Vec<_>>(),
                "token_logprobs": scores.map(|score| score.map(|score| number(score.log_probability))).collect::<Vec<_>>(),
                "top_logprobs": likeliest.collect::<Vec<_>>(),
                "text_offset": views.iter().map(|view| view.offset).collect::<Vec<_>>(),
            })
        }
        Form::Chat => {
            let token = |name: &str, value: f64| {
                let has_text = !name.starts_with("token_id:");
                json!({"token": name, "logprob": number(value), "bytes": has_text.then_some(name.as_bytes())})
            };
            let content = views.iter().map(|view| {
                let own = view
                    .score
                    .as_ref()
                    .map_or(NEVER, |score| score.log_probability);
                let wanted = view.score.as_ref().map_or(0, |score| score.likeliest.len());
                let likeliest = view.likeliest.iter().take(wanted);
                let mut content = token(&view.name, own);
                content["top_logprobs"] =
                    likeliest.map(|(name, value)| token(name, *value)).collect();
                content
            });
            json!({"content": content.collect::<Vec<_>>(), "refusal": null})
        }
    }
}

fn number(log_probability: f64) -> Value {
    Value::from(log_probability.max(NEVER))
}
