//! LLaMA, Mistral, Qwen2 and Qwen3, as `modeling_llama.py` of transformers names their tensors.

use super::Family;
use super::names::Names;
use crate::checkpoint::Checkpoint;
use crate::config::{Biases, ConfigFile, ModelConfig};
use crate::error::Result;
use crate::weights::{Frame, LayerWeights, Norm, Norms};

pub(super) fn config(family: Family, file: &ConfigFile) -> Result<ModelConfig> {
    let head_dim = (family == Family::Qwen3).then_some(128);
    let config = ModelConfig::plain(file, family, file.usize("intermediate_size")?, head_dim)?;
    let has_biases = matches!(family, Family::Llama | Family::Qwen3);
    let attention_bias = has_biases && file.bool_or("attention_bias", false)?;
    let biases = Biases {
        qkv: attention_bias || family == Family::Qwen2,
        attention_out: attention_bias,
        mlp: family == Family::Llama && file.bool_or("mlp_bias", false)?,
    };
    let windows = windows(family, file, config.n_layers)?;
    let config = ModelConfig { biases, ..config };
    Ok(config.with_rope(file)?.with_windows(windows))
}

/// Mistral slides in every layer. Qwen carries a window that it does not use unless told to, and then from layer
/// `max_window_layers` on.
fn windows(family: Family, file: &ConfigFile, n_layers: usize) -> Result<Vec<Option<usize>>> {
    match family {
        Family::Mistral => file.window(Some(4096)).map(|window| vec![window; n_layers]),
        Family::Qwen2 | Family::Qwen3 => {
            let window = match file.bool_or("use_sliding_window", false)? {
                true => file.window(Some(4096))?,
                false => None,
            };
            let first = match file.get("max_window_layers") {
                None => 28,
                // The least of all is no layer, so it may be 0.
                Some(value) => value.as_u64().ok_or_else(|| {
                    file.error(format!(
                        "key `max_window_layers` must be a number of layers, got {value}"
                    ))
                })?,
            };
            file.windows(n_layers, window, |layer| layer as u64 >= first)
        }
        _ => Ok(vec![None; n_layers]),
    }
}

/// Tensors of the base model, which are written without `model.` where it has no LM head.
pub(super) fn base(checkpoint: &Checkpoint) -> Names<'_> {
    Names::base(checkpoint, &["model.", ""], "layers.0.mlp.down_proj.weight")
}

pub(super) fn frame(checkpoint: &Checkpoint, config: &ModelConfig) -> Result<Frame> {
    let base = base(checkpoint);
    let norm = base.rms_norm("norm", config.d_model, config.norm_eps)?;
    frame_with(&base, config, norm)
}

/// Embedding and LM head by their usual names, with the norm in front of the head.
pub(super) fn frame_with(base: &Names<'_>, config: &ModelConfig, norm: Norm) -> Result<Frame> {
    let (embedding, head) =
        base.embedding_and_head(config, "embed_tokens.weight", &["lm_head.weight"])?;
    Ok(Frame {
        final_norm: Some(norm),
        ..Frame::new(embedding, head)
    })
}

pub(super) fn layer(
    checkpoint: &Checkpoint,
    config: &ModelConfig,
    index: usize,
) -> Result<LayerWeights> {
    let names = base(checkpoint).layer("layers", index);
    let (d, eps) = (config.d_model, config.norm_eps);
    let in_attention = names.under("self_attn");
    let mut attention = in_attention.attention(config, "o_proj")?;
    if config.family == Family::Qwen3 {
        attention.q_norm = Some(in_attention.rms_norm("q_norm", config.head_dim, eps)?);
        attention.k_norm = Some(in_attention.rms_norm("k_norm", config.head_dim, eps)?);
    }
    Ok(LayerWeights {
        attention_norms: Norms::before(names.rms_norm("input_layernorm", d, eps)?),
        attention,
        mlp_norms: Norms::before(names.rms_norm("post_attention_layernorm", d, eps)?),
        mlp: names.under("mlp").gated_mlp(config)?,
    })
}
