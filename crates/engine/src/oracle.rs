//! A decode step of an oracle: all layers run, and each row is told where it could have left.

use crate::error::Result;
use crate::run::Run;
use crate::signal;
use crate::step::{Decoded, Step};
use crate::tensors::select;
use crate::trace::TokenTrace;
use candle_core::Tensor;
use skipbench_model::{Part, Span};
use skipbench_strategy::{Agreement, KvFill, LayerSet, StepPlan};

impl Run<'_> {
    /// Logits behind each of `ids`, which stand at `spans`. A row's layers are counted up to the check that `agreement`
    /// means, and only those are charged to the ledger, with one reading of the LM head.
    pub(crate) fn decode_oracle(
        &mut self,
        ids: &[u32],
        spans: &[Span],
        plan: &StepPlan,
        agreement: Agreement,
    ) -> Result<Step> {
        let sizes = self.model.sizes();
        let mut hidden = self.model.embed(ids, spans)?;
        let mut states: Vec<(usize, Tensor)> = Vec::new();
        for layer in plan.layers.iter() {
            hidden = self.model.layer(layer, &hidden, &mut self.cache, spans)?;
            if plan.checks.contains(layer) {
                states.push((layer, hidden.clone()));
            }
        }
        let logits = self.head(&hidden)?;
        let last = plan.layers.iter().last().unwrap_or(0);
        let exits = self.earliest(&logits, &states, spans, last, agreement)?;

        for layer in plan.layers.iter() {
            let running: Vec<Span> = spans
                .iter()
                .zip(&exits)
                .filter(|&(_, &exit)| exit >= layer)
                .map(|(span, _)| *span)
                .collect();
            if !running.is_empty() {
                self.out.ledger.layer(sizes, layer, Part::Whole, &running);
            }
        }
        if self.needs.kv_fill != KvFill::None {
            self.spoil(&states, spans, &exits, plan)?;
        }
        let rows = spans
            .iter()
            .zip(&exits)
            .map(|(span, &exit)| {
                let ran = LayerSet::from_layers(plan.layers.iter().filter(|&layer| layer <= exit));
                Decoded {
                    row: span.row,
                    layers: ran.len() as f64,
                    trace: TokenTrace {
                        exit_layer: (exit < last).then_some(exit),
                        ..TokenTrace::new(ran)
                    },
                }
            })
            .collect();
        Ok(Step { rows, logits })
    }

    /// The layer at which each row could have left; the last where no earlier one will do.
    fn earliest(
        &self,
        logits: &Tensor,
        states: &[(usize, Tensor)],
        spans: &[Span],
        last: usize,
        agreement: Agreement,
    ) -> Result<Vec<usize>> {
        let places = || spans.iter().map(|span| (span.row, span.start));
        let votes = self.numbers(signal::argmax(logits)?, places(), None)?;
        let mut exits = vec![last; votes.len()];
        // From the top down: the lowest layer that agrees, or the lowest of an unbroken run.
        let mut broken = vec![false; votes.len()];
        for (layer, state) in states.iter().rev() {
            let here = signal::argmax(&self.model.head(state)?)?;
            let here = self.numbers(here, places(), Some(*layer))?;
            for row in 0..votes.len() {
                let agrees = here[row] == votes[row];
                if agrees && !(broken[row] && agreement == Agreement::Stable) {
                    exits[row] = *layer;
                }
                broken[row] |= !agrees;
            }
        }
        Ok(exits)
    }

    /// Leaves the cache as real exits would have left it.
    fn spoil(
        &mut self,
        states: &[(usize, Tensor)],
        spans: &[Span],
        exits: &[usize],
        plan: &StepPlan,
    ) -> Result<()> {
        for (exit, state) in states {
            let leaving: Vec<usize> = (0..spans.len())
                .filter(|&row| exits[row] == *exit)
                .collect();
            if leaving.is_empty() {
                continue;
            }
            let state = select(state, &leaving)?;
            let spans: Vec<Span> = leaving.iter().map(|&row| spans[row]).collect();
            for layer in plan.layers.iter().filter(|layer| layer > exit) {
                let others_run = exits.iter().any(|&other| other >= layer);
                self.fill(layer, &state, &spans, others_run)?;
            }
        }
        Ok(())
    }
}
