//! LLaMA, Mistral and Qwen2, as `modeling_llama.py` of transformers names their tensors.

use super::Family;
use crate::checkpoint::Checkpoint;
use crate::config::{Biases, ConfigFile, ModelConfig};
use crate::error::Result;
use crate::weights::{Frame, LayerWeights, Linear, Mlp, Norm};

pub(super) fn config(family: Family, file: &ConfigFile) -> Result<ModelConfig> {
    let d_model = file.usize("hidden_size")?;
    let n_heads = file.usize("num_attention_heads")?;
    let head_dim = match file.get("head_dim") {
        Some(_) => file.usize("head_dim")?,
        None if d_model.is_multiple_of(n_heads) => d_model / n_heads,
        None => {
            return Err(file.error(format!(
                "hidden_size {d_model} does not divide into {n_heads} heads and `head_dim` is not given"
            )));
        }
    };
    match file.get("hidden_act").map(|value| value.as_str()) {
        None | Some(Some("silu")) => {}
        Some(other) => {
            return Err(file.error(format!(
                "hidden_act {other:?} is not supported in this family; `silu` is"
            )));
        }
    }
    let bias =
        |key: &str| -> Result<bool> { Ok(family == Family::Llama && file.bool_or(key, false)?) };
    let attention_bias = bias("attention_bias")?;
    let biases = Biases {
        qkv: attention_bias || family == Family::Qwen2,
        attention_out: attention_bias,
        mlp: bias("mlp_bias")?,
    };
    Ok(ModelConfig {
        family,
        vocab_size: file.usize("vocab_size")?,
        d_model,
        n_layers: file.usize("num_hidden_layers")?,
        n_heads,
        n_kv_heads: file.usize_or("num_key_value_heads", Some(n_heads))?,
        head_dim,
        d_ff: file.usize("intermediate_size")?,
        norm_eps: file.f64_or("rms_norm_eps", 1e-6)?,
        max_positions: Some(max_positions(family, file)?),
        positions: file.rope(head_dim)?,
        tied_head: file.bool_or("tie_word_embeddings", false)?,
        biases,
        dtype: file.dtype()?,
    })
}

/// The position limit. Sliding-window attention is the same as full attention while a row is no longer than the
/// window, so a model with a window is run up to that length and no further.
fn max_positions(family: Family, file: &ConfigFile) -> Result<usize> {
    let limit = file.usize("max_position_embeddings")?;
    let windowed = match family {
        Family::Mistral => true,
        // Qwen2 carries a window it does not use unless told to.
        Family::Qwen2 => file.bool_or("use_sliding_window", false)?,
        _ => false,
    };
    match windowed {
        true => Ok(limit.min(file.usize_or("sliding_window", Some(limit))?)),
        false => Ok(limit),
    }
}

pub(super) fn frame(checkpoint: &Checkpoint, config: &ModelConfig) -> Result<Frame> {
    let embedding = checkpoint.tensor(
        "model.embed_tokens.weight",
        &[config.vocab_size, config.d_model],
    )?;
    let head = if config.tied_head {
        embedding.clone()
    } else {
        checkpoint.tensor("lm_head.weight", &[config.vocab_size, config.d_model])?
    };
    Ok(Frame {
        embedding,
        embedding_norm: None,
        final_norm: norm(checkpoint, config, "model.norm.weight")?,
        head,
    })
}

pub(super) fn layer(
    checkpoint: &Checkpoint,
    config: &ModelConfig,
    index: usize,
) -> Result<LayerWeights> {
    let prefix = format!("model.layers.{index}");
    let linear = |name: &str, rows: usize, columns: usize, bias: bool| -> Result<Linear> {
        let weight = checkpoint.tensor(&format!("{prefix}.{name}.weight"), &[rows, columns])?;
        let bias = match bias {
            true => Some(checkpoint.tensor(&format!("{prefix}.{name}.bias"), &[rows])?),
            false => None,
        };
        Ok(Linear { weight, bias })
    };
    let (d, f) = (config.d_model, config.d_ff);
    let Biases {
        qkv,
        attention_out,
        mlp,
    } = config.biases;
    let q_width = config.n_heads * config.head_dim;
    let kv_width = config.n_kv_heads * config.head_dim;
    Ok(LayerWeights {
        attention_norm: norm(
            checkpoint,
            config,
            &format!("{prefix}.input_layernorm.weight"),
        )?,
        q: linear("self_attn.q_proj", q_width, d, qkv)?,
        k: linear("self_attn.k_proj", kv_width, d, qkv)?,
        v: linear("self_attn.v_proj", kv_width, d, qkv)?,
        o: linear("self_attn.o_proj", d, q_width, attention_out)?,
        mlp_norm: norm(
            checkpoint,
            config,
            &format!("{prefix}.post_attention_layernorm.weight"),
        )?,
        mlp: Mlp::SwiGlu {
            gate: linear("mlp.gate_proj", f, d, mlp)?,
            up: linear("mlp.up_proj", f, d, mlp)?,
            down: linear("mlp.down_proj", d, f, mlp)?,
        },
    })
}

fn norm(checkpoint: &Checkpoint, config: &ModelConfig, name: &str) -> Result<Norm> {
    Ok(Norm::Rms {
        weight: checkpoint.tensor(name, &[config.d_model])?,
        eps: config.norm_eps,
    })
}
