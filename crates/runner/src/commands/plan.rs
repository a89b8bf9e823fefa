//! `skipbench plan`.

use super::print_json;
use crate::plan::Plan;
use clap::Args;
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

/// Arguments of `skipbench plan`.
#[derive(Debug, Args)]
pub struct PlanArgs {
    /// YAML experiment
    experiment: PathBuf,
    /// Print one JSON value
    #[arg(long)]
    json: bool,
}

/// Lists the cells.
///
/// # Errors
/// Whatever [`Plan::from_yaml`] refuses.
pub fn run(args: PlanArgs) -> anyhow::Result<ExitCode> {
    let plan = Plan::from_yaml(&args.experiment)?;
    if args.json {
        print_json(&serde_json::json!({
            "experiment": plan.experiment.name,
            "out": plan.experiment.out_dir(),
            "cells": plan.cells,
        }))?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut out = std::io::stdout().lock();
    for cell in &plan.cells {
        writeln!(
            out,
            "{}  {}  {}  batch {}  {}",
            cell.id, cell.model_name, cell.task_name, cell.batch_size, cell.strategy
        )?;
    }
    writeln!(
        out,
        "{} cells, results in {}",
        plan.cells.len(),
        plan.experiment.out_dir().display()
    )?;
    Ok(ExitCode::SUCCESS)
}
