//! BLOOM and BLOOMZ, as `modeling_bloom.py` of transformers names their tensors.

use super::Family;
use super::names::Names;
use crate::checkpoint::Checkpoint;
use crate::config::{
    Activation, Biases, ConfigFile, LayerKind, ModelConfig, NormPlacement, PositionScheme,
};
use crate::error::Result;
use crate::weights::{Frame, LayerWeights, Mlp, Norms};

pub(super) fn config(file: &ConfigFile) -> Result<ModelConfig> {
    let d_model = match file.get("hidden_size") {
        Some(_) => file.usize("hidden_size")?,
        None => file.usize("n_embed")?,
    };
    let n_layers = match file.get("n_layer") {
        Some(_) => file.n_layers("n_layer")?,
        None => file.n_layers("num_hidden_layers")?,
    };
    let n_heads = match file.get("n_head") {
        Some(_) => file.usize("n_head")?,
        None => file.usize("num_attention_heads")?,
    };
    if !d_model.is_multiple_of(n_heads) {
        return Err(file.error(format!(
            "hidden_size {d_model} does not divide into {n_heads} heads"
        )));
    }
    if file.bool_or("apply_residual_connection_post_layernorm", false)? {
        return Err(file.error(
            "`apply_residual_connection_post_layernorm: true` is not supported; no released BLOOM uses it",
        ));
    }
    let head_dim = d_model / n_heads;
    Ok(ModelConfig {
        family: Family::Bloom,
        vocab_size: file.usize("vocab_size")?,
        d_model,
        d_embed: d_model,
        n_layers,
        n_heads,
        n_kv_heads: n_heads,
        head_dim,
        d_ff: 4 * d_model,
        norm_eps: file.f64_or("layer_norm_epsilon", 1e-5)?,
        // ALiBi has no position limit of its own.
        max_positions: None,
        positions: vec![PositionScheme::Alibi {
            slopes: alibi_slopes(n_heads),
        }],
        layers: vec![LayerKind::default(); n_layers],
        score_scale: 1.0 / (head_dim as f64).sqrt(),
        score_cap: None,
        logit_cap: None,
        embedding_scale: None,
        activation: Activation::GeluTanh,
        norms: NormPlacement::Before,
        parallel: false,
        tied_head: file.bool_or("tie_word_embeddings", true)?,
        biases: Biases {
            qkv: true,
            attention_out: true,
            mlp: true,
        },
        dtype: file.dtype()?,
    })
}

/// One slope per head: a geometric series for the largest power of two up to `n_heads`, the remaining
/// heads taking every other slope of the series for twice that power (arXiv 2108.12409, appendix A).
fn alibi_slopes(n_heads: usize) -> Vec<f32> {
    let power = if n_heads.is_power_of_two() {
        n_heads
    } else {
        n_heads.next_power_of_two() / 2
    };
    let series = |heads: usize| {
        let base = 2f64.powf(-8.0 / heads as f64);
        (1..).map(move |exponent| base.powi(exponent) as f32)
    };
    series(power)
        .take(power)
        .chain(series(2 * power).step_by(2).take(n_heads - power))
        .collect()
}

fn base(checkpoint: &Checkpoint) -> Names<'_> {
    Names::base(
        checkpoint,
        &["transformer.", ""],
        "h.0.input_layernorm.weight",
    )
}

pub(super) fn frame(checkpoint: &Checkpoint, config: &ModelConfig) -> Result<Frame> {
    let base = base(checkpoint);
    let (d, eps) = (config.d_model, config.norm_eps);
    let (embedding, head) =
        base.embedding_and_head(config, "word_embeddings.weight", &["lm_head.weight"])?;
    Ok(Frame {
        embedding_norm: Some(base.layer_norm("word_embeddings_layernorm", d, eps)?),
        final_norm: Some(base.layer_norm("ln_f", d, eps)?),
        ..Frame::new(embedding, head)
    })
}

pub(super) fn layer(
    checkpoint: &Checkpoint,
    config: &ModelConfig,
    index: usize,
) -> Result<LayerWeights> {
    let names = base(checkpoint).layer("h", index);
    let (d, f, eps) = (config.d_model, config.d_ff, config.norm_eps);
    let in_attention = names.under("self_attention");
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slopes_of_a_power_of_two_are_geometric() {
        let slopes = alibi_slopes(8);
        let expected: Vec<f32> = (1..=8).map(|i| 2f32.powi(-i)).collect();
        assert_eq!(slopes, expected);
    }

    #[test]
    fn other_head_counts_interleave_the_next_series() {
        let slopes = alibi_slopes(6);
        let expected = [0.25, 0.0625, 0.015_625, 0.003_906_25, 0.5, 0.125];
        assert_eq!(slopes.len(), 6);
        for (slope, expected) in slopes.iter().zip(expected) {
            assert!((slope - expected).abs() < 1e-7, "{slopes:?}");
        }
    }
}
