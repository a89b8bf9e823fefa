//! The quality pass: answers to the natural end of sequence, and what they cost.

use super::{CellRun, beam, natural_end};
use crate::task::Given;
use anyhow::{Context, bail};
use skipbench_engine::{
    CheckAudit, DraftTally, EngineError, Generation, KvAudit, Ledger, Options, RowOutput,
};
use skipbench_metrics::{Evidence, Hypotheses, References, evaluate};
use skipbench_model::HoleReads;
use skipbench_record::{Answer, KvAuditRecord, Quality, Score};
use skipbench_strategy::{KvFill, StrategySpec};

/// The answers of a quality pass and what they cost.
#[derive(Default)]
pub(super) struct Pass {
    pub(super) answers: Vec<Answer>,
    ledger: Ledger,
    hole_reads: HoleReads,
    audit: KvAudit,
    checks: CheckAudit,
    drafts: DraftTally,
    peak_kv_bytes: u64,
    pub(super) kv_fill: String,
    /// Nothing was generated: every token was scored.
    is_given: bool,
}

impl Pass {
    /// One over text that is given.
    pub(super) fn of_given() -> Self {
        Self {
            is_given: true,
            ..Self::default()
        }
    }

    /// Adds what a batch cost; its rows.
    fn take(&mut self, generation: Generation) -> Vec<Result<RowOutput, EngineError>> {
        self.ledger.add(&generation.ledger);
        self.hole_reads.approximate += generation.hole_reads.approximate;
        self.hole_reads.masked += generation.hole_reads.masked;
        self.drafts.add(&generation.drafts);
        self.checks.add(&generation.checks);
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
    pub(super) fn failures(&self) -> anyhow::Result<Option<String>> {
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

    pub(super) fn record(&self, scores: Vec<Score>) -> Quality {
        // The first token of an answer comes from the prefill. Of text that is given, every token is scored and none is decoded.
        let first = usize::from(!self.is_given);
        let ran = self
            .answers
            .iter()
            .flat_map(|answer| answer.layers.iter().skip(first));
        let tokens = ran.clone().count();
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
            decoded_tokens: if self.is_given { 0 } else { tokens },
            layers_per_token: (tokens > 0).then(|| ran.sum::<f64>() / tokens as f64),
            ledger: self.ledger,
            kv_audit: (audit != KvAuditRecord::default()).then_some(audit),
            check_audit: (self.checks.checks > 0).then_some(self.checks),
            drafts: (self.drafts.verified > 0).then_some(self.drafts),
            peak_kv_bytes: self.peak_kv_bytes,
            scores,
        }
    }
}

/// Prompts whose KV cache is compared with that of a full-depth replay.
const AUDITED: usize = 16;

impl CellRun<'_> {
    pub(super) fn quality(self, spec: &StrategySpec, prompts: &[Vec<u32>]) -> anyhow::Result<Pass> {
        let n_layers = self.engine().model().sizes().n_layers;
        if let Some(menu) = spec.menu(n_layers) {
            return self.least_depth(&menu, prompts);
        }
        match &self.task().given {
            Given::Questions(questions) => self.questions(spec, questions),
            Given::Texts(texts, windows) => self.texts(spec, texts, *windows),
            Given::Nothing => {
                let mut pass = self.answers(spec, prompts)?;
                if self.task().asks_for_distance() {
                    self.measure_distance(spec, prompts, &mut pass)?;
                }
                Ok(pass)
            }
        }
    }

    fn answers(self, spec: &StrategySpec, prompts: &[Vec<u32>]) -> anyhow::Result<Pass> {
        let (engine, cell, task) = (self.engine(), self.cell, self.task());
        let n_layers = engine.model().sizes().n_layers;
        let mut options = Options {
            beam: beam(cell, &self.plan.experiment),
            no_repeat_ngram: self.plan.experiment.no_repeat_ngram,
            ..natural_end(&self.loaded.tokenizer, task)?
        };
        if self.plan.models[cell.model].is_shape {
            // Nothing ends its answers.
            let timed = self.plan.experiment.timing.new_tokens;
            options.max_new_tokens = options.max_new_tokens.min(timed);
        }
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
                let text = self.loaded.tokenizer.decode(&output.tokens)?;
                let text = options.stop.as_ref().map_or(&*text, |stop| stop.cut(&text));
                pass.answers.push(Answer {
                    cell: cell.id.clone(),
                    id: id.clone(),
                    prompt_tokens: prompt.len(),
                    text: match task.samples {
                        // Code begins with its indentation.
                        Some(_) => text.to_owned(),
                        None => text.trim().to_owned(),
                    },
                    end: failed.is_none().then_some(output.end),
                    tokens: output.tokens,
                    layers: output.layers,
                    evidence: Evidence::default(),
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
            let answer = Hypotheses::new([&pass.answers[index]]);
            let reference = References::of([task.right_of(index)]);
            let score = evaluate(metric, &answer, &reference)?.score();
            Ok(match metric.higher_is_better() {
                true => score,
                false => -score,
            })
        };
        let full = passes.last().context("a menu holds the full network")?;
        let mut picked = Pass {
            kv_fill: full.kv_fill.clone(),
            is_given: full.is_given,
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
