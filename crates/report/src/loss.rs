//! The loss curve of a training run.

use crate::axes::{Axis, Frame, padded};
use crate::error::Result;
use crate::image;
use crate::legend::{self, Entry};
use crate::series_style::Style;
use crate::svg::{self, Anchor, Look};
use std::path::{Path, PathBuf};

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
    image::save(path, &draw(series))
}

fn draw(series: &[LossSeries]) -> String {
    let curves: Vec<Vec<(f64, f64)>> = series.iter().map(smooth).collect();
    let x = padded(curves.iter().flatten().map(|p| p.0));
    let (lo, hi) = curves
        .iter()
        .flatten()
        .fold((f64::INFINITY, 1e-6), |(lo, hi): (f64, f64), p| {
            (lo.min(p.1), hi.max(p.1))
        });
    let y = match lo < hi {
        true => lo * 0.8..hi * 1.2,
        false => 0.1..10.0,
    };
    let (width, height) = (860.0 + legend::WIDTH, 480.0);
    let mut y = Axis::new(y, "cross-entropy (nats per token, log scale)");
    y.is_log = true;
    let frame = Frame {
        left: 66.0,
        top: 40.0,
        width: width - 80.0 - legend::WIDTH,
        height: height - 92.0,
        x: Axis::new(x, "step"),
        y,
    };
    let mut body = frame.draw();
    let middle = (frame.left + frame.width / 2.0, 24.0);
    body += &svg::text("title", middle, Anchor::Middle, "Training loss");
    let mut entries = Vec::new();
    for (index, (series, curve)) in series.iter().zip(&curves).enumerate() {
        let places: Vec<(f64, f64)> = curve.iter().map(|&point| frame.at(point)).collect();
        let stroke = format!("stroke=\"{}\"", Style::Nth(index).color());
        body += &svg::line("line", &stroke, &places);
        entries.push(Entry {
            key: Box::new(move |(x, y)| {
                svg::line("line", &stroke, &[(x - 14.0, y), (x + 14.0, y)])
            }),
            name: series.name.clone(),
        });
    }
    body += &legend::draw(&entries, (frame.right() + 8.0, frame.top + 10.0)).0;
    svg::page(Look::File, (width, height), "Training loss", &body)
}

/// Means over a window that slides along.
fn smooth(series: &LossSeries) -> Vec<(f64, f64)> {
    let window = (series.points.len() / 100).max(1);
    let mean = |part: &[(f64, f64)]| {
        let mean = part.iter().map(|point| point.1).sum::<f64>() / window as f64;
        (part[window - 1].0, mean.max(1e-6))
    };
    series.points.windows(window).map(mean).collect()
}
