//! Weights in blocks: in every family, from folders and from GGUF files, alone and in batches.

use crate::gguf::gguf;
use crate::support::{
    Rows, argmax, edit_config, expected, fixture, fixtures, load, ragged, writable,
};
use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{Device, Tensor};
use skipbench_model::{Backend, CausalLm, Decoder, ModelConfig, ModelError, WeightType};
use std::collections::HashMap;
use std::path::Path;
use tempfile::TempDir;

const BLOCKS: [(WeightType, GgmlDType); 3] = [
    (WeightType::Q8_0, GgmlDType::Q8_0),
    (WeightType::Q4_1, GgmlDType::Q4_1),
    (WeightType::Q4_0, GgmlDType::Q4_0),
];

fn load_as(model: &Path, weights: WeightType) -> Decoder {
    Decoder::load(model, &Device::Cpu, Some(weights), Backend::Auto).unwrap()
}

/// Rewrites every tensor of a folder.
fn edit_all(dir: &Path, edit: impl Fn(&str, &Tensor) -> Tensor) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|end| end == "safetensors") {
            let tensors = candle_core::safetensors::load(&path, &Device::Cpu).unwrap();
            let edited: HashMap<String, Tensor> = tensors
                .iter()
                .map(|(name, tensor)| (name.clone(), edit(name, tensor)))
                .collect();
            candle_core::safetensors::save(&edited, path).unwrap();
        }
    }
}

/// Whether a tensor is an embedding or an LM head: its rows are not those of the state.
fn embeds(name: &str) -> bool {
    name.contains("embed") || name.contains("lm_head")
}

fn hash(name: &str) -> usize {
    let mix = |hash: usize, byte: u8| hash.wrapping_mul(31).wrapping_add(byte.into());
    name.bytes().fold(7, mix)
}

fn noise(len: usize, seed: usize) -> Vec<f32> {
    let mut state = (seed as u32).wrapping_mul(2_654_435_761).max(1);
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        state as f32 / u32::MAX as f32 * 2.0 - 1.0
    };
    (0..len).map(|_| next()).collect()
}

/// The network of a fixture made so many times as wide that all its widths are whole blocks, with weights drawn anew.
fn widened(name: &str) -> TempDir {
    let dir = writable(name);
    let mut common = 32;
    for entry in std::fs::read_dir(dir.path()).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|end| end == "safetensors") {
            let tensors = candle_core::safetensors::load(&path, &Device::Cpu).unwrap();
            let matrices = tensors.values().filter(|tensor| tensor.rank() == 2);
            common = matrices.fold(common, |common, tensor| gcd(common, tensor.dim(1).unwrap()));
        }
    }
    let times = 32 / common;
    edit_all(dir.path(), |name, tensor| match tensor.dims() {
        [rows, columns] => {
            let (rows, columns) = (rows * if embeds(name) { 1 } else { times }, columns * times);
            let square = tensor
                .to_dtype(candle_core::DType::F32)
                .unwrap()
                .sqr()
                .unwrap();
            let square: f32 = square.mean_all().unwrap().to_scalar().unwrap();
            let size = (3.0 * square / times as f32).sqrt();
            let values = noise(rows * columns, hash(name));
            let values = Tensor::from_vec(values, (rows, columns), &Device::Cpu).unwrap();
            (values * f64::from(size)).unwrap()
        }
        _ => tensor.repeat(times).unwrap(),
    });
    edit_config(dir.path(), |config| widen_config(config, times as u64));
    dir
}

fn gcd(a: usize, b: usize) -> usize {
    if b == 0 { a } else { gcd(b, a % b) }
}

fn widen_config(config: &mut serde_json::Value, times: u64) {
    const WIDTHS: [&str; 5] = [
        "hidden_size",
        "intermediate_size",
        "head_dim",
        "ffn_dim",
        "word_embed_proj_dim",
    ];
    for (key, value) in config.as_object_mut().unwrap() {
        match value {
            serde_json::Value::Object(_) => widen_config(value, times),
            serde_json::Value::Array(factors) if key.ends_with("_factor") => {
                *factors = vec![factors.clone(); times as usize].concat();
            }
            value if WIDTHS.contains(&key.as_str()) => {
                if let Some(width) = value.as_u64() {
                    *value = (width * times).into();
                }
            }
            _ => {}
        }
    }
}

/// A copy whose matrices hold the numbers that blocks of `dtype` leave of them.
fn dequantised(dir: &Path, dtype: GgmlDType) -> TempDir {
    let copy = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(dir).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), copy.path().join(entry.file_name())).unwrap();
    }
    edit_all(copy.path(), |name, tensor| {
        if tensor.rank() != 2 || name.contains("embed_positions") {
            return tensor.clone();
        }
        let dtype = if embeds(name) { GgmlDType::Q8_0 } else { dtype };
        let blocks = QTensor::quantize(tensor, dtype).unwrap();
        blocks.dequantize(&Device::Cpu).unwrap()
    });
    copy
}

/// The length of the difference over the length of what was wanted.
fn distance(found: &[Vec<f32>], wanted: &[Vec<f32>]) -> f32 {
    let length = |values: &mut dyn Iterator<Item = f32>| values.map(|x| x * x).sum::<f32>().sqrt();
    let (found, wanted) = (found.iter().flatten(), wanted.iter().flatten());
    let difference = length(&mut found.zip(wanted.clone()).map(|(a, b)| a - b));
    difference / length(&mut wanted.copied())
}

/// How far products of 8-bit activations may take these random networks, which blow up every difference, from the same weights
/// in f32. Each product is exact to the bit by tests of its own; a matrix in the wrong place gives 1 and more.
const TOLERANCE: f32 = 0.25;

/// Prefill and decode, with layers left out too: a row alone is bit for bit the row in a batch of four, and all are near what f32
/// makes of the same weights.
#[test]
fn every_family_computes_with_weights_in_blocks() {
    for name in fixtures() {
        let dir = widened(&name);
        for (weights, dtype) in BLOCKS {
            let model = load_as(dir.path(), weights);
            assert_eq!(model.weights(), weights);
            let wide_dir = dequantised(dir.path(), dtype);
            let wide = load(wide_dir.path(), Backend::Auto);
            let prompts = ragged(&name);
            let n_layers = wide.sizes().n_layers;
            let all: Vec<usize> = (0..n_layers).collect();
            let kept: Vec<usize> = (0..n_layers)
                .filter(|layer| layer % 2 == 0 || *layer == n_layers - 1)
                .collect();
            for layers in [&all, &kept] {
                let what = format!("{name} {weights} {layers:?}");
                let mut found = Rows::prefill(&model, &prompts);
                let mut wanted = Rows::prefill(&wide, &prompts);
                let mut alone: Vec<Rows> = prompts
                    .iter()
                    .map(|prompt| Rows::prefill(&model, std::slice::from_ref(prompt)))
                    .collect();
                for _ in 0..4 {
                    let off = distance(&found.last, &wanted.last);
                    assert!(off > 0.0 && off < TOLERANCE, "{what}: {off}");
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

/// What was asked for is what is kept: the three kinds and f32 give different numbers, and take the bytes of their blocks.
#[test]
fn a_model_takes_the_bytes_of_its_blocks() {
    let dir = widened("llama1");
    let kinds = [
        (WeightType::F32, 32.0, 32.0),
        (WeightType::Q8_0, 8.5, 8.5),
        (WeightType::Q4_1, 5.0, 8.5),
        (WeightType::Q4_0, 4.5, 8.5),
    ];
    let mut seen: Vec<Vec<Vec<f32>>> = Vec::new();
    for (weights, bits, head_bits) in kinds {
        let model = load_as(dir.path(), weights);
        let sizes = model.sizes();
        let bytes = |weights: u64, bits: f64| (weights as f64 * bits / 8.0) as u64;
        assert_eq!(sizes.head_bytes, bytes(sizes.head_weights, head_bits));
        for layer in &sizes.layer_bytes {
            assert_eq!(layer.attention, bytes(sizes.attention_weights, bits));
            assert_eq!(
                layer.kv_projection,
                bytes(sizes.kv_projection_weights, bits)
            );
            assert_eq!(layer.mlp, bytes(sizes.mlp_weights, bits));
        }
        let last = Rows::prefill(&model, &ragged("llama1")).last;
        assert!(!seen.contains(&last), "{weights}");
        seen.push(last);
    }
}

/// The files hold blocks beside numbers of 16 bits, since not all widths are whole blocks.
#[test]
fn a_gguf_file_keeps_its_own_types_matrix_by_matrix() {
    for name in ["llama2-gqa-tied", "llama3-v5", "qwen2"] {
        let own = load_as(&gguf(name), WeightType::Stored);
        let wide = load_as(&gguf(name), WeightType::F32);
        let bytes = |model: &Decoder| {
            model
                .sizes()
                .layer_bytes
                .iter()
                .map(|b| b.attention + b.mlp)
                .sum::<u64>()
        };
        assert!(3 * bytes(&own) < 2 * bytes(&wide), "{name}");
        let prompts = ragged(name);
        let [found, wanted] = [&own, &wide].map(|model| Rows::prefill(model, &prompts).last);
        let off = distance(&found, &wanted);
        assert!(off > 0.0 && off < TOLERANCE, "{name}: {off}");
    }
    // Where no blocks are in the file, nothing is rounded.
    for name in ["llama-yarn", "qwen2-v5-tied"] {
        let [own, wide] = [WeightType::Stored, WeightType::F32]
            .map(|weights| Rows::prefill(&load_as(&gguf(name), weights), &ragged(name)).last);
        assert_eq!(own, wide, "{name}");
    }
}

#[test]
fn a_folder_is_kept_as_stored() {
    let stored = load_as(&fixture("llama-bf16"), WeightType::Stored);
    let narrow = load_as(&fixture("llama-bf16"), WeightType::Bf16);
    assert_eq!(stored.sizes(), narrow.sizes());
    let [found, wanted] =
        [&stored, &narrow].map(|model| Rows::prefill(model, &ragged("llama-bf16")).last);
    assert_eq!(found, wanted);
}

/// Blocks of 8 bits hardly change what the fixtures answer.
#[test]
fn answers_of_8_bits_are_those_of_the_numbers_they_stand_for() {
    let dir = fixture("bloom");
    let model = load_as(&dir, WeightType::Q8_0);
    let rows = expected("bloom");
    let same = rows.iter().filter(|row| {
        let found = Rows::prefill(&model, std::slice::from_ref(&row.prompt));
        argmax(&found.last[0]) == row.full[0]
    });
    assert!(2 * same.count() > rows.len());
}

#[test]
fn what_blocks_cannot_hold_is_refused_with_the_fix() {
    let refused = |model: &Path, weights, device: &Device, backend| {
        let error = Decoder::load(model, device, Some(weights), backend).err();
        error.map(|error| error.to_string()).unwrap_or_default()
    };
    for (weights, _) in BLOCKS {
        let message = refused(&fixture("llama1"), weights, &Device::Cpu, Backend::Auto);
        for part in ["rows of 48 weights", "blocks of 32", weights.name(), "bf16"] {
            assert!(message.contains(part), "{message}");
        }
        assert!(message.contains("down_proj"), "{message}");
        let message = refused(&fixture("bloom"), weights, &Device::Cpu, Backend::Composed);
        for part in [weights.name(), "composed", "bf16", "device: cpu"] {
            assert!(message.contains(part), "{message}");
        }
    }
}

/// A checkpoint of 64 layers whose MLP is `width` wide, of which nothing is written but its header.
fn hollow(width: usize) -> Option<TempDir> {
    const N_LAYERS: usize = 64;
    let dir = writable("llama1");
    edit_config(dir.path(), |config| {
        config["intermediate_size"] = width.into();
        config["hidden_size"] = 128.into();
        config["num_hidden_layers"] = N_LAYERS.into();
    });
    let config = ModelConfig::open(dir.path()).unwrap();
    let (d, q) = (config.d_model, config.n_heads * config.head_dim);
    let kv = config.n_kv_heads * config.head_dim;
    let mut header = serde_json::Map::new();
    let mut at = 0;
    let mut put = |name: &str, shape: &[usize]| {
        let end = at + 4 * shape.iter().product::<usize>();
        let entry = serde_json::json!({"dtype": "F32", "shape": shape, "data_offsets": [at, end]});
        header.insert(format!("{name}.weight"), entry);
        at = end;
    };
    let shapes: [(&str, &[usize]); 9] = [
        ("self_attn.q_proj", &[q, d]),
        ("self_attn.k_proj", &[kv, d]),
        ("self_attn.v_proj", &[kv, d]),
        ("self_attn.o_proj", &[d, q]),
        ("mlp.gate_proj", &[width, d]),
        ("mlp.up_proj", &[width, d]),
        ("mlp.down_proj", &[d, width]),
        ("input_layernorm", &[d]),
        ("post_attention_layernorm", &[d]),
    ];
    for layer in 0..N_LAYERS {
        for (name, shape) in shapes {
            put(&format!("model.layers.{layer}.{name}"), shape);
        }
    }
    put("model.norm", &[d]);
    put("model.embed_tokens", &[config.vocab_size, d]);
    put("lm_head", &[config.vocab_size, d]);
    let header = serde_json::Value::Object(header).to_string();
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    let path = dir.path().join("model.safetensors");
    std::fs::write(&path, &bytes).unwrap();
    let file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
    // Not all file systems have holes.
    file.set_len((bytes.len() + at) as u64).ok()?;
    Some(dir)
}

#[test]
fn a_model_larger_than_memory_is_refused_before_it_is_read() {
    let refused = |dir: &Path| {
        let error = Decoder::load(dir, &Device::Cpu, None, Backend::Auto).err();
        let error = error.expect("more than any machine has");
        let message = error.to_string();
        match error {
            ModelError::TooLarge { free, .. } => (free, message),
            other => panic!("{other}"),
        }
    };
    let Some(dir) = hollow(1 << 26) else {
        return;
    };
    let (free, message) = refused(dir.path());
    for part in ["6.0 TiB as `f32`", "are free", "no element type"] {
        assert!(message.contains(part), "{message}");
    }
    // Two and a half times what is free in 32 bits are two thirds of it in 8.
    let width = free.unwrap() as usize / 2 * 5 / (64 * 3 * 128 * 4);
    let dir = hollow(width / 32 * 32).unwrap();
    let (_, message) = refused(dir.path());
    assert!(
        message.contains("`dtype: q8_0` would fit with"),
        "{message}"
    );
}
