//! Self-speculative decoding: draft with some layers, verify with all.

use crate::error::Result;
use crate::exact::Exact;
use crate::generation::TokenScore;
use crate::laps::Lap;
use crate::ledger::Phase;
use crate::options::Options;
use crate::run::Run;
use crate::signal;
use crate::step::Chosen;
use crate::trace::TokenTrace;
use candle_core::Tensor;
use skipbench_model::{Part, Span, ops};
use skipbench_strategy::{DraftLimit, ExitSignal, LayerSet, Verification};
use std::time::Instant;

/// What a row drafts in one round.
struct Draft {
    row: usize,
    /// Position of the row's last token, which is not in the cache yet.
    start: usize,
    /// That token and the drafted ones after it.
    ids: Vec<u32>,
    /// Layers that each drafted token took.
    layers: Vec<f64>,
    /// How many tokens may be drafted, so that one more fits.
    room: usize,
    /// The last drafted token is not likely enough to go on behind it.
    doubtful: bool,
    /// Of each token but the last, which was never fed: the layers that drafting ran as the full network would, and the
    /// state behind them, `[1, d_model]`.
    exact: Vec<(usize, Tensor)>,
}

/// The full network's choice, with its log-probability where the row asks for it.
type Vote = (u32, Option<TokenScore>);

impl Draft {
    fn drafted(&self) -> usize {
        self.ids.len() - 1
    }

    /// Where the next token goes in, as long as there is one to draft.
    fn next(&self, options: &Options) -> Option<Span> {
        let ended = self.drafted() > 0 && options.eos_ids.contains(self.ids.last()?);
        (self.drafted() < self.room && !ended && !self.doubtful)
            .then(|| Span::token(self.row, self.start + self.drafted()))
    }

    /// Layers that the verification runs for token `index`.
    fn verified_layers(&self, index: usize, n_layers: usize) -> usize {
        n_layers - self.exact.get(index).map_or(0, |(layers, _)| *layers)
    }
}

impl Run<'_> {
    /// One round: every live row drafts, one pass verifies all drafts, and each row gets the drafted tokens that the full
    /// network would have chosen and the one that it chooses after them.
    pub(crate) fn speculate(&mut self, live: &[usize], limit: DraftLimit) -> Result<Vec<Chosen>> {
        let mut drafts: Vec<Draft> = live
            .iter()
            .map(|&row| {
                let done = self.out.rows[row].tokens.len();
                Draft {
                    row,
                    start: self.prompts[row].len() + done - 1,
                    ids: vec![self.last_token(row)],
                    layers: Vec::new(),
                    room: limit.tokens.min(self.asked(row).max_new_tokens - done - 1),
                    doubtful: false,
                    exact: Vec::new(),
                }
            })
            .collect();
        let began = Instant::now();
        self.out.ledger.enter(Phase::Draft);
        self.draft(&mut drafts, limit)?;
        // The last drafted tokens are on the host, so the device is done.
        self.out.drafts.draft_s += began.elapsed().as_secs_f64();
        self.out.ledger.enter(Phase::Verify);
        let votes = self.verify(&drafts)?;
        self.out.ledger.enter(Phase::Decode);

        let mut outcome = Verification {
            rows: drafts.len(),
            drafted: 0,
            accepted: 0,
        };
        let mut decoded = Vec::new();
        let mut votes = votes.into_iter();
        for draft in &drafts {
            let votes: Vec<Vote> = votes.by_ref().take(draft.ids.len()).collect();
            let standing = draft.ids[1..]
                .iter()
                .zip(&votes)
                .take_while(|(draft, (vote, _))| *draft == vote)
                .count();
            outcome.drafted += draft.drafted();
            outcome.accepted += standing;
            // The last token that stands is not fed yet; what the cache holds from it on goes.
            self.cache.truncate(draft.row, draft.start + standing + 1);
            decoded.extend(self.standing(draft, votes, standing)?);
        }
        self.strategy.verified(outcome);
        self.out.drafts.verified += outcome.rows as u64;
        self.out.drafts.drafted += outcome.drafted as u64;
        self.out.drafts.accepted += outcome.accepted as u64;
        Ok(decoded)
    }

    /// Lets the strategy's layers propose tokens, a step at a time for all rows that have room.
    fn draft(&mut self, drafts: &mut [Draft], limit: DraftLimit) -> Result<()> {
        self.exact = Exact::all(self.pending.len(), self.model.sizes().n_layers);
        loop {
            let open: Vec<(usize, Span)> = drafts
                .iter()
                .enumerate()
                .filter_map(|(index, draft)| Some((index, draft.next(self.asked(draft.row))?)))
                .collect();
            if open.is_empty() {
                break;
            }
            let ids: Vec<u32> = open
                .iter()
                .filter_map(|&(index, _)| drafts[index].ids.last().copied())
                .collect();
            let spans: Vec<Span> = open.iter().map(|&(_, span)| span).collect();
            // A drafting strategy's layers do not depend on the step.
            let plan = self.strategy.plan(1);
            let step = self.decode(&ids, &spans, &plan)?;
            let places = spans.iter().map(|span| (span.row, span.start));
            let tokens = self.numbers(signal::argmax(&step.logits)?, places, None)?;
            let doubtful = match limit.least_probability > 0.0 {
                true => signal::from_logits(ExitSignal::MaxProb, &step.logits)?
                    .into_iter()
                    .map(|probability| probability < limit.least_probability)
                    .collect(),
                false => vec![false; open.len()],
            };
            let outcomes = step.rows.into_iter().zip(tokens).zip(doubtful);
            for (&(index, _), ((decoded, token), doubtful)) in open.iter().zip(outcomes) {
                debug_assert_eq!(drafts[index].row, decoded.row);
                drafts[index].ids.push(token);
                drafts[index].layers.push(decoded.layers);
                drafts[index].doubtful = doubtful;
            }
        }
        let mut exact = std::mem::take(&mut self.exact);
        for draft in drafts {
            draft.exact = exact.take(draft.row);
            self.forget_inexact(draft);
        }
        Ok(())
    }

    /// Drops from the cache what all layers would not have written.
    fn forget_inexact(&mut self, draft: &Draft) {
        for layer in 0..self.model.sizes().n_layers {
            let exact = draft.exact.iter().take_while(|(layers, _)| *layers > layer);
            self.cache
                .truncate_layer(layer, draft.row, draft.start + exact.count());
        }
        self.pending[draft.row].clear();
    }

    /// The full network's choice after each token of each draft. A token comes in at the layer up to which drafting has
    /// computed it already, as LayerSkip verifies from its cached exit states (arXiv 2404.16710).
    fn verify(&mut self, drafts: &[Draft]) -> Result<Vec<Vote>> {
        let sizes = self.model.sizes();
        let last: Vec<u32> = drafts
            .iter()
            .map(|draft| draft.ids[draft.drafted()])
            .collect();
        let mut spans: Vec<Span> = drafts
            .iter()
            .map(|draft| Span::token(draft.row, draft.start + draft.drafted()))
            .collect();
        let mut hidden = self.model.embed(&last, &spans)?;
        for layer in 0..sizes.n_layers {
            hidden = join(layer, drafts, hidden, &mut spans)?;
            self.laps.end(Lap::Rows);
            hidden = self.model.layer(layer, &hidden, &mut self.cache, &spans)?;
            self.laps.end(Lap::Layers);
            self.out.ledger.layer(sizes, layer, Part::Whole, &spans);
        }
        hidden = join(sizes.n_layers, drafts, hidden, &mut spans)?;
        let logits = self.head(&hidden)?;
        let places: Vec<(usize, usize)> = spans
            .iter()
            .flat_map(|span| (span.start..span.start + span.len).map(|at| (span.row, at)))
            .collect();
        let rows: Vec<usize> = places.iter().map(|&(row, _)| row).collect();
        let votes = self.numbers(signal::argmax(&logits)?, places, None)?;
        let scores = self.scores(&rows, &votes, &logits)?;
        Ok(votes.into_iter().zip(scores).collect())
    }

    /// The tokens that a row gets. The layers of all that was drafted and verified are counted, those that led to no token
    /// with the last one.
    fn standing(&self, draft: &Draft, votes: Vec<Vote>, standing: usize) -> Result<Vec<Chosen>> {
        let n_layers = self.model.sizes().n_layers;
        let layers = |index: usize| {
            let drafting = draft.layers.get(index).copied().unwrap_or(0.0);
            drafting + draft.verified_layers(index, n_layers) as f64
        };
        let mut decoded: Vec<Chosen> = votes
            .into_iter()
            .take(standing + 1)
            .enumerate()
            .map(|(index, (token, score))| Chosen {
                row: draft.row,
                token,
                score,
                layers: layers(index),
                trace: TokenTrace {
                    drafted: Some(index < standing),
                    ..TokenTrace::new(LayerSet::full(n_layers))
                },
            })
            .collect();
        // Nothing follows the end of an answer.
        let asked = self.asked(draft.row);
        let mut answer = self.out.rows[draft.row].tokens.clone();
        let mut end = standing;
        for (index, chosen) in decoded.iter().enumerate() {
            answer.push(chosen.token);
            if asked.end(&answer)?.is_some() {
                end = index;
                break;
            }
        }
        decoded.truncate(end + 1);
        if let Some(last) = decoded.last_mut() {
            last.layers += (end + 1..draft.ids.len()).map(layers).sum::<f64>();
        }
        Ok(decoded)
    }

    /// What the full network would have read for the tokens that all rows got, in steps of its own.
    pub(crate) fn charge_full(&mut self) {
        for step in 1.. {
            let rows = self.out.rows.iter().zip(self.prompts).enumerate();
            let spans: Vec<Span> = rows
                .filter(|(_, (output, _))| output.tokens.len() > step)
                .map(|(row, (_, prompt))| Span::token(row, prompt.len() + step - 1))
                .collect();
            if spans.is_empty() {
                break;
            }
            self.out.ledger.step(self.model.sizes(), &spans);
        }
    }
}

/// Puts the tokens that are exact up to `layer` in front of those of their draft that are in `hidden` already,
/// `[tokens, d_model]` by `spans`. Of two tokens of a draft the later one never comes in at a higher layer, so the tokens
/// that are in are the draft's last ones.
fn join(layer: usize, drafts: &[Draft], hidden: Tensor, spans: &mut [Span]) -> Result<Tensor> {
    let comes = |(exact, _): &&(usize, Tensor)| *exact == layer;
    let coming = drafts.iter().flat_map(|draft| &draft.exact).filter(comes);
    if coming.count() == 0 {
        return Ok(hidden);
    }
    let mut pieces = Vec::new();
    let mut at = 0;
    for (draft, span) in drafts.iter().zip(&mut *spans) {
        let inside = hidden.narrow(0, at, span.len)?;
        at += span.len;
        for (_, state) in draft.exact.iter().filter(comes) {
            pieces.push(state.clone());
            span.start -= 1;
            span.len += 1;
        }
        pieces.push(inside);
    }
    Ok(ops::cat(&pieces, 0)?)
}
