//! One cell: a quality pass to the natural end of sequence, then a timing pass of fixed length.

use crate::calibrate::Calibrated;
use crate::experiment::Experiment;
use crate::plan::Cell;
use crate::store::{DraftRecord, LedgerRecord, Record, Sample};
use crate::task::TaskData;
use anyhow::{Context, bail};
use skipbench_engine::{
    Beam, Block, DraftTally, Engine, EngineError, Generation, KvAudit, Ledger, Options, RowOutput,
    TimingPlan, measure,
};
use skipbench_metrics::{Hypotheses, References, evaluate};
use skipbench_model::{CausalLm, HoleReads, Tokenize};
use skipbench_strategy::{KvFill, StrategySpec};

/// A model in memory with its tokenizer.
pub struct Loaded {
    /// The model.
    pub model: Box<dyn CausalLm>,
    /// Its tokenizer.
    pub tokenizer: Box<dyn Tokenize>,
}

/// Runs a cell whose strategy has been calibrated.
///
/// # Errors
/// A strategy that cannot be built, or a model that runs none of the prompts; one that fails alone is recorded as a
/// failure of that prompt.
pub(crate) fn run(
    loaded: &Loaded,
    cell: &Cell,
    task: &TaskData,
    calibrated: &Calibrated,
    experiment: &Experiment,
) -> anyhow::Result<(Record, Vec<Sample>)> {
    let engine = Engine::new(loaded.model.as_ref());
    let prompts = tokenize_all(loaded.tokenizer.as_ref(), &task.prompts)?;
    let quality = quality(loaded, cell, task, &calibrated.spec, &prompts, experiment)?;
    let failures: Vec<&str> = quality
        .samples
        .iter()
        .filter_map(|sample| sample.error.as_deref())
        .collect();
    if let Some(first) = failures.first()
        && failures.len() == prompts.len()
    {
        bail!("every prompt failed, the first with: {first}");
    }
    let failed = failures.first().map(|first| {
        format!(
            "{} of {} prompts failed and count as empty answers, the first with: {first}",
            failures.len(),
            prompts.len()
        )
    });
    let blocks = match cell.timed {
        true => timing(engine, cell, task, &calibrated.spec, &prompts, experiment)?,
        false => Vec::new(),
    };
    let untimed = (cell.timed && experiment.timing.batches > 0 && blocks.is_empty()).then(|| {
        format!(
            "not timed: no prompt leaves room for {} new tokens",
            experiment.timing.new_tokens
        )
    });
    let decoded: Vec<f64> = quality
        .samples
        .iter()
        .flat_map(|sample| sample.layers.iter().skip(1).copied())
        .collect();
    let approximate = quality.audit.over_layers(|layer| &layer.approximate);
    let deferred = quality.audit.over_layers(|layer| &layer.deferred);
    let record = Record {
        id: cell.id.clone(),
        threshold: calibrated.spec.threshold(),
        executed: calibrated.spec.clone(),
        calibration_of: calibrated.trace.of.to_owned(),
        calibration: calibrated.trace.points.clone(),
        note: joined(&[&calibrated.note, &failed, &untimed]),
        kv_fill: quality.kv_fill,
        layers_per_token: match decoded.len() {
            0 => engine.model().sizes().n_layers as f64,
            n => decoded.iter().sum::<f64>() / n as f64,
        },
        bound_speedup: quality.ledger.bound_speedup().unwrap_or(1.0),
        decoded_tokens: decoded.len(),
        ledger: LedgerRecord::from(&quality.ledger),
        approximate_reads: quality.hole_reads.approximate,
        masked_reads: quality.hole_reads.masked,
        kv_distance: approximate.distance(),
        kv_cosine: approximate.cosine(),
        kv_deferred_distance: (deferred.count > 0).then_some(deferred.distance_max),
        drafts: DraftRecord::of(&quality.drafts),
        answers: quality.samples.len(),
        peak_kv_bytes: quality.peak_kv_bytes,
        blocks,
    };
    Ok((record, quality.samples))
}

fn joined(notes: &[&Option<String>]) -> Option<String> {
    let notes: Vec<&str> = notes.iter().filter_map(|note| note.as_deref()).collect();
    (!notes.is_empty()).then(|| notes.join("; "))
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

#[derive(Default)]
struct Quality {
    samples: Vec<Sample>,
    ledger: Ledger,
    hole_reads: HoleReads,
    audit: KvAudit,
    drafts: DraftTally,
    peak_kv_bytes: u64,
    kv_fill: String,
}

impl Quality {
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
}

/// Prompts whose KV cache is compared with that of a full-depth replay.
const AUDITED: usize = 16;

fn quality(
    loaded: &Loaded,
    cell: &Cell,
    task: &TaskData,
    spec: &StrategySpec,
    prompts: &[Vec<u32>],
    experiment: &Experiment,
) -> anyhow::Result<Quality> {
    let engine = Engine::new(loaded.model.as_ref());
    let n_layers = engine.model().sizes().n_layers;
    if let Some(menu) = spec.menu(n_layers) {
        return least_depth(&menu, loaded, cell, task, prompts, experiment);
    }
    let mut options = Options {
        beam: beam(cell, experiment),
        no_repeat_ngram: experiment.no_repeat_ngram,
        ..natural_end(loaded, task)
    };
    let mut strategy = spec.build(n_layers)?;
    let kv_fill = strategy.needs().kv_fill;
    let mut quality = Quality {
        kv_fill: kv_fill.to_string(),
        ..Quality::default()
    };
    for (ids, batch) in task
        .ids
        .chunks(cell.batch_size)
        .zip(prompts.chunks(cell.batch_size))
    {
        let seen = quality.samples.len();
        options.audit = kv_fill != KvFill::None && seen < AUDITED && options.beam.is_none();
        let outcomes = match engine.generate(batch, strategy.as_mut(), &options) {
            Ok(generation) => quality.take(generation),
            // One prompt that cannot be run fails alone, not with its neighbours.
            Err(_) => batch
                .chunks(1)
                .flat_map(
                    |prompt| match engine.generate(prompt, strategy.as_mut(), &options) {
                        Ok(generation) => quality.take(generation),
                        Err(error) => vec![Err(error)],
                    },
                )
                .collect(),
        };
        for ((id, prompt), outcome) in ids.iter().zip(batch).zip(outcomes) {
            let failed = outcome.as_ref().err().map(ToString::to_string);
            // A failure stays in every mean: an empty answer scores nothing.
            let output = outcome.unwrap_or_default();
            quality.samples.push(Sample {
                cell: cell.id.clone(),
                id: id.clone(),
                prompt_tokens: prompt.len(),
                text: loaded.tokenizer.decode(&output.tokens)?.trim().to_owned(),
                tokens: output.tokens,
                layers: output.layers,
                error: failed,
            });
        }
    }
    Ok(quality)
}

fn beam(cell: &Cell, experiment: &Experiment) -> Option<Beam> {
    (cell.beams > 1).then_some(Beam {
        beams: cell.beams,
        length_penalty: experiment.length_penalty,
    })
}

/// Of each prompt the answer of the fastest strategy of `menu` (the fastest first, the full network last) whose score is no
/// worse than the full network's. The bytes are those of the answers that count, as near as a mean over each strategy's
/// answers can tell.
fn least_depth(
    menu: &[StrategySpec],
    loaded: &Loaded,
    cell: &Cell,
    task: &TaskData,
    prompts: &[Vec<u32>],
    experiment: &Experiment,
) -> anyhow::Result<Quality> {
    let metric = task.metrics.first().context("a task has a metric")?;
    let passes = menu
        .iter()
        .map(|spec| quality(loaded, cell, task, spec, prompts, experiment))
        .collect::<anyhow::Result<Vec<Quality>>>()?;
    // Answer by answer: a corpus score cannot tell which of them keep it.
    let score = |pass: &Quality, index: usize| -> anyhow::Result<f64> {
        let answer = Hypotheses::new([pass.samples[index].text.clone()]);
        let reference = References::single([task.references[index].clone()])?;
        let score = evaluate(metric, &answer, &reference)?.score();
        Ok(match metric.higher_is_better() {
            true => score,
            false => -score,
        })
    };
    let full = passes.last().context("a menu holds the full network")?;
    let mut picked = Quality {
        kv_fill: full.kv_fill.clone(),
        peak_kv_bytes: full.peak_kv_bytes,
        ..Quality::default()
    };
    let mut chosen = vec![0u64; passes.len()];
    for index in 0..full.samples.len() {
        let wanted = score(full, index)?;
        let mut place = 0;
        while score(&passes[place], index)? < wanted {
            place += 1;
        }
        chosen[place] += 1;
        picked.samples.push(passes[place].samples[index].clone());
    }
    for (pass, &count) in passes.iter().zip(&chosen) {
        picked
            .ledger
            .add(&pass.ledger.share(count, full.samples.len() as u64));
    }
    Ok(picked)
}

/// How a cell is timed, but for the prompts.
pub(crate) fn timing_plan(cell: &Cell, task: &TaskData, experiment: &Experiment) -> TimingPlan {
    let timing = &experiment.timing;
    TimingPlan {
        batches: Vec::new(),
        new_tokens: timing.new_tokens,
        planned_tokens: task.max_new_tokens,
        repeats: 1,
        precision: None,
        max_repeats: 1,
        warm_up: timing.warm_up,
        seed: experiment.seed,
        beam: beam(cell, experiment),
        no_repeat_ngram: experiment.no_repeat_ngram,
    }
}

fn timing(
    engine: Engine<'_>,
    cell: &Cell,
    task: &TaskData,
    spec: &StrategySpec,
    prompts: &[Vec<u32>],
    experiment: &Experiment,
) -> anyhow::Result<Vec<Block>> {
    let timing = &experiment.timing;
    if timing.batches == 0 {
        return Ok(Vec::new());
    }
    // Whole batches only: a short one would mix batch sizes. Prompts are used again where there are too few; one that
    // cannot be run has been counted as a failure in the quality pass.
    let fixed_length = Options {
        max_new_tokens: timing.new_tokens,
        ..Options::default()
    };
    let runnable: Vec<&Vec<u32>> = prompts
        .iter()
        .filter(|prompt| {
            engine
                .check(std::slice::from_ref(prompt), &fixed_length)
                .is_ok()
        })
        .collect();
    if runnable.is_empty() {
        return Ok(Vec::new());
    }
    let mut cycle = runnable.into_iter().cycle();
    let batches: Vec<Vec<Vec<u32>>> = (0..timing.batches)
        .map(|_| cycle.by_ref().take(cell.batch_size).cloned().collect())
        .collect();
    let plan = TimingPlan {
        batches,
        repeats: timing.repeats,
        ..timing_plan(cell, task, experiment)
    };
    Ok(measure(engine, spec, &plan, &mut |_, _| ())?)
}
