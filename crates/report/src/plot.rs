//! Plots as SVG.

use crate::error::{ReportError, Result};
use crate::image::{self, AREA, FONT, PX, UNIT};
use crate::legend::Legend;
use crate::row::{Band, ResultRow, groups};
use crate::series_style::{color, marker};
use plotters::coord::Shift;
use plotters::prelude::*;
use std::ops::Range;
use std::path::{Path, PathBuf};

const BAND_COLOR: RGBColor = RGBColor(226, 226, 226);
const LEGEND_WIDTH: u32 = 240 * UNIT;

/// A drawn plot.
pub(crate) struct Plot {
    /// File name without extension.
    pub(crate) name: String,
    pub(crate) svg: String,
}

/// One line of a plot: points with error bars (x, y, y range, x range).
struct Series {
    name: String,
    points: Vec<Point>,
}

#[derive(Clone)]
struct Point {
    x: f64,
    y: f64,
    x_range: Option<(f64, f64)>,
    y_range: Option<(f64, f64)>,
}

struct Chart {
    name: String,
    title: String,
    x_label: String,
    y_label: String,
    series: Vec<Series>,
    /// A light line for reference: its name and points.
    guide: Option<(String, Vec<(f64, f64)>)>,
    /// The band in which random sets lie: (x, low, high).
    band: Vec<(f64, f64, f64)>,
    /// Every series of the run, so that each has a style of its own in all charts.
    names: Vec<String>,
}

/// Names of all series but the full network, which has its own style, in the order of the experiment.
fn names(rows: &[ResultRow]) -> Vec<String> {
    let mut names = Vec::new();
    for row in rows.iter().filter(|row| !row.is_full()) {
        let name = row.series();
        if !names.contains(&name) && row.band.is_none() {
            names.push(name);
        }
    }
    names
}

/// Where 95% of the sets of a random band lie at each target, over the speedup that was measured for one of them.
fn null_band(rows: &[&ResultRow]) -> Vec<(f64, f64, f64)> {
    let mut bands: Vec<&String> = Vec::new();
    for band in rows.iter().filter_map(|row| row.band.as_ref()) {
        if !bands.contains(&band) {
            bands.push(band);
        }
    }
    bands
        .into_iter()
        .filter_map(|band| {
            let members = rows.iter().filter(|row| row.band.as_ref() == Some(band));
            let x = members.clone().find_map(|row| row.achieved_speedup)?;
            let scores = members.filter_map(|row| Some(row.metrics.first()?.1.score));
            let band = Band::of(scores.collect())?;
            Some((x, band.lo, band.hi))
        })
        .collect()
}

/// Every plot of a run.
pub(crate) fn all(rows: &[ResultRow]) -> Result<Vec<Plot>> {
    let mut charts = Vec::new();
    for group in groups(rows) {
        charts.extend(quality(&group));
        charts.extend(achieved(&group));
    }
    charts.extend(throughput(rows));
    let names = names(rows);
    for chart in &mut charts {
        chart.names.clone_from(&names);
    }
    charts
        .iter()
        .filter(|chart| chart.series.iter().any(|series| !series.points.is_empty()))
        .map(draw)
        .collect()
}

fn file_name(parts: &[&str]) -> String {
    parts
        .join("-")
        .chars()
        .map(|c| {
            if c.is_alphanumeric() || c == '-' || c == '_' {
                c
            } else {
                '_'
            }
        })
        .collect()
}

/// Batch size and beams of a row's table, for a file name and for a title.
fn setting(row: &ResultRow) -> (String, String) {
    match (row.batch_size, row.beams) {
        (batch, 1) => (format!("b{batch}"), format!("batch {batch}")),
        (batch, beams) => (
            format!("b{batch}-beams{beams}"),
            format!("batch {batch}, {beams} beams"),
        ),
    }
}

/// Rows as series by strategy, in order of first appearance; a line joins its points from the lowest target to the
/// highest, also where a faster target measured slower.
fn series(rows: &[&ResultRow], point: impl Fn(&ResultRow) -> Option<Point>) -> Vec<Series> {
    let mut series: Vec<Series> = Vec::new();
    let mut by_target = rows.to_vec();
    let target = |row: &ResultRow| row.target_speedup.unwrap_or(0.0);
    by_target.sort_by(|a, b| target(a).total_cmp(&target(b)));
    for row in by_target {
        let Some(point) = point(row) else { continue };
        let name = row.series();
        match series.iter_mut().find(|series| series.name == name) {
            Some(series) => series.points.push(point),
            None => series.push(Series {
                name,
                points: vec![point],
            }),
        }
    }
    series
}

fn quality(group: &[&ResultRow]) -> Option<Chart> {
    let (model, task, ..) = group[0].group();
    let (file, title) = setting(group[0]);
    let (metric, _) = group[0].metrics.first()?;
    let (single, band): (Vec<&ResultRow>, Vec<&ResultRow>) =
        group.iter().partition(|row| row.band.is_none());
    let series = series(&single, |row| {
        let (_, value) = row.metrics.first()?;
        Some(Point {
            x: row.achieved_speedup?,
            y: value.score,
            x_range: row.achieved_lo.zip(row.achieved_hi),
            y_range: Some((value.lo, value.hi)),
        })
    });
    Some(Chart {
        band: null_band(&band),
        names: Vec::new(),
        name: file_name(&["quality", model, task, &file]),
        title: format!("Quality against achieved speedup: {task}, {title}"),
        x_label: "achieved speedup (decode time, full network = 1)".to_owned(),
        y_label: metric.clone(),
        series,
        guide: None,
    })
}

fn achieved(group: &[&ResultRow]) -> Option<Chart> {
    let (model, task, ..) = group[0].group();
    let (file, title) = setting(group[0]);
    let targets: Vec<f64> = group.iter().filter_map(|row| row.target_speedup).collect();
    let largest = targets.iter().copied().fold(f64::NAN, f64::max);
    if largest.is_nan() {
        return None;
    }
    let series = series(group, |row| {
        Some(Point {
            x: row.target_speedup?,
            y: row.achieved_speedup?,
            x_range: None,
            y_range: row.achieved_lo.zip(row.achieved_hi),
        })
    });
    Some(Chart {
        name: file_name(&["achieved", model, task, &file]),
        title: format!("Achieved against target speedup: {task}, {title}"),
        x_label: "target speedup".to_owned(),
        y_label: "achieved speedup".to_owned(),
        series,
        guide: Some((
            "achieved = target".to_owned(),
            vec![(1.0, 1.0), (largest, largest)],
        )),
        band: Vec::new(),
        names: Vec::new(),
    })
}

/// A chart per model and task, at the target nearest to 2.
fn throughput(rows: &[ResultRow]) -> Vec<Chart> {
    let target = rows
        .iter()
        .filter_map(|row| row.target_speedup)
        .min_by(|a, b| (a - 2.0).abs().total_cmp(&(b - 2.0).abs()));
    let mut charts: Vec<Chart> = Vec::new();
    for row in rows {
        let name = file_name(&["throughput", &row.model, &row.task]);
        if charts.iter().any(|chart| chart.name == name) {
            continue;
        }
        let members: Vec<&ResultRow> = rows
            .iter()
            .filter(|other| (&other.model, &other.task) == (&row.model, &row.task))
            .filter(|other| other.beams == row.beams)
            .filter(|other| other.is_full() || other.target_speedup == target)
            .collect();
        let mut series = series(&members, |row| {
            Some(Point {
                x: row.batch_size as f64,
                y: row.tokens_per_s?,
                x_range: None,
                y_range: None,
            })
        });
        for series in &mut series {
            series.points.sort_by(|a, b| a.x.total_cmp(&b.x));
        }
        charts.push(Chart {
            name,
            title: match target {
                Some(target) => format!("Throughput against batch size at {target}x: {}", row.task),
                None => format!("Throughput against batch size: {}", row.task),
            },
            x_label: "batch size".to_owned(),
            y_label: "decoded tokens per second".to_owned(),
            series,
            guide: None,
            band: Vec::new(),
            names: Vec::new(),
        });
    }
    charts
}

/// A range that holds all values with a margin, and is never empty.
fn padded(values: impl Iterator<Item = f64>) -> Range<f64> {
    let (lo, hi) = values
        .filter(|value| value.is_finite())
        .fold((f64::INFINITY, f64::NEG_INFINITY), |(lo, hi), value| {
            (lo.min(value), hi.max(value))
        });
    if lo > hi {
        return 0.0..1.0;
    }
    let margin = ((hi - lo) * 0.06).max(hi.abs() * 0.02).max(1e-3);
    let low = lo - margin;
    // A margin below zero would suggest that less than nothing is possible.
    (if lo >= 0.0 { low.max(0.0) } else { low })..hi + margin
}

fn draw(chart: &Chart) -> Result<Plot> {
    let svg = image::draw(|area| draw_on(area, chart)).map_err(|error| ReportError::Plot {
        name: chart.name.clone(),
        message: error.to_string(),
    })?;
    Ok(Plot {
        name: chart.name.clone(),
        svg,
    })
}

type Drawn<T> = std::result::Result<T, Box<dyn std::error::Error>>;

fn draw_on(root: &DrawingArea<SVGBackend<'_>, Shift>, chart: &Chart) -> Drawn<()> {
    root.fill(&WHITE)?;
    let (plot, legend) = root.split_horizontally(AREA.0 - LEGEND_WIDTH);
    let points = || chart.series.iter().flat_map(|series| &series.points);
    let guide = || chart.guide.iter().flat_map(|(_, points)| points);
    let x = padded(
        points()
            .flat_map(|p| [Some(p.x), p.x_range.map(|r| r.0), p.x_range.map(|r| r.1)])
            .flatten()
            .chain(guide().map(|p| p.0))
            .chain(chart.band.iter().map(|&(x, ..)| x)),
    );
    let y = padded(
        points()
            .flat_map(|p| [Some(p.y), p.y_range.map(|r| r.0), p.y_range.map(|r| r.1)])
            .flatten()
            .chain(guide().map(|p| p.1))
            .chain(chart.band.iter().flat_map(|&(_, lo, hi)| [lo, hi])),
    );
    let mut context = ChartBuilder::on(&plot)
        .caption(&chart.title, (FONT, 17 * PX))
        .margin(12 * PX)
        .x_label_area_size(46 * PX)
        .y_label_area_size(64 * PX)
        .build_cartesian_2d(x, y)?;
    let digits = |value: &f64| match value.abs() {
        a if a >= 100.0 => format!("{value:.0}"),
        a if a >= 10.0 => format!("{value:.0}"),
        _ => format!("{value:.2}")
            .trim_end_matches('0')
            .trim_end_matches('.')
            .to_owned(),
    };
    context
        .configure_mesh()
        .x_desc(&chart.x_label)
        .y_desc(&chart.y_label)
        .axis_desc_style((FONT, 14 * PX))
        .label_style((FONT, 12 * PX))
        .light_line_style(WHITE)
        .bold_line_style(RGBColor(225, 225, 225).stroke_width(UNIT))
        .axis_style(BLACK.stroke_width(UNIT))
        .set_all_tick_mark_size(5 * PX)
        .x_label_formatter(&digits)
        .y_label_formatter(&digits)
        .draw()?;
    if !chart.band.is_empty() {
        let low = chart.band.iter().map(|&(x, lo, _)| (x, lo));
        let high = chart.band.iter().rev().map(|&(x, _, hi)| (x, hi));
        let mut edge: Vec<(f64, f64)> = low.chain(high).collect();
        if let [(x, lo, hi)] = chart.band[..] {
            // One target alone has no width.
            let (left, right) = (x * 0.985, x * 1.015);
            edge = vec![(left, lo), (right, lo), (right, hi), (left, hi)];
        }
        context.draw_series(std::iter::once(Polygon::new(edge, BAND_COLOR)))?;
    }
    if let Some((_, line)) = &chart.guide {
        let style = RGBColor(160, 160, 160).stroke_width(UNIT);
        context.draw_series(DashedLineSeries::new(
            line.iter().copied(),
            6 * PX,
            4 * PX,
            style,
        ))?;
    }
    for (index, series) in styled(chart) {
        let color = color(index, &series.name);
        let line = series.points.iter().map(|p| (p.x, p.y));
        context.draw_series(LineSeries::new(line, color.stroke_width(2 * UNIT)))?;
        let bars = series.points.iter().flat_map(|p| {
            let vertical = p.y_range.map(|(lo, hi)| vec![(p.x, lo), (p.x, hi)]);
            let horizontal = p.x_range.map(|(lo, hi)| vec![(lo, p.y), (hi, p.y)]);
            [vertical, horizontal].into_iter().flatten()
        });
        context.draw_series(
            bars.map(|bar| PathElement::new(bar, color.mix(0.5).stroke_width(UNIT))),
        )?;
        for point in &series.points {
            context.draw_series(std::iter::once(
                EmptyElement::at((point.x, point.y)) + marker(index, &series.name, (0, 0), color),
            ))?;
        }
    }
    draw_legend(&legend, chart)
}

fn draw_legend(area: &DrawingArea<SVGBackend<'_>, Shift>, chart: &Chart) -> Drawn<()> {
    let names = chart.series.iter().map(|series| series.name.as_str());
    let band = (!chart.band.is_empty()).then_some("95% of random sets");
    let guide = chart.guide.as_ref().map(|(name, _)| name.as_str());
    let legend = Legend::new(names.chain(band).chain(guide));
    let style = TextStyle::from((FONT, legend.letters).into_font()).color(&BLACK);
    let y = |below: i32| 52 * PX + below;
    for (lines, below) in &legend.labels {
        for (line, text) in lines.iter().enumerate() {
            let top = y(*below) - legend.letters / 2 + line as i32 * legend.line;
            area.draw(&Text::new(text.as_str(), (42 * PX, top), style.clone()))?;
        }
    }
    let mut ys = legend.labels.iter().map(|(_, below)| y(*below));
    for ((index, series), y) in styled(chart).zip(&mut ys) {
        let color = color(index, &series.name);
        area.draw(&PathElement::new(
            vec![(6 * PX, y), (34 * PX, y)],
            color.stroke_width(2 * UNIT),
        ))?;
        area.draw(&marker(index, &series.name, (20 * PX, y), color))?;
    }
    if band.is_some()
        && let Some(y) = ys.next()
    {
        let corners = [(6 * PX, y - 5 * PX), (34 * PX, y + 5 * PX)];
        area.draw(&Rectangle::new(corners, BAND_COLOR.filled()))?;
    }
    if guide.is_some()
        && let Some(y) = ys.next()
    {
        let grey = RGBColor(160, 160, 160).stroke_width(UNIT);
        for start in [6 * PX, 16 * PX, 26 * PX] {
            let dash = vec![(start, y), (start + 6 * PX, y)];
            area.draw(&PathElement::new(dash, grey))?;
        }
    }
    Ok(())
}

/// Series with the number of their style.
fn styled(chart: &Chart) -> impl Iterator<Item = (usize, &Series)> {
    chart.series.iter().map(|series| {
        let known = chart.names.iter().position(|name| *name == series.name);
        // What is left is a set of a random band, which comes after all others.
        (known.unwrap_or(chart.names.len()), series)
    })
}

/// A curve of a training run.
#[derive(Debug, Clone, PartialEq)]
pub struct LossSeries {
    /// Name in the legend.
    pub name: String,
    /// (step, loss).
    pub points: Vec<(f64, f64)>,
}

/// Draws loss curves, each averaged over a sliding hundredth of its length, to `path` (SVG) and a PNG beside it.
///
/// # Errors
/// A folder that cannot be written.
pub fn loss_plot(path: &Path, series: &[LossSeries]) -> Result<Vec<PathBuf>> {
    let name = path.file_stem().unwrap_or_default().to_string_lossy();
    let svg = image::draw(|area| draw_loss(area, series)).map_err(|error| ReportError::Plot {
        name: name.into_owned(),
        message: error.to_string(),
    })?;
    image::save(&path.with_extension(""), &svg)
}

fn draw_loss(root: &DrawingArea<SVGBackend<'_>, Shift>, series: &[LossSeries]) -> Drawn<()> {
    root.fill(&WHITE)?;
    let curves: Vec<Vec<(f64, f64)>> = series
        .iter()
        .map(|series| {
            let window = (series.points.len() / 100).max(1);
            series
                .points
                .windows(window)
                .map(|part| {
                    let mean = part.iter().map(|p| p.1).sum::<f64>() / window as f64;
                    (part[window - 1].0, mean.max(1e-6))
                })
                .collect()
        })
        .collect();
    let x = padded(curves.iter().flatten().map(|p| p.0));
    let (lo, hi) = curves
        .iter()
        .flatten()
        .fold((f64::INFINITY, 1e-6), |(lo, hi): (f64, f64), p| {
            (lo.min(p.1), hi.max(p.1))
        });
    let y = if lo < hi {
        lo * 0.8..hi * 1.2
    } else {
        0.1..10.0
    };
    let mut context = ChartBuilder::on(root)
        .caption("Training loss", (FONT, 17 * PX))
        .margin(12 * PX)
        .x_label_area_size(46 * PX)
        .y_label_area_size(64 * PX)
        .build_cartesian_2d(x, y.log_scale())?;
    context
        .configure_mesh()
        .x_desc("step")
        .y_desc("cross-entropy (nats per token, log scale)")
        .axis_desc_style((FONT, 14 * PX))
        .label_style((FONT, 12 * PX))
        .light_line_style(WHITE)
        .draw()?;
    for (index, curve) in curves.into_iter().enumerate() {
        context.draw_series(LineSeries::new(
            curve,
            color(index, "").stroke_width(2 * UNIT),
        ))?;
    }
    Ok(())
}
