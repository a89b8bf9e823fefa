//! The plots of a report.

use crate::chart::{Chart, Point, Series};
use crate::fields::{achieved as achieved_text, score_text};
use crate::front::is_beaten;
use crate::paper::Comparison;
use crate::row::{Row, sorted};
use crate::series_style::Style;

/// A plot of a report.
pub(crate) struct Plot {
    /// File name without extension.
    pub(crate) name: String,
    /// What it shows.
    pub(crate) kind: Shows,
    /// The group that it is of, by its place; `None` for one of several.
    pub(crate) group: Option<usize>,
    pub(crate) chart: Chart,
}

/// What a plot shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Shows {
    /// Quality against the achieved speedup.
    Quality,
    /// The achieved speedup against the one that was asked for.
    Achieved,
    /// Tokens per second against the batch size.
    Throughput,
    /// What a paper printed beside what was measured here.
    Paper,
}

/// Every plot of a report.
pub(crate) fn all(groups: &[Vec<Row<'_>>], papers: &[Comparison<'_>]) -> Vec<Plot> {
    let groups: Vec<Vec<Row<'_>>> = groups.iter().map(|group| sorted(group)).collect();
    let styles = Styles::new(&groups);
    let mut plots = Vec::new();
    for (index, group) in groups.iter().enumerate() {
        let plot = |kind| {
            move |(name, chart)| Plot {
                name,
                kind,
                group: Some(index),
                chart,
            }
        };
        plots.extend(quality(group, &styles).map(plot(Shows::Quality)));
        plots.extend(achieved(group, &styles).map(plot(Shows::Achieved)));
    }
    let throughput = throughput(&groups, &styles).into_iter();
    plots.extend(throughput.map(|(name, chart)| Plot {
        name,
        kind: Shows::Throughput,
        group: None,
        chart,
    }));
    plots.extend(papers.iter().flat_map(Comparison::plots));
    plots.retain(|plot| !plot.chart.series.is_empty());
    plots
}

/// Name and look of every series of a report, the same in all plots.
struct Styles {
    has_runs: bool,
    has_machines: bool,
    names: Vec<(String, Style)>,
}

impl Styles {
    fn new(groups: &[Vec<Row<'_>>]) -> Self {
        let rows = || groups.iter().flatten();
        let first = rows().next();
        let mut styles = Self {
            has_runs: first.is_some_and(|first| rows().any(|row| row.run != first.run)),
            has_machines: first.is_some_and(|first| rows().any(|row| row.machine != first.machine)),
            names: Vec::new(),
        };
        let mut numbers = 0..;
        // Bands last: where there is one, it is in few plots.
        let (bands, others): (Vec<_>, Vec<_>) = rows().partition(|row| row.sets.is_some());
        for row in others.into_iter().chain(bands) {
            let name = styles.name(row);
            if styles.names.iter().all(|(known, _)| *known != name) {
                let has_full = styles.names.iter().any(|(_, style)| *style == Style::Full);
                let style = match row.is_full() && !has_full {
                    true => Style::Full,
                    false => Style::Nth(numbers.next().unwrap_or(0)),
                };
                styles.names.push((name, style));
            }
        }
        styles
    }

    fn name(&self, row: &Row<'_>) -> String {
        let mut name = row.record.strategy.series.clone();
        if self.has_runs {
            name.push_str(&format!(" {{{}}}", row.run));
        }
        if self.has_machines {
            name.push_str(&format!(" {{machine {}}}", row.machine));
        }
        name
    }

    /// Rows as series, in order of first appearance; a line joins its points in the order of the rows, which is that of their
    /// targets, also where a faster target measured slower.
    fn series<'r>(
        &self,
        rows: impl Iterator<Item = &'r Row<'r>>,
        point: impl Fn(&Row<'_>) -> Option<Point>,
    ) -> Vec<Series> {
        let mut series: Vec<Series> = Vec::new();
        for row in rows {
            let Some(point) = point(row) else { continue };
            let name = self.name(row);
            if let Some(series) = series.iter_mut().find(|series| series.name == name) {
                series.points.push(point);
                continue;
            }
            let style = self.names.iter().find(|(known, _)| *known == name);
            series.push(Series {
                style: style.map_or(Style::Nth(0), |(_, style)| *style),
                name,
                points: vec![point],
            });
        }
        series
    }
}

fn quality(group: &[Row<'_>], styles: &Styles) -> Option<(String, Chart)> {
    let metric = group[0].record.task.metrics.first()?;
    let full = group.iter().find(|row| row.is_full());
    let full = full.and_then(|row| row.score(metric));
    let is_lower_better = group
        .iter()
        .find_map(|row| row.score(metric))
        .is_some_and(|score| !score.kind.higher_is_better());
    let rows = group.iter().filter(|row| row.sets.is_none());
    let series = styles.series(rows, |row| {
        let score = row.score(metric)?;
        let is_faint = is_beaten(row, group, metric);
        let kept = full.filter(|full| !row.is_full() && full.score > 0.0);
        let kept = kept.map_or(String::new(), |full| {
            format!(
                ", {:.0}% of the full network's",
                100.0 * score.score / full.score
            )
        });
        // The time of an oracle means nothing, and nothing takes it.
        let is_oracle = row.record.strategy.is_oracle && row.achieved().is_none();
        let bound = row.bound().filter(|_| is_oracle);
        Some(Point {
            x: row.achieved().or(bound)?,
            y: score.score,
            x_range: row.interval(),
            y_range: Some((score.lo, score.hi)),
            is_hollow: is_oracle,
            about: format!("{}, {metric} {}{kept}", speed(row), score_text(score)),
            name: (!is_faint).then(|| bare(&row.label())),
            link: Some(row.id()),
            is_faint,
        })
    });
    // Oracles alone would stand beside nothing.
    series
        .iter()
        .flat_map(|series| &series.points)
        .find(|point| !point.is_hollow)?;
    let bands = group.iter().filter(|row| row.sets.is_some());
    let band = bands.filter_map(|row| {
        let score = row.score(metric)?;
        Some((row.achieved()?, score.lo, score.hi))
    });
    let band: Vec<(f64, f64, f64)> = band.collect();
    let ends = series.iter().flat_map(|series| &series.points);
    let ends = ends.filter(|point| !point.is_hollow);
    let ends = ends.fold((1.0, 1.0), |(lo, hi): (f64, f64), point| {
        (lo.min(point.x), hi.max(point.x))
    });
    let level = full.map(|full| {
        let points = vec![(ends.0, full.score), (ends.1, full.score)];
        let whole = if is_lower_better {
            ""
        } else {
            ", 100% on the right"
        };
        (format!("the full network's{whole}"), points)
    });
    let better = if is_lower_better { "lower" } else { "higher" };
    let chart = Chart {
        title: title("Quality against achieved speedup", &group[0]),
        x_label: "achieved speedup (decode time, full network = 1)".to_owned(),
        y_label: format!("{metric} ({better} is better)"),
        band,
        series,
        guide: level,
        is_lower_better,
        whole: full
            .filter(|full| full.score > 0.0 && !is_lower_better)
            .map(|full| full.score),
        ..Chart::default()
    };
    Some((file_name("quality", &group[0]), chart))
}

fn achieved(group: &[Row<'_>], styles: &Styles) -> Option<(String, Chart)> {
    let largest = group
        .iter()
        .filter_map(Row::target)
        .max_by(f64::total_cmp)?;
    let series = styles.series(group.iter(), |row| {
        let target = row.target()?;
        Some(Point {
            x: target,
            y: row.achieved()?,
            y_range: row.interval(),
            about: format!("{} of {target}x", speed(row)),
            link: Some(row.id()),
            ..Point::default()
        })
    });
    let chart = Chart {
        title: title("Achieved against target speedup", &group[0]),
        x_label: "target speedup".to_owned(),
        y_label: "achieved speedup".to_owned(),
        series,
        guide: Some((
            "achieved = target".to_owned(),
            vec![(1.0, 1.0), (largest, largest)],
        )),
        ..Chart::default()
    };
    Some((file_name("achieved", &group[0]), chart))
}

/// A row and its speed, in words.
fn speed(row: &Row<'_>) -> String {
    let bound = || match row.bound() {
        Some(bound) => format!("not timed, bound {bound:.2}x"),
        None => "not timed".to_owned(),
    };
    let achieved = achieved_text(row).unwrap_or_else(bound);
    format!("{}: {achieved}", row.label())
}

/// A label without its settings.
fn bare(label: &str) -> String {
    label.split(" {").next().unwrap_or(label).to_owned()
}

/// A chart per model, task and number of beams, at the target nearest to 2.
fn throughput(groups: &[Vec<Row<'_>>], styles: &Styles) -> Vec<(String, Chart)> {
    let rows = || groups.iter().flatten();
    let distance = |target: &f64| (target - 2.0).abs();
    let target = rows()
        .filter_map(Row::target)
        .min_by(|a, b| distance(a).total_cmp(&distance(b)));
    let mut charts: Vec<(String, Chart)> = Vec::new();
    for first in rows() {
        let of = |row: &Row<'_>| {
            let (model, task, _, beams) = row.group();
            (model.to_owned(), task.to_owned(), beams)
        };
        let (model, task, beams) = of(first);
        let beams = match beams {
            1 => String::new(),
            beams => format!("-beams{beams}"),
        };
        let name = safe(&format!("throughput-{model}-{task}{beams}"));
        if charts.iter().any(|(known, _)| *known == name) {
            continue;
        }
        let members = rows()
            .filter(|row| of(row) == of(first))
            .filter(|row| row.is_full() || row.target() == target);
        let mut series = styles.series(members, |row| {
            Some(Point {
                x: row.record.search.batch_size as f64,
                y: row.tokens_per_s()?,
                about: format!(
                    "{}, {}: {:.0} tokens/s",
                    row.label(),
                    row.setting(),
                    row.tokens_per_s()?
                ),
                ..Point::default()
            })
        });
        for series in &mut series {
            series.points.sort_by(|a, b| a.x.total_cmp(&b.x));
        }
        let at = target.map_or(String::new(), |target| format!(" at {target}x"));
        let chart = Chart {
            title: format!("Throughput against batch size{at}: {task}"),
            x_label: "batch size".to_owned(),
            y_label: "decoded tokens per second".to_owned(),
            series,
            from_zero: true,
            ..Chart::default()
        };
        charts.push((name, chart));
    }
    charts
}

fn title(what: &str, row: &Row<'_>) -> String {
    format!("{what}: {}, {}", row.record.task.name, row.setting())
}

fn file_name(what: &str, row: &Row<'_>) -> String {
    let (model, task, batch, beams) = row.group();
    let beams = match beams {
        1 => String::new(),
        beams => format!("-beams{beams}"),
    };
    safe(&format!("{what}-{model}-{task}-b{batch}{beams}"))
}

/// A name that every file system takes.
pub(crate) fn safe(name: &str) -> String {
    let is_safe = |c: char| c.is_alphanumeric() || c == '-' || c == '_';
    name.chars()
        .map(|c| if is_safe(c) { c } else { '_' })
        .collect()
}
