//! Examples in front of a prompt.

use super::given::Asker;
use super::items::{Item, Items};
use crate::experiment::{Draw, FewShotEntry, Fields};
use anyhow::{anyhow, bail};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use skipbench_prompts::Message;
use std::collections::BTreeMap;

/// The examples of a task: the same for every prompt, or for all that are alike in a field.
#[derive(Default)]
pub(super) struct Examples {
    /// By the value of the field; of no field, there is one.
    pools: BTreeMap<String, Vec<Example>>,
    same: Option<String>,
    separator: String,
    delimiter: Option<String>,
}

struct Example {
    prompt: String,
    answer: String,
}

impl Examples {
    /// Draws examples: `k` different ones of the file, the same for the same seed.
    ///
    /// # Errors
    /// A file that cannot be read, lacks a field or has fewer items.
    pub(super) fn draw(
        entry: &FewShotEntry,
        fields: &Fields,
        is_question: bool,
        asker: &Asker<'_>,
    ) -> anyhow::Result<Self> {
        let fields = entry.fields.as_ref().unwrap_or(fields).without_id();
        let items = match is_question {
            true => Items::sources(&entry.from, &fields, usize::MAX)?,
            false => Items::read(&entry.from, entry.reference.as_deref(), &fields, usize::MAX)?,
        };
        let items = asker.named(items);
        let mut alike: BTreeMap<String, Vec<&Item>> = BTreeMap::new();
        for item in &items.items {
            let key = key(entry.same.as_deref(), item);
            let key = items.at(item, key)?;
            alike.entry(key).or_default().push(item);
        }
        let mut pools = BTreeMap::new();
        for (key, found) in alike {
            if found.len() < entry.k {
                bail!(
                    "{} has {} items{}, and `k` asks for {}",
                    entry.from.display(),
                    found.len(),
                    entry
                        .same
                        .as_ref()
                        .map_or_else(String::new, |name| format!(" whose `{name}` is {key:?}")),
                    entry.k
                );
            }
            let drawn: Vec<usize> = match entry.draw {
                Draw::First => (0..entry.k).collect(),
                Draw::Random => {
                    let mut rng = ChaCha8Rng::seed_from_u64(entry.seed);
                    rand::seq::index::sample(&mut rng, found.len(), entry.k).into_vec()
                }
            };
            let examples = drawn.into_iter().map(|index| {
                let (prompt, answer) = asker.example(&items, found[index])?;
                Ok(Example { prompt, answer })
            });
            pools.insert(key, examples.collect::<anyhow::Result<Vec<_>>>()?);
        }
        Ok(Self {
            pools,
            same: entry.same.clone(),
            separator: entry.separator.clone(),
            delimiter: entry.delimiter.clone(),
        })
    }

    /// Those that stand in front of an item.
    ///
    /// # Errors
    /// An item that no example is like.
    fn of(&self, item: &Item) -> anyhow::Result<&[Example]> {
        if self.pools.is_empty() {
            return Ok(&[]);
        }
        let key = key(self.same.as_deref(), item)?;
        let examples = self.pools.get(&key);
        examples.map(Vec::as_slice).ok_or_else(|| {
            let name = self.same.as_deref().unwrap_or_default();
            anyhow!("there is no few-shot example whose `{name}` is {key:?}")
        })
    }

    /// A prompt of an item with the examples in front of it.
    ///
    /// # Errors
    /// An item that no example is like.
    pub(super) fn in_front_of(&self, item: &Item, prompt: String) -> anyhow::Result<String> {
        let mut text = String::new();
        for Example {
            prompt: asked,
            answer,
        } in self.of(item)?
        {
            text.push_str(asked);
            text.push_str(delimiter(self.delimiter.as_deref(), asked, answer));
            text.push_str(answer);
            text.push_str(&self.separator);
        }
        Ok(text + &prompt)
    }

    /// The examples of an item as turns of a chat.
    ///
    /// # Errors
    /// An item that no example is like.
    pub(super) fn turns(&self, item: &Item) -> anyhow::Result<Vec<Message>> {
        let turns = self.of(item)?.iter().flat_map(|example| {
            [
                Message::user(example.prompt.as_str()),
                Message::assistant(example.answer.as_str()),
            ]
        });
        Ok(turns.collect())
    }

    /// Whether one of them asks the same.
    pub(super) fn hold(&self, prompt: &str) -> bool {
        let mut all = self.pools.values().flatten();
        all.any(|example| example.prompt == prompt)
    }
}

/// What parts an answer from its prompt: a space, unless one of them has white space there.
pub(crate) fn delimiter<'d>(own: Option<&'d str>, prompt: &str, answer: &str) -> &'d str {
    let is_parted =
        prompt.ends_with(char::is_whitespace) || answer.starts_with(char::is_whitespace);
    own.unwrap_or(if is_parted { "" } else { " " })
}

/// The value that an item has in the field in which examples are alike.
fn key(name: Option<&str>, item: &Item) -> anyhow::Result<String> {
    let Some(name) = name else {
        return Ok(String::new());
    };
    let value = super::items::found(&item.fields, name, "few-shot.same")?;
    Ok(value
        .as_str()
        .map_or_else(|| value.to_string(), str::to_owned))
}
