//! `skipbench layers`.

use super::{generate, print_json};
use crate::calibrate::{lacks_text, on_prompts};
use crate::experiment::ChatEntry;
use crate::experiment::MAX_NEW_TOKENS;
use crate::input::read_prompts;
use crate::prompter::{Form, Prompter};
use crate::{layer_files, models};
use anyhow::{Context, bail};
use candle_core::Device;
use clap::{Args, ValueEnum};
use serde_json::{Value, json};
use skipbench_engine::{Engine, Options};
use skipbench_model::{Backend, CausalLm, Decoder, ModelConfig, TextTokenizer, Tokenize};
use skipbench_strategy::{Explanation, LayerListForm, LayerSet, StrategySpec};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Arguments of `skipbench layers`.
#[derive(Debug, Args)]
pub struct LayersArgs {
    /// Strategy, such as `unified@2` or `early-exit: {signal: entropy, threshold: 0.9}`
    #[arg(long, required_unless_present = "list", value_parser = layer_files::parse)]
    strategy: Option<StrategySpec>,
    /// List every strategy with its variants
    #[arg(long, conflicts_with_all = ["strategy", "n_layers", "model"])]
    list: bool,
    /// Decoder layers of the model
    #[arg(long, required_unless_present_any = ["model", "list"])]
    n_layers: Option<usize>,
    /// Checkpoint folder, `.gguf` file or hub:owner/name[@revision], instead of `--n-layers`
    #[arg(long, conflicts_with = "n_layers")]
    model: Option<PathBuf>,
    /// Prompts to calibrate the strategy on, for layers that are chosen by scores, thresholds and expected lengths
    #[arg(long, requires = "model")]
    calibration: Option<PathBuf>,
    /// Longest answer in tokens, for strategies that go by position
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=MAX_NEW_TOKENS as i64))]
    max_new_tokens: u32,
    /// Write the layers to a file that `drop-list: {file: …}` and other programs read
    #[arg(long, value_name = "FILE", conflicts_with = "list")]
    export: Option<PathBuf>,
    /// Form of that file; mergekit for `.yaml`, blockpruner for `.json` and plain for other names if not given
    #[arg(long, value_enum, requires = "export")]
    export_form: Option<FormName>,
    /// Print one JSON value
    #[arg(long)]
    json: bool,
}

/// Forms of a file of layers.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum FormName {
    /// Indices of the layers that are dropped, one a line
    Plain,
    /// The slices of a mergekit passthrough merge, with the layers that are kept
    Mergekit,
    /// What of each layer is dropped, a line each, as EvoPress reads it
    #[value(name = "evopress")]
    EvoPress,
    /// The sub-layers that are dropped, as BlockPruner reads them
    #[value(name = "blockpruner")]
    BlockPruner,
}

impl From<FormName> for LayerListForm {
    fn from(name: FormName) -> Self {
        match name {
            FormName::Plain => Self::Plain,
            FormName::Mergekit => Self::Mergekit,
            FormName::EvoPress => Self::EvoPress,
            FormName::BlockPruner => Self::BlockPruner,
        }
    }
}

/// Prints the layer set.
///
/// # Errors
/// A strategy that cannot work with so many layers.
pub fn run(args: LayersArgs) -> anyhow::Result<ExitCode> {
    let Some(spec) = &args.strategy else {
        return list(args.json);
    };
    let (spec, n_layers) = match (&args.model, args.n_layers) {
        (Some(model), _) => resolve(
            spec,
            model,
            args.calibration.as_deref(),
            args.max_new_tokens,
        )?,
        (None, n_layers) => (spec.clone(), n_layers.unwrap_or_default()),
    };
    let explanation = spec
        .explain(n_layers, args.max_new_tokens as usize)
        .with_context(|| format!("strategy `{spec}`"))?;
    if let Some(path) = &args.export {
        export(&args, path, &spec, n_layers)?;
    }
    if args.json {
        print_json(&explanation)?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut out = std::io::stdout().lock();
    write!(out, "{}", describe(&explanation))?;
    Ok(ExitCode::SUCCESS)
}

/// Every strategy, those of other crates included: its name, its variants, the default first, and what it does.
fn list(json: bool) -> anyhow::Result<ExitCode> {
    let strategies = StrategySpec::all();
    if json {
        let entries: Vec<Value> = strategies
            .iter()
            .map(|spec| {
                json!({"name": spec.name(), "variants": spec.variants(), "about": spec.about()})
            })
            .collect();
        print_json(&entries)?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut out = std::io::stdout().lock();
    for spec in strategies {
        writeln!(out, "{}: {}", spec.name(), spec.about())?;
        if !spec.variants().is_empty() {
            writeln!(out, "    :{}", spec.variants().join(" :"))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Writes the layers in the form that was asked for, or that the name of the file means.
fn export(
    args: &LayersArgs,
    path: &Path,
    spec: &StrategySpec,
    n_layers: usize,
) -> anyhow::Result<()> {
    let ending = path.extension().and_then(|ending| ending.to_str());
    let form = match (args.export_form, ending) {
        (Some(form), _) => form.into(),
        (None, Some("yaml" | "yml")) => LayerListForm::Mergekit,
        (None, Some("json")) => LayerListForm::BlockPruner,
        (None, _) => LayerListForm::Plain,
    };
    // Without a model there is none that mergekit could be told of.
    let model = args.model.as_deref().map(Path::to_string_lossy);
    let written = || -> anyhow::Result<String> {
        let layers = fixed_layers(spec, n_layers)?;
        let model = model.as_deref().unwrap_or("MODEL");
        form.write(&layers, n_layers, model)
            .map_err(anyhow::Error::msg)
    };
    let text = written().with_context(|| format!("--export: strategy `{spec}`"))?;
    skipbench_fs::write_whole(path, text.as_bytes())?;
    Ok(())
}

/// The layers of a strategy that runs the same ones at every step, whatever the tokens are.
///
/// # Errors
/// Another strategy.
pub(super) fn fixed_layers(spec: &StrategySpec, n_layers: usize) -> anyhow::Result<LayerSet> {
    let found = spec.explain(n_layers, 64)?;
    if found.draft_length.is_some() {
        bail!(
            "all layers verify what its layers draft, so that none can go; name the drafting strategy by itself"
        );
    }
    if !found.menu.is_empty() || !found.checks.is_empty() || !found.steps.is_empty() {
        bail!(
            "its layers are not the same at every token; only those of a static strategy are one list"
        );
    }
    if spec.members().is_some() {
        bail!("it stands for a set of layers for each of its seeds; name one with `seed`");
    }
    if let (Some(by), true) = (found.chosen_by, spec.scoring(n_layers).is_some()) {
        bail!("its layers are chosen by {by}; give --calibration, with --model");
    }
    if let Some(by) = found.chosen_by {
        bail!("its layers are chosen by {by}; only those of a static strategy are one list");
    }
    Ok(spec.build(n_layers)?.reachable())
}

/// The depth of a checkpoint, and the strategy with what it lacks if there is text to find it on.
///
/// # Errors
/// A checkpoint or text that cannot be read, a strategy that does not suit them.
pub(super) fn resolve(
    spec: &StrategySpec,
    model: &Path,
    calibration: Option<&Path>,
    max_new_tokens: u32,
) -> anyhow::Result<(StrategySpec, usize)> {
    let Some(path) = calibration else {
        let n_layers = ModelConfig::open(&models::look(model)?.path)?.n_layers;
        return Ok((spec.clone(), n_layers));
    };
    let model = &models::fetch(model)?;
    let n_layers = ModelConfig::open(model)?.n_layers;
    spec.validate(n_layers)
        .with_context(|| format!("strategy `{spec}`"))?;
    let texts = read_prompts(path, &ChatEntry::default())?;
    let decoder = Decoder::load(model, &Device::Cpu, None, Backend::Auto)?;
    let tokenizer = TextTokenizer::load(model, decoder.sizes().vocab_size)?;
    if !lacks_text(spec, n_layers) {
        return Ok((spec.clone(), n_layers));
    }
    let options = Options {
        max_new_tokens: max_new_tokens as usize,
        eos_ids: tokenizer.eos_ids().to_vec(),
        ..Options::default()
    };
    let engine = Engine::new(&decoder);
    let form = Form::default();
    let prompter = Prompter::new(model, &tokenizer, &form)?;
    let prompts = generate::tokenize(path, &texts, &prompter, engine, &options)?;
    let found = on_prompts(engine, spec, &prompts, options, 1)
        .with_context(|| format!("strategy `{spec}`"))?;
    Ok((found.spec, n_layers))
}

/// The explanation for people.
fn describe(explanation: &Explanation) -> String {
    let n_layers = explanation.n_layers;
    let numbers = |layers: &[usize]| -> String {
        let numbers: Vec<String> = layers.iter().map(usize::to_string).collect();
        numbers.join(", ")
    };
    let mut text = format!("{}: {}\n", explanation.strategy, explanation.about);
    let mut line = |line: String| {
        text.push_str(&line);
        text.push('\n');
    };
    let count = match (explanation.chosen_by, explanation.layers_per_step) {
        (None, _) => format!("{} of {n_layers} layers", explanation.layers.len()),
        (Some(by), Some(layers)) => format!("{layers} of {n_layers} layers, chosen by {by}"),
        (Some(by), None) => format!("up to {n_layers} layers, chosen by {by}"),
    };
    line(count);
    if explanation.steps.is_empty() && explanation.menu.is_empty() && !explanation.layers.is_empty()
    {
        line(blocks(explanation, &explanation.layers));
        if explanation.layers.len() < n_layers {
            line(numbers(&explanation.layers));
        }
    }
    for (kind, layers) in [
        ("attention", &explanation.attention_only),
        ("MLP", &explanation.mlp_only),
    ] {
        if !layers.is_empty() {
            line(format!("{kind} alone: {}", numbers(layers)));
        }
    }
    if !explanation.checks.is_empty() {
        line(format!(
            "a token may leave after layer {}",
            numbers(&explanation.checks)
        ));
    }
    if let Some(fill) = explanation.kv_fill {
        line(format!(
            "keys and values of skipped layers: {fill}, {}",
            fill.about()
        ));
    }
    for range in &explanation.steps {
        let tokens = match range.first == range.last {
            true => format!("token {}", range.first),
            false => format!("tokens {} to {}", range.first, range.last),
        };
        let drawn = blocks(explanation, &range.layers);
        line(format!("{drawn}  {} layers, {tokens}", range.layers.len()));
    }
    for layers in &explanation.menu {
        let drawn = blocks(explanation, layers);
        line(format!("{drawn}  {} layers", layers.len()));
    }
    if let Some(length) = explanation.draft_length {
        line(format!(
            "they draft up to {length} tokens at a time; all {n_layers} layers verify them"
        ));
    }
    text
}

/// A block a layer: whole, attention alone, MLP alone or none.
fn blocks(explanation: &Explanation, layers: &[usize]) -> String {
    (0..explanation.n_layers)
        .map(|layer| {
            if explanation.attention_only.contains(&layer) {
                '▀'
            } else if explanation.mlp_only.contains(&layer) {
                '▄'
            } else if layers.contains(&layer) {
                '■'
            } else {
                '·'
            }
        })
        .collect()
}
