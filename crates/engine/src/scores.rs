//! Scores of layers on calibration text, for the strategies that cut layers out.

use crate::error::{EngineError, Result};
use crate::signal;
use crate::tensors::{apart, select};
use candle_core::Tensor;
use skipbench_model::{CausalLm, KvCache, Part, Span};
use skipbench_strategy::{LayerSet, Scoring};

/// Bytes of states that are kept, so that layers below a candidate need not run again for it.
const PREFIX_BYTES: u64 = 1 << 29;

/// A text to score layers on: a prompt and an answer to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CalibrationText {
    /// Token ids of both.
    pub ids: Vec<u32>,
    /// Where the answer starts: likelihoods are those of its tokens.
    pub answer_start: usize,
}

/// Remembers scores, so that work that was cut off goes on where it was, and hears how far it is. `()` remembers nothing.
///
/// A score belongs to the model, the texts, what is scored and the layers that are gone. What [`Scoring::Perplexity`] and
/// [`Scoring::Sleb`] score is the same, however many layers are to go.
pub trait ScoreLog {
    /// The score of dropping `candidate` (of a block: its first layer) once `removed`, ascending, are gone, where it is known.
    fn lookup(&mut self, removed: &[usize], candidate: usize) -> Option<f64>;

    /// The same, found just now: infinity where the network without them gives no numbers. `done` of `total` scores are
    /// known by now, those that were looked up included.
    fn scored(
        &mut self,
        removed: &[usize],
        candidate: usize,
        score: f64,
        done: usize,
        total: usize,
    );
}

impl ScoreLog for () {
    fn lookup(&mut self, _: &[usize], _: usize) -> Option<f64> {
        None
    }

    fn scored(&mut self, _: &[usize], _: usize, _: f64, _: usize, _: usize) {}
}

/// The layers in the order in which they are dropped, the least important first.
///
/// # Errors
/// A failed model call, calibration text without a token to score, values that are not numbers with every layer in place or
/// with each of them gone.
pub fn removal_order(
    model: &dyn CausalLm,
    scoring: Scoring,
    texts: &[CalibrationText],
    log: &mut dyn ScoreLog,
) -> Result<Vec<usize>> {
    let n_layers = model.sizes().n_layers;
    let mut scorer = Scorer {
        model,
        texts,
        cache: model.new_cache(1, vec![0; n_layers])?,
        prefix_bytes: PREFIX_BYTES,
        log,
        done: 0,
    };
    match scoring {
        Scoring::BlockInfluence => scorer.by_influence(Part::Whole),
        Scoring::AttentionInfluence => scorer.by_influence(Part::Attention),
        Scoring::MlpInfluence => scorer.by_influence(Part::Mlp),
        Scoring::AngularDistance { block } => {
            let block = block.min(n_layers);
            let starts = n_layers + 1 - block;
            let distances = scorer.in_one_pass(starts, |scorer| scorer.angular(block))?;
            let start = ascending(&distances).first().copied().unwrap_or(0);
            Ok((start..start + block).collect())
        }
        Scoring::Perplexity => {
            let all: Vec<usize> = (0..n_layers).collect();
            Ok(ascending(&scorer.losses(&[], &all, n_layers)?))
        }
        Scoring::Sleb { drop } => scorer.sleb(drop.min(n_layers.saturating_sub(2))),
    }
}

/// Indices by ascending score, equal ones in order; what is not a number comes last, whatever its sign bit.
fn ascending(scores: &[f64]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..scores.len()).collect();
    order.sort_by(|&a, &b| worst_if_nan(scores[a]).total_cmp(&worst_if_nan(scores[b])));
    order
}

fn worst_if_nan(score: f64) -> f64 {
    if score.is_nan() { f64::INFINITY } else { score }
}

struct Scorer<'a> {
    model: &'a dyn CausalLm,
    texts: &'a [CalibrationText],
    /// Without room: each text runs in one pass.
    cache: KvCache,
    prefix_bytes: u64,
    log: &'a mut dyn ScoreLog,
    /// Scores that are known by now.
    done: usize,
}

/// The states of all texts in front of a layer, `[tokens, d_model]` each; none where they are not kept.
#[derive(Default)]
struct Prefix {
    layer: usize,
    states: Vec<Tensor>,
}

impl Scorer<'_> {
    fn by_influence(&mut self, part: Part) -> Result<Vec<usize>> {
        let n_layers = self.model.sizes().n_layers;
        let scores = self.in_one_pass(n_layers, |scorer| scorer.influence(part))?;
        Ok(ascending(&scores))
    }

    /// Drops so many inner layers one by one, each time the one without which the answers stay likeliest.
    fn sleb(&mut self, drop: usize) -> Result<Vec<usize>> {
        let mut inner: Vec<usize> = (1..self.model.sizes().n_layers - 1).collect();
        let total = (0..drop).map(|round| inner.len() - round).sum();
        let mut order: Vec<usize> = Vec::new();
        while order.len() < drop {
            let mut removed = order.clone();
            removed.sort_unstable();
            let losses = self.losses(&removed, &inner, total)?;
            order.push(inner.remove(ascending(&losses)[0]));
        }
        Ok(order)
    }

    /// Scores of `count` candidates that one pass over the texts finds together.
    fn in_one_pass(
        &mut self,
        count: usize,
        pass: impl Fn(&mut Self) -> Result<Vec<f64>>,
    ) -> Result<Vec<f64>> {
        let known: Vec<Option<f64>> = (0..count)
            .map(|candidate| self.log.lookup(&[], candidate))
            .collect();
        if let Some(all) = known.iter().copied().collect() {
            return Ok(all);
        }
        if self.texts.is_empty() {
            return Err(EngineError::NoScores {
                why: "there is no calibration text",
            });
        }
        let scores = pass(self)?;
        if scores.iter().any(|score| score.is_nan()) {
            return Err(EngineError::NoScores {
                why: "the network gives values that are not numbers on the calibration text; the checkpoint is damaged, or its values overflow this dtype; try float32",
            });
        }
        for (candidate, &score) in scores.iter().enumerate() {
            if known[candidate].is_none() {
                self.log.scored(&[], candidate, score, candidate + 1, count);
            }
        }
        Ok(scores)
    }

    /// Runs one text's states, `[tokens, d_model]`, through `layers`, whole or by part; `see` gets (layer, part, state before,
    /// state after).
    fn run(
        &mut self,
        layers: impl Iterator<Item = usize>,
        by_part: bool,
        mut hidden: Tensor,
        mut see: impl FnMut(usize, Part, &Tensor, &Tensor) -> Result<()>,
    ) -> Result<Tensor> {
        let spans = Span::prompts([hidden.dim(0)?]);
        for layer in layers {
            if by_part {
                let apart = apart(self.model, layer, &hidden, &mut self.cache, &spans)?;
                for (part, before, after) in &apart.parts {
                    see(layer, *part, before, after)?;
                }
                hidden = apart.output;
            } else {
                let before = hidden;
                hidden = self.model.layer(layer, &before, &mut self.cache, &spans)?;
                see(layer, Part::Whole, &before, &hidden)?;
            }
        }
        Ok(hidden)
    }

    /// A text as the first layer sees it.
    fn embed(&self, text: &CalibrationText) -> Result<Tensor> {
        let spans = Span::prompts([text.ids.len()]);
        Ok(self.model.embed(&text.ids, &spans)?)
    }

    /// 1 minus the mean cosine of input and output over all tokens, per layer.
    fn influence(&mut self, part: Part) -> Result<Vec<f64>> {
        let n_layers = self.model.sizes().n_layers;
        let mut sums = vec![(0.0, 0usize); n_layers];
        for text in self.texts {
            let hidden = self.embed(text)?;
            self.run(
                0..n_layers,
                part != Part::Whole,
                hidden,
                |layer, ran, before, after| {
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
    fn angular(&mut self, block: usize) -> Result<Vec<f64>> {
        let n_layers = self.model.sizes().n_layers;
        let mut sums = vec![0.0; n_layers + 1 - block];
        for text in self.texts {
            let last = [text.ids.len() - 1];
            let hidden = self.embed(text)?;
            let mut states = vec![select(&hidden, &last)?];
            self.run(0..n_layers, false, hidden, |_, _, _, after| {
                states.push(select(after, &last)?);
                Ok(())
            })?;
            for (start, sum) in sums.iter_mut().enumerate() {
                let cosine = signal::cosine(&states[start], &states[start + block])?[0];
                *sum += cosine.clamp(-1.0, 1.0).acos() / std::f64::consts::PI;
            }
        }
        Ok(sums
            .into_iter()
            .map(|sum| sum / self.texts.len() as f64)
            .collect())
    }

    /// Mean negative log-likelihood of the answers' tokens without `removed` and each of `candidates`, both ascending, in
    /// turn. Up to a candidate all goes as without it, so states are carried up from one candidate to the next.
    fn losses(
        &mut self,
        removed: &[usize],
        candidates: &[usize],
        total: usize,
    ) -> Result<Vec<f64>> {
        let sizes = self.model.sizes();
        let tokens: usize = self.texts.iter().map(|text| text.ids.len()).sum();
        let keep = (tokens * sizes.d_model) as u64 * sizes.state_bytes <= self.prefix_bytes;
        let mut layers = LayerSet::full(sizes.n_layers);
        for &layer in removed {
            layers.remove(layer);
        }
        let mut prefix = Prefix::default();
        let mut losses = Vec::with_capacity(candidates.len());
        for &candidate in candidates {
            let known = self.log.lookup(removed, candidate);
            let loss = match known {
                Some(loss) => loss,
                None => worst_if_nan(self.loss(&layers, candidate, keep, &mut prefix)?),
            };
            self.done += 1;
            if known.is_none() {
                self.log.scored(removed, candidate, loss, self.done, total);
            }
            losses.push(loss);
        }
        if !losses.is_empty() && !losses.iter().any(|loss| loss.is_finite()) {
            return Err(EngineError::NoScores {
                why: "without any one of its layers the network gives values that are not numbers on the calibration text; the checkpoint is damaged, or its values overflow this dtype; try float32",
            });
        }
        Ok(losses)
    }

    /// The same with `layers` but `candidate`; brings `prefix` up to it where states are to be kept.
    fn loss(
        &mut self,
        layers: &LayerSet,
        candidate: usize,
        keep: bool,
        prefix: &mut Prefix,
    ) -> Result<f64> {
        let (mut sum, mut count) = (0.0, 0usize);
        let mut states = Vec::new();
        for (index, text) in self.texts.iter().enumerate() {
            let (from, hidden) = match prefix.states.get(index) {
                Some(state) => (prefix.layer, state.clone()),
                None => (0, self.embed(text)?),
            };
            let below = layers
                .iter()
                .filter(|&layer| layer >= from && layer < candidate);
            let above = layers.iter().filter(|&layer| layer > candidate);
            let hidden = self.run(below, false, hidden, |_, _, _, _| Ok(()))?;
            if keep {
                states.push(hidden.clone());
            }
            let hidden = self.run(above, false, hidden, |_, _, _, _| Ok(()))?;
            let first = text.answer_start.max(1);
            if first >= text.ids.len() {
                continue;
            }
            let answer = hidden.narrow(0, first - 1, text.ids.len() - first)?;
            let logits = self.model.head(&answer.contiguous()?)?;
            let vocab = logits.dim(1)?;
            let logits = logits.flatten_all()?.to_vec1::<f32>()?;
            for (logits, &token) in logits.chunks_exact(vocab).zip(&text.ids[first..]) {
                sum -= signal::log_probability(logits, token);
                count += 1;
            }
        }
        if keep {
            *prefix = Prefix {
                layer: candidate,
                states,
            };
        }
        match count {
            0 => Err(EngineError::NoScores {
                why: "no calibration text has an answer",
            }),
            _ => Ok(sum / count as f64),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use skipbench_model::{Backend, Decoder};
    use std::path::Path;

    /// Where the states below a candidate do not fit, they are computed anew and are the same.
    #[test]
    fn scores_do_not_depend_on_what_is_kept() {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../model/tests/fixtures/llama1");
        let model = Decoder::load(&dir, &candle_core::Device::Cpu, None, Backend::Auto).unwrap();
        let texts: Vec<CalibrationText> = (0..3)
            .map(|text| CalibrationText {
                ids: (3..12 + text).collect(),
                answer_start: 4,
            })
            .collect();
        let losses = |prefix_bytes| {
            let mut scorer = Scorer {
                model: &model,
                texts: &texts,
                cache: model.new_cache(1, vec![0; 6]).unwrap(),
                prefix_bytes,
                log: &mut (),
                done: 0,
            };
            scorer.losses(&[2], &[0, 1, 3, 4, 5], 5).unwrap()
        };
        assert_eq!(losses(0), losses(PREFIX_BYTES));
    }

    #[test]
    fn what_is_not_a_number_is_the_most_important() {
        let inf = f64::INFINITY;
        assert_eq!(
            ascending(&[f64::NAN, 2.0, -f64::NAN, inf, -1.0, 2.0]),
            [4, 1, 5, 0, 2, 3]
        );
    }
}
