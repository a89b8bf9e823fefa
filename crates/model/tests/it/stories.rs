//! The 260K TinyStories LLaMA of llama2.c, converted to a Hugging Face folder, tells its known story.

use crate::support::{greedy, load};
use candle_core::{Device, Tensor};
use skipbench_model::{Backend, CausalLm};
use std::collections::HashMap;
use std::io::{Cursor, Read};
use std::path::Path;

/// llama2.c begins every sequence with this id.
const BOS: u32 = 1;

#[test]
#[cfg_attr(not(has_shared), ignore = "needs ../shared")]
fn stories260k_tells_its_known_story() {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/data/stories260k");
    let dir = tempfile::tempdir().unwrap();
    convert(&source.join("stories260K.bin"), dir.path());
    let pieces = read_pieces(&source.join("tok512.bin"));
    let story = std::fs::read_to_string(source.join("greedy.txt")).unwrap();
    for backend in [Backend::Auto, Backend::Composed] {
        let model = load(dir.path(), backend);
        let all: Vec<usize> = (0..model.sizes().n_layers).collect();
        let tokens = greedy(&model, &[BOS], &all, 256);
        let text = text_of(&tokens, &pieces);
        assert!(
            text.starts_with(story.trim_end()),
            "{backend:?} tells: {text}"
        );
    }
}

/// Reads little-endian numbers.
struct Reader(Cursor<Vec<u8>>);

impl Reader {
    fn open(path: &Path) -> Self {
        Self(Cursor::new(std::fs::read(path).unwrap()))
    }

    fn four(&mut self) -> Option<[u8; 4]> {
        let mut bytes = [0; 4];
        self.0.read_exact(&mut bytes).ok().map(|()| bytes)
    }

    fn size(&mut self) -> usize {
        i32::from_le_bytes(self.four().unwrap()) as usize
    }

    fn floats(&mut self, count: usize) -> Vec<f32> {
        (0..count)
            .map(|_| f32::from_le_bytes(self.four().unwrap()))
            .collect()
    }
}

/// llama2.c's legacy file: seven sizes, then the tensors of each kind for all layers together.
fn convert(from: &Path, to: &Path) {
    let mut file = Reader::open(from);
    let [d, f, n_layers, heads, kv_heads, vocab, positions] = [(); 7].map(|()| file.size());
    let head = d / heads;
    let kv = kv_heads * head;
    let mut tensors = HashMap::new();
    let mut put = |name: String, values: Vec<f32>, shape: &[usize]| {
        let tensor = Tensor::from_vec(values, shape, &Device::Cpu).unwrap();
        tensors.insert(name, tensor);
    };
    put(
        "model.embed_tokens.weight".to_owned(),
        file.floats(vocab * d),
        &[vocab, d],
    );
    let kinds: [(&str, &[usize]); 9] = [
        ("input_layernorm", &[d]),
        ("self_attn.q_proj", &[d, d]),
        ("self_attn.k_proj", &[kv, d]),
        ("self_attn.v_proj", &[kv, d]),
        ("self_attn.o_proj", &[d, d]),
        ("post_attention_layernorm", &[d]),
        ("mlp.gate_proj", &[f, d]),
        ("mlp.down_proj", &[d, f]),
        ("mlp.up_proj", &[f, d]),
    ];
    for (kind, shape) in kinds {
        for layer in 0..n_layers {
            let mut values = file.floats(shape.iter().product());
            if kind.ends_with("q_proj") || kind.ends_with("k_proj") {
                values = halves(&values, head, d);
            }
            put(format!("model.layers.{layer}.{kind}.weight"), values, shape);
        }
    }
    put("model.norm.weight".to_owned(), file.floats(d), &[d]);
    candle_core::safetensors::save(&tensors, to.join("model.safetensors")).unwrap();
    let config = serde_json::json!({
        "architectures": ["LlamaForCausalLM"], "vocab_size": vocab, "hidden_size": d,
        "intermediate_size": f, "num_hidden_layers": n_layers, "num_attention_heads": heads,
        "num_key_value_heads": kv_heads, "max_position_embeddings": positions,
        "rms_norm_eps": 1e-5, "tie_word_embeddings": true,
    });
    std::fs::write(to.join("config.json"), config.to_string()).unwrap();
}

/// llama2.c rotates neighbouring channels (2i, 2i + 1), Hugging Face channels half a head apart (i, i + head / 2).
fn halves(rows: &[f32], head: usize, width: usize) -> Vec<f32> {
    rows.chunks_exact(head * width)
        .flat_map(|rows| {
            let evens = (0..head).step_by(2);
            let odds = (1..head).step_by(2);
            evens
                .chain(odds)
                .flat_map(|row| rows[row * width..(row + 1) * width].to_vec())
        })
        .collect()
}

/// The pieces of `tok512.bin`, in id order.
fn read_pieces(path: &Path) -> Vec<Vec<u8>> {
    let mut file = Reader::open(path);
    file.size();
    let mut pieces = Vec::new();
    while file.four().is_some() {
        let mut piece = vec![0; file.size()];
        file.0.read_exact(&mut piece).unwrap();
        pieces.push(piece);
    }
    pieces
}

/// Bytes appear as `<0xNN>`; the first piece loses the space that the sentence marker put before it.
fn text_of(tokens: &[u32], pieces: &[Vec<u8>]) -> String {
    let mut bytes = Vec::new();
    for (index, &token) in tokens.iter().enumerate() {
        let piece = &pieces[token as usize];
        let text = String::from_utf8_lossy(piece);
        let byte = text
            .strip_prefix("<0x")
            .and_then(|hex| u8::from_str_radix(hex.strip_suffix('>')?, 16).ok());
        match byte {
            Some(byte) => bytes.push(byte),
            None if index == 0 => bytes.extend(text.trim_start().bytes()),
            None => bytes.extend(piece),
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}
