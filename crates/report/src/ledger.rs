//! Where the time goes: bytes and arithmetic by what they are for, and what they do not explain.

use crate::row::{ResultRow, groups};
use crate::table::{TableData, sorted, title};

/// A table for each of those with the scores.
pub(crate) fn tables(rows: &[ResultRow]) -> Vec<TableData> {
    groups(rows).iter().map(|group| table(group)).collect()
}

const HEADER: [&str; 16] = [
    "strategy",
    "MB",
    "MFLOP",
    "layers",
    "KV read",
    "head",
    "checks",
    "KV fill",
    "verify",
    "accepted",
    "bound",
    "achieved",
    "unexplained",
    "wasted",
    "holes read",
    "KV error",
];

/// What the columns mean.
pub(crate) const LEGEND: &str = "`MB`, `MFLOP`: bytes read and floating-point operations per decoded token; of the bytes the shares of layer weights, KV cache, LM head for tokens, LM head for exit checks and KV filling. `verify`: of all of them, the share that verified drafts. `accepted`: the share of drafted tokens that stood. `unexplained`: the share of the decode time that the bytes read in the timing pass (of fixed length, unlike that of `bound`) do not explain, were all of the full network's time explained by its own; below zero where a cache serves them faster. `wasted`: layers that rows ran while they waited for others. `holes read`: keys and values per token, over all layers, that were made up or hidden. `KV error`: mean relative distance of the made-up ones from a full-depth replay.";

fn table(group: &[&ResultRow]) -> TableData {
    let percent = |share: f64| match share == 0.0 {
        true => "-".to_owned(),
        false => format!("{:.0}%", 100.0 * share),
    };
    let or_dash = |value: Option<String>| value.unwrap_or_else(|| "-".to_owned());
    let body = sorted(group)
        .into_iter()
        .filter(|row| row.band.is_none())
        .map(|row| {
            let cost = &row.cost;
            let share = |part: f64| percent(part / cost.mbytes.max(f64::MIN_POSITIVE));
            let holes = row.holes_read_per_token;
            vec![
                row.label.clone(),
                significant(cost.mbytes),
                significant(cost.mflops),
                share(cost.layers_mbytes),
                share(cost.kv_read_mbytes),
                share(cost.head_mbytes),
                share(cost.checks_mbytes),
                share(cost.kv_fill_mbytes),
                share(cost.verify_mbytes),
                or_dash(row.acceptance.map(whole_percent)),
                format!("{:.2}x", row.bound_speedup),
                or_dash(row.achieved_speedup.map(|ratio| format!("{ratio:.2}x"))),
                or_dash(row.unexplained.map(whole_percent)),
                percent(row.wasted_row_layers),
                or_dash((holes > 0.0).then(|| format!("{holes:.0}"))),
                or_dash(row.kv_distance.map(|distance| format!("{distance:.2}"))),
            ]
        })
        .collect();
    TableData {
        title: format!("Cost of a token: {}", title(group[0])),
        header: HEADER.map(str::to_owned).to_vec(),
        rows: body,
        notes: Vec::new(),
    }
}

/// Without a minus before a zero.
fn whole_percent(share: f64) -> String {
    match (100.0 * share).round() {
        0.0 => "0%".to_owned(),
        percent => format!("{percent:.0}%"),
    }
}

/// Three digits that count: costs of models differ by orders of magnitude.
fn significant(value: f64) -> String {
    let digits = match value {
        value if value >= 100.0 => 0,
        value if value >= 10.0 => 1,
        value if value >= 1.0 => 2,
        _ => 3,
    };
    format!("{value:.digits$}")
}
