//! Examples in front of a prompt.

use super::items::Items;
use crate::experiment::{FewShotEntry, Fields};
use anyhow::bail;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use skipbench_prompts::{Message, PromptTemplate};

/// The examples of a task: the same for every prompt.
#[derive(Default)]
pub(super) struct Examples {
    examples: Vec<Example>,
    separator: String,
    delimiter: Option<String>,
}

struct Example {
    source: String,
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
        template: &PromptTemplate,
    ) -> anyhow::Result<Self> {
        let fields = entry.fields.as_ref().unwrap_or(fields).without_id();
        let items = Items::read(&entry.from, entry.reference.as_deref(), &fields, usize::MAX)?;
        if items.count < entry.k {
            bail!(
                "{} has {} items, and `k` asks for {}",
                entry.from.display(),
                items.count,
                entry.k
            );
        }
        let mut rng = ChaCha8Rng::seed_from_u64(entry.seed);
        let drawn = rand::seq::index::sample(&mut rng, items.count, entry.k);
        let examples = drawn.into_iter().map(|index| {
            let item = &items.items[index];
            Ok(Example {
                source: item.source().to_owned(),
                prompt: items.prompt(template, item)?,
                // Of several right answers the first; there is one at least.
                answer: item.references.first().cloned().unwrap_or_default(),
            })
        });
        Ok(Self {
            examples: examples.collect::<anyhow::Result<_>>()?,
            separator: entry.separator.clone(),
            delimiter: entry.delimiter.clone(),
        })
    }

    /// A prompt with the examples in front of it.
    pub(super) fn in_front_of(&self, prompt: String) -> String {
        let mut text = String::new();
        for example in &self.examples {
            let space = match example.prompt.ends_with(char::is_whitespace) {
                true => "",
                false => " ",
            };
            text.push_str(&example.prompt);
            text.push_str(self.delimiter.as_deref().unwrap_or(space));
            text.push_str(&example.answer);
            text.push_str(&self.separator);
        }
        text + &prompt
    }

    /// The examples as turns of a chat.
    pub(super) fn turns(&self) -> Vec<Message> {
        let turns = self.examples.iter().flat_map(|example| {
            [
                Message::user(example.prompt.as_str()),
                Message::assistant(example.answer.as_str()),
            ]
        });
        turns.collect()
    }

    /// Whether an example has this source.
    pub(super) fn hold(&self, source: &str) -> bool {
        self.examples.iter().any(|example| example.source == source)
    }
}
