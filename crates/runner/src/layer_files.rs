//! Strategies that name a file of layers (`drop-list: {file: …}`), wherever a strategy is written.

use crate::load::read_text;
use skipbench_strategy::StrategySpec;
use std::path::Path;

/// Reads a strategy of a command line; a file that it names is taken from the current folder.
///
/// # Errors
/// What is no strategy, or names a file that lists no layers; as clap shows it, so with all its causes.
pub(crate) fn parse(text: &str) -> Result<StrategySpec, String> {
    let spec: StrategySpec = text.parse().map_err(|error| format!("{error}"))?;
    read(&spec, Path::new("")).map_err(|error| format!("{error:#}"))
}

/// The strategy with what stands in the file that it names, whose path is taken from `folder`.
///
/// # Errors
/// A file that cannot be read or lists no layers.
pub(crate) fn read(spec: &StrategySpec, folder: &Path) -> anyhow::Result<StrategySpec> {
    let Some(file) = spec.layer_file() else {
        return Ok(spec.clone());
    };
    let path = folder.join(file);
    let text = read_text(&path)?;
    let named = |error| anyhow::anyhow!("{}: {error}", path.display());
    spec.with_layer_file(&text).map_err(named)
}
