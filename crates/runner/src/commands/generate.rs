//! `skipbench generate`.

use crate::calibrate::{lacks_text, on_prompts};
use crate::experiment::{ChatEntry, MAX_BATCH_SIZE, MAX_BEAMS, MAX_NEW_TOKENS, SpecialTokensRule};
use crate::input::{Prompt, read_prompts};
use crate::load::ComputeArgs;
use crate::outputs::{self, Named};
use crate::preview::of_escapes;
use crate::progress::{self, Progress};
use crate::prompter::{Form, Prompter};
use crate::trace::{Heat, audit_json, trace_line};
use crate::{layer_files, models};
use anyhow::{Context, bail};
use clap::Args;
use serde::Serialize;
use skipbench_engine::{Beam, CheckAudit, Engine, KvAudit, Options, Sampling, StopTexts};
use skipbench_model::{CausalLm, HoleReads, ModelConfig, TextTokenizer, Tokenize};
use skipbench_record::layer_counts;
use skipbench_strategy::StrategySpec;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

/// Arguments of `skipbench generate`.
#[derive(Debug, Clone, Args)]
pub struct GenerateArgs {
    /// Checkpoint folder, `.gguf` file or hub:owner/name[@revision]
    #[arg(long)]
    model: PathBuf,
    /// JSON lines with `prompt` (or `messages` with --chat), or text with a prompt a line (`.gz` too)
    #[arg(long)]
    input: PathBuf,
    /// A prompt is the user's turn of a chat, in the form of the model's chat template
    #[arg(long)]
    chat: bool,
    /// System prompt of every chat that has none of its own
    #[arg(long, requires = "chat")]
    system: Option<String>,
    /// Text that ends an answer and is cut from it; may be given again
    #[arg(long, value_name = "TEXT", conflicts_with = "ignore_eos")]
    stop: Vec<String>,
    /// Special tokens in front of prompts that are no chat
    #[arg(
        long,
        value_name = "RULE",
        default_value = "auto",
        conflicts_with = "chat"
    )]
    special_tokens: SpecialTokensRule,
    /// Strategy, such as `unified@2` or `early-exit: {signal: entropy, threshold: 0.9}`
    #[arg(long, default_value = "full", value_parser = layer_files::parse)]
    strategy: StrategySpec,
    /// Prompts to calibrate the strategy on, as `--input`; the first prompts themselves if not given
    #[arg(long)]
    calibration: Option<PathBuf>,
    /// Prompts run together
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=MAX_BATCH_SIZE as i64))]
    batch_size: u32,
    /// Longest answer in tokens
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=MAX_NEW_TOKENS as i64))]
    max_new_tokens: u32,
    /// Always generate `max-new-tokens`
    #[arg(long)]
    ignore_eos: bool,
    /// Beams to search with; 1 is greedy decoding
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=MAX_BEAMS as i64))]
    beams: u32,
    /// Of a beam search: a finished answer's log-probability is divided by its length to this power; 1 if not given
    #[arg(long, allow_negative_numbers = true)]
    length_penalty: Option<f64>,
    /// No n-gram of this length occurs twice in prompt and answer together; 0 for no such rule
    #[arg(long, default_value_t = 0)]
    no_repeat_ngram: usize,
    /// Draw tokens, with the logits divided by this
    #[arg(long, allow_negative_numbers = true)]
    temperature: Option<f64>,
    /// Draw from the likeliest tokens that together have this probability
    #[arg(long, allow_negative_numbers = true)]
    top_p: Option<f64>,
    /// Draw from this many likeliest tokens
    #[arg(long)]
    top_k: Option<usize>,
    /// Seed of the drawing; 0 if not given
    #[arg(long)]
    seed: Option<u64>,
    /// Write how each token came to be, a JSON line each: layers, confidence, exit, KV provenance
    #[arg(long)]
    trace: Option<PathBuf>,
    /// Draw which layers ran at which token (SVG, with a PNG beside it)
    #[arg(long)]
    heatmap: Option<PathBuf>,
    /// Compare the KV cache with that of a full-depth replay, and write what was found as JSON
    #[arg(long)]
    audit: Option<PathBuf>,
    #[command(flatten)]
    compute: ComputeArgs,
}

#[derive(Serialize)]
struct Line<'a> {
    id: &'a serde_json::Value,
    prompt_tokens: usize,
    tokens: &'a [u32],
    text: &'a str,
    #[serde(serialize_with = "layer_counts")]
    layers: &'a [f64],
}

/// Continues each prompt.
///
/// # Errors
/// A checkpoint, input or strategy that cannot be used.
pub fn run(args: &GenerateArgs) -> anyhow::Result<ExitCode> {
    let chat = match args.chat {
        true => ChatEntry::with_system(args.system.as_deref()),
        false => ChatEntry::default(),
    };
    let form = Form::new(&chat, args.special_tokens);
    let prompts = read_prompts(&args.input, &chat)?;
    check(args)?;
    let texts = match &args.calibration {
        Some(path) => Some((path, read_prompts(path, &chat)?)),
        None => None,
    };
    let args = &GenerateArgs {
        model: models::fetch(&args.model)?,
        ..args.clone()
    };
    check_depth(args)?;
    let model = args.compute.load(&args.model)?;
    tracing::info!(
        "loaded {}: {} layers",
        args.model.display(),
        model.sizes().n_layers
    );
    let tokenizer = TextTokenizer::load(&args.model, model.sizes().vocab_size)?;
    let tokenizer: Arc<dyn Tokenize> = Arc::new(tokenizer);
    let prompter = Prompter::new(&args.model, tokenizer.as_ref(), &form)?;
    let engine = Engine::new(&model);
    let mut options = options(args, &tokenizer)?;
    // Every prompt is looked at before the first is answered, so that a bad one leaves no half of an output.
    let ids = tokenize(&args.input, &prompts, &prompter, engine, &options)?;
    let texts = match &texts {
        Some((path, texts)) => Some(tokenize(path, texts, &prompter, engine, &options)?),
        None => None,
    };
    for warning in args.stop.iter().flat_map(|text| of_escapes("--stop", text)) {
        tracing::warn!("{warning}");
    }
    if let Some(warning) = prompter.doubled(&ids) {
        tracing::warn!("{}: {warning}", args.input.display());
    }
    let tokens: usize = ids.iter().map(Vec::len).sum();
    tracing::info!(
        "{}: {} prompts of {tokens} tokens",
        args.input.display(),
        ids.len()
    );
    let spec = calibrated(args, engine, texts.as_deref(), &ids, &options)
        .with_context(|| format!("strategy `{}`", args.strategy))?;
    let mut strategy = spec
        .build(model.sizes().n_layers)
        .with_context(|| format!("strategy `{}`", args.strategy))?;

    let mut trace = match &args.trace {
        Some(path) => Some((path, BufWriter::new(outputs::create(path)?))),
        None => None,
    };
    let mut heat = Heat::new(model.sizes().n_layers);
    let (mut audit, mut hole_reads) = (KvAudit::default(), HoleReads::default());
    let mut checks = CheckAudit::default();
    progress::end_on_signals("stopped; the answers up to here are written");
    let progress = Progress::new(prompts.len() as u64, "prompts");
    let mut out = std::io::stdout().lock();
    let batch_size = args.batch_size as usize;
    for (prompts, ids) in prompts.chunks(batch_size).zip(ids.chunks(batch_size)) {
        let generation = engine.generate(ids, strategy.as_mut(), &options)?;
        for ((prompt, ids), row) in prompts.iter().zip(ids).zip(&generation.rows) {
            let text = tokenizer.decode(&row.tokens)?;
            let line = Line {
                id: &prompt.id,
                prompt_tokens: ids.len(),
                tokens: &row.tokens,
                text: options.stop.as_ref().map_or(&*text, |stop| stop.cut(&text)),
                layers: &row.layers,
            };
            serde_json::to_writer(&mut out, &line)?;
            writeln!(out)?;
            if let Some((path, file)) = &mut trace {
                for index in 0..row.tokens.len() {
                    let line = trace_line(&prompt.id, ids.len(), row, index);
                    writeln!(file, "{line}").with_context(|| outputs::failed(path))?;
                }
            }
            heat.add(row);
            if let Some(found) = &row.audit {
                audit.merge(found);
            }
        }
        hole_reads.approximate += generation.hole_reads.approximate;
        hole_reads.masked += generation.hole_reads.masked;
        checks.add(&generation.checks);
        if let Some(sampling) = &mut options.sampling {
            sampling.first_row += ids.len() as u64;
        }
        progress.inc(prompts.len() as u64);
    }
    drop(progress);
    if let Some((path, mut file)) = trace {
        file.flush().with_context(|| outputs::failed(path))?;
    }
    if let Some(path) = &args.heatmap {
        let title = format!("Layers that ran: {spec}");
        skipbench_report::heatmap(path, &title, &heat.shares())?;
    }
    if let Some(path) = &args.audit {
        let json = audit_json(
            &spec.to_string(),
            strategy.needs().kv_fill,
            &audit,
            hole_reads,
            &checks,
        );
        std::fs::write(path, format!("{json:#}\n")).with_context(|| outputs::failed(path))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Refuses what does not go together before any weight is read.
fn check(args: &GenerateArgs) -> anyhow::Result<()> {
    check_files(args)?;
    let sampling = sampling_of(args).is_some();
    if args.length_penalty.is_some() && args.beams == 1 {
        bail!("--length-penalty does nothing without a beam search; add --beams");
    }
    if args.seed.is_some() && !sampling {
        bail!("--seed does nothing where nothing is drawn; add --temperature, --top-p or --top-k");
    }
    if args.beams > 1 && sampling {
        bail!(
            "a beam search draws nothing; leave out --beams, or --temperature, --top-p and --top-k"
        );
    }
    if args.beams > 1 && (args.trace.is_some() || args.heatmap.is_some() || args.audit.is_some()) {
        bail!(
            "a beam search has no one way through the layers to trace; leave out --beams, or --trace, --heatmap and --audit"
        );
    }
    if args.stop.iter().any(String::is_empty) {
        bail!("--stop \"\": an empty text would end every answer before it begins");
    }
    if args.strategy.members().is_some() {
        bail!(
            "`{}` stands for several strategies, which an experiment runs one by one; leave out `seeds` and give a `seed`",
            args.strategy
        );
    }
    args.strategy
        .check_search(args.beams as usize, sampling, args.no_repeat_ngram)?;
    if let Some(sampling) = sampling_of(args) {
        sampling.check()?;
    }
    if let Some(beam) = beam_of(args) {
        beam.check()?;
    }
    Ok(())
}

/// Refuses a strategy that cannot work with the model's layers before any weight is read.
fn check_depth(args: &GenerateArgs) -> anyhow::Result<()> {
    let n_layers = ModelConfig::open(&args.model)?.n_layers;
    args.strategy
        .validate(n_layers)
        .with_context(|| format!("strategy `{}`", args.strategy))?;
    if args.strategy.menu(n_layers).is_some() {
        args.strategy.build(n_layers)?;
    }
    Ok(())
}

fn sampling_of(args: &GenerateArgs) -> Option<Sampling> {
    let drawn = args.temperature.is_some() || args.top_p.is_some() || args.top_k.is_some();
    drawn.then(|| Sampling {
        temperature: args.temperature.unwrap_or(1.0),
        top_p: args.top_p,
        top_k: args.top_k,
        seed: args.seed.unwrap_or(0),
        first_row: 0,
    })
}

fn beam_of(args: &GenerateArgs) -> Option<Beam> {
    (args.beams > 1).then_some(Beam {
        beams: args.beams as usize,
        length_penalty: args.length_penalty.unwrap_or(1.0),
    })
}

fn options(args: &GenerateArgs, tokenizer: &Arc<dyn Tokenize>) -> anyhow::Result<Options> {
    let (ids, stop) = StopTexts::with_ids(tokenizer, &args.stop)?;
    Ok(Options {
        max_new_tokens: args.max_new_tokens as usize,
        eos_ids: match args.ignore_eos {
            true => Vec::new(),
            false => [tokenizer.eos_ids(), &ids].concat(),
        },
        stop,
        sampling: sampling_of(args),
        beam: beam_of(args),
        no_repeat_ngram: args.no_repeat_ngram,
        trace: args.trace.is_some() || args.heatmap.is_some(),
        audit: args.audit.is_some(),
        ..Options::default()
    })
}

pub(super) fn tokenize(
    path: &Path,
    prompts: &[Prompt],
    prompter: &Prompter<'_>,
    engine: Engine<'_>,
    options: &Options,
) -> anyhow::Result<Vec<Vec<u32>>> {
    prompts
        .iter()
        .map(|prompt| {
            let ids = prompter.ids(&prompt.request)?;
            engine.check(std::slice::from_ref(&ids), options)?;
            Ok(ids)
        })
        .enumerate()
        .map(|(index, ids): (usize, anyhow::Result<Vec<u32>>)| {
            ids.with_context(|| format!("{}: prompt {}", path.display(), index + 1))
        })
        .collect()
}

/// Refuses a heatmap that is no picture, and files that would overwrite one another or cannot be written.
fn check_files(args: &GenerateArgs) -> anyhow::Result<()> {
    let named = |option, path| Named { option, path };
    let inputs: Vec<Named<'_>> = [
        ("--input", Some(&args.input)),
        ("--calibration", args.calibration.as_ref()),
    ]
    .into_iter()
    .filter_map(|(option, path)| Some(named(option, path?)))
    .collect();
    let pictures = match &args.heatmap {
        Some(heatmap) if !is_picture(heatmap) => bail!(
            "--heatmap {}: the name must end in `.svg` or `.png`; both are written",
            heatmap.display()
        ),
        Some(heatmap) => vec![heatmap.with_extension("svg"), heatmap.with_extension("png")],
        None => Vec::new(),
    };
    let files = [("--trace", &args.trace), ("--audit", &args.audit)]
        .into_iter()
        .filter_map(|(option, path)| Some(named(option, path.as_ref()?)));
    let pictures = pictures.iter().map(|path| named("--heatmap", path));
    outputs::check(&inputs, &files.chain(pictures).collect::<Vec<_>>())
}

fn is_picture(path: &Path) -> bool {
    path.extension()
        .is_some_and(|end| end == "svg" || end == "png")
}

/// The strategy with what it lacks: a threshold, scores, an expected length.
fn calibrated(
    args: &GenerateArgs,
    engine: Engine<'_>,
    texts: Option<&[Vec<u32>]>,
    ids: &[Vec<u32>],
    options: &Options,
) -> anyhow::Result<StrategySpec> {
    let spec = &args.strategy;
    if !lacks_text(spec, engine.model().sizes().n_layers) {
        return Ok(spec.clone());
    }
    // Calibrated on the likeliest tokens where tokens are drawn, and with the search that is asked for.
    let natural = Options {
        max_new_tokens: options.max_new_tokens,
        eos_ids: options.eos_ids.clone(),
        stop: options.stop.clone(),
        beam: options.beam,
        no_repeat_ngram: options.no_repeat_ngram,
        ..Options::default()
    };
    if texts.is_none() {
        tracing::warn!(
            "`{spec}` is calibrated on the first prompts themselves; --calibration takes others"
        );
    }
    let rows = args.batch_size as usize;
    let found = on_prompts(engine, spec, texts.unwrap_or(ids), natural, rows)?;
    if let Some(note) = &found.note {
        tracing::warn!("{spec}: {note}");
    }
    tracing::info!("runs as {}", found.spec);
    Ok(found.spec)
}
