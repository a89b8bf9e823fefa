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
use shape::WIDE;
use skipbench_model::{CausalLm, Span};
use std::time::Duration;

#[expect(dead_code, reason = "not every bench runs every shape")]
mod shape;

const PROMPT_LEN: usize = 64;

fn decode_step(criterion: &mut Criterion) {
    let dir = tempfile::tempdir().unwrap();
    WIDE.write(dir.path());
    let ours = WIDE.load(dir.path());
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
            .new_cache(batch, vec![PROMPT_LEN + 1; WIDE.n_layers])
            .unwrap();
        let spans = Span::prompts(vec![PROMPT_LEN; batch]);
        WIDE.layers(&ours, &prompt, &mut cache, &spans);
        let spans: Vec<Span> = (0..batch).map(|row| Span::token(row, PROMPT_LEN)).collect();
        group.bench_function(BenchmarkId::new("skipbench", batch), |bencher| {
            bencher.iter(|| {
                let hidden = WIDE.layers(&ours, &next, &mut cache, &spans);
                let logits = ours.head(&hidden).unwrap();
                (0..batch).for_each(|row| cache.truncate(row, PROMPT_LEN));
                logits
            });
        });
    }
    group.finish();
}

criterion_group!(benches, decode_step);
criterion_main!(benches);
