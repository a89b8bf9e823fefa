//! What is asked of a model, as its tokenizer and its chat template make it.

use crate::experiment::{ChatEntry, SpecialTokensRule};
use anyhow::{Context, bail};
use serde_json::{Map, Value};
use skipbench_engine::ScoredText;
use skipbench_model::{ModelError, Shape, Tokenize};
use skipbench_prompts::{ChatTemplate, Message, SpecialTokens};
use std::path::Path;

/// What is asked, before a model's chat template is laid over it.
#[derive(Debug, Clone, PartialEq)]
pub enum Request {
    /// A text that the model continues.
    Text(String),
    /// A chat that it answers.
    Chat(Vec<Message>),
}

impl Request {
    /// The text, or what a chat's messages are as JSON: the same for every model.
    pub(crate) fn content(&self) -> String {
        match self {
            Self::Text(text) => text.clone(),
            // Messages came from JSON or are made of texts, so they always have such a form.
            Self::Chat(messages) => serde_json::to_string(messages).unwrap_or_default(),
        }
    }
}

/// How requests become what a model reads.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Form {
    /// Variables of the chat template; `None` where nothing is a chat.
    pub(crate) chat: Option<Map<String, Value>>,
    /// Of texts that are no chat.
    pub(crate) special_tokens: SpecialTokensRule,
}

impl Form {
    pub(crate) fn new(chat: &ChatEntry, special_tokens: SpecialTokensRule) -> Self {
        Self {
            chat: chat.variables(),
            special_tokens,
        }
    }
}

/// The chat template of a model.
///
/// # Errors
/// A model that has none, or one that cannot be used.
pub(crate) fn chat_template(model: &Path) -> anyhow::Result<ChatTemplate> {
    let Some(mut gguf) = skipbench_model::SpecialTokens::of_gguf(model)? else {
        return Ok(ChatTemplate::of_folder(model)?);
    };
    let source = gguf.chat_template.take().with_context(|| {
        format!(
            "{} has no chat template (`tokenizer.chat_template`); leave out `chat`",
            model.display()
        )
    })?;
    let origin = format!("the chat template of {}", model.display());
    Ok(ChatTemplate::new(source, named(gguf), origin)?)
}

/// The special tokens that a model's files name.
fn special_tokens(model: &Path) -> anyhow::Result<SpecialTokens> {
    if Shape::of(model)?.is_some() {
        return Ok(SpecialTokens::default());
    }
    Ok(match skipbench_model::SpecialTokens::of_gguf(model)? {
        Some(gguf) => named(gguf),
        None => SpecialTokens::of_folder(model)?,
    })
}

/// Those of a GGUF file by the names that templates know.
fn named(gguf: skipbench_model::SpecialTokens) -> SpecialTokens {
    let tokens = [
        ("bos_token", gguf.bos),
        ("eos_token", gguf.eos),
        ("unk_token", gguf.unknown),
        ("pad_token", gguf.padding),
    ];
    SpecialTokens::new(
        tokens
            .into_iter()
            .filter_map(|(name, text)| Some((name, text?))),
    )
}

/// Turns requests into what one model reads.
pub(crate) struct Prompter<'a> {
    tokenizer: &'a dyn Tokenize,
    form: &'a Form,
    chat: Option<ChatTemplate>,
    /// What begins a sequence.
    beginning: Option<u32>,
}

impl<'a> Prompter<'a> {
    /// For the model that lies at `model`.
    ///
    /// # Errors
    /// A chat without a template, a beginning of sequence that is to be added and that the tokenizer does not have.
    pub(crate) fn new(
        model: &Path,
        tokenizer: &'a dyn Tokenize,
        form: &'a Form,
    ) -> anyhow::Result<Self> {
        let chat = form
            .chat
            .as_ref()
            .map(|_| chat_template(model))
            .transpose()?;
        // What stands in front of every text stands in front of an empty one too.
        let first = |text: &str| Ok::<_, ModelError>(tokenizer.encode(text)?.first().copied());
        let own = match first("")? {
            id if id == first("x")? => id,
            _ => None,
        };
        let named = || -> anyhow::Result<Option<u32>> {
            let tokens = special_tokens(model)?;
            let Some(text) = tokens.get("bos_token") else {
                return Ok(None);
            };
            let ids = tokenizer.encode_with(text, false)?;
            Ok(match ids[..] {
                [id] => Some(id),
                _ => None,
            })
        };
        let beginning = match own {
            Some(id) => Some(id),
            None => named()?,
        };
        if form.special_tokens == SpecialTokensRule::Add && beginning.is_none() {
            bail!(
                "special-tokens: add: {} names no beginning-of-sequence token (`bos_token` in tokenizer_config.json); use `auto`",
                model.display()
            );
        }
        Ok(Self {
            tokenizer,
            form,
            chat,
            beginning,
        })
    }

    /// The text as the model gets it, but for the special tokens that its tokenizer adds.
    ///
    /// # Errors
    /// A chat that the template refuses.
    pub(crate) fn text(&self, request: &Request) -> anyhow::Result<String> {
        match (request, &self.chat, &self.form.chat) {
            (Request::Text(text), ..) => Ok(text.clone()),
            (Request::Chat(messages), Some(template), Some(variables)) => {
                Ok(template.render(messages, variables)?)
            }
            (Request::Chat(_), ..) => {
                bail!("messages are for a chat; add `--chat`, or `chat: true` to the task")
            }
        }
    }

    /// Token ids.
    ///
    /// # Errors
    /// As [`Prompter::text`], and a text that the tokenizer refuses.
    pub(crate) fn ids(&self, request: &Request) -> anyhow::Result<Vec<u32>> {
        self.encoded(&self.text(request)?, request)
    }

    /// Token ids of a text, with what stands in front of that of `request`.
    fn encoded(&self, text: &str, request: &Request) -> anyhow::Result<Vec<u32>> {
        let is_chat = matches!(request, Request::Chat(_));
        let rule = self.form.special_tokens;
        // A template has written its special tokens itself.
        let added = !is_chat && rule != SpecialTokensRule::None;
        let mut ids = self.tokenizer.encode_with(text, added)?;
        if let Some(id) = self
            .beginning
            .filter(|_| added && rule == SpecialTokensRule::Add)
        {
            let written = ids.iter().take_while(|&&first| first == id).count();
            match written {
                0 => ids.insert(0, id),
                1 => {}
                more => drop(ids.drain(..more - 1)),
            }
        }
        Ok(ids)
    }

    /// Token ids of all.
    ///
    /// # Errors
    /// As [`Prompter::ids`], with the place of the request among them.
    pub(crate) fn all_ids(&self, requests: &[Request]) -> anyhow::Result<Vec<Vec<u32>>> {
        let ids = requests.iter().enumerate().map(|(index, request)| {
            self.ids(request)
                .with_context(|| format!("prompt {}", index + 1))
        });
        ids.collect()
    }

    /// A request and what is to be scored behind it, as [`pair`] parts them.
    ///
    /// # Errors
    /// As [`Prompter::ids`], and a continuation that adds no token.
    pub(crate) fn scored(
        &self,
        context: &Request,
        continuation: &str,
    ) -> anyhow::Result<ScoredText> {
        pair(
            &self.text(context)?,
            continuation,
            |text| self.encoded(text, context),
            |text| Ok(self.tokenizer.encode_with(text, false)?),
            || self.beginning(),
        )
    }

    /// What stands in front of a text where nothing else does: the beginning of sequence, or the end of sequence of a
    /// tokenizer that has no beginning.
    ///
    /// # Errors
    /// A tokenizer that has neither.
    pub(crate) fn beginning(&self) -> anyhow::Result<u32> {
        let end = self.tokenizer.eos_ids().first().copied();
        self.beginning.or(end).context(
            "the model names neither a beginning nor an end of sequence to stand in front of a text",
        )
    }

    /// What is to be said of prompts that begin twice.
    pub(crate) fn doubled(&self, ids: &[Vec<u32>]) -> Option<String> {
        let beginning = self.beginning?;
        let doubled = |ids: &&Vec<u32>| ids.starts_with(&[beginning, beginning]);
        let count = ids.iter().filter(doubled).count();
        (count > 0).then(|| {
            format!(
                "{count} of {} prompts begin with the beginning-of-sequence token twice; the tokenizer adds one itself, as \
                 transformers lets it: leave it out of the text, or set `special-tokens: none`",
                ids.len()
            )
        })
    }

    /// What the template writes depends on the day.
    pub(crate) fn tells_the_date(&self) -> bool {
        tells_the_date(self.chat.as_ref(), self.form)
    }
}

/// A context and a continuation, tokenized together and cut where the context alone ends, as lm-eval does it: white space
/// between the two belongs to the continuation. Behind an empty context stands the beginning of sequence.
///
/// # Errors
/// A continuation that adds no token, and what the functions refuse.
pub(crate) fn pair(
    context: &str,
    continuation: &str,
    encode: impl Fn(&str) -> anyhow::Result<Vec<u32>>,
    encode_plain: impl Fn(&str) -> anyhow::Result<Vec<u32>>,
    beginning: impl Fn() -> anyhow::Result<u32>,
) -> anyhow::Result<ScoredText> {
    if context.is_empty() {
        return Ok(ScoredText {
            context: vec![beginning()?],
            continuation: encode_plain(continuation)?,
        });
    }
    let front = context.trim_end();
    let whole = encode(&format!("{context}{continuation}"))?;
    let mut context = encode(front)?;
    if context.is_empty() {
        context.push(beginning()?);
        return Ok(ScoredText {
            context,
            continuation: whole,
        });
    }
    match whole.get(context.len()..) {
        Some(rest) if !rest.is_empty() => Ok(ScoredText {
            context: whole[..context.len()].to_vec(),
            continuation: rest.to_vec(),
        }),
        _ => bail!(
            "the continuation {continuation:?} adds no token to its context: both together are tokenized as the context alone; put the border elsewhere"
        ),
    }
}

/// Whether prompts are other ones tomorrow.
fn tells_the_date(template: Option<&ChatTemplate>, form: &Form) -> bool {
    let is_set = |variables: &Map<String, Value>| variables.contains_key("date_string");
    template.is_some_and(ChatTemplate::tells_the_date) && !form.chat.as_ref().is_some_and(is_set)
}

/// The day, where a model's prompts in this form depend on it.
pub(crate) fn day(model: &Path, form: &Form) -> Option<String> {
    form.chat.as_ref()?;
    let template = chat_template(model).ok();
    tells_the_date(template.as_ref(), form).then(|| jiff::Zoned::now().date().to_string())
}
