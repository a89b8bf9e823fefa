//! A plot of series with error bars, a band and a guide.

use crate::axes::{Axis, Frame, range};
use crate::legend::{self, Entry};
use crate::names;
use crate::series_style::{FAINT, Style};
use crate::svg::{self, Anchor, Look, escape};

const BAND: &str = "#E2E2E2";
/// Width and height of a plot in a page: small enough that a phone need not shrink its letters much.
const PAGE: (f64, f64) = (640.0, 400.0);
/// The same where several stand side by side.
const SMALL: (f64, f64) = (320.0, 230.0);
/// Width and least height of a file.
const FILE: (f64, f64) = (860.0, 480.0);

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
    /// The smaller y is the better one: the axis is turned, so that better is up.
    pub(crate) is_lower_better: bool,
    /// A second axis tells y as a share of this.
    pub(crate) whole: Option<f64>,
}

/// A line through points.
pub(crate) struct Series {
    pub(crate) name: String,
    pub(crate) style: Style,
    pub(crate) points: Vec<Point>,
}

/// A point with its error bars.
#[derive(Clone, Default)]
pub(crate) struct Point {
    pub(crate) x: f64,
    pub(crate) y: f64,
    pub(crate) x_range: Option<(f64, f64)>,
    pub(crate) y_range: Option<(f64, f64)>,
    /// What it is, in words; shown where a mouse rests on it.
    pub(crate) about: String,
    /// A name that stands beside it.
    pub(crate) name: Option<String>,
    /// Where a page says more of it: the id of a row.
    pub(crate) link: Option<String>,
    /// Another one is better in everything.
    pub(crate) is_faint: bool,
    /// Its x is not measured: an oracle at its bound, which may lie beyond the axis and stands at its end then.
    pub(crate) is_hollow: bool,
}

impl Series {
    fn is_faint(&self) -> bool {
        self.points.iter().all(|point| point.is_faint)
    }

    fn is_hollow(&self) -> bool {
        self.points.iter().all(|point| point.is_hollow)
    }
}

impl Chart {
    /// The plot as an SVG.
    pub(crate) fn svg(&self, look: Look) -> String {
        let (entries, below) = legend::draw(&self.legend(), (FILE.0 - legend::WIDTH, 52.0));
        let (width, height) = match look {
            Look::Page => PAGE,
            Look::Small => SMALL,
            // As high as its legend, if that is higher.
            Look::File => (FILE.0 - legend::WIDTH, FILE.1.max(below + 60.0)),
        };
        let frame = self.frame(look, (width, height));
        let mut body = frame.draw();
        if let Some(whole) = self.whole {
            body += &shares(&frame, whole);
        }
        body += &self.band_and_guide(&frame);
        // What is greyed lies below what is not.
        for is_faint in [true, false] {
            for series in &self.series {
                body += &draw_series(series, &frame, look, is_faint);
            }
        }
        body += &self.names(&frame);
        if look != Look::File {
            return svg::page(look, (width, height), &self.title, &body);
        }
        let middle = (frame.left + frame.width / 2.0, 24.0);
        body += &svg::text("title", middle, Anchor::Middle, &self.title);
        body += &entries;
        svg::page(look, (FILE.0, height), &self.title, &body)
    }

    /// The entries of a legend.
    pub(crate) fn legend(&self) -> Vec<Entry> {
        let drawn = self.series.iter();
        let shown = drawn.filter(|series| !series.is_faint() && !series.is_hollow());
        let mut entries: Vec<Entry> = shown
            .map(|series| {
                let style = series.style;
                Entry {
                    key: Box::new(move |(x, y)| {
                        let color = style.color();
                        let ends = [(x - 14.0, y), (x + 14.0, y)];
                        let stroke = format!("stroke=\"{color}\"");
                        svg::line(&format!("line {}", style.class()), &stroke, &ends)
                            + &style.marker(style.class(), color, (x, y))
                    }),
                    name: series.name.clone(),
                }
            })
            .collect();
        let faint = self.series.iter().flat_map(|series| &series.points);
        if faint.clone().any(|point| point.is_faint) {
            entries.push(Entry {
                key: Box::new(|at| Style::Nth(0).marker("faint", FAINT, at)),
                name: "grey: another is better in both".to_owned(),
            });
        }
        if self.series.iter().any(Series::is_hollow) {
            entries.push(Entry {
                key: Box::new(|at| Style::Nth(0).marker("hollow", "none", at)),
                name: "hollow: an oracle, which is not timed, at its bound or the edge".to_owned(),
            });
        }
        if !self.band.is_empty() {
            entries.push(Entry {
                key: Box::new(|(x, y)| {
                    let (x, y) = ((x - 14.0, x + 14.0), (y - 5.0, y + 5.0));
                    svg::polygon(
                        "band",
                        BAND,
                        &[(x.0, y.0), (x.1, y.0), (x.1, y.1), (x.0, y.1)],
                    )
                }),
                name: "95% of random sets".to_owned(),
            });
        }
        if let Some((name, _)) = &self.guide {
            entries.push(Entry {
                key: Box::new(|(x, y)| {
                    svg::line(
                        "guide",
                        "stroke=\"#8c8c8c\"",
                        &[(x - 14.0, y), (x + 14.0, y)],
                    )
                }),
                name: name.clone(),
            });
        }
        entries
    }

    fn frame(&self, look: Look, (width, height): (f64, f64)) -> Frame {
        let points = || self.series.iter().flat_map(|series| &series.points);
        let guide = || self.guide.iter().flat_map(|(_, points)| points);
        let ends = |range: Option<(f64, f64)>| range.into_iter().flat_map(|(lo, hi)| [lo, hi]);
        let mut x = range(
            points()
                .filter(|p| !p.is_hollow)
                .map(|p| p.x)
                .chain(guide().map(|p| p.0))
                .chain(self.band.iter().map(|&(x, ..)| x)),
            points().flat_map(|p| ends(p.x_range.or(p.is_hollow.then_some((p.x, p.x))))),
        );
        let mut y = range(
            points()
                .map(|p| p.y)
                .chain(guide().map(|p| p.1))
                .chain(self.band.iter().flat_map(|&(_, lo, hi)| [lo, hi])),
            points().flat_map(|p| ends(p.y_range)),
        );
        if self.from_zero {
            (x.start, y.start) = (0.0, 0.0);
        }
        let top = if look == Look::File { 40.0 } else { 12.0 };
        let right = if self.whole.is_some() { 62.0 } else { 14.0 };
        let mut y = Axis::new(y, &self.y_label);
        y.is_turned = self.is_lower_better;
        Frame {
            left: 66.0,
            top,
            width: width - 66.0 - right,
            height: height - top - 52.0,
            x: Axis::new(x, &self.x_label),
            y,
        }
    }

    fn band_and_guide(&self, frame: &Frame) -> String {
        let mut body = String::new();
        if !self.band.is_empty() {
            let low = self.band.iter().map(|&(x, lo, _)| (x, lo));
            let high = self.band.iter().rev().map(|&(x, _, hi)| (x, hi));
            let mut edge: Vec<(f64, f64)> = low.chain(high).collect();
            if let [(x, lo, hi)] = self.band[..] {
                // One target alone has no width.
                let (left, right) = (x * 0.985, x * 1.015);
                edge = vec![(left, lo), (right, lo), (right, hi), (left, hi)];
            }
            let edge: Vec<(f64, f64)> = edge.into_iter().map(|point| frame.at(point)).collect();
            body += &format!(
                "<g><title>95% of random sets</title>{}</g>",
                svg::polygon("band", BAND, &edge)
            );
        }
        if let Some((name, points)) = &self.guide {
            let points: Vec<(f64, f64)> = points.iter().map(|&point| frame.at(point)).collect();
            body += &format!(
                "<g><title>{}</title>{}</g>",
                escape(name),
                svg::line("guide", "stroke=\"#8c8c8c\"", &points)
            );
        }
        body
    }

    /// The names of points, where there is room for them.
    fn names(&self, frame: &Frame) -> String {
        let points = self.series.iter().flat_map(|series| &series.points);
        let drawn = points.filter(|point| point.x.is_finite() && point.y.is_finite());
        let markers: Vec<(f64, f64)> = drawn.clone().map(|p| frame.at((p.x, p.y))).collect();
        let wanted: Vec<((f64, f64), &str)> = drawn
            .filter_map(|point| Some((frame.at((point.x, point.y)), point.name.as_deref()?)))
            .collect();
        let edges = (frame.left, frame.top, frame.right(), frame.bottom());
        names::place(&wanted, &markers, edges)
            .into_iter()
            .map(|(place, name)| svg::text("name", place, Anchor::Start, name))
            .collect()
    }
}

/// The second axis: shares of a value.
fn shares(frame: &Frame, whole: f64) -> String {
    let mut body = String::new();
    let (low, high) = (frame.y.range.start / whole, frame.y.range.end / whole);
    let step = match high - low {
        span if span > 0.6 => 0.2,
        span if span > 0.3 => 0.1,
        span if span > 0.12 => 0.05,
        _ => 0.02,
    };
    let mut index = (low / step).ceil() as i64;
    while index as f64 * step <= high && body.len() < 4096 {
        let share = index as f64 * step;
        let y = frame.at((frame.x.range.start, share * whole)).1;
        let ends = [(frame.right(), y), (frame.right() + 4.0, y)];
        body += &svg::line("frame", "stroke=\"#1a1a1a\"", &ends);
        let at = (frame.right() + 7.0, y + 4.0);
        body += &svg::text("tick", at, Anchor::Start, &format!("{:.0}%", 100.0 * share));
        index += 1;
    }
    let beside = (frame.right() + 54.0, frame.top + frame.height / 2.0);
    body + &svg::upright("axis second", beside, "share of the full network's")
}

/// The greyed part of a series, or the rest of it.
fn draw_series(series: &Series, frame: &Frame, look: Look, is_faint: bool) -> String {
    let mut body = String::new();
    let points = || {
        let points = series.points.iter();
        points.filter(|point| point.x.is_finite() && point.y.is_finite())
    };
    let color = series.style.color();
    let class = series.style.class();
    if series.is_faint() == is_faint && series.points.len() > 1 {
        let places: Vec<(f64, f64)> = points().map(|p| frame.at((p.x, p.y))).collect();
        let faint = if is_faint { " faintline" } else { "" };
        let stroke = format!("stroke=\"{}\"", if is_faint { FAINT } else { color });
        body += &svg::line(&format!("line {class}{faint}"), &stroke, &places);
    }
    for point in points().filter(|point| point.is_faint == is_faint) {
        let (class, fill) = match (is_faint, point.is_hollow) {
            (true, _) => ("faint", FAINT),
            (false, true) => ("hollow", "none"),
            (false, false) => (class, color),
        };
        let stroke = format!("stroke=\"{}\"", if is_faint { FAINT } else { color });
        let mut drawn = format!("<title>{}</title>", escape(&point.about));
        let vertical = point.y_range.map(|(lo, hi)| [(point.x, lo), (point.x, hi)]);
        let horizontal = point.x_range.map(|(lo, hi)| [(lo, point.y), (hi, point.y)]);
        for bar in [vertical, horizontal].into_iter().flatten() {
            let bar = bar.map(|end| frame.at(end));
            drawn += &svg::line(&format!("bar {class}"), &stroke, &bar);
        }
        drawn += &series
            .style
            .marker(class, fill, frame.at((point.x, point.y)));
        body += &match (&point.link, look) {
            (Some(row), Look::Page) => format!(
                "<a href=\"#{row}\" aria-label=\"{}\">{drawn}</a>",
                escape(&point.about)
            ),
            _ => format!("<g>{drawn}</g>"),
        };
    }
    body
}
