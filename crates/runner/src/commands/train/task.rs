//! Tasks of the runner as pairs to train on.

use super::data::encode;
use super::start::{Start, Words};
use crate::prompter::{Form, Prompter, Request};
use crate::task::{Given, TaskData};
use anyhow::{Context, bail};
use serde_json::{Map, Value, json};
use skipbench_model::Tokenize;
use skipbench_prompts::Message;
use skipbench_train::Pair;
use std::path::Path;

/// A task that has been read.
pub(super) struct TaskPairs {
    task: TaskData,
    /// What parts an answer from its prompt, where the task says that.
    delimiter: Option<String>,
}

impl TaskPairs {
    pub(super) fn new(task: TaskData, delimiter: Option<String>) -> Self {
        Self { task, delimiter }
    }

    /// What it is called in messages.
    pub(super) fn name(&self) -> &str {
        match self.task.name.as_str() {
            "" => "the task",
            name => name,
        }
    }

    /// Where an example stands, for messages to name.
    pub(super) fn place(&self, index: usize) -> &str {
        self.task.ids.get(index).map_or("", String::as_str)
    }

    /// Prompt and response texts of the `index`-th draw, as they are without a chat template.
    ///
    /// # Errors
    /// An example without an answer.
    pub(super) fn texts(&self, index: u64) -> anyhow::Result<(String, String)> {
        self.plain_texts((index % self.task.requests.len().max(1) as u64) as usize)
    }

    fn plain_texts(&self, index: usize) -> anyhow::Result<(String, String)> {
        let text = self.task.requests[index].content();
        let rest = self.behind(&text, self.answer(index)?);
        Ok((text, rest))
    }

    /// An answer with what parts it from its prompt.
    fn behind(&self, prompt: &str, answer: &str) -> String {
        let delimiter = crate::task::delimiter(self.delimiter.as_deref(), prompt, answer);
        format!("{delimiter}{answer}")
    }

    /// What its pairs depend on, beside the model's tokenizer and chat template.
    pub(super) fn identity(&self) -> Value {
        let form = &self.task.form;
        json!({
            "task": self.task.texts_digest(),
            "chat": form.chat,
            "special-tokens": form.special_tokens,
            "delimiter": self.delimiter,
        })
    }

    /// All of its examples as the model reads them: what is asked, and the first of the right answers with the token that ends
    /// it.
    ///
    /// # Errors
    /// A chat without a template, a text that the tokenizer refuses.
    pub(super) fn pairs(&self, words: &Words, start: Option<&Start>) -> anyhow::Result<Vec<Pair>> {
        let form = &self.task.form;
        let Some(start) = start else {
            if form.chat.is_some() {
                bail!(
                    "`chat` takes the template of a model to start from, and a new model has none"
                );
            }
            return self.plain(words);
        };
        let prompter = Prompter::new(&start.path, words, form)?;
        let turns = Turns::new(words, form, &start.path)?;
        let pair = |index: usize| -> anyhow::Result<Pair> {
            let request = &self.task.requests[index];
            let (prompt, mut response, end) = match &self.task.given {
                Given::Nothing => {
                    let answer = self.answer(index)?;
                    let prompt = prompter.ids(request)?;
                    match request {
                        Request::Chat(messages) => {
                            let end = turns.end(messages, answer)?;
                            (prompt, words.encode_with(answer, false)?, end)
                        }
                        Request::Text(text) => {
                            let rest = self.behind(text, answer);
                            let whole = Request::Text(format!("{text}{rest}"));
                            let whole = prompter.ids(&whole)?;
                            // As the answer is read behind the prompt, where the border of the two is one of tokens.
                            let response = match whole.strip_prefix(prompt.as_slice()) {
                                Some(response) => response.to_vec(),
                                None => words.encode_with(&rest, false)?,
                            };
                            (prompt, response, words.end()?)
                        }
                    }
                }
                Given::Questions(questions) => {
                    let question = &questions[index];
                    let choice = &question.choices[question.right];
                    let scored = prompter.scored(&choice.context, &choice.continuation)?;
                    (scored.context, scored.continuation, words.end()?)
                }
                Given::Texts(texts, _) => {
                    let scored =
                        prompter.scored(&Request::Text(String::new()), &texts[index].text)?;
                    (scored.context, scored.continuation, words.end()?)
                }
            };
            response.push(end);
            Ok(Pair { prompt, response })
        };
        let all = 0..self.task.requests.len();
        all.map(|index| pair(index).with_context(|| self.place(index).to_owned()))
            .collect()
    }

    /// Of a tokenizer of this trainer.
    fn plain(&self, words: &Words) -> anyhow::Result<Vec<Pair>> {
        if !matches!(self.task.given, Given::Nothing) {
            bail!("a new model is trained on tasks of `kind: generate`");
        }
        (0..self.task.requests.len())
            .map(|index| encode(words, &self.plain_texts(index)?))
            .collect()
    }

    fn answer(&self, index: usize) -> anyhow::Result<&str> {
        let answers = &self.task.references[index];
        let first = answers.first().map(String::as_str);
        first
            .filter(|answer| !answer.is_empty())
            .with_context(|| format!("{} has no answer to learn from", self.place(index)))
    }
}

/// How a chat template ends a turn of the assistant.
struct Turns<'a> {
    words: &'a Words,
    chat: Option<(skipbench_prompts::ChatTemplate, &'a Map<String, Value>)>,
}

impl<'a> Turns<'a> {
    fn new(words: &'a Words, form: &'a Form, model: &Path) -> anyhow::Result<Self> {
        let chat = match &form.chat {
            None => None,
            Some(variables) => Some((crate::prompter::chat_template(model)?, variables)),
        };
        Ok(Self { words, chat })
    }

    /// The token that the template writes behind an answer, if it ends a sequence; else what ends every sequence.
    fn end(&self, messages: &[Message], answer: &str) -> anyhow::Result<u32> {
        let Some((template, variables)) = &self.chat else {
            return self.words.end();
        };
        let mut messages = messages.to_vec();
        messages.push(Message::assistant(answer));
        let text = template.render(&messages, variables)?;
        // A template may trim what it is given.
        let answer = answer.trim();
        let behind = text.rfind(answer).map(|at| &text[at + answer.len()..]);
        let behind = behind.unwrap_or_default().trim_start();
        let first = self.words.encode_with(behind, false)?.first().copied();
        match first.filter(|id| self.words.eos_ids().contains(id)) {
            Some(id) => Ok(id),
            None => self.words.end(),
        }
    }
}
