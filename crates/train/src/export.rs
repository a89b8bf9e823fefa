//! An ordinary Hugging Face folder.

use crate::config::ModelShape;
use crate::error::{Result, TrainError, first_line};
use crate::net::Net;
use crate::tokenizer::{BOS, EOS, PAD};
use candle_core::{DType, Device, Tensor};
use serde_json::json;
use skipbench_fs::Staged;
use std::collections::HashMap;
use std::path::Path;
use tokenizers::Tokenizer;

/// The file whose presence says that a folder is complete.
const WEIGHTS: &str = "model.safetensors";

/// Writes config, weights (as `dtype`), tokenizer and generation config to `dir`. `values` are the weights in the
/// order of [`Net::names`].
///
/// All files are written before the first is put in place, and a folder that had weights is without any until the new ones
/// are there: a cut-off never leaves the files of two networks side by side.
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
    let json = |name: &str, value: serde_json::Value| {
        Staged::write(&dir.join(name), |path| {
            std::fs::write(path, format!("{value:#}\n"))
        })
    };
    let weights = dir.join(WEIGHTS);
    let staged = [
        json("config.json", config(net.shape(), [pad, bos, eos], dtype))?,
        json(
            "generation_config.json",
            json!({"bos_token_id": bos, "eos_token_id": eos, "pad_token_id": pad, "do_sample": false}),
        )?,
        json(
            "tokenizer_config.json",
            json!({
                "tokenizer_class": "PreTrainedTokenizerFast",
                "bos_token": BOS, "eos_token": EOS, "pad_token": PAD,
                "model_max_length": net.shape().max_positions,
            }),
        )?,
        Staged::write(&dir.join("tokenizer.json"), |path| {
            tokenizer
                .save(path, true)
                .map_err(|error| TrainError::Tokenizer(error.to_string()))
        })?,
        Staged::write(&weights, |path| {
            candle_core::safetensors::save(&tensors, path).map_err(|error| TrainError::Checkpoint {
                path: weights.clone(),
                message: format!("cannot be written: {}", first_line(&error)),
            })
        })?,
    ];
    match std::fs::remove_file(&weights) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(TrainError::io(&weights)(error));
        }
        _ => {}
    }
    for file in staged {
        file.put_in_place()?;
    }
    Ok(())
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
