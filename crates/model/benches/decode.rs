//! One decode step at the 97M LLaMA shape (12 layers, d_model 768, vocabulary 8,000, f32) behind a prompt of 64
//! tokens, ours against candle-transformers' stock LLaMA, at batch 1 and 8.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    reason = "a bench has no API and no user input"
)]

use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;
use candle_transformers::models::llama::{Cache, Llama, LlamaConfig};
use criterion::{BatchSize, BenchmarkId, Criterion, criterion_group, criterion_main};
use skipbench_model::{Backend, CausalLm, Decoder, KvCache, Span};
use std::collections::HashMap;
use std::path::Path;
use std::time::Duration;

const N_LAYERS: usize = 12;
const D_MODEL: usize = 768;
const D_FF: usize = 2048;
const N_HEADS: usize = 12;
const VOCAB_SIZE: usize = 8000;
const PROMPT_LEN: usize = 64;

/// Random weights in an ordinary Hugging Face folder.
fn write_checkpoint(dir: &Path) {
    let mut tensors = HashMap::new();
    let mut put = |name: String, shape: &[usize]| {
        let tensor = match shape.len() {
            1 => Tensor::ones(shape, DType::F32, &Device::Cpu),
            _ => Tensor::randn(0f32, 0.02, shape, &Device::Cpu),
        };
        tensors.insert(name, tensor.unwrap());
    };
    let (d, f) = (D_MODEL, D_FF);
    for layer in 0..N_LAYERS {
        let shapes: [(&str, &[usize]); 9] = [
            ("input_layernorm", &[d]),
            ("self_attn.q_proj", &[d, d]),
            ("self_attn.k_proj", &[d, d]),
            ("self_attn.v_proj", &[d, d]),
            ("self_attn.o_proj", &[d, d]),
            ("post_attention_layernorm", &[d]),
            ("mlp.gate_proj", &[f, d]),
            ("mlp.up_proj", &[f, d]),
            ("mlp.down_proj", &[d, f]),
        ];
        for (name, shape) in shapes {
            put(format!("model.layers.{layer}.{name}.weight"), shape);
        }
    }
    put("model.norm.weight".to_owned(), &[d]);
    put("model.embed_tokens.weight".to_owned(), &[VOCAB_SIZE, d]);
    put("lm_head.weight".to_owned(), &[VOCAB_SIZE, d]);
    candle_core::safetensors::save(&tensors, dir.join("model.safetensors")).unwrap();
    let config = serde_json::json!({
        "architectures": ["LlamaForCausalLM"], "vocab_size": VOCAB_SIZE, "hidden_size": d,
        "intermediate_size": f, "num_hidden_layers": N_LAYERS, "num_attention_heads": N_HEADS,
        "num_key_value_heads": N_HEADS, "max_position_embeddings": 1024, "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0, "tie_word_embeddings": false,
    });
    std::fs::write(dir.join("config.json"), config.to_string()).unwrap();
}

fn step(model: &Decoder, ids: &[u32], cache: &mut KvCache, spans: &[Span]) -> Tensor {
    let mut hidden = model.embed(ids, spans).unwrap();
    for layer in 0..N_LAYERS {
        hidden = model.layer(layer, &hidden, cache, spans).unwrap();
    }
    model.head(&hidden).unwrap()
}

fn decode_step(criterion: &mut Criterion) {
    let dir = tempfile::tempdir().unwrap();
    write_checkpoint(dir.path());
    let ours = Decoder::load(dir.path(), &Device::Cpu, None, Backend::Auto).unwrap();
    let config = std::fs::read_to_string(dir.path().join("config.json")).unwrap();
    let config = serde_json::from_str::<LlamaConfig>(&config)
        .unwrap()
        .into_config(false);
    let file = dir.path().join("model.safetensors");
    // SAFETY: nobody writes to the file while it is mapped.
    let weights = unsafe { VarBuilder::from_mmaped_safetensors(&[file], DType::F32, &Device::Cpu) };
    let stock = Llama::load(weights.unwrap(), &config).unwrap();

    let mut group = criterion.benchmark_group("decode_step_97m");
    group
        .sample_size(40)
        .measurement_time(Duration::from_secs(8));
    for batch in [1, 8] {
        let prompt: Vec<u32> = (0..(batch * PROMPT_LEN) as u32)
            .map(|id| id % 7919)
            .collect();
        let next: Vec<u32> = (0..batch as u32).collect();

        let mut stock_cache = Cache::new(true, DType::F32, &config, &Device::Cpu).unwrap();
        let input = Tensor::from_vec(prompt.clone(), (batch, PROMPT_LEN), &Device::Cpu).unwrap();
        stock.forward(&input, 0, &mut stock_cache).unwrap();
        let token = Tensor::from_vec(next.clone(), (batch, 1), &Device::Cpu).unwrap();
        group.bench_function(BenchmarkId::new("candle-transformers", batch), |bencher| {
            // The clone shares its tensors; each step starts from the same 64 positions.
            bencher.iter_batched(
                || stock_cache.clone(),
                |mut cache| stock.forward(&token, PROMPT_LEN, &mut cache).unwrap(),
                BatchSize::PerIteration,
            );
        });

        let mut cache = ours
            .new_cache(batch, vec![PROMPT_LEN + 1; N_LAYERS])
            .unwrap();
        let spans = Span::prompts(vec![PROMPT_LEN; batch]);
        step(&ours, &prompt, &mut cache, &spans);
        let spans: Vec<Span> = (0..batch).map(|row| Span::token(row, PROMPT_LEN)).collect();
        group.bench_function(BenchmarkId::new("skipbench", batch), |bencher| {
            bencher.iter(|| {
                let logits = step(&ours, &next, &mut cache, &spans);
                (0..batch).for_each(|row| cache.truncate(row, PROMPT_LEN));
                logits
            });
        });
    }
    group.finish();
}

criterion_group!(benches, decode_step);
criterion_main!(benches);
