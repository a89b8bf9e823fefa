//! Self-speculative decoding: draft with some layers, verify with all.

use crate::error::Result;
use crate::generate::{Chosen, Options, Run};
use crate::ledger::Phase;
use crate::signal;
use crate::trace::TokenTrace;
use skipbench_model::{Part, Span};
use skipbench_strategy::{LayerSet, Strategy};

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
}

impl Draft {
    fn drafted(&self) -> usize {
        self.ids.len() - 1
    }

    /// Where the next token goes in, as long as there is one to draft.
    fn next(&self, options: &Options) -> Option<Span> {
        let ended = self.drafted() > 0 && options.eos_ids.contains(self.ids.last()?);
        (self.drafted() < self.room && !ended)
            .then(|| Span::token(self.row, self.start + self.drafted()))
    }

    fn span(&self) -> Span {
        Span {
            row: self.row,
            start: self.start,
            len: self.ids.len(),
        }
    }
}

impl Run<'_> {
    /// One round: every live row drafts up to `length` tokens, one pass of all layers verifies them, and each row gets
    /// the drafted tokens that the full network would have chosen and the one that it chooses after them.
    pub(crate) fn speculate(
        &mut self,
        prompts: &[Vec<u32>],
        live: &[usize],
        length: usize,
        strategy: &mut dyn Strategy,
        options: &Options,
    ) -> Result<Vec<Chosen>> {
        let mut drafts: Vec<Draft> = live
            .iter()
            .map(|&row| {
                let done = self.out.rows[row].tokens.len();
                Draft {
                    row,
                    start: prompts[row].len() + done - 1,
                    ids: vec![self.last_token(row)],
                    layers: Vec::new(),
                    room: length.min(options.max_new_tokens - done - 1),
                }
            })
            .collect();
        self.out.ledger.enter(Phase::Draft);
        self.draft(&mut drafts, strategy, options)?;
        self.out.ledger.enter(Phase::Verify);
        let votes = self.verify(&drafts)?;
        self.out.ledger.enter(Phase::Decode);

        let (mut drafted, mut accepted) = (0, 0);
        let mut decoded = Vec::new();
        let mut votes = votes.into_iter();
        for draft in &drafts {
            let votes: Vec<u32> = votes.by_ref().take(draft.ids.len()).collect();
            let standing = draft.ids[1..]
                .iter()
                .zip(&votes)
                .take_while(|(draft, vote)| draft == vote)
                .count();
            drafted += draft.drafted();
            accepted += standing;
            // The last token that stands is not fed yet; what the cache holds from it on goes.
            self.cache.truncate(draft.row, draft.start + standing + 1);
            decoded.extend(self.standing(draft, &votes, standing, options));
        }
        strategy.verified(drafted, accepted);
        self.charge_full(&drafts, &decoded);
        Ok(decoded)
    }

    /// Lets the strategy's layers propose tokens, a step at a time for all rows that have room.
    fn draft(
        &mut self,
        drafts: &mut [Draft],
        strategy: &mut dyn Strategy,
        options: &Options,
    ) -> Result<()> {
        loop {
            let open: Vec<(usize, Span)> = drafts
                .iter()
                .enumerate()
                .filter_map(|(index, draft)| Some((index, draft.next(options)?)))
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
            let plan = strategy.plan(1);
            let step = self.decode(&ids, &spans, &plan, strategy)?;
            let tokens = signal::argmax(&step.logits)?;
            for ((&(index, _), next), token) in open.iter().zip(step.rows).zip(tokens) {
                debug_assert_eq!(drafts[index].row, next.row);
                drafts[index].ids.push(token);
                drafts[index].layers.push(next.layers);
            }
        }
        // What the drafts wrote is not what all layers would have written.
        for draft in drafts {
            self.cache.truncate(draft.row, draft.start);
            self.pending[draft.row].clear();
        }
        Ok(())
    }

    /// The full network's choice after each token of each draft.
    fn verify(&mut self, drafts: &[Draft]) -> Result<Vec<u32>> {
        let sizes = self.model.sizes();
        let spans: Vec<Span> = drafts.iter().map(Draft::span).collect();
        let ids: Vec<u32> = drafts.iter().flat_map(|draft| draft.ids.clone()).collect();
        let mut hidden = self.model.embed(&ids)?;
        for layer in 0..sizes.n_layers {
            hidden = self.model.layer(layer, &hidden, &mut self.cache, &spans)?;
            self.out.ledger.layer(sizes, Part::Whole, &spans);
        }
        signal::argmax(&self.head(&hidden)?)
    }

    /// The tokens that a row gets. The layers of all that was drafted and verified are counted, those of drafts that
    /// did not stand with the token that took their place.
    fn standing(
        &self,
        draft: &Draft,
        votes: &[u32],
        standing: usize,
        options: &Options,
    ) -> Vec<Chosen> {
        let n_layers = self.model.sizes().n_layers;
        let mut decoded: Vec<Chosen> = votes[..=standing]
            .iter()
            .enumerate()
            .map(|(index, &token)| Chosen {
                row: draft.row,
                token,
                layers: n_layers as f64 + draft.layers.get(index).copied().unwrap_or(0.0),
                trace: TokenTrace::new(LayerSet::full(n_layers)),
            })
            .collect();
        if let Some(last) = decoded.last_mut() {
            let wasted = draft.drafted() - standing;
            let layers: f64 = draft.layers.iter().skip(standing + 1).sum();
            last.layers += (wasted * n_layers) as f64 + layers;
        }
        // Nothing follows the end of a sequence.
        if let Some(end) = decoded
            .iter()
            .position(|decoded| options.eos_ids.contains(&decoded.token))
        {
            decoded.truncate(end + 1);
        }
        decoded
    }

    /// What the full network would have read for the tokens of a round, one step after the other.
    fn charge_full(&mut self, drafts: &[Draft], decoded: &[Chosen]) {
        for step in 0.. {
            let spans: Vec<Span> = drafts
                .iter()
                .filter(|draft| decoded.iter().filter(|d| d.row == draft.row).count() > step)
                .map(|draft| Span::token(draft.row, draft.start + step))
                .collect();
            if spans.is_empty() {
                break;
            }
            self.out.ledger.step(self.model.sizes(), &spans);
        }
    }
}
