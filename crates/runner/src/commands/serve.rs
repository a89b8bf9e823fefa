//! `skipbench serve`.

use crate::calibrate::{lacks_text, on_prompts};
use crate::experiment::{ChatEntry, MAX_BATCH_SIZE, MAX_NEW_TOKENS};
use crate::input::read_prompts;
use crate::load::ComputeArgs;
use crate::prompter::{Form, Prompter, chat_template};
use crate::{layer_files, models, progress};
use anyhow::{Context, bail};
use clap::Args;
use skipbench_engine::{Engine, Options};
use skipbench_model::{CausalLm, TextTokenizer, Tokenize};
use skipbench_prompts::{ChatTemplate, PromptError};
use skipbench_serve::{Limits, Served, Stop};
use skipbench_strategy::StrategySpec;
use std::io::Write;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

/// Where the key may stand instead, since everyone on a machine can read its command lines.
const KEY_VARIABLE: &str = "SKIPBENCH_API_KEY";

/// Prompts of a model whose positions have no end.
const PROMPT_TOKENS: usize = 32_768;

/// Arguments of `skipbench serve`.
#[derive(Debug, Clone, Args)]
pub struct ServeArgs {
    /// Checkpoint folder, `.gguf` file or hub:owner/name[@revision]
    #[arg(long)]
    model: PathBuf,
    /// What clients call the model; the name of its folder or file if not given
    #[arg(long)]
    name: Option<String>,
    /// Address to listen on; only this machine reaches the default
    #[arg(long, default_value = "127.0.0.1")]
    host: String,
    /// Port to listen on; 0 for any that is free
    #[arg(long, default_value_t = 8000)]
    port: u16,
    /// Key that clients have to send; `SKIPBENCH_API_KEY` is read too
    #[arg(long, value_name = "KEY")]
    api_key: Option<String>,
    /// Strategy that the list of models names, made ready at the start; may be given again. Requests may name any other that
    /// needs no calibration
    #[arg(long, value_name = "STRATEGY")]
    strategy: Vec<String>,
    /// Prompts to calibrate these strategies on, JSON lines with `prompt` or text with a prompt a line
    #[arg(long, value_name = "FILE")]
    calibration: Option<PathBuf>,
    /// Prompts run together
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=MAX_BATCH_SIZE as i64))]
    batch_size: u32,
    /// Milliseconds that a prompt waits for others to join it
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(..=60_000))]
    window_ms: u32,
    /// Largest body of a request in KiB
    #[arg(long, default_value_t = 8192, value_parser = clap::value_parser!(u32).range(1..))]
    max_body_kib: u32,
    /// Longest prompt in tokens; what the model has room for if not given
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    max_prompt_tokens: Option<u32>,
    /// Longest answer in tokens
    #[arg(long, default_value_t = 4096, value_parser = clap::value_parser!(u32).range(1..=MAX_NEW_TOKENS as i64))]
    max_tokens: u32,
    /// Prompts that may wait; more are refused
    #[arg(long, default_value_t = 1024, value_parser = clap::value_parser!(u32).range(1..))]
    queue: u32,
    /// Seconds that a request may take
    #[arg(long, default_value_t = 600, value_parser = clap::value_parser!(u32).range(1..=86_400))]
    timeout: u32,
    #[command(flatten)]
    compute: ComputeArgs,
}

/// Serves until Ctrl-C or a request to terminate.
///
/// # Errors
/// A checkpoint or a strategy that cannot be used, an address that cannot be listened on.
pub fn run(args: &ServeArgs) -> anyhow::Result<ExitCode> {
    let strategies: Vec<(String, StrategySpec)> = args
        .strategy
        .iter()
        .map(|text| Ok((text.clone(), parse(text)?)))
        .collect::<anyhow::Result<_>>()?;
    let api_key = match args.api_key.clone().or(std::env::var(KEY_VARIABLE).ok()) {
        Some(key) if key.is_empty() => bail!("the API key is empty; give one, or leave it out"),
        key => key,
    };
    let address = (args.host.as_str(), args.port);
    let listener = TcpListener::bind(address).with_context(|| {
        format!(
            "cannot listen on {}:{}; is the port taken? `--port 0` takes any that is free",
            args.host, args.port
        )
    })?;
    let address = listener.local_addr()?;
    if !address.ip().is_loopback() && api_key.is_none() {
        tracing::warn!(
            "{address} is open to everyone who can reach it; --api-key keeps others out"
        );
    }
    let located = models::fetch_located(&args.model)?;
    let path = located.path;
    let model = args.compute.load(&path)?;
    let sizes = model.sizes().clone();
    let tokenizer: Arc<dyn Tokenize> = Arc::new(TextTokenizer::load(&path, sizes.vocab_size)?);
    let strategies = ready(args, &path, &model, tokenizer.as_ref(), strategies)?;
    let served = Served {
        name: match &args.name {
            Some(name) if name.is_empty() => bail!("--name is empty; leave it out"),
            Some(name) => name.clone(),
            None => located.name,
        },
        model: Box::new(model),
        tokenizer,
        chat: chat(&path),
        strategies,
    };
    let limits = Limits {
        batch_size: args.batch_size as usize,
        window: Duration::from_millis(args.window_ms.into()),
        body_bytes: args.max_body_kib as usize * 1024,
        prompt_tokens: match (args.max_prompt_tokens, sizes.max_positions) {
            (Some(tokens), _) => tokens as usize,
            (None, positions) => positions.unwrap_or(PROMPT_TOKENS),
        },
        max_tokens: args.max_tokens as usize,
        queue: args.queue as usize,
        time: Duration::from_secs(args.timeout.into()),
    };
    let stop = Stop::default();
    let stopper = stop.clone();
    progress::stop_on_signals(
        "stopping: what was asked is still answered; once more ends at once",
        move || stopper.stop(),
    );
    writeln!(
        progress::Stderr,
        "serving {} ({} layers) at http://{address}/v1",
        served.name,
        sizes.n_layers
    )?;
    skipbench_serve::serve(served, listener, api_key, limits, &stop)?;
    Ok(ExitCode::SUCCESS)
}

fn parse(text: &str) -> anyhow::Result<StrategySpec> {
    let spec =
        layer_files::parse(text).map_err(|error| anyhow::anyhow!("--strategy {text}: {error}"))?;
    if spec.members().is_some() {
        bail!(
            "--strategy {text}: it stands for several strategies; leave out `seeds` and give a `seed`"
        );
    }
    Ok(spec)
}

/// The strategies with what they lack, found on the calibration prompts.
fn ready(
    args: &ServeArgs,
    path: &Path,
    model: &dyn CausalLm,
    tokenizer: &dyn Tokenize,
    strategies: Vec<(String, StrategySpec)>,
) -> anyhow::Result<Vec<(String, StrategySpec)>> {
    let n_layers = model.sizes().n_layers;
    let prompts = match &args.calibration {
        None => None,
        Some(file) => {
            let form = Form::default();
            let prompter = Prompter::new(path, tokenizer, &form)?;
            let prompts = read_prompts(file, &ChatEntry::default())?;
            let requests: Vec<_> = prompts.into_iter().map(|prompt| prompt.request).collect();
            let ids = prompter.all_ids(&requests);
            Some(ids.with_context(|| file.display().to_string())?)
        }
    };
    let made = |(text, spec): (String, StrategySpec)| -> anyhow::Result<_> {
        spec.validate(n_layers)?;
        let spec = match (lacks_text(&spec, n_layers), &prompts) {
            (false, _) => spec,
            (true, None) => {
                bail!("it has to be calibrated on prompts; give them with --calibration")
            }
            (true, Some(prompts)) => {
                let options = Options {
                    max_new_tokens: CALIBRATION_TOKENS,
                    eos_ids: tokenizer.eos_ids().to_vec(),
                    ..Options::default()
                };
                let rows = args.batch_size as usize;
                let found = on_prompts(Engine::new(model), &spec, prompts, options, rows)?;
                if let Some(note) = &found.note {
                    tracing::warn!("{spec}: {note}");
                }
                tracing::info!("{text} runs as {}", found.spec);
                found.spec
            }
        };
        // What needs more than prompts is refused here and not by the first request.
        spec.build(n_layers)?;
        Ok((text, spec))
    };
    let each = strategies.into_iter().map(|(text, spec)| {
        let about = format!("--strategy {text}");
        made((text, spec)).context(about)
    });
    each.collect()
}

/// Tokens that a strategy is calibrated to generate.
const CALIBRATION_TOKENS: usize = 64;

/// The form of the model's chats, where it has one that can be used.
fn chat(path: &Path) -> Option<ChatTemplate> {
    match chat_template(path) {
        Ok(template) => Some(template),
        Err(error) => {
            let is_broken = error
                .downcast_ref::<PromptError>()
                .is_some_and(|error| !matches!(error, PromptError::NoTemplate { .. }));
            match is_broken {
                true => tracing::warn!("chats are refused: {error:#}"),
                false => tracing::info!("chats are refused: {error:#}"),
            }
            None
        }
    }
}
