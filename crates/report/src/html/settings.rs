//! What a reader needs to judge a report and to make it again: calibration, machines, settings, how to cite.

use super::key;
use crate::chart::{Chart, Point, Series};
use crate::findings::resolution;
use crate::head::Head;
use crate::row::Row;
use crate::series_style::Style;
use crate::svg::Look;
use minijinja::{Value, context};
use skipbench_machine::{Finding, Machine};
use skipbench_record::{Binary, Run};

/// Curves that a report shows.
const MOST_CURVES: usize = 60;

/// What calibration tried for each strategy and what it found, as small plots.
pub(super) fn calibrations(groups: &[Vec<Row<'_>>]) -> Vec<Value> {
    let mut seen = Vec::new();
    let mut curves = Vec::new();
    for row in groups.iter().flatten() {
        let Some(executed) = &row.record.executed else {
            continue;
        };
        let calibration = &executed.calibration;
        let known = (row.label(), row.group().0.to_owned(), calibration);
        if calibration.is_empty() || seen.contains(&known) || curves.len() == MOST_CURVES {
            continue;
        }
        let (setting, outcome) = calibration
            .of
            .split_once(": ")
            .unwrap_or(("setting", "outcome"));
        let mut points: Vec<Point> = calibration
            .points
            .iter()
            .map(|&(x, y)| Point {
                x,
                y,
                about: format!("{setting} {x:.4}: {y:.3} {outcome}"),
                ..Point::default()
            })
            .collect();
        points.sort_by(|a, b| a.x.total_cmp(&b.x));
        let ends = points.first().zip(points.last()).map(|(a, b)| (a.x, b.x));
        let target = row.target().map(|target| match outcome {
            "layers" => row.record.model.n_layers as f64 / target,
            _ => target,
        });
        let guide = target
            .zip(ends)
            .map(|(y, (lo, hi))| ("what was asked for".to_owned(), vec![(lo, y), (hi, y)]));
        let found = match executed.threshold {
            Some(threshold) => format!("threshold {threshold:.4}"),
            None => executed.label.clone(),
        };
        let chart = Chart {
            title: format!("Calibration of {}", row.label()),
            x_label: setting.to_owned(),
            y_label: outcome.to_owned(),
            series: vec![Series {
                name: "tried".to_owned(),
                style: Style::Nth(0),
                points,
            }],
            guide,
            ..Chart::default()
        };
        curves.push(context! {
            name => format!("{}, {}", row.label(), row.record.task.name),
            found,
            svg => chart.svg(Look::Small),
            legend => chart.legend().iter().map(key).collect::<Vec<_>>(),
        });
        seen.push(known);
    }
    curves
}

/// Every machine with what it could be trusted with, and the noise that its full networks showed.
pub(super) fn machines(runs: &[Run], head: &Head, rows: &[&Row<'_>]) -> Vec<Value> {
    let of = |(index, (name, machine)): (usize, &(String, String))| {
        let own = rows.iter().find(|row| row.machine == index + 1);
        let findings = own.and_then(|row| findings(runs, &row.record.measured().machine));
        let full = rows
            .iter()
            .filter(|row| row.machine == index + 1 && row.is_full());
        let noise: Vec<(String, String)> = full
            .filter_map(|row| {
                let share = format!("{:.1}%", 100.0 * resolution(row)?);
                let at = format!(
                    "{}, {}, {}",
                    row.record.task.name,
                    row.setting(),
                    row.record.model.name
                );
                Some((at, share))
            })
            .collect();
        context! { name, machine, noise, findings }
    };
    head.machines.iter().enumerate().map(of).collect()
}

/// What a run found that began on this machine.
fn findings(runs: &[Run], machine: &Machine) -> Option<Vec<Finding>> {
    runs.iter().find_map(|run| {
        let written = &run.info.written;
        let began = written.device.as_ref()?;
        let is_same = began.differences(machine).is_empty();
        Some(
            written
                .checkup
                .as_ref()
                .filter(|_| is_same)?
                .findings(began),
        )
    })
}

/// The settings of every run, as a file that runs it again.
pub(super) fn experiments(runs: &[Run]) -> Vec<Value> {
    let of = |run: &Run| {
        let text = serde_json::to_string_pretty(&run.info.experiment).unwrap_or_default();
        context! {
            name => run.info.name,
            seed => run.info.seed,
            commit => run.info.written.git_commit,
            text,
        }
    };
    runs.iter().map(of).collect()
}

/// What to cite for the program; the methods have papers of their own.
pub(super) fn citation(rows: &[&Row<'_>]) -> String {
    let binary: Option<&Binary> = rows.first().map(|row| &row.record.measured().binary);
    let version = binary.map_or("", |binary| &binary.version);
    let commit = binary.and_then(|binary| binary.commit.as_deref());
    let commit = commit.map_or(String::new(), |commit| format!(", commit {commit}"));
    format!(
        "@software{{skipbench,\n  title = {{skipbench: comparing layer-skipping strategies for decoder-only language models}},\n  \
         version = {{{version}{commit}}}\n}}\n\n@misc{{liu2024accelerating,\n  \
         title = {{Accelerating Inference in Large Language Models with a Unified Layer Skipping Strategy}},\n  \
         author = {{Liu, Yijin and Meng, Fandong and Zhou, Jie}},\n  year = {{2024}},\n  eprint = {{2404.06954}},\n  \
         archivePrefix = {{arXiv}}\n}}\n"
    )
}
