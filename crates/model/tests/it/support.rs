//! Prefill and decode by hand, so that this crate's tests need no engine.

use candle_core::{Device, Tensor};
use serde::Deserialize;
use skipbench_model::{Backend, CausalLm, Decoder, KvCache, Span, WeightType};
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

/// A committed checkpoint; `scripts/fixtures/make_model_fixtures.py` makes them.
pub(crate) fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fixtures")
        .join(name)
}

/// All fixtures by name.
pub(crate) fn fixtures() -> Vec<String> {
    let folder = std::fs::read_dir(fixture("")).unwrap();
    let mut names: Vec<String> = folder
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

/// A writable copy of a fixture.
pub(crate) fn writable(name: &str) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(fixture(name)).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), dir.path().join(entry.file_name())).unwrap();
    }
    dir
}

/// Rewrites `config.json` of `dir`.
pub(crate) fn edit_config(dir: &Path, edit: impl FnOnce(&mut serde_json::Value)) {
    let path = dir.join("config.json");
    let mut config = serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
    edit(&mut config);
    std::fs::write(path, config.to_string()).unwrap();
}

/// Rewrites the tensors of `dir`.
pub(crate) fn edit_tensors(dir: &Path, edit: impl FnOnce(&mut HashMap<String, Tensor>)) {
    let path = dir.join("model.safetensors");
    let mut tensors = candle_core::safetensors::load(&path, &Device::Cpu).unwrap();
    edit(&mut tensors);
    candle_core::safetensors::save(&tensors, path).unwrap();
}

pub(crate) fn load(dir: &Path, backend: Backend) -> Decoder {
    Decoder::load(dir, &Device::Cpu, Some(WeightType::F32), backend).unwrap()
}

/// What transformers computed for one prompt.
#[derive(Debug, Deserialize)]
pub(crate) struct Expected {
    pub(crate) prompt: Vec<u32>,
    pub(crate) logits: Vec<f32>,
    pub(crate) full: Vec<u32>,
    pub(crate) unified: Vec<ExpectedSkip>,
}

#[derive(Debug, Deserialize)]
pub(crate) struct ExpectedSkip {
    pub(crate) layers: Vec<usize>,
    pub(crate) tokens: Vec<u32>,
}

pub(crate) fn expected(name: &str) -> Vec<Expected> {
    #[derive(Deserialize)]
    struct File {
        rows: Vec<Expected>,
    }
    let text = std::fs::read_to_string(fixture(name).join("expected.json")).unwrap();
    serde_json::from_str::<File>(&text).unwrap().rows
}

/// Runs `layers` over `ids` of `spans`: logits `[tokens][vocab_size]`.
pub(crate) fn logits(
    model: &dyn CausalLm,
    ids: &[u32],
    cache: &mut KvCache,
    spans: &[Span],
    layers: &[usize],
) -> Vec<Vec<f32>> {
    let mut hidden: Tensor = model.embed(ids, spans).unwrap();
    for &layer in layers {
        hidden = model.layer(layer, &hidden, cache, spans).unwrap();
    }
    model.head(&hidden).unwrap().to_vec2().unwrap()
}

pub(crate) fn argmax(logits: &[f32]) -> u32 {
    let best = logits.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1));
    best.unwrap().0 as u32
}

/// Greedy continuation of one prompt: all layers over the prompt, then `kept`.
pub(crate) fn greedy(
    model: &dyn CausalLm,
    prompt: &[u32],
    kept: &[usize],
    new_tokens: usize,
) -> Vec<u32> {
    let n_layers = model.sizes().n_layers;
    let all: Vec<usize> = (0..n_layers).collect();
    let room = prompt.len() + new_tokens;
    let mut cache = model.new_cache(1, vec![room; n_layers]).unwrap();
    let spans = Span::prompts([prompt.len()]);
    let mut token = argmax(
        logits(model, prompt, &mut cache, &spans, &all)
            .last()
            .unwrap(),
    );
    let mut tokens = vec![token];
    while tokens.len() < new_tokens {
        let span = Span::token(0, prompt.len() + tokens.len() - 1);
        token = argmax(&logits(model, &[token], &mut cache, &[span], kept)[0]);
        tokens.push(token);
    }
    tokens
}

pub(crate) fn assert_close(found: &[f32], wanted: &[f32], tolerance: f32, what: &str) {
    assert_eq!(found.len(), wanted.len(), "{what}");
    for (index, (found, wanted)) in found.iter().zip(wanted).enumerate() {
        assert!(
            (found - wanted).abs() <= tolerance,
            "{what}: logit {index} is {found}, expected {wanted}"
        );
    }
}

/// What a step gives is taken greedily; the rows may be of different length.
pub(crate) struct Rows<'a> {
    model: &'a Decoder,
    cache: KvCache,
    lens: Vec<usize>,
    pub(crate) last: Vec<Vec<f32>>,
}

impl<'a> Rows<'a> {
    pub(crate) fn prefill(model: &'a Decoder, prompts: &[Vec<u32>]) -> Self {
        let n_layers = model.sizes().n_layers;
        let all: Vec<usize> = (0..n_layers).collect();
        let lens: Vec<usize> = prompts.iter().map(Vec::len).collect();
        let room = lens.iter().max().unwrap() + 16;
        let mut cache = model.new_cache(lens.len(), vec![room; n_layers]).unwrap();
        let spans = Span::prompts(lens.clone());
        let found = logits(model, &prompts.concat(), &mut cache, &spans, &all);
        let ends = lens.iter().scan(0, |end, len| {
            *end += len;
            Some(*end)
        });
        let last = ends.map(|end| found[end - 1].clone()).collect();
        Self {
            model,
            cache,
            lens,
            last,
        }
    }

    pub(crate) fn tokens(&self) -> Vec<u32> {
        self.last.iter().map(|logits| argmax(logits)).collect()
    }

    pub(crate) fn step(&mut self, ids: &[u32], layers: &[usize]) {
        let spans: Vec<Span> = self
            .lens
            .iter()
            .enumerate()
            .map(|(row, &len)| Span::token(row, len))
            .collect();
        self.last = logits(self.model, ids, &mut self.cache, &spans, layers);
        self.lens.iter_mut().for_each(|len| *len += 1);
    }
}

/// Four prompts of different length.
pub(crate) fn ragged(name: &str) -> Vec<Vec<u32>> {
    let mut prompts: Vec<Vec<u32>> = expected(name).into_iter().map(|row| row.prompt).collect();
    while prompts.len() < 4 {
        let shorter = prompts[0][..prompts[0].len().div_ceil(2)].to_vec();
        prompts.insert(0, [vec![7 + prompts.len() as u32], shorter].concat());
    }
    prompts.truncate(4);
    prompts
}
