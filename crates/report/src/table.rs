//! Tables for people.

use crate::ledger;
use crate::row::{Band, MetricValue, ReportMeta, ResultRow, groups};
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

/// "task, batch, beams, model" of a row's table.
pub(crate) fn title(row: &ResultRow) -> String {
    let (model, task, batch, beams) = row.group();
    match beams {
        1 => format!("{task}, batch {batch}, {model}"),
        _ => format!("{task}, batch {batch}, {beams} beams, {model}"),
    }
}

/// The full network first, then by target, within one in the order of the experiment, and oracles at the end.
pub(crate) fn sorted<'a>(group: &[&'a ResultRow]) -> Vec<&'a ResultRow> {
    let mut sorted = group.to_vec();
    sorted.sort_by(|a, b| {
        let key = |row: &ResultRow| {
            let target = row.target_speedup.unwrap_or(0.0);
            (!row.is_full(), row.strategy.starts_with("oracle"), target)
        };
        key(a)
            .partial_cmp(&key(b))
            .unwrap_or(std::cmp::Ordering::Equal)
    });
    sorted
}

fn table(group: &[&ResultRow]) -> TableData {
    let (mut members, random): (Vec<&ResultRow>, Vec<&ResultRow>) =
        group.iter().partition(|row| row.band.is_none());
    let bands = bands(&random);
    // One row stands for a band: the one that was timed.
    members.extend(bands.iter().map(|band| band.row));
    let sorted = sorted(&members);
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
    header.push("same".to_owned());
    let body = sorted
        .iter()
        .map(|row| {
            let band = bands.iter().find(|band| std::ptr::eq(band.row, *row));
            let inside =
                row.band.is_none() && bands.iter().any(|band| band.reaches(row) && !row.is_full());
            let mut cells = vec![
                match band {
                    Some(band) => format!("{} ({} sets)", band.name, band.count),
                    None => row.label.clone(),
                },
                row.target_speedup
                    .map_or("-".to_owned(), |target| format!("{target}x")),
                format!("{:.1}", row.layers_per_token),
                format!("{:.2}x", row.bound_speedup),
                achieved(row),
                row.tokens_per_s
                    .map_or("-".to_owned(), |speed| format!("{speed:.0}")),
            ];
            cells.extend(row.metrics.iter().zip(&digits).enumerate().map(
                |(index, ((_, value), &digits))| match band {
                    Some(band) => band.score(index, digits),
                    None => score(value, digits, index == 0, inside),
                },
            ));
            cells.push(match (band, row.same_as_full) {
                // Rounded down: 100% is all of them.
                (None, Some(share)) => format!("{}%", (100.0 * share + 1e-9) as u32),
                _ => "-".to_owned(),
            });
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
        title: title(group[0]),
        header,
        rows: body,
        notes,
    }
}

fn achieved(row: &ResultRow) -> String {
    match (row.achieved_speedup, row.achieved_lo, row.achieved_hi) {
        (Some(ratio), Some(lo), Some(hi)) => format!("{ratio:.2}x [{lo:.2}, {hi:.2}]"),
        (Some(ratio), ..) => format!("{ratio:.2}x"),
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

/// The sets of a random strategy at one target.
struct RandomBand<'a> {
    name: &'a str,
    /// The set that was timed.
    row: &'a ResultRow,
    count: usize,
    /// By metric.
    scores: Vec<Option<Band>>,
}

fn bands<'a>(rows: &[&'a ResultRow]) -> Vec<RandomBand<'a>> {
    let mut bands: Vec<RandomBand<'a>> = Vec::new();
    for row in rows {
        let Some(name) = row.band.as_deref() else {
            continue;
        };
        if bands.iter().any(|band| band.name == name) {
            continue;
        }
        let members: Vec<&ResultRow> = rows
            .iter()
            .copied()
            .filter(|other| other.band.as_deref() == Some(name))
            .collect();
        let scores = (0..row.metrics.len())
            .map(|metric| {
                let of = |member: &&ResultRow| member.metrics.get(metric).map(|(_, v)| v.score);
                Band::of(members.iter().filter_map(of).collect())
            })
            .collect();
        let timed = members
            .iter()
            .find(|member| member.achieved_speedup.is_some());
        bands.push(RandomBand {
            name,
            row: timed.unwrap_or(row),
            count: members.len(),
            scores,
        });
    }
    bands
}

impl RandomBand<'_> {
    /// Whether a strategy with the same target is no better in the main metric than random sets are.
    fn reaches(&self, row: &ResultRow) -> bool {
        let band = self.scores.first().copied().flatten();
        let value = row.metrics.first().map(|(_, value)| value);
        row.target_speedup == self.row.target_speedup
            && band
                .zip(value)
                .is_some_and(|(band, value)| band.reaches(value.score, value.higher_is_better))
    }

    fn score(&self, metric: usize, digits: usize) -> String {
        match self.scores.get(metric).copied().flatten() {
            Some(Band { lo, median, hi }) if metric == 0 => {
                format!("{median:.digits$} [{lo:.digits$}, {hi:.digits$}]")
            }
            Some(band) => format!("{:.digits$}", band.median),
            None => "-".to_owned(),
        }
    }
}

fn score(value: &MetricValue, digits: usize, interval: bool, inside: bool) -> String {
    let significant = match value.p_value {
        Some(p) if p < ALPHA => "*",
        _ => "",
    };
    let mark = match interval && inside {
        true => format!("{significant}°"),
        false => significant.to_owned(),
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
pub(crate) fn legend(rows: &[ResultRow]) -> String {
    let band = match rows.iter().any(|row| row.band.is_some()) {
        true => {
            " `°`: no better than random sets of the same target, whose row gives their median and the band that holds 95% of them."
        }
        false => "",
    };
    format!("{MARKS}{band}{COLUMNS}")
}

const MARKS: &str = "`*`: differs from the full network (paired approximate randomisation, Holm-corrected, p < 0.05).";
const COLUMNS: &str = " `bound`: the speedup that the bytes read allow; weights that fit in a cache can beat it. `achieved`: decode time of the full network over that of the strategy, interleaved, fixed length, with its paired bootstrap interval; the row `full` times the full network against itself and shows the noise. `tokens/s`: of the row's own blocks, timed at its own moment; compare speeds by `achieved`. `same`: answers that are the full network's, token for token.";

/// GitHub-flavoured Markdown, a table per model, task, batch size and number of beams.
pub fn markdown_table(rows: &[ResultRow]) -> String {
    markdown(&tables(rows)) + &legend(rows) + "\n"
}

fn markdown(tables: &[TableData]) -> String {
    let mut text = String::new();
    for table in tables {
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
    let ledgers = markdown(&ledger::tables(rows));
    let legend = ledger::LEGEND;
    format!("{text}{}\n{ledgers}{legend}\n", markdown_table(rows))
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
    text.push_str(&legend(rows).replace('`', ""));
    text
}
