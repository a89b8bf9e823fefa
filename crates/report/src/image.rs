//! Plots to files: the SVG, and a PNG drawn from it.

use crate::error::{ReportError, Result};
use crate::write_whole;
use plotters::coord::Shift;
use plotters::prelude::*;
use resvg::{tiny_skia, usvg};
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

/// What is drawn as an SVG of [`SIZE`]: its view box stays in units.
pub(crate) fn draw<E>(
    on: impl FnOnce(&DrawingArea<SVGBackend<'_>, Shift>) -> std::result::Result<(), E>,
) -> std::result::Result<String, E> {
    let mut svg = String::new();
    on(&SVGBackend::with_string(&mut svg, AREA).into_drawing_area())?;
    let size = |(width, height): (u32, u32)| format!("width=\"{width}\" height=\"{height}\"");
    Ok(svg.replacen(&size(AREA), &size(SIZE), 1))
}

/// Writes `base.svg` and `base.png`.
pub(crate) fn save(base: &Path, svg: &str) -> Result<Vec<PathBuf>> {
    let with = |extension: &str| {
        let mut name = base.as_os_str().to_owned();
        name.push(extension);
        PathBuf::from(name)
    };
    let (svg_path, png_path) = (with(".svg"), with(".png"));
    write_whole(&svg_path, svg.as_bytes())?;
    write_whole(&png_path, &png(svg, &base.to_string_lossy())?)?;
    Ok(vec![svg_path, png_path])
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

fn png(svg: &str, name: &str) -> Result<Vec<u8>> {
    let fail = |message: String| ReportError::Plot {
        name: name.to_owned(),
        message,
    };
    let options = usvg::Options {
        fontdb: fonts(),
        font_family: FONT.to_owned(),
        ..usvg::Options::default()
    };
    let tree = usvg::Tree::from_str(svg, &options).map_err(|error| fail(error.to_string()))?;
    let (width, height) = (
        (SIZE.0 as f32 * PNG_SCALE) as u32,
        (SIZE.1 as f32 * PNG_SCALE) as u32,
    );
    let mut pixels = tiny_skia::Pixmap::new(width, height)
        .ok_or_else(|| fail("no memory for its pixels".to_owned()))?;
    let scale = tiny_skia::Transform::from_scale(PNG_SCALE, PNG_SCALE);
    resvg::render(&tree, scale, &mut pixels.as_mut());
    pixels.encode_png().map_err(|error| fail(error.to_string()))
}
