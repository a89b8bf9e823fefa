//! LLaMA shapes with random weights.

use candle_core::{DType, Device, Tensor};
use skipbench_model::{Backend, CausalLm, Decoder, KvCache, Span};
use std::collections::HashMap;
use std::path::Path;

/// Sizes of a LLaMA; heads are 64 wide.
#[derive(Clone, Copy)]
pub(crate) struct Shape {
    pub(crate) name: &'static str,
    pub(crate) n_layers: usize,
    pub(crate) d_model: usize,
    pub(crate) d_ff: usize,
    pub(crate) n_kv_heads: usize,
    pub(crate) vocab_size: usize,
}

/// 97M parameters.
pub(crate) const WIDE: Shape = Shape {
    name: "97m",
    n_layers: 12,
    d_model: 768,
    d_ff: 2048,
    n_kv_heads: 12,
    vocab_size: 8000,
};

/// 24 layers that are cheaper than what surrounds them elsewhere.
pub(crate) const THIN: Shape = Shape {
    name: "thin",
    n_layers: 24,
    d_model: 256,
    d_ff: 768,
    n_kv_heads: 4,
    vocab_size: 8000,
};

/// SmolLM2-135M.
pub(crate) const SMOLLM2: Shape = Shape {
    name: "smollm2-135m",
    n_layers: 30,
    d_model: 576,
    d_ff: 1536,
    n_kv_heads: 3,
    vocab_size: 49_152,
};

impl Shape {
    /// Weights `[outputs, inputs]` of a layer's products.
    pub(crate) fn products(&self) -> [(&'static str, [usize; 2]); 7] {
        let (d, f, kv) = (self.d_model, self.d_ff, self.n_kv_heads * 64);
        [
            ("self_attn.q_proj", [d, d]),
            ("self_attn.k_proj", [kv, d]),
            ("self_attn.v_proj", [kv, d]),
            ("self_attn.o_proj", [d, d]),
            ("mlp.gate_proj", [f, d]),
            ("mlp.up_proj", [f, d]),
            ("mlp.down_proj", [d, f]),
        ]
    }

    /// Writes random weights in an ordinary Hugging Face folder.
    pub(crate) fn write(&self, dir: &Path) {
        let mut tensors = HashMap::new();
        let mut put = |name: String, shape: &[usize]| {
            let tensor = match shape.len() {
                1 => Tensor::ones(shape, DType::F32, &Device::Cpu),
                _ => Tensor::randn(0f32, 0.02, shape, &Device::Cpu),
            };
            tensors.insert(name, tensor.unwrap());
        };
        let d = self.d_model;
        for layer in 0..self.n_layers {
            for norm in ["input_layernorm", "post_attention_layernorm"] {
                put(format!("model.layers.{layer}.{norm}.weight"), &[d]);
            }
            for (name, shape) in self.products() {
                put(format!("model.layers.{layer}.{name}.weight"), &shape);
            }
        }
        put("model.norm.weight".to_owned(), &[d]);
        put(
            "model.embed_tokens.weight".to_owned(),
            &[self.vocab_size, d],
        );
        put("lm_head.weight".to_owned(), &[self.vocab_size, d]);
        candle_core::safetensors::save(&tensors, dir.join("model.safetensors")).unwrap();
        let config = serde_json::json!({
            "architectures": ["LlamaForCausalLM"], "vocab_size": self.vocab_size, "hidden_size": d,
            "intermediate_size": self.d_ff, "num_hidden_layers": self.n_layers, "num_attention_heads": d / 64,
            "num_key_value_heads": self.n_kv_heads, "max_position_embeddings": 4096, "rms_norm_eps": 1e-5,
            "rope_theta": 10000.0, "tie_word_embeddings": false,
        });
        std::fs::write(dir.join("config.json"), config.to_string()).unwrap();
    }

    /// Loads what was written.
    pub(crate) fn load(&self, dir: &Path) -> Decoder {
        Decoder::load(dir, &Device::Cpu, None, Backend::Auto).unwrap()
    }

    /// The state behind all layers.
    pub(crate) fn layers(
        &self,
        model: &Decoder,
        ids: &[u32],
        cache: &mut KvCache,
        spans: &[Span],
    ) -> Tensor {
        let mut hidden = model.embed(ids, spans).unwrap();
        for layer in 0..self.n_layers {
            hidden = model.layer(layer, &hidden, cache, spans).unwrap();
        }
        hidden
    }
}
