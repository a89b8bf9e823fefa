//! Plots to files: the SVG, and a PNG drawn from it.

use crate::error::{ReportError, Result};
use crate::svg::FONT;
use resvg::{tiny_skia, usvg};
use skipbench_fs::write_whole;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

/// Pixels of the PNG per pixel of the SVG.
const PNG_SCALE: f32 = 2.0;

/// Writes a drawing to `path` (SVG), and a PNG beside it.
///
/// # Errors
/// A folder that cannot be written.
pub(crate) fn save(path: &Path, svg: &str) -> Result<Vec<PathBuf>> {
    let name = path.file_stem().unwrap_or_default().to_string_lossy();
    let paths = [path.with_extension("svg"), path.with_extension("png")];
    write_whole(&paths[0], svg.as_bytes())?;
    write_whole(&paths[1], &png(&name, svg)?)?;
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
    let pixels = |length: f32| (length * PNG_SCALE).round() as u32;
    let size = tree.size();
    let mut picture = tiny_skia::Pixmap::new(pixels(size.width()), pixels(size.height()))
        .ok_or_else(|| failed(name, "no memory for its pixels".to_owned()))?;
    let scale = tiny_skia::Transform::from_scale(PNG_SCALE, PNG_SCALE);
    resvg::render(&tree, scale, &mut picture.as_mut());
    picture
        .encode_png()
        .map_err(|error| failed(name, error.to_string()))
}
