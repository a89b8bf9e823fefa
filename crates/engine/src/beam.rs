//! Beam search, as `generate` of transformers 5 does it with `early_stopping=False`.

use crate::error::{EngineError, Result};
use crate::laps::Lap;
use crate::ngram;
use crate::options::{Beam, Options};
use crate::run::{Clock, Run};
use crate::signal;
use crate::step::Decoded;
use skipbench_model::Span;

/// A score that no real one reaches: what transformers gives to what must not be chosen.
const NEVER: f32 = -1e9;

/// The beams of one prompt.
struct Beams {
    prompt: usize,
    /// Running continuations, the best first.
    running: Vec<Hypothesis>,
    /// Finished ones, the best first; as many slots as beams.
    finished: Vec<Hypothesis>,
    /// Whether running ones may still beat finished ones.
    open: bool,
}

#[derive(Clone)]
struct Hypothesis {
    tokens: Vec<u32>,
    /// Layers run for each token: the mean over the beams of its step.
    layers: Vec<f64>,
    /// Accumulated log-probability while running, after the length penalty once finished.
    score: f32,
    done: bool,
}

impl Hypothesis {
    fn empty(score: f32) -> Self {
        Self {
            tokens: Vec::new(),
            layers: Vec::new(),
            score,
            done: false,
        }
    }
}

/// A continuation of a running hypothesis by one token.
#[derive(Clone, Copy)]
struct Candidate {
    beam: usize,
    token: u32,
    score: f32,
}

impl Run<'_> {
    /// The best continuation of each prompt, into `self.out.rows`.
    pub(crate) fn search(&mut self, beam: Beam) -> Result<()> {
        let (prompts, options) = (self.prompts, self.options);
        let Beam { beams, .. } = beam;
        let n_layers = self.model.sizes().n_layers as f64;
        let mut searches: Vec<Beams> = (0..prompts.len())
            .map(|prompt| Beams::new(prompt, beams))
            .collect();
        let clock = Clock::start(self.model)?;
        let logits = self.prefill()?;
        let logits = signal::each_row(&logits, <[f32]>::to_vec)?;
        for (search, logits) in searches.iter_mut().zip(logits) {
            // All beams are still the same, so one speaks for all.
            let all = vec![logits; beams];
            search.advance(&prompts[search.prompt], &all, n_layers, beam, options)?;
        }
        let parents: Vec<usize> = (0..prompts.len() * beams)
            .map(|row| row / beams * beams)
            .collect();
        self.cache.reorder(&parents)?;
        self.out.prefill_s = clock.stop(self.model)?;

        for step in 1..options.max_new_tokens {
            let live: Vec<usize> = (0..searches.len())
                .filter(|&index| searches[index].open)
                .collect();
            if live.is_empty() {
                break;
            }
            let clock = Clock::resume();
            self.laps.start(self.model);
            let mut ids = Vec::new();
            let mut spans = Vec::new();
            for &prompt in &live {
                for (beam, hypothesis) in searches[prompt].running.iter().enumerate() {
                    ids.push(hypothesis.tokens[step - 1]);
                    let position = prompts[prompt].len() + step - 1;
                    spans.push(Span::token(prompt * beams + beam, position));
                }
            }
            self.out.ledger.step(self.model.sizes(), &spans);
            let plan = self.strategy.plan(step);
            let decoded = self.decode(&ids, &spans, &plan)?;
            self.laps.end(Lap::Rows);
            let logits = signal::each_row(&decoded.logits, <[f32]>::to_vec)?;
            let mut parents: Vec<usize> = (0..prompts.len() * beams).collect();
            for (place, &prompt) in live.iter().enumerate() {
                let rows = place * beams..(place + 1) * beams;
                let layers = mean_layers(&decoded.rows[rows.clone()]);
                let search = &mut searches[prompt];
                let from =
                    search.advance(&prompts[prompt], &logits[rows], layers, beam, options)?;
                for (beam, parent) in from.into_iter().enumerate() {
                    parents[prompt * beams + beam] = prompt * beams + parent;
                }
            }
            self.reorder(&parents)?;
            for &prompt in &live {
                searches[prompt].end_at_stop(options)?;
            }
            self.out.step_s.push(clock.stop(self.model)?);
        }
        for search in searches {
            let best = search.finished.into_iter().next();
            let mut best = best.unwrap_or_else(|| Hypothesis::empty(NEVER));
            let stopped = match &options.stop {
                Some(stop) => stop.length(&best.tokens)?,
                None => None,
            };
            if let Some(length) = stopped {
                best.tokens.truncate(length);
                best.layers.truncate(length);
            }
            let row = &mut self.out.rows[search.prompt];
            row.end = options.end(&best.tokens)?.unwrap_or_default();
            row.tokens = best.tokens;
            row.layers = best.layers;
        }
        Ok(())
    }

    fn reorder(&mut self, parents: &[usize]) -> Result<()> {
        self.cache.reorder(parents)?;
        if self.pending.iter().any(|pending| !pending.is_empty()) {
            self.pending = parents
                .iter()
                .map(|&parent| self.pending[parent].clone())
                .collect();
        }
        if !self.ahead.is_empty() {
            let ahead = |&parent: &usize| self.ahead[parent].clone();
            self.ahead = parents.iter().map(ahead).collect();
        }
        Ok(())
    }
}

fn mean_layers(rows: &[Decoded]) -> f64 {
    rows.iter().map(|row| row.layers).sum::<f64>() / rows.len().max(1) as f64
}

impl Beams {
    fn new(prompt: usize, beams: usize) -> Self {
        let mut running = vec![Hypothesis::empty(NEVER); beams];
        // Only the first counts at the first step, or all beams would be the same.
        running[0].score = 0.0;
        Self {
            prompt,
            running,
            finished: vec![Hypothesis::empty(NEVER); beams],
            open: true,
        }
    }

    /// One step; `logits`: `[beams][vocab_size]`. Gives the beam that each new one continues.
    fn advance(
        &mut self,
        prompt: &[u32],
        logits: &[Vec<f32>],
        layers: f64,
        beam: Beam,
        options: &Options,
    ) -> Result<Vec<usize>> {
        let beams = beam.beams;
        // So many that enough do not end, whatever ends.
        let kept = (1 + options.eos_ids.len()).max(2) * beams;
        let candidates = self.candidates(prompt, logits, kept, options)?;
        let length = self.running[0].tokens.len() + 1;
        let last = length == options.max_new_tokens;
        let ends = |candidate: &Candidate| last || options.eos_ids.contains(&candidate.token);
        let penalty = (length as f32).powf(beam.length_penalty as f32);

        let mut continued: Vec<Candidate> = candidates
            .iter()
            .map(|candidate| Candidate {
                score: candidate.score + if ends(candidate) { NEVER } else { 0.0 },
                ..*candidate
            })
            .collect();
        continued.sort_by(|a, b| b.score.total_cmp(&a.score));
        continued.truncate(beams);

        // Only the best candidates may finish; the others are there to keep the search going.
        for candidate in candidates.iter().take(beams).filter(|c| ends(c)) {
            let mut hypothesis = self.extend(candidate, layers);
            hypothesis.score = candidate.score / penalty;
            hypothesis.done = true;
            self.finished.push(hypothesis);
        }
        self.finished.sort_by(|a, b| b.score.total_cmp(&a.score));
        self.finished.truncate(beams);

        let running = continued
            .iter()
            .map(|candidate| self.extend(candidate, layers));
        self.running = running.collect();
        let best = self.running[0].score / penalty;
        let worst = self
            .finished
            .iter()
            .map(|h| h.score)
            .fold(f32::INFINITY, f32::min);
        let all_done = self.finished.iter().all(|hypothesis| hypothesis.done);
        self.open = !last && (!all_done || best > worst);
        Ok(continued
            .into_iter()
            .map(|candidate| candidate.beam)
            .collect())
    }

    /// Ends the search where all that may still win has the same tokens up to a stop: the stop only cuts what the search
    /// finds, and what comes behind it no longer matters.
    fn end_at_stop(&mut self, options: &Options) -> Result<()> {
        let Some(stop) = options.stop.as_ref().filter(|_| self.open) else {
            return Ok(());
        };
        let best = self.running[0].clone();
        let Some(length) = stop.length(&best.tokens)? else {
            return Ok(());
        };
        if !stop.ends(&best.tokens[..length], false)? {
            return Ok(());
        }
        let same = |other: &Hypothesis| other.tokens.get(..length) == Some(&best.tokens[..length]);
        let finished = self.finished.iter().filter(|hypothesis| hypothesis.done);
        if self.running.iter().chain(finished).all(same) {
            self.open = false;
            self.finished.insert(0, best);
        }
        Ok(())
    }

    /// The best `kept` continuations, the best first.
    fn candidates(
        &self,
        prompt: &[u32],
        logits: &[Vec<f32>],
        kept: usize,
        options: &Options,
    ) -> Result<Vec<Candidate>> {
        let mut all = Vec::new();
        for (beam, (hypothesis, logits)) in self.running.iter().zip(logits).enumerate() {
            let mut scores = signal::log_softmax(logits);
            if scores.iter().any(|score| score.is_nan()) {
                return Err(EngineError::NotNumbers {
                    what: "logits",
                    row: self.prompt,
                    token: hypothesis.tokens.len() + 1,
                    layer: None,
                });
            }
            if options.no_repeat_ngram > 0 {
                let sequence = [prompt, &hypothesis.tokens].concat();
                for banned in ngram::banned(&sequence, options.no_repeat_ngram) {
                    scores[banned as usize] = f32::NEG_INFINITY;
                }
            }
            all.extend(
                scores
                    .into_iter()
                    .enumerate()
                    .map(|(token, score)| Candidate {
                        beam,
                        token: token as u32,
                        score: score + hypothesis.score,
                    }),
            );
        }
        // Of equal scores the one that comes first.
        let order = |a: &Candidate, b: &Candidate| {
            b.score
                .total_cmp(&a.score)
                .then((a.beam, a.token).cmp(&(b.beam, b.token)))
        };
        let kept = kept.min(all.len());
        if kept < all.len() {
            all.select_nth_unstable_by(kept, order);
            all.truncate(kept);
        }
        all.sort_by(order);
        Ok(all)
    }

    fn extend(&self, candidate: &Candidate, layers: f64) -> Hypothesis {
        let mut hypothesis = self.running[candidate.beam].clone();
        hypothesis.tokens.push(candidate.token);
        hypothesis.layers.push(layers);
        hypothesis.score = candidate.score;
        hypothesis
    }
}
