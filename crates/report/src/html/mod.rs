//! `report.html`: one file, no network.

mod bars;
mod maps;
mod samples;
mod settings;
mod table;

use crate::error::Result;
use crate::findings::{findings, is_unsteady, overview};
use crate::head::Head;
use crate::legend::Entry;
use crate::paper::Comparison;
use crate::plots::{Plot, Shows};
use crate::row::{Row, sorted};
use crate::svg::Look;
use crate::table::{Kind, Table, legend};
use minijinja::{Environment, Value, context};
use skipbench_record::Run;

const TEMPLATE: &str = include_str!("../../assets/report.html.j2");
const STYLE: &str = include_str!("../../assets/report.css");
const SCRIPT: &str = include_str!("../../assets/report.js");

/// Draws the page. `groups` hold the rows as they are, `plots` what is drawn of them.
pub(crate) fn page(
    runs: &[Run],
    head: &Head,
    groups: &[Vec<Row<'_>>],
    plots: &[Plot],
    papers: &[Comparison<'_>],
) -> Result<String> {
    let mut environment = Environment::new();
    environment.add_template("report.html", TEMPLATE)?;
    let sorted: Vec<Vec<Row<'_>>> = groups.iter().map(|group| sorted(group)).collect();
    let all: Vec<&Row<'_>> = groups.iter().flatten().collect();
    let tables: Vec<Table> = groups
        .iter()
        .map(|group| Table::new(Kind::Main, group))
        .collect();
    let of_group = |(index, rows): (usize, &Vec<Row<'_>>)| {
        let plot = |kind, is_told: fn(&Plot) -> bool| {
            let mut own = plots.iter().filter(|plot| plot.group == Some(index));
            let found = own.find(|plot| plot.kind == kind && is_told(plot));
            found.map(|plot| figure(plot, Look::Page))
        };
        context! {
            id => format!("g{index}"),
            title => tables[index].title,
            findings => findings(rows).iter().map(|text| code(text)).collect::<Vec<_>>(),
            warnings => warnings(rows),
            quality => plot(Shows::Quality, |_| true),
            achieved => plot(Shows::Achieved, has_lines),
            table => table::Sortable::new(rows),
            notes => tables[index].notes,
            speeds => bars::speeds(rows),
            ledger => bars::ledger(rows),
            audit => bars::audit(rows),
        }
    };
    let throughput = plots
        .iter()
        .filter(|plot| plot.kind == Shows::Throughput && batch_sizes(plot) > 1);
    let throughput: Vec<Value> = throughput.map(|plot| figure(plot, Look::Page)).collect();
    let maps = maps::all(&sorted);
    Ok(environment.get_template("report.html")?.render(context! {
        style => STYLE,
        script => SCRIPT,
        title => head.title,
        overview => overview(&all),
        facts => head.facts,
        notes => head.notes,
        missing => head.missing,
        has_speeds => sorted.iter().any(|rows| bars::speeds(rows).is_some()),
        has_ledger => sorted.iter().any(|rows| bars::ledger(rows).is_some()),
        groups => sorted.iter().enumerate().map(of_group).collect::<Vec<_>>(),
        legend => code(&legend(Kind::Main, &tables)),
        throughput => throughput,
        papers => papers.iter().map(beside).collect::<Vec<_>>(),
        maps => maps,
        curves => settings::calibrations(&sorted),
        samples => samples::json(&sorted),
        machines => settings::machines(runs, head, &all),
        settings => settings::experiments(runs),
        cite => settings::citation(&all),
    })?)
}

/// A paper's table with its plots.
fn beside(paper: &Comparison<'_>) -> Value {
    let table = paper.table();
    let plots = paper.plots();
    context! {
        title => table.title,
        header => table.header,
        rows => table.rows,
        notes => table.notes,
        plots => plots.iter().map(|plot| figure(plot, Look::Page)).collect::<Vec<_>>(),
    }
}

/// A plot with its legend as a list.
fn figure(plot: &Plot, look: Look) -> Value {
    context! {
        title => plot.chart.title,
        svg => plot.chart.svg(look),
        legend => plot.chart.legend().iter().map(key).collect::<Vec<_>>(),
    }
}

/// An entry of a legend: its key as an SVG of its own, and its name.
fn key(entry: &Entry) -> Value {
    let drawn = (entry.key)((16.0, 8.0));
    let svg =
        format!("<svg class=\"key\" viewBox=\"0 0 32 16\" aria-hidden=\"true\">{drawn}</svg>");
    context! { svg => svg, name => entry.name }
}

/// Text and code in turns: what stands between backticks is code.
fn code(text: &str) -> Vec<&str> {
    text.split('`').collect()
}

/// What must be seen before any number is believed.
fn warnings(rows: &[Row<'_>]) -> Vec<String> {
    let unsteady = rows.iter().filter(|row| is_unsteady(row)).map(|row| {
        format!(
            "The full network measured {} against itself: the machine was not steady, and speeds of this table are not to be trusted.",
            crate::fields::achieved(row).unwrap_or_default()
        )
    });
    let failed = rows.iter().filter_map(|row| {
        let reason = row.record.failure.as_ref()?;
        Some(format!("{} has no result: {reason}", row.label()))
    });
    unsteady.chain(failed).collect()
}

/// Whether a line goes from one target to another; else the bars say it all.
fn has_lines(plot: &Plot) -> bool {
    let mut series = plot.chart.series.iter();
    series.any(|series| series.points.len() > 1)
}

fn batch_sizes(plot: &Plot) -> usize {
    let points = plot.chart.series.iter().flat_map(|series| &series.points);
    let mut sizes: Vec<u64> = points.map(|point| point.x as u64).collect();
    sizes.sort_unstable();
    sizes.dedup();
    sizes.len()
}
