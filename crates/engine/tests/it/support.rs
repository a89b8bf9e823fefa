//! Models and shorthand for the tests.

use candle_core::{Device, Tensor};
use serde::Deserialize;
use skipbench_engine::{Engine, Generation, Options};
use skipbench_model::{
    Backend, CausalLm, Decoder, KvCache, ModelSizes, Part, Result, Span, WeightType,
};
use skipbench_strategy::StrategySpec;
use std::path::{Path, PathBuf};

/// A tiny random checkpoint of the model crate.
pub(crate) fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../model/tests/fixtures")
        .join(name)
}

/// The names of all of them.
pub(crate) fn fixtures() -> Vec<String> {
    let folder = std::fs::read_dir(fixture("")).unwrap();
    let names = folder.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<String> = names.collect();
    names.sort();
    names
}

/// One prompt of a fixture's `expected.json`.
#[derive(Deserialize)]
pub(crate) struct Row {
    pub(crate) prompt: Vec<u32>,
    pub(crate) full: Vec<u32>,
    pub(crate) unified: Vec<Skip>,
}

#[derive(Deserialize)]
pub(crate) struct Skip {
    pub(crate) speedup: f64,
    pub(crate) tokens: Vec<u32>,
}

/// What transformers made of a fixture's prompts, of which there are four.
pub(crate) fn expected(name: &str) -> Vec<Row> {
    #[derive(Deserialize)]
    struct File {
        rows: Vec<Row>,
    }
    let text = std::fs::read_to_string(fixture(name).join("expected.json")).unwrap();
    serde_json::from_str::<File>(&text).unwrap().rows
}

pub(crate) fn load(name: &str, backend: Backend) -> Decoder {
    Decoder::load(&fixture(name), &Device::Cpu, Some(WeightType::F32), backend).unwrap()
}

pub(crate) fn spec(text: &str) -> StrategySpec {
    text.parse().unwrap()
}

/// A strategy in its long form, as JSON.
pub(crate) fn long(text: &str) -> StrategySpec {
    serde_json::from_str(text).unwrap()
}

/// Six prompts of different lengths.
pub(crate) fn ragged() -> Vec<Vec<u32>> {
    (0..6u32)
        .map(|row| {
            (0..3 + 2 * row)
                .map(|i| 3 + (i * 31 + row * 17) % 90)
                .collect()
        })
        .collect()
}

/// Tokens of every row.
pub(crate) fn tokens(generation: &Generation) -> Vec<&[u32]> {
    let rows = generation.rows.iter();
    rows.map(|row| row.tokens.as_slice()).collect()
}

/// `max_new_tokens` of every row, whatever the tokens are.
pub(crate) fn fixed(max_new_tokens: usize) -> Options {
    Options {
        max_new_tokens,
        ..Options::default()
    }
}

pub(crate) fn generate(
    model: &dyn CausalLm,
    prompts: &[Vec<u32>],
    spec: &StrategySpec,
    options: &Options,
) -> Generation {
    let mut strategy = spec.build(model.sizes().n_layers).unwrap();
    Engine::new(model)
        .generate(prompts, strategy.as_mut(), options)
        .unwrap()
}

/// What a [`Hooked`] model makes of a layer's index, input and output, and of the LM head's.
type LayerHook<'a> = &'a (dyn Fn(usize, &Tensor, Tensor) -> Result<Tensor> + Sync);
type HeadHook<'a> = &'a (dyn Fn(&Tensor, Tensor) -> Result<Tensor> + Sync);

/// A model with somebody between its layers.
pub(crate) struct Hooked<'a> {
    pub(crate) inner: &'a dyn CausalLm,
    pub(crate) layer: LayerHook<'a>,
    pub(crate) head: HeadHook<'a>,
}

impl CausalLm for Hooked<'_> {
    fn sizes(&self) -> &ModelSizes {
        self.inner.sizes()
    }

    fn device(&self) -> &Device {
        self.inner.device()
    }

    fn new_cache(&self, rows: usize, capacity: Vec<usize>) -> Result<KvCache> {
        self.inner.new_cache(rows, capacity)
    }

    fn embed(&self, ids: &[u32], spans: &[Span]) -> Result<Tensor> {
        self.inner.embed(ids, spans)
    }

    fn layer_part(
        &self,
        index: usize,
        part: Part,
        hidden: &Tensor,
        cache: &mut KvCache,
        spans: &[Span],
    ) -> Result<Tensor> {
        let output = self.inner.layer_part(index, part, hidden, cache, spans)?;
        (self.layer)(index, hidden, output)
    }

    fn fill_kv(
        &self,
        index: usize,
        hidden: &Tensor,
        cache: &mut KvCache,
        spans: &[Span],
    ) -> Result<()> {
        self.inner.fill_kv(index, hidden, cache, spans)
    }

    fn head(&self, hidden: &Tensor) -> Result<Tensor> {
        (self.head)(hidden, self.inner.head(hidden)?)
    }
}
