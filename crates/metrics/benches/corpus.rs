//! Corpus scores over 11,334 made-up summaries of some 20 words, and the paired bootstrap over 3,004 segments.
//! `scripts/metrics/compare_speed.py` runs the reference implementations against the binary on real outputs.
#![allow(missing_docs, reason = "a bench has no API")]

use criterion::{Criterion, criterion_group, criterion_main};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use skipbench_metrics::{Hypotheses, Metric, References, Resampling, evaluate, paired};
use std::hint::black_box;

/// Words of a Zipf-like vocabulary.
fn segments(n: usize, rng: &mut ChaCha8Rng) -> Vec<String> {
    (0..n)
        .map(|_| {
            let words: Vec<String> = (0..rng.random_range(12..30))
                .map(|_| {
                    let rank = (1.0 / (rng.random::<f64>() + 1e-4)) as u64;
                    format!("w{:x}", rank.wrapping_mul(0x9e37_79b9) % 65_521)
                })
                .collect();
            format!("{}.", words.join(" "))
        })
        .collect()
}

fn corpus(criterion: &mut Criterion) {
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    let hypotheses = Hypotheses::new(segments(11_334, &mut rng));
    let (Ok(references), few) = (
        References::single(segments(11_334, &mut rng)),
        [segments(3_004, &mut rng), segments(3_004, &mut rng)],
    ) else {
        return;
    };
    let metrics = || {
        ["bleu", "chrf", "ter", "rougeL"]
            .iter()
            .filter_map(|name| name.parse::<Metric>().ok())
    };
    let mut group = criterion.benchmark_group("corpus_11334");
    group.sample_size(10);
    for metric in metrics() {
        group.bench_function(metric.to_string(), |bencher| {
            bencher.iter(|| evaluate(black_box(&metric), &hypotheses, &references));
        });
    }
    group.finish();

    let mut group = criterion.benchmark_group("paired_bootstrap_1000x3004");
    group.sample_size(10);
    // The bootstrap alone.
    let resampling = Resampling {
        shuffles: 0,
        ..Resampling::default()
    };
    let Ok(references) = References::single(segments(3_004, &mut rng)) else {
        return;
    };
    for metric in metrics() {
        let systems: Vec<_> = few
            .iter()
            .filter_map(|texts| {
                evaluate(&metric, &Hypotheses::new(texts.clone()), &references).ok()
            })
            .collect();
        let [baseline, system] = &systems[..] else {
            continue;
        };
        group.bench_function(metric.to_string(), |bencher| {
            bencher.iter(|| paired(black_box(baseline), system, &resampling));
        });
    }
    group.finish();
}

criterion_group!(benches, corpus);
criterion_main!(benches);
