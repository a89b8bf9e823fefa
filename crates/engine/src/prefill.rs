//! The prompts, through their layers.

use crate::error::Result;
use crate::run::Run;
use crate::signal;
use crate::tensors::{apart, part_of, select};
use candle_core::Tensor;
use skipbench_model::{Part, Span};
use skipbench_strategy::PromptSignal;

impl Run<'_> {
    /// The prompts through their layers; logits behind each: `[prompts, vocab_size]`. Of a beam's rows the first is filled.
    pub(crate) fn prefill(&mut self) -> Result<Tensor> {
        let mut spans = Span::prompts(self.prompts.iter().map(Vec::len));
        for span in &mut spans {
            span.row *= self.options.beams();
        }
        let layers = self.prompt_layers();
        let by_part = self.needs.prompt_signal == Some(PromptSignal::Similarity);
        let mut similarity = vec![Vec::new(); self.prompts.len()];
        let mut hidden = self.model.embed(&self.prompts.concat(), &spans)?;
        for layer in layers.iter() {
            let Some(part) = part_of(&layers, layer) else {
                continue;
            };
            let parts = if by_part && part == Part::Whole {
                let apart = apart(self.model, layer, &hidden, &mut self.cache, &spans)?;
                hidden = apart.output;
                Vec::from(apart.parts)
            } else {
                let before = hidden;
                hidden = self
                    .model
                    .layer_part(layer, part, &before, &mut self.cache, &spans)?;
                vec![(part, before, hidden.clone())]
            };
            if !by_part {
                continue;
            }
            for (_, before, after) in parts {
                let mut cosines = signal::cosine(&before, &after)?.into_iter();
                for (span, values) in spans.iter().zip(&mut similarity) {
                    let sum: f64 = cosines.by_ref().take(span.len).sum();
                    if sum.is_nan() {
                        let place = (span.row, span.len - 1);
                        return Err(self.not_numbers("hidden states", place, Some(layer)));
                    }
                    values.push(sum / span.len as f64);
                }
            }
        }
        let mut end = 0;
        let last_tokens: Vec<usize> = spans
            .iter()
            .map(|span| {
                end += span.len;
                end - 1
            })
            .collect();
        let logits = self.model.head(&select(&hidden, &last_tokens)?)?;
        let signals = match self.needs.prompt_signal {
            None => return Ok(logits),
            Some(PromptSignal::Similarity) => similarity,
            Some(PromptSignal::Confidence(signal)) => {
                let values = signal::from_logits(signal, &logits)?;
                values.into_iter().map(|value| vec![value]).collect()
            }
        };
        for (span, signal) in spans.iter().zip(&signals) {
            if signal.iter().any(|value| value.is_nan()) {
                return Err(self.not_numbers("logits", (span.row, span.len - 1), None));
            }
            for row in span.row..span.row + self.options.beams() {
                self.strategy.observe_prompt(row, signal);
            }
        }
        Ok(logits)
    }
}
