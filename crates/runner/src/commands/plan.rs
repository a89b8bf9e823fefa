//! `skipbench plan`.

use super::print_json;
use crate::experiment::{ExperimentArgs, ShardArgs};
use crate::models::Download;
use crate::plan::{Cell, Plan, Weights};
use crate::preview::{self, TaskPreview};
use crate::progress::Spell;
use clap::Args;
use serde_json::{Value, json};
use skipbench_record::grouped;
use std::io::Write;
use std::process::ExitCode;
use std::time::Duration;

/// Arguments of `skipbench plan`.
#[derive(Debug, Args)]
pub struct PlanArgs {
    #[command(flatten)]
    experiment: ExperimentArgs,
    #[command(flatten)]
    share: ShardArgs,
    /// Do not load the models to estimate how long the run takes
    #[arg(long)]
    no_estimate: bool,
    /// Print one JSON value
    #[arg(long)]
    json: bool,
}

/// Lists what would run: the cells, what each task asks, what looks like a slip, and about how long it takes.
///
/// # Errors
/// Whatever [`Plan::of`] refuses, a tokenizer or a model that cannot be loaded.
pub fn run(args: PlanArgs) -> anyhow::Result<ExitCode> {
    let mut plan = Plan::of(&args.experiment, Weights::LookedAt)?;
    let shard = args.share.shard;
    if let Some(shard) = shard {
        plan.keep(shard);
    }
    let tasks = preview::tasks(&plan)?;
    let warnings = preview::all_warnings(&tasks);
    let downloads = plan.models.iter().filter_map(|m| m.download.as_ref());
    let downloads: Vec<&Download> = downloads.collect();
    let estimate = match args.no_estimate {
        true => None,
        // A machine that can plan need not be one that can run.
        false => Some(preview::estimate(&plan).map_err(|error| format!("{error:#}"))),
    };
    if args.json {
        let cells: Vec<Value> = plan.cells.iter().map(cell_json).collect::<Result<_, _>>()?;
        print_json(&json!({
            "experiment": plan.experiment.name,
            "out": plan.experiment.out_dir(),
            "shard": shard.map(|shard| shard.to_string()),
            "cells": cells,
            "tasks": tasks,
            "warnings": warnings,
            "downloads": downloads,
            "estimate": estimate.and_then(Result::ok).map(|estimate| json!({
                "seconds": estimate.total_s(),
                "quality_s": estimate.quality_s,
                "timing_s": estimate.timing_s,
            })),
        }))?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut out = std::io::stdout().lock();
    for cell in &plan.cells {
        writeln!(out, "{}", cell_line(cell))?;
    }
    for task in &tasks {
        writeln!(out, "\n{}", task_text(task))?;
    }
    writeln!(out)?;
    for warning in &warnings {
        writeln!(out, "Warning: {warning}")?;
    }
    for download in &downloads {
        writeln!(out, "{}", download.text())?;
    }
    let shard = shard.map_or_else(String::new, |shard| format!(" of shard {shard}"));
    writeln!(
        out,
        "{} cells{shard}, results in {}",
        plan.cells.len(),
        plan.experiment.out_dir().display()
    )?;
    match estimate {
        None => {}
        Some(Ok(estimate)) => writeln!(
            out,
            "About {} on this machine at the full network's pace, a first batch of each kind measured; calibration comes on top",
            Spell(Duration::from_secs_f64(estimate.total_s()))
        )?,
        Some(Err(reason)) => writeln!(out, "No estimate of the time: {reason}")?,
    }
    Ok(ExitCode::SUCCESS)
}

fn cell_line(cell: &Cell) -> String {
    let fill = cell.strategy.kv_fill();
    let fill = fill.map_or_else(String::new, |fill| format!("  kv-fill {fill}"));
    let untimed = if cell.timed { "" } else { "  not timed" };
    format!(
        "{}  {}  {}  batch {}  beams {}  {}{fill}{untimed}",
        cell.id, cell.model_name, cell.task_name, cell.batch_size, cell.beams, cell.strategy
    )
}

fn cell_json(cell: &Cell) -> serde_json::Result<Value> {
    let mut value = serde_json::to_value(cell)?;
    value["kv_fill"] = json!(cell.strategy.kv_fill().map(|fill| fill.to_string()));
    Ok(value)
}

fn task_text(task: &TaskPreview) -> String {
    let of = match task.available {
        Some(available) => format!("{} of {}", grouped(task.prompts), grouped(available)),
        None => grouped(task.prompts),
    };
    // Quoted, so that a line feed and a space at the end can be seen.
    format!(
        "{} with {}: {of} prompts, {} to calibrate on, answers of up to {} tokens\nfirst prompt, {} tokens (the longest has {}):\n{:?}",
        task.task,
        task.model,
        task.calibration_prompts,
        task.max_new_tokens,
        task.prompt_tokens,
        task.longest_prompt_tokens,
        task.prompt
    )
}
