//! Which layers ran at which position.

use crate::axes::{Axis, Frame};
use crate::error::Result;
use crate::image;
use crate::svg::{self, Anchor, Look};
use std::fmt::Write;
use std::path::{Path, PathBuf};

/// Where all rows ran a layer.
const ALL: &str = "#005A96";
/// Shades between none and all.
const SHADES: usize = 8;

/// Draws `shares[token][layer]`, the share of rows in 0..1 that ran the layer for that generated token, to `path` (SVG) and
/// a PNG beside it.
///
/// # Errors
/// A folder that cannot be written.
pub fn heatmap(path: &Path, title: &str, shares: &[Vec<f64>]) -> Result<Vec<PathBuf>> {
    image::save(path, &draw(Look::File, title, shares))
}

/// In a page it is small: several stand side by side.
pub(crate) fn draw(look: Look, title: &str, shares: &[Vec<f64>]) -> String {
    let layers = shares.iter().map(Vec::len).max().unwrap_or(0).max(1);
    let tokens = shares.len().max(1);
    let (width, height) = match look {
        Look::Page | Look::Small => (320.0, 230.0),
        Look::File => (860.0, 480.0),
    };
    let (top, right) = match look {
        Look::Page | Look::Small => (8.0, 10.0),
        Look::File => (40.0, 120.0),
    };
    // Cells are centred on whole numbers.
    let frame = Frame {
        left: 66.0,
        top,
        width: width - 66.0 - right,
        height: height - top - 52.0,
        x: Axis::new(-0.5..tokens as f64 - 0.5, "generated token"),
        y: Axis::new(-0.5..layers as f64 - 0.5, "layer"),
    };
    let mut body = frame.draw();
    body += &cells(&frame, shares);
    if look == Look::File {
        let middle = (frame.left + frame.width / 2.0, 24.0);
        body += &svg::text("title", middle, Anchor::Middle, title);
        body += &scale(frame.right() + 16.0);
    }
    svg::page(look, (width, height), title, &body)
}

/// A path for each shade, so that a large map stays small; neighbours of a row that have the same shade are one piece.
fn cells(frame: &Frame, shares: &[Vec<f64>]) -> String {
    let shade = |share: f64| (share.clamp(0.0, 1.0) * SHADES as f64).round() as usize;
    let layers = shares.iter().map(Vec::len).max().unwrap_or(0);
    let mut paths = vec![String::new(); SHADES + 1];
    for layer in 0..layers {
        let of = |token: &usize| shares[*token].get(layer).map_or(0, |&share| shade(share));
        let tokens: Vec<usize> = (0..shares.len()).collect();
        for run in tokens.chunk_by(|a, b| of(a) == of(b)) {
            let (first, last) = (run[0] as f64, run[run.len() - 1] as f64);
            let (left, bottom) = frame.at((first - 0.5, layer as f64 - 0.5));
            let (right, top) = frame.at((last + 0.5, layer as f64 + 0.5));
            let (w, h) = (right - left, bottom - top);
            let [left, top, w, h, back] = [left, top, w, h, -w].map(svg::px);
            // Writing to a string does not fail.
            let _ = write!(paths[of(&run[0])], "M{left} {top}h{w}v{h}h{back}z");
        }
    }
    let drawn = paths.iter().enumerate().skip(1);
    drawn
        .filter(|(_, path)| !path.is_empty())
        .map(|(shade, path)| {
            let opacity = shade as f64 / SHADES as f64;
            format!(
                "<path class=\"heat\" fill=\"{ALL}\" fill-opacity=\"{opacity:.3}\" d=\"{path}\"/>"
            )
        })
        .collect()
}

/// What the shades mean.
fn scale(left: f64) -> String {
    let mut body = svg::text("key", (left, 44.0), Anchor::Start, "share of");
    body += &svg::text("key", (left, 60.0), Anchor::Start, "answers");
    for step in 0..=4u32 {
        let share = f64::from(4 - step) / 4.0;
        let top = svg::px(74.0 + 22.0 * f64::from(step));
        body += &format!(
            "<rect x=\"{left}\" y=\"{top}\" width=\"22\" height=\"22\" fill=\"{ALL}\" fill-opacity=\"{share}\" stroke=\"#1a1a1a\" stroke-width=\"0.5\"/>"
        );
        let at = (left + 30.0, 89.0 + 22.0 * f64::from(step));
        body += &svg::text("key", at, Anchor::Start, &format!("{:.0}%", share * 100.0));
    }
    body
}
