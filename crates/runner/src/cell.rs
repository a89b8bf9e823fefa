//! One cell: a quality pass to the natural end of sequence, then a timing pass of fixed length.

use crate::binary;
use crate::calibrate::{Calibrated, Part};
use crate::experiment::Experiment;
use crate::plan::{Cell, ModelPlan, Plan};
use crate::task::TaskData;
use anyhow::{Context, bail};
use skipbench_engine::{
    Beam, Block, DraftTally, Drift, Engine, EngineError, Generation, KvAudit, Ledger, Options,
    Outliers, RowOutput, TimingPlan, measure, speedup,
};
use skipbench_machine::{LoadMeter, peak_memory_bytes, reset_peak_memory};
use skipbench_metrics::{Hypotheses, References, Resampling, evaluate};
use skipbench_model::{CausalLm, HoleReads, Tokenize};
use skipbench_record::{
    Answer, Executed, KvAuditRecord, Made, ModelRecord, Quality, Record, Score, Search, TaskRecord,
    Timing, VERSION, Written,
};
use skipbench_strategy::{KvFill, StrategySpec};

/// A model in memory with its tokenizer.
pub struct Loaded {
    /// The model.
    pub model: Box<dyn CausalLm>,
    /// Its tokenizer.
    pub tokenizer: Box<dyn Tokenize>,
}

/// A cell with everything that it is run with.
#[derive(Clone, Copy)]
pub(crate) struct CellRun<'a> {
    pub(crate) plan: &'a Plan,
    pub(crate) cell: &'a Cell,
    pub(crate) loaded: &'a Loaded,
    /// Hears how far it is.
    pub(crate) part: Part<'a>,
}

impl<'a> CellRun<'a> {
    /// Runs both passes of a cell whose strategy has been calibrated.
    ///
    /// # Errors
    /// A strategy that cannot be built, or a model that runs none of the prompts; one that fails alone is recorded as a
    /// failure of that prompt.
    pub(crate) fn everything(
        self,
        calibrated: &Calibrated,
    ) -> anyhow::Result<(Record, Vec<Answer>)> {
        let prompts = tokenize_all(self.loaded.tokenizer.as_ref(), &self.task().prompts)?;
        let pass = self.quality(&calibrated.spec, &prompts)?;
        let mut record = self.blank();
        record.notes.extend(calibrated.note.clone());
        record.notes.extend(pass.failures()?);
        record.executed = Some(Executed {
            spec: serde_json::to_value(&calibrated.spec)?,
            label: calibrated.spec.to_string(),
            threshold: calibrated.spec.threshold(),
            kv_fill: pass.kv_fill.clone(),
            calibration: calibrated.trace.clone(),
        });
        record.quality = Some(pass.record(self.scores(&pass.answers)?));
        if self.cell.timed {
            self.time(&mut record, &calibrated.spec)?;
        }
        Ok((record, pass.answers))
    }

    /// Times a cell anew whose answers stand.
    ///
    /// # Errors
    /// As [`CellRun::everything`].
    pub(crate) fn times(self, earlier: Record) -> anyhow::Result<Record> {
        let executed = earlier.executed.as_ref();
        let spec = executed.map_or_else(
            || serde_json::to_value(&self.cell.strategy),
            |executed| Ok(executed.spec.clone()),
        )?;
        let spec: StrategySpec = serde_json::from_value(spec)
            .with_context(|| format!("the strategy that {} ran with", self.cell.name()))?;
        let mut record = earlier;
        self.time(&mut record, &spec)?;
        Ok(record)
    }

    /// The record of a cell that cannot be run.
    pub(crate) fn failure(plan: &Plan, cell: &Cell, reason: String) -> Record {
        Record {
            failure: Some(reason),
            ..blank(plan, cell)
        }
    }

    fn task(self) -> &'a TaskData {
        &self.plan.tasks[self.cell.task]
    }

    fn engine(self) -> Engine<'a> {
        Engine::new(self.loaded.model.as_ref())
    }

    /// A record with everything that is known before the cell runs.
    fn blank(self) -> Record {
        blank(self.plan, self.cell)
    }

    /// Scores under every metric of the task.
    fn scores(self, answers: &[Answer]) -> anyhow::Result<Vec<Score>> {
        let task = self.task();
        let hypotheses = Hypotheses::new(answers.iter().map(|answer| answer.text.clone()));
        let references = References::single(task.references.iter().cloned())?;
        let resampling = Resampling {
            seed: self.plan.experiment.seed,
            ..Resampling::default()
        };
        task.metrics
            .iter()
            .map(|metric| {
                let evaluation = evaluate(metric, &hypotheses, &references)?;
                let interval = evaluation.interval(&resampling);
                Ok(Score {
                    metric: metric.to_string(),
                    score: evaluation.score(),
                    lo: interval.lo,
                    hi: interval.hi,
                    by_prompt: evaluation.segment_scores(),
                })
            })
            .collect()
    }

    /// The timing pass; one that cannot be made is a note.
    fn time(self, record: &mut Record, spec: &StrategySpec) -> anyhow::Result<()> {
        let (experiment, task) = (&self.plan.experiment, self.task());
        // Whole batches only: a short one would mix batch sizes. Prompts are used again where there are too few; one that
        // cannot be run has been counted as a failure in the quality pass.
        let fixed_length = Options {
            max_new_tokens: experiment.timing.new_tokens,
            ..Options::default()
        };
        let prompts = tokenize_all(self.loaded.tokenizer.as_ref(), &task.prompts)?;
        let runnable: Vec<&Vec<u32>> = prompts
            .iter()
            .filter(|prompt| {
                let alone = std::slice::from_ref(*prompt);
                self.engine().check(alone, &fixed_length).is_ok()
            })
            .collect();
        record.times_from.clone_from(&self.cell.identity.times);
        let mut timing = Timing {
            id: times_id(self.cell),
            blocks: Vec::new(),
            new_tokens: experiment.timing.new_tokens,
            peak_memory_bytes: None,
            peak_gpu_bytes: None,
            notes: Vec::new(),
            made: made(self.plan),
        };
        if runnable.is_empty() {
            timing.notes.push(format!(
                "not timed: no prompt leaves room for {} new tokens",
                experiment.timing.new_tokens
            ));
            record.timing = Some(timing);
            return Ok(());
        }
        let mut cycle = runnable.into_iter().cycle();
        let plan = TimingPlan {
            batches: (0..experiment.timing.batches)
                .map(|_| cycle.by_ref().take(self.cell.batch_size).cloned().collect())
                .collect(),
            ..timing_plan(self.cell, task, experiment)
        };
        reset_peak_memory();
        let load = LoadMeter::start();
        timing.blocks = measure(self.engine(), spec, &plan, &mut |done, all| {
            (self.part)("timed blocks", done as u64, all as u64);
        })?;
        timing.notes = doubts(&timing.blocks, load.others(), plan.precision);
        timing.peak_memory_bytes = peak_memory_bytes();
        record.timing = Some(timing);
        Ok(())
    }
}

/// Identifies everything that the times of a cell depend on.
fn times_id(cell: &Cell) -> String {
    let times = cell.identity.times.clone().unwrap_or_default();
    times.with("answers", &cell.id).id()
}

/// Share of the processor that other work may take before the times are doubted.
const QUIET: f64 = 0.05;

/// What a reader must know of the times.
fn doubts(blocks: &[Block], others: Option<f64>, precision: Option<f64>) -> Vec<String> {
    let load = others.filter(|share| *share > QUIET).map(|share| {
        format!(
            "other work took {:.0}% of the processor while this was timed",
            100.0 * share
        )
    });
    let half_width = speedup(blocks).and_then(|speedup| speedup.half_width());
    let missed = precision.filter(|wanted| half_width.is_none_or(|found| found > *wanted));
    let coarse = missed.map(|wanted| match half_width {
        Some(found) => format!(
            "a precision of {:.1}% was asked for, and {:.1}% was reached",
            100.0 * wanted,
            100.0 * found
        ),
        None => "a precision was asked for, and one batch has no interval".to_owned(),
    });
    let drift = Drift::of(blocks).map(|drift| drift.to_string());
    let outliers = Outliers::of(blocks).map(|outliers| outliers.to_string());
    [load, coarse, drift, outliers]
        .into_iter()
        .flatten()
        .collect()
}

fn blank(plan: &Plan, cell: &Cell) -> Record {
    let experiment = &plan.experiment;
    Record {
        version: VERSION,
        id: cell.id.clone(),
        content: cell.identity.content.id(),
        answers_from: cell.identity.answers.clone(),
        times_from: None,
        experiment: experiment.name.clone(),
        model: model_record(plan, &plan.models[cell.model]),
        task: task_record(&plan.tasks[cell.task]),
        strategy: (&cell.strategy).into(),
        search: Search {
            batch_size: cell.batch_size,
            beams: cell.beams,
            length_penalty: experiment.length_penalty,
            no_repeat_ngram: experiment.no_repeat_ngram,
        },
        executed: None,
        quality: None,
        timing: None,
        notes: Vec::new(),
        failure: None,
        made: made(plan),
    }
}

/// A model of the plan, as a record names it.
pub(crate) fn model_record(plan: &Plan, model: &ModelPlan) -> ModelRecord {
    ModelRecord {
        name: model.name.clone(),
        n_layers: model.n_layers,
        weights: model.digest.weights.clone(),
        tokenizer: model.digest.tokenizer.clone(),
        config: model.digest.config.clone(),
        dtype: plan.experiment.dtype_name(),
        device: plan.experiment.device.name().to_owned(),
    }
}

/// A task, as a record names it.
pub(crate) fn task_record(task: &TaskData) -> TaskRecord {
    TaskRecord {
        name: task.name.clone(),
        texts: task.texts_digest(),
        prompts: task.prompts.len(),
        prompts_available: task.available,
        max_new_tokens: task.max_new_tokens,
        metrics: task.metric_names(),
    }
}

/// When and by what a `run.json` is written.
pub(crate) fn written(plan: &Plan) -> Written {
    let binary = binary::this();
    Written {
        date: now(),
        device: Some(plan.machine.clone()),
        git_commit: binary.commit.clone(),
        versions: [("skipbench".to_owned(), binary.version.clone())].into(),
    }
}

fn now() -> String {
    jiff::Timestamp::now()
        .strftime("%Y-%m-%dT%H:%M:%SZ")
        .to_string()
}

fn made(plan: &Plan) -> Made {
    Made {
        at: now(),
        machine: plan.machine.clone(),
        binary: binary::this().clone(),
    }
}

/// Token ids of each prompt.
pub(crate) fn tokenize_all(
    tokenizer: &dyn Tokenize,
    prompts: &[String],
) -> anyhow::Result<Vec<Vec<u32>>> {
    Ok(prompts
        .iter()
        .map(|prompt| tokenizer.encode(prompt))
        .collect::<Result<_, _>>()?)
}

/// Generation up to the end of sequence, as a task's quality is measured.
pub(crate) fn natural_end(loaded: &Loaded, task: &TaskData) -> Options {
    Options {
        max_new_tokens: task.max_new_tokens,
        eos_ids: loaded.tokenizer.eos_ids().to_vec(),
        ..Options::default()
    }
}

/// The answers of a quality pass and what they cost.
#[derive(Default)]
struct Pass {
    answers: Vec<Answer>,
    ledger: Ledger,
    hole_reads: HoleReads,
    audit: KvAudit,
    drafts: DraftTally,
    peak_kv_bytes: u64,
    kv_fill: String,
}

impl Pass {
    /// Adds what a batch cost; its rows.
    fn take(&mut self, generation: Generation) -> Vec<Result<RowOutput, EngineError>> {
        self.ledger.add(&generation.ledger);
        self.hole_reads.approximate += generation.hole_reads.approximate;
        self.hole_reads.masked += generation.hole_reads.masked;
        self.drafts.add(&generation.drafts);
        self.peak_kv_bytes = self.peak_kv_bytes.max(generation.peak_kv_bytes);
        for row in &generation.rows {
            if let Some(audit) = &row.audit {
                self.audit.merge(audit);
            }
        }
        generation.rows.into_iter().map(Ok).collect()
    }

    /// What is said of prompts that failed, where some did.
    ///
    /// # Errors
    /// All of them failed.
    fn failures(&self) -> anyhow::Result<Option<String>> {
        let failed = self
            .answers
            .iter()
            .filter_map(|answer| answer.error.as_deref());
        let failed: Vec<&str> = failed.collect();
        let Some(first) = failed.first() else {
            return Ok(None);
        };
        if failed.len() == self.answers.len() {
            bail!("every prompt failed, the first with: {first}");
        }
        Ok(Some(format!(
            "{} of {} prompts failed and count as empty answers, the first with: {first}",
            failed.len(),
            self.answers.len()
        )))
    }

    fn record(&self, scores: Vec<Score>) -> Quality {
        // The first token of an answer comes from the prefill.
        let decoded = self
            .answers
            .iter()
            .flat_map(|answer| answer.layers.iter().skip(1));
        let decoded_tokens = decoded.clone().count();
        let approximate = self.audit.over_layers(|layer| &layer.approximate);
        let deferred = self.audit.over_layers(|layer| &layer.deferred);
        let audit = KvAuditRecord {
            approximate_reads: self.hole_reads.approximate,
            masked_reads: self.hole_reads.masked,
            distance: approximate.distance(),
            cosine: approximate.cosine(),
            deferred_distance: (deferred.count > 0).then_some(deferred.distance_max),
        };
        Quality {
            answers: self.answers.len(),
            failed: self
                .answers
                .iter()
                .filter(|answer| answer.error.is_some())
                .count(),
            decoded_tokens,
            layers_per_token: (decoded_tokens > 0)
                .then(|| decoded.sum::<f64>() / decoded_tokens as f64),
            ledger: self.ledger,
            kv_audit: (audit != KvAuditRecord::default()).then_some(audit),
            drafts: (self.drafts.verified > 0).then_some(self.drafts),
            peak_kv_bytes: self.peak_kv_bytes,
            scores,
        }
    }
}

/// Prompts whose KV cache is compared with that of a full-depth replay.
const AUDITED: usize = 16;

impl CellRun<'_> {
    fn quality(self, spec: &StrategySpec, prompts: &[Vec<u32>]) -> anyhow::Result<Pass> {
        let (engine, cell, task) = (self.engine(), self.cell, self.task());
        let n_layers = engine.model().sizes().n_layers;
        if let Some(menu) = spec.menu(n_layers) {
            return self.least_depth(&menu, prompts);
        }
        let mut options = Options {
            beam: beam(cell, &self.plan.experiment),
            no_repeat_ngram: self.plan.experiment.no_repeat_ngram,
            ..natural_end(self.loaded, task)
        };
        let mut strategy = spec.build(n_layers)?;
        let kv_fill = strategy.needs().kv_fill;
        let mut pass = Pass {
            kv_fill: kv_fill.to_string(),
            ..Pass::default()
        };
        let batches = task.ids.chunks(cell.batch_size);
        for (ids, batch) in batches.zip(prompts.chunks(cell.batch_size)) {
            let seen = pass.answers.len();
            (self.part)("answers", seen as u64, prompts.len() as u64);
            options.audit = kv_fill != KvFill::None && seen < AUDITED && options.beam.is_none();
            let outcomes = match engine.generate(batch, strategy.as_mut(), &options) {
                Ok(generation) => pass.take(generation),
                // One prompt that cannot be run fails alone, not with its neighbours.
                Err(_) => batch
                    .chunks(1)
                    .flat_map(
                        |prompt| match engine.generate(prompt, strategy.as_mut(), &options) {
                            Ok(generation) => pass.take(generation),
                            Err(error) => vec![Err(error)],
                        },
                    )
                    .collect(),
            };
            for ((id, prompt), outcome) in ids.iter().zip(batch).zip(outcomes) {
                let failed = outcome.as_ref().err().map(ToString::to_string);
                // A failure stays in every mean: an empty answer scores nothing.
                let output = outcome.unwrap_or_default();
                pass.answers.push(Answer {
                    cell: cell.id.clone(),
                    id: id.clone(),
                    prompt_tokens: prompt.len(),
                    text: self
                        .loaded
                        .tokenizer
                        .decode(&output.tokens)?
                        .trim()
                        .to_owned(),
                    tokens: output.tokens,
                    layers: output.layers,
                    error: failed,
                });
            }
        }
        Ok(pass)
    }

    /// Of each prompt the answer of the fastest strategy of `menu` (the fastest first, the full network last) whose score is no
    /// worse than the full network's. The bytes are those of the answers that count, as near as a mean over each strategy's
    /// answers can tell.
    fn least_depth(self, menu: &[StrategySpec], prompts: &[Vec<u32>]) -> anyhow::Result<Pass> {
        let task = self.task();
        let metric = task.metrics.first().context("a task has a metric")?;
        let passes = menu
            .iter()
            .map(|spec| self.quality(spec, prompts))
            .collect::<anyhow::Result<Vec<Pass>>>()?;
        // Answer by answer: a corpus score cannot tell which of them keep it.
        let score = |pass: &Pass, index: usize| -> anyhow::Result<f64> {
            let answer = Hypotheses::new([pass.answers[index].text.clone()]);
            let reference = References::single([task.references[index].clone()])?;
            let score = evaluate(metric, &answer, &reference)?.score();
            Ok(match metric.higher_is_better() {
                true => score,
                false => -score,
            })
        };
        let full = passes.last().context("a menu holds the full network")?;
        let mut picked = Pass {
            kv_fill: full.kv_fill.clone(),
            peak_kv_bytes: full.peak_kv_bytes,
            ..Pass::default()
        };
        let mut chosen = vec![0u64; passes.len()];
        for index in 0..full.answers.len() {
            let wanted = score(full, index)?;
            let mut place = 0;
            while score(&passes[place], index)? < wanted {
                place += 1;
            }
            chosen[place] += 1;
            picked.answers.push(passes[place].answers[index].clone());
        }
        for (pass, &count) in passes.iter().zip(&chosen) {
            let share = pass.ledger.share(count, full.answers.len() as u64);
            picked.ledger.add(&share);
        }
        Ok(picked)
    }
}

fn beam(cell: &Cell, experiment: &Experiment) -> Option<Beam> {
    (cell.beams > 1).then_some(Beam {
        beams: cell.beams,
        length_penalty: experiment.length_penalty,
    })
}

/// Times that a batch is run at the most where a precision is asked for and no limit is set.
const MOST_REPEATS: usize = 32;

/// How a cell is timed, but for the prompts.
pub(crate) fn timing_plan(cell: &Cell, task: &TaskData, experiment: &Experiment) -> TimingPlan {
    let timing = &experiment.timing;
    TimingPlan {
        batches: Vec::new(),
        new_tokens: timing.new_tokens,
        planned_tokens: task.max_new_tokens,
        repeats: timing.repeats,
        precision: timing.precision,
        max_repeats: timing.max_repeats.unwrap_or(MOST_REPEATS),
        warm_up: timing.warm_up,
        seed: experiment.seed,
        beam: beam(cell, experiment),
        no_repeat_ngram: experiment.no_repeat_ngram,
    }
}
