//! `report.html`: one file, no network.

use crate::error::Result;
use crate::ledger;
use crate::plot::Plot;
use crate::row::{ReportMeta, ResultRow};
use crate::table::{TableData, facts, legend, tables};
use minijinja::{Environment, context};

const TEMPLATE: &str = include_str!("../assets/report.html.j2");

pub(crate) fn page(meta: &ReportMeta, rows: &[ResultRow], plots: &[Plot]) -> Result<String> {
    let mut environment = Environment::new();
    environment.add_template("report.html", TEMPLATE)?;
    let drawn = |tables: Vec<TableData>| -> Vec<minijinja::Value> {
        let one = |table: TableData| context! {title => table.title, header => table.header, rows => table.rows, notes => table.notes};
        tables.into_iter().map(one).collect()
    };
    let svgs: Vec<&str> = plots.iter().map(|plot| plot.svg.as_str()).collect();
    Ok(environment.get_template("report.html")?.render(context! {
        title => meta.title,
        facts => facts(meta),
        notes => meta.notes,
        // What stands between backticks is code.
        legend => legend(rows).split('`').collect::<Vec<_>>(),
        tables => drawn(tables(rows)),
        ledgers => drawn(ledger::tables(rows)),
        ledger_legend => ledger::LEGEND.split('`').collect::<Vec<_>>(),
        plots => svgs,
    })?)
}
