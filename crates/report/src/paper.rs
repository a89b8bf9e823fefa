//! A paper's table with a run's figures beside it, in the paper's layout. The two are kept apart: a paper's figures are in no
//! other table and in no file of results.

mod aspects;

use crate::chart::{Chart, Point, Series};
use crate::columns::METRIC;
use crate::plots::{Plot, Shows, safe};
use crate::row::{Row, paper_rate};
use crate::series_style::Style;
use crate::table::Table;
use aspects::{Aspect, aspects};
use skipbench_engine::Block;
use skipbench_record::{Beside, PaperRow, Run};
use std::collections::BTreeSet;

/// A paper's table beside what a run measured with one model, or with one for each approach, and one number of beams.
pub(crate) struct Comparison<'r> {
    beside: &'r Beside,
    run: String,
    /// None where each approach has its own.
    model: Option<&'r str>,
    beams: usize,
    lines: Vec<Line<'r>>,
    aspects: Vec<Aspect>,
}

/// A row of the table.
struct Line<'r> {
    batch: usize,
    /// Of the paper's rows, which, and its place among them.
    printed: &'r PaperRow,
    place: usize,
    /// The strategy here, as its label; none where the run has none for this row.
    label: Option<String>,
    /// One for each task, of the same strategy.
    here: Vec<&'r Row<'r>>,
}

/// Every paper's table that a run names, for each of its models and numbers of beams.
pub(crate) fn comparisons<'r>(runs: &'r [Run], groups: &'r [Vec<Row<'r>>]) -> Vec<Comparison<'r>> {
    let mut comparisons = Vec::new();
    for run in runs {
        let Some(beside) = &run.info.paper else {
            continue;
        };
        let rows = || {
            let rows = groups.iter().flatten();
            rows.filter(|row| std::ptr::eq(row.source, run))
        };
        let setting = |row: &'r Row<'r>| (own_model(beside, row), row.record.search.beams);
        let mut settings = Vec::new();
        for row in rows() {
            if !settings.contains(&setting(row)) {
                settings.push(setting(row));
            }
        }
        for one in settings {
            let rows: Vec<&Row<'_>> = rows().filter(|row| setting(row) == one).collect();
            comparisons.push(Comparison::new(beside, &rows));
        }
    }
    comparisons
}

impl<'r> Comparison<'r> {
    /// Of rows of the same model, if it is one, and beams, one at least.
    fn new(beside: &'r Beside, rows: &[&'r Row<'r>]) -> Self {
        let paper = &beside.paper;
        let printed = paper.rows.iter();
        let mut batches: BTreeSet<usize> = printed
            .flat_map(|row| row.tokens_per_s.keys().copied())
            .collect();
        if batches.is_empty() {
            batches.extend(rows.iter().map(|row| row.record.search.batch_size));
        }
        let mut lines = Vec::new();
        for batch in batches {
            for (place, printed) in paper.rows.iter().enumerate() {
                let fitting = rows
                    .iter()
                    .copied()
                    .filter(|row| row.record.search.batch_size == batch)
                    .filter(|row| is_of(row, printed, beside.full_of.as_deref()));
                let fitting: Vec<&Row<'_>> = fitting.collect();
                let name = |row: &Row<'_>| named(beside, row.label(), row);
                let mut labels: Vec<String> = Vec::new();
                for label in fitting.iter().map(|row| name(row)) {
                    if !labels.contains(&label) {
                        labels.push(label);
                    }
                }
                let line = |label: Option<String>| Line {
                    batch,
                    printed,
                    place,
                    here: fitting
                        .iter()
                        .copied()
                        .filter(|row| Some(name(row)) == label)
                        .collect(),
                    label,
                };
                match labels.is_empty() {
                    true => lines.push(line(None)),
                    false => lines.extend(labels.into_iter().map(|label| line(Some(label)))),
                }
            }
        }
        Self {
            beside,
            run: rows[0].run.clone(),
            model: own_model(beside, rows[0]),
            beams: rows[0].record.search.beams,
            lines,
            aspects: aspects(beside, rows),
        }
    }

    fn full(&self, batch: usize) -> Option<&Line<'r>> {
        let mut lines = self.lines.iter();
        lines.find(|line| line.batch == batch && line.printed.is_full())
    }

    /// Share of the full network's score: the paper's, and here.
    fn kept(&self, line: &Line<'_>) -> (Option<f64>, Option<f64>) {
        let full = self.full(line.batch);
        let metric = &self.beside.paper.metric;
        let printed = full.map(|full| line.printed.score / full.printed.score);
        let here = full.and_then(|full| Some(line.score(metric)? / full.score(metric)?));
        (printed, here.filter(|share| share.is_finite()))
    }

    /// Tokens per second over the full network's, both as the paper counts: the paper's, and here.
    fn ratio(&self, line: &Line<'_>) -> (Option<f64>, Option<f64>) {
        let printed = self.full(line.batch).and_then(|full| {
            let rate = |line: &Line<'_>| line.printed.tokens_per_s.get(&line.batch).copied();
            Some(rate(line)? / rate(full)?)
        });
        (printed, line.ratio())
    }

    /// The table, in the paper's layout.
    pub(crate) fn table(&self) -> Table {
        let paper = &self.beside.paper;
        let metric = &paper.metric;
        let header = [
            "batch",
            "target",
            "approach",
            "strategy here",
            "{metric}, paper",
            "{metric}, here",
            "kept, paper",
            "kept, here",
            "tokens/s, paper",
            "tokens/s, here",
            "decoded/s, here",
            "speed, paper",
            "speed, here",
            "decoding, here",
            "does it compare?",
        ]
        .map(|name| name.replace(METRIC, metric));
        let rows = self.lines.iter().map(|line| {
            let fixed = |value: Option<f64>, digits: usize| {
                value.map_or_else(|| "-".to_owned(), |value| format!("{value:.digits$}"))
            };
            let percent = |share: Option<f64>| {
                share.map_or_else(|| "-".to_owned(), |share| format!("{:.0}%", 100.0 * share))
            };
            let ratio = |ratio: Option<f64>| {
                ratio.map_or_else(|| "-".to_owned(), |ratio| format!("{ratio:.2}x"))
            };
            let (kept, ratios) = (self.kept(line), self.ratio(line));
            let printed = line.printed.tokens_per_s.get(&line.batch).copied();
            vec![
                line.batch.to_string(),
                format!("{}x", line.printed.target),
                line.printed.approach.clone(),
                line.label.clone().unwrap_or_else(|| "-".to_owned()),
                format!("{:.2}", line.printed.score),
                fixed(line.score(metric), 2),
                percent(kept.0),
                percent(kept.1),
                fixed(printed, 0),
                fixed(line.paper_tokens_per_s(), 0),
                fixed(line.tokens_per_s(), 0),
                ratio(ratios.0),
                ratio(ratios.1),
                ratio(line.achieved()),
                self.comparable(line),
            ]
        });
        let rows = rows.collect();
        let title = format!("Paper against here: {}, {}", paper.title, self.setting());
        Table::plain(title, header.into(), rows, self.notes())
    }

    /// Why a row does or does not compare, in a line.
    fn comparable(&self, line: &Line<'_>) -> String {
        let mut reasons = Vec::new();
        if line.here.is_empty() {
            reasons.push("not in this run".to_owned());
        } else {
            let verdict = |what: &str, bears: fn(&Aspect) -> bool| {
                let differing = self.aspects.iter().filter(|aspect| bears(aspect));
                let names: Vec<&str> = differing
                    .filter(|aspect| aspect.differs.is_some())
                    .map(|aspect| aspect.name)
                    .collect();
                match names.is_empty() {
                    true => format!("{what}: yes"),
                    false => format!("{what}: no, other {}", names.join(", ")),
                }
            };
            reasons.push(verdict(&self.beside.paper.metric, |aspect| aspect.score));
            reasons.push(match line.printed.tokens_per_s.contains_key(&line.batch) {
                true => verdict("speed", |aspect| aspect.speed),
                false => "speed: the paper has none".to_owned(),
            });
        }
        reasons.extend(line.printed.note.clone());
        reasons.join("; ")
    }

    fn notes(&self) -> Vec<String> {
        let paper = &self.beside.paper;
        let mut notes = vec![format!(
            "The columns of the paper are what it printed, {}; nothing of them was measured here.",
            paper.source
        )];
        for aspect in &self.aspects {
            notes.extend(
                aspect
                    .differs
                    .iter()
                    .map(|both| format!("{}: {both}.", aspect.name)),
            );
        }
        notes.push(
            "tokens/s and speed count as the paper does, prompt and output tokens over the whole time; decoded/s and decoding \
             are decoded tokens over decode time. Speeds are over the full network's, here from blocks that alternate with it; \
             kept is the share of its score."
                .to_owned(),
        );
        notes
    }

    fn setting(&self) -> String {
        let model = self.model.unwrap_or("a checkpoint for each approach");
        match self.beams {
            1 => model.to_owned(),
            beams => format!("{model}, {beams} beams"),
        }
    }

    /// For each batch size a plot of the share of the full network's score against speed.
    pub(crate) fn plots(&self) -> Vec<Plot> {
        let batches: BTreeSet<usize> = self.lines.iter().map(|line| line.batch).collect();
        batches
            .into_iter()
            .map(|batch| Plot {
                name: self.file_name(batch),
                kind: Shows::Paper,
                group: None,
                chart: self.chart(batch),
            })
            .collect()
    }

    fn file_name(&self, batch: usize) -> String {
        let beams = match self.beams {
            1 => String::new(),
            beams => format!("-beams{beams}"),
        };
        let model = self.model.unwrap_or("all");
        safe(&format!("paper-{}-{model}-b{batch}{beams}", self.run))
    }

    fn chart(&self, batch: usize) -> Chart {
        let metric = &self.beside.paper.metric;
        let mut lines: Vec<&Line<'_>> = self.lines.iter().collect();
        lines.retain(|line| line.batch == batch && !line.printed.is_full());
        let mut approaches: Vec<&str> = Vec::new();
        for line in &lines {
            if !approaches.contains(&line.approach()) {
                approaches.push(line.approach());
            }
        }
        let mut series = vec![Series {
            name: "full network".to_owned(),
            style: Style::Full,
            points: vec![point("full network", (1.0, 1.0))],
        }];
        // The paper's rows, each once however many strategies here are of it.
        for same in lines.chunk_by(|one, other| one.place == other.place) {
            let place = place_of(&same[0].approach(), &approaches);
            add(
                &mut series,
                format!("{}, paper", same[0].approach()),
                Style::Printed(place),
                self.ratio(same[0]).0.zip(self.kept(same[0]).0),
            );
        }
        // Further variants of an approach look like approaches behind all others.
        let mut variants: Vec<Vec<String>> = vec![Vec::new(); approaches.len()];
        for line in lines {
            let place = place_of(&line.approach(), &approaches);
            let Some(row) = line.here.first() else {
                continue;
            };
            let name = named(self.beside, row.record.strategy.series.clone(), row);
            if !variants[place].contains(&name) {
                variants[place].push(name.clone());
            }
            let nth = place_of(&name, &variants[place]);
            add(
                &mut series,
                format!("{name}, here"),
                Style::Nth(place + nth * approaches.len()),
                self.ratio(line).1.zip(self.kept(line).1),
            );
        }
        Chart {
            title: format!("Paper against here: {}, batch {batch}", self.setting()),
            x_label: "speed over the full network's, whole time".to_owned(),
            y_label: format!("share of the full network's {metric}"),
            series,
            ..Chart::default()
        }
    }
}

/// The model whose rows a table has alone; none where each approach has its own.
fn own_model<'r>(beside: &Beside, row: &'r Row<'_>) -> Option<&'r str> {
    beside.full_of.is_none().then_some(row.model())
}

/// A row's strategy, with its model where there are several in a table.
fn named(beside: &Beside, strategy: String, row: &Row<'_>) -> String {
    match own_model(beside, row) {
        Some(_) => strategy,
        None => format!("{strategy}, {}", row.model()),
    }
}

/// Adds a point, if there is one, to the series of that name.
fn add(series: &mut Vec<Series>, name: String, style: Style, at: Option<(f64, f64)>) {
    let Some(at) = at else { return };
    let point = point(&name, at);
    match series.iter_mut().find(|series| series.name == name) {
        Some(series) => series.points.push(point),
        None => series.push(Series {
            name,
            style,
            points: vec![point],
        }),
    }
}

fn point(name: &str, (x, y): (f64, f64)) -> Point {
    Point {
        x,
        y,
        about: format!("{name}: {x:.2}x, {:.0}% kept", 100.0 * y),
        ..Point::default()
    }
}

fn place_of<T: PartialEq>(one: &T, all: &[T]) -> usize {
    all.iter().position(|other| other == one).unwrap_or(0)
}

/// Whether a row here is of the strategy, variant and target of a row of the paper, and the full network that of the model
/// `full_of`, if it is one's.
fn is_of(row: &Row<'_>, printed: &PaperRow, full_of: Option<&str>) -> bool {
    let strategy = &row.record.strategy;
    let same_target = match printed.is_full() {
        true => strategy.is_full && full_of.is_none_or(|model| row.model() == model),
        false => strategy.target_speedup == Some(printed.target),
    };
    let variant = printed.variant.as_ref();
    strategy.name == printed.strategy
        && same_target
        && variant.is_none_or(|variant| strategy.variant.as_ref() == Some(variant))
}

impl Line<'_> {
    fn approach(&self) -> &str {
        &self.printed.approach
    }

    /// Mean over the tasks.
    fn score(&self, metric: &str) -> Option<f64> {
        // Chinese has a tokenizer of its own: `bleu-zh` is the BLEU of a task.
        let is_it = |name: &str| {
            let rest = name.strip_prefix(metric);
            rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('-'))
        };
        let scores = self.here.iter().map(|row| {
            let mut scores = row.scores.iter();
            Some(scores.find(|score| is_it(&score.metric))?.score)
        });
        let scores: Option<Vec<f64>> = scores.collect();
        let scores = scores.filter(|scores| !scores.is_empty())?;
        Some(scores.iter().sum::<f64>() / scores.len() as f64)
    }

    fn blocks(&self) -> impl Iterator<Item = &Block> {
        let timings = self
            .here
            .iter()
            .filter_map(|row| row.record.timing.as_ref());
        timings.flat_map(|timing| &timing.blocks)
    }

    fn paper_tokens_per_s(&self) -> Option<f64> {
        paper_rate(self.blocks(), |block| &block.strategy)
    }

    fn tokens_per_s(&self) -> Option<f64> {
        let tokens: usize = self.blocks().map(|block| block.decoded_tokens).sum();
        let seconds: f64 = self.blocks().map(|block| block.strategy.decode_s()).sum();
        (seconds > 0.0).then(|| tokens as f64 / seconds)
    }

    /// Both from the same blocks, so that a machine that changes its pace does not change the ratio.
    fn ratio(&self) -> Option<f64> {
        let strategy = self.paper_tokens_per_s()?;
        Some(strategy / paper_rate(self.blocks(), |block| &block.full)?)
    }

    /// Geometric mean over the tasks.
    fn achieved(&self) -> Option<f64> {
        let logs = self.here.iter().map(|row| Some(row.achieved()?.ln()));
        let logs: Option<Vec<f64>> = logs.collect();
        let logs = logs.filter(|logs| !logs.is_empty())?;
        Some((logs.iter().sum::<f64>() / logs.len() as f64).exp())
    }
}
