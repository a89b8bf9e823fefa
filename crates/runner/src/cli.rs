//! The command line.

use crate::commands;
use clap::{Parser, Subcommand};
use std::process::ExitCode;

/// Compare layer-skipping strategies for decoder-only language models: quality, speed, and the speedup that was
/// really achieved next to the one that was asked for.
#[derive(Debug, Parser)]
#[command(name = "skipbench", version, propagate_version = true)]
pub struct Cli {
    /// Say more on stderr (-v progress of each step, -vv everything)
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    pub verbose: u8,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run an experiment, resuming what was cut off, and write its tables and plots
    Run(commands::run::RunArgs),
    /// List the cells of an experiment without running them
    Plan(commands::plan::PlanArgs),
    /// Print the layers that a strategy runs; no model needed
    Layers(commands::layers::LayersArgs),
    /// Continue prompts under a strategy, as JSON lines
    Generate(commands::generate::GenerateArgs),
    /// Score outputs against references (BLEU, chrF, TER, ROUGE)
    Score(commands::score::ScoreArgs),
    /// Train or fine-tune a small model from a YAML config
    Train(commands::train::TrainArgs),
    /// Write the tables and plots of a finished run again
    Report(commands::report::ReportArgs),
    /// Write examples of the built-in tasks as JSON lines
    Data(commands::data::DataArgs),
}

impl Command {
    /// Runs the command.
    ///
    /// # Errors
    /// Whatever is wrong with the input; the binary exits with 2.
    pub fn run(self) -> anyhow::Result<ExitCode> {
        match self {
            Command::Run(args) => commands::run::run(args),
            Command::Plan(args) => commands::plan::run(args),
            Command::Layers(args) => commands::layers::run(args),
            Command::Generate(args) => commands::generate::run(args),
            Command::Score(args) => commands::score::run(args),
            Command::Train(args) => commands::train::run(args),
            Command::Report(args) => commands::report::run(args),
            Command::Data(args) => commands::data::run(args),
        }
    }
}

/// Logs to stderr; `RUST_LOG` wins over `-v`.
pub fn init_logging(verbose: u8) {
    let default = match verbose {
        0 => "warn",
        1 => "skipbench=info",
        _ => "debug",
    };
    let filter = tracing_subscriber::EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new(default));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .without_time()
        .init();
}
