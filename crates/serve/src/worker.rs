//! The thread that owns the model: it runs one batch after the other.

use crate::error::{ApiError, Result};
use crate::queue::{Job, Queue, What};
use crate::served::Served;
use axum::http::StatusCode;
use skipbench_engine::{End, Options, RowOutput, ScoreOptions, ScoredText};
use std::ops::ControlFlow;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

/// How far a row has been told.
#[derive(Clone, Default)]
struct Told {
    scores: bool,
    tokens: usize,
    all: bool,
}

/// Runs what waits, until the queue is closed and empty.
pub(crate) fn work(served: &Served, queue: &Queue, batch_size: usize, window: Duration) {
    while let Some(jobs) = queue.next(batch_size, window) {
        let begun = Instant::now();
        run(served, &jobs);
        if let Some(first) = jobs.first() {
            tracing::info!(
                "{} prompts under {} in {:.3} s",
                jobs.len(),
                first.kind.strategy,
                begun.elapsed().as_secs_f64()
            );
        }
    }
}

/// Runs a batch. What fails together is tried one by one, so that no row pays for another's.
fn run(served: &Served, jobs: &[Job]) {
    let mut told = vec![Told::default(); jobs.len()];
    let Err(error) = attempt_safely(served, jobs, &mut told) else {
        return;
    };
    if let [job] = jobs {
        return job.tell(What::Failed(error));
    }
    tracing::warn!("a batch failed and is run one by one: {}", error.message);
    for (job, told) in jobs.iter().zip(&mut told) {
        if !told.all
            && !job.is_cancelled()
            && let Err(error) = attempt_safely(
                served,
                std::slice::from_ref(job),
                std::slice::from_mut(told),
            )
        {
            job.tell(What::Failed(error));
        }
    }
}

/// What panics is a mistake of ours, and no reason to leave everyone else without an answer: a batch leaves nothing behind.
fn attempt_safely(served: &Served, jobs: &[Job], told: &mut [Told]) -> Result<()> {
    catch_unwind(AssertUnwindSafe(|| attempt(served, jobs, told))).unwrap_or_else(|_| {
        let message = "the request ran into a mistake in skipbench; its standard error says where";
        Err(ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, message))
    })
}

fn attempt(served: &Served, jobs: &[Job], told: &mut [Told]) -> Result<()> {
    let Some(first) = jobs.first() else {
        return Ok(());
    };
    let mut strategy = first
        .spec
        .build(served.n_layers())
        .map_err(|error| ApiError::new(StatusCode::BAD_REQUEST, error.to_string()))?;
    if let Some(scores) = first.kind.scores {
        let how = ScoreOptions {
            mode: scores.mode,
            likeliest: scores.likeliest,
            ..ScoreOptions::default()
        };
        let texts: Vec<ScoredText> = jobs.iter().filter_map(|job| job.scored.clone()).collect();
        let mut found = match texts.is_empty() {
            true => Vec::new(),
            false => served.engine().score(&texts, strategy.as_mut(), how)?,
        }
        .into_iter();
        for (job, told) in jobs.iter().zip(&mut *told) {
            // A prompt of one token has nothing to score.
            let likelihood = match job.scored {
                Some(_) => found.next().unwrap_or_default(),
                None => Default::default(),
            };
            if !std::mem::replace(&mut told.scores, true) {
                job.tell(What::Scored(likelihood));
            }
        }
    }
    if !first.kind.generates {
        for job in jobs {
            job.tell(What::Done(RowOutput::default()));
        }
        return Ok(());
    }
    let prompts: Vec<Vec<u32>> = jobs.iter().map(|job| job.prompt.clone()).collect();
    let options: Vec<Options> = jobs.iter().map(|job| job.options.clone()).collect();
    let mut listener = |row: usize, output: &RowOutput| {
        let job = &jobs[row];
        if job.is_cancelled() {
            return ControlFlow::Break(());
        }
        let told = &mut told[row];
        // A batch that is run again tells nothing twice.
        if job.streams && output.tokens.len() > told.tokens {
            told.tokens = output.tokens.len();
            if let Some(&token) = output.tokens.last() {
                job.tell(What::Token(token, output.scores.last().cloned()));
            }
        }
        // A row does not wait for the others of its batch.
        let is_full = output.tokens.len() >= job.options.max_new_tokens;
        if (is_full || output.end != End::Length) && !std::mem::replace(&mut told.all, true) {
            job.tell(What::Done(output.clone()));
        }
        ControlFlow::Continue(())
    };
    served
        .engine()
        .generate_each(&prompts, &options, strategy.as_mut(), &mut listener)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::queue::{Kind, Reply};
    use candle_core::{Device, Tensor};
    use skipbench_model::{
        ByteTokenizer, CausalLm, KvCache, MockModel, ModelSizes, Part, Result as ModelResult, Span,
    };
    use skipbench_strategy::StrategySpec;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

    /// A mock that counts its steps, and panics over a token.
    struct Counting(MockModel, Arc<AtomicUsize>);

    const PANICS: u32 = 13;

    impl CausalLm for Counting {
        fn sizes(&self) -> &ModelSizes {
            self.0.sizes()
        }

        fn device(&self) -> &Device {
            self.0.device()
        }

        fn new_cache(&self, rows: usize, capacity: Vec<usize>) -> ModelResult<KvCache> {
            self.0.new_cache(rows, capacity)
        }

        fn embed(&self, ids: &[u32], spans: &[Span]) -> ModelResult<Tensor> {
            assert!(!ids.contains(&PANICS), "a token that panics");
            self.0.embed(ids, spans)
        }

        fn layer_part(
            &self,
            index: usize,
            part: Part,
            hidden: &Tensor,
            cache: &mut KvCache,
            spans: &[Span],
        ) -> ModelResult<Tensor> {
            self.0.layer_part(index, part, hidden, cache, spans)
        }

        fn fill_kv(
            &self,
            index: usize,
            hidden: &Tensor,
            cache: &mut KvCache,
            spans: &[Span],
        ) -> ModelResult<()> {
            self.0.fill_kv(index, hidden, cache, spans)
        }

        fn head(&self, hidden: &Tensor) -> ModelResult<Tensor> {
            self.1.fetch_add(1, Ordering::Relaxed);
            self.0.head(hidden)
        }
    }

    fn served() -> (Served, Arc<AtomicUsize>) {
        let steps = Arc::new(AtomicUsize::new(0));
        let mock = MockModel::new(4, 4096);
        let served = Served {
            name: "mock".to_owned(),
            model: Box::new(Counting(mock, steps.clone())),
            tokenizer: Arc::new(ByteTokenizer),
            chat: None,
            strategies: Vec::new(),
        };
        (served, steps)
    }

    fn job(prompt: u32, max_new_tokens: usize) -> (Job, UnboundedReceiver<Reply>) {
        let (replies, heard) = unbounded_channel();
        let job = Job {
            kind: Kind {
                strategy: "full".to_owned(),
                generates: true,
                scores: None,
                lengths: None,
            },
            spec: StrategySpec::full(),
            prompt: vec![prompt],
            options: Options {
                max_new_tokens,
                ..Options::default()
            },
            scored: None,
            streams: true,
            arrived: Instant::now(),
            row: 0,
            replies,
        };
        (job, heard)
    }

    /// The tokens that a row was told, and how it ended.
    fn heard(mut replies: UnboundedReceiver<Reply>) -> (Vec<u32>, Vec<What>) {
        let (mut tokens, mut ends) = (Vec::new(), Vec::new());
        while let Ok(reply) = replies.try_recv() {
            match reply.what {
                What::Token(token, _) => tokens.push(token),
                other => ends.push(other),
            }
        }
        (tokens, ends)
    }

    #[test]
    fn a_row_that_nobody_waits_for_costs_no_step() {
        let (served, steps) = served();
        let ((long, gone), (short, listening)) = (job(1, 2000), job(2, 5));
        drop(gone);
        run(&served, &[long, short]);
        assert_eq!(steps.load(Ordering::Relaxed), 5);
        let (tokens, ends) = heard(listening);
        assert_eq!(tokens, [6, 10, 14, 18, 22]);
        assert!(matches!(&ends[..], [What::Done(output)] if output.tokens == tokens));
    }

    #[test]
    fn a_row_hears_of_its_end_before_others_have_theirs() {
        let (served, _) = served();
        let ((short, mut first), (long, _second)) = (job(2, 2), job(1, 600));
        let ended = std::thread::scope(|scope| {
            let jobs = [short, long];
            let served = &served;
            scope.spawn(move || run(served, &jobs));
            loop {
                match first.blocking_recv().unwrap().what {
                    What::Token(..) => {}
                    What::Done(output) => break output.tokens,
                    _ => panic!("no answer"),
                }
            }
        });
        assert_eq!(ended, [6, 10]);
    }

    #[test]
    fn what_fails_fails_alone_and_nothing_is_told_twice() {
        let (served, _) = served();
        // The second row comes to the token that panics behind its second one, when the first has been told two.
        let ((good, first), (bad, second)) = (job(2, 6), job(PANICS - 8, 6));
        run(&served, &[good, bad]);
        let (tokens, ends) = heard(first);
        assert_eq!(tokens, [6, 10, 14, 18, 22, 26]);
        assert!(matches!(&ends[..], [What::Done(output)] if output.tokens == tokens));
        let (tokens, ends) = heard(second);
        assert_eq!(tokens, [PANICS - 4, PANICS]);
        let [What::Failed(error)] = &ends[..] else {
            panic!("{}", ends.len());
        };
        assert_eq!(error.status, StatusCode::INTERNAL_SERVER_ERROR);
    }
}
