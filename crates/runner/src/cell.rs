//! One cell: a quality pass to the natural end of sequence, then a timing pass of fixed length.

use crate::calibrate::calibrate;
use crate::experiment::Experiment;
use crate::plan::Cell;
use crate::store::{BlockRecord, Record, Sample, Times};
use crate::task::TaskData;
use skipbench_engine::{Engine, Generation, Ledger, Options, TimingPlan, measure};
use skipbench_model::{CausalLm, Tokenize};
use skipbench_strategy::StrategySpec;

/// A model in memory with its tokenizer.
pub struct Loaded {
    /// The model.
    pub model: Box<dyn CausalLm>,
    /// Its tokenizer.
    pub tokenizer: Box<dyn Tokenize>,
}

/// Runs a cell.
///
/// # Errors
/// A strategy that cannot be built, or a model that refuses to run at all; a single prompt that fails is recorded as
/// a failure of that prompt.
pub fn run(
    loaded: &Loaded,
    cell: &Cell,
    task: &TaskData,
    experiment: &Experiment,
) -> anyhow::Result<(Record, Vec<Sample>)> {
    let engine = Engine::new(loaded.model.as_ref());
    let calibrated = calibrate(
        engine,
        loaded.tokenizer.as_ref(),
        &cell.strategy,
        &task.calibration,
        task.max_new_tokens,
    )?;
    let prompts = tokenize_all(loaded.tokenizer.as_ref(), &task.prompts)?;
    let quality = quality(loaded, cell, task, &calibrated.spec, &prompts)?;
    let blocks = timing(engine, cell, &calibrated.spec, &prompts, experiment)?;
    let decoded: Vec<usize> = quality
        .samples
        .iter()
        .flat_map(|sample| sample.layers.iter().skip(1).copied())
        .collect();
    let n_layers = engine.model().sizes().n_layers;
    let record = Record {
        id: cell.id.clone(),
        error: None,
        threshold: calibrated.spec.threshold(),
        calibration: calibrated.trace,
        note: calibrated.note,
        kv_fill: quality.kv_fill,
        layers_per_token: match decoded.len() {
            0 => n_layers as f64,
            n => decoded.iter().sum::<usize>() as f64 / n as f64,
        },
        bound_speedup: quality.ledger.bound_speedup().unwrap_or(1.0),
        peak_kv_bytes: quality.peak_kv_bytes,
        blocks,
    };
    Ok((record, quality.samples))
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

struct Quality {
    samples: Vec<Sample>,
    ledger: Ledger,
    peak_kv_bytes: u64,
    kv_fill: String,
}

fn quality(
    loaded: &Loaded,
    cell: &Cell,
    task: &TaskData,
    spec: &StrategySpec,
    prompts: &[Vec<u32>],
) -> anyhow::Result<Quality> {
    let engine = Engine::new(loaded.model.as_ref());
    let options = Options {
        max_new_tokens: task.max_new_tokens,
        eos_ids: loaded.tokenizer.eos_ids().to_vec(),
    };
    let mut strategy = spec.build(engine.model().sizes().n_layers)?;
    let mut quality = Quality {
        samples: Vec::with_capacity(prompts.len()),
        ledger: Ledger::default(),
        peak_kv_bytes: 0,
        kv_fill: strategy.needs().kv_fill.to_string(),
    };
    for (ids, batch) in task
        .ids
        .chunks(cell.batch_size)
        .zip(prompts.chunks(cell.batch_size))
    {
        let sample = |row: usize| Sample {
            cell: cell.id.clone(),
            id: ids[row].clone(),
            prompt_tokens: batch[row].len(),
            tokens: Vec::new(),
            text: String::new(),
            layers: Vec::new(),
            error: None,
        };
        match engine.generate(batch, strategy.as_mut(), &options) {
            Ok(generation) => {
                quality.ledger.add(generation.ledger);
                quality.peak_kv_bytes = quality.peak_kv_bytes.max(generation.peak_kv_bytes);
                for (row, output) in generation.rows.into_iter().enumerate() {
                    quality.samples.push(Sample {
                        text: loaded.tokenizer.decode(&output.tokens)?.trim().to_owned(),
                        tokens: output.tokens,
                        layers: output.layers,
                        ..sample(row)
                    });
                }
            }
            // The prompts stay in every mean as failures: an empty answer scores nothing.
            Err(error) => quality.samples.extend((0..batch.len()).map(|row| Sample {
                error: Some(error.to_string()),
                ..sample(row)
            })),
        }
    }
    Ok(quality)
}

fn timing(
    engine: Engine<'_>,
    cell: &Cell,
    spec: &StrategySpec,
    prompts: &[Vec<u32>],
    experiment: &Experiment,
) -> anyhow::Result<Vec<BlockRecord>> {
    let timing = &experiment.timing;
    if timing.batches == 0 {
        return Ok(Vec::new());
    }
    // Whole batches only: a short one would mix batch sizes. Prompts are used again where there are too few.
    let mut cycle = prompts.iter().cycle();
    let batches: Vec<Vec<Vec<u32>>> = (0..timing.batches)
        .map(|_| cycle.by_ref().take(cell.batch_size).cloned().collect())
        .collect();
    let plan = TimingPlan {
        batches,
        new_tokens: timing.new_tokens,
        repeats: timing.repeats,
        warm_up: timing.warm_up,
        seed: experiment.seed,
    };
    let blocks = measure(engine, spec, &plan)?;
    Ok(blocks
        .into_iter()
        .map(|block| BlockRecord {
            batch: block.batch,
            rows: plan.batches[block.batch].len(),
            prompt_tokens: plan.batches[block.batch].iter().map(Vec::len).sum(),
            full: times(&block.full),
            strategy: times(&block.strategy),
        })
        .collect())
}

/// Times to the tenth of a microsecond, finer than any clock here can tell.
fn times(generation: &Generation) -> Times {
    let round = |seconds: f64| (seconds * 1e7).round() / 1e7;
    Times {
        prefill_s: round(generation.prefill_s),
        step_s: generation.step_s.iter().map(|&s| round(s)).collect(),
    }
}
