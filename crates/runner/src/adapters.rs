//! Low-rank adapters beside the models that they are made for.

use crate::digest::{CheckpointDigest, of_texts};
use anyhow::{Context, bail};
use serde_json::Value;
use skipbench_model::ADAPTER_BASE;
use std::path::Path;

/// The digest of a checkpoint with an adapter.
///
/// # Errors
/// A folder that cannot be read, an adapter that was made for another checkpoint.
pub(crate) fn adapted(base: CheckpointDigest, adapter: &Path) -> anyhow::Result<CheckpointDigest> {
    check(&base, adapter)?;
    let own = CheckpointDigest::of(adapter)?;
    Ok(CheckpointDigest {
        weights: of_texts([&base.weights, &own.weights, &own.config].map(String::as_str)),
        ..base
    })
}

/// Refuses an adapter that was made for another checkpoint.
///
/// # Errors
/// It was, or what says so cannot be read.
pub(crate) fn check(base: &CheckpointDigest, adapter: &Path) -> anyhow::Result<()> {
    if !adapter.is_dir() {
        bail!(
            "there is no adapter folder {}; `skipbench train` writes one, where its `adapter` key is set",
            adapter.display()
        );
    }
    let path = adapter.join(ADAPTER_BASE);
    if !path.is_file() {
        tracing::warn!(
            "{} does not say which checkpoint it was made for, as adapters from elsewhere do not",
            adapter.display()
        );
        return Ok(());
    }
    let text = std::fs::read_to_string(&path)
        .with_context(|| format!("cannot read {}", path.display()))?;
    let made_for: Value = serde_json::from_str(&text)
        .with_context(|| format!("{}: not valid JSON", path.display()))?;
    let weights = made_for["weights"].as_str();
    if weights != Some(base.weights.as_str()) {
        bail!(
            "the adapter {} was made for a checkpoint with other weights (SHA-256 {}, and this one has {}); give the checkpoint that it was trained on",
            adapter.display(),
            short(weights.unwrap_or("not said")),
            short(&base.weights)
        );
    }
    Ok(())
}

fn short(digest: &str) -> &str {
    digest.get(..12).unwrap_or(digest)
}
