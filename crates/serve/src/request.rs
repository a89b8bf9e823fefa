//! What a client asks: the body of a request, read and checked before anything runs.

use crate::Limits;
use crate::error::{ApiError, Result};
use crate::fields::{Fields, wrong};
use crate::prompt::{messages, prompts_of};
use crate::queue::{Kind, Scores};
use crate::scoring::{borders, score_mode, scored};
use crate::served::Served;
use axum::http::StatusCode;
use serde_json::{Map, Value, json};
use skipbench_engine::{EngineError, Options, Sampling, ScoredText, StopTexts};
use skipbench_model::ModelError;
use skipbench_strategy::StrategySpec;

/// Stop texts of a request; each is looked for after every token.
const MAX_STOPS: usize = 64;
/// Likeliest tokens beside each token.
const MAX_LIKELIEST: usize = 20;
/// Generated tokens where a completion does not say.
const DEFAULT_TOKENS: usize = 16;

/// A request that can be run.
pub(crate) struct Asked {
    /// The model as the client named it.
    pub(crate) model: String,
    pub(crate) form: Form,
    pub(crate) spec: StrategySpec,
    pub(crate) rows: Vec<AskedRow>,
    /// How the prompts are scored, where they are.
    pub(crate) scores: Option<Scores>,
    /// The prompt stands in front of the answer.
    pub(crate) echo: bool,
    /// Log-probabilities are wanted.
    pub(crate) logprobs: bool,
    pub(crate) stream: Option<StreamForm>,
}

/// Which of the two kinds of answer is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Form {
    Completion,
    Chat,
}

/// How an answer is streamed.
#[derive(Debug, Clone, Copy)]
pub(crate) struct StreamForm {
    pub(crate) include_usage: bool,
}

/// One of the prompts.
pub(crate) struct AskedRow {
    pub(crate) kind: Kind,
    pub(crate) prompt: Vec<u32>,
    pub(crate) options: Options,
    pub(crate) scored: Option<ScoredText>,
}

/// What both endpoints take.
struct Common {
    model: String,
    spec: StrategySpec,
    sampling: Option<Sampling>,
    eos_ids: Vec<u32>,
    stop: Option<StopTexts>,
    stream: Option<StreamForm>,
}

impl Common {
    fn read(fields: &mut Fields, served: &Served) -> Result<Self> {
        let model = match fields.needed("model")? {
            Value::String(model) => model,
            other => return Err(wrong("model", "a text", &other)),
        };
        let spec = served.strategy(&model)?;
        let sampling = sampling(fields)?;
        if let Err(error) = spec.check_search(1, sampling.is_some(), 0) {
            let message = format!("{error}: set `temperature` to 0");
            return Err(ApiError::field("temperature", message));
        }
        let ignore_eos = fields.flag("ignore_eos")?;
        let texts = stop_texts(fields)?;
        let (ids, stop) = StopTexts::with_ids(&served.tokenizer, &texts)
            .map_err(|error| ApiError::field("stop", error.to_string()))?;
        let stream = match fields.flag("stream")? {
            true => Some(StreamForm {
                include_usage: includes_usage(fields)?,
            }),
            false => {
                fields.take("stream_options");
                None
            }
        };
        for (key, harmless) in [
            ("n", json!(1)),
            ("presence_penalty", json!(0)),
            ("frequency_penalty", json!(0)),
            ("logit_bias", json!({})),
        ] {
            fields.refuse(key, &[harmless, json!(0.0)])?;
        }
        Ok(Self {
            model,
            spec,
            sampling,
            eos_ids: match ignore_eos {
                true => ids,
                false => [served.tokenizer.eos_ids(), &ids].concat(),
            },
            stop,
            stream,
        })
    }

    /// Options of the prompt number `row`.
    fn options(&self, row: usize, max_new_tokens: usize, likeliest: Option<usize>) -> Options {
        Options {
            max_new_tokens,
            eos_ids: self.eos_ids.clone(),
            stop: self.stop.clone(),
            sampling: self.sampling.clone().map(|sampling| Sampling {
                first_row: row as u64,
                ..sampling
            }),
            log_probabilities: likeliest,
            ..Options::default()
        }
    }
}

/// The body of a request for completions.
pub(crate) fn completion(served: &Served, limits: &Limits, body: &[u8]) -> Result<Asked> {
    let mut fields = Fields::of(body)?;
    let common = Common::read(&mut fields, served)?;
    let prompts = prompts_of(fields.needed("prompt")?, limits)?;
    let max_tokens = fields.count("max_tokens", limits.max_tokens)?;
    let echo = fields.flag("echo")?;
    let likeliest = fields.count("logprobs", MAX_LIKELIEST)?;
    let borders = borders(&mut fields, prompts.len())?;
    let mode = score_mode(&mut fields, borders.is_some())?;
    fields.refuse("best_of", &[json!(1)])?;
    fields.refuse("suffix", &[json!("")])?;
    fields.end()?;
    let scores = likeliest
        .filter(|_| echo)
        .map(|likeliest| Scores { mode, likeliest });
    if scores.is_none() && borders.is_some() {
        let message = "`context_tokens` says where scores begin; scores need `echo` and `logprobs`";
        return Err(ApiError::field("context_tokens", message));
    }
    let mut rows = Vec::with_capacity(prompts.len());
    for (index, prompt) in prompts.into_iter().enumerate() {
        let param = format!("prompt[{index}]");
        let prompt = prompt.ids(served, &param)?;
        let options = common.options(index, max_tokens.unwrap_or(DEFAULT_TOKENS), likeliest);
        let scored = match scores {
            Some(scores) => {
                let border = borders.as_ref().and_then(|borders| borders.get(index));
                scored(&prompt, border.copied(), scores.mode)?
            }
            None => None,
        };
        check(served, limits, &param, &prompt, &options)?;
        rows.push((prompt, options, scored));
    }
    let rows = with_kinds(served, &common.spec, scores, rows)?;
    Ok(Asked {
        model: common.model,
        form: Form::Completion,
        spec: common.spec,
        rows,
        scores,
        echo,
        logprobs: likeliest.is_some(),
        stream: common.stream,
    })
}

/// The body of a request for a chat's next message.
pub(crate) fn chat(served: &Served, limits: &Limits, body: &[u8]) -> Result<Asked> {
    let mut fields = Fields::of(body)?;
    let common = Common::read(&mut fields, served)?;
    let messages = messages(fields.needed("messages")?)?;
    let variables = match fields.take("chat_template_kwargs") {
        None => Map::new(),
        Some(Value::Object(variables)) => variables,
        Some(other) => return Err(wrong("chat_template_kwargs", "an object", &other)),
    };
    let most = fields.count("max_completion_tokens", limits.max_tokens)?;
    let most = most.or(fields.count("max_tokens", limits.max_tokens)?);
    let logprobs = fields.flag("logprobs")?;
    let likeliest = fields.count("top_logprobs", MAX_LIKELIEST)?;
    if likeliest.is_some() && !logprobs {
        let message = "`top_logprobs` needs `logprobs: true`";
        return Err(ApiError::field("top_logprobs", message));
    }
    fields.refuse("tools", &[json!([])])?;
    fields.refuse("tool_choice", &[json!("none"), json!("auto")])?;
    fields.refuse("response_format", &[json!({"type": "text"})])?;
    fields.end()?;
    let Some(template) = &served.chat else {
        let message = format!(
            "`{}` has no chat template; ask /v1/completions, or write the template to chat_template.jinja beside the checkpoint",
            served.name
        );
        return Err(ApiError::new(StatusCode::BAD_REQUEST, message).with_code("no_chat_template"));
    };
    let bad = |message: String| ApiError::field("messages", message);
    let text = template.render(&messages, &variables);
    let text = text.map_err(|error| bad(error.to_string()))?;
    // A template has written its special tokens itself.
    let prompt = served.tokenizer.encode_with(&text, false);
    let prompt = prompt.map_err(|error| bad(error.to_string()))?;
    let room = served
        .model
        .sizes()
        .max_positions
        .map_or(usize::MAX, |limit| {
            // The last token is never fed back.
            (limit + 1).saturating_sub(prompt.len()).max(1)
        });
    let max_tokens = most.unwrap_or(limits.max_tokens.min(room));
    let likeliest = logprobs.then_some(likeliest.unwrap_or(0));
    let options = common.options(0, max_tokens, likeliest);
    check(served, limits, "messages", &prompt, &options)?;
    let rows = with_kinds(served, &common.spec, None, vec![(prompt, options, None)])?;
    Ok(Asked {
        model: common.model,
        form: Form::Chat,
        spec: common.spec,
        rows,
        scores: None,
        echo: false,
        logprobs,
        stream: common.stream,
    })
}

fn sampling(fields: &mut Fields) -> Result<Option<Sampling>> {
    let temperature = fields.number("temperature", 0.0..=2.0)?.unwrap_or(1.0);
    let top_p = fields.number("top_p", 0.0..=1.0)?.filter(|&p| p < 1.0);
    let top_k = fields.integer("top_k", -1..=i64::from(u32::MAX))?;
    let seed = fields.integer("seed", i64::MIN..=i64::MAX)?;
    if temperature == 0.0 {
        return Ok(None);
    }
    let sampling = Sampling {
        temperature,
        top_p,
        // 0 and -1 are how others say that there is no such limit.
        top_k: top_k.filter(|&k| k > 0).map(|k| k as usize),
        seed: seed.map_or_else(rand::random, i64::cast_unsigned),
        first_row: 0,
    };
    match sampling.check() {
        Ok(()) => Ok(Some(sampling)),
        Err(EngineError::Search { option, message }) => {
            Err(ApiError::field(option.replace('-', "_"), message))
        }
        Err(error) => Err(error.into()),
    }
}

fn stop_texts(fields: &mut Fields) -> Result<Vec<String>> {
    let texts = match fields.take("stop") {
        None => return Ok(Vec::new()),
        Some(Value::Array(texts)) => texts,
        Some(text) => vec![text],
    };
    if texts.len() > MAX_STOPS {
        let message = format!(
            "`stop` has {} texts; at most {MAX_STOPS} may be given",
            texts.len()
        );
        return Err(ApiError::field("stop", message));
    }
    let text = |text: Value| match text {
        Value::String(text) if text.is_empty() => Err(ApiError::field(
            "stop",
            "a text of `stop` is empty, which would end every answer before it begins",
        )),
        Value::String(text) => Ok(text),
        other => Err(wrong("stop", "a text or a list of texts", &other)),
    };
    texts.into_iter().map(text).collect()
}

fn includes_usage(fields: &mut Fields) -> Result<bool> {
    match fields.take("stream_options") {
        None => Ok(false),
        Some(Value::Object(options)) => match options.get("include_usage") {
            None | Some(Value::Null) => Ok(false),
            Some(Value::Bool(flag)) => Ok(*flag),
            Some(other) => Err(wrong(
                "stream_options.include_usage",
                "true or false",
                other,
            )),
        },
        Some(other) => Err(wrong("stream_options", "an object", &other)),
    }
}

/// Refuses a row that does not fit.
fn check(
    served: &Served,
    limits: &Limits,
    param: &str,
    prompt: &[u32],
    options: &Options,
) -> Result<()> {
    let (tokens, most) = (prompt.len(), limits.prompt_tokens);
    if tokens > most {
        let message =
            format!("the prompt has {tokens} tokens, and the server takes {most}; shorten it");
        return Err(ApiError::too_long(param, message));
    }
    let options = Options {
        // What is only scored needs as much room.
        max_new_tokens: options.max_new_tokens.max(1),
        ..Options::default()
    };
    let new = options.max_new_tokens;
    match served.engine().check(&[prompt.to_vec()], &options) {
        Ok(()) => Ok(()),
        Err(EngineError::Model(ModelError::TooLong { needed, limit, .. })) => {
            Err(ApiError::too_long(
                param,
                format!(
                    "a prompt of {tokens} tokens and {new} new ones take {needed} positions, and the model has {limit}; shorten the prompt, or lower `max_tokens`"
                ),
            ))
        }
        Err(EngineError::Model(ModelError::Switch { limit, .. })) => Err(ApiError::too_long(
            param,
            format!(
                "the answer would grow past {limit} tokens, where LongRoPE takes other frequencies for all positions; lower `max_tokens` so that it stays within, or send a longer prompt"
            ),
        )),
        Err(error) => Err(ApiError::field(param, error.to_string())),
    }
}

/// Rows with what they must have in common with others to share a batch.
fn with_kinds(
    served: &Served,
    spec: &StrategySpec,
    scores: Option<Scores>,
    rows: Vec<(Vec<u32>, Options, Option<ScoredText>)>,
) -> Result<Vec<AskedRow>> {
    let lengths = |options: &Options, scored: &Option<ScoredText>| {
        let scored = scored.as_ref().map_or(0, |text| text.continuation.len());
        (options.max_new_tokens, scored)
    };
    let most = rows.iter().map(|(_, options, scored)| {
        let (generated, scored) = lengths(options, scored);
        generated.max(scored)
    });
    let most = most.max().unwrap_or(0).max(1);
    let built = spec.build(served.n_layers()).map_err(EngineError::from);
    let mix = built.and_then(|mut strategy| served.engine().lengths_mix(strategy.as_mut(), most));
    let mix = mix.map_err(|error| ApiError::field("model", error.to_string()))?;
    let strategy = spec.to_string();
    let row = |(prompt, options, scored): (Vec<u32>, Options, Option<ScoredText>)| AskedRow {
        kind: Kind {
            strategy: strategy.clone(),
            generates: options.max_new_tokens > 0,
            scores,
            lengths: (!mix).then(|| lengths(&options, &scored)),
        },
        prompt,
        options,
        scored,
    };
    Ok(rows.into_iter().map(row).collect())
}
