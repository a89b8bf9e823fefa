//! Records to tables, plots and HTML.
//!
//! [`Report::of`] turns runs into rows: scores from answers and references, speedups from timed blocks. [`COLUMNS`] says what
//! there is to know of a row; `results.csv`, `results.parquet`, `table.md`, `table.tex`, `report.html` and the terminal are
//! drawn from it. Nothing but the folders of the runs is needed, and the same runs always give the same files.

mod answers;
mod axes;
mod chart;
mod columns;
mod error;
mod fields;
mod findings;
mod frame;
mod front;
mod head;
mod heatmap;
mod html;
mod image;
mod legend;
mod loss;
mod names;
mod paper;
mod plots;
mod report;
mod row;
mod scores;
mod series_style;
mod svg;
mod table;
mod text;

pub use columns::{COLUMNS, Column, Get};
pub use error::{ReportError, Result};
pub use heatmap::heatmap;
pub use loss::{LossSeries, loss_plot};
pub use report::Report;
pub use row::Row;
pub use scores::{BAND, Scored};
