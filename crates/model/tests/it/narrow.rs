//! Weights of 16 bits: on a CPU they compute what their values compute in 32, composed layers compute in 16 bits themselves.

use crate::support::{Rows, assert_close, expected, fixture, fixtures, ragged, writable};
use candle_core::{DType, Device};
use skipbench_model::{Backend, CausalLm, Decoder, WeightType};
use std::path::Path;

const NARROW: [DType; 2] = [DType::BF16, DType::F16];

fn weights(dtype: DType) -> WeightType {
    match dtype {
        DType::BF16 => WeightType::Bf16,
        DType::F16 => WeightType::F16,
        _ => WeightType::F32,
    }
}

fn load_as(dir: &Path, dtype: DType, backend: Backend) -> Decoder {
    Decoder::load(dir, &Device::Cpu, Some(weights(dtype)), backend).unwrap()
}

/// A copy whose weights have been rounded to `dtype` and are written in f32.
fn rounded(name: &str, dtype: DType) -> tempfile::TempDir {
    let dir = writable(name);
    for entry in std::fs::read_dir(dir.path()).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|end| end == "safetensors") {
            let mut tensors = candle_core::safetensors::load(&path, &Device::Cpu).unwrap();
            for tensor in tensors.values_mut() {
                let narrow = tensor.to_dtype(dtype).unwrap();
                *tensor = narrow.to_dtype(DType::F32).unwrap();
            }
            candle_core::safetensors::save(&tensors, path).unwrap();
        }
    }
    dir
}

/// Prefill, decode at full depth and with layers left out, alone and four rows together: bit for bit the f32 arithmetic on
/// the same values, which is more than the 1e-5 that is promised. A row alone is the row in the batch.
#[test]
fn every_family_computes_in_f32_what_its_16_bits_say() {
    for name in fixtures() {
        for dtype in NARROW {
            let narrow = load_as(&fixture(&name), dtype, Backend::Auto);
            assert_eq!(narrow.weights(), weights(dtype));
            let wide_dir = rounded(&name, dtype);
            let wide = load_as(wide_dir.path(), DType::F32, Backend::Auto);
            assert_eq!(narrow.sizes().state_bytes, 4, "{name}");
            let bytes = [&narrow, &wide].map(|model| model.sizes().head_bytes);
            assert_eq!(2 * bytes[0], bytes[1], "{name}");
            let prompts = ragged(&name);
            let n_layers = wide.sizes().n_layers;
            let all: Vec<usize> = (0..n_layers).collect();
            let kept: Vec<usize> = (0..n_layers)
                .filter(|layer| layer % 2 == 0 || *layer == n_layers - 1)
                .collect();
            for layers in [&all, &kept] {
                let what = format!("{name} {dtype:?} {layers:?}");
                let mut found = Rows::prefill(&narrow, &prompts);
                let mut wanted = Rows::prefill(&wide, &prompts);
                let mut alone: Vec<Rows> = prompts
                    .iter()
                    .map(|prompt| Rows::prefill(&narrow, std::slice::from_ref(prompt)))
                    .collect();
                for _ in 0..6 {
                    assert_eq!(found.last, wanted.last, "{what}");
                    let ids = found.tokens();
                    for (row, alone) in alone.iter_mut().enumerate() {
                        assert_eq!(alone.last[0], found.last[row], "{what}");
                        alone.step(&ids[row..=row], layers);
                    }
                    found.step(&ids, layers);
                    wanted.step(&ids, layers);
                }
            }
        }
    }
}

/// Rounding to 16 bits changes the numbers of most fixtures: without it the test above would compare f32 with itself.
#[test]
fn the_16_bits_are_those_that_were_asked_for() {
    let logits = |dtype| {
        let model = load_as(&fixture("llama1"), dtype, Backend::Auto);
        Rows::prefill(&model, &[vec![3, 50, 7]]).last
    };
    let [wide, bf16, f16] = [DType::F32, DType::BF16, DType::F16].map(logits);
    assert!(wide != bf16 && wide != f16 && bf16 != f16);
}

/// Composed layers compute in the type itself, only as exact as its mantissa: 8 bits for bf16, 11 for f16. Weights that are
/// exact in bf16 leave the arithmetic alone to differ, which these networks blow up from layer to layer.
#[test]
fn composed_layers_compute_in_the_type_of_the_weights() {
    for name in fixtures() {
        let config = std::fs::read_to_string(fixture(&name).join("config.json")).unwrap();
        if !config.contains("bfloat16") {
            continue;
        }
        for (dtype, tolerance) in [(DType::BF16, 0.25), (DType::F16, 0.04)] {
            let model = load_as(&fixture(&name), dtype, Backend::Composed);
            assert_eq!(model.sizes().state_bytes, 2);
            let fused = load_as(&fixture(&name), dtype, Backend::Auto);
            let mut differs = false;
            for row in expected(&name) {
                let found = Rows::prefill(&model, std::slice::from_ref(&row.prompt)).last;
                let largest = row.logits.iter().fold(0f32, |max, x| max.max(x.abs()));
                let what = format!("{name} {dtype:?}");
                assert_close(&found[0], &row.logits, tolerance * largest, &what);
                differs |= found != Rows::prefill(&fused, std::slice::from_ref(&row.prompt)).last;
            }
            assert!(differs, "{name} {dtype:?}");
        }
    }
    for (name, dtype, tolerance) in [
        ("llama-bf16", DType::BF16, 0.06),
        ("bloom-f16", DType::F16, 0.01),
    ] {
        let model = load_as(&fixture(name), dtype, Backend::Composed);
        for row in expected(name) {
            let found = Rows::prefill(&model, std::slice::from_ref(&row.prompt)).last;
            let largest = row.logits.iter().fold(0f32, |m, x| m.max(x.abs()));
            assert_close(&found[0], &row.logits, tolerance * largest, name);
        }
    }
}

/// A checkpoint of 16 bits that is kept in 16 bits gives what transformers gives for it in f32.
#[test]
fn a_checkpoint_of_16_bits_loses_nothing_in_them() {
    for (name, dtype) in [("llama-bf16", DType::BF16), ("bloom-f16", DType::F16)] {
        let model = load_as(&fixture(name), dtype, Backend::Auto);
        for row in expected(name) {
            let found = Rows::prefill(&model, std::slice::from_ref(&row.prompt)).last;
            assert_close(&found[0], &row.logits, 1e-4, name);
        }
    }
}

/// A GGUF file and the folder that it was made from round to the same 16 bits.
#[test]
fn a_gguf_file_rounds_as_its_folder_does() {
    for (name, dtype) in [("llama-yarn", DType::BF16), ("gpt-neox", DType::F16)] {
        let [file, folder] = [crate::gguf::gguf(name), fixture(name)].map(|path| {
            let model = load_as(&path, dtype, Backend::Auto);
            Rows::prefill(&model, &ragged(name)).last
        });
        for (found, wanted) in file.iter().zip(&folder) {
            assert_close(found, wanted, 1e-4, name);
        }
    }
}
