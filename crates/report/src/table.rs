//! Tables for people.

use crate::row::{MetricValue, ReportMeta, ResultRow, groups};
use comfy_table::{CellAlignment, Table, presets};

/// A strategy is marked when its difference from the full network has a corrected p-value below this.
const ALPHA: f64 = 0.05;

/// Heading and cells of a group's table.
pub(crate) struct TableData {
    pub(crate) title: String,
    pub(crate) header: Vec<String>,
    pub(crate) rows: Vec<Vec<String>>,
    pub(crate) notes: Vec<String>,
}

pub(crate) fn tables(rows: &[ResultRow]) -> Vec<TableData> {
    groups(rows).iter().map(|group| table(group)).collect()
}

fn table(group: &[&ResultRow]) -> TableData {
    let (model, task, batch) = group[0].group();
    let mut sorted = group.to_vec();
    // The full network first, then by target; within one in the order of the experiment.
    sorted.sort_by(|a, b| {
        let key = |row: &ResultRow| (!row.is_full(), row.target_speedup.unwrap_or(0.0));
        key(a)
            .partial_cmp(&key(b))
            .unwrap_or(std::cmp::Ordering::Equal)
    });
    let metrics: Vec<&str> = group[0]
        .metrics
        .iter()
        .map(|(name, _)| name.as_str())
        .collect();
    let digits: Vec<usize> = (0..metrics.len()).map(|at| digits(group, at)).collect();
    let mut header: Vec<String> = [
        "strategy",
        "target",
        "layers/token",
        "bound",
        "achieved [95%]",
        "tokens/s",
    ]
    .map(str::to_owned)
    .to_vec();
    header.extend(metrics.iter().enumerate().map(|(index, name)| match index {
        0 => format!("{name} [95%]"),
        _ => (*name).to_owned(),
    }));
    let body = sorted
        .iter()
        .map(|row| {
            let mut cells = vec![
                row.label.clone(),
                row.target_speedup
                    .map_or("-".to_owned(), |target| format!("{target}x")),
                format!("{:.1}", row.layers_per_token),
                format!("{:.2}x", row.bound_speedup),
                achieved(row),
                row.tokens_per_s
                    .map_or("-".to_owned(), |speed| format!("{speed:.0}")),
            ];
            cells.extend(
                row.metrics
                    .iter()
                    .zip(&digits)
                    .enumerate()
                    .map(|(index, ((_, value), &digits))| score(value, digits, index == 0)),
            );
            cells
        })
        .collect();
    let notes = sorted
        .iter()
        .filter_map(|row| {
            row.note
                .as_ref()
                .map(|note| format!("{}: {note}", row.label))
        })
        .collect();
    TableData {
        title: format!("{task}, batch {batch}, {model}"),
        header,
        rows: body,
        notes,
    }
}

fn achieved(row: &ResultRow) -> String {
    match (row.achieved_speedup, row.achieved_lo, row.achieved_hi) {
        (Some(ratio), Some(lo), Some(hi)) => format!("{ratio:.2}x [{lo:.2}, {hi:.2}]"),
        _ => "-".to_owned(),
    }
}

/// Decimals of a metric's column: scores of 0..1 need more than those of 0..100.
fn digits(group: &[&ResultRow], metric: usize) -> usize {
    let scores = group.iter().filter_map(|row| row.metrics.get(metric));
    match scores.map(|(_, value)| value.hi).fold(0.0, f64::max) > 1.0 {
        true => 1,
        false => 3,
    }
}

fn score(value: &MetricValue, digits: usize, interval: bool) -> String {
    let mark = match value.p_value {
        Some(p) if p < ALPHA => "*",
        _ => "",
    };
    match interval {
        true => format!(
            "{:.digits$}{mark} [{:.digits$}, {:.digits$}]",
            value.score, value.lo, value.hi
        ),
        false => format!("{:.digits$}{mark}", value.score),
    }
}

/// What the marks and columns mean.
pub(crate) const LEGEND: &str = "`*`: differs from the full network (paired approximate randomisation, Holm-corrected, p < 0.05). `bound`: the speedup that the bytes read allow; weights that fit in a cache can beat it. `achieved`: decode time of the full network over that of the strategy, interleaved, fixed length, with its paired bootstrap interval; the row `full` times the full network against itself and shows the noise. `tokens/s`: of the row's own blocks, timed at its own moment; compare speeds by `achieved`.";

/// GitHub-flavoured Markdown, a table per model, task and batch size.
pub fn markdown_table(rows: &[ResultRow]) -> String {
    let mut text = String::new();
    for table in tables(rows) {
        text.push_str(&format!("## {}\n\n", table.title));
        let line = |cells: &[String]| {
            let cells: Vec<String> = cells.iter().map(|cell| cell.replace('|', "\\|")).collect();
            format!("| {} |\n", cells.join(" | "))
        };
        text.push_str(&line(&table.header));
        let rule: Vec<String> = (0..table.header.len())
            .map(|column| if column == 0 { "---" } else { "---:" }.to_owned())
            .collect();
        text.push_str(&line(&rule));
        for row in &table.rows {
            text.push_str(&line(row));
        }
        text.push('\n');
        for note in &table.notes {
            text.push_str(&format!("- {note}\n"));
        }
        if !table.notes.is_empty() {
            text.push('\n');
        }
    }
    text.push_str(LEGEND);
    text.push('\n');
    text
}

/// `table.md`.
pub(crate) fn document(meta: &ReportMeta, rows: &[ResultRow]) -> String {
    let mut text = format!("# {}\n\n", meta.title);
    for (name, value) in facts(meta) {
        text.push_str(&format!("- {name}: {value}\n"));
    }
    text.push('\n');
    for note in &meta.notes {
        text.push_str(&format!("> {note}\n\n"));
    }
    text + &markdown_table(rows)
}

/// The head of a report, a name and a value each.
pub(crate) fn facts(meta: &ReportMeta) -> Vec<(&'static str, String)> {
    let mut facts = vec![
        ("experiment", meta.experiment.clone()),
        ("models", meta.models.join("; ")),
        ("device", meta.device.clone()),
        ("date", meta.date.clone()),
        ("skipbench", meta.version.clone()),
        ("seed", meta.seed.to_string()),
    ];
    if let Some(commit) = &meta.git_commit {
        facts.push(("commit", commit.clone()));
    }
    facts
}

/// Plain text for a terminal.
pub fn terminal_table(rows: &[ResultRow]) -> String {
    let mut text = String::new();
    for data in tables(rows) {
        let mut table = Table::new();
        table.load_preset(presets::NOTHING).set_header(&data.header);
        for row in &data.rows {
            table.add_row(row);
        }
        for column in table.column_iter_mut().skip(1) {
            column.set_cell_alignment(CellAlignment::Right);
        }
        text.push_str(&format!("{}\n{}\n", data.title, table.trim_fmt()));
        for note in &data.notes {
            text.push_str(&format!("  {note}\n"));
        }
        text.push('\n');
    }
    text.push_str(&LEGEND.replace('`', ""));
    text
}
