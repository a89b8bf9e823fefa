//! Times one model for `scripts/bench/peers.py` and `steps.py`: a request a line on stdin, what it took a line on stdout.
//!
//! `pace copy` prints at how many bytes per second all threads together copy memory, read and written.
//! `pace skipbench|candle MODEL DTYPE`: MODEL is a LLaMA folder, or a `.gguf` file, whose own types stay what they are if DTYPE
//! is `stored`. `candle` is the stock model of candle-transformers.
#![expect(
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "a bench has no API and no user input"
)]

use candle_core::quantized::gguf_file;
use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;
use candle_transformers::models::llama::{Cache, Config, Llama, LlamaConfig};
use candle_transformers::models::quantized_llama::ModelWeights;
use serde::{Deserialize, Serialize};
use skipbench_engine::{Engine, Options};
use skipbench_machine::Checkup;
use skipbench_model::{Backend, Decoder, WeightType};
use skipbench_strategy::StrategySpec;
use std::fs::File;
use std::io::BufRead;
use std::path::Path;
use std::time::Instant;

/// Rows of the same length, and how many tokens each of them gets, with which of our strategies.
#[derive(Deserialize)]
struct Request {
    prompts: Vec<Vec<u32>>,
    new_tokens: usize,
    strategy: String,
}

/// Seconds from the start to the first token of all rows, seconds of each step behind it, and the tokens of the first row.
#[derive(Serialize)]
struct Answer {
    prefill_s: f64,
    step_s: Vec<f64>,
    tokens: Vec<u32>,
}

enum Model {
    Ours(Box<Decoder>),
    Stock(Box<Llama>, Config, DType),
    StockQuantized(Box<ModelWeights>),
}

impl Model {
    fn load(engine: &str, path: &Path, dtype: &str) -> Self {
        let named = match dtype {
            "bf16" => DType::BF16,
            _ => DType::F32,
        };
        match (engine, path.is_file()) {
            ("skipbench", _) => {
                let weights = match dtype {
                    "stored" => WeightType::Stored,
                    "bf16" => WeightType::Bf16,
                    _ => WeightType::F32,
                };
                let model = Decoder::load(path, &Device::Cpu, Some(weights), Backend::Auto);
                Self::Ours(Box::new(model.unwrap()))
            }
            (_, true) => {
                let mut file = File::open(path).unwrap();
                let content = gguf_file::Content::read(&mut file).unwrap();
                let model = ModelWeights::from_gguf(content, &mut file, &Device::Cpu).unwrap();
                Self::StockQuantized(Box::new(model))
            }
            (_, false) => {
                let config = std::fs::read_to_string(path.join("config.json")).unwrap();
                let config: LlamaConfig = serde_json::from_str(&config).unwrap();
                let config = config.into_config(false);
                let file = path.join("model.safetensors");
                // SAFETY: nobody writes to the file while it is mapped.
                let weights =
                    unsafe { VarBuilder::from_mmaped_safetensors(&[file], named, &Device::Cpu) };
                let model = Llama::load(weights.unwrap(), &config).unwrap();
                Self::Stock(Box::new(model), config, named)
            }
        }
    }

    fn run(&mut self, request: &Request) -> Answer {
        match self {
            Self::Ours(model) => {
                let strategy: StrategySpec = request.strategy.parse().unwrap();
                let mut strategy = strategy.build(model.config().n_layers).unwrap();
                let options = Options {
                    max_new_tokens: request.new_tokens,
                    ..Options::default()
                };
                let generation = Engine::new(model.as_ref())
                    .generate(&request.prompts, strategy.as_mut(), &options)
                    .unwrap();
                Answer {
                    prefill_s: generation.prefill_s,
                    step_s: generation.step_s.clone(),
                    tokens: generation.rows[0].tokens.clone(),
                }
            }
            Self::Stock(model, config, dtype) => {
                let mut cache = Cache::new(true, *dtype, config, &Device::Cpu).unwrap();
                timed(request, |ids, at| model.forward(ids, at, &mut cache))
            }
            Self::StockQuantized(model) => {
                model.clear_kv_cache();
                timed(request, |ids, at| model.forward(ids, at))
            }
        }
    }
}

/// Greedy decoding with a model that takes ids `[rows, tokens]` and a position.
fn timed(
    request: &Request,
    mut forward: impl FnMut(&Tensor, usize) -> candle_core::Result<Tensor>,
) -> Answer {
    let rows = request.prompts.len();
    let len = request.prompts[0].len();
    let mut answer = Answer {
        prefill_s: 0.0,
        step_s: Vec::new(),
        tokens: Vec::new(),
    };
    let mut ids = request.prompts.concat();
    for step in 0..request.new_tokens {
        let start = Instant::now();
        let (width, at) = match step {
            0 => (len, 0),
            step => (1, len + step - 1),
        };
        let input = Tensor::from_vec(ids, (rows, width), &Device::Cpu).unwrap();
        let logits = forward(&input, at).unwrap();
        let logits = logits.to_dtype(DType::F32).unwrap();
        ids = logits.argmax(1).unwrap().to_vec1().unwrap();
        answer.tokens.push(ids[0]);
        let seconds = start.elapsed().as_secs_f64();
        match step {
            0 => answer.prefill_s = seconds,
            _ => answer.step_s.push(seconds),
        }
    }
    answer
}

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    if let [_, copy] = &arguments[..]
        && copy == "copy"
    {
        let checkup = Checkup::here(rayon::current_num_threads(), false);
        println!("{}", checkup.copied_bytes_per_s);
        return;
    }
    let [_, engine, path, dtype] = &arguments[..] else {
        panic!("pace copy | pace skipbench|candle MODEL DTYPE");
    };
    let start = Instant::now();
    let mut model = Model::load(engine, Path::new(path), dtype);
    println!("{}", start.elapsed().as_secs_f64());
    for line in std::io::stdin().lock().lines() {
        let request: Request = serde_json::from_str(&line.unwrap()).unwrap();
        println!("{}", serde_json::to_string(&model.run(&request)).unwrap());
    }
}
