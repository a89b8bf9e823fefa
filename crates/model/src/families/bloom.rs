//! BLOOM and BLOOMZ, as `modeling_bloom.py` of transformers names their tensors.

use super::Family;
use crate::checkpoint::Checkpoint;
use crate::config::{Biases, ConfigFile, ModelConfig, PositionScheme};
use crate::error::Result;
use crate::weights::{Frame, LayerWeights, Linear, Mlp, Norm};
use candle_core::Tensor;

pub(super) fn config(file: &ConfigFile) -> Result<ModelConfig> {
    let d_model = match file.get("hidden_size") {
        Some(_) => file.usize("hidden_size")?,
        None => file.usize("n_embed")?,
    };
    let n_layers = match file.get("n_layer") {
        Some(_) => file.usize("n_layer")?,
        None => file.usize("num_hidden_layers")?,
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
    Ok(ModelConfig {
        family: Family::Bloom,
        vocab_size: file.usize("vocab_size")?,
        d_model,
        n_layers,
        n_heads,
        n_kv_heads: n_heads,
        head_dim: d_model / n_heads,
        d_ff: 4 * d_model,
        norm_eps: file.f64_or("layer_norm_epsilon", 1e-5)?,
        // ALiBi has no position limit of its own.
        max_positions: None,
        positions: PositionScheme::Alibi {
            slopes: alibi_slopes(n_heads),
        },
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

/// Checkpoints exist with and without the `transformer.` in front.
fn prefix(checkpoint: &Checkpoint) -> &'static str {
    if checkpoint.has("word_embeddings.weight") {
        ""
    } else {
        "transformer."
    }
}

pub(super) fn frame(checkpoint: &Checkpoint, config: &ModelConfig) -> Result<Frame> {
    let prefix = prefix(checkpoint);
    let shape = [config.vocab_size, config.d_model];
    let embedding = checkpoint.tensor(&format!("{prefix}word_embeddings.weight"), &shape)?;
    let head = if config.tied_head {
        embedding.clone()
    } else {
        checkpoint.tensor("lm_head.weight", &shape)?
    };
    Ok(Frame {
        embedding,
        embedding_norm: Some(norm(
            checkpoint,
            config,
            &format!("{prefix}word_embeddings_layernorm"),
        )?),
        final_norm: norm(checkpoint, config, &format!("{prefix}ln_f"))?,
        head,
    })
}

pub(super) fn layer(
    checkpoint: &Checkpoint,
    config: &ModelConfig,
    index: usize,
) -> Result<LayerWeights> {
    let prefix = format!("{}h.{index}", prefix(checkpoint));
    let linear = |name: &str, rows: usize, columns: usize| -> Result<Linear> {
        Ok(Linear {
            weight: checkpoint.tensor(&format!("{prefix}.{name}.weight"), &[rows, columns])?,
            bias: Some(checkpoint.tensor(&format!("{prefix}.{name}.bias"), &[rows])?),
        })
    };
    let (d, f) = (config.d_model, config.d_ff);
    let fused = linear("self_attention.query_key_value", 3 * d, d)?;
    let [q, k, v] = split_fused(&fused, config)?;
    Ok(LayerWeights {
        attention_norm: norm(checkpoint, config, &format!("{prefix}.input_layernorm"))?,
        q,
        k,
        v,
        o: linear("self_attention.dense", d, d)?,
        mlp_norm: norm(
            checkpoint,
            config,
            &format!("{prefix}.post_attention_layernorm"),
        )?,
        mlp: Mlp::Gelu {
            up: linear("mlp.dense_h_to_4h", f, d)?,
            down: linear("mlp.dense_4h_to_h", d, f)?,
        },
    })
}

/// The fused projection interleaves per head: rows are `[n_heads, (q, k, v), head_dim]`.
fn split_fused(fused: &Linear, config: &ModelConfig) -> Result<[Linear; 3]> {
    let (heads, width, d) = (config.n_heads, config.head_dim, config.d_model);
    let weight = fused.weight.reshape((heads, 3, width, d))?;
    let bias = match &fused.bias {
        Some(bias) => Some(bias.reshape((heads, 3, width))?),
        None => None,
    };
    let part = |index: usize| -> Result<Linear> {
        let pick = |tensor: &Tensor| tensor.narrow(1, index, 1)?.contiguous();
        Ok(Linear {
            weight: pick(&weight)?.reshape((d, d))?,
            bias: match &bias {
                Some(bias) => Some(pick(bias)?.reshape(d)?),
                None => None,
            },
        })
    };
    Ok([part(0)?, part(1)?, part(2)?])
}

fn norm(checkpoint: &Checkpoint, config: &ModelConfig, name: &str) -> Result<Norm> {
    Ok(Norm::Layer {
        weight: checkpoint.tensor(&format!("{name}.weight"), &[config.d_model])?,
        bias: checkpoint.tensor(&format!("{name}.bias"), &[config.d_model])?,
        eps: config.norm_eps,
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
