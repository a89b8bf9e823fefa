//! Text that is given to a model to be scored: the choices of questions, and whole texts.

use super::few_shot::{Examples, delimiter};
use super::items::{Item, Items};
use crate::experiment::{ChatEntry, Choices, TaskEntry};
use crate::load::read_lines;
use crate::prompter::Request;
use anyhow::{anyhow, bail};
use serde_json::{Map, Value};
use skipbench_prompts::{Expression, PromptTemplate};
use std::path::Path;

/// What a task gives a model beside its prompts.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Given {
    /// Nothing: it answers them.
    Nothing,
    /// The choices of each question.
    Questions(Vec<Question>),
    /// Texts, and how they are read.
    Texts(Vec<Text>, Windows),
}

/// A question with its choices.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Question {
    /// Two or more.
    pub(crate) choices: Vec<Choice>,
    /// The right one.
    pub(crate) right: usize,
}

/// A choice, and what is scored of it.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Choice {
    /// As the item has it.
    pub(crate) text: String,
    /// What stands in front of what is scored.
    pub(crate) context: Request,
    /// What is scored, with what parts it from its context.
    pub(crate) continuation: String,
}

/// A text that is scored.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Text {
    /// As the model reads it.
    pub(crate) text: String,
    /// Words of the item's own text, as lm-eval counts them: what Python's `re.split(r"\s+", text)` gives.
    pub(crate) words: usize,
    /// Bytes of the item's own text.
    pub(crate) bytes: usize,
}

/// How long texts are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Windows {
    /// Longest run of tokens; if not given, what the model has positions for, within [`WINDOW`].
    window: Option<usize>,
    /// Tokens between the beginnings of windows; `None` for windows as lm-eval rolls them.
    pub(crate) stride: Option<usize>,
}

/// The longest window where none is asked for.
const WINDOW: usize = 2048;

impl Windows {
    pub(super) fn of(entry: &TaskEntry) -> Self {
        Self {
            window: entry.window,
            stride: entry.stride,
        }
    }

    /// The window for a model with so many positions.
    ///
    /// # Errors
    /// A window that the model has no room for, or that is shorter than the stride.
    pub(crate) fn window(self, positions: Option<usize>) -> anyhow::Result<usize> {
        let window = match (self.window, positions) {
            (Some(window), Some(limit)) if window > limit => {
                bail!(
                    "`window` is {window}, but the model has {limit} positions; give at most as many"
                )
            }
            (Some(window), _) => window,
            (None, limit) => limit.unwrap_or(WINDOW).clamp(2, WINDOW),
        };
        match self.stride {
            Some(stride) if stride > window => bail!(
                "`stride` {stride} is longer than the window of {window}, so that tokens would be left out; give at most {window}"
            ),
            _ => Ok(window),
        }
    }
}

impl Text {
    pub(super) fn of(text: String, own: &str) -> Self {
        // What stands between white space, and an empty word at either end where there is white space.
        let words = own.split_whitespace().count()
            + usize::from(own.starts_with(char::is_whitespace))
            + usize::from(own.ends_with(char::is_whitespace));
        Self {
            text,
            words: words.max(1),
            bytes: own.len(),
        }
    }
}

/// How an item becomes what is asked: its prompt, and the choices behind it where there are any.
pub(super) struct Asker<'a> {
    prompt: PromptTemplate,
    description: Option<PromptTemplate>,
    choices: Option<ChoiceTemplates>,
    chat: &'a ChatEntry,
    delimiter: Option<&'a str>,
    /// What `{{ instruction }}` stands for.
    instruction: Option<String>,
}

fn first_line(path: &Path) -> anyhow::Result<String> {
    let lines = read_lines(path)?;
    let first = lines.into_iter().next();
    first
        .filter(|line| !line.trim().is_empty())
        .ok_or_else(|| anyhow!("{} has no instruction in its first line", path.display()))
}

/// Where choices come from.
struct ChoiceTemplates {
    list: List,
    answer: Expression,
    continuation: Option<PromptTemplate>,
}

enum List {
    Expression(Box<Expression>),
    Templates(Vec<PromptTemplate>),
}

/// The name that prompt and continuation call a choice by.
const CHOICE: &str = "choice";

/// A key of the entry, and what is wrong with its value.
pub(super) type Misfit = (&'static str, anyhow::Error);

fn of<T, E: Into<anyhow::Error>>(key: &'static str, result: Result<T, E>) -> Result<T, Misfit> {
    result.map_err(|error| (key, error.into()))
}

impl<'a> Asker<'a> {
    pub(super) fn new(entry: &'a TaskEntry) -> Result<Self, Misfit> {
        let prompt = PromptTemplate::new(entry.prompt.as_deref().unwrap_or("{{ source }}"));
        let text = |key: &'static str, source: &Option<String>| {
            let template = source
                .as_deref()
                .map(|source| PromptTemplate::text(key, source));
            of(key, template.transpose())
        };
        let choices = match (&entry.choices, &entry.answer) {
            (Some(choices), Some(answer)) => Some(ChoiceTemplates {
                list: of("choices", List::new(choices))?,
                answer: of("answer", Expression::new("answer", answer))?,
                continuation: text("continuation", &entry.continuation)?,
            }),
            _ => None,
        };
        Ok(Self {
            prompt: of("prompt", prompt)?,
            description: text("description", &entry.description)?,
            choices,
            chat: &entry.chat,
            delimiter: entry
                .few_shot
                .as_ref()
                .and_then(|few_shot| few_shot.delimiter.as_deref()),
            instruction: of(
                "instruction",
                entry.instruction.as_deref().map(first_line).transpose(),
            )?,
        })
    }

    /// The items with what has the same name in all of them.
    pub(super) fn named(&self, items: Items) -> Items {
        items.with("instruction", self.instruction.as_deref())
    }

    /// Refuses names beyond those that the items have.
    pub(super) fn check(&self, items: &Items) -> Result<(), Misfit> {
        let mut names = items.names();
        if let Some(description) = &self.description {
            of("description", description.check(names.iter().copied()))?;
        }
        if let Some(choices) = &self.choices {
            match &choices.list {
                List::Expression(list) => of("choices", list.check(names.iter().copied()))?,
                List::Templates(list) => {
                    for template in list {
                        of("choices", template.check(names.iter().copied()))?;
                    }
                }
            }
            of("answer", choices.answer.check(names.iter().copied()))?;
            if let Some(continuation) = &choices.continuation {
                names.insert(CHOICE);
                of("continuation", continuation.check(names.iter().copied()))?;
            }
        }
        of("prompt", self.prompt.check(names))
    }

    /// The prompt of an item, without examples; of a question the one in front of its right choice.
    pub(super) fn prompt(&self, items: &Items, item: &Item) -> anyhow::Result<String> {
        Ok(match self.right(items, item)? {
            Some((prompt, _)) => prompt,
            None => items.render(&self.prompt, item)?,
        })
    }

    /// The prompt and the answer of an item as an example has them.
    pub(super) fn example(&self, items: &Items, item: &Item) -> anyhow::Result<(String, String)> {
        Ok(match self.right(items, item)? {
            Some(asked) => asked,
            // Of several right answers the first; there is one at least.
            None => (
                items.render(&self.prompt, item)?,
                item.references.first().cloned().unwrap_or_default(),
            ),
        })
    }

    /// The request that an item makes, with its examples.
    pub(super) fn request(
        &self,
        items: &Items,
        item: &Item,
        examples: &Examples,
    ) -> anyhow::Result<Request> {
        self.asked(items, item, self.prompt(items, item)?, examples)
    }

    /// A question, where items are questions.
    pub(super) fn question(
        &self,
        items: &Items,
        item: &Item,
        examples: &Examples,
    ) -> anyhow::Result<Option<Question>> {
        let Some(templates) = &self.choices else {
            return Ok(None);
        };
        let texts = templates.texts(items, item)?;
        let right = templates.right(items, item, texts.len())?;
        let choices = texts.into_iter().map(|text| {
            let (prompt, continuation) = templates.parts(&self.prompt, items, item, &text)?;
            let between = match self.chat.is_off() {
                true => delimiter(self.delimiter, &prompt, &continuation),
                // A chat's template has put there what belongs there.
                false => "",
            };
            Ok(Choice {
                continuation: format!("{between}{continuation}"),
                context: self.asked(items, item, prompt, examples)?,
                text,
            })
        });
        let choices = choices.collect::<anyhow::Result<_>>()?;
        Ok(Some(Question { choices, right }))
    }

    /// Prompt and continuation of the right choice, where items are questions.
    fn right(&self, items: &Items, item: &Item) -> anyhow::Result<Option<(String, String)>> {
        let Some(templates) = &self.choices else {
            return Ok(None);
        };
        let mut texts = templates.texts(items, item)?;
        let right = templates.right(items, item, texts.len())?;
        let text = texts.swap_remove(right);
        let parts = templates.parts(&self.prompt, items, item, &text)?;
        Ok(Some(parts))
    }

    fn asked(
        &self,
        items: &Items,
        item: &Item,
        prompt: String,
        examples: &Examples,
    ) -> anyhow::Result<Request> {
        if !self.chat.is_off() {
            return Ok(super::request(prompt, self.chat, &examples.turns(item)?));
        }
        let description = self.description.as_ref();
        let description = description.map(|template| items.render(template, item));
        let description = description.transpose()?.unwrap_or_default();
        let asked = examples.in_front_of(item, prompt)?;
        Ok(Request::Text(description + &asked))
    }
}

impl List {
    fn new(choices: &Choices) -> anyhow::Result<Self> {
        Ok(match choices {
            Choices::Expression(source) => {
                Self::Expression(Box::new(Expression::new("choices", source)?))
            }
            Choices::Templates(sources) => Self::Templates(
                sources
                    .iter()
                    .map(|source| PromptTemplate::text("choices", source))
                    .collect::<Result<_, _>>()?,
            ),
        })
    }
}

impl ChoiceTemplates {
    /// The choices of an item.
    fn texts(&self, items: &Items, item: &Item) -> anyhow::Result<Vec<String>> {
        let texts: Vec<String> = match &self.list {
            List::Templates(list) => list
                .iter()
                .map(|template| items.render(template, item))
                .collect::<anyhow::Result<_>>()?,
            List::Expression(expression) => {
                let found = items.at(item, expression.value(&item.fields).map_err(Into::into))?;
                let texts = found.as_array().and_then(|list| {
                    let texts = list.iter().map(|text| Some(text.as_str()?.to_owned()));
                    texts.collect::<Option<Vec<String>>>()
                });
                items.at(
                    item,
                    texts.ok_or_else(|| anyhow!("`choices` gives {found}; it is a list of texts")),
                )?
            }
        };
        if texts.len() < 2 {
            let few = Err(anyhow!(
                "`choices` gives {} choices; a question has two at least",
                texts.len()
            ));
            return items.at(item, few);
        }
        if let Some(place) = texts.iter().position(String::is_empty) {
            let empty = Err(anyhow!(
                "choice {place} is empty, so there is nothing to score"
            ));
            return items.at(item, empty);
        }
        Ok(texts)
    }

    /// Which of so many choices is right.
    fn right(&self, items: &Items, item: &Item, count: usize) -> anyhow::Result<usize> {
        let found = items.at(item, self.answer.value(&item.fields).map_err(Into::into))?;
        let number = match &found {
            Value::Number(number) => number.as_u64(),
            Value::String(text) => text.trim().parse().ok(),
            Value::Bool(is_second) => Some(u64::from(*is_second)),
            _ => None,
        };
        let place = number.and_then(|number| usize::try_from(number).ok());
        let place = place.filter(|&place| place < count);
        items.at(
            item,
            place.ok_or_else(|| {
                anyhow!(
                    "`answer` gives {found}; it is the number of the right choice, from 0 to {}",
                    count - 1
                )
            }),
        )
    }

    /// What stands in front of what is scored, and what is scored.
    fn parts(
        &self,
        prompt: &PromptTemplate,
        items: &Items,
        item: &Item,
        text: &str,
    ) -> anyhow::Result<(String, String)> {
        let Some(continuation) = &self.continuation else {
            return Ok((items.render(prompt, item)?, text.to_owned()));
        };
        let mut fields: Map<String, Value> = item.fields.clone();
        fields.insert(CHOICE.to_owned(), text.into());
        let render = |template: &PromptTemplate| {
            items.at(item, template.render(&fields).map_err(anyhow::Error::from))
        };
        let scored = render(continuation)?;
        if scored.is_empty() {
            let empty = Err(anyhow!(
                "`continuation` is empty, so there is nothing to score"
            ));
            return items.at(item, empty);
        }
        Ok((render(prompt)?, scored))
    }
}

#[cfg(test)]
mod tests {
    use super::Text;

    /// `len(re.split(r"\s+", text))` of Python.
    #[test]
    fn words_are_counted_as_lm_eval_does() {
        for (text, words) in [
            ("a b", 2),
            (" a b", 3),
            ("a b \n", 3),
            (" \n a  b\t", 4),
            ("", 1),
            (" ", 2),
            ("one", 1),
        ] {
            assert_eq!(Text::of(String::new(), text).words, words, "{text:?}");
        }
    }
}
