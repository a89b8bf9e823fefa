//! `skipbench init`.

mod guess;

use crate::experiment::ExperimentArgs;
use crate::models;
use crate::plan::{Plan, Weights};
use crate::prompter::chat_template;
use crate::task::{Kind, peek};
use anyhow::{Context, bail};
use clap::Args;
use guess::Columns;
use serde_json::{Map, Value};
use skipbench_model::{ModelConfig, TextTokenizer, Tokenize};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Arguments of `skipbench init`.
#[derive(Debug, Args)]
pub struct InitArgs {
    /// Hugging Face folder, `.gguf` file or `hub:owner/name`; if not given, the model of this repository
    #[arg(long)]
    model: Option<PathBuf>,
    /// File of items: JSON lines, Parquet, or source texts, a line each; if not given, the built-in translation task
    #[arg(long)]
    task: Option<PathBuf>,
    /// For source texts, the file of the right answers, a line for each
    #[arg(long, requires = "task")]
    reference: Option<PathBuf>,
    /// Field of JSON lines or Parquet that holds the source; guessed if not given
    #[arg(long, requires = "task")]
    source_field: Option<String>,
    /// Field that holds the right answer; guessed if not given
    #[arg(long, requires = "task")]
    reference_field: Option<String>,
    /// File to write
    #[arg(long, default_value = "experiment.yaml")]
    out: PathBuf,
}

/// The shipped model, from the root of the repository.
const SHIPPED: &str = "data/checkpoints/adapted";
/// Items that are looked at.
const LOOKED_AT: usize = 64;

/// Writes an experiment that runs as it is, and says how.
///
/// # Errors
/// A model or a file that cannot be used, fields of which nothing says what they are, a file that is there already.
pub fn run(args: &InitArgs) -> anyhow::Result<ExitCode> {
    if args.out.exists() {
        bail!(
            "{} is there already; give another --out, or remove it",
            args.out.display()
        );
    }
    let model = args.model.clone().unwrap_or_else(|| PathBuf::from(SHIPPED));
    if args.model.is_none() && !model.is_dir() {
        bail!(
            "there is no model at {SHIPPED}; give one with --model, or say this from the root of a checkout of skipbench"
        );
    }
    let text = experiment(args, &model)?;
    skipbench_fs::write_whole(&args.out, text.as_bytes())
        .with_context(|| format!("cannot write {}", args.out.display()))?;
    let checked = Plan::of(&as_experiment(&args.out), Weights::LookedAt);
    let plan = checked.inspect_err(|_| {
        // What does not run is not left behind.
        let _ = std::fs::remove_file(&args.out);
    })?;
    let out = args.out.display();
    writeln!(
        std::io::stdout().lock(),
        "{out}: {} cells, results in {}\n\n  skipbench plan {out}   what would run, and how long it takes\n  skipbench run {out}",
        plan.cells.len(),
        plan.experiment.out_dir().display()
    )?;
    Ok(ExitCode::SUCCESS)
}

fn as_experiment(path: &Path) -> ExperimentArgs {
    ExperimentArgs {
        experiment: path.to_path_buf(),
        overrides: Vec::new(),
        out: None,
    }
}

/// What was found out about the model.
struct Model {
    path: PathBuf,
    config: ModelConfig,
    tokenizer: TextTokenizer,
    has_chat: bool,
}

/// The text of the experiment.
fn experiment(args: &InitArgs, model: &Path) -> anyhow::Result<String> {
    let located = models::look(model)?;
    let config = ModelConfig::open(&located.path)?;
    let tokenizer = TextTokenizer::load(&located.path, config.vocab_size)?;
    let has_chat = chat_template(&located.path).is_ok();
    let folder = args.out.parent().unwrap_or(Path::new(""));
    let model = Model {
        path: models::from_folder(folder, model)?,
        has_chat,
        config,
        tokenizer,
    };
    let (task_name, task, dynamic) = match &args.task {
        None => ("translation".to_owned(), BUILTIN.to_owned(), DYNAMIC),
        Some(path) => {
            let name = stem(path);
            let task = task(args, path, folder, &name, &model)?;
            (name, task, DYNAMIC_LATER)
        }
    };
    let name = plain(&format!("{task_name}-{}", located.name));
    let positions = match model.config.max_positions {
        Some(positions) => format!(", {positions} positions"),
        None => String::new(),
    };
    Ok(format!(
        "# A first experiment, written by `skipbench init`. Every key is explained in docs/experiment.md.\n\
         name: {name}\n\
         models:\n  \
           # {} layers, width {}{positions}; weights stored as {}\n  \
           - path: {}\n\
         tasks:\n{task}\
         strategies:  # the full network always runs beside them; `skipbench layers --help` shows what each one skips\n{STATIC}{dynamic}\
         speedups: [1.25, 2]  # 2 keeps half of the layers\n\
         batch-sizes: [1]  # [1, 8] shows how batching changes the picture\n\
         timing: {{batches: 8, repeats: 3, new-tokens: 24}}  # precision: 1% goes on until intervals are that narrow\n",
        model.config.n_layers,
        model.config.d_model,
        model.config.dtype.as_str(),
        quoted(&model.path.to_string_lossy()),
    ))
}

const BUILTIN: &str = "  # English to German, generated from a grammar of skipbench's own; a file of yours goes in `source`.\n  \
     - {builtin: translation, prompts: 32}\n";
const STATIC: &str = "  - unified  # the published rule (arXiv 2404.06954): skipped layers are spread over the network\n  \
     - middle  # a block in the middle goes\n  \
     - top  # the last layers go\n";
const DYNAMIC: &str = "  - early-exit  # each token leaves when it is sure; its threshold is found on calibration prompts\n";
const DYNAMIC_LATER: &str = "  # - early-exit  # finds its threshold on other items: give them as `calibration` of the task\n";

/// The entry of a task of files.
fn task(
    args: &InitArgs,
    path: &Path,
    folder: &Path,
    name: &str,
    model: &Model,
) -> anyhow::Result<String> {
    let rows = peek(path, LOOKED_AT)?;
    let columns = columns(args, path, &rows)?;
    let sources = columns.sources(&rows);
    let references = match &args.reference {
        Some(reference) => texts(&peek(reference, LOOKED_AT)?),
        None => columns.references(&rows),
    };
    let lengths = |texts: &[String]| -> anyhow::Result<usize> {
        let ids = texts
            .iter()
            .map(|text| Ok(model.tokenizer.encode(text)?.len()));
        Ok(ids
            .collect::<anyhow::Result<Vec<_>>>()?
            .into_iter()
            .max()
            .unwrap_or(0))
    };
    let (prompt, answer) = (lengths(&sources)?, lengths(&references)?);
    let mut most = (answer + answer / 4).next_multiple_of(8).clamp(16, 256);
    if let Some(positions) = model.config.max_positions {
        let room = positions.saturating_sub(prompt);
        if room < 8 {
            bail!(
                "the longest of the first {LOOKED_AT} sources of {} has {prompt} tokens, and the model has {positions} positions; shorten the items or give another model",
                path.display()
            );
        }
        most = most.min(room);
    }
    let (metrics, why) = match guess::is_summary(&sources, &references) {
        true => (
            "rougeL, rouge1, rouge2",
            "answers are much shorter than sources",
        ),
        false => ("bleu, chrf", "the first is the one that plots show"),
    };
    let mut text = format!(
        "  - name: {}\n    source: {}\n",
        plain(name),
        quoted(&models::from_folder(folder, path)?.to_string_lossy())
    );
    if let Some(reference) = &args.reference {
        let reference = models::from_folder(folder, reference)?;
        text += &format!("    reference: {}\n", quoted(&reference.to_string_lossy()));
    }
    if Kind::of(path) != Kind::Text {
        text += &format!(
            "    fields: {{source: {}, reference: {}}}  # of the fields {}\n",
            quoted(&columns.source),
            quoted(&columns.reference),
            columns.all.join(", ")
        );
    }
    text += "    prompt: \"{{ source }}\"  # a Jinja template; every field of an item has its own name\n";
    text += match model.has_chat {
        true => "    chat: true  # the model has a chat template; the prompt is the user's turn\n",
        false => "    # chat: true  # for a model with a chat template; this one has none\n",
    };
    text += &format!(
        "    prompts: 16  # of the first items; `all` for a result that counts\n    \
         max-new-tokens: {most}  # the longest right answer looked at has {answer} tokens\n    \
         metrics: [{metrics}]  # {why}\n"
    );
    if !model.has_chat {
        text += "    stop: [\"\\n\"]  # a model that was not taught to stop goes on with another item\n";
    }
    Ok(text)
}

/// Which fields hold source and reference.
fn columns(args: &InitArgs, path: &Path, rows: &[Map<String, Value>]) -> anyhow::Result<Columns> {
    if Kind::of(path) == Kind::Text {
        if args.reference.is_none() {
            bail!(
                "{} is a text; give the right answers, a line for each, with --reference (or take JSON lines)",
                path.display()
            );
        }
        return Ok(Columns::of_text());
    }
    let source = args.source_field.as_deref();
    let reference = args.reference_field.as_deref();
    Columns::guess(rows, source, reference).map_err(|(role, all)| {
        anyhow::anyhow!(
            "{}: nothing says which field is the {role}; give --{role}-field, one of {}",
            path.display(),
            all.join(", ")
        )
    })
}

fn texts(rows: &[Map<String, Value>]) -> Vec<String> {
    let texts = rows.iter().filter_map(|row| row.get("source")?.as_str());
    texts.map(str::to_owned).collect()
}

/// The name of a file without its endings.
fn stem(path: &Path) -> String {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let stem = name.split('.').next().unwrap_or_default();
    match stem {
        "" => "task".to_owned(),
        stem => stem.to_owned(),
    }
}

/// A name that needs no quotes in YAML and is a folder everywhere.
fn plain(name: &str) -> String {
    let plain: String = name
        .chars()
        .map(|c| {
            if c.is_ascii_alphanumeric() || "-_".contains(c) {
                c
            } else {
                '-'
            }
        })
        .collect();
    match plain.starts_with(|c: char| c.is_ascii_alphabetic()) {
        true => plain,
        false => format!("task-{plain}"),
    }
}

/// A text as YAML takes it whatever it holds: JSON's strings are YAML's.
fn quoted(text: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_./".contains(c);
    match text.chars().all(is_plain)
        && text.starts_with(|c: char| c.is_ascii_alphabetic() || "./".contains(c))
    {
        true => text.to_owned(),
        false => Value::from(text).to_string(),
    }
}
