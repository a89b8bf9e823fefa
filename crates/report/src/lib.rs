//! Results to tables, plots and HTML.
//!
//! [`write()`] turns the rows of a run into `results.csv`, `results.parquet`, `table.md`, `plots/*.svg` with a `.png`
//! beside each, and a self-contained `report.html`. Every file is written under a temporary name and renamed, so that
//! a cut-off leaves no half file.

mod error;
mod frame;
mod heatmap;
mod html;
mod image;
mod ledger;
mod legend;
mod plot;
mod row;
mod series_style;
mod table;

pub use error::{ReportError, Result};
pub use heatmap::heatmap;
pub use plot::{LossSeries, loss_plot};
pub use row::{MetricValue, ReportMeta, ResultRow, TokenCost};
pub use table::{markdown_table, terminal_table};

use std::path::{Path, PathBuf};

/// Writes everything; gives the paths.
///
/// # Errors
/// A folder that cannot be written.
pub fn write(dir: &Path, meta: &ReportMeta, rows: &[ResultRow]) -> Result<Vec<PathBuf>> {
    let plots_dir = dir.join("plots");
    std::fs::create_dir_all(&plots_dir).map_err(ReportError::io(&plots_dir))?;
    let mut paths = frame::write(dir, rows)?;
    let plots = plot::all(rows)?;
    for plot in &plots {
        paths.extend(image::save(&plots_dir.join(&plot.name), &plot.svg)?);
    }
    let table = dir.join("table.md");
    write_whole(&table, table::document(meta, rows).as_bytes())?;
    let html = dir.join("report.html");
    write_whole(&html, html::page(meta, rows, &plots)?.as_bytes())?;
    paths.extend([table, html]);
    Ok(paths)
}

/// Writes to a temporary name in the same folder, then renames.
fn write_whole(path: &Path, bytes: &[u8]) -> Result<()> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".tmp");
    let temporary = path.with_file_name(name);
    std::fs::write(&temporary, bytes).map_err(ReportError::io(&temporary))?;
    std::fs::rename(&temporary, path).map_err(ReportError::io(path))
}
