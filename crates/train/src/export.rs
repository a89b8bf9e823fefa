//! An ordinary Hugging Face folder.

use crate::checkpoint::write_whole;
use crate::config::ModelShape;
use crate::error::{Result, TrainError};
use crate::net::Net;
use crate::tokenizer::{BOS, EOS, PAD};
use candle_core::{DType, Device, Tensor};
use serde_json::json;
use std::collections::HashMap;
use std::path::Path;
use tokenizers::Tokenizer;

/// Writes config, weights (as `dtype`), tokenizer and generation config to `dir`. `values` are the weights in the
/// order of [`Net::names`].
pub(crate) fn export(
    dir: &Path,
    net: &Net,
    values: &[&[f32]],
    tokenizer: &Tokenizer,
    dtype: DType,
) -> Result<()> {
    std::fs::create_dir_all(dir).map_err(TrainError::io(dir))?;
    let mut tensors = HashMap::new();
    for (name, values) in net.names().iter().zip(values) {
        let tensor = Tensor::from_slice(values, net.var(name).shape(), &Device::Cpu)?;
        tensors.insert(name.clone(), tensor.to_dtype(dtype)?);
    }
    let id = |token: &str| {
        tokenizer
            .token_to_id(token)
            .ok_or_else(|| TrainError::Tokenizer(format!("has no token `{token}`")))
    };
    let (pad, bos, eos) = (id(PAD)?, id(BOS)?, id(EOS)?);
    write_json(
        &dir.join("config.json"),
        &config(net.shape(), [pad, bos, eos], dtype),
    )?;
    write_json(
        &dir.join("generation_config.json"),
        &json!({"bos_token_id": bos, "eos_token_id": eos, "pad_token_id": pad, "do_sample": false}),
    )?;
    write_json(
        &dir.join("tokenizer_config.json"),
        &json!({
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": BOS, "eos_token": EOS, "pad_token": PAD,
            "model_max_length": net.shape().max_positions,
        }),
    )?;
    write_whole(&dir.join("tokenizer.json"), |path| {
        tokenizer
            .save(path, true)
            .map_err(|error| TrainError::Tokenizer(error.to_string()))
    })?;
    // Last, so that a folder with weights is complete.
    write_whole(&dir.join("model.safetensors"), |path| {
        Ok(candle_core::safetensors::save(&tensors, path)?)
    })
}

fn config(shape: &ModelShape, [pad, bos, eos]: [u32; 3], dtype: DType) -> serde_json::Value {
    json!({
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": shape.vocab_size,
        "hidden_size": shape.d_model,
        "intermediate_size": shape.d_ff,
        "num_hidden_layers": shape.n_layers,
        "num_attention_heads": shape.n_heads,
        "num_key_value_heads": shape.n_kv_heads,
        "head_dim": shape.head_dim(),
        "hidden_act": "silu",
        "max_position_embeddings": shape.max_positions,
        "initializer_range": 0.02,
        "rms_norm_eps": shape.norm_eps,
        "rope_theta": shape.rope_theta,
        "attention_bias": false,
        "mlp_bias": false,
        "tie_word_embeddings": shape.tied_head,
        "pad_token_id": pad, "bos_token_id": bos, "eos_token_id": eos,
        "torch_dtype": match dtype { DType::BF16 => "bfloat16", DType::F16 => "float16", _ => "float32" },
        "use_cache": true,
    })
}

fn write_json(path: &Path, value: &serde_json::Value) -> Result<()> {
    let text = format!("{value:#}\n");
    write_whole(path, |path| {
        std::fs::write(path, text).map_err(TrainError::io(path))
    })
}
