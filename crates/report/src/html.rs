//! `report.html`: one file, no network.

use crate::error::Result;
use crate::head::Head;
use crate::plots::Plot;
use crate::table::{Kind, Table, legend};
use minijinja::{Environment, Value, context};

const TEMPLATE: &str = include_str!("../assets/report.html.j2");

pub(crate) fn page(head: &Head, main: &[Table], cost: &[Table], plots: &[Plot]) -> Result<String> {
    let mut environment = Environment::new();
    environment.add_template("report.html", TEMPLATE)?;
    let drawn = |tables: &[Table]| -> Vec<Value> {
        let one = |table: &Table| context! {title => table.title, header => table.header, rows => table.rows, notes => table.notes};
        tables.iter().map(one).collect()
    };
    // What stands between backticks is code.
    let explained = |kind, tables: &[Table]| {
        let legend = legend(kind, tables);
        legend.split('`').map(str::to_owned).collect::<Vec<_>>()
    };
    let svgs: Vec<&str> = plots.iter().map(|plot| plot.svg.as_str()).collect();
    Ok(environment.get_template("report.html")?.render(context! {
        title => head.title,
        facts => head.facts,
        notes => head.notes,
        legend => explained(Kind::Main, main),
        tables => drawn(main),
        ledgers => drawn(cost),
        ledger_legend => explained(Kind::Cost, cost),
        plots => svgs,
    })?)
}
