//! Keys and values of 16 bits: rounded when they are written, and nothing else.

use crate::support::{Rows, assert_close, fixture, fixtures, load, logits, ragged};
use half::{bf16, f16};
use skipbench_model::{Backend, CausalLm, Decoder, KvType, Span};

const NARROW: [KvType; 2] = [KvType::Bf16, KvType::F16];

fn rounded(kept: KvType, value: f32) -> f32 {
    match kept {
        KvType::F32 => value,
        KvType::Bf16 => bf16::from_f32(value).to_f32(),
        KvType::F16 => f16::from_f32(value).to_f32(),
    }
}

fn with_kv(name: &str, backend: Backend, kept: KvType) -> Decoder {
    load(&fixture(name), backend).with_kv_type(Some(kept))
}

/// A row alone is the row in the batch, bit for bit, at full depth and with layers left out.
#[test]
fn a_row_is_the_same_alone_and_in_a_batch() {
    for name in fixtures() {
        for kept in NARROW {
            let model = with_kv(&name, Backend::Auto, kept);
            let n_layers = model.sizes().n_layers;
            let layers: Vec<usize> = (0..n_layers)
                .filter(|layer| layer % 2 == 0 || *layer == n_layers - 1)
                .collect();
            let prompts = ragged(&name);
            let mut together = Rows::prefill(&model, &prompts);
            let mut alone: Vec<Rows> = prompts
                .iter()
                .map(|prompt| Rows::prefill(&model, std::slice::from_ref(prompt)))
                .collect();
            for _ in 0..6 {
                let ids = together.tokens();
                for (row, alone) in alone.iter_mut().enumerate() {
                    assert_eq!(alone.last[0], together.last[row], "{name} {kept}");
                    alone.step(&ids[row..=row], &layers);
                }
                together.step(&ids, &layers);
            }
        }
    }
}

/// What the first layer keeps hangs on no other key: it is what it keeps in f32, rounded. The cache takes half the memory, and
/// the ledger's bytes say so.
#[test]
fn what_is_kept_is_rounded_once() {
    for backend in [Backend::Auto, Backend::Composed] {
        let wide = load(&fixture("llama1"), backend);
        let prompt = [3, 50, 7, 11];
        let caches = [None, Some(KvType::Bf16), Some(KvType::F16)].map(|kept| {
            let model = load(&fixture("llama1"), backend).with_kv_type(kept);
            let n_layers = model.sizes().n_layers;
            let layers: Vec<usize> = (0..n_layers).collect();
            let mut cache = model.new_cache(1, vec![8; n_layers]).unwrap();
            let spans = Span::prompts([prompt.len()]);
            logits(&model, &prompt, &mut cache, &spans, &layers);
            let bytes = model.sizes().kv_position_bytes();
            assert_eq!(cache.bytes() % bytes, 0);
            let parts = if kept.is_some() { 2 } else { 1 };
            assert_eq!(parts * bytes, wide.sizes().kv_position_bytes());
            cache
        });
        let [wide, bf16, f16] = &caches;
        assert_eq!(wide.bytes(), 2 * bf16.bytes());
        for (cache, kept) in [(bf16, KvType::Bf16), (f16, KvType::F16)] {
            let mut changed = 0;
            for position in 0..prompt.len() {
                let (k, v) = cache.key_value(0, 0, position).unwrap();
                let (wide_k, wide_v) = wide.key_value(0, 0, position).unwrap();
                for (found, wide) in k.iter().chain(&v).zip(wide_k.iter().chain(&wide_v)) {
                    assert_eq!(*found, rounded(kept, *wide), "{kept} {backend:?}");
                    changed += usize::from(found != wide);
                }
            }
            assert!(changed > 0, "{kept}");
        }
    }
}

/// Prompts are attended to as what is kept of them, whether or not a layer keeps it: a strategy that never runs a layer again
/// gives the prompt what the full network gives it.
#[test]
fn a_layer_that_keeps_nothing_rounds_as_one_that_does() {
    for name in fixtures() {
        for backend in [Backend::Auto, Backend::Composed] {
            for kept in NARROW {
                let model = with_kv(&name, backend, kept);
                let wide = load(&fixture(&name), backend);
                let prompt = ragged(&name)[0].clone();
                let n_layers = model.sizes().n_layers;
                let layers: Vec<usize> = (0..n_layers).collect();
                let run = |model: &Decoder, capacity: usize| {
                    let mut cache = model.new_cache(1, vec![capacity; n_layers]).unwrap();
                    let spans = Span::prompts([prompt.len()]);
                    logits(model, &prompt, &mut cache, &spans, &layers)
                };
                let (kept_there, not_kept) = (run(&model, prompt.len()), run(&model, 0));
                for (found, wanted) in not_kept.iter().zip(&kept_there) {
                    assert_close(found, wanted, 1e-5, &format!("{name} {kept} {backend:?}"));
                }
                assert!(not_kept != run(&wide, 0), "{name} {kept} {backend:?}");
            }
        }
    }
}

/// Fused and composed layers round the same numbers, but for the last bit of some that lie next to a half.
#[test]
fn composed_layers_keep_what_fused_ones_keep() {
    for name in fixtures() {
        for (kept, share) in [(KvType::Bf16, 0.02), (KvType::F16, 0.003)] {
            let fused = with_kv(&name, Backend::Auto, kept);
            let composed = with_kv(&name, Backend::Composed, kept);
            let prompts = ragged(&name);
            let mut found = Rows::prefill(&composed, &prompts);
            let mut wanted = Rows::prefill(&fused, &prompts);
            let layers: Vec<usize> = (0..fused.sizes().n_layers).collect();
            for _ in 0..4 {
                for (found, wanted) in found.last.iter().zip(&wanted.last) {
                    let largest = wanted.iter().fold(0f32, |max, x| max.max(x.abs()));
                    assert_close(found, wanted, share * largest, &format!("{name} {kept}"));
                }
                let ids = wanted.tokens();
                found.step(&ids, &layers);
                wanted.step(&ids, &layers);
            }
        }
    }
}
