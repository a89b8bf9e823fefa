//! The shape of a checkpoint that training starts from.

use anyhow::bail;
use skipbench_model::{Activation, Biases, ModelConfig, PositionScheme};
use skipbench_train::ModelShape;
use std::path::Path;

/// Positions of a model whose config names no largest one.
const POSITIONS: usize = 512;

/// Shape of a LLaMA folder.
///
/// # Errors
/// A folder that cannot be read, and a model that the trainer would compute differently.
pub(super) fn shape_of(dir: &Path) -> anyhow::Result<ModelShape> {
    if dir.is_file() {
        bail!(
            "{}: a GGUF file cannot be fine-tuned, since it has no weights to train; give the Hugging Face folder that it was made from",
            dir.display()
        );
    }
    let path = dir.join("config.json");
    let config = ModelConfig::read(&path)?;
    let text = std::fs::read_to_string(&path)?;
    let json: serde_json::Value = serde_json::from_str(&text)?;
    if config.head_dim * config.n_heads != config.d_model
        || config.family != skipbench_model::Family::Llama
        || config.biases != Biases::default()
        || config.activation != Activation::Silu
    {
        bail!(
            "{}: only LLaMA models with SiLU and without biases, whose heads fill the hidden size, can be fine-tuned",
            path.display()
        );
    }
    let rope_theta = json["rope_theta"]
        .as_f64()
        .or_else(|| json["rope_parameters"]["rope_theta"].as_f64())
        .unwrap_or(10_000.0);
    if !is_plain_rope(&config, rope_theta) {
        bail!(
            "{}: only LLaMA models without RoPE scaling can be fine-tuned",
            path.display()
        );
    }
    Ok(ModelShape {
        vocab_size: config.vocab_size,
        d_model: config.d_model,
        n_layers: config.n_layers,
        n_heads: config.n_heads,
        n_kv_heads: config.n_kv_heads,
        d_ff: config.d_ff,
        rope_theta,
        norm_eps: config.norm_eps,
        max_positions: config.max_positions.unwrap_or(POSITIONS),
        tied_head: config.tied_head,
    })
}

/// Whether the positions are rotary with nothing but this base.
fn is_plain_rope(config: &ModelConfig, theta: f64) -> bool {
    matches!(&config.positions[..], [PositionScheme::Rope(rope)] if rope.is_plain(theta, config.head_dim))
}
