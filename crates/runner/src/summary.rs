//! From the records of a run to the rows of its table.

use crate::plan::{BAND, Cell, Plan};
use crate::store::{Record, Sample, Store};
use crate::task::TaskData;
use skipbench_engine::{Block, Times, speedup};
use skipbench_metrics::{Evaluation, Hypotheses, References, Resampling, evaluate, holm, paired};
use skipbench_report::{MetricValue, ResultRow, TokenCost};
use std::collections::BTreeMap;

/// The rows of every finished cell, in the order of the plan.
///
/// # Errors
/// A metric that refuses its input.
pub fn rows(plan: &Plan, store: &Store) -> anyhow::Result<Vec<ResultRow>> {
    let mut rows = Vec::new();
    let mut evaluations: Vec<Vec<Evaluation>> = Vec::new();
    let mut answers: Vec<(&Cell, &[Sample])> = Vec::new();
    let mut groups: BTreeMap<(usize, usize, usize, usize), Vec<usize>> = BTreeMap::new();
    for cell in &plan.cells {
        let (Some(record), Some(samples)) =
            (store.records.get(&cell.id), store.answers.get(&cell.id))
        else {
            continue;
        };
        let task = &plan.tasks[cell.task];
        let scores = scores(task, samples)?;
        groups
            .entry((cell.model, cell.task, cell.batch_size, cell.beams))
            .or_default()
            .push(rows.len());
        rows.push(row(plan, cell, record, samples, task, &scores));
        evaluations.push(scores);
        answers.push((cell, samples));
    }
    for members in groups.values() {
        mark_bands(&mut rows, &answers, members);
        mark_same(&mut rows, &answers, members);
        compare(plan.experiment.seed, &mut rows, &evaluations, members)?;
    }
    Ok(rows)
}

fn scores(task: &TaskData, samples: &[Sample]) -> anyhow::Result<Vec<Evaluation>> {
    let hypotheses = Hypotheses::new(samples.iter().map(|sample| sample.text.clone()));
    let references = References::single(task.references.iter().cloned())?;
    task.metrics
        .iter()
        .map(|metric| Ok(evaluate(metric, &hypotheses, &references)?))
        .collect()
}

fn resampling(seed: u64) -> Resampling {
    Resampling {
        seed,
        ..Resampling::default()
    }
}

/// Random sets that differ in their seed alone are shown as a band where there are enough of them.
fn mark_bands(rows: &mut [ResultRow], answers: &[(&Cell, &[Sample])], members: &[usize]) {
    let band = |index: usize| answers[index].0.strategy.band();
    for &index in members {
        let alike = members.iter().filter(|&&other| band(other) == band(index));
        rows[index].band = band(index)
            .filter(|_| alike.count() >= BAND)
            .map(|band| band.to_string());
    }
}

/// How many answers are the full network's, token for token; a strategy that promises all of them and does not give them
/// gets a note.
fn mark_same(rows: &mut [ResultRow], answers: &[(&Cell, &[Sample])], members: &[usize]) {
    let Some(full) = members
        .iter()
        .find(|&&index| rows[index].strategy == "full")
    else {
        return;
    };
    let (_, reference) = answers[*full];
    for &index in members {
        let (cell, samples) = answers[index];
        let all = samples.len();
        let pairs = samples.iter().zip(reference);
        let same = pairs.filter(|(sample, full)| sample.tokens == full.tokens);
        let same = same.count();
        rows[index].same_as_full = Some(same as f64 / all.max(1) as f64);
        if cell.strategy.draft().is_some() && same < all {
            let note = format!(
                "{} of {all} answers differ from the full network's: where two tokens are as likely to the last digits, a \
                 verification of several positions may round to the other one",
                all - same
            );
            let notes = rows[index].note.iter().cloned().chain([note]);
            rows[index].note = Some(notes.collect::<Vec<_>>().join("; "));
        }
    }
}

/// Paired tests of every strategy against the full network, corrected over the strategies of the group (Holm 1979).
fn compare(
    seed: u64,
    rows: &mut [ResultRow],
    evaluations: &[Vec<Evaluation>],
    members: &[usize],
) -> anyhow::Result<()> {
    let Some(&full) = members
        .iter()
        .find(|&&index| rows[index].strategy == "full")
    else {
        return Ok(());
    };
    let others: Vec<usize> = members
        .iter()
        .copied()
        .filter(|&index| index != full && rows[index].band.is_none())
        .collect();
    for (metric, baseline) in evaluations[full].iter().enumerate() {
        let p_values = others
            .iter()
            .map(|&index| paired(baseline, &evaluations[index][metric], &resampling(seed)))
            .collect::<Result<Vec<_>, _>>()?;
        let p_values: Vec<f64> = p_values.iter().map(|test| test.randomisation_p).collect();
        for (&index, p_value) in others.iter().zip(holm(&p_values)) {
            rows[index].metrics[metric].1.p_value = Some(p_value);
        }
    }
    Ok(())
}

fn row(
    plan: &Plan,
    cell: &Cell,
    record: &Record,
    samples: &[Sample],
    task: &TaskData,
    scores: &[Evaluation],
) -> ResultRow {
    let achieved = speedup(&record.blocks);
    let interval = achieved.and_then(|speedup| speedup.interval);
    let target = cell.strategy.target_speedup();
    let speed = Speed::of(&record.blocks);
    let decoded = record.decoded_tokens.max(1) as f64;
    let drafts = record.drafts.as_ref();
    ResultRow {
        experiment: plan.experiment.name.clone(),
        model: cell.model_name.clone(),
        task: cell.task_name.clone(),
        strategy: cell.strategy.name().to_owned(),
        variant: cell.strategy.variant().unwrap_or_default().to_owned(),
        label: cell.strategy.to_string(),
        executed: record.executed.to_string(),
        kv_fill: record.kv_fill.clone(),
        batch_size: cell.batch_size,
        beams: cell.beams,
        target_speedup: target,
        n_layers: plan.models[cell.model].n_layers,
        layers_per_token: record.layers_per_token,
        bound_speedup: record.bound_speedup,
        achieved_speedup: achieved.map(|speedup| speedup.ratio),
        achieved_lo: interval.map(|interval| interval.lo),
        achieved_hi: interval.map(|interval| interval.hi),
        target_error: achieved
            .zip(target)
            .map(|(speedup, target)| speedup.ratio / target - 1.0),
        ttft_ms: speed.map(|speed| speed.ttft_ms),
        tpot_ms: speed.map(|speed| speed.tpot_ms),
        tokens_per_s: speed.map(|speed| speed.tokens_per_s),
        paper_tokens_per_s: speed.map(|speed| speed.paper_tokens_per_s),
        cost: cost(record),
        unexplained: achieved
            .zip(timed_bound(&record.blocks))
            .map(|(speedup, bound)| 1.0 - speedup.ratio / bound),
        acceptance: drafts.map(|drafts| drafts.accepted as f64 / drafts.drafted.max(1) as f64),
        tokens_per_verification: drafts
            .map(|drafts| record.decoded_tokens as f64 / drafts.verified.max(1) as f64),
        draft_time: drafts.and(draft_time(&record.blocks)),
        same_as_full: None,
        wasted_row_layers: record.ledger.wasted_row_layers as f64
            / record.ledger.row_layers.max(1) as f64,
        holes_read_per_token: (record.approximate_reads + record.masked_reads) as f64 / decoded,
        kv_distance: record.kv_distance,
        band: None,
        peak_kv_bytes: record.peak_kv_bytes,
        n_prompts: samples.len(),
        n_failed: samples
            .iter()
            .filter(|sample| sample.error.is_some())
            .count(),
        metrics: task
            .metrics
            .iter()
            .zip(scores)
            .map(|(metric, score)| {
                let interval = score.interval(&resampling(plan.experiment.seed));
                let value = MetricValue {
                    score: score.score(),
                    lo: interval.lo,
                    hi: interval.hi,
                    p_value: None,
                    higher_is_better: metric.higher_is_better(),
                };
                (metric.to_string(), value)
            })
            .collect(),
        note: record.note.clone(),
    }
}

/// The speedup that the bytes of the timed blocks allow. Those go on behind the end of an answer, where a dynamic strategy
/// may behave in another way.
fn timed_bound(blocks: &[Block]) -> Option<f64> {
    let sum = |of: fn(&Block) -> u64| -> u64 { blocks.iter().map(of).sum() };
    let (full, strategy) = (sum(|block| block.full_bytes), sum(|block| block.bytes));
    (strategy > 0).then(|| full as f64 / strategy as f64)
}

/// Share of the decode time that drafting took.
fn draft_time(blocks: &[Block]) -> Option<f64> {
    let sum =
        |of: fn(&Times) -> f64| -> f64 { blocks.iter().map(|block| of(&block.strategy)).sum() };
    let all = sum(Times::decode_s);
    (all > 0.0).then(|| sum(|times| times.draft_s) / all)
}

fn cost(record: &Record) -> TokenCost {
    let ledger = &record.ledger;
    let per_token = |count: u64| count as f64 / record.decoded_tokens.max(1) as f64 / 1e6;
    let (bytes, flops) = ledger.total();
    TokenCost {
        mflops: per_token(flops),
        mbytes: per_token(bytes),
        layers_mbytes: per_token(ledger.layers.0),
        kv_read_mbytes: per_token(ledger.kv_read.0),
        head_mbytes: per_token(ledger.head.0),
        checks_mbytes: per_token(ledger.checks.0),
        kv_fill_mbytes: per_token(ledger.kv_fill.0),
        draft_mbytes: per_token(ledger.draft.0),
        verify_mbytes: per_token(ledger.verify.0),
    }
}

/// Speed of a strategy over its timed blocks.
#[derive(Clone, Copy)]
struct Speed {
    ttft_ms: f64,
    tpot_ms: f64,
    tokens_per_s: f64,
    paper_tokens_per_s: f64,
}

impl Speed {
    fn of(blocks: &[Block]) -> Option<Self> {
        let sum =
            |of: fn(&Times) -> f64| -> f64 { blocks.iter().map(|block| of(&block.strategy)).sum() };
        let count = |of: fn(&Block) -> usize| -> usize { blocks.iter().map(of).sum() };
        let decoded = count(|block| block.decoded_tokens);
        let (prefill_s, decode_s) = (sum(|times| times.prefill_s), sum(Times::decode_s));
        if decoded == 0 || decode_s <= 0.0 {
            return None;
        }
        // Seconds in which every row of a batch gets one token.
        let rows = count(|block| block.rows) as f64 / blocks.len() as f64;
        // The paper counts prompt and output over the whole time (README of its code).
        let all = count(|block| block.prompt_tokens + block.rows) + decoded;
        Some(Self {
            ttft_ms: 1e3 * prefill_s / blocks.len() as f64,
            tpot_ms: 1e3 * decode_s * rows / decoded as f64,
            tokens_per_s: decoded as f64 / decode_s,
            paper_tokens_per_s: all as f64 / (prefill_s + decode_s),
        })
    }
}
