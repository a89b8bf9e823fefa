//! What a result depends on, by name, so that a change can be told and explained.

use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, BTreeSet};

/// Everything that determines a result, by name: `weights`, `strategy`, `threads`, ... Two results with the same identity
/// are interchangeable; of two that differ, [`Identity::changes`] says in what.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Identity(BTreeMap<String, Value>);

impl Identity {
    /// The same with one more part.
    #[must_use]
    pub fn with(mut self, name: &str, value: impl Serialize) -> Self {
        // A value that JSON cannot hold is told apart by nothing else than its absence.
        let value = serde_json::to_value(value).unwrap_or(Value::Null);
        self.0.insert(name.to_owned(), value);
        self
    }

    /// The value of a part.
    pub fn get(&self, name: &str) -> Option<&Value> {
        self.0.get(name)
    }

    /// The first 16 hexadecimal digits of a SHA-256 over all parts.
    pub fn id(&self) -> String {
        let mut hash = Sha256::new();
        for (name, value) in &self.0 {
            // Lengths keep the parts apart.
            let value = value.to_string();
            hash.update((name.len() as u64).to_le_bytes());
            hash.update(name);
            hash.update((value.len() as u64).to_le_bytes());
            hash.update(value);
        }
        format!("{:x}", hash.finalize())[..16].to_owned()
    }

    /// Names of the parts that are not the same in `earlier`, in alphabetical order.
    pub fn differing<'a>(&'a self, earlier: &'a Self) -> Vec<&'a str> {
        let names: BTreeSet<&String> = self.0.keys().chain(earlier.0.keys()).collect();
        let differs = |name: &&String| self.0.get(*name) != earlier.0.get(*name);
        names
            .into_iter()
            .filter(differs)
            .map(String::as_str)
            .collect()
    }

    /// The parts that are not the same in `earlier`, each with what it was and is where that is short.
    pub fn changes(&self, earlier: &Self) -> Vec<String> {
        let differing = self.differing(earlier).into_iter();
        differing.map(|name| self.change(earlier, name)).collect()
    }

    /// A part with what it was in `earlier` and is, where that is short.
    pub fn change(&self, earlier: &Self, name: &str) -> String {
        let shown = |identity: &Self| match identity.get(name) {
            None => "none".to_owned(),
            Some(Value::String(text)) => text.clone(),
            Some(value) => value.to_string(),
        };
        let (was, is) = (shown(earlier), shown(self));
        match was.len().max(is.len()) <= 40 {
            true => format!("{name} ({was} -> {is})"),
            false => name.to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Identity;

    #[test]
    fn what_changed_is_named() {
        let old = Identity::default()
            .with("threads", 2)
            .with("weights", "a".repeat(64));
        let new = Identity::default()
            .with("threads", 1)
            .with("weights", "b".repeat(64));
        assert_eq!(new.changes(&old), ["threads (2 -> 1)", "weights"]);
        assert_ne!(new.id(), old.id());
        assert!(old.changes(&old.clone()).is_empty());
    }

    #[test]
    fn a_part_that_is_new_is_a_change() {
        let old = Identity::default().with("threads", 2);
        let new = old.clone().with("gpu", "H100");
        assert_eq!(new.changes(&old), ["gpu (none -> H100)"]);
    }

    #[test]
    fn the_order_of_the_parts_does_not_matter() {
        let one = Identity::default().with("a", 1).with("b", 2);
        let other = Identity::default().with("b", 2).with("a", 1);
        assert_eq!(one.id(), other.id());
    }
}
