//! One file per command: its arguments and what it does with them.

pub mod collect;
pub mod compare;
pub mod completions;
pub mod data;
pub mod doctor;
pub mod generate;
pub mod init;
pub mod layers;
pub mod loglikelihood;
pub mod perplexity;
pub mod plan;
pub mod prune;
pub mod report;
pub mod run;
pub mod score;
pub mod serve;
pub mod status;
pub mod submit;
pub mod train;

use std::io::Write;

/// One JSON value and a line feed on stdout.
fn print_json(value: &impl serde::Serialize) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    serde_json::to_writer(&mut out, value)?;
    writeln!(out)?;
    Ok(())
}
