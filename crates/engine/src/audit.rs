//! The KV cache of a strategy against that of the full network over the same tokens, and exit checks that read a few tokens
//! against those that read all.

use serde::{Deserialize, Serialize};

/// The entries of one row's cache at generated positions, by how they came to be.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct KvAudit {
    /// One per layer.
    pub layers: Vec<LayerAudit>,
}

/// What one layer holds at the generated positions of a row.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct LayerAudit {
    /// Written by the layer at its own step.
    pub computed: EntryAudit,
    /// Made up for an exit: projected from the state or copied from below.
    pub approximate: EntryAudit,
    /// Written by the layer at a later step.
    pub deferred: EntryAudit,
    /// Positions that later ones did not see.
    pub masked: u64,
    /// Positions at which nothing is held.
    pub empty: u64,
}

/// How far keys and values of one kind are from those of a full-depth replay.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct EntryAudit {
    /// Number of positions.
    pub count: u64,
    /// Sum over positions of the relative L2 distance of the key and value together.
    pub distance_sum: f64,
    /// The largest of them.
    pub distance_max: f64,
    /// Sum over positions of the cosine of key and value together.
    pub cosine_sum: f64,
}

impl EntryAudit {
    pub(crate) fn add(&mut self, found: &[f32], exact: &[f32]) {
        let (mut product, mut a, mut b, mut apart) = (0f64, 0f64, 0f64, 0f64);
        for (&found, &exact) in found.iter().zip(exact) {
            let (found, exact) = (f64::from(found), f64::from(exact));
            product += found * exact;
            a += found * found;
            b += exact * exact;
            apart += (found - exact) * (found - exact);
        }
        let distance = (apart / b.max(f64::MIN_POSITIVE)).sqrt();
        self.count += 1;
        self.distance_sum += distance;
        self.distance_max = self.distance_max.max(distance);
        self.cosine_sum += product / (a * b).sqrt().max(f64::MIN_POSITIVE);
    }

    /// Adds another tally.
    pub fn merge(&mut self, other: &Self) {
        self.count += other.count;
        self.distance_sum += other.distance_sum;
        self.distance_max = self.distance_max.max(other.distance_max);
        self.cosine_sum += other.cosine_sum;
    }

    /// Mean relative L2 distance; `None` without entries.
    pub fn distance(&self) -> Option<f64> {
        (self.count > 0).then(|| self.distance_sum / self.count as f64)
    }

    /// Mean cosine; `None` without entries.
    pub fn cosine(&self) -> Option<f64> {
        (self.count > 0).then(|| self.cosine_sum / self.count as f64)
    }
}

impl KvAudit {
    /// Adds another row's tallies, layer by layer.
    pub fn merge(&mut self, other: &Self) {
        self.layers.resize(
            self.layers.len().max(other.layers.len()),
            LayerAudit::default(),
        );
        for (mine, other) in self.layers.iter_mut().zip(&other.layers) {
            mine.computed.merge(&other.computed);
            mine.approximate.merge(&other.approximate);
            mine.deferred.merge(&other.deferred);
            mine.masked += other.masked;
            mine.empty += other.empty;
        }
    }

    /// The tally of one kind over all layers.
    pub fn over_layers(&self, of: fn(&LayerAudit) -> &EntryAudit) -> EntryAudit {
        let mut sum = EntryAudit::default();
        for layer in &self.layers {
            sum.merge(of(layer));
        }
        sum
    }
}

/// Exit checks that read a list of tokens, against what the same checks would have said of the whole LM head.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckAudit {
    /// Checks, one for each row.
    pub checks: u64,
    /// Of these, the ones at which the whole head lets the token go.
    pub exits: u64,
    /// Of these, the ones at which the list does not.
    pub missed: u64,
    /// Checks at which the list lets the token go and the whole head does not.
    pub early: u64,
    /// Checks whose likeliest token is not in the list.
    pub unlisted: u64,
}

impl CheckAudit {
    /// Adds another tally.
    pub fn add(&mut self, other: &Self) {
        self.checks += other.checks;
        self.exits += other.exits;
        self.missed += other.missed;
        self.early += other.early;
        self.unlisted += other.unlisted;
    }
}
