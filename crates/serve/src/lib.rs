//! A checkpoint under every strategy behind OpenAI's HTTP API.
//!
//! # Overview
//!
//! [`serve`] answers `/v1/completions`, `/v1/chat/completions`, `/v1/models` and `/health`. A request's `model` is `NAME`
//! or `NAME:STRATEGY`, so one server offers a checkpoint under every strategy.
//!
//! The thread that calls [`serve`] owns the model. It takes rows (a request has one for each prompt) off a queue: the one that
//! has waited longest, and those behind it that can run with it, which are those of the same strategy. Rows end one by one,
//! and the next batch begins when all have. A second thread speaks HTTP: it reads and checks requests before they are queued,
//! and a request whose client leaves takes its rows along.

mod answer;
mod error;
mod fields;
mod http;
mod pieces;
mod prompt;
mod queue;
mod request;
mod scoring;
mod served;
mod stream;
mod worker;

pub use served::Served;

use http::App;
use queue::Queue;
use std::net::TcpListener;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;

/// What the server is held to.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Rows run together.
    pub batch_size: usize,
    /// How long a row waits for others to join it.
    pub window: Duration,
    /// Bytes of a request's body.
    pub body_bytes: usize,
    /// Tokens of a prompt.
    pub prompt_tokens: usize,
    /// Tokens generated for a prompt.
    pub max_tokens: usize,
    /// Rows that may wait.
    pub queue: usize,
    /// Time of a request, from its first byte to the last of its answer.
    pub time: Duration,
}

/// Ends a server.
#[derive(Debug, Clone)]
pub struct Stop(Arc<watch::Sender<bool>>);

impl Default for Stop {
    fn default() -> Self {
        Self(Arc::new(watch::Sender::new(false)))
    }
}

impl Stop {
    /// No connection is taken any more. What was asked before is answered, then [`serve`] returns.
    pub fn stop(&self) {
        self.0.send_replace(true);
    }

    async fn stopped(&self) {
        // The sender is held here, so it cannot be gone.
        let _ = self.0.subscribe().wait_for(|stopped| *stopped).await;
    }
}

/// Serves until it is stopped. Where `api_key` is set, every request but those for `/health` has to bring it.
///
/// # Errors
/// A listener that cannot be used.
pub fn serve(
    served: Served,
    listener: TcpListener,
    api_key: Option<String>,
    limits: Limits,
    stop: &Stop,
) -> std::io::Result<()> {
    listener.set_nonblocking(true)?;
    let served = Arc::new(served);
    let queue = Arc::new(Queue::new(limits.queue));
    let app = App {
        served: served.clone(),
        queue: queue.clone(),
        api_key,
        limits,
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .max_blocking_threads(READERS)
        .enable_io()
        .enable_time()
        .build()?;
    std::thread::scope(|scope| {
        let speaker = scope.spawn(|| {
            let spoken = runtime.block_on(http::speak(app, listener, stop));
            // Whatever became of it, nobody asks any more.
            queue.close();
            spoken
        });
        worker::work(&served, &queue, limits.batch_size, limits.window);
        speaker.join().unwrap_or_else(|_| {
            Err(std::io::Error::other(
                "the thread that speaks HTTP panicked",
            ))
        })
    })
}

/// Threads that read requests: tokenizing a long prompt takes a while.
const READERS: usize = 4;
