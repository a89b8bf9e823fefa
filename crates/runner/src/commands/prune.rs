//! `skipbench prune`.

use super::layers::{fixed_layers, resolve};
use crate::experiment::MAX_NEW_TOKENS;
use crate::{layer_files, models, progress};
use anyhow::{Context, bail};
use clap::Args;
use safetensors::SafeTensors;
use serde_json::{Map, Value, json};
use skipbench_fs::Staged;
use skipbench_model::{ModelConfig, human, weight_files};
use skipbench_strategy::StrategySpec;
use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Arguments of `skipbench prune`.
#[derive(Debug, Args)]
pub struct PruneArgs {
    /// Checkpoint folder or hub:owner/name[@revision]
    #[arg(long)]
    model: PathBuf,
    /// Strategy that runs the same whole layers at every step, such as `unified@2` or `drop-list: {file: layers.txt}`
    #[arg(long, value_parser = layer_files::parse)]
    strategy: StrategySpec,
    /// Folder to write
    #[arg(long)]
    out: PathBuf,
    /// Prompts to calibrate the strategy on, for layers that are chosen by scores
    #[arg(long)]
    calibration: Option<PathBuf>,
    /// Longest answer in tokens, of the calibration
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=MAX_NEW_TOKENS as i64))]
    max_new_tokens: u32,
    /// Replace the model in a folder that is not empty
    #[arg(long)]
    force: bool,
}

/// Writes the checkpoint with the strategy's layers alone.
///
/// # Errors
/// A checkpoint or a strategy that cannot be used, a folder that cannot be written or holds something.
pub fn run(args: &PruneArgs) -> anyhow::Result<ExitCode> {
    let model = models::look(&args.model)?.path;
    if model.is_file() {
        bail!(
            "{} is one file; `prune` cuts Hugging Face folders, such as the one that a GGUF file was made from",
            model.display()
        );
    }
    check_out(&args.out, &model, args.force)?;
    let (spec, n_layers) = resolve(
        &args.strategy,
        &args.model,
        args.calibration.as_deref(),
        args.max_new_tokens,
    )?;
    let kept = kept_layers(&spec, n_layers).with_context(|| format!("strategy `{spec}`"))?;
    let model = models::fetch(&args.model)?;
    let written = write(&model, &args.out, &kept, n_layers)?;
    writeln!(
        progress::Stderr,
        "{}: {} of {n_layers} layers, {} of weights",
        args.out.display(),
        kept.len(),
        human(u128::from(written))
    )?;
    Ok(ExitCode::SUCCESS)
}

fn check_out(out: &Path, model: &Path, force: bool) -> anyhow::Result<()> {
    if !out.exists() {
        return Ok(());
    }
    let same = || -> std::io::Result<bool> { Ok(out.canonicalize()? == model.canonicalize()?) };
    if same().unwrap_or(false) {
        bail!(
            "--out {} is the model itself; name another folder",
            out.display()
        );
    }
    let mut entries = fs::read_dir(out)
        .with_context(|| format!("--out {} is no folder that can be read", out.display()))?;
    if entries.next().is_some() && !force {
        bail!(
            "--out {} is not empty; name another folder, or give --force to replace the model in it",
            out.display()
        );
    }
    Ok(())
}

/// The layers that stay, ascending.
fn kept_layers(spec: &StrategySpec, n_layers: usize) -> anyhow::Result<Vec<usize>> {
    let layers = fixed_layers(spec, n_layers)?;
    let part = (0..n_layers).find(|&layer| layers.has_attention(layer) != layers.has_mlp(layer));
    if let Some(layer) = part {
        bail!(
            "it drops {} of layer {layer} alone; a checkpoint has whole layers, so only those can be cut out",
            if layers.has_mlp(layer) {
                "the attention"
            } else {
                "the MLP"
            }
        );
    }
    Ok(layers.to_vec())
}

const CONFIG: &str = "config.json";
const INDEX: &str = "model.safetensors.index.json";

/// Writes the folder; gives the bytes of its weights. All files are staged before the first takes its place, the configuration
/// comes last, and one that stood there goes first: what is cut off is no model.
fn write(model: &Path, out: &Path, kept: &[usize], n_layers: usize) -> anyhow::Result<u64> {
    let config = smaller_config(model, kept, n_layers)?;
    let mut places = vec![None; n_layers];
    for (place, &layer) in kept.iter().enumerate() {
        places[layer] = Some(place);
    }
    fs::create_dir_all(out).with_context(|| format!("cannot create {}", out.display()))?;
    let (mut staged, mut names) = (Vec::new(), Vec::new());
    let mut stage = |name: &str, bytes: &[u8]| -> anyhow::Result<()> {
        staged.push(Staged::write(&out.join(name), |path| {
            fs::write(path, bytes)
        })?);
        names.push(name.to_owned());
        Ok(())
    };
    let (mut weight_map, mut total) = (BTreeMap::new(), 0);
    let files = weight_files(model)?;
    for file in &files {
        let bytes = fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
        let shard = smaller_shard(&bytes, &places)
            .with_context(|| format!("{}: not a safetensors file", file.display()))?;
        let name = file.file_name().unwrap_or_default().to_string_lossy();
        if shard.names.is_empty() {
            continue;
        }
        total += shard.bytes;
        let held = shard
            .names
            .into_iter()
            .map(|tensor| (tensor, name.to_string()));
        weight_map.extend(held);
        stage(&name, &shard.file)?;
    }
    if files.len() > 1 {
        let index = json!({"metadata": {"total_size": total}, "weight_map": weight_map});
        stage(INDEX, &pretty(&index)?)?;
    }
    for path in other_files(model)? {
        let bytes = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        stage(&name, &bytes)?;
    }
    stage(CONFIG, &pretty(&config)?)?;
    clear(out, &names)?;
    for file in staged {
        file.put_in_place()?;
    }
    Ok(total)
}

fn pretty(value: &Value) -> serde_json::Result<Vec<u8>> {
    let mut bytes = serde_json::to_vec_pretty(value)?;
    bytes.push(b'\n');
    Ok(bytes)
}

/// `config.json` with fewer layers. Lists with an entry for each layer are cut; where layers look back differently and no list
/// says so, because the pattern follows from their places, the list is written.
fn smaller_config(model: &Path, kept: &[usize], n_layers: usize) -> anyhow::Result<Value> {
    let path = model.join(CONFIG);
    let read = || format!("cannot read {}", path.display());
    let text = fs::read_to_string(&path).with_context(read)?;
    let text = text.trim_start_matches('\u{feff}');
    let mut config: Map<String, Value> = serde_json::from_str(text).with_context(read)?;
    let counts = ["num_hidden_layers", "n_layer"];
    let mut counted = false;
    for count in counts {
        if let Some(value) = config.get_mut(count) {
            *value = kept.len().into();
            counted = true;
        }
    }
    if !counted {
        bail!(
            "{}: none of the keys {} is there",
            path.display(),
            counts.join(", ")
        );
    }
    for (key, value) in &mut config {
        if let Value::Array(entries) = value
            && entries.len() == n_layers
            && key.contains("layer")
        {
            *entries = kept.iter().map(|&layer| entries[layer].clone()).collect();
        }
    }
    let layers = ModelConfig::open(model)?.layers;
    let differ = layers
        .windows(2)
        .any(|pair| pair[0].window != pair[1].window);
    if differ && !config.contains_key("layer_types") {
        let kinds = kept.iter().map(|&layer| match layers[layer].window {
            Some(_) => "sliding_attention",
            None => "full_attention",
        });
        config.insert("layer_types".to_owned(), kinds.collect());
    }
    Ok(Value::Object(config))
}

/// A file of weights without the layers that go.
struct Shard {
    file: Vec<u8>,
    names: Vec<String>,
    /// Bytes of its tensors.
    bytes: u64,
}

fn smaller_shard(
    bytes: &[u8],
    places: &[Option<usize>],
) -> Result<Shard, safetensors::SafeTensorError> {
    let (_, metadata) = SafeTensors::read_metadata(bytes)?;
    // transformers refuses files that do not say what wrote them.
    let metadata = metadata
        .metadata()
        .clone()
        .unwrap_or_else(|| HashMap::from([("format".to_owned(), "pt".to_owned())]));
    let tensors = SafeTensors::deserialize(bytes)?;
    let kept = tensors
        .iter()
        .filter_map(|(name, tensor)| Some((renamed(name, places)?, tensor)));
    let kept: Vec<_> = kept.collect();
    Ok(Shard {
        names: kept.iter().map(|(name, _)| name.clone()).collect(),
        bytes: kept
            .iter()
            .map(|(_, tensor)| tensor.data().len() as u64)
            .sum(),
        file: safetensors::serialize(kept, Some(metadata))?,
    })
}

/// The name of a tensor in the smaller model; `None` if its layer goes. Layers are numbered behind `layers.` or `h.` in every
/// family.
fn renamed(name: &str, places: &[Option<usize>]) -> Option<String> {
    let mut parts: Vec<String> = name.split('.').map(str::to_owned).collect();
    let numbered = parts.windows(2).position(|pair| {
        ["layers", "h"].contains(&pair[0].as_str()) && pair[1].parse::<usize>().is_ok()
    });
    if let Some(at) = numbered {
        let layer: usize = parts[at + 1].parse().ok()?;
        // What is numbered beyond the model's layers is not read.
        parts[at + 1] = places.get(layer).copied().flatten()?.to_string();
    }
    Some(parts.join("."))
}

/// What a folder holds besides weights and configuration: tokenizer, chat template, settings of generation.
pub(super) fn other_files(model: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let read = || format!("cannot read {}", model.display());
    let mut found = Vec::new();
    for entry in fs::read_dir(model).with_context(read)? {
        let path = entry.with_context(read)?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let copied = [".json", ".txt", ".model", ".jinja"];
        let of_model = name == CONFIG || name.ends_with(".index.json");
        if path.is_file() && !of_model && copied.iter().any(|end| name.ends_with(end)) {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

/// Removes the configuration and the weights of a model that is replaced.
fn clear(out: &Path, names: &[String]) -> anyhow::Result<()> {
    let read = || format!("cannot read {}", out.display());
    for entry in fs::read_dir(out).with_context(read)? {
        let path = entry.with_context(read)?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let weights = [".safetensors", ".index.json", ".bin", ".gguf"];
        let stale = weights.iter().any(|end| name.ends_with(end));
        let is_new = names.iter().any(|new| *new == name);
        if name == CONFIG || (stale && !is_new) {
            fs::remove_file(&path).with_context(|| format!("cannot remove {}", path.display()))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_are_numbered_anew() {
        let places = [Some(0), None, Some(1)];
        for (name, wanted) in [
            (
                "model.layers.2.mlp.up_proj.weight",
                Some("model.layers.1.mlp.up_proj.weight"),
            ),
            ("h.0.ln_1.bias", Some("h.0.ln_1.bias")),
            ("transformer.h.1.mlp.weight", None),
            ("model.layers.7.mlp.weight", None),
            (
                "model.decoder.final_layer_norm.weight",
                Some("model.decoder.final_layer_norm.weight"),
            ),
            (
                "model.layers.2.mlp.layers.1.weight",
                Some("model.layers.1.mlp.layers.1.weight"),
            ),
        ] {
            assert_eq!(renamed(name, &places).as_deref(), wanted);
        }
    }
}
