//! Damaged and hostile GGUF files: an error that names the file and the place, no panic, and no more memory than the file
//! warrants.

use crate::gguf::gguf;
use candle_core::Device;
use skipbench_model::{Backend, Decoder, TextTokenizer};
use std::fs;
use std::path::Path;

/// A GGUF file, put together piece by piece.
#[derive(Default)]
struct Writer {
    entries: Vec<Vec<u8>>,
    tensors: Vec<Vec<u8>>,
    data: Vec<u8>,
}

fn text(text: &str) -> Vec<u8> {
    let mut bytes = (text.len() as u64).to_le_bytes().to_vec();
    bytes.extend(text.as_bytes());
    bytes
}

fn joined(parts: &[&[u8]]) -> Vec<u8> {
    parts.concat()
}

impl Writer {
    fn llama() -> Self {
        Self::default().text("general.architecture", "llama")
    }

    fn entry(mut self, key: &str, kind: u32, value: &[u8]) -> Self {
        self.entries
            .push(joined(&[&text(key), &kind.to_le_bytes(), value]));
        self
    }

    fn text(self, key: &str, value: &str) -> Self {
        self.entry(key, 8, &text(value))
    }

    fn texts(self, key: &str, values: &[&str]) -> Self {
        let mut bytes = joined(&[&8u32.to_le_bytes(), &(values.len() as u64).to_le_bytes()]);
        bytes.extend(values.iter().flat_map(|value| text(value)));
        self.entry(key, 9, &bytes)
    }

    fn tensor(mut self, name: &str, shape: &[u64], kind: u32, offset: u64) -> Self {
        let mut bytes = text(name);
        bytes.extend((shape.len() as u32).to_le_bytes());
        bytes.extend(shape.iter().flat_map(|size| size.to_le_bytes()));
        bytes.extend(kind.to_le_bytes());
        bytes.extend(offset.to_le_bytes());
        self.tensors.push(bytes);
        self
    }

    fn data(mut self, bytes: usize) -> Self {
        self.data = vec![0; bytes];
        self
    }

    fn bytes(&self) -> Vec<u8> {
        let mut bytes = joined(&[
            b"GGUF",
            &3u32.to_le_bytes(),
            &(self.tensors.len() as u64).to_le_bytes(),
            &(self.entries.len() as u64).to_le_bytes(),
        ]);
        bytes.extend(self.entries.concat());
        bytes.extend(self.tensors.concat());
        bytes.resize(bytes.len().next_multiple_of(32), 0);
        bytes.extend(&self.data);
        bytes
    }
}

/// What the loaders say of a file.
fn errors(bytes: &[u8]) -> [String; 2] {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("bad.gguf");
    fs::write(&path, bytes).unwrap();
    let model = Decoder::load(&path, &Device::Cpu, None, Backend::Auto);
    let tokenizer = TextTokenizer::load(&path, 96);
    [
        model.err().map_or(String::new(), |error| error.to_string()),
        tokenizer
            .err()
            .map_or(String::new(), |error| error.to_string()),
    ]
}

#[track_caller]
fn assert_refused(bytes: &[u8], parts: &[&str]) {
    let [model, _] = errors(bytes);
    for part in ["bad.gguf"].iter().chain(parts) {
        assert!(model.contains(part), "no {part:?} in: {model}");
    }
}

#[track_caller]
fn assert_no_tokenizer(writer: Writer, parts: &[&str]) {
    let [_, tokenizer] = errors(&writer.bytes());
    for part in ["bad.gguf"].iter().chain(parts) {
        assert!(tokenizer.contains(part), "no {part:?} in: {tokenizer}");
    }
}

#[test]
fn what_is_no_gguf() {
    assert_refused(b"", &["cut off"]);
    assert_refused(b"GG", &["cut off"]);
    assert_refused(b"PK\x03\x04 and so on", &["GGUF"]);
    let version = |version: u32| joined(&[b"GGUF", &version.to_le_bytes(), &[0; 64]]);
    assert_refused(&version(1), &["version 1"]);
    assert_refused(&version(99), &["version 99"]);
    assert_refused(&version(3u32.swap_bytes()), &["big-endian"]);
    let dir = tempfile::tempdir().unwrap();
    let missing = dir.path().join("missing.gguf");
    let error = Decoder::load(&missing, &Device::Cpu, None, Backend::Auto);
    let error = error.err().unwrap().to_string();
    assert!(error.contains("missing.gguf"), "{error}");
}

#[test]
fn a_file_that_was_cut_off_anywhere() {
    let whole = fs::read(gguf("qwen2")).unwrap();
    let places = (0..whole.len()).step_by(97).chain([whole.len() - 1]);
    for len in places {
        let [model, _] = errors(&whole[..len]);
        assert!(model.contains("bad.gguf"), "{len} bytes: {model}");
    }
}

#[test]
fn a_file_with_any_byte_changed_is_read_or_refused() {
    let whole = fs::read(gguf("qwen2")).unwrap();
    // The header and the first tensors; what is asserted is that nothing panics and memory is not asked for by the claim.
    for at in (0..6000).chain((6000..12_000).step_by(7)) {
        for value in [0xff, whole[at] ^ 0x40] {
            let mut bytes = whole.clone();
            bytes[at] = value;
            errors(&bytes);
        }
    }
}

#[test]
fn counts_and_lengths_that_the_file_cannot_hold() {
    let claims = |tensors: u64, entries: u64| {
        joined(&[
            b"GGUF",
            &3u32.to_le_bytes(),
            &tensors.to_le_bytes(),
            &entries.to_le_bytes(),
            &[0; 1000],
        ])
    };
    assert_refused(&claims(0, 1_000_000), &["1000000 metadata entries"]);
    assert_refused(&claims(u64::MAX, 1), &["tensors"]);
    // A million entries that are there.
    let entry = joined(&[&text("k"), &0u32.to_le_bytes(), &[1]]);
    let mut many = joined(&[
        b"GGUF",
        &3u32.to_le_bytes(),
        &0u64.to_le_bytes(),
        &1_000_000u64.to_le_bytes(),
    ]);
    many.extend(entry.repeat(1_000_000));
    assert_refused(&many, &["1000000 metadata entries", "65536"]);

    let huge = u64::MAX.to_le_bytes();
    let long_text = Writer::llama().entry("long", 8, &huge);
    assert_refused(&long_text.bytes(), &["long", "cut off"]);
    let array = |kind: u32, len: u64| joined(&[&kind.to_le_bytes(), &len.to_le_bytes()]);
    for kind in [0, 4, 8, 9, 10] {
        let long = Writer::llama().entry("long", 9, &array(kind, u64::MAX / 2));
        assert_refused(&long.bytes(), &["long"]);
    }
    let deep: Vec<u8> = std::iter::repeat_n(array(9, 1), 1000).flatten().collect();
    let nested = Writer::llama().entry("deep", 9, &deep);
    assert_refused(&nested.bytes(), &["deep", "arrays"]);
    let unknown = Writer::llama().entry("what", 77, &[0; 8]);
    assert_refused(&unknown.bytes(), &["what", "77"]);
    let twice = Writer::llama().text("general.architecture", "llama");
    assert_refused(&twice.bytes(), &["general.architecture", "twice"]);
}

#[test]
fn tensors_that_do_not_fit() {
    let one = |shape: &[u64], kind: u32, offset: u64| {
        Writer::llama()
            .tensor("t.weight", shape, kind, offset)
            .data(4096)
            .bytes()
    };
    let t = "`t.weight`";
    assert_refused(&one(&[8, 8], 0, 1 << 40), &[t, "cut off"]);
    assert_refused(&one(&[8, 8], 0, u64::MAX - 31), &[t, "cut off"]);
    assert_refused(&one(&[8, 8], 0, 3), &[t, "multiple of 32"]);
    assert_refused(&one(&[64, 17], 0, 0), &[t, "4480", "cut off"]);
    assert_refused(&one(&[1 << 40, 1 << 40], 0, 0), &[t]);
    assert_refused(&one(&[0, 8], 0, 0), &[t]);
    assert_refused(&one(&[8; 5], 0, 0), &[t, "5 dimensions"]);
    assert_refused(&one(&[48, 8], 2, 0), &[t, "rows of 48", "Q4_0"]);
    assert_refused(&one(&[256, 1], 20, 0), &[t, "`IQ4_NL`", "Q4_K"]);
    assert_refused(&one(&[256, 1], 777, 0), &[t, "number 777"]);
    let twice = Writer::llama()
        .tensor("t", &[1], 0, 0)
        .tensor("t", &[1], 0, 0)
        .data(64);
    assert_refused(&twice.bytes(), &["`t`", "twice"]);
}

#[test]
fn metadata_that_make_no_model() {
    assert_refused(&Writer::default().bytes(), &["general.architecture"]);
    let other = Writer::default().text("general.architecture", "mamba");
    assert_refused(
        &other.bytes(),
        &["`mamba`", "llama", "gemma3", "gptneox", "bloom"],
    );
    let part = Writer::llama().entry("split.count", 2, &3u16.to_le_bytes());
    assert_refused(&part.bytes(), &["3 parts", "llama-gguf-split"]);
    assert_refused(&Writer::llama().bytes(), &["token_embd.weight"]);
    let embedding = || {
        Writer::llama()
            .tensor("token_embd.weight", &[8, 4], 0, 0)
            .data(128)
    };
    assert_refused(&embedding().bytes(), &["llama.block_count", "missing"]);
    let layers = |layers: u32| {
        let size = |writer: Writer, key: &str, value: u32| {
            writer.entry(&format!("llama.{key}"), 4, &value.to_le_bytes())
        };
        let writer = size(embedding(), "block_count", layers);
        let writer = size(writer, "embedding_length", 8);
        size(writer, "attention.head_count", 2)
    };
    assert_refused(
        &layers(u32::MAX).bytes(),
        &["llama.block_count", "blk.4294967294.attn_output.weight"],
    );
    assert_refused(&layers(0).bytes(), &["llama.block_count", "positive"]);
    let wrong = embedding().text("llama.block_count", "three");
    assert_refused(&wrong.bytes(), &["llama.block_count", "positive integer"]);
}

#[test]
fn metadata_that_make_no_tokenizer() {
    assert_no_tokenizer(Writer::llama(), &["tokenizer.ggml.tokens"]);
    let tokens = || Writer::llama().texts("tokenizer.ggml.tokens", &["a", "b", "ab"]);
    assert_no_tokenizer(tokens(), &["tokenizer.ggml.model"]);
    let model = |name: &str| tokens().text("tokenizer.ggml.model", name);
    assert_no_tokenizer(model("bert"), &["`bert`", "gpt2", "llama"]);
    assert_no_tokenizer(
        model("gpt2").text("tokenizer.ggml.pre", "no-such"),
        &["`no-such`", "llama-bpe", "smollm"],
    );
    assert_no_tokenizer(
        model("gpt2").text("tokenizer.ggml.pre", "gpt-2"),
        &["tokenizer.ggml.merges"],
    );
    assert_no_tokenizer(model("llama"), &["tokenizer.ggml.scores"]);
    let types = joined(&[&5u32.to_le_bytes(), &2u64.to_le_bytes(), &[1; 8]]);
    assert_no_tokenizer(
        model("gpt2").entry("tokenizer.ggml.token_type", 9, &types),
        &["tokenizer.ggml.token_type"],
    );
    let bos = model("gpt2")
        .text("tokenizer.ggml.pre", "gpt-2")
        .texts(
            "tokenizer.ggml.merges",
            &["a b", "b c", "broken", "", "é é"],
        )
        .entry("tokenizer.ggml.add_bos_token", 7, &[1]);
    assert_no_tokenizer(bos, &["add_bos_token", "bos_token_id"]);
}

#[test]
fn merges_of_unknown_tokens_are_left_out() {
    let writer = Writer::llama()
        .texts("tokenizer.ggml.tokens", &["a", "b", "ab", "a"])
        .text("tokenizer.ggml.model", "gpt2")
        .text("tokenizer.ggml.pre", "gpt-2")
        .texts(
            "tokenizer.ggml.merges",
            &["ab abab", "a b", "x y", " b", "a"],
        );
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.gguf");
    fs::write(&path, writer.bytes()).unwrap();
    use skipbench_model::Tokenize;
    let tokenizer = TextTokenizer::load(Path::new(&path), 4).unwrap();
    assert_eq!(tokenizer.encode("aba").unwrap(), [2, 0]);
}
