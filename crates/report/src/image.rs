//! Plots to files: the SVG, and a PNG drawn from it.

use crate::error::{ReportError, Result};
use plotters::coord::Shift;
use plotters::prelude::*;
use resvg::{tiny_skia, usvg};
use skipbench_fs::write_whole;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

/// Drawing units per pixel of the SVG. The backend rounds every position to whole units; a quarter of a pixel is fine
/// enough for smooth lines.
pub(crate) const UNIT: u32 = 4;
/// A pixel in drawing units.
pub(crate) const PX: i32 = UNIT as i32;
/// Width and height of every plot, pixels.
const SIZE: (u32, u32) = (860, 480);
/// Width and height of the area that is drawn on, units.
pub(crate) const AREA: (u32, u32) = (SIZE.0 * UNIT, SIZE.1 * UNIT);
/// Family of the embedded font.
pub(crate) const FONT: &str = "DejaVu Sans";
/// Pixels of the PNG per pixel of the SVG.
const PNG_SCALE: f32 = 2.0;

/// Outcome of drawing.
pub(crate) type Drawn = std::result::Result<(), Box<dyn std::error::Error>>;

/// What is drawn as an SVG of [`SIZE`]: its view box stays in units.
///
/// # Errors
/// What the drawing refuses, under the name of the plot.
pub(crate) fn draw(
    name: &str,
    on: impl FnOnce(&DrawingArea<SVGBackend<'_>, Shift>) -> Drawn,
) -> Result<String> {
    let mut svg = String::new();
    let drawn = on(&SVGBackend::with_string(&mut svg, AREA).into_drawing_area());
    drawn.map_err(|error| failed(name, error.to_string()))?;
    let size = |(width, height): (u32, u32)| format!("width=\"{width}\" height=\"{height}\"");
    Ok(svg.replacen(&size(AREA), &size(SIZE), 1))
}

/// Writes what is drawn to `path` (SVG), and a PNG beside it.
///
/// # Errors
/// A folder that cannot be written.
pub(crate) fn save(
    path: &Path,
    on: impl FnOnce(&DrawingArea<SVGBackend<'_>, Shift>) -> Drawn,
) -> Result<Vec<PathBuf>> {
    let name = path.file_stem().unwrap_or_default().to_string_lossy();
    let svg = draw(&name, on)?;
    let paths = [path.with_extension("svg"), path.with_extension("png")];
    write_whole(&paths[0], svg.as_bytes())?;
    write_whole(&paths[1], &png(&name, &svg)?)?;
    Ok(paths.to_vec())
}

fn failed(name: &str, message: String) -> ReportError {
    ReportError::Plot {
        name: name.to_owned(),
        message,
    }
}

/// The embedded font: plots look the same on a machine that has none.
fn fonts() -> Arc<usvg::fontdb::Database> {
    static FONTS: OnceLock<Arc<usvg::fontdb::Database>> = OnceLock::new();
    Arc::clone(FONTS.get_or_init(|| {
        let mut fonts = usvg::fontdb::Database::new();
        fonts.load_font_data(include_bytes!("../assets/DejaVuSans-latin.ttf").to_vec());
        Arc::new(fonts)
    }))
}

/// The picture of an SVG.
///
/// # Errors
/// A picture for which there is no memory.
pub(crate) fn png(name: &str, svg: &str) -> Result<Vec<u8>> {
    let options = usvg::Options {
        fontdb: fonts(),
        font_family: FONT.to_owned(),
        ..usvg::Options::default()
    };
    let tree =
        usvg::Tree::from_str(svg, &options).map_err(|error| failed(name, error.to_string()))?;
    let pixels = |length: u32| (length as f32 * PNG_SCALE) as u32;
    let mut picture = tiny_skia::Pixmap::new(pixels(SIZE.0), pixels(SIZE.1))
        .ok_or_else(|| failed(name, "no memory for its pixels".to_owned()))?;
    let scale = tiny_skia::Transform::from_scale(PNG_SCALE, PNG_SCALE);
    resvg::render(&tree, scale, &mut picture.as_mut());
    picture
        .encode_png()
        .map_err(|error| failed(name, error.to_string()))
}
