//! Which layers ran at which position.

use crate::error::Result;
use crate::image::{self, Drawn, FONT, PX, UNIT};
use plotters::coord::Shift;
use plotters::prelude::*;
use std::path::{Path, PathBuf};

/// Where all rows ran a layer; white is none.
const ALL: RGBColor = RGBColor(0, 90, 150);
const SCALE_WIDTH: u32 = 110 * UNIT;

/// Draws `shares[token][layer]`, the share of rows in 0..1 that ran the layer for that generated token, to `path` (SVG) and
/// a PNG beside it.
///
/// # Errors
/// A folder that cannot be written.
pub fn heatmap(path: &Path, title: &str, shares: &[Vec<f64>]) -> Result<Vec<PathBuf>> {
    image::save(path, |area| draw(area, title, shares))
}

fn draw(root: &DrawingArea<SVGBackend<'_>, Shift>, title: &str, shares: &[Vec<f64>]) -> Drawn {
    root.fill(&WHITE)?;
    let (plot, scale) = root.split_horizontally(image::AREA.0 - SCALE_WIDTH);
    let layers = shares.iter().map(Vec::len).max().unwrap_or(0).max(1);
    let tokens = shares.len().max(1);
    // Cells are centred on whole numbers.
    let x = -0.5..tokens as f64 - 0.5;
    let y = -0.5..layers as f64 - 0.5;
    let mut context = ChartBuilder::on(&plot)
        .caption(title, (FONT, 17 * PX))
        .margin(12 * PX)
        .x_label_area_size(46 * PX)
        .y_label_area_size(54 * PX)
        .build_cartesian_2d(x, y)?;
    let whole = |value: &f64| match value.fract() == 0.0 {
        true => format!("{value:.0}"),
        false => String::new(),
    };
    context
        .configure_mesh()
        .disable_mesh()
        .x_desc("generated token")
        .y_desc("layer")
        .axis_desc_style((FONT, 14 * PX))
        .label_style((FONT, 12 * PX))
        .axis_style(BLACK.stroke_width(UNIT))
        .x_label_formatter(&whole)
        .y_label_formatter(&whole)
        .draw()?;
    let cells = shares.iter().enumerate().flat_map(|(token, shares)| {
        shares.iter().enumerate().map(move |(layer, &share)| {
            let (x, y) = (token as f64, layer as f64);
            // A little over the edge, or the rounding of corners leaves hairlines; the next cell covers it.
            let corners = [(x - 0.5, y - 0.5), (x + 0.54, y + 0.54)];
            Rectangle::new(corners, shade(share).filled())
        })
    });
    context.draw_series(cells)?;
    let style = TextStyle::from((FONT, 13 * PX).into_font()).color(&BLACK);
    scale.draw(&Text::new("share of", (4 * PX, 34 * PX), style.clone()))?;
    scale.draw(&Text::new("answers", (4 * PX, 50 * PX), style.clone()))?;
    for step in 0..=4 {
        let share = f64::from(4 - step) / 4.0;
        let top = 74 * PX + step * 22 * PX;
        let corners = [(4 * PX, top), (26 * PX, top + 22 * PX)];
        scale.draw(&Rectangle::new(corners, shade(share).filled()))?;
        scale.draw(&Rectangle::new(corners, BLACK.stroke_width(1)))?;
        let label = format!("{:.0}%", share * 100.0);
        scale.draw(&Text::new(label, (32 * PX, top + 4 * PX), style.clone()))?;
    }
    Ok(())
}

fn shade(share: f64) -> RGBColor {
    let share = share.clamp(0.0, 1.0);
    let mix = |full: u8| (255.0 + (f64::from(full) - 255.0) * share).round() as u8;
    RGBColor(mix(ALL.0), mix(ALL.1), mix(ALL.2))
}
