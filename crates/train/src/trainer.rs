//! The training loop.

use crate::checkpoint;
use crate::config::TrainConfig;
use crate::data::{Batch, Depths};
use crate::error::{Result, TrainError};
use crate::export;
use crate::net::Net;
use crate::optimizer::AdamW;
use candle_core::DType;
use std::hash::Hasher;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Instant;
use tokenizers::Tokenizer;

/// What happened in a step.
#[derive(Debug, Clone, PartialEq)]
pub struct StepReport {
    /// Updates done, this one included.
    pub step: u64,
    /// Mean loss of the batch.
    pub loss: f32,
    /// Learning rate.
    pub rate: f64,
    /// Global norm of the gradient before clipping.
    pub grad_norm: f64,
    /// Tokens of the batch, padding left out.
    pub tokens: usize,
    /// Seconds of the step.
    pub step_s: f64,
}

/// Whether to go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Control {
    /// Go on.
    Continue,
    /// Write a checkpoint and stop.
    Stop,
}

/// A training run in a folder: `checkpoint.safetensors` and `loss.csv` while it lasts.
pub struct Trainer {
    config: TrainConfig,
    net: Net,
    optimizer: AdamW,
    step: u64,
    run: u64,
    checkpoint: PathBuf,
    log: PathBuf,
}

impl Trainer {
    /// Starts in `dir`, or resumes what was cut off there with the same config and `context`: whatever else determines
    /// the batches (data, depths), in any form. `net` is where a new run starts.
    ///
    /// # Errors
    /// A config that cannot work, a folder that cannot be written, a checkpoint of another run.
    pub fn new(dir: &Path, config: &TrainConfig, context: &str, net: Net) -> Result<Self> {
        config.check()?;
        std::fs::create_dir_all(dir).map_err(TrainError::io(dir))?;
        let mut optimizer = AdamW::new(&net, &config.optimizer)?;
        let run = fingerprint(config, context, &net);
        let checkpoint = dir.join("checkpoint.safetensors");
        let log = dir.join("loss.csv");
        let step = match checkpoint.is_file() {
            true => checkpoint::load(&checkpoint, &net, &mut optimizer, run)?,
            false => 0,
        };
        keep_log(&log, step)?;
        Ok(Self {
            config: config.clone(),
            net,
            optimizer,
            step,
            run,
            checkpoint,
            log,
        })
    }

    /// Updates done so far.
    pub fn step(&self) -> u64 {
        self.step
    }

    /// The network as it stands.
    pub fn net(&self) -> &Net {
        &self.net
    }

    /// Trains to the end of the schedule. `batch` gives the batch of a step and the layers its tokens run; being a
    /// function of the step alone, it makes resuming exact.
    ///
    /// # Errors
    /// A loss that is not a number, a file that cannot be written.
    pub fn run(
        &mut self,
        mut batch: impl FnMut(u64) -> (Batch, Option<Box<dyn Fn(usize, usize, usize) -> bool>>),
        mut report: impl FnMut(&StepReport) -> Control,
    ) -> Result<()> {
        let mut log = std::fs::OpenOptions::new()
            .append(true)
            .open(&self.log)
            .map_err(TrainError::io(&self.log))?;
        while self.step < self.config.steps {
            let start = Instant::now();
            let (batch, depths) = batch(self.step);
            let mut done = self.update(&batch, depths.as_deref())?;
            done.step_s = start.elapsed().as_secs_f64();
            writeln!(
                log,
                "{},{},{},{},{}",
                done.step,
                done.loss,
                done.rate,
                done.grad_norm,
                done.tokens as f64 / done.step_s
            )
            .map_err(TrainError::io(&self.log))?;
            let control = report(&done);
            let last = self.step == self.config.steps;
            if last
                || control == Control::Stop
                || self.step.is_multiple_of(self.config.checkpoint_every)
            {
                self.save()?;
            }
            if control == Control::Stop {
                break;
            }
        }
        Ok(())
    }

    fn update(&mut self, batch: &Batch, depths: Option<Depths<'_>>) -> Result<StepReport> {
        let loss = self.net.loss(batch, depths)?;
        let value = loss.to_scalar::<f32>()?;
        if !value.is_finite() {
            return Err(TrainError::Diverged {
                step: self.step,
                what: "loss",
                value: f64::from(value),
            });
        }
        let grads = loss.backward()?;
        let rate = self.config.optimizer.rate(self.step, self.config.steps);
        let grad_norm = self.optimizer.step(&self.net, &grads, rate, self.step)?;
        self.step += 1;
        Ok(StepReport {
            step: self.step,
            loss: value,
            rate,
            grad_norm,
            tokens: batch.tokens(),
            step_s: 0.0,
        })
    }

    fn save(&self) -> Result<()> {
        checkpoint::save(
            &self.checkpoint,
            &self.net,
            &self.optimizer,
            self.step,
            self.run,
        )
    }

    /// Writes the network, or the average of its weights where one is kept, as a Hugging Face folder.
    ///
    /// # Errors
    /// A folder that cannot be written.
    pub fn export(&self, dir: &Path, tokenizer: &Tokenizer, dtype: DType) -> Result<()> {
        let values: Vec<&[f32]> = self
            .optimizer
            .weights
            .iter()
            .map(|weight| match weight.average.is_empty() {
                true => weight.value.as_slice(),
                false => weight.average.as_slice(),
            })
            .collect();
        export::export(dir, &self.net, &values, tokenizer, dtype)
    }
}

/// Names a run by its config, context and shape.
fn fingerprint(config: &TrainConfig, context: &str, net: &Net) -> u64 {
    // Stable by construction: the text is ours, and the hash has fixed keys.
    #[expect(
        deprecated,
        reason = "SipHash with fixed keys is what a stable name needs"
    )]
    let mut hasher = std::hash::SipHasher::new();
    hasher.write(format!("{config:?} {context} {:?}", net.shape()).as_bytes());
    hasher.finish()
}

/// Drops log lines of steps that the checkpoint does not have.
fn keep_log(path: &Path, step: u64) -> Result<()> {
    const HEADER: &str = "step,loss,learning_rate,grad_norm,tokens_per_s";
    let old = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
        Err(error) => return Err(TrainError::io(path)(error)),
    };
    let kept = old.lines().skip(1).filter(|line| {
        line.split(',')
            .next()
            .and_then(|number| number.parse::<u64>().ok())
            .is_some_and(|number| number <= step)
    });
    let text: String = std::iter::once(HEADER)
        .chain(kept)
        .map(|line| format!("{line}\n"))
        .collect();
    std::fs::write(path, text).map_err(TrainError::io(path))
}
