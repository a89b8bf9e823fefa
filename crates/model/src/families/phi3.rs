//! Phi-3 and Phi-4-mini (arXiv 2404.14219, 2503.01743): the LLaMA layer with projections in one piece, and LongRoPE.

use super::Family;
use super::llama::base;
use crate::checkpoint::Checkpoint;
use crate::config::{ConfigFile, ModelConfig, PositionScheme};
use crate::error::Result;
use crate::rope::{Rope, RopeDefaults};
use crate::weights::{Attention, LayerWeights, Mlp, Norms};

pub(super) fn config(file: &ConfigFile) -> Result<ModelConfig> {
    let plain = ModelConfig::plain(file, Family::Phi3, file.usize("intermediate_size")?, None)?;
    let parameters = file.rope_parameters()?;
    let partial = parameters.and_then(|values| values.get("partial_rotary_factor"));
    let partial = match partial.and_then(serde_json::Value::as_f64) {
        Some(partial) => partial,
        None => file.positive_or("partial_rotary_factor", 1.0)?,
    };
    let defaults = RopeDefaults {
        partial,
        trained: Some(file.usize_or("original_max_position_embeddings", Some(4096))?),
        yarn_is_longrope: true,
        ..RopeDefaults::of(file, plain.head_dim)?
    };
    let rope = Rope::read(file, parameters, defaults)?;
    let windows = vec![file.window(None)?; plain.n_layers];
    let config = ModelConfig {
        norm_eps: file.f64_or("rms_norm_eps", 1e-5)?,
        max_positions: rope.max_positions,
        positions: vec![PositionScheme::Rope(rope)],
        ..plain
    };
    Ok(config.with_windows(windows))
}

pub(super) fn layer(
    checkpoint: &Checkpoint,
    config: &ModelConfig,
    index: usize,
) -> Result<LayerWeights> {
    let names = base(checkpoint).layer("layers", index);
    let (d, f, eps) = (config.d_model, config.d_ff, config.norm_eps);
    let (q_width, kv_width) = (config.q_width(), config.kv_width());
    let rows = [q_width, kv_width, kv_width];
    let [q, k, v] = names.stacked("self_attn.qkv_proj", rows, d, false)?;
    let [gate, up] = names.stacked("mlp.gate_up_proj", [f, f], d, false)?;
    Ok(LayerWeights {
        attention_norms: Norms::before(names.rms_norm("input_layernorm", d, eps)?),
        attention: Attention {
            q,
            k,
            v,
            o: names.linear("self_attn.o_proj", d, q_width, false)?,
            q_norm: None,
            k_norm: None,
        },
        mlp_norms: Norms::before(names.rms_norm("post_attention_layernorm", d, eps)?),
        mlp: Mlp {
            gate: Some(gate),
            up,
            down: names.linear("mlp.down_proj", d, f, false)?,
        },
    })
}
