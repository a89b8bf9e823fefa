//! A plot of series with error bars, a band and a guide.

use crate::image::{AREA, Drawn, FONT, PX, UNIT};
use crate::legend::Legend;
use crate::series_style::Style;
use plotters::coord::Shift;
use plotters::prelude::*;
use std::ops::Range;

const BAND_COLOR: RGBColor = RGBColor(226, 226, 226);
const GUIDE_COLOR: RGBColor = RGBColor(160, 160, 160);
const LEGEND_WIDTH: u32 = 240 * UNIT;

/// What is drawn.
#[derive(Default)]
pub(crate) struct Chart {
    pub(crate) title: String,
    pub(crate) x_label: String,
    pub(crate) y_label: String,
    pub(crate) series: Vec<Series>,
    /// A light line for reference: its name and points.
    pub(crate) guide: Option<(String, Vec<(f64, f64)>)>,
    /// The range in which random sets lie: (x, low, high).
    pub(crate) band: Vec<(f64, f64, f64)>,
    /// Both axes begin at zero.
    pub(crate) from_zero: bool,
}

/// A line through points.
pub(crate) struct Series {
    pub(crate) name: String,
    pub(crate) style: Style,
    pub(crate) points: Vec<Point>,
}

/// A point with its error bars.
#[derive(Clone, Copy)]
pub(crate) struct Point {
    pub(crate) x: f64,
    pub(crate) y: f64,
    pub(crate) x_range: Option<(f64, f64)>,
    pub(crate) y_range: Option<(f64, f64)>,
}

pub(crate) fn draw(root: &DrawingArea<SVGBackend<'_>, Shift>, chart: &Chart) -> Drawn {
    root.fill(&WHITE)?;
    let (plot, legend) = root.split_horizontally(AREA.0 - LEGEND_WIDTH);
    let points = || chart.series.iter().flat_map(|series| &series.points);
    let guide = || chart.guide.iter().flat_map(|(_, points)| points);
    let ends = |range: Option<(f64, f64)>| range.into_iter().flat_map(|(lo, hi)| [lo, hi]);
    let x = axis(
        points()
            .map(|p| p.x)
            .chain(guide().map(|p| p.0))
            .chain(chart.band.iter().map(|&(x, ..)| x)),
        points().flat_map(|p| ends(p.x_range)),
    );
    let y = axis(
        points()
            .map(|p| p.y)
            .chain(guide().map(|p| p.1))
            .chain(chart.band.iter().flat_map(|&(_, lo, hi)| [lo, hi])),
        points().flat_map(|p| ends(p.y_range)),
    );
    let (x, y) = match chart.from_zero {
        true => (0.0..x.end, 0.0..y.end),
        false => (x, y),
    };
    let mut context = ChartBuilder::on(&plot)
        .caption(&chart.title, (FONT, 17 * PX))
        .margin(12 * PX)
        .x_label_area_size(46 * PX)
        .y_label_area_size(64 * PX)
        .build_cartesian_2d(x, y)?;
    let digits = |value: &f64| match value.abs() {
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
        let style = GUIDE_COLOR.stroke_width(UNIT);
        context.draw_series(DashedLineSeries::new(
            line.iter().copied(),
            6 * PX,
            4 * PX,
            style,
        ))?;
    }
    for series in &chart.series {
        let color = series.style.color();
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
                EmptyElement::at((point.x, point.y)) + series.style.marker((0, 0)),
            ))?;
        }
    }
    draw_legend(&legend, chart)
}

fn draw_legend(area: &DrawingArea<SVGBackend<'_>, Shift>, chart: &Chart) -> Drawn {
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
    for (series, y) in chart.series.iter().zip(&mut ys) {
        let color = series.style.color();
        area.draw(&PathElement::new(
            vec![(6 * PX, y), (34 * PX, y)],
            color.stroke_width(2 * UNIT),
        ))?;
        area.draw(&series.style.marker((20 * PX, y)))?;
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
        let grey = GUIDE_COLOR.stroke_width(UNIT);
        for start in [6 * PX, 16 * PX, 26 * PX] {
            let dash = vec![(start, y), (start + 6 * PX, y)];
            area.draw(&PathElement::new(dash, grey))?;
        }
    }
    Ok(())
}

/// Of the width of all values, how far the ends of intervals may widen an axis. One that is hardly known would squeeze all
/// others; its bar ends at the edge.
const WIDENED: f64 = 0.25;

/// The range of an axis: all values, and the ends of their intervals as far as they are not far away.
fn axis(values: impl Iterator<Item = f64>, ends: impl Iterator<Item = f64>) -> Range<f64> {
    let values: Vec<f64> = values.collect();
    let inner = padded(values.iter().copied());
    let room = WIDENED * (inner.end - inner.start);
    let ends = ends.map(|end| end.clamp(inner.start - room, inner.end + room));
    padded(values.iter().copied().chain(ends))
}

/// A range that holds all values with a margin, and is never empty.
pub(crate) fn padded(values: impl Iterator<Item = f64>) -> Range<f64> {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interval_that_says_nothing_does_not_squeeze_the_rest() {
        let points = [1.0, 2.0];
        let near = axis(points.into_iter(), [0.9, 2.1].into_iter());
        assert!(
            near.start < 0.9 && (2.1..2.3).contains(&near.end),
            "{near:?}"
        );
        let far = axis(points.into_iter(), [0.9, 16.0, f64::NAN].into_iter());
        assert!(far.start < 0.9 && (2.1..2.6).contains(&far.end), "{far:?}");
        assert_eq!(axis([].into_iter(), [].into_iter()), 0.0..1.0);
    }
}
