//! What a finished training leaves: an ordinary Hugging Face folder, or an adapter as PEFT writes it.

use crate::config::ModelShape;
use crate::error::{Result, TrainError, first_line};
use crate::net::Net;
use crate::tokenizer::{BOS, EOS, PAD};
use candle_core::{DType, Device, Tensor};
use serde_json::{Value, json};
use skipbench_fs::Staged;
use std::collections::HashMap;
use std::path::Path;
use tokenizers::Tokenizer;

/// The file whose presence says that a folder is complete.
const WEIGHTS: &str = "model.safetensors";
/// Where PEFT looks for the weights of an adapter.
const ADAPTER: &str = "adapter_model.safetensors";

/// What is written of a finished network.
pub enum Export<'a> {
    /// A model with a tokenizer of [`train_tokenizer`](crate::train_tokenizer).
    Model {
        /// The tokenizer.
        tokenizer: &'a Tokenizer,
        /// Of the weights.
        dtype: DType,
    },
    /// The checkpoint that was started from with its new weights; an adapter is added to those that it adapts.
    Tuned {
        /// Names and contents of the files beside weights and configuration.
        beside: Vec<(String, Vec<u8>)>,
        /// Of the weights.
        dtype: DType,
    },
    /// The adapter alone, as PEFT reads it.
    Adapter {
        /// How the checkpoint is called that it adapts.
        base: String,
        /// Digests of that checkpoint, which is not to be taken for another.
        digest: Value,
        /// Of the weights.
        dtype: DType,
    },
}

/// Writes the network to `dir`. `values` are those of what is trained, in the order of [`Net::names`].
///
/// All files are written before the first is put in place, and a folder that had weights is without any until the new ones
/// are there: a cut-off never leaves the files of two networks side by side.
pub(crate) fn export(dir: &Path, net: &Net, values: &[&[f32]], export: &Export<'_>) -> Result<()> {
    std::fs::create_dir_all(dir).map_err(TrainError::io(dir))?;
    match export {
        Export::Model { tokenizer, dtype } => model(dir, net, values, tokenizer, *dtype),
        Export::Tuned { beside, dtype } => tuned(dir, net, values, beside, *dtype),
        Export::Adapter {
            base,
            digest,
            dtype,
        } => adapter(dir, net, values, base, digest, *dtype),
    }
}

/// Config, weights, tokenizer and generation config.
fn model(
    dir: &Path,
    net: &Net,
    values: &[&[f32]],
    tokenizer: &Tokenizer,
    dtype: DType,
) -> Result<()> {
    let Some(shape) = net.architecture().plain() else {
        return Err(TrainError::Config(
            "a tokenizer of this trainer beside a model of another family".to_owned(),
        ));
    };
    let tensors = net.tensors(values, dtype)?;
    let id = |token: &str| {
        tokenizer
            .token_to_id(token)
            .ok_or_else(|| TrainError::Tokenizer(format!("has no token `{token}`")))
    };
    let (pad, bos, eos) = (id(PAD)?, id(BOS)?, id(EOS)?);
    let staged = vec![
        stage_json(dir, "config.json", &config(shape, [pad, bos, eos], dtype))?,
        stage_json(
            dir,
            "generation_config.json",
            &json!({"bos_token_id": bos, "eos_token_id": eos, "pad_token_id": pad, "do_sample": false}),
        )?,
        stage_json(
            dir,
            "tokenizer_config.json",
            &json!({
                "tokenizer_class": "PreTrainedTokenizerFast",
                "bos_token": BOS, "eos_token": EOS, "pad_token": PAD,
                "model_max_length": shape.max_positions,
            }),
        )?,
        Staged::write(&dir.join("tokenizer.json"), |path| {
            tokenizer
                .save(path, true)
                .map_err(|error| TrainError::Tokenizer(error.to_string()))
        })?,
        stage_tensors(dir, WEIGHTS, &tensors)?,
    ];
    put_in_place(dir, staged)
}

/// The configuration that was started from with other weights.
fn tuned(
    dir: &Path,
    net: &Net,
    values: &[&[f32]],
    beside: &[(String, Vec<u8>)],
    dtype: DType,
) -> Result<()> {
    let mut config = net.base_config()?;
    if let Some(config) = config.as_object_mut() {
        let key = match config.contains_key("dtype") {
            true => "dtype",
            false => "torch_dtype",
        };
        config.insert(key.to_owned(), dtype_name(dtype).into());
    }
    let tensors = net.tensors(values, dtype)?;
    let mut staged = vec![stage_json(dir, "config.json", &config)?];
    for (name, bytes) in beside {
        staged.push(Staged::write(&dir.join(name), |path| {
            std::fs::write(path, bytes)
        })?);
    }
    staged.push(stage_tensors(dir, WEIGHTS, &tensors)?);
    put_in_place(dir, staged)
}

/// The adapter as PEFT names its halves, and the digest of the checkpoint that it adapts.
fn adapter(
    dir: &Path,
    net: &Net,
    values: &[&[f32]],
    base: &str,
    digest: &Value,
    dtype: DType,
) -> Result<()> {
    let Some(adapter) = net.adapter() else {
        return Err(TrainError::Config(
            "`export: adapter` of a model without one; leave it out".to_owned(),
        ));
    };
    let mut tensors = HashMap::new();
    for (name, values) in net.names().iter().zip(values) {
        let tensor = Tensor::from_slice(values, net.var(name).shape(), &Device::Cpu)?;
        let name = format!("base_model.model.{}", net.module_name(name));
        tensors.insert(name, tensor.to_dtype(dtype)?);
    }
    let mut modules: Vec<&str> = net
        .names()
        .iter()
        .filter_map(|name| name.strip_suffix(".lora_A.weight")?.rsplit('.').next())
        .collect();
    modules.sort_unstable();
    modules.dedup();
    let config = json!({
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "revision": null,
        "inference_mode": true,
        "r": adapter.rank,
        "lora_alpha": adapter.alpha(),
        "lora_dropout": 0.0,
        "target_modules": modules,
        "bias": "none",
        "fan_in_fan_out": false,
        "init_lora_weights": true,
        "layers_to_transform": null,
        "layers_pattern": null,
        "modules_to_save": null,
        "rank_pattern": {},
        "alpha_pattern": {},
        "use_rslora": false,
        "use_dora": false,
    });
    let staged = vec![
        stage_json(dir, "adapter_config.json", &config)?,
        stage_json(dir, skipbench_model::ADAPTER_BASE, digest)?,
        stage_tensors(dir, ADAPTER, &tensors)?,
    ];
    put_in_place(dir, staged)
}

fn stage_json(dir: &Path, name: &str, value: &Value) -> Result<Staged> {
    Ok(Staged::write(&dir.join(name), |path| {
        std::fs::write(path, format!("{value:#}\n"))
    })?)
}

fn stage_tensors(dir: &Path, name: &str, tensors: &HashMap<String, Tensor>) -> Result<Staged> {
    let path = dir.join(name);
    Staged::write(&path, |temporary| {
        candle_core::safetensors::save(tensors, temporary).map_err(|error| TrainError::Checkpoint {
            path: path.clone(),
            message: format!("cannot be written: {}", first_line(&error)),
        })
    })
}

/// Puts the files in place behind those of a model that is replaced; the weights come last.
fn put_in_place(dir: &Path, staged: Vec<Staged>) -> Result<()> {
    for weights in [WEIGHTS, ADAPTER].map(|name| dir.join(name)) {
        match std::fs::remove_file(&weights) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(TrainError::io(&weights)(error));
            }
            _ => {}
        }
    }
    for file in staged {
        file.put_in_place()?;
    }
    Ok(())
}

fn dtype_name(dtype: DType) -> &'static str {
    match dtype {
        DType::BF16 => "bfloat16",
        DType::F16 => "float16",
        _ => "float32",
    }
}

fn config(shape: &ModelShape, [pad, bos, eos]: [u32; 3], dtype: DType) -> Value {
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
        "torch_dtype": dtype_name(dtype),
        "use_cache": true,
    })
}
