//! Which layers ran, for every strategy of which records tell it.

use crate::heatmap;
use crate::row::Row;
use crate::svg::Look;
use serde::Serialize;
use skipbench_record::Answer;
use skipbench_strategy::{Explanation, StrategySpec};

/// Generated tokens that a map shows.
const TOKENS: usize = 64;
/// Maps that a report shows.
const MOST: usize = 60;

/// A map with what it shows.
#[derive(Serialize)]
pub(super) struct Map {
    name: String,
    about: &'static str,
    svg: String,
}

/// The maps of all groups, each once, and how many more there would be.
#[derive(Serialize, Default)]
pub(super) struct Maps {
    maps: Vec<Map>,
    more: usize,
}

pub(super) fn all(groups: &[Vec<Row<'_>>]) -> Maps {
    let mut found = Maps::default();
    let mut seen = Vec::new();
    for row in groups
        .iter()
        .flatten()
        .filter(|row| row.sets.is_none() && !row.is_full())
    {
        let Some((about, shares)) = shares(row) else {
            continue;
        };
        let name = format!("{}, {}", row.label(), row.record.task.name);
        let key = (row.label(), row.group().0.to_owned(), shares);
        if seen.contains(&key) {
            continue;
        }
        if found.maps.len() < MOST {
            let svg = heatmap::draw(Look::Small, &format!("Layers that {name} runs"), &key.2);
            found.maps.push(Map { name, about, svg });
        } else {
            found.more += 1;
        }
        seen.push(key);
    }
    found
}

/// Shares of the answers that ran each layer, by generated token; `None` where the record does not tell it, as for a strategy
/// of another binary or one that picks among sets of layers.
fn shares(row: &Row<'_>) -> Option<(&'static str, Vec<Vec<f64>>)> {
    let record = row.record;
    let executed = record.executed.as_ref()?;
    let spec: StrategySpec = serde_json::from_value(executed.spec.clone()).ok()?;
    let (n_layers, most) = (record.model.n_layers, record.task.max_new_tokens);
    let layers = spec.explain(n_layers, most).ok()?;
    let answers = row.source.answers(record)?;
    let longest = answers.iter().map(|answer| answer.layers.len()).max()?;
    let tokens = longest.min(TOKENS);
    if !layers.menu.is_empty() || layers.layers.is_empty() || tokens == 0 {
        return None;
    }
    if layers.draft_length.is_some() {
        return layers.checks.is_empty().then(|| {
            let about = "layers that draft; all layers verify what they draft";
            (about, fixed(&layers, tokens))
        });
    }
    match (layers.checks.is_empty(), layers.chosen_by) {
        (false, _) => Some((
            "share of the answers whose token ran a layer, counted from the lowest",
            exits(&layers, &answers, tokens),
        )),
        (true, None) => Some(("layers of each generated token", fixed(&layers, tokens))),
        (true, Some(_)) => None,
    }
}

/// The layers of a strategy that does not look at tokens. The first token comes from the prompt, all layers of which run.
fn fixed(layers: &Explanation, tokens: usize) -> Vec<Vec<f64>> {
    let runs = |token: usize, layer: usize| -> bool {
        let mut steps = layers.steps.iter();
        let step = steps.find(|step| (step.first..=step.last).contains(&token));
        match (token, step) {
            (0, _) => true,
            (_, Some(step)) => step.layers.contains(&layer),
            (_, None) => layers.layers.contains(&layer),
        }
    };
    let share = |token: usize, layer: usize| {
        let is_half = layers.attention_only.contains(&layer) || layers.mlp_only.contains(&layer);
        match (runs(token, layer), is_half && token > 0) {
            (false, _) => 0.0,
            (true, false) => 1.0,
            (true, true) => 0.5,
        }
    };
    (0..tokens)
        .map(|token| {
            (0..layers.n_layers)
                .map(|layer| share(token, layer))
                .collect()
        })
        .collect()
}

/// The layers of a strategy whose tokens leave at a check: as many of the lowest as each ran.
fn exits(layers: &Explanation, answers: &[&Answer], tokens: usize) -> Vec<Vec<f64>> {
    let rank = |layer: usize| layers.layers.iter().position(|&other| other == layer);
    let ranks: Vec<Option<usize>> = (0..layers.n_layers).map(rank).collect();
    (0..tokens)
        .map(|token| {
            let counts: Vec<f64> = answers
                .iter()
                .filter_map(|answer| answer.layers.get(token).copied())
                .collect();
            let share = |rank: &Option<usize>| {
                let Some(rank) = *rank else { return 0.0 };
                let ran = counts.iter().filter(|&&count| count > rank as f64);
                ran.count() as f64 / counts.len().max(1) as f64
            };
            ranks.iter().map(share).collect()
        })
        .collect()
}
