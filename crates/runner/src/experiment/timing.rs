//! `timing:` of an experiment.

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{Error, Unexpected, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use std::fmt;

/// How the timing pass goes.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct TimingEntry {
    /// Batches of prompts that are timed, and of calibration prompts in a trial of `match: wallclock`, at most 10,000; 0
    /// leaves timing out.
    #[serde(default = "default_timing_batches")]
    pub batches: usize,
    /// Times that each batch is run under both the full network and the strategy, at most 10,000.
    #[serde(default = "default_timing_repeats")]
    pub repeats: usize,
    /// Half width of a speedup's interval, as a share of the speedup (`1%` or `0.01`; 0.1% to 50%), until which batches are
    /// repeated beyond `repeats`; if not given, each is run `repeats` times.
    #[serde(
        default,
        deserialize_with = "share",
        skip_serializing_if = "Option::is_none"
    )]
    #[schemars(schema_with = "share_schema")]
    pub precision: Option<f64>,
    /// The most times that `precision` has a batch run; if not given, the harness's own cap.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_repeats: Option<usize>,
    /// Blocks that are run before the clock counts, at most 10,000.
    #[serde(default = "default_timing_warm_up")]
    pub warm_up: usize,
    /// New tokens of each row, at least 2: timed rows all have exactly this many, whatever they say.
    #[serde(default = "default_timing_new_tokens")]
    pub new_tokens: usize,
}

fn default_timing_batches() -> usize {
    16
}
fn default_timing_repeats() -> usize {
    2
}
fn default_timing_warm_up() -> usize {
    2
}
fn default_timing_new_tokens() -> usize {
    24
}

impl Default for TimingEntry {
    fn default() -> Self {
        Self {
            batches: default_timing_batches(),
            repeats: default_timing_repeats(),
            precision: None,
            max_repeats: None,
            warm_up: default_timing_warm_up(),
            new_tokens: default_timing_new_tokens(),
        }
    }
}

/// A share of 1, written as a number or as percent.
struct Share(f64);

impl<'de> Deserialize<'de> for Share {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct ShareVisitor;

        impl Visitor<'_> for ShareVisitor {
            type Value = Share;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a share as percent or as a number, `1%` or `0.01`")
            }

            fn visit_f64<E>(self, share: f64) -> Result<Share, E> {
                Ok(Share(share))
            }

            fn visit_u64<E>(self, share: u64) -> Result<Share, E> {
                Ok(Share(share as f64))
            }

            fn visit_i64<E>(self, share: i64) -> Result<Share, E> {
                Ok(Share(share as f64))
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<Share, E> {
                let percent = text.strip_suffix('%').map(str::trim_end);
                let percent = percent.and_then(|percent| percent.parse::<f64>().ok());
                let unfit = || E::invalid_value(Unexpected::Str(text), &self);
                percent
                    .map(|percent| Share(percent / 100.0))
                    .ok_or_else(unfit)
            }
        }

        deserializer.deserialize_any(ShareVisitor)
    }
}

fn share<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<f64>, D::Error> {
    let share = Option::<Share>::deserialize(deserializer)?;
    Ok(share.map(|share| share.0))
}

fn share_schema(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "anyOf": [
            {"type": "number", "minimum": 0.001, "maximum": 0.5},
            {"type": "string", "pattern": r"^[0-9.]+\s*%$"},
            {"type": "null"},
        ],
    })
}
