//! How the time of a token falls with the tokens that run together: decode steps of 1 to 64 rows behind 64 tokens each, and
//! prompts of 32 to 2,048 tokens against the same products by candle's matrix library alone.
#![expect(clippy::unwrap_used, reason = "a bench has no API and no user input")]

use candle_core::{Device, Tensor};
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use shape::{SMOLLM2, Shape, THIN, WIDE};
use skipbench_model::{CausalLm, Span};
use std::time::Duration;

mod shape;

const PROMPT_LEN: usize = 64;

fn decode(criterion: &mut Criterion) {
    for shape in [THIN, WIDE] {
        let dir = tempfile::tempdir().unwrap();
        shape.write(dir.path());
        let model = shape.load(dir.path());
        let mut group = criterion.benchmark_group(format!("decode_layers_{}", shape.name));
        group
            .sample_size(20)
            .measurement_time(Duration::from_secs(3));
        for batch in [1, 2, 4, 8, 16, 32, 64] {
            let prompt: Vec<u32> = (0..(batch * PROMPT_LEN) as u32)
                .map(|id| id % 7919)
                .collect();
            let next: Vec<u32> = (0..batch as u32).collect();
            let capacity = vec![PROMPT_LEN + 1; shape.n_layers];
            let mut cache = model.new_cache(batch, capacity).unwrap();
            shape.layers(
                &model,
                &prompt,
                &mut cache,
                &Span::prompts(vec![PROMPT_LEN; batch]),
            );
            let spans: Vec<Span> = (0..batch).map(|row| Span::token(row, PROMPT_LEN)).collect();
            group.throughput(Throughput::Elements(batch as u64));
            group.bench_function(BenchmarkId::from_parameter(batch), |bencher| {
                bencher.iter(|| {
                    let hidden = shape.layers(&model, &next, &mut cache, &spans);
                    (0..batch).for_each(|row| cache.truncate(row, PROMPT_LEN));
                    hidden
                });
            });
        }
        group.finish();
    }
}

/// All products of the layers over so many tokens, nothing between them.
fn products(shape: &Shape, weights: &[Vec<Tensor>], tokens: usize) {
    let narrow = Tensor::ones(
        (tokens, shape.d_model),
        candle_core::DType::F32,
        &Device::Cpu,
    )
    .unwrap();
    let wide = Tensor::ones((tokens, shape.d_ff), candle_core::DType::F32, &Device::Cpu).unwrap();
    for weight in weights.iter().flatten() {
        let x = if weight.dim(1).unwrap() == shape.d_ff {
            &wide
        } else {
            &narrow
        };
        x.matmul(&weight.t().unwrap()).unwrap();
    }
}

fn prefill(criterion: &mut Criterion) {
    for shape in [SMOLLM2] {
        let dir = tempfile::tempdir().unwrap();
        shape.write(dir.path());
        let model = shape.load(dir.path());
        let weights: Vec<Vec<Tensor>> = (0..shape.n_layers)
            .map(|_| {
                let random = |(_, [m, k]): (&str, [usize; 2])| {
                    Tensor::randn(0f32, 0.02, (m, k), &Device::Cpu).unwrap()
                };
                shape.products().map(random).into()
            })
            .collect();
        let mut group = criterion.benchmark_group(format!("prefill_{}", shape.name));
        group
            .sample_size(10)
            .measurement_time(Duration::from_secs(3));
        for tokens in [32, 128, 512, 2048] {
            let ids: Vec<u32> = (0..tokens as u32).map(|id| id % 7919).collect();
            let spans = Span::prompts([tokens]);
            group.throughput(Throughput::Elements(tokens as u64));
            group.bench_function(BenchmarkId::new("layers", tokens), |bencher| {
                bencher.iter(|| {
                    let mut cache = model.new_cache(1, vec![tokens; shape.n_layers]).unwrap();
                    shape.layers(&model, &ids, &mut cache, &spans)
                });
            });
            group.bench_function(BenchmarkId::new("products by gemm", tokens), |bencher| {
                bencher.iter(|| products(&shape, &weights, tokens));
            });
        }
        group.finish();
    }
}

criterion_group!(benches, decode, prefill);
criterion_main!(benches);
