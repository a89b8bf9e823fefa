//! From logits to tokens: the most likely one, or a drawn one.

use crate::error::{EngineError, Result};
use crate::signal;
use candle_core::Tensor;
use candle_transformers::generation::{LogitsProcessor, Sampling as Draw};

/// How tokens are drawn.
#[derive(Debug, Clone, PartialEq)]
pub struct Sampling {
    /// Divides the logits; above 0.
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

impl Sampling {
    /// Refuses values that mean nothing.
    ///
    /// # Errors
    /// A temperature that is not above 0, a probability outside 0 to 1, a `top_k` of 0.
    pub fn check(&self) -> Result<()> {
        let wrong =
            |option: &'static str, message: String| Err(EngineError::Search { option, message });
        if !(self.temperature.is_finite() && self.temperature > 0.0) {
            return wrong(
                "temperature",
                format!(
                    "{} is not above 0; leave it out for greedy decoding",
                    self.temperature
                ),
            );
        }
        if let Some(p) = self.top_p.filter(|p| !(*p > 0.0 && *p <= 1.0)) {
            return wrong("top-p", format!("{p} is not above 0 and at most 1"));
        }
        match self.top_k {
            Some(0) => wrong("top-k", "0 leaves no token to draw".to_owned()),
            _ => Ok(()),
        }
    }

    fn processor(&self, row: u64) -> LogitsProcessor {
        let temperature = self.temperature;
        let draw = match (self.top_k, self.top_p) {
            (None, None) => Draw::All { temperature },
            (Some(k), None) => Draw::TopK { k, temperature },
            (None, Some(p)) => Draw::TopP { p, temperature },
            (Some(k), Some(p)) => Draw::TopKThenTopP { k, p, temperature },
        };
        // Neighbouring seeds and rows must not share a stream.
        let stream = (self.first_row + row).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        LogitsProcessor::from_sampling(self.seed ^ stream, draw)
    }
}

/// Chooses each row's next token.
pub(crate) enum Chooser {
    Greedy,
    Drawn(Vec<LogitsProcessor>),
}

impl Chooser {
    pub(crate) fn new(sampling: Option<&Sampling>, rows: usize) -> Self {
        match sampling {
            None => Self::Greedy,
            Some(sampling) => Self::Drawn(
                (0..rows as u64)
                    .map(|row| sampling.processor(row))
                    .collect(),
            ),
        }
    }

    /// `logits`: `[rows.len(), vocab_size]`.
    pub(crate) fn choose(&mut self, rows: &[usize], logits: &Tensor) -> Result<Vec<u32>> {
        // Says so where logits are not finite, from which nothing can be drawn either.
        let likeliest = signal::argmax(logits)?;
        match self {
            Self::Greedy => Ok(likeliest),
            Self::Drawn(processors) => rows
                .iter()
                .enumerate()
                .map(|(index, &row)| Ok(processors[row].sample(&logits.get(index)?)?))
                .collect(),
        }
    }
}
