//! An answer that is told while it comes, as server-sent events.

use crate::answer::{Envelope, Names, RowAnswer, Texts, finish_reason, logprobs, usage};
use crate::error::{ApiError, Result};
use crate::queue::{Reply, What};
use crate::request::{Asked, Form};
use crate::served::Served;
use axum::body::Bytes;
use http_body::Frame;
use serde_json::{Value, json};
use skipbench_engine::RowOutput;
use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::time::Sleep;

/// The body of a streamed answer. Dropping it cancels what is not answered yet.
pub(crate) struct EventStream {
    replies: UnboundedReceiver<Reply>,
    events: Events,
    /// The end of its time, and how many seconds that was.
    deadline: (Pin<Box<Sleep>>, u64),
    ended: bool,
}

impl EventStream {
    pub(crate) fn new(
        served: Arc<Served>,
        asked: Asked,
        replies: UnboundedReceiver<Reply>,
        deadline: (Pin<Box<Sleep>>, u64),
    ) -> Self {
        Self {
            replies,
            events: Events::new(served, asked),
            deadline,
            ended: false,
        }
    }

    fn end(&mut self, error: Option<&ApiError>) {
        match error {
            Some(error) => self.events.write(&error.json()),
            None => self.events.out.push_str("data: [DONE]\n\n"),
        }
        self.ended = true;
        self.replies.close();
    }
}

impl http_body::Body for EventStream {
    type Data = Bytes;
    type Error = Infallible;

    /// Everything that has come since the last frame, as one.
    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<std::result::Result<Frame<Bytes>, Infallible>>> {
        while !self.ended {
            match self.replies.poll_recv(context) {
                Poll::Ready(Some(reply)) => match self.events.take(reply) {
                    Ok(true) => self.end(None),
                    Ok(false) => {}
                    Err(error) => self.end(Some(&error)),
                },
                Poll::Ready(None) => self.end(Some(&ApiError::stopped())),
                Poll::Pending => {
                    if self.deadline.0.as_mut().poll(context).is_ready() {
                        let late = ApiError::late(self.deadline.1);
                        self.end(Some(&late));
                    }
                    break;
                }
            }
        }
        let out = std::mem::take(&mut self.events.out);
        match (out.is_empty(), self.ended) {
            (false, _) => Poll::Ready(Some(Ok(Frame::data(Bytes::from(out))))),
            (true, true) => Poll::Ready(None),
            (true, false) => Poll::Pending,
        }
    }
}

/// What has been told of a request, and what is to be told next.
struct Events {
    served: Arc<Served>,
    asked: Asked,
    envelope: Envelope,
    rows: Vec<Telling>,
    answers: Vec<RowAnswer>,
    /// Rows that go on.
    open: usize,
    out: String,
}

/// What has been told of a row.
struct Telling {
    names: Names,
    /// The answer so far.
    answer: String,
    /// Bytes of it that were told.
    told: usize,
    begun: bool,
}

impl Events {
    fn new(served: Arc<Served>, asked: Asked) -> Self {
        let telling = |_| Telling {
            names: Names::new(&served.tokenizer),
            answer: String::new(),
            told: 0,
            begun: false,
        };
        Self {
            envelope: Envelope::new(&asked),
            rows: asked.rows.iter().map(telling).collect(),
            answers: asked.rows.iter().map(|_| RowAnswer::default()).collect(),
            open: asked.rows.len(),
            out: String::new(),
            served,
            asked,
        }
    }

    /// Takes what a row gave; says whether it was the last of all.
    fn take(&mut self, Reply { row, what }: Reply) -> Result<bool> {
        match what {
            What::Failed(error) => return Err(error),
            What::Scored(likelihood) => self.answers[row].scored = Some(likelihood),
            What::Token(id, score) => {
                self.begin(row)?;
                let telling = &mut self.rows[row];
                let (view, gained) = telling.names.next(id, score)?;
                telling.answer.push_str(&gained);
                let stop = self.asked.rows[row].options.stop.as_ref();
                let settled = stop.map_or(&*telling.answer, |stop| stop.settled(&telling.answer));
                // What was settled once stays so.
                let text = settled.get(telling.told..).unwrap_or_default().to_owned();
                telling.told += text.len();
                let shown = self
                    .asked
                    .logprobs
                    .then(|| logprobs(self.asked.form, &[view]));
                if !text.is_empty() || shown.is_some() {
                    self.part(row, &text, shown, None);
                }
            }
            What::Done(output) => {
                self.begin(row)?;
                self.finish(row, &output)?;
                self.answers[row].output = output;
                self.open -= 1;
            }
        }
        if self.open == 0
            && let Some(stream) = self.asked.stream
            && stream.include_usage
        {
            let usage = usage(&self.asked, &self.answers);
            let last = self.envelope.with(true, Vec::new(), usage);
            self.write(&last);
        }
        Ok(self.open == 0)
    }

    /// What stands in front of a row's first token.
    fn begin(&mut self, row: usize) -> Result<()> {
        if std::mem::replace(&mut self.rows[row].begun, true) {
            return Ok(());
        }
        if self.asked.form == Form::Chat {
            let delta = json!({"role": "assistant", "content": ""});
            self.choice(
                json!({"index": row, "delta": delta, "logprobs": null, "finish_reason": null}),
            );
        }
        if self.asked.echo {
            let prompt = &self.asked.rows[row].prompt;
            let views = self.rows[row]
                .names
                .prompt(prompt, self.answers[row].scored.as_ref())?;
            let text = self.served.tokenizer.decode(prompt)?;
            let shown = self
                .asked
                .logprobs
                .then(|| logprobs(self.asked.form, &views));
            self.part(row, &text, shown, None);
        }
        Ok(())
    }

    /// The rest of a row's text, and why it ended.
    fn finish(&mut self, row: usize, output: &RowOutput) -> Result<()> {
        let asked = &self.asked.rows[row];
        let texts = Texts::of(&self.served, asked, output, self.asked.echo)?;
        let telling = &self.rows[row];
        let told = telling.answer.get(..telling.told).unwrap_or_default();
        let rest = texts.answer.strip_prefix(told).unwrap_or_else(|| {
            tracing::warn!(
                "an answer reads {:?} as a whole and was told as {told:?}",
                texts.answer
            );
            ""
        });
        self.part(row, rest, None, Some(finish_reason(output.end)));
        Ok(())
    }

    /// A piece of a row's text.
    fn part(&mut self, row: usize, text: &str, logprobs: Option<Value>, end: Option<&str>) {
        let mut choice = json!({"index": row, "logprobs": logprobs, "finish_reason": end});
        match self.asked.form {
            Form::Completion => choice["text"] = text.into(),
            Form::Chat if text.is_empty() => choice["delta"] = json!({}),
            Form::Chat => choice["delta"] = json!({"content": text}),
        }
        self.choice(choice);
    }

    fn choice(&mut self, choice: Value) {
        let part = self.envelope.with(true, vec![choice], Value::Null);
        self.write(&part);
    }

    fn write(&mut self, value: &Value) {
        self.out.push_str("data: ");
        self.out.push_str(&value.to_string());
        self.out.push_str("\n\n");
    }
}
