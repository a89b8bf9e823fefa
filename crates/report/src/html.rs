//! `report.html`: one file, no network.

use crate::error::Result;
use crate::plot::Plot;
use crate::row::{ReportMeta, ResultRow};
use crate::table::{facts, legend, tables};
use minijinja::{Environment, context};

const TEMPLATE: &str = include_str!("../assets/report.html.j2");

pub(crate) fn page(meta: &ReportMeta, rows: &[ResultRow], plots: &[Plot]) -> Result<String> {
    let mut environment = Environment::new();
    environment.add_template("report.html", TEMPLATE)?;
    let tables: Vec<_> = tables(rows)
        .into_iter()
        .map(|table| context! {title => table.title, header => table.header, rows => table.rows, notes => table.notes})
        .collect();
    let svgs: Vec<&str> = plots.iter().map(|plot| plot.svg.as_str()).collect();
    Ok(environment.get_template("report.html")?.render(context! {
        title => meta.title,
        facts => facts(meta),
        notes => meta.notes,
        // What stands between backticks is code.
        legend => legend(rows).split('`').collect::<Vec<_>>(),
        tables,
        plots => svgs,
    })?)
}
