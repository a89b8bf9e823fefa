//! A full-depth replay of what was generated, against which the KV cache is compared.

use crate::audit::{KvAudit, LayerAudit};
use crate::error::Result;
use crate::run::Run;
use skipbench_model::{Provenance, Span};

impl Run<'_> {
    /// Replays each row's prompt and tokens through all layers and compares.
    pub(crate) fn audit(&mut self) -> Result<()> {
        for (row, prompt) in self.prompts.iter().enumerate() {
            let tokens = &self.out.rows[row].tokens;
            // The last token is never fed, so it has no key.
            let fed = &tokens[..tokens.len().saturating_sub(1)];
            let ids = [&prompt[..], fed].concat();
            let n_layers = self.model.sizes().n_layers;
            let mut exact = self.model.new_cache(1, vec![ids.len(); n_layers])?;
            // As they came: the prompt in one piece, the tokens behind it one by one.
            let spans = [(0, prompt.len()), (prompt.len(), fed.len())];
            let spans: Vec<Span> = spans
                .into_iter()
                .filter(|&(_, len)| len > 0)
                .map(|(start, len)| Span { row: 0, start, len })
                .collect();
            let mut hidden = self.model.embed(&ids, &spans)?;
            let mut audit = KvAudit::default();
            for layer in 0..n_layers {
                hidden = self.model.layer(layer, &hidden, &mut exact, &spans)?;
                let mut tally = LayerAudit::default();
                for position in prompt.len()..ids.len() {
                    let entry = match self.cache.provenance(layer, row, position) {
                        Provenance::Empty => {
                            tally.empty += 1;
                            continue;
                        }
                        Provenance::Masked => {
                            tally.masked += 1;
                            continue;
                        }
                        Provenance::Computed => &mut tally.computed,
                        Provenance::Deferred => &mut tally.deferred,
                        Provenance::Propagated | Provenance::Copied => &mut tally.approximate,
                    };
                    let (mut found, value) = self.cache.key_value(layer, row, position)?;
                    found.extend(value);
                    let (mut wanted, value) = exact.key_value(layer, 0, position)?;
                    wanted.extend(value);
                    entry.add(&found, &wanted);
                }
                audit.layers.push(tally);
            }
            self.out.rows[row].audit = Some(audit);
        }
        Ok(())
    }
}
