//! Rows that wait for the model, and which of them run together.

use crate::error::{ApiError, Result};
use axum::http::StatusCode;
use skipbench_engine::{Likelihood, Options, RowOutput, ScoreMode, ScoredText, TokenScore};
use skipbench_strategy::StrategySpec;
use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::mpsc::UnboundedSender;

/// A prompt of a request.
pub(crate) struct Job {
    pub(crate) kind: Kind,
    pub(crate) spec: StrategySpec,
    pub(crate) prompt: Vec<u32>,
    /// How it goes on; not at all with a `max_new_tokens` of 0.
    pub(crate) options: Options,
    /// What of the prompt is scored first.
    pub(crate) scored: Option<ScoredText>,
    /// Tokens are told as they come.
    pub(crate) streams: bool,
    pub(crate) arrived: Instant,
    /// Its place in the request.
    pub(crate) row: usize,
    pub(crate) replies: UnboundedSender<Reply>,
}

/// What the rows of a batch have in common.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Kind {
    /// The strategy, with all its settings.
    pub(crate) strategy: String,
    pub(crate) generates: bool,
    pub(crate) scores: Option<Scores>,
    /// Tokens generated and tokens scored, where the strategy's layers depend on how many there are.
    pub(crate) lengths: Option<(usize, usize)>,
}

/// How prompts are scored.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Scores {
    pub(crate) mode: ScoreMode,
    /// So many likeliest tokens beside each.
    pub(crate) likeliest: usize,
}

/// What a request hears of a row.
pub(crate) struct Reply {
    pub(crate) row: usize,
    pub(crate) what: What,
}

pub(crate) enum What {
    /// The scores of the prompt, before anything else.
    Scored(Likelihood),
    /// The next token, where tokens are told as they come.
    Token(u32, Option<TokenScore>),
    /// The whole answer; nothing comes behind it.
    Done(RowOutput),
    /// Nothing comes behind it.
    Failed(ApiError),
}

impl Job {
    /// Tells the request; one that is gone hears nothing.
    pub(crate) fn tell(&self, what: What) {
        let row = self.row;
        let _ = self.replies.send(Reply { row, what });
    }

    /// Whether nobody waits for it any more.
    pub(crate) fn is_cancelled(&self) -> bool {
        self.replies.is_closed()
    }
}

/// The rows that wait, in the order in which they came.
pub(crate) struct Queue {
    state: Mutex<State>,
    changed: Condvar,
    /// The most rows that may wait.
    room: usize,
}

#[derive(Default)]
struct State {
    waiting: VecDeque<Job>,
    /// Rows of the batch that runs.
    running: usize,
    /// Nobody is waited for any more.
    hurries: bool,
    closed: bool,
}

impl Queue {
    pub(crate) fn new(room: usize) -> Self {
        Self {
            state: Mutex::default(),
            changed: Condvar::new(),
            room,
        }
    }

    /// Takes all rows of a request, or none.
    pub(crate) fn push(&self, jobs: Vec<Job>) -> Result<()> {
        let mut state = self.lock();
        if state.closed {
            return Err(ApiError::stopped());
        }
        if state.waiting.len() + jobs.len() > self.room {
            // Those whose clients have gone make room.
            state.waiting.retain(|job| !job.is_cancelled());
        }
        if state.waiting.len() + jobs.len() > self.room {
            let message = format!(
                "{} prompts wait already, and {} may; ask again later",
                state.waiting.len(),
                self.room
            );
            let error = ApiError::new(StatusCode::SERVICE_UNAVAILABLE, message);
            return Err(error.with_code("overloaded"));
        }
        state.waiting.extend(jobs);
        drop(state);
        self.changed.notify_one();
        Ok(())
    }

    /// The next batch, of at most `most` rows: the row that has waited longest, and the first of its kind behind it. Where
    /// fewer wait, more are waited for until the first one has waited for `window`. `None` once the queue is closed and empty.
    pub(crate) fn next(&self, most: usize, window: Duration) -> Option<Vec<Job>> {
        let mut state = self.lock();
        state.running = 0;
        loop {
            state.waiting.retain(|job| !job.is_cancelled());
            let Some(first) = state.waiting.front() else {
                if state.closed {
                    return None;
                }
                state = wait(self.changed.wait(state));
                continue;
            };
            let alike = |job: &&Job| job.kind == first.kind;
            let is_full = state.waiting.iter().filter(alike).take(most).count() == most;
            let left = window.saturating_sub(first.arrived.elapsed());
            if is_full || left.is_zero() || state.hurries {
                break;
            }
            state = wait(self.changed.wait_timeout(state, left)).0;
        }
        let mut batch: Vec<Job> = Vec::new();
        let mut others = VecDeque::with_capacity(state.waiting.len());
        for job in std::mem::take(&mut state.waiting) {
            let joins = batch.first().is_none_or(|first| first.kind == job.kind);
            match joins && batch.len() < most {
                true => batch.push(job),
                false => others.push_back(job),
            }
        }
        state.waiting = others;
        state.running = batch.len();
        Some(batch)
    }

    /// Waits for nobody to join any more.
    pub(crate) fn hurry(&self) {
        self.lock().hurries = true;
        self.changed.notify_all();
    }

    /// Takes nothing more; what waits is still run.
    pub(crate) fn close(&self) {
        self.lock().closed = true;
        self.hurry();
    }

    /// Rows that wait, and rows of the batch that runs.
    pub(crate) fn counts(&self) -> (usize, usize) {
        let state = self.lock();
        let waiting = state.waiting.iter().filter(|job| !job.is_cancelled());
        (waiting.count(), state.running)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        wait(self.state.lock())
    }
}

/// What a lock gives, whoever panicked with it in hand: a queue is never left half changed.
fn wait<T>(locked: std::result::Result<T, PoisonError<T>>) -> T {
    locked.unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

    const NOW: Duration = Duration::ZERO;

    fn job(strategy: &str, row: usize) -> (Job, UnboundedReceiver<Reply>) {
        let (replies, heard) = unbounded_channel();
        let job = Job {
            kind: Kind {
                strategy: strategy.to_owned(),
                generates: true,
                scores: None,
                lengths: None,
            },
            spec: StrategySpec::full(),
            prompt: vec![1],
            options: Options::default(),
            scored: None,
            streams: false,
            arrived: Instant::now(),
            row,
            replies,
        };
        (job, heard)
    }

    fn rows(batch: Option<Vec<Job>>) -> Vec<usize> {
        batch.unwrap().iter().map(|job| job.row).collect()
    }

    #[test]
    fn the_longest_waiting_row_takes_its_like_along() {
        let queue = Queue::new(8);
        let (jobs, _heard): (Vec<_>, Vec<_>) = ["a", "b", "a", "b", "a", "a"]
            .iter()
            .enumerate()
            .map(|(row, strategy)| job(strategy, row))
            .unzip();
        queue.push(jobs).unwrap();
        assert_eq!(rows(queue.next(3, NOW)), [0, 2, 4]);
        assert_eq!(queue.counts(), (3, 3));
        assert_eq!(rows(queue.next(3, NOW)), [1, 3]);
        assert_eq!(rows(queue.next(3, NOW)), [5]);
        queue.close();
        assert!(queue.next(3, NOW).is_none());
        assert_eq!(queue.counts(), (0, 0));
        assert_eq!(queue.push(vec![]).unwrap_err().code, Some("stopped"));
    }

    #[test]
    fn a_full_queue_refuses_and_those_who_left_make_room() {
        let queue = Queue::new(2);
        let (first, heard) = job("a", 0);
        let (second, _heard) = job("a", 1);
        let (third, _heard_too) = job("a", 2);
        queue.push(vec![first, second]).unwrap();
        let (late, _) = job("a", 3);
        assert_eq!(queue.push(vec![late]).unwrap_err().code, Some("overloaded"));
        drop(heard);
        queue.push(vec![third]).unwrap();
        assert_eq!(rows(queue.next(8, NOW)), [1, 2]);
    }

    #[test]
    fn more_of_a_kind_are_waited_for() {
        let queue = Queue::new(8);
        let (first, _heard) = job("a", 0);
        let (second, _heard_too) = job("a", 1);
        queue.push(vec![first]).unwrap();
        std::thread::scope(|scope| {
            let batch = scope.spawn(|| queue.next(2, Duration::from_secs(60)));
            queue.push(vec![second]).unwrap();
            assert_eq!(rows(batch.join().unwrap()), [0, 1]);
        });
    }
}
