//! What decode steps ask of a GPU, counted on a CPU that plays one, and stated in `docs/gpu.md`.

use crate::support::{fixed, fixture, fixtures, generate, load, ragged, spec};
use candle_core::Device;
use skipbench_engine::Options;
use skipbench_model::ops::{Work, counted};
use skipbench_model::{Backend, CausalLm, Decoder, Span, WeightType};
use skipbench_strategy::StrategySpec;
use std::collections::BTreeSet;
use std::path::Path;

/// Strategies of the table. Of those that decide by what they see, the tokens of a batch leave at different layers.
const STRATEGIES: [&str; 30] = [
    "full",
    "unified@2",
    "top@2",
    "bottom@2",
    "middle@2",
    "random@2",
    "every-other",
    "drop-list {drop: [2, 3]}",
    "block-influence@2",
    "angular@2",
    "sleb@2",
    "perplexity@2",
    "sublayer-drop@1.5",
    "sublayer-drop:mlp@1.5",
    "skip-decode@2",
    "position-decay@2",
    "early-exit {threshold: 0.4}",
    "early-exit {threshold: 0.4, kv-fill: copy}",
    "early-exit {threshold: 0.4, kv-fill: mask}",
    "early-exit {threshold: 0.4, kv-fill: deferred}",
    "early-exit {threshold: 0.4, batch-mode: sync}",
    "early-exit {threshold: 0.4, check: candidates}",
    "early-exit:cosine {threshold: 0.9}",
    "early-exit:patience {patience: 2}",
    "shallow-deep {threshold: 0.4}",
    "prompt-depth {threshold: 0.4}",
    "adaskip@1.5",
    "self-speculative:top@2",
    "self-speculative {draft: {early-exit: {threshold: 0.4}}}",
    "oracle-exit",
];

const TOKENS: usize = 16;

fn strategy(text: &str, n_layers: usize) -> StrategySpec {
    let spec = spec(text);
    match spec.scoring(n_layers) {
        Some(_) => spec.with_order(vec![2, 3, 1, 4]),
        None => spec,
    }
}

/// Four prompts of different lengths, or the first of them.
fn prompts(rows: usize) -> Vec<Vec<u32>> {
    ragged().into_iter().take(rows).collect()
}

/// Work and layers of [`TOKENS`] tokens of each row behind the first two.
fn decoding(model: &dyn CausalLm, spec: &StrategySpec, rows: usize, more: &Options) -> (Work, f64) {
    let (prompts, first) = (prompts(rows), 2);
    let run = |tokens| {
        let options = Options {
            max_new_tokens: tokens,
            planned_tokens: Some(first + TOKENS),
            ..more.clone()
        };
        counted(|| generate(model, &prompts, spec, &options))
    };
    let ((_, before), (generation, all)) = (run(first), run(first + TOKENS));
    let layers = generation.rows.iter().map(|row| &row.layers[first..]);
    let sum: f64 = layers.flatten().sum();
    (all - before, sum / (rows * TOKENS) as f64)
}

/// The work of each layer in turn over `spans`, with the cache as it is.
fn layers(
    model: &dyn CausalLm,
    cache: &mut skipbench_model::KvCache,
    ids: &[u32],
    spans: &[Span],
) -> Vec<Work> {
    let mut hidden = model.embed(ids, spans).unwrap();
    let layers = 0..model.sizes().n_layers;
    let works = layers.map(|layer| {
        let (output, work) = counted(|| model.layer(layer, &hidden, cache, spans));
        hidden = output.unwrap();
        work
    });
    works.collect()
}

/// A prefill of `rows` rows and a decode step behind it: the work of each layer, when it runs first and when it runs again.
fn passes(model: &dyn CausalLm, rows: usize) -> [[Vec<Work>; 2]; 2] {
    let prompts = prompts(rows);
    let n_layers = model.sizes().n_layers;
    let mut cache = model.new_cache(rows, vec![40; n_layers]).unwrap();
    let prefill = Span::prompts(prompts.iter().map(Vec::len));
    let ends = prompts.iter().map(Vec::len).enumerate();
    let step: Vec<Span> = ends.map(|(row, end)| Span::token(row, end)).collect();
    [(prompts.concat(), prefill), (vec![5; rows], step)]
        .map(|(ids, spans)| [0; 2].map(|_| layers(model, &mut cache, &ids, &spans)))
}

fn in_bits(name: &str, weights: WeightType) -> Decoder {
    let path = fixture(name);
    Decoder::load(&path, &Device::Cpu, Some(weights), Backend::Composed).unwrap()
}

/// Tables go up with the first layer that needs them, and nothing ever comes down.
#[test]
fn a_layer_uploads_no_table_twice_and_waits_for_nothing() {
    for name in fixtures() {
        let model = load(&name, Backend::Composed);
        for rows in [1, 4] {
            for [first, again] in passes(&model, rows) {
                let first = first
                    .into_iter()
                    .fold(Work::default(), |sum, work| sum + work);
                // Rotations of two kinds at most, masks of windows of two kinds, where rows are written, ALiBi.
                assert!(first.uploads <= 5, "{name}: {first:?}");
                assert_eq!(first.syncs, 0, "{name}");
                for work in again {
                    assert_eq!((work.uploads, work.syncs), (0, 0), "{name}");
                    assert!(work.launches > 0, "{name}");
                }
            }
        }
    }
}

/// What a layer asks for, the engine asks for as often as the layer runs, and a step waits once.
#[test]
fn a_static_step_is_its_layers_and_one_wait() {
    for name in ["llama1", "bloom"] {
        let model = load(name, Backend::Composed);
        let n_layers = model.sizes().n_layers;
        for rows in [1, 4] {
            let [_, [_, again]] = passes(&model, rows);
            let (full, _) = decoding(&model, &strategy("full", n_layers), rows, &fixed(0));
            for text in ["unified@2", "top@3", "middle@1.5", "block-influence@2"] {
                let spec = strategy(text, n_layers);
                let (work, ran) = decoding(&model, &spec, rows, &fixed(0));
                let left_out = (n_layers - ran as usize) as u64 * TOKENS as u64;
                let saved = full - work;
                assert_eq!(
                    saved.launches,
                    left_out * again[0].launches,
                    "{name} {text}"
                );
                assert_eq!(saved.layouts, left_out * again[0].layouts, "{name} {text}");
                assert_eq!(work.uploads, full.uploads, "{name} {text}");
                assert_eq!(work.syncs, TOKENS as u64, "{name} {text}");
            }
        }
    }
}

/// However tokens are chosen, their logits come down once a step and nothing goes up for it.
#[test]
fn a_choice_of_tokens_is_one_wait() {
    let model = load("llama1", Backend::Composed);
    let greedy = fixed(0);
    let sampling = skipbench_engine::Sampling {
        temperature: 1.0,
        top_p: Some(0.9),
        top_k: Some(20),
        seed: 1,
        first_row: 0,
    };
    let drawn = Options {
        sampling: Some(sampling),
        ..greedy.clone()
    };
    let once = Options {
        no_repeat_ngram: 3,
        ..greedy.clone()
    };
    let (likeliest, _) = decoding(&model, &StrategySpec::full(), 4, &greedy);
    for options in [&drawn, &once] {
        let (work, _) = decoding(&model, &StrategySpec::full(), 4, options);
        assert_eq!(work.syncs, TOKENS as u64);
        assert_eq!(work.uploads, likeliest.uploads);
    }
    let scored = Options {
        log_probabilities: Some(2),
        ..greedy
    };
    let (work, _) = decoding(&model, &StrategySpec::full(), 4, &scored);
    assert_eq!(work.syncs, 2 * TOKENS as u64);
}

const HEADING: &str = "## Work per token\n";

const ABOUT: &str = "
What the host asks of a GPU, counted on a CPU through the same code (`cargo test --release --workspace work::`) by what candle
0.11 does on CUDA. `scripts/cuda/count.sh` holds the count against the calls that candle makes, on a driver that computes nothing;
it has not been seen on a GPU yet.

- A launch is a kernel, a product or a copy on the device.
- A layout is an upload of shapes and strides that candle makes for a kernel: for each sum and selection of rows, and for each
  kernel that reads a view.
- An upload holds values: token ids, and the tables that a step makes once, whatever the number of layers (angles of RoPE or the
  bias of ALiBi, masks, places of rows in the KV cache).
- A wait is for values that come back: the tokens, and the signals of exit checks.

";

/// `SKIPBENCH_UPDATE_DOCS=1` writes the tables again.
#[test]
fn the_work_of_every_strategy_is_documented() {
    let named: BTreeSet<&str> = STRATEGIES.iter().map(|text| spec(text).name()).collect();
    // It runs others, depth by depth.
    let not_run = |name: &&str| *name == "oracle-depth";
    let all = StrategySpec::all().into_iter().map(|spec| spec.name());
    let all: BTreeSet<&str> = all.filter(|name| !not_run(name)).collect();
    assert_eq!(named, all);

    let page = format!("{HEADING}{ABOUT}{}\n{}", of_layers(), of_strategies());
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/gpu.md");
    let written = std::fs::read_to_string(&path).unwrap();
    let (before, found) = written.split_once(HEADING).unwrap_or((&written, ""));
    if std::env::var_os("SKIPBENCH_UPDATE_DOCS").is_some() {
        std::fs::write(&path, format!("{before}{page}")).unwrap();
        return;
    }
    assert!(
        format!("{HEADING}{found}") == page,
        "docs/gpu.md is not up to date: run this test with SKIPBENCH_UPDATE_DOCS=1"
    );
}

/// A layer of each family in a decode step, its tables being there.
fn of_layers() -> String {
    let mut table = "\
| a layer of | launches, f32 | layouts | launches, f16 | layouts | launches, f16, 4 rows | layouts |
| --- | --- | --- | --- | --- | --- | --- |
"
    .to_owned();
    for (family, name) in [
        ("LLaMA", "llama1"),
        ("Mistral", "mistral-window"),
        ("Qwen2", "qwen2"),
        ("Qwen3", "qwen3-bare"),
        ("OLMo2", "olmo2"),
        ("Phi-3", "phi3-window"),
        ("Gemma 2", "gemma2"),
        ("Gemma 3", "gemma3"),
        ("GPT-NeoX", "gpt-neox"),
        ("OPT", "opt"),
        ("BLOOM", "bloom"),
    ] {
        let layer = |weights, rows| {
            let [_, [_, again]] = passes(&in_bits(name, weights), rows);
            format!("{} | {}", again[0].launches, again[0].layouts)
        };
        table.push_str(&format!(
            "| {family} | {} | {} | {} |\n",
            layer(WeightType::F32, 1),
            layer(WeightType::F16, 1),
            layer(WeightType::F16, 4),
        ));
    }
    table
}

/// Each strategy on a LLaMA of 6 layers, for a step's tokens: of one row, and of four.
fn of_strategies() -> String {
    let model = load("llama1", Backend::Composed);
    let mut table = "\
For a token of each row, on a LLaMA of 6 layers in f32 with random weights. `oracle-depth` runs `full` and `unified`.

| strategy | layers | launches | layouts | uploads | waits | layers, 4 rows | launches | layouts | uploads | waits |
| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |
"
    .to_owned();
    for text in STRATEGIES {
        table.push_str(&format!("| `{text}` |"));
        for rows in [1, 4] {
            let spec = strategy(text, model.sizes().n_layers);
            let (work, layers) = decoding(&model, &spec, rows, &fixed(0));
            let each = [work.launches, work.layouts, work.uploads, work.syncs];
            let each = each.map(|sum| sum as f64 / TOKENS as f64);
            for value in [layers].into_iter().chain(each) {
                // A digit, and none where there is nothing behind the point.
                let value = (value * 10.0).round() / 10.0;
                table.push_str(&format!(" {value} |"));
            }
        }
        table.push('\n');
    }
    table
}
