//! What serving adds to a decode step: the server against the engine alone, in turn, in one process.
//!
//! `cargo run --release -p skipbench-serve --example overhead -- MODEL [ROUNDS] [TOKENS] [stream]`
//!
//! Both run the same weights, each its own copy. A step's time is the difference between a long and a short answer over the
//! difference of their tokens, so neither the prompt, nor the connection, nor the window of the queue is in it. Of the engine
//! it is the time of the call, of the server that of its clients until all of them have their answers. Each round asks for
//! all four in an order drawn anew. The ratio is the geometric mean of the rounds' ratios, with Student's t at 95%. The engine
//! is timed twice, and the second time against the first says what the machine makes of no difference at all.
#![expect(
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "a bench has no API and no user input"
)]

use candle_core::Device;
use rand::seq::SliceRandom;
use rand::{SeedableRng, rngs::StdRng};
use skipbench_engine::{Engine, Options, student};
use skipbench_model::{Backend, Decoder, TextTokenizer, Tokenize};
use skipbench_serve::{Limits, Served, Stop};
use skipbench_strategy::StrategySpec;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Tokens of a short answer.
const SHORT: usize = 8;

/// What a round times.
#[derive(Clone, Copy)]
enum Who {
    Engine,
    EngineAgain,
    Server,
}

struct Bench {
    model: Decoder,
    tokenizer: Arc<TextTokenizer>,
    address: SocketAddr,
    stream: bool,
}

impl Bench {
    fn prompts(&self, rows: usize) -> Vec<Vec<u32>> {
        const WORDS: [&str; 8] = [
            "house", "dog", "report", "river", "city", "tree", "man", "year",
        ];
        let text = |row: usize| format!("The {} of the old", WORDS[row % WORDS.len()]);
        (0..rows)
            .map(|row| self.tokenizer.encode(&text(row)).unwrap())
            .collect()
    }

    fn answer_s(&self, who: Who, rows: usize, tokens: usize) -> f64 {
        let prompts = self.prompts(rows);
        let begun = Instant::now();
        match who {
            Who::Engine | Who::EngineAgain => {
                let mut full = StrategySpec::full()
                    .build(self.model.config().n_layers)
                    .unwrap();
                let options = Options {
                    max_new_tokens: tokens,
                    ..Options::default()
                };
                Engine::new(&self.model)
                    .generate(&prompts, full.as_mut(), &options)
                    .unwrap();
            }
            Who::Server => std::thread::scope(|scope| {
                for prompt in &prompts {
                    scope.spawn(move || self.ask(prompt, tokens));
                }
            }),
        }
        begun.elapsed().as_secs_f64()
    }

    fn ask(&self, prompt: &[u32], tokens: usize) {
        let body = serde_json::json!({
            "model": "m", "prompt": prompt, "max_tokens": tokens, "temperature": 0,
            "ignore_eos": true, "stream": self.stream,
        })
        .to_string();
        let mut connection = TcpStream::connect(self.address).unwrap();
        write!(
            connection,
            "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        )
        .unwrap();
        let mut answer = String::new();
        connection.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    }

    /// Milliseconds of a step of each, a line per round.
    fn rounds(&self, rows: usize, rounds: usize, tokens: usize) -> Vec<[f64; 3]> {
        let mut rng = StdRng::seed_from_u64(0);
        let mut asked: Vec<(Who, usize)> = [Who::Engine, Who::EngineAgain, Who::Server]
            .into_iter()
            .flat_map(|who| [(who, SHORT), (who, tokens)])
            .collect();
        let mut round = || {
            asked.shuffle(&mut rng);
            let mut step_ms = [0.0; 3];
            for &(who, n) in &asked {
                let sign = if n == SHORT { -1e3 } else { 1e3 };
                let per_step = sign / (tokens - SHORT) as f64;
                step_ms[who as usize] += self.answer_s(who, rows, n) * per_step;
            }
            step_ms
        };
        round();
        (0..rounds).map(|_| round()).collect()
    }
}

/// The geometric mean of `ratios` and its 95% interval.
fn mean_ratio(ratios: impl Iterator<Item = f64>) -> [f64; 3] {
    let logs: Vec<f64> = ratios.map(f64::ln).collect();
    let n = logs.len() as f64;
    let mean = logs.iter().sum::<f64>() / n;
    let variance = logs.iter().map(|log| (log - mean).powi(2)).sum::<f64>() / (n - 1.0);
    let half = student::quantile(0.975, n - 1.0) * (variance / n).sqrt();
    [mean, mean - half, mean + half].map(f64::exp)
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let path = Path::new(
        args.first()
            .expect("overhead MODEL [ROUNDS] [TOKENS] [stream]"),
    );
    let number = |at: usize, default| args.get(at).map_or(default, |text| text.parse().unwrap());
    let (rounds, tokens) = (number(1, 40), number(2, 264));
    let load = || Decoder::load(path, &Device::Cpu, None, Backend::Auto).unwrap();
    let model = load();
    let tokenizer = Arc::new(TextTokenizer::load(path, model.config().vocab_size).unwrap());
    let served = Served {
        name: "m".to_owned(),
        model: Box::new(load()),
        tokenizer: tokenizer.clone(),
        chat: None,
        strategies: Vec::new(),
    };
    let limits = Limits {
        batch_size: 8,
        // Long enough for all clients of a batch to arrive in it.
        window: Duration::from_millis(20),
        body_bytes: 1 << 20,
        prompt_tokens: 512,
        max_tokens: 4096,
        queue: 64,
        time: Duration::from_secs(600),
    };
    let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let bench = Bench {
        model,
        tokenizer,
        address: listener.local_addr().unwrap(),
        stream: args.iter().any(|arg| arg == "stream"),
    };
    let stop = Stop::default();
    std::thread::scope(|scope| {
        scope.spawn(|| skipbench_serve::serve(served, listener, None, limits, &stop).unwrap());
        for rows in [1, 8] {
            let times = bench.rounds(rows, rounds, tokens);
            let of = |who: Who| median(times.iter().map(|times| times[who as usize]).collect());
            let (engine, server) = (of(Who::Engine), of(Who::Server));
            println!("batch {rows}: engine {engine:.3} ms, server {server:.3} ms a step");
            for (name, who) in [("server", Who::Server), ("engine again", Who::EngineAgain)] {
                let engine = Who::Engine as usize;
                let ratios = times
                    .iter()
                    .map(|times| times[who as usize] / times[engine]);
                let [mean, low, high] = mean_ratio(ratios);
                println!(
                    "    {name} / engine {mean:.3} [{low:.3}, {high:.3}] over {rounds} rounds"
                );
            }
        }
        stop.stop();
    });
}
