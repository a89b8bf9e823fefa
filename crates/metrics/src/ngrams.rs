//! N-grams as dense numbers: equal n-grams of one segment's texts get equal numbers, without building any of them.

use rustc_hash::FxHashMap;

/// Numbers keys 0, 1, .. in order of first appearance. An open-addressing table whose entries are forgotten all at once,
/// so that a segment costs what it holds and not what the longest one did.
#[derive(Debug, Default)]
struct Interner {
    slots: Vec<Slot>,
    generation: u32,
    mask: usize,
    len: u32,
}

#[derive(Debug, Clone, Copy, Default)]
struct Slot {
    key: u64,
    generation: u32,
    id: u32,
}

impl Interner {
    /// Forgets all keys and makes room for `n`.
    fn start(&mut self, n: usize) {
        let size = (2 * n).next_power_of_two();
        if self.slots.len() < size || self.generation == u32::MAX {
            self.slots = vec![Slot::default(); size.max(self.slots.len())];
            self.generation = 0;
        }
        self.generation += 1;
        self.mask = size - 1;
        self.len = 0;
    }

    fn id(&mut self, key: u64) -> u32 {
        let mut at = (key.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32) as usize & self.mask;
        loop {
            let slot = &mut self.slots[at];
            if slot.generation != self.generation {
                *slot = Slot {
                    key,
                    generation: self.generation,
                    id: self.len,
                };
                self.len += 1;
                return slot.id;
            }
            if slot.key == key {
                return slot.id;
            }
            at = (at + 1) & self.mask;
        }
    }
}

/// The n-grams of a few texts, order by order. Buffers are kept from one segment to the next.
#[derive(Debug, Default)]
pub(crate) struct Ngrams {
    /// Symbols of all texts, one after the other.
    symbols: Vec<u32>,
    /// Where each text ends in `symbols`.
    ends: Vec<usize>,
    /// At each position the number of the n-gram that begins there.
    ids: Vec<u32>,
    interner: Interner,
    /// Per n-gram, all 0 between uses.
    counts: Vec<u32>,
    allowed: Vec<u32>,
}

/// All n-grams of one order.
pub(crate) struct Order<'a> {
    ids: &'a [u32],
    ends: &'a [usize],
    n: usize,
    counts: &'a mut [u32],
    allowed: &'a mut [u32],
}

impl Ngrams {
    /// Forgets all texts.
    pub(crate) fn clear(&mut self) {
        self.symbols.clear();
        self.ends.clear();
    }

    /// Adds a text, a symbol per token or character.
    pub(crate) fn push(&mut self, symbols: impl Iterator<Item = u32>) {
        self.symbols.extend(symbols);
        self.ends.push(self.symbols.len());
    }

    /// Calls `each` with the n-grams of every order from 1 to `max`.
    pub(crate) fn for_each_order(&mut self, max: usize, mut each: impl FnMut(Order<'_>)) {
        self.ids.clear();
        self.ids.resize(self.symbols.len(), 0);
        for n in 1..=max {
            self.interner.start(self.symbols.len().max(1));
            let mut start = 0;
            for &end in &self.ends {
                // An n-gram is the (n-1)-gram that begins with it and the symbol that ends it.
                for at in start..(end + 1).saturating_sub(n).max(start) {
                    let key = u64::from(self.ids[at]) << 32 | u64::from(self.symbols[at + n - 1]);
                    self.ids[at] = self.interner.id(key);
                }
                start = end;
            }
            let distinct = self.interner.len as usize;
            self.counts.resize(distinct.max(self.counts.len()), 0);
            self.allowed.resize(distinct.max(self.allowed.len()), 0);
            each(Order {
                ids: &self.ids,
                ends: &self.ends,
                n,
                counts: &mut self.counts,
                allowed: &mut self.allowed,
            });
        }
    }
}

impl Order<'_> {
    /// The order, from 1.
    pub(crate) fn n(&self) -> usize {
        self.n
    }

    /// N-grams of the `text`-th text.
    fn of(&self, text: usize) -> std::ops::Range<usize> {
        let start = match text {
            0 => 0,
            _ => self.ends[text - 1],
        };
        start..(self.ends[text] + 1).saturating_sub(self.n).max(start)
    }

    /// Number of n-grams of a text.
    pub(crate) fn total(&self, text: usize) -> usize {
        self.of(text).len()
    }

    /// N-grams of `text` that are found in the `others`, each as often as in the one that has it most often.
    pub(crate) fn matches(&mut self, text: usize, others: std::ops::Range<usize>) -> usize {
        for other in others.clone() {
            for at in self.of(other) {
                let id = self.ids[at] as usize;
                self.counts[id] += 1;
                self.allowed[id] = self.allowed[id].max(self.counts[id]);
            }
            for at in self.of(other) {
                self.counts[self.ids[at] as usize] = 0;
            }
        }
        let mut matches = 0;
        for at in self.of(text) {
            let allowed = &mut self.allowed[self.ids[at] as usize];
            if *allowed > 0 {
                *allowed -= 1;
                matches += 1;
            }
        }
        for other in others {
            for at in self.of(other) {
                self.allowed[self.ids[at] as usize] = 0;
            }
        }
        matches
    }
}

/// Numbers for the words of one segment's texts.
#[derive(Debug, Default)]
pub(crate) struct Words<'a>(FxHashMap<&'a str, u32>);

impl<'a> Words<'a> {
    pub(crate) fn id(&mut self, word: &'a str) -> u32 {
        let next = self.0.len() as u32;
        *self.0.entry(word).or_insert(next)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashMap;

    fn counted(text: &[u32], n: usize) -> HashMap<&[u32], usize> {
        let mut counts = HashMap::new();
        for gram in text.windows(n) {
            *counts.entry(gram).or_insert(0) += 1;
        }
        counts
    }

    proptest! {
        #[test]
        fn matches_are_those_of_counted_ngrams(
            segments in prop::collection::vec(prop::collection::vec(prop::collection::vec(0u32..4, 0..12), 3), 1..4),
        ) {
            let mut ngrams = Ngrams::default();
            for texts in segments {
                ngrams.clear();
                texts.iter().for_each(|text| ngrams.push(text.iter().copied()));
                ngrams.for_each_order(5, |mut order| {
                    let n = order.n();
                    let found = order.matches(0, 1..3);
                    let (a, b) = (counted(&texts[1], n), counted(&texts[2], n));
                    let of = |map: &HashMap<&[u32], usize>, gram: &[u32]| map.get(gram).copied().unwrap_or(0);
                    let expected: usize = counted(&texts[0], n)
                        .into_iter()
                        .map(|(gram, count)| count.min(of(&a, gram).max(of(&b, gram))))
                        .sum();
                    assert_eq!(found, expected);
                    assert_eq!(order.total(0), (texts[0].len() + 1).saturating_sub(n));
                });
            }
        }
    }
}
