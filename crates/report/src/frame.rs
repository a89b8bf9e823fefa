//! `results.csv` and `results.parquet`.

use crate::error::{ReportError, Result};
use crate::row::{MetricValue, ResultRow};
use crate::write_whole;
use polars::prelude::*;
use std::path::{Path, PathBuf};

/// Metrics that always have columns, so that results of different experiments can be stacked.
const METRICS: [&str; 6] = ["bleu", "chrf", "rouge1", "rouge2", "rougeL", "rougeLsum"];

pub(crate) fn write(dir: &Path, rows: &[ResultRow]) -> Result<Vec<PathBuf>> {
    let mut frame = frame(rows)?;
    let (csv, parquet) = (dir.join("results.csv"), dir.join("results.parquet"));
    let mut bytes = Vec::new();
    CsvWriter::new(&mut bytes).finish(&mut frame)?;
    write_whole(&csv, &bytes)?;
    let mut bytes = Vec::new();
    ParquetWriter::new(&mut bytes).finish(&mut frame)?;
    write_whole(&parquet, &bytes)?;
    Ok(vec![csv, parquet])
}

fn frame(rows: &[ResultRow]) -> Result<DataFrame> {
    let text = |name: &str, of: fn(&ResultRow) -> &str| {
        Column::new(name.into(), rows.iter().map(of).collect::<Vec<_>>())
    };
    let count = |name: &str, of: fn(&ResultRow) -> u64| {
        Column::new(name.into(), rows.iter().map(of).collect::<Vec<_>>())
    };
    let number = |name: &str, of: fn(&ResultRow) -> Option<f64>| {
        Column::new(name.into(), rows.iter().map(of).collect::<Vec<_>>())
    };
    let mut columns = vec![
        text("experiment", |row| &row.experiment),
        text("model", |row| &row.model),
        text("task", |row| &row.task),
        text("strategy", |row| &row.strategy),
        text("variant", |row| &row.variant),
        text("kv_fill", |row| &row.kv_fill),
        count("batch_size", |row| row.batch_size as u64),
        count("beams", |row| row.beams as u64),
        number("target_speedup", |row| row.target_speedup),
        count("n_layers", |row| row.n_layers as u64),
        number("layers_per_token", |row| Some(row.layers_per_token)),
        number("bound_speedup", |row| Some(row.bound_speedup)),
        number("achieved_speedup", |row| row.achieved_speedup),
        number("achieved_lo", |row| row.achieved_lo),
        number("achieved_hi", |row| row.achieved_hi),
        number("target_error", |row| row.target_error),
        number("ttft_ms", |row| row.ttft_ms),
        number("tpot_ms", |row| row.tpot_ms),
        number("tokens_per_s", |row| row.tokens_per_s),
        number("paper_tokens_per_s", |row| row.paper_tokens_per_s),
        number("mflops_per_token", |row| Some(row.cost.mflops)),
        number("mbytes_per_token", |row| Some(row.cost.mbytes)),
        number("layers_mbytes", |row| Some(row.cost.layers_mbytes)),
        number("kv_read_mbytes", |row| Some(row.cost.kv_read_mbytes)),
        number("head_mbytes", |row| Some(row.cost.head_mbytes)),
        number("checks_mbytes", |row| Some(row.cost.checks_mbytes)),
        number("kv_fill_mbytes", |row| Some(row.cost.kv_fill_mbytes)),
        number("draft_mbytes", |row| Some(row.cost.draft_mbytes)),
        number("verify_mbytes", |row| Some(row.cost.verify_mbytes)),
        number("unexplained", |row| row.unexplained),
        number("wasted_row_layers", |row| Some(row.wasted_row_layers)),
        number("holes_read_per_token", |row| Some(row.holes_read_per_token)),
        number("kv_distance", |row| row.kv_distance),
        number("acceptance", |row| row.acceptance),
        number("tokens_per_verification", |row| row.tokens_per_verification),
        number("draft_time", |row| row.draft_time),
        number("same_as_full", |row| row.same_as_full),
        count("peak_kv_bytes", |row| row.peak_kv_bytes),
        count("n_prompts", |row| row.n_prompts as u64),
        count("n_failed", |row| row.n_failed as u64),
    ];
    let metrics = metric_names(rows);
    let metric = |name: &str, column: String, of: fn(&MetricValue) -> Option<f64>| {
        let values: Vec<Option<f64>> = rows
            .iter()
            .map(|row| {
                row.metrics
                    .iter()
                    .find(|(metric, _)| metric == name)
                    .and_then(|(_, value)| of(value))
            })
            .collect();
        Column::new(column.into(), values)
    };
    for name in &metrics {
        columns.push(metric(name, name.clone(), |value| Some(value.score)));
        columns.push(metric(name, format!("{name}_lo"), |value| Some(value.lo)));
        columns.push(metric(name, format!("{name}_hi"), |value| Some(value.hi)));
    }
    columns.push(text("label", |row| &row.label));
    columns.push(text("executed", |row| &row.executed));
    for name in &metrics {
        columns.push(metric(name, format!("{name}_p"), |value| value.p_value));
    }
    columns.push(text("note", |row| row.note.as_deref().unwrap_or_default()));
    DataFrame::new(rows.len(), columns).map_err(ReportError::from)
}

fn metric_names(rows: &[ResultRow]) -> Vec<String> {
    let mut names: Vec<String> = METRICS.map(str::to_owned).to_vec();
    for (name, _) in rows.iter().flat_map(|row| &row.metrics) {
        if !names.contains(name) {
            names.push(name.clone());
        }
    }
    names
}
