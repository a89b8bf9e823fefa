//! What `generate` writes beside the answers: how each token came to be, and the audit of the KV cache.

use serde_json::{Value, json};
use skipbench_engine::{CheckAudit, EntryAudit, KvAudit, RowOutput};
use skipbench_model::{HoleReads, Provenance};
use skipbench_strategy::{KvFill, LayerSet};

/// One line of a trace.
pub(crate) fn trace_line(id: &Value, prompt_tokens: usize, row: &RowOutput, index: usize) -> Value {
    let trace = &row.trace[index];
    let deepest = trace.layers.iter().last().map_or(0, |layer| layer + 1);
    let n_layers = trace.kv.chars().count().max(deepest);
    json!({
        "id": id,
        "index": index,
        "token": row.tokens[index],
        // Of the token whose state gave this one.
        "position": prompt_tokens + index - 1,
        "layers": trace.layers.to_vec(),
        "parts": (0..n_layers).map(|layer| letter(&trace.layers, layer)).collect::<String>(),
        "exit_layer": trace.exit_layer,
        "confidence": trace.confidence,
        "drafted": trace.drafted,
        "kv": trace.kv,
    })
}

/// `w` for a whole layer, `a` for its attention alone, `m` for its MLP alone, `.` for none.
fn letter(layers: &LayerSet, layer: usize) -> char {
    match (layers.has_attention(layer), layers.has_mlp(layer)) {
        (true, true) => 'w',
        (true, false) => 'a',
        (false, true) => 'm',
        (false, false) => '.',
    }
}

/// How many rows ran each layer for each generated token.
pub(crate) struct Heat {
    n_layers: usize,
    /// `[token][layer]`: half layers, summed over rows.
    ran: Vec<Vec<u64>>,
    /// `[token]`: rows that have such a token.
    rows: Vec<u64>,
}

impl Heat {
    pub(crate) fn new(n_layers: usize) -> Self {
        Self {
            n_layers,
            ran: Vec::new(),
            rows: Vec::new(),
        }
    }

    pub(crate) fn add(&mut self, row: &RowOutput) {
        for (index, trace) in row.trace.iter().enumerate() {
            if self.rows.len() <= index {
                self.rows.push(0);
                self.ran.push(vec![0; self.n_layers]);
            }
            self.rows[index] += 1;
            let deferred = Provenance::Deferred.letter();
            let later: Vec<bool> = trace.kv.chars().map(|how| how == deferred).collect();
            for (layer, ran) in self.ran[index].iter_mut().enumerate() {
                // What ran at a later step ran for this position too.
                let late = later.get(layer) == Some(&true);
                *ran += u64::from(late || trace.layers.has_attention(layer));
                *ran += u64::from(late || trace.layers.has_mlp(layer));
            }
        }
    }

    /// `[token][layer]`: share of the rows that have such a token.
    pub(crate) fn shares(&self) -> Vec<Vec<f64>> {
        let share = |ran: &u64, rows: u64| *ran as f64 / 2.0 / rows.max(1) as f64;
        self.ran
            .iter()
            .zip(&self.rows)
            .map(|(ran, &rows)| ran.iter().map(|ran| share(ran, rows)).collect())
            .collect()
    }
}

/// The audit as one JSON value.
pub(crate) fn audit_json(
    strategy: &str,
    fill: KvFill,
    audit: &KvAudit,
    reads: HoleReads,
    checks: &CheckAudit,
) -> Value {
    let entries = |entry: &EntryAudit| {
        json!({
            "positions": entry.count,
            "relative_l2_mean": entry.distance(),
            "relative_l2_max": (entry.count > 0).then_some(entry.distance_max),
            "cosine_mean": entry.cosine(),
        })
    };
    let layers: Vec<Value> = audit
        .layers
        .iter()
        .enumerate()
        .map(|(layer, audit)| {
            json!({
                "layer": layer,
                "computed": entries(&audit.computed),
                "approximate": entries(&audit.approximate),
                "deferred": entries(&audit.deferred),
                "masked": audit.masked,
                "empty": audit.empty,
            })
        })
        .collect();
    json!({
        "strategy": strategy,
        "kv_fill": fill.name(),
        "approximate_reads": reads.approximate,
        "masked_reads": reads.masked,
        "computed": entries(&audit.over_layers(|layer| &layer.computed)),
        "approximate": entries(&audit.over_layers(|layer| &layer.approximate)),
        "deferred": entries(&audit.over_layers(|layer| &layer.deferred)),
        "checks": (checks.checks > 0).then_some(checks),
        "layers": layers,
    })
}
