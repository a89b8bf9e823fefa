//! The loss curve of a training run.

use crate::chart::padded;
use crate::error::Result;
use crate::image::{self, Drawn, FONT, PX, UNIT};
use crate::series_style::Style;
use plotters::coord::Shift;
use plotters::prelude::*;
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
    image::save(path, |area| draw(area, series))
}

fn draw(root: &DrawingArea<SVGBackend<'_>, Shift>, series: &[LossSeries]) -> Drawn {
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
            Style::Nth(index).color().stroke_width(2 * UNIT),
        ))?;
    }
    Ok(())
}
