//! How far to generate, and how to search.

use crate::error::{EngineError, Result};
use crate::generation::End;
use crate::stop::StopTexts;
use skipbench_strategy::Strategy;

/// The largest length penalty, up and down: the power of an answer's length must still be a number.
pub const MAX_LENGTH_PENALTY: f64 = 10.0;

/// Below it the likeliest token is all that is ever drawn, and at last logits divided by it are no numbers any more.
const LEAST_TEMPERATURE: f64 = 1e-4;

/// How far to generate, and how to search.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Options {
    /// Largest number of generated tokens per row, the end of sequence included.
    pub max_new_tokens: usize,
    /// Ids that end a row. Empty: every row gets exactly `max_new_tokens` (fixed-length mode, for timing).
    pub eos_ids: Vec<u32>,
    /// Texts that end a row.
    pub stop: Option<StopTexts>,
    /// Tokens that a schedule by position is laid over, where that is another number: a timing pass that stops early
    /// must still run the layers of the whole answer's first part.
    pub planned_tokens: Option<usize>,
    /// Draw tokens instead of taking the likeliest.
    pub sampling: Option<Sampling>,
    /// Search with several beams.
    pub beam: Option<Beam>,
    /// No n-gram of this length, prompt included, occurs twice; 0 for no such rule.
    pub no_repeat_ngram: usize,
    /// Give each token's log-probability, and those of so many likeliest tokens.
    pub log_probabilities: Option<usize>,
    /// Keep a [`TokenTrace`](crate::TokenTrace) of each token.
    pub trace: bool,
    /// Compare the KV cache with that of a full-depth replay at the end.
    pub audit: bool,
}

/// How to search with beams.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Beam {
    /// Continuations kept at each step.
    pub beams: usize,
    /// A finished continuation's log-probability is divided by its length to this power.
    pub length_penalty: f64,
}

/// How tokens are drawn.
#[derive(Debug, Clone, PartialEq)]
pub struct Sampling {
    /// Divides the logits; 0.0001 or more.
    pub temperature: f64,
    /// Draw from the likeliest tokens that together have this probability.
    pub top_p: Option<f64>,
    /// Draw from this many likeliest tokens.
    pub top_k: Option<usize>,
    /// Seed of the streams.
    pub seed: u64,
    /// Number of the batch's first row among all rows: each has a stream of its own, so that its tokens depend on
    /// neither its batch nor its neighbours.
    pub first_row: u64,
}

impl Options {
    /// Beams of each prompt.
    pub(crate) fn beams(&self) -> usize {
        self.beam.map_or(1, |beam| beam.beams)
    }

    /// Why an answer of these tokens goes no further; `None` where it goes on.
    pub(crate) fn end(&self, tokens: &[u32]) -> Result<Option<End>> {
        let is_full = tokens.len() >= self.max_new_tokens;
        if tokens
            .last()
            .is_some_and(|last| self.eos_ids.contains(last))
        {
            return Ok(Some(End::Eos));
        }
        if let Some(stop) = &self.stop
            && stop.ends(tokens, is_full)?
        {
            return Ok(Some(End::Stop));
        }
        Ok(is_full.then_some(End::Length))
    }

    /// Refuses what a row cannot have for itself.
    pub(crate) fn check_row(&self) -> Result<()> {
        let for_all = [
            ("beams", self.beam.is_some()),
            ("no-repeat-ngram", self.no_repeat_ngram > 0),
            ("trace", self.trace),
            ("audit", self.audit),
        ];
        match for_all.into_iter().find(|(_, is_set)| *is_set) {
            None => Ok(()),
            Some((option, _)) => wrong(
                option,
                "it is for a batch whose rows are asked for alike; leave it out",
            ),
        }
    }

    /// Refuses options that do not go together or with the strategy.
    pub(crate) fn check(&self, strategy: &dyn Strategy) -> Result<()> {
        if let Some(sampling) = &self.sampling {
            sampling.check()?;
            if self.beam.is_some() {
                return wrong(
                    "beams",
                    "a beam search draws nothing; leave out the sampling or the beams",
                );
            }
        }
        if let Some(beam) = self.beam {
            beam.check()?;
            if self.log_probabilities.is_some() {
                return wrong(
                    "log-probabilities",
                    "a beam search gives none of its tokens; use one beam",
                );
            }
            if self.trace || self.audit {
                return wrong(
                    "trace",
                    "a beam search has no one way through the layers to trace; use one beam",
                );
            }
        }
        let one_continuation = strategy.draft().is_some() || strategy.needs().oracle.is_some();
        if one_continuation && self.beam.is_some() {
            return wrong(
                "beams",
                "this strategy follows one greedy continuation; use one beam",
            );
        }
        if one_continuation && self.sampling.is_some() {
            return wrong(
                "temperature",
                "this strategy follows the likeliest tokens; decode greedily",
            );
        }
        if one_continuation && self.no_repeat_ngram > 0 {
            return wrong(
                "no-repeat-ngram",
                "this strategy is held to the full network's own tokens; leave the rule out",
            );
        }
        Ok(())
    }
}

impl Beam {
    /// Refuses values that mean nothing.
    ///
    /// # Errors
    /// Fewer than 2 or more than 64 beams, a length penalty beyond [`MAX_LENGTH_PENALTY`].
    pub fn check(&self) -> Result<()> {
        if !(2..=64).contains(&self.beams) {
            return wrong("beams", format!("{} is outside 2 to 64", self.beams));
        }
        match self.length_penalty.abs() <= MAX_LENGTH_PENALTY {
            true => Ok(()),
            false => wrong(
                "length-penalty",
                format!(
                    "{} is outside -{MAX_LENGTH_PENALTY} to {MAX_LENGTH_PENALTY}",
                    self.length_penalty
                ),
            ),
        }
    }
}

impl Sampling {
    /// Refuses values that mean nothing.
    ///
    /// # Errors
    /// A temperature that is too near to 0, a probability outside 0 to 1, a `top_k` of 0.
    pub fn check(&self) -> Result<()> {
        if !(self.temperature.is_finite() && self.temperature >= LEAST_TEMPERATURE) {
            return wrong(
                "temperature",
                format!(
                    "{} is not a number from {LEAST_TEMPERATURE} up; leave it out for greedy decoding",
                    self.temperature
                ),
            );
        }
        if let Some(p) = self.top_p.filter(|p| !(*p > 0.0 && *p <= 1.0)) {
            return wrong("top-p", format!("{p} is not above 0 and at most 1"));
        }
        match self.top_k {
            Some(0) => wrong("top-k", "0 leaves no token to draw"),
            _ => Ok(()),
        }
    }
}

fn wrong(option: &'static str, message: impl Into<String>) -> Result<()> {
    Err(EngineError::Search {
        option,
        message: message.into(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use skipbench_model::ByteTokenizer;
    use std::sync::Arc;

    #[test]
    fn where_an_answer_is_full_any_stop_will_do() {
        let stops = ["b", "abc"].map(str::to_owned);
        let options = |max_new_tokens| Options {
            max_new_tokens,
            eos_ids: vec![256],
            stop: Some(StopTexts::new(Arc::new(ByteTokenizer), stops.clone())),
            ..Options::default()
        };
        let end = |most, text: &str| {
            let ids: Vec<u32> = text.bytes().map(u32::from).collect();
            options(most).end(&ids).unwrap()
        };
        assert_eq!(end(3, "xab"), Some(End::Stop));
        assert_eq!(end(4, "xab"), None, "`abc` may come yet");
        assert_eq!(end(3, "xyz"), Some(End::Length));
        assert_eq!(options(3).end(&[256]).unwrap(), Some(End::Eos));
    }
}
