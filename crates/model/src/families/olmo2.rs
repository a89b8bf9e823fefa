//! OLMo 2 (arXiv 2501.00656): norms behind attention and MLP instead of in front, queries and keys normalised over their
//! whole width.

use super::Family;
use super::llama::{base, frame_with};
use crate::checkpoint::Checkpoint;
use crate::config::{Biases, ConfigFile, ModelConfig, NormPlacement};
use crate::error::Result;
use crate::weights::{Frame, LayerWeights, Norms};

pub(super) fn config(file: &ConfigFile) -> Result<ModelConfig> {
    let d_ff = file.usize("intermediate_size")?;
    let bias = file.bool_or("attention_bias", false)?;
    let config = ModelConfig {
        norm_eps: file.f64_or("rms_norm_eps", 1e-5)?,
        norms: NormPlacement::After,
        biases: Biases {
            qkv: bias,
            attention_out: bias,
            mlp: false,
        },
        ..ModelConfig::plain(file, Family::Olmo2, d_ff, None)?
    };
    config.with_rope(file)
}

pub(super) fn frame(checkpoint: &Checkpoint, config: &ModelConfig) -> Result<Frame> {
    let base = base(checkpoint);
    let norm = base.rms_norm_in_f32("norm", config.d_model, config.norm_eps, 0.0)?;
    frame_with(&base, config, norm)
}

pub(super) fn layer(
    checkpoint: &Checkpoint,
    config: &ModelConfig,
    index: usize,
) -> Result<LayerWeights> {
    let names = base(checkpoint).layer("layers", index);
    let in_attention = names.under("self_attn");
    let mut attention = in_attention.attention(config, "o_proj")?;
    let eps = config.norm_eps;
    let over = |name: &str, width: usize| in_attention.rms_norm_in_f32(name, width, eps, 0.0);
    attention.q_norm = Some(over("q_norm", config.q_width())?);
    attention.k_norm = Some(over("k_norm", config.kv_width())?);
    let after = |name: &str| -> Result<Norms> {
        Ok(Norms {
            after: Some(names.rms_norm_in_f32(name, config.d_model, eps, 0.0)?),
            ..Norms::default()
        })
    };
    Ok(LayerWeights {
        attention_norms: after("post_attention_layernorm")?,
        attention,
        mlp_norms: after("post_feedforward_layernorm")?,
        mlp: names.under("mlp").gated_mlp(config)?,
    })
}
