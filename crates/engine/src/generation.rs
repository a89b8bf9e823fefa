//! What generating gives, and what it cost.

use crate::audit::{CheckAudit, KvAudit};
use crate::laps::Spent;
use crate::ledger::Ledger;
use crate::trace::TokenTrace;
use serde::{Deserialize, Serialize};
use skipbench_model::HoleReads;

/// Why an answer ended.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum End {
    /// It has as many tokens as it may have.
    #[default]
    Length,
    /// With an end-of-sequence token.
    Eos,
    /// With a stop text.
    Stop,
}

/// What the model thought of a token: natural logarithms of probabilities, before any temperature.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct TokenScore {
    /// Of the token itself.
    pub log_probability: f64,
    /// Of the likeliest tokens, the likeliest first; of equal ones the lower id.
    pub likeliest: Vec<(u32, f64)>,
}

/// What one row got.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct RowOutput {
    /// Generated ids, without the prompt, ending with the end-of-sequence id where one was generated,
    /// or with the token that completed a stop text.
    pub tokens: Vec<u32>,
    /// Why it ended.
    pub end: End,
    /// Layers run for each generated token, half a layer for a sub-layer; those that made up for an earlier token's count
    /// for the token that needed them.
    pub layers: Vec<f64>,
    /// The log-probability of each token, if that was asked for.
    pub scores: Vec<TokenScore>,
    /// How each token came to be, if that was asked for.
    pub trace: Vec<TokenTrace>,
    /// The KV cache against that of a full-depth replay, if that was asked for.
    pub audit: Option<KvAudit>,
}

/// What one batch got, and what it cost.
#[derive(Debug, Clone, Default)]
pub struct Generation {
    /// One per prompt, in order.
    pub rows: Vec<RowOutput>,
    /// Seconds until the first token of every row (TTFT).
    pub prefill_s: f64,
    /// Seconds of each decode step.
    pub step_s: Vec<f64>,
    /// Bytes of the KV cache at the end, when it is largest.
    pub peak_kv_bytes: u64,
    /// What the decode steps cost.
    pub ledger: Ledger,
    /// Holes of the KV cache that attention read.
    pub hole_reads: HoleReads,
    /// What became of drafts, where the strategy makes some.
    pub drafts: DraftTally,
    /// Exit checks that read a list of tokens against those that read all, if an audit was asked for.
    pub checks: CheckAudit,
    /// Where the time of the decode steps went.
    pub spent: Spent,
}

/// How many drafted tokens stood.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct DraftTally {
    /// Verifications, one for each row that takes part.
    pub verified: u64,
    /// Tokens drafted.
    pub drafted: u64,
    /// Of these, the ones that the verification left standing.
    pub accepted: u64,
    /// Seconds of drafting, of all that decode steps take.
    pub draft_s: f64,
}

impl DraftTally {
    /// Adds another run's.
    pub fn add(&mut self, other: &Self) {
        self.verified += other.verified;
        self.drafted += other.drafted;
        self.accepted += other.accepted;
        self.draft_s += other.draft_s;
    }
}

impl Generation {
    /// Seconds of all decode steps.
    pub fn decode_s(&self) -> f64 {
        self.step_s.iter().sum()
    }

    /// Tokens that the decode steps generated: all but the first of each row.
    pub fn decoded_tokens(&self) -> usize {
        self.rows
            .iter()
            .map(|row| row.tokens.len().saturating_sub(1))
            .sum()
    }
}
