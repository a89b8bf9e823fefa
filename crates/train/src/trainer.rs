//! The training loop.

use crate::config::TrainConfig;
use crate::data::Batch;
use crate::error::{Result, TrainError};
use crate::export::Export;
use crate::net::{LayerUse, Net};
use crate::objective::Step;
use crate::optimizer::{AdamW, Gradients};
use crate::{checkpoint, export, settings};
use serde_json::{Map, Value};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// What happened in a step.
#[derive(Debug, Clone, PartialEq)]
pub struct StepReport {
    /// Updates done, this one included.
    pub step: u64,
    /// Mean loss of the batch: the weighed sum, where there are several.
    pub loss: f32,
    /// Each loss of the step before it is weighed, in the order of the step.
    pub terms: Vec<f32>,
    /// Cross-entropy of the last layer, where that is one of them.
    pub last_loss: Option<f32>,
    /// Learning rate.
    pub rate: f64,
    /// Global norm of the gradient before clipping.
    pub grad_norm: f64,
    /// Tokens of the batch, padding left out.
    pub tokens: usize,
    /// What they ran, layer by layer.
    pub ran: Vec<LayerUse>,
    /// What they ran beside that in a pass through all layers, of a teacher or for a loss of its own; empty without one.
    pub full_ran: Vec<LayerUse>,
    /// Seconds of the step.
    pub step_s: f64,
    /// Whether a checkpoint was written behind it.
    pub saved: bool,
}

impl StepReport {
    /// Layers that a token of the batch ran, in the mean; attention and MLP are half a layer each.
    pub fn layers_per_token(&self) -> f64 {
        self.per_token(&self.ran)
    }

    /// Layers that a token ran beside that in a pass through all layers.
    pub fn full_layers_per_token(&self) -> f64 {
        self.per_token(&self.full_ran)
    }

    fn per_token(&self, ran: &[LayerUse]) -> f64 {
        let sub_layers: usize = ran.iter().map(|ran| ran.attention + ran.mlp).sum();
        sub_layers as f64 / 2.0 / self.tokens.max(1) as f64
    }
}

/// A training run in a folder: `checkpoint.safetensors` while it is unfinished, `loss.csv`, and `finished.json` once the
/// result is exported.
pub struct Trainer {
    config: TrainConfig,
    settings: Value,
    net: Net,
    optimizer: AdamW,
    step: u64,
    saved: Option<u64>,
    /// Whether the training ends before its last step.
    stopped: bool,
    dir: PathBuf,
}

impl Trainer {
    /// Whether `dir` holds an unfinished run.
    pub fn is_unfinished(dir: &Path) -> bool {
        checkpoint_in(dir).exists()
    }

    /// The settings of the finished run of `dir`; `None` where none has finished.
    ///
    /// # Errors
    /// A file that cannot be read, or is not what [`export`](Self::export) wrote.
    pub fn finished(dir: &Path) -> Result<Option<Value>> {
        let path = finished_in(dir);
        let text = match std::fs::read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(TrainError::io(&path)(error)),
        };
        match serde_json::from_slice(&text) {
            Ok(settings) => Ok(Some(settings)),
            Err(error) => Err(TrainError::Checkpoint {
                path,
                message: format!("is damaged ({error}); delete it"),
            }),
        }
    }

    /// Starts in `dir`, or goes on with what was cut off there with the same settings: `config`, the shape, and `context`,
    /// which is whatever else determines the batches. `net` is where a new run starts.
    ///
    /// # Errors
    /// A config that cannot work, a folder that cannot be written, a checkpoint that is damaged or of another run.
    pub fn new(
        dir: &Path,
        config: &TrainConfig,
        context: &Map<String, Value>,
        net: Net,
    ) -> Result<Self> {
        config.check()?;
        std::fs::create_dir_all(dir).map_err(TrainError::io(dir))?;
        let mut optimizer = AdamW::new(&net, &config.optimizer)?;
        let settings = settings::of_run(config, net.architecture(), context)?;
        let saved = match Self::is_unfinished(dir) {
            true => Some(checkpoint::load(
                &checkpoint_in(dir),
                &net,
                &mut optimizer,
                &settings,
            )?),
            false => None,
        };
        let step = saved.unwrap_or(0);
        keep_log(&log_in(dir), step)?;
        Ok(Self {
            config: config.clone(),
            settings,
            net,
            optimizer,
            step,
            saved,
            stopped: false,
            dir: dir.to_path_buf(),
        })
    }

    /// Updates done so far.
    pub fn step(&self) -> u64 {
        self.step
    }

    /// Whether there is no update left to do.
    pub fn is_done(&self) -> bool {
        self.stopped || self.step >= self.config.steps
    }

    /// Ends the training where it stands.
    pub fn stop_early(&mut self) {
        self.stopped = true;
    }

    /// Keeps what is there now as the best so far, in `best.safetensors`.
    ///
    /// # Errors
    /// A weight that is no number, a file that cannot be written.
    pub fn keep_best(&mut self) -> Result<()> {
        if !self.optimizer.is_finite() {
            return Err(self.diverged(self.step, "largest weight", f64::INFINITY));
        }
        let path = best_in(&self.dir);
        checkpoint::save(&path, &self.net, &self.optimizer, self.step, &self.settings)
    }

    /// Goes back to the weights of the best, which are exported then.
    ///
    /// # Errors
    /// They cannot be read.
    pub fn take_best(&mut self) -> Result<()> {
        let path = best_in(&self.dir);
        checkpoint::load(&path, &self.net, &mut self.optimizer, &self.settings)?;
        Ok(())
    }

    /// The network as it stands.
    pub fn net(&self) -> &Net {
        &self.net
    }

    /// One update, on the batch of [`step`](Self::step). Where batch and step are functions of that number and of the network
    /// alone, a resumed run ends with the same bytes. Writes a line of the log, and a checkpoint where one is due.
    ///
    /// # Errors
    /// A batch that cannot be run; a loss, gradient or weight that is no number, which leaves the last checkpoint as it is;
    /// a file that cannot be written.
    pub fn update(&mut self, batch: &Batch, step: &Step) -> Result<StepReport> {
        let start = Instant::now();
        let Summed { pass, gradients } = self.summed(batch, step)?;
        let rate = self.config.optimizer.rate(self.step, self.config.steps);
        self.optimizer
            .step(&self.net, &gradients, rate, self.step)?;
        self.step += 1;
        let mut report = StepReport {
            step: self.step,
            loss: pass.loss,
            terms: pass.terms,
            last_loss: pass.last,
            rate,
            grad_norm: gradients.norm,
            tokens: batch.tokens(),
            ran: pass.ran,
            full_ran: pass.full_ran,
            step_s: start.elapsed().as_secs_f64(),
            saved: false,
        };
        write_log(&log_in(&self.dir), &report)?;
        if self.is_done() || self.step.is_multiple_of(self.config.checkpoint_every) {
            self.save()?;
            report.saved = true;
        }
        Ok(report)
    }

    /// Losses and gradients of a batch, in as many parts as the config says. A part counts for as much as it has tokens that
    /// count.
    fn summed(&self, batch: &Batch, step: &Step) -> Result<Summed> {
        let height = batch.rows.div_ceil(self.config.accumulate.max(1)).max(1);
        let mut sum: Option<Summed> = None;
        for first in (0..batch.rows.max(1)).step_by(height) {
            let rows = first..batch.rows.min(first + height);
            let (part, of_part);
            let (these, of_these) = match rows.len() == batch.rows {
                true => (batch, step),
                false => {
                    (part, of_part) = (batch.part(rows.clone()), step.part(rows));
                    (&part, &of_part)
                }
            };
            let counted = these.counted.len();
            if counted == 0 && !batch.counted.is_empty() {
                continue;
            }
            let pass = self.net.losses(these, of_these)?;
            let loss = pass.loss.to_scalar::<f32>()?;
            if !loss.is_finite() {
                return Err(self.diverged(self.step + 1, "loss", f64::from(loss)));
            }
            let gradients = Gradients::of(&self.net, &pass.loss.backward()?)?;
            let share = counted as f64 / batch.counted.len().max(1) as f64;
            let new = Summed {
                pass: Losses {
                    loss,
                    terms: pass.terms,
                    last: pass.last,
                    ran: pass.ran,
                    full_ran: pass.full_ran,
                },
                gradients,
            };
            sum = Some(match sum {
                None => new.weighed(share),
                Some(sum) => sum.plus(new.weighed(share)),
            });
        }
        let sum = sum.ok_or_else(|| TrainError::Config("a batch without pairs".to_owned()))?;
        match sum.gradients.norm {
            norm if norm.is_finite() => Ok(sum),
            norm => Err(self.diverged(self.step + 1, "gradient norm", norm)),
        }
    }

    /// Writes a checkpoint, unless the last one is of this step.
    ///
    /// # Errors
    /// A weight that is no number, a file that cannot be written. The checkpoint before stays.
    pub fn save(&mut self) -> Result<()> {
        if self.saved == Some(self.step) {
            return Ok(());
        }
        if !self.optimizer.is_finite() {
            return Err(self.diverged(self.step, "largest weight", f64::INFINITY));
        }
        checkpoint::save(
            &checkpoint_in(&self.dir),
            &self.net,
            &self.optimizer,
            self.step,
            &self.settings,
        )?;
        self.saved = Some(self.step);
        Ok(())
    }

    /// Writes the finished network, or the average of its weights where one is kept, as a folder; then
    /// removes the checkpoint. A cut-off at any point leaves a run that does the rest when it is resumed.
    ///
    /// # Errors
    /// A training that has not ended, a folder that cannot be written.
    pub fn export(&mut self, dir: &Path, export: &Export<'_>) -> Result<()> {
        if !self.is_done() {
            return Err(TrainError::Unfinished {
                step: self.step,
                steps: self.config.steps,
            });
        }
        self.save()?;
        let values: Vec<&[f32]> = self
            .optimizer
            .weights
            .iter()
            .map(|weight| match weight.average.is_empty() {
                true => weight.value.as_slice(),
                false => weight.average.as_slice(),
            })
            .collect();
        export::export(dir, &self.net, &values, export)?;
        let settings = format!("{:#}\n", self.settings);
        skipbench_fs::write_whole(&finished_in(&self.dir), settings.as_bytes())?;
        let checkpoint = checkpoint_in(&self.dir);
        std::fs::remove_file(&checkpoint).map_err(TrainError::io(&checkpoint))?;
        self.saved = None;
        match std::fs::remove_file(best_in(&self.dir)) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(TrainError::io(&best_in(&self.dir))(error))
            }
            _ => Ok(()),
        }
    }

    fn diverged(&self, step: u64, what: &'static str, value: f64) -> TrainError {
        TrainError::Diverged {
            step,
            what,
            value,
            kept: self.saved,
        }
    }
}

/// Losses and gradients of a batch.
struct Summed {
    pass: Losses,
    gradients: Gradients,
}

/// What a pass gave, in numbers.
struct Losses {
    loss: f32,
    terms: Vec<f32>,
    last: Option<f32>,
    ran: Vec<LayerUse>,
    full_ran: Vec<LayerUse>,
}

impl Summed {
    fn weighed(mut self, share: f64) -> Self {
        if share < 1.0 {
            let by = share as f32;
            let pass = &mut self.pass;
            pass.loss *= by;
            pass.terms.iter_mut().for_each(|term| *term *= by);
            pass.last = pass.last.map(|last| last * by);
            self.gradients.scale(by);
        }
        self
    }

    fn plus(mut self, other: Self) -> Self {
        let add = |ran: &mut Vec<LayerUse>, other: &[LayerUse]| {
            for (ran, other) in ran.iter_mut().zip(other) {
                ran.attention += other.attention;
                ran.mlp += other.mlp;
            }
        };
        let pass = &mut self.pass;
        pass.loss += other.pass.loss;
        let terms = pass.terms.iter_mut().zip(&other.pass.terms);
        terms.for_each(|(term, other)| *term += other);
        let lasts = pass.last.zip(other.pass.last);
        pass.last = lasts.map(|(one, other)| one + other);
        add(&mut pass.ran, &other.pass.ran);
        add(&mut pass.full_ran, &other.pass.full_ran);
        self.gradients.add(&other.gradients);
        self
    }
}

fn checkpoint_in(dir: &Path) -> PathBuf {
    dir.join("checkpoint.safetensors")
}

fn best_in(dir: &Path) -> PathBuf {
    dir.join("best.safetensors")
}

fn finished_in(dir: &Path) -> PathBuf {
    dir.join("finished.json")
}

fn log_in(dir: &Path) -> PathBuf {
    dir.join("loss.csv")
}

const HEADER: &str = "step,loss,learning_rate,grad_norm,tokens_per_s,layers_per_token,last_loss,full_layers_per_token";

fn write_log(path: &Path, report: &StepReport) -> Result<()> {
    let line = format!(
        "{},{},{},{},{},{},{},{}\n",
        report.step,
        report.loss,
        report.rate,
        report.grad_norm,
        report.tokens as f64 / report.step_s,
        report.layers_per_token(),
        report.last_loss.unwrap_or(f32::NAN),
        report.full_layers_per_token()
    );
    std::fs::OpenOptions::new()
        .append(true)
        .open(path)
        .and_then(|mut log| log.write_all(line.as_bytes()))
        .map_err(TrainError::io(path))
}

/// Keeps the log's whole lines of steps that the checkpoint has.
fn keep_log(path: &Path, step: u64) -> Result<()> {
    let old = match std::fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Vec::new(),
        Err(error) => return Err(TrainError::io(path)(error)),
    };
    // A cut-off may leave half a line, and a loss of power bytes that are no text.
    let old = String::from_utf8_lossy(&old);
    let kept = old.lines().filter(|line| {
        let cells: Vec<Option<f64>> = line.split(',').map(|cell| cell.parse().ok()).collect();
        cells.len() == HEADER.split(',').count()
            && cells.iter().all(Option::is_some)
            && cells[0].is_some_and(|number| number <= step as f64)
    });
    let text: String = std::iter::once(HEADER)
        .chain(kept)
        .map(|line| format!("{line}\n"))
        .collect();
    Ok(skipbench_fs::write_whole(path, text.as_bytes())?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{LossOn, ModelShape, OptimizerConfig, Pair, Schedule};

    fn start(dir: &Path) -> Trainer {
        let shape = ModelShape {
            vocab_size: 9,
            d_model: 8,
            n_layers: 2,
            n_heads: 2,
            n_kv_heads: 1,
            d_ff: 12,
            rope_theta: 100.0,
            norm_eps: 1e-5,
            max_positions: 8,
            tied_head: true,
        };
        let config = TrainConfig {
            steps: 6,
            batch_size: 1,
            seed: 0,
            loss_on: LossOn::All,
            accumulate: 1,
            recompute: false,
            checkpoint_every: 3,
            optimizer: OptimizerConfig {
                learning_rate: 0.1,
                schedule: Schedule::Cosine,
                floor: 0.1,
                warm_up_steps: 0,
                weight_decay: 0.0,
                beta1: 0.9,
                beta2: 0.95,
                clip_norm: 1.0,
                ema_decay: 0.9,
            },
        };
        let net = Net::new(&shape, 1).unwrap();
        Trainer::new(dir, &config, &Map::new(), net).unwrap()
    }

    fn step(trainer: &mut Trainer) -> Result<StepReport> {
        let pair = Pair {
            prompt: vec![1, 5],
            response: vec![6, 2],
        };
        let plain = Step::plain(None, trainer.net().shape().n_layers);
        trainer.update(&Batch::new(&[pair], LossOn::All), &plain)
    }

    #[test]
    fn a_training_that_blows_up_stops_and_its_last_checkpoint_stays() {
        let dir = tempfile::tempdir().unwrap();
        let mut trainer = start(dir.path());
        let saved: Vec<bool> = (0..4).map(|_| step(&mut trainer).unwrap().saved).collect();
        assert_eq!(saved, [false, false, true, false]);
        let checkpoint = std::fs::read(checkpoint_in(dir.path())).unwrap();

        trainer.optimizer.weights[0].value[0] = f32::INFINITY;
        let message = trainer.save().unwrap_err().to_string();
        assert!(
            message.contains("largest weight at step 4") && message.contains("of step 3 is kept"),
            "{message}"
        );
        let norm = trainer.net.var("model.norm.weight");
        norm.set(&(norm.as_tensor() * f64::NAN).unwrap()).unwrap();
        let message = step(&mut trainer).unwrap_err().to_string();
        assert!(
            message.contains("loss at step 5 is NaN") && message.contains("of step 3 is kept"),
            "{message}"
        );
        assert_eq!(trainer.step(), 4);
        assert!(std::fs::read(checkpoint_in(dir.path())).unwrap() == checkpoint);
    }

    #[test]
    fn the_log_loses_what_is_torn_or_ahead_of_the_checkpoint() {
        let dir = tempfile::tempdir().unwrap();
        let path = log_in(dir.path());
        let mut bytes =
            format!("{HEADER}\n1,5.0,0.1,1.0,9,2,5.0,0\n2,4.0,0.1,1.0,9,2,4.0,0\n3,4.0,0.1,1.0,9,2,NaN,2\n4,3.")
                .into_bytes();
        bytes.extend([0, 0xff]);
        std::fs::write(&path, bytes).unwrap();
        keep_log(&path, 2).unwrap();
        let kept = std::fs::read_to_string(&path).unwrap();
        assert_eq!(
            kept,
            format!("{HEADER}\n1,5.0,0.1,1.0,9,2,5.0,0\n2,4.0,0.1,1.0,9,2,4.0,0\n")
        );
    }

    #[test]
    fn a_disk_that_is_full_or_read_only_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let mut trainer = start(dir.path());
        std::fs::remove_file(log_in(dir.path())).unwrap();
        std::fs::create_dir(log_in(dir.path())).unwrap();
        let message = step(&mut trainer).unwrap_err().to_string();
        assert!(message.contains("loss.csv"), "{message}");
        std::fs::create_dir(checkpoint_in(dir.path())).unwrap();
        let message = trainer.save().unwrap_err().to_string();
        assert!(message.contains("checkpoint.safetensors"), "{message}");
    }
}
