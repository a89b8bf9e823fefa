//! A record with what is derived from it.

use crate::scores::Scored;
use skipbench_engine::{
    Block, CheckAudit, Cost, Latency, Ledger, Speedup, Spent, Times, energy_per_token,
};
use skipbench_record::{Quality, Record, Run, Scored as Given};

/// A record, and what is derived from it and from the records beside it.
#[derive(Debug, Clone)]
pub struct Row<'a> {
    /// The run that it is from.
    pub run: String,
    /// The record.
    pub record: &'a Record,
    /// The folder that holds its answers.
    pub(crate) source: &'a Run,
    /// Its place among all rows of the report.
    pub(crate) number: usize,
    /// Number of the machine among those of the report, from 1.
    pub machine: usize,
    /// That machine in words.
    pub machine_name: String,
    /// Which of the records of its cell it is, from 0: several machines may have measured the same cell.
    pub repeat: usize,
    /// Speedup over the full network; `None` where nothing was timed.
    pub speedup: Option<Speedup>,
    /// Scores, the main metric first.
    pub scores: Vec<Scored>,
    /// Share of the answers that are the full network's, token for token; `None` without the full network's.
    pub same_as_full: Option<f64>,
    /// Share of the answers that ran into the most tokens they may have; `None` without answers.
    pub truncated: Option<f64>,
    /// Mean share of an answer's 4-grams of tokens that stood in it before; `None` without answers.
    pub repetition: Option<f64>,
    /// The band that it is a set of, where there are enough sets for one.
    pub band: Option<&'a str>,
    /// For a row that stands for a whole band: how many sets it has. Its scores are then their medians.
    pub sets: Option<usize>,
    /// What a reader must know of it.
    pub notes: Vec<String>,
}

impl Row<'_> {
    /// The strategy as tables call it.
    pub fn label(&self) -> String {
        match (self.band, self.sets) {
            (Some(band), Some(sets)) => format!("{band} ({sets} sets)"),
            _ => self.record.strategy.label.clone(),
        }
    }

    /// Name of its model.
    pub(crate) fn model(&self) -> &str {
        &self.record.model.name
    }

    /// The label, with a word where there is no result.
    pub(crate) fn name(&self) -> String {
        match self.record.failure {
            Some(_) => format!("{} (failed)", self.label()),
            None => self.label(),
        }
    }

    /// What it is called in a page.
    pub(crate) fn id(&self) -> String {
        format!("r{}", self.number)
    }

    /// The score under a metric.
    pub fn score(&self, metric: &str) -> Option<&Scored> {
        self.scores.iter().find(|score| score.metric == metric)
    }

    /// What a table has rows of: model, task, batch size, beams.
    pub(crate) fn group(&self) -> (&str, &str, usize, usize) {
        let record = self.record;
        let (batch, beams) = (record.search.batch_size, record.search.beams);
        (&record.model.name, &record.task.name, batch, beams)
    }

    /// "batch 8, 4 beams" of its group.
    pub(crate) fn setting(&self) -> String {
        match (self.record.search.batch_size, self.record.search.beams) {
            (batch, 1) => format!("batch {batch}"),
            (batch, beams) => format!("batch {batch}, {beams} beams"),
        }
    }

    /// What was given to be scored, where no answer was generated.
    pub(crate) fn given(&self) -> Option<Given> {
        let scoring = self.record.task.scoring.as_ref();
        scoring
            .map(|scoring| scoring.of)
            .filter(|&of| of != Given::Answers)
    }

    pub(crate) fn is_full(&self) -> bool {
        self.record.strategy.is_full
    }

    pub(crate) fn target(&self) -> Option<f64> {
        self.record.strategy.target_speedup
    }

    pub(crate) fn quality(&self) -> Option<&Quality> {
        self.record.quality.as_ref()
    }

    fn blocks(&self) -> &[Block] {
        let timing = self.record.timing.as_ref();
        timing.map_or(&[], |timing| &timing.blocks)
    }

    /// Sum over the timed blocks of the strategy; `None` where nothing was timed.
    fn timed(&self, of: impl Fn(&Times) -> f64) -> Option<f64> {
        let blocks = self.blocks();
        (!blocks.is_empty()).then(|| blocks.iter().map(|block| of(&block.strategy)).sum())
    }

    fn count(&self, of: impl Fn(&Block) -> usize) -> f64 {
        self.blocks().iter().map(of).sum::<usize>() as f64
    }

    /// What the quality pass took for a decoded token; `None` where nothing was decoded.
    pub(crate) fn per_token(&self, of: impl Fn(&Quality) -> f64) -> Option<f64> {
        let quality = self.quality()?;
        let tokens = quality.decoded_tokens;
        (tokens > 0).then(|| of(quality) / tokens as f64)
    }

    /// Millions of bytes read for a decoded token.
    pub(crate) fn mbytes(&self, of: impl Fn(&Ledger) -> Cost) -> Option<f64> {
        self.per_token(|quality| of(&quality.ledger).bytes as f64 / 1e6)
    }

    /// The share of a part in all bytes read, where there is any.
    pub(crate) fn share(&self, of: impl Fn(&Ledger) -> Cost) -> Option<f64> {
        let share = self.mbytes(of)? / self.mbytes(Ledger::total)?;
        (share > 0.0).then_some(share)
    }

    /// Share of the (token, layer) pairs that ran for rows which waited for others.
    pub(crate) fn wasted(&self) -> Option<f64> {
        let ledger = &self.quality()?.ledger;
        let share = ledger.wasted_row_layers as f64 / ledger.row_layers as f64;
        (ledger.row_layers > 0).then_some(share)
    }

    /// Made-up and hidden keys and values read for a decoded token.
    pub(crate) fn holes_read(&self) -> Option<f64> {
        self.per_token(|quality| {
            let audit = quality.kv_audit.as_ref();
            audit.map_or(0, |audit| audit.approximate_reads + audit.masked_reads) as f64
        })
    }

    pub(crate) fn bound(&self) -> Option<f64> {
        self.quality()?.ledger.bound_speedup()
    }

    pub(crate) fn achieved(&self) -> Option<f64> {
        self.speedup.map(|speedup| speedup.ratio)
    }

    /// Low and high end of the 95% interval of the speedup.
    pub(crate) fn interval(&self) -> Option<(f64, f64)> {
        let interval = self.speedup?.interval?;
        Some((interval.lo, interval.hi))
    }

    /// Share of the decode time of the timing pass that nothing accounts for. Where the parts of a step were timed, that is what
    /// none of them took; elsewhere it is all that the bytes do not explain.
    pub(crate) fn unexplained(&self) -> Option<f64> {
        match self.time_of(Spent::total_s) {
            Some(parts) => Some(1.0 - parts),
            None => self.beyond_bytes(),
        }
    }

    /// Share of the decode time of the timing pass that the bytes read there do not explain. That pass goes on behind the
    /// end of an answer, where a dynamic strategy may behave in another way, so it has a bound of its own.
    pub(crate) fn beyond_bytes(&self) -> Option<f64> {
        Some(1.0 - self.achieved()? * self.bytes_of(|block| block.bytes)?)
    }

    /// Share of the decode time of a part of the steps, where parts were timed.
    pub(crate) fn time_of(&self, part: fn(&Spent) -> f64) -> Option<f64> {
        let spent = |of: fn(&Spent) -> f64| -> f64 {
            let blocks = self.blocks().iter();
            blocks.map(|block| of(&block.strategy.spent)).sum()
        };
        let seconds = self.timed(Times::decode_s).filter(|&s| s > 0.0)?;
        (spent(Spent::total_s) > 0.0).then(|| spent(part) / seconds)
    }

    /// Share of the decode time that products of layers and LM head took beyond what their bytes explain, were all of the full
    /// network's time explained by its own; below zero where a cache serves them faster.
    pub(crate) fn products_time(&self) -> Option<f64> {
        let products = self.time_of(|spent| spent.layers_s + spent.head_s)?;
        let bytes = self.bytes_of(|block| block.bytes - block.extra_bytes)?;
        Some(products - bytes * self.achieved()?)
    }

    /// Bytes of the timing pass over those of the full network.
    fn bytes_of(&self, of: fn(&Block) -> u64) -> Option<f64> {
        let sum = |of: fn(&Block) -> u64| self.blocks().iter().map(of).sum::<u64>() as f64;
        let full = sum(|block| block.full_bytes);
        (full > 0.0 && sum(|block| block.bytes) > 0.0).then(|| sum(of) / full)
    }

    /// A share of the checks that were audited.
    pub(crate) fn checks(&self, of: fn(&CheckAudit) -> u64) -> Option<f64> {
        let audit = self.quality()?.check_audit.as_ref()?;
        Some(of(audit) as f64 / audit.checks.max(1) as f64)
    }

    /// Decoded tokens over decode time.
    pub(crate) fn tokens_per_s(&self) -> Option<f64> {
        let seconds = self.timed(Times::decode_s).filter(|&s| s > 0.0)?;
        Some(self.count(|block| block.decoded_tokens) / seconds)
    }

    /// Prompt and generated tokens over the whole time, as in the code of arXiv 2404.06954.
    pub(crate) fn paper_tokens_per_s(&self) -> Option<f64> {
        paper_rate(self.blocks().iter(), |block| &block.strategy)
    }

    pub(crate) fn ttft(&self) -> Option<Latency> {
        Latency::ttft(self.blocks())
    }

    pub(crate) fn tpot(&self) -> Option<Latency> {
        Latency::tpot(self.blocks())
    }

    /// Energy of the processor, and of the GPU where one computes, for a generated token.
    pub(crate) fn joules_per_token(&self) -> Option<f64> {
        let energy = energy_per_token(self.blocks());
        match self.record.measured().machine.gpu {
            Some(_) => Some(energy.processor_j.unwrap_or(0.0) + energy.gpu_j?),
            None => energy.processor_j,
        }
    }

    /// Share of the decode time that drafting took.
    pub(crate) fn draft_time(&self) -> Option<f64> {
        self.quality()?.drafts?;
        let seconds = self.timed(Times::decode_s).filter(|&s| s > 0.0)?;
        Some(self.timed(|times| times.draft_s)? / seconds)
    }
}

/// Prompt and generated tokens of some blocks over the whole time of one of their two sides, tokens/s; `None` without any.
pub(crate) fn paper_rate<'b>(
    blocks: impl Iterator<Item = &'b Block>,
    side: impl Fn(&Block) -> &Times,
) -> Option<f64> {
    let (mut tokens, mut seconds) = (0, 0.0);
    for block in blocks {
        tokens += block.prompt_tokens + block.rows + block.decoded_tokens;
        seconds += side(block).prefill_s + side(block).decode_s();
    }
    (seconds > 0.0).then(|| tokens as f64 / seconds)
}

/// The full network first, then by target, within one in the order of the experiment, and oracles at the end; one row for
/// each band.
pub(crate) fn sorted<'a>(rows: &[Row<'a>]) -> Vec<Row<'a>> {
    let mut sorted = crate::scores::collapsed(rows);
    sorted.sort_by(|a, b| {
        let key = |row: &Row<'_>| (!row.is_full(), row.record.strategy.is_oracle);
        let target = |row: &Row<'_>| row.target().unwrap_or(0.0);
        key(a).cmp(&key(b)).then(target(a).total_cmp(&target(b)))
    });
    sorted
}
