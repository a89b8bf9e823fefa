//! Gemma 2 (arXiv 2408.00118) and the text models of Gemma 3 (arXiv 2503.19786): norms on both sides of attention and MLP
//! with `1 + weight` as their factor, scaled embeddings, layers that slide and layers that see everything.

use super::Family;
use super::llama::{base, frame_with};
use super::names::Names;
use crate::checkpoint::Checkpoint;
use crate::config::{
    Activation, Biases, ConfigFile, LayerKind, ModelConfig, NormPlacement, PositionScheme,
};
use crate::error::Result;
use crate::rope::{Rope, RopeDefaults};
use crate::weights::{Frame, LayerWeights, Norm, Norms};
use serde_json::Value;

/// Places in the config's positions.
const GLOBAL: usize = 0;
const LOCAL: usize = 1;

pub(super) fn config(family: Family, file: &ConfigFile) -> Result<ModelConfig> {
    if file.bool_or("use_bidirectional_attention", false)? {
        return Err(file.error(
            "`use_bidirectional_attention: true` is not supported: such a model embeds text and continues none",
        ));
    }
    let d_ff = file.usize("intermediate_size")?;
    let plain = ModelConfig::plain(file, family, d_ff, Some(256))?;
    let bias = file.bool_or("attention_bias", false)?;
    let config = ModelConfig {
        activation: file.activation("hidden_activation", Activation::GeluTanh)?,
        norms: NormPlacement::Around,
        biases: Biases {
            qkv: bias,
            attention_out: bias,
            mlp: false,
        },
        tied_head: file.bool_or("tie_word_embeddings", true)?,
        score_scale: 1.0 / file.positive_or("query_pre_attn_scalar", 256.0)?.sqrt(),
        embedding_scale: Some((plain.d_model as f64).sqrt()),
        ..plain
    };
    match family {
        Family::Gemma2 => gemma2(file, config),
        _ => gemma3(file, config),
    }
}

/// Every other layer slides, and scores and logits have a soft cap.
fn gemma2(file: &ConfigFile, config: ModelConfig) -> Result<ModelConfig> {
    let windows = windows(file, config.n_layers, |layer| layer % 2 == 0)?;
    let config = ModelConfig {
        score_cap: file.cap("attn_logit_softcapping", Some(50.0))?,
        logit_cap: file.cap("final_logit_softcapping", Some(30.0))?,
        ..config
    };
    Ok(config.with_rope(file)?.with_windows(windows))
}

/// Five of six layers slide, and turn by a base of their own.
fn gemma3(file: &ConfigFile, config: ModelConfig) -> Result<ModelConfig> {
    // transformers does not read `_sliding_window_pattern`, which stands beside `layer_types`.
    let pattern = file.usize_or("sliding_window_pattern", Some(6))?;
    let windows = windows(file, config.n_layers, |layer| {
        !(layer + 1).is_multiple_of(pattern)
    })?;
    if file.cap("attn_logit_softcapping", None)?.is_some() {
        tracing::warn!(
            "{}: `attn_logit_softcapping` has no effect in Gemma 3, as in transformers",
            file.path.display()
        );
    }
    let layers = windows.into_iter().map(|window| LayerKind {
        window,
        positions: if window.is_some() { LOCAL } else { GLOBAL },
    });
    let [global, local] = ropes(file, config.head_dim)?;
    Ok(ModelConfig {
        layers: layers.collect(),
        max_positions: global.max_positions.min(local.max_positions),
        positions: vec![PositionScheme::Rope(global), PositionScheme::Rope(local)],
        logit_cap: file.cap("final_logit_softcapping", None)?,
        ..config
    })
}

fn windows(
    file: &ConfigFile,
    n_layers: usize,
    slides: impl Fn(usize) -> bool,
) -> Result<Vec<Option<usize>>> {
    let window = file.window(Some(4096))?;
    match window.is_none() && file.get("layer_types").is_none() {
        true => Err(file.error("`sliding_window` is null, but layers of this family slide")),
        false => file.windows(n_layers, window, slides),
    }
}

/// Of the layers that see everything and of those that slide: `rope_parameters` has an object for each (v5), or
/// `rope_scaling`, which is of the first alone, stands beside two bases (v4).
fn ropes(file: &ConfigFile, head_dim: usize) -> Result<[Rope; 2]> {
    let nested = |kind: &str| {
        let values = file.get("rope_parameters").and_then(|all| all.get(kind));
        values
            .and_then(Value::as_object)
            .cloned()
            .unwrap_or_default()
    };
    let mut global = nested("full_attention");
    if let Some(scaling) = file.get("rope_scaling").and_then(Value::as_object) {
        global.extend(scaling.clone());
    }
    let read = |values, theta| {
        let defaults = RopeDefaults {
            theta,
            trained: None,
            ..RopeDefaults::of(file, head_dim)?
        };
        Rope::read(file, Some(&Value::Object(values)), defaults)
    };
    Ok([
        read(global, file.positive_or("rope_theta", 1e6)?)?,
        read(
            nested("sliding_attention"),
            file.positive_or("rope_local_base_freq", 1e4)?,
        )?,
    ])
}

pub(super) fn frame(checkpoint: &Checkpoint, config: &ModelConfig) -> Result<Frame> {
    let base = base(checkpoint);
    let norm = norm(&base, "norm", config.d_model, config)?;
    frame_with(&base, config, norm)
}

/// A norm by `1 + weight`.
fn norm(names: &Names<'_>, name: &str, width: usize, config: &ModelConfig) -> Result<Norm> {
    names.rms_norm_in_f32(name, width, config.norm_eps, 1.0)
}

pub(super) fn layer(
    checkpoint: &Checkpoint,
    config: &ModelConfig,
    index: usize,
) -> Result<LayerWeights> {
    let names = base(checkpoint).layer("layers", index);
    let in_attention = names.under("self_attn");
    let mut attention = in_attention.attention(config, "o_proj")?;
    if config.family == Family::Gemma3 {
        attention.q_norm = Some(norm(&in_attention, "q_norm", config.head_dim, config)?);
        attention.k_norm = Some(norm(&in_attention, "k_norm", config.head_dim, config)?);
    }
    let around = |before: &str, after: &str| -> Result<Norms> {
        Ok(Norms {
            before: Some(norm(&names, before, config.d_model, config)?),
            after: Some(norm(&names, after, config.d_model, config)?),
            sum: None,
        })
    };
    Ok(LayerWeights {
        attention_norms: around("input_layernorm", "post_attention_layernorm")?,
        attention,
        mlp_norms: around("pre_feedforward_layernorm", "post_feedforward_layernorm")?,
        mlp: names.under("mlp").gated_mlp(config)?,
    })
}
