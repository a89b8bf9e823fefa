//! The metadata of a GGUF file as the `config.json` of the checkpoint that it was made from.

use super::header::Value;
use super::names::Architecture;
use super::{Gguf, types::BlockType};
use crate::error::Result;
use candle_core::quantized::GgmlDType;
use serde_json::{Map, Value as Json, json};

/// Gemma 3 has a global layer after every five local ones.
const GEMMA3_PATTERN: usize = 6;
/// RoPE base of Gemma 3's local layers (arXiv 2503.19786); its files do not hold it.
const GEMMA3_LOCAL_BASE: f64 = 10_000.0;

impl Gguf {
    fn number(&self, key: &str) -> Result<Option<f64>> {
        match self.own(key) {
            None => Ok(None),
            Some(Value::Float(value)) => Ok(Some(*value)),
            Some(Value::Unsigned(value)) => Ok(Some(*value as f64)),
            Some(Value::Signed(value)) => Ok(Some(*value as f64)),
            Some(_) => Err(self.wrong_kind(&self.architecture.key(key), "a number")),
        }
    }

    /// A size, which may be written layer by layer if all layers have the same.
    pub(super) fn usize_if(&self, key: &str) -> Result<Option<usize>> {
        let name = self.architecture.key(key);
        let value = match self.own(key) {
            None => return Ok(None),
            Some(Value::Unsigned(value)) => Some(*value),
            Some(Value::Signed(value)) => u64::try_from(*value).ok(),
            Some(Value::Array(_)) => {
                let layers = self.numbers(&name)?.unwrap_or_default();
                let first = layers.first().copied();
                if layers.iter().any(|&layer| Some(layer) != first) {
                    return Err(self.error(format!(
                        "`{name}` differs between layers, which is not supported"
                    )));
                }
                first.map(|value| value as u64)
            }
            Some(_) => None,
        };
        let size = value.filter(|&value| value > 0 && value <= u64::from(u32::MAX));
        size.map(|size| Some(size as usize))
            .ok_or_else(|| self.wrong_kind(&name, "a positive integer"))
    }

    /// A size that must be there.
    pub(super) fn usize(&self, key: &str) -> Result<usize> {
        let missing = || self.error(format!("`{}` is missing", self.architecture.key(key)));
        self.usize_if(key)?.ok_or_else(missing)
    }

    /// Width of a head.
    fn head_dim(&self) -> Result<usize> {
        match self.usize_if("attention.key_length")? {
            Some(width) => Ok(width),
            None => Ok(self.usize("embedding_length")? / self.usize("attention.head_count")?),
        }
    }

    /// The element type that the weights are worth: packed ones were bf16 or f32 before.
    fn dtype(&self) -> &'static str {
        let blocks = |info: &super::TensorInfo| info.blocks;
        let of = |name: &str| self.header.tensors.get(name).map(blocks);
        let found = of("blk.0.attn_output.weight").map(BlockType::dtype);
        match found {
            Some(GgmlDType::F32) => "float32",
            Some(GgmlDType::F16) => "float16",
            _ => "bfloat16",
        }
    }
}

pub(super) fn of(gguf: &Gguf) -> Result<Json> {
    let mut config = Map::new();
    let mut put = |key: &str, value: Json| {
        config.insert(key.to_owned(), value);
    };
    let embedding = gguf.header.tensors.get("token_embd.weight");
    let Some(&[vocab_size, _]) = embedding.map(|info| info.shape.as_slice()) else {
        return Err(gguf.error("it has no tensor `token_embd.weight` of two dimensions"));
    };
    put("vocab_size", vocab_size.into());
    put("torch_dtype", gguf.dtype().into());
    check_sizes(gguf)?;
    let architecture = gguf.architecture;
    let (model_type, class) = match architecture {
        Architecture::Llama => ("llama", "LlamaForCausalLM"),
        Architecture::Qwen2 => ("qwen2", "Qwen2ForCausalLM"),
        Architecture::Qwen3 => ("qwen3", "Qwen3ForCausalLM"),
        Architecture::Gemma2 => ("gemma2", "Gemma2ForCausalLM"),
        Architecture::Gemma3 => ("gemma3_text", "Gemma3ForCausalLM"),
        Architecture::Phi3 => ("phi3", "Phi3ForCausalLM"),
        Architecture::GptNeoX => ("gpt_neox", "GPTNeoXForCausalLM"),
        Architecture::Bloom => ("bloom", "BloomForCausalLM"),
    };
    put("model_type", model_type.into());
    put("architectures", json!([class]));
    put("hidden_size", gguf.usize("embedding_length")?.into());
    put("num_hidden_layers", gguf.usize("block_count")?.into());
    let heads = gguf.usize("attention.head_count")?;
    put("num_attention_heads", heads.into());
    let output = gguf.header.tensors.contains_key("output.weight");
    put("tie_word_embeddings", (!output).into());
    if architecture == Architecture::Bloom {
        put("n_layer", gguf.usize("block_count")?.into());
        put("n_head", heads.into());
        let eps = gguf.number("attention.layer_norm_epsilon")?;
        put("layer_norm_epsilon", eps.unwrap_or(1e-5).into());
        return Ok(Json::Object(config));
    }
    let head_dim = gguf.head_dim()?;
    let positions = gguf.usize("context_length")?;
    put("max_position_embeddings", positions.into());
    put(
        "intermediate_size",
        gguf.usize("feed_forward_length")?.into(),
    );
    let theta = gguf.number("rope.freq_base")?.unwrap_or(10_000.0);
    put("rope_theta", theta.into());
    let rotated = gguf.usize_if("rope.dimension_count")?.unwrap_or(head_dim);
    if architecture == Architecture::GptNeoX {
        let eps = gguf.number("attention.layer_norm_epsilon")?;
        put("layer_norm_eps", eps.unwrap_or(1e-5).into());
        put("rotary_pct", (rotated as f64 / head_dim as f64).into());
        let parallel = gguf.bool(&architecture.key("use_parallel_residual"))?;
        put("use_parallel_residual", parallel.unwrap_or(true).into());
        put("hidden_act", "gelu".into());
        put("rotary_emb_base", theta.into());
        return Ok(Json::Object(config));
    }
    put("head_dim", head_dim.into());
    let kv_heads = gguf.usize_if("attention.head_count_kv")?.unwrap_or(heads);
    put("num_key_value_heads", kv_heads.into());
    let eps = gguf.number("attention.layer_norm_rms_epsilon")?;
    put("rms_norm_eps", eps.unwrap_or(1e-6).into());
    let has = |name: &str| gguf.header.tensors.contains_key(name);
    match architecture {
        Architecture::Phi3 => {
            put(
                "partial_rotary_factor",
                (rotated as f64 / head_dim as f64).into(),
            );
            if let Some(window) = gguf.usize_if("attention.sliding_window")? {
                put("sliding_window", window.into());
            }
        }
        _ if rotated != head_dim => {
            return Err(gguf.error(format!(
                "`{}` is {rotated} and the heads have {head_dim} channels; turning a part of them is not supported here",
                architecture.key("rope.dimension_count")
            )));
        }
        Architecture::Llama | Architecture::Qwen3 => {
            put("attention_bias", has("blk.0.attn_q.bias").into());
            put("mlp_bias", has("blk.0.ffn_up.bias").into());
        }
        _ => {}
    }
    if matches!(architecture, Architecture::Gemma2 | Architecture::Gemma3) {
        for (key, value) in gemma(gguf, heads, head_dim)? {
            put(&key, value);
        }
    }
    if let Some(scaling) = rope_scaling(gguf, positions)? {
        for (key, value) in scaling {
            put(&key, value);
        }
    }
    Ok(Json::Object(config))
}

/// Holds the sizes that the metadata claim against the tensors: what is made of them would be as large as they say.
fn check_sizes(gguf: &Gguf) -> Result<()> {
    let layers = gguf.usize("block_count")?;
    let last = format!("blk.{}.attn_output.weight", layers - 1);
    let width = gguf.usize("embedding_length")?;
    let heads = gguf.usize("attention.head_count")?;
    let all_heads = gguf.head_dim()?.saturating_mul(heads);
    match gguf.header.tensors.get(&last) {
        None => Err(gguf.error(format!(
            "`{}` is {layers}, and it has no tensor `{last}`",
            gguf.architecture.key("block_count")
        ))),
        Some(info) if info.shape != [width, all_heads] => Err(gguf.error(format!(
            "tensor `{last}` has the shape {:?}, and the metadata speak of a width of {width} and heads of {all_heads} channels together",
            info.shape
        ))),
        Some(_) => Ok(()),
    }
}

/// What Gemma 2 and 3 have beside the others.
fn gemma(gguf: &Gguf, heads: usize, head_dim: usize) -> Result<Map<String, Json>> {
    let mut config = Map::new();
    let mut put = |key: &str, value: Json| {
        config.insert(key.to_owned(), value);
    };
    put("hidden_activation", "gelu_pytorch_tanh".into());
    let layers = gguf.usize("block_count")?;
    let second = gguf.architecture == Architecture::Gemma2;
    let window = gguf.usize_if("attention.sliding_window")?;
    put("sliding_window", window.unwrap_or(4096).into());
    let key = "attention.sliding_window_pattern";
    let every = |pattern: usize| {
        (1..=layers)
            .map(|layer| !layer.is_multiple_of(pattern))
            .collect()
    };
    // A number, or whether each layer slides.
    let slides: Vec<bool> = match gguf.own(key) {
        Some(Value::Unsigned(pattern)) => every((*pattern as usize).max(1)),
        Some(Value::Array(_)) => {
            let flags = gguf.numbers(&gguf.architecture.key(key))?;
            flags
                .unwrap_or_default()
                .iter()
                .map(|&flag| flag != 0.0)
                .collect()
        }
        _ if second => every(2),
        _ => every(GEMMA3_PATTERN),
    };
    let kinds = slides.into_iter().map(|slides| match slides {
        true => "sliding_attention",
        false => "full_attention",
    });
    put("layer_types", kinds.collect::<Vec<_>>().into());
    // The largest of each kind scales by the width of the model: 46 layers of Gemma 2, 62 of Gemma 3.
    let largest = layers == if second { 46 } else { 62 };
    let scale = match largest {
        true => gguf.usize("embedding_length")? / heads,
        false => head_dim,
    };
    put("query_pre_attn_scalar", scale.into());
    let cap = |key: &str, default: f64| -> Result<Json> {
        let found = gguf.number(key)?.filter(|&cap| cap > 0.0);
        Ok(match found {
            Some(cap) => cap.into(),
            None if second => default.into(),
            None => Json::Null,
        })
    };
    put(
        "attn_logit_softcapping",
        cap("attn_logit_softcapping", 50.0)?,
    );
    put(
        "final_logit_softcapping",
        cap("final_logit_softcapping", 30.0)?,
    );
    if !second {
        let local = gguf.number("rope.freq_base_swa")?;
        put(
            "rope_local_base_freq",
            local.unwrap_or(GEMMA3_LOCAL_BASE).into(),
        );
    }
    Ok(config)
}

/// How RoPE reaches beyond the trained length, in the form of `config.json` of transformers 4.
fn rope_scaling(gguf: &Gguf, positions: usize) -> Result<Option<Map<String, Json>>> {
    let mut config = Map::new();
    let factor = gguf.number("rope.scaling.factor")?;
    let trained = gguf.usize_if("rope.scaling.original_context_length")?;
    let attention = gguf.number("rope.scaling.attn_factor")?;
    let key = gguf.architecture.key("rope.scaling.type");
    // LLaMA 3's scaling is a divisor of each frequency, which Hugging Face's longrope has too.
    if let Some(divisors) = gguf.own_tensor("rope_freqs.weight")? {
        let scaling = json!({
            "rope_type": "longrope",
            "short_factor": divisors,
            "long_factor": divisors,
            "factor": 1.0,
            "attention_factor": 1.0,
            "original_max_position_embeddings": positions,
        });
        config.insert("rope_scaling".to_owned(), scaling);
        return Ok(Some(config));
    }
    let short = gguf.own_tensor("rope_factors_short.weight")?;
    let long = gguf.own_tensor("rope_factors_long.weight")?;
    if let (Some(short), Some(long)) = (short, long) {
        let trained = trained.unwrap_or(positions);
        let mut scaling = json!({
            "rope_type": "longrope",
            "short_factor": short,
            "long_factor": long,
            "factor": positions as f64 / trained as f64,
            "original_max_position_embeddings": trained,
        });
        if let Some(factor) = attention {
            scaling["attention_factor"] = factor.into();
        }
        config.insert("rope_scaling".to_owned(), scaling);
        config.insert(
            "original_max_position_embeddings".to_owned(),
            trained.into(),
        );
        return Ok(Some(config));
    }
    let scaling = match (gguf.text(&key)?, factor) {
        (None | Some("none"), None) | (Some("none"), _) => return Ok(None),
        (_, None) => {
            return Err(gguf.error(format!(
                "`{key}` is given without `{}`",
                gguf.architecture.key("rope.scaling.factor")
            )));
        }
        (None | Some("linear"), Some(factor)) => json!({"rope_type": "linear", "factor": factor}),
        (Some("yarn"), Some(factor)) => {
            let mut scaling = json!({
                "rope_type": "yarn",
                "factor": factor,
                "original_max_position_embeddings": trained.unwrap_or(positions),
            });
            for beta in ["beta_fast", "beta_slow"] {
                if let Some(value) = gguf.number(&format!("rope.scaling.yarn_{beta}"))? {
                    scaling[beta] = value.into();
                }
            }
            scaling
        }
        (Some(other), _) => {
            return Err(gguf.error(format!(
                "`{key}` is `{other}`, which is not supported; none, linear and yarn are"
            )));
        }
    };
    config.insert("rope_scaling".to_owned(), scaling);
    Ok(Some(config))
}
