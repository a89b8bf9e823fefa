//! GPT-NeoX and Pythia (arXiv 2204.06745, 2304.01373): attention and MLP beside each other, a share of each head turns.

use super::Family;
use super::names::Names;
use crate::checkpoint::Checkpoint;
use crate::config::{Activation, Biases, ConfigFile, ModelConfig, PositionScheme};
use crate::error::Result;
use crate::rope::{Rope, RopeDefaults};
use crate::weights::{Frame, LayerWeights, Mlp, Norms};

pub(super) fn config(file: &ConfigFile) -> Result<ModelConfig> {
    let d_ff = file.usize("intermediate_size")?;
    let bias = file.bool_or("attention_bias", true)?;
    let plain = ModelConfig::plain(file, Family::GptNeoX, d_ff, None)?;
    let parameters = file.rope_parameters()?;
    let partial = parameters.and_then(|values| values.get("partial_rotary_factor"));
    let partial = match partial.and_then(serde_json::Value::as_f64) {
        Some(partial) => partial,
        None => file.positive_or("rotary_pct", 0.25)?,
    };
    let defaults = RopeDefaults {
        theta: file.positive_or("rotary_emb_base", 10_000.0)?,
        partial,
        ..RopeDefaults::of(file, plain.head_dim)?
    };
    let rope = Rope::read(file, parameters, defaults)?;
    Ok(ModelConfig {
        norm_eps: file.f64_or("layer_norm_eps", 1e-5)?,
        activation: file.activation("hidden_act", Activation::Gelu)?,
        parallel: file.bool_or("use_parallel_residual", true)?,
        biases: Biases {
            qkv: bias,
            attention_out: bias,
            mlp: true,
        },
        n_kv_heads: plain.n_heads,
        max_positions: rope.max_positions,
        positions: vec![PositionScheme::Rope(rope)],
        ..plain
    })
}

fn base(checkpoint: &Checkpoint) -> Names<'_> {
    Names::base(
        checkpoint,
        &["gpt_neox.", ""],
        "layers.0.input_layernorm.weight",
    )
}

pub(super) fn frame(checkpoint: &Checkpoint, config: &ModelConfig) -> Result<Frame> {
    let base = base(checkpoint);
    // The head was called `embed_out` before transformers 5.
    let heads = ["embed_out.weight", "lm_head.weight"];
    let (embedding, head) = base.embedding_and_head(config, "embed_in.weight", &heads)?;
    Ok(Frame {
        final_norm: Some(base.layer_norm("final_layer_norm", config.d_model, config.norm_eps)?),
        ..Frame::new(embedding, head)
    })
}

pub(super) fn layer(
    checkpoint: &Checkpoint,
    config: &ModelConfig,
    index: usize,
) -> Result<LayerWeights> {
    let names = base(checkpoint).layer("layers", index);
    let (d, f, eps) = (config.d_model, config.d_ff, config.norm_eps);
    let in_attention = names.under("attention");
    let before =
        |name: &str| -> Result<Norms> { Ok(Norms::before(names.layer_norm(name, d, eps)?)) };
    Ok(LayerWeights {
        attention_norms: before("input_layernorm")?,
        attention: in_attention.interleaved_attention(config, "query_key_value", "dense")?,
        mlp_norms: before("post_attention_layernorm")?,
        mlp: Mlp {
            gate: None,
            up: names.linear("mlp.dense_h_to_4h", f, d, true)?,
            down: names.linear("mlp.dense_4h_to_h", d, f, true)?,
        },
    })
}
