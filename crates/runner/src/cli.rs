//! The command line.

use crate::{commands, progress};
use clap::{Parser, Subcommand};
use std::io::Write;
use std::process::ExitCode;

/// Parses the command line, runs the command and turns the outcome into an exit code: the whole of the `skipbench` binary,
/// and of one that has registered strategies of its own.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    init_logging(cli.verbose);
    // As many threads as candle has. The main thread works in the pool itself: a product handed over and waited for costs two
    // wake-ups. A pool that cannot be built leaves the default one, which is only slower.
    let _ = rayon::ThreadPoolBuilder::new()
        .num_threads(candle_core::utils::get_num_threads())
        .use_current_thread()
        .build_global();
    match cli.command.run() {
        Ok(code) => code,
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            // Nothing is left to tell if stderr is gone.
            let _ = writeln!(std::io::stderr(), "error: {error:#}");
            ExitCode::from(2)
        }
    }
}

/// `skipbench .. | head` is not an error.
fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        cause
            .downcast_ref::<std::io::Error>()
            .is_some_and(|io| io.kind() == std::io::ErrorKind::BrokenPipe)
    })
}

/// Compare layer-skipping strategies for decoder-only language models: quality, speed, and the speedup that was
/// really achieved next to the one that was asked for.
#[derive(Debug, Parser)]
#[command(name = "skipbench", version, propagate_version = true)]
pub struct Cli {
    /// Say more on stderr (-v what is read, loaded and tried, -vv everything)
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    pub verbose: u8,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Write a first experiment for a model and a task, ready to run
    Init(commands::init::InitArgs),
    /// Run an experiment, resuming what was cut off, and write its tables and plots
    Run(commands::run::RunArgs),
    /// Hand an experiment in to a cluster, as an array of jobs that share its cells
    Submit(Box<commands::submit::SubmitArgs>),
    /// Say how far a run is: cells done, running, waiting, failed and missing
    Status(commands::status::StatusArgs),
    /// Make one run of what the shards of a sweep have finished, and write its report
    Collect(commands::collect::CollectArgs),
    /// List the cells of an experiment without running them
    Plan(commands::plan::PlanArgs),
    /// Print the layers that a strategy runs; no model needed
    Layers(commands::layers::LayersArgs),
    /// Continue prompts under a strategy, as JSON lines
    Generate(Box<commands::generate::GenerateArgs>),
    /// Give the log-probability of each continuation behind its context, as JSON lines
    Loglikelihood(commands::loglikelihood::LoglikelihoodArgs),
    /// Give the perplexity of a text
    Perplexity(commands::perplexity::PerplexityArgs),
    /// Write the smaller checkpoint that a strategy's layers make
    Prune(commands::prune::PruneArgs),
    /// Answer OpenAI's HTTP API with a model under every strategy
    Serve(Box<commands::serve::ServeArgs>),
    /// Score outputs against references (BLEU, chrF, TER, ROUGE)
    Score(commands::score::ScoreArgs),
    /// Train or fine-tune a small model from a YAML config
    Train(commands::train::TrainArgs),
    /// Write the tables and plots of a finished run again
    Report(commands::report::ReportArgs),
    /// Compare a run with a baseline: better, same, worse, or cannot tell; exit code 1 where anything is worse
    Compare(commands::compare::CompareArgs),
    /// Write examples of the built-in tasks as JSON lines
    Data(commands::data::DataArgs),
    /// Say what a timing run on this machine can trust, and how small a difference it can see
    Doctor(commands::doctor::DoctorArgs),
    /// Print a script by which a shell completes commands and options
    Completions(commands::completions::CompletionsArgs),
    /// Print the manual page
    Man,
}

impl Command {
    /// Runs the command.
    ///
    /// # Errors
    /// Whatever is wrong with the input; the binary exits with 2.
    pub fn run(self) -> anyhow::Result<ExitCode> {
        match self {
            Command::Init(args) => commands::init::run(&args),
            Command::Run(args) => commands::run::run(&args),
            Command::Submit(args) => commands::submit::run(&args),
            Command::Status(args) => commands::status::run(&args),
            Command::Collect(args) => commands::collect::run(&args),
            Command::Plan(args) => commands::plan::run(args),
            Command::Layers(args) => commands::layers::run(args),
            Command::Generate(args) => commands::generate::run(&args),
            Command::Loglikelihood(args) => commands::loglikelihood::run(&args),
            Command::Perplexity(args) => commands::perplexity::run(&args),
            Command::Prune(args) => commands::prune::run(&args),
            Command::Serve(args) => commands::serve::run(&args),
            Command::Score(args) => commands::score::run(args),
            Command::Train(args) => commands::train::run(args),
            Command::Report(args) => commands::report::run(args),
            Command::Compare(args) => commands::compare::run(args),
            Command::Data(args) => commands::data::run(args),
            Command::Doctor(args) => commands::doctor::run(&args),
            Command::Completions(args) => commands::completions::run(&args),
            Command::Man => commands::completions::man(),
        }
    }
}

/// Logs to stderr; `RUST_LOG` wins over `-v`.
fn init_logging(verbose: u8) {
    // A target is the path of a module, and a directive holds for every target that begins with it: `skipbench` stands for
    // all crates of the project.
    let default = match verbose {
        0 => "warn",
        1 => "warn,skipbench=info",
        _ => "warn,skipbench=debug",
    };
    let filter = tracing_subscriber::EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new(default));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(|| progress::Stderr)
        .without_time()
        .init();
}
