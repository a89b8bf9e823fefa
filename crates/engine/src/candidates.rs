//! Exit checks that read a list of tokens instead of the whole LM head.

use crate::audit::CheckAudit;
use crate::error::Result;
use crate::run::Run;
use crate::signal;
use crate::step::Row;
use crate::tensors::{part_of, select};
use candle_core::Tensor;
use skipbench_strategy::{ExitCheck, ExitSignal, Verdict};

impl Run<'_> {
    /// The signal of each row, read off the logits of the tokens that were likeliest at its first check of this step;
    /// `hidden`: `[rows.len(), d_model]`.
    pub(crate) fn signals_of_lists(
        &mut self,
        layer: usize,
        signal: ExitSignal,
        hidden: &Tensor,
        rows: &mut [Row],
    ) -> Result<Vec<f64>> {
        self.draw_lists(hidden, rows)?;
        let lists: Vec<_> = rows.iter().filter_map(|row| row.list.as_ref()).collect();
        let logits = self.model.head_of(hidden, &lists)?;
        self.out.ledger.check_lists(self.model.sizes(), rows.len());
        let mut values = signal::from_logits(signal, &logits)?;
        for (value, list) in values.iter_mut().zip(&lists) {
            match signal {
                // The vote is a place in the list.
                ExitSignal::Patience if !value.is_nan() => {
                    *value = f64::from(list.ids()[*value as usize]);
                }
                // Of the largest value that the whole vocabulary can have.
                ExitSignal::Entropy => {
                    let whole = (self.model.sizes().vocab_size as f64).ln();
                    *value *= (list.ids().len() as f64).ln() / whole.max(f64::MIN_POSITIVE);
                }
                _ => {}
            }
        }
        if self.options.audit {
            self.audit_lists(layer, signal, hidden, rows, &values)?;
        }
        Ok(values)
    }

    /// Gives a list to the rows that have none yet.
    fn draw_lists(&mut self, hidden: &Tensor, rows: &mut [Row]) -> Result<()> {
        let without: Vec<usize> = (0..rows.len())
            .filter(|&index| rows[index].list.is_none())
            .collect();
        if without.is_empty() {
            return Ok(());
        }
        let hidden = select(hidden, &without)?;
        let lists = self.model.shortlists(&hidden, ExitCheck::CANDIDATES)?;
        self.out
            .ledger
            .draw_lists(self.model.sizes(), without.len());
        for (index, list) in without.into_iter().zip(lists) {
            rows[index].list = Some(list);
        }
        Ok(())
    }

    /// What the strategy would have said had each check read the whole LM head.
    fn audit_lists(
        &mut self,
        layer: usize,
        signal: ExitSignal,
        hidden: &Tensor,
        rows: &[Row],
        values: &[f64],
    ) -> Result<()> {
        let logits = self.model.head(hidden)?;
        let votes = signal::argmax(&logits)?;
        let full = signal::from_logits(signal, &logits)?;
        for (index, row) in rows.iter().enumerate() {
            if part_of(&row.set, layer).is_none() {
                continue;
            }
            let exits = |value| self.strategy.verdict(layer, row.span.row, value) == Verdict::Exit;
            let (by_list, by_all) = (exits(values[index]), exits(full[index]));
            let ids = row.list.as_ref().map_or(&[][..], |list| list.ids());
            let listed = votes[index].is_some_and(|vote| ids.contains(&vote));
            self.out.checks.add(&CheckAudit {
                checks: 1,
                exits: u64::from(by_all),
                missed: u64::from(by_all && !by_list),
                early: u64::from(by_list && !by_all),
                unlisted: u64::from(!listed),
            });
        }
        Ok(())
    }
}
