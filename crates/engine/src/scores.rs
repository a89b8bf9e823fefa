//! Scores of layers on calibration text, for the strategies that cut layers out.

use crate::error::Result;
use crate::signal;
use crate::tensors::{part_of, select};
use candle_core::Tensor;
use skipbench_model::{CausalLm, Part, Span};
use skipbench_strategy::{LayerSet, Scoring};

/// A text to score layers on: a prompt and an answer to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CalibrationText {
    /// Token ids of both.
    pub ids: Vec<u32>,
    /// Where the answer starts: likelihoods are those of its tokens.
    pub answer_start: usize,
}

/// The layers in the order in which they are dropped, the least important first.
///
/// # Errors
/// A failed model call.
pub fn removal_order(
    model: &dyn CausalLm,
    scoring: Scoring,
    texts: &[CalibrationText],
) -> Result<Vec<usize>> {
    let n_layers = model.sizes().n_layers;
    let scorer = Scorer { model, texts };
    match scoring {
        Scoring::BlockInfluence => Ok(ascending(&scorer.influence(Part::Whole)?)),
        Scoring::AttentionInfluence => Ok(ascending(&scorer.influence(Part::Attention)?)),
        Scoring::MlpInfluence => Ok(ascending(&scorer.influence(Part::Mlp)?)),
        Scoring::AngularDistance { block } => {
            let distances = scorer.angular(block)?;
            let start = ascending(&distances).first().copied().unwrap_or(0);
            Ok((start..(start + block).min(n_layers)).collect())
        }
        Scoring::Perplexity => {
            let losses = (0..n_layers)
                .map(|layer| {
                    let mut layers = LayerSet::full(n_layers);
                    layers.remove(layer);
                    scorer.loss(&layers)
                })
                .collect::<Result<Vec<f64>>>()?;
            Ok(ascending(&losses))
        }
        Scoring::Sleb { drop } => {
            let mut layers = LayerSet::full(n_layers);
            let mut order = Vec::new();
            while order.len() < drop.min(n_layers.saturating_sub(2)) {
                let inner: Vec<usize> = layers
                    .iter()
                    .filter(|&layer| layer > 0 && layer + 1 < n_layers)
                    .collect();
                let losses = inner
                    .iter()
                    .map(|&layer| {
                        let mut without = layers;
                        without.remove(layer);
                        scorer.loss(&without)
                    })
                    .collect::<Result<Vec<f64>>>()?;
                let Some(&least) = ascending(&losses).first() else {
                    break;
                };
                layers.remove(inner[least]);
                order.push(inner[least]);
            }
            Ok(order)
        }
    }
}

/// Indices by ascending score, equal ones in order; what is not a number comes last.
fn ascending(scores: &[f64]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..scores.len()).collect();
    order.sort_by(|&a, &b| scores[a].total_cmp(&scores[b]));
    order
}

struct Scorer<'a> {
    model: &'a dyn CausalLm,
    texts: &'a [CalibrationText],
}

impl Scorer<'_> {
    /// Runs a text through `layers`; `see` gets (layer, part, state before, state after), parts apart where `by_part`.
    fn run(
        &self,
        text: &CalibrationText,
        layers: &LayerSet,
        by_part: bool,
        see: &mut dyn FnMut(usize, Part, &Tensor, &Tensor) -> Result<()>,
    ) -> Result<Tensor> {
        let n_layers = self.model.sizes().n_layers;
        let mut cache = self.model.new_cache(1, vec![0; n_layers])?;
        let spans = Span::prompts([text.ids.len()]);
        let mut hidden = self.model.embed(&text.ids)?;
        for layer in layers.iter() {
            let parts = match (part_of(layers, layer), by_part) {
                (Some(Part::Whole), true) => vec![Part::Attention, Part::Mlp],
                (part, _) => part.into_iter().collect(),
            };
            for part in parts {
                let after = self
                    .model
                    .layer_part(layer, part, &hidden, &mut cache, &spans)?;
                see(layer, part, &hidden, &after)?;
                hidden = after;
            }
        }
        Ok(hidden)
    }

    /// 1 minus the mean cosine of input and output over all tokens, per layer.
    fn influence(&self, part: Part) -> Result<Vec<f64>> {
        let n_layers = self.model.sizes().n_layers;
        let mut sums = vec![(0.0, 0usize); n_layers];
        for text in self.texts {
            let all = LayerSet::full(n_layers);
            self.run(
                text,
                &all,
                part != Part::Whole,
                &mut |layer, ran, before, after| {
                    if ran == part {
                        let cosines = signal::cosine(before, after)?;
                        sums[layer].0 += cosines.iter().sum::<f64>();
                        sums[layer].1 += cosines.len();
                    }
                    Ok(())
                },
            )?;
        }
        Ok(sums
            .into_iter()
            .map(|(sum, count)| 1.0 - sum / count.max(1) as f64)
            .collect())
    }

    /// Mean angle over pi between the inputs of layers l and l + `block` at the last token, for each l.
    fn angular(&self, block: usize) -> Result<Vec<f64>> {
        let n_layers = self.model.sizes().n_layers;
        let mut sums = vec![0.0; n_layers + 1 - block.min(n_layers)];
        for text in self.texts {
            let last = [text.ids.len() - 1];
            let mut states = vec![select(&self.model.embed(&text.ids)?, &last)?];
            self.run(
                text,
                &LayerSet::full(n_layers),
                false,
                &mut |_, _, _, after| {
                    states.push(select(after, &last)?);
                    Ok(())
                },
            )?;
            for (start, sum) in sums.iter_mut().enumerate() {
                let cosine = signal::cosine(&states[start], &states[start + block])?[0];
                *sum += cosine.clamp(-1.0, 1.0).acos() / std::f64::consts::PI;
            }
        }
        Ok(sums
            .into_iter()
            .map(|sum| sum / self.texts.len().max(1) as f64)
            .collect())
    }

    /// Mean negative log-likelihood of the answers' tokens with these layers alone.
    fn loss(&self, layers: &LayerSet) -> Result<f64> {
        let (mut sum, mut count) = (0.0, 0usize);
        for text in self.texts {
            let hidden = self.run(text, layers, false, &mut |_, _, _, _| Ok(()))?;
            let first = text.answer_start.max(1);
            if first >= text.ids.len() {
                continue;
            }
            let states = hidden.narrow(0, first - 1, text.ids.len() - first)?;
            let logits = self.model.head(&states.contiguous()?)?;
            let vocab = logits.dim(1)?;
            let logits = logits.flatten_all()?.to_vec1::<f32>()?;
            for (logits, &token) in logits.chunks_exact(vocab).zip(&text.ids[first..]) {
                sum -= signal::log_probability(logits, token);
                count += 1;
            }
        }
        Ok(sum / count.max(1) as f64)
    }
}
