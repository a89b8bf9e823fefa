//! Everything that there is to know of a row, in one table. A new figure is one entry of [`COLUMNS`].

use crate::fields::{achieved, mebibytes, percent, short};
use crate::row::Row;
use crate::scores::Scored;
use skipbench_engine::Ledger;

/// A column: of `results.csv` and `results.parquet` always, of the tables for people where it says so.
#[derive(Debug, Clone, Copy)]
pub struct Column {
    /// Its name; `{metric}` stands for the name of each metric.
    pub name: &'static str,
    /// Its unit; empty for names, counts and scores.
    pub unit: &'static str,
    /// What it is. Stands in `docs/columns.md`, and below each table that shows it.
    pub doc: &'static str,
    /// How to get it.
    pub get: Get,
    /// In the table of scores and speeds.
    pub(crate) main: Option<Shown>,
    /// In the table of costs.
    pub(crate) cost: Option<Shown>,
}

/// How to get a value, by its type; `None` where there is none, never a stand-in.
#[derive(Debug, Clone, Copy)]
pub enum Get {
    /// Words.
    Text(fn(&Row<'_>) -> Option<String>),
    /// A whole number.
    Count(fn(&Row<'_>) -> Option<u64>),
    /// A number.
    Number(fn(&Row<'_>) -> Option<f64>),
    /// A number of each metric; such an entry is as many columns as there are metrics.
    Score(fn(&Scored) -> Option<f64>),
}

/// How a table shows a column.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Shown {
    /// Its heading; `{metric}` as in its name.
    pub(crate) header: &'static str,
    pub(crate) format: Format,
    pub(crate) when: When,
}

/// When a table shows a column that has something to show.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum When {
    Always,
    /// Not all rows have the same.
    Varied,
    /// A row shows more than `0%`.
    AboveZero,
}

#[derive(Debug, Clone, Copy)]
pub(crate) enum Format {
    /// As it is.
    Plain,
    /// `1.50x`
    Ratio,
    /// With so many decimals.
    Fixed(usize),
    /// With three digits that count: costs of models differ by orders of magnitude.
    Significant,
    /// A share as `50%`.
    Percent,
    /// Its own.
    Cell(fn(&Row<'_>) -> Option<String>),
    /// A score, with its interval where it is of the main metric.
    Score,
}

const fn column(name: &'static str, unit: &'static str, get: Get, doc: &'static str) -> Column {
    Column {
        name,
        unit,
        doc,
        get,
        main: None,
        cost: None,
    }
}

const fn text(name: &'static str, of: fn(&Row<'_>) -> Option<String>, doc: &'static str) -> Column {
    column(name, "", Get::Text(of), doc)
}

const fn count(
    name: &'static str,
    unit: &'static str,
    of: fn(&Row<'_>) -> Option<u64>,
    doc: &'static str,
) -> Column {
    column(name, unit, Get::Count(of), doc)
}

const fn number(
    name: &'static str,
    unit: &'static str,
    of: fn(&Row<'_>) -> Option<f64>,
    doc: &'static str,
) -> Column {
    column(name, unit, Get::Number(of), doc)
}

const fn score(name: &'static str, of: fn(&Scored) -> Option<f64>, doc: &'static str) -> Column {
    column(name, "", Get::Score(of), doc)
}

impl Column {
    const fn main(self, header: &'static str, format: Format) -> Self {
        let main = Some(Shown::new(header, format));
        Self { main, ..self }
    }

    const fn cost(self, header: &'static str, format: Format) -> Self {
        let cost = Some(Shown::new(header, format));
        Self { cost, ..self }
    }

    /// In the table of scores and speeds, where it is above zero in a row.
    const fn main_above_zero(self, header: &'static str, format: Format) -> Self {
        let main = Some(Shown {
            when: When::AboveZero,
            ..Shown::new(header, format)
        });
        Self { main, ..self }
    }

    /// In both tables, where rows differ in it.
    const fn where_varied(self, header: &'static str, format: Format) -> Self {
        let shown = Some(Shown {
            when: When::Varied,
            ..Shown::new(header, format)
        });
        Self {
            main: shown,
            cost: shown,
            ..self
        }
    }
}

impl Shown {
    const fn new(header: &'static str, format: Format) -> Self {
        Self {
            header,
            format,
            when: When::Always,
        }
    }
}

/// Stands for the name of a metric.
pub(crate) const METRIC: &str = "{metric}";

/// Every column, in order.
#[rustfmt::skip]
pub const COLUMNS: &[Column] = &[
    text("experiment", |row| Some(row.record.experiment.clone()), "name of the experiment"),
    text("model", |row| Some(row.record.model.name.clone()), "name of the model"),
    text("task", |row| Some(row.record.task.name.clone()), "name of the task"),
    text("strategy", |row| Some(row.record.strategy.name.clone()), "name of the strategy"),
    text("variant", |row| row.record.strategy.variant.clone(), "variant of the strategy"),
    text("label", |row| Some(row.label()), "short form of the strategy, as it was asked for")
        .main("strategy", Format::Cell(|row| Some(row.name())))
        .cost("strategy", Format::Cell(|row| Some(row.name()))),
    text("run", |row| Some(row.run.clone()), "run that the row is from")
        .where_varied("run", Format::Plain),
    text(
        "machine",
        |row| Some(row.machine_name.clone()),
        "machine that timed it, or made its answers where nothing was timed; in the tables its number in the head",
    )
    .where_varied("machine", Format::Cell(|row| Some(row.machine.to_string()))),
    count("batch_size", "rows", |row| Some(row.record.search.batch_size as u64), "rows of a batch"),
    count("beams", "", |row| Some(row.record.search.beams as u64), "beams of the search; 1 is greedy"),
    number("target_speedup", "x", |row| row.target(), "speedup that was asked for")
        .main("target", Format::Cell(|row| Some(format!("{}x", row.target()?)))),
    text(
        "executed",
        |row| Some(row.record.executed.as_ref()?.label.clone()),
        "short form of the strategy as it ran, with what calibration found",
    ),
    number(
        "threshold",
        "",
        |row| row.record.executed.as_ref()?.threshold,
        "exit threshold that it ran with, where it has one",
    ),
    text(
        "kv_fill",
        |row| Some(row.record.executed.as_ref()?.kv_fill.clone()),
        "how skipped positions of the KV cache were filled",
    ),
    count("n_layers", "layers", |row| Some(row.record.model.n_layers as u64), "layers of the model"),
    number(
        "layers_per_token",
        "layers",
        |row| row.quality()?.layers_per_token,
        "mean layers run for a decoded token, or for a scored one where text is given",
    )
    .main("layers/token", Format::Fixed(1)),
    number(
        "bound_speedup",
        "x",
        |row| row.bound(),
        "speedup that the bytes read allow; weights that fit in a cache can beat it",
    )
    .main("bound", Format::Ratio)
    .cost("bound", Format::Ratio),
    number(
        "achieved_speedup",
        "x",
        |row| row.achieved(),
        "decode time of the full network over that of the strategy, interleaved, fixed length: geometric mean over the \
         batches with its 95% interval (Student's t on their log ratios; none of a single batch); the row of the full \
         network times it against itself and shows the noise",
    )
    .main("achieved [95%]", Format::Cell(achieved))
    .cost("achieved", Format::Ratio),
    number("achieved_lo", "x", |row| Some(row.interval()?.0), "low end of the 95% interval of `achieved_speedup`"),
    number("achieved_hi", "x", |row| Some(row.interval()?.1), "high end of it"),
    number(
        "target_error",
        "",
        |row| Some(row.achieved()? / row.target()? - 1.0),
        "`achieved_speedup` over `target_speedup`, minus 1",
    ),
    number("ttft_ms", "ms", |row| Some(row.ttft()?.mean_ms), "mean time to the first token of every row of a batch (TTFT)"),
    number("ttft_p50_ms", "ms", |row| Some(row.ttft()?.p50_ms), "median of it"),
    number("ttft_p95_ms", "ms", |row| Some(row.ttft()?.p95_ms), "95th percentile of it"),
    number("ttft_p99_ms", "ms", |row| Some(row.ttft()?.p99_ms), "99th percentile of it"),
    number("tpot_ms", "ms", |row| Some(row.tpot()?.mean_ms), "mean time of a token: every row of a batch gets one (TPOT)"),
    number("tpot_p50_ms", "ms", |row| Some(row.tpot()?.p50_ms), "median of it"),
    number("tpot_p95_ms", "ms", |row| Some(row.tpot()?.p95_ms), "95th percentile of it"),
    number("tpot_p99_ms", "ms", |row| Some(row.tpot()?.p99_ms), "99th percentile of it"),
    number(
        "tokens_per_s",
        "tokens/s",
        |row| row.tokens_per_s(),
        "decoded tokens over decode time, of the row's own blocks, timed at its own moment; compare speeds by \
         the achieved speedup",
    )
    .main("tokens/s", Format::Fixed(0)),
    number(
        "paper_tokens_per_s",
        "tokens/s",
        |row| row.paper_tokens_per_s(),
        "prompt and generated tokens over the whole time, the count of arXiv 2404.06954",
    ),
    score(METRIC, |score| Some(score.score), "score of all answers as one corpus, the main metric first and with its 95% bootstrap interval")
        .main(METRIC, Format::Score),
    score("{metric}_lo", |score| Some(score.lo), "low end of the 95% bootstrap interval of the score"),
    score("{metric}_hi", |score| Some(score.hi), "high end of it"),
    score(
        "{metric}_se",
        |score| score.standard_error,
        "standard error of the score: its standard deviation over the bootstrap's resamples of prompts, none of a single prompt",
    ),
    score(
        "{metric}_p",
        |score| score.p_value,
        "p-value of the difference from the full network: McNemar's exact test where answers are right or wrong, paired \
         approximate randomisation otherwise, Holm-corrected over the strategies of the table",
    ),
    text(
        "scoring",
        |row| Some(row.record.task.scoring.as_ref()?.mode.name().to_owned()),
        "which layers a token of given text had behind it: `as-decoded`, those that would have run had it been generated, or \
         `one-pass`, the strategy's at every position; empty where nothing was scored",
    ),
    text(
        "signatures",
        |row| {
            let signatures = row.scores.iter().map(|score| format!("{} {}", score.metric, score.signature));
            Some(signatures.collect::<Vec<_>>().join("; ")).filter(|all| !all.is_empty())
        },
        "everything that each score depends on, in sacrebleu's form",
    ),
    number("same_as_full", "share", |row| row.same_as_full, "answers that are the full network's, token for token, or the same choice")
        // Rounded down: 100% is all of them.
        .main("same", Format::Cell(|row| Some(format!("{}%", (100.0 * row.same_as_full? + 1e-9) as u32)))),
    number(
        "truncated",
        "share",
        |row| row.truncated,
        "answers that ran into the most tokens that they may have, and were cut there",
    )
    .main_above_zero("cut", Format::Percent),
    number(
        "repetition",
        "share",
        |row| row.repetition,
        "4-grams of tokens that stood in the same answer before, mean over the answers (seq-rep-4 of arXiv 1908.04319)",
    )
    .main_above_zero("repeats", Format::Percent),
    count("n_prompts", "prompts", |row| Some(row.quality()?.answers as u64), "prompts that were asked, failed ones included"),
    count("n_failed", "prompts", |row| Some(row.quality()?.failed as u64), "prompts that failed; they count as empty answers"),
    count(
        "n_available",
        "prompts",
        |row| Some(row.record.task.prompts_available.unwrap_or(row.record.task.prompts) as u64),
        "prompts that the task has",
    ),
    number("mbytes_per_token", "MB", |row| row.mbytes(Ledger::total), "bytes read for a decoded token")
        .cost("MB", Format::Significant),
    number(
        "mflops_per_token",
        "MFLOP",
        |row| row.per_token(|quality| quality.ledger.total().flops as f64 / 1e6),
        "floating-point operations for a decoded token",
    )
    .cost("MFLOP", Format::Significant),
    number("layers_mbytes", "MB", |row| row.mbytes(|l| l.layers), "of the bytes, those of layer weights (in the table: their share)")
        .cost("layers", Format::Cell(|row| row.share(|l| l.layers).map(percent))),
    number("kv_read_mbytes", "MB", |row| row.mbytes(|l| l.kv_read), "of the bytes, those of the KV cache (in the table: their share)")
        .cost("KV read", Format::Cell(|row| row.share(|l| l.kv_read).map(percent))),
    number("head_mbytes", "MB", |row| row.mbytes(|l| l.head), "of the bytes, those of the LM head for tokens (in the table: their share)")
        .cost("head", Format::Cell(|row| row.share(|l| l.head).map(percent))),
    number("checks_mbytes", "MB", |row| row.mbytes(|l| l.checks), "of the bytes, those of the LM head for exit checks (in the table: their share)")
        .cost("checks", Format::Cell(|row| row.share(|l| l.checks).map(percent))),
    number("kv_fill_mbytes", "MB", |row| row.mbytes(|l| l.kv_fill), "of the bytes, those of making up keys and values (in the table: their share)")
        .cost("KV fill", Format::Cell(|row| row.share(|l| l.kv_fill).map(percent))),
    number("checks_missed", "share", |row| row.checks(|audit| audit.missed), "of the exit checks of the first prompts, those at which a list of tokens keeps a token that the whole LM head lets go")
        .cost("missed", Format::Percent),
    number("checks_early", "share", |row| row.checks(|audit| audit.early), "of the exit checks of the first prompts, those at which a list of tokens lets a token go that the whole LM head keeps")
        .cost("early", Format::Percent),
    number("draft_mbytes", "MB", |row| row.mbytes(|l| l.draft), "of all bytes, those of drafting"),
    number("verify_mbytes", "MB", |row| row.mbytes(|l| l.verify), "of all bytes, those of verifying drafts (in the table: their share)")
        .cost("verify", Format::Cell(|row| row.share(|l| l.verify).map(percent))),
    number(
        "acceptance",
        "share",
        |row| {
            let drafts = row.quality()?.drafts?;
            Some(drafts.accepted as f64 / drafts.drafted.max(1) as f64)
        },
        "drafted tokens that stood",
    )
    .cost("accepted", Format::Percent),
    number(
        "tokens_per_verification",
        "tokens",
        |row| {
            let quality = row.quality()?;
            Some(quality.decoded_tokens as f64 / quality.drafts?.verified.max(1) as f64)
        },
        "tokens that a row gets from one verification, on average",
    ),
    number("draft_time", "share", |row| row.draft_time(), "decode time that drafting took"),
    number("checks_time", "share", |row| row.time_of(|spent| spent.checks_s), "decode time that exit checks took")
        .cost("checks time", Format::Cell(|row| row.time_of(|spent| spent.checks_s).filter(|&share| share > 0.0).map(percent))),
    number("kv_fill_time", "share", |row| row.time_of(|spent| spent.kv_fill_s), "decode time that making up keys and values took")
        .cost("fill time", Format::Cell(|row| row.time_of(|spent| spent.kv_fill_s).filter(|&share| share > 0.0).map(percent))),
    number("rows_time", "share", |row| row.time_of(|spent| spent.rows_s), "decode time of embedding, gathering and scattering the rows of a step")
        .cost("rows time", Format::Percent),
    number(
        "products_time",
        "share",
        |row| row.products_time(),
        "decode time of layers and LM head beyond what their bytes explain, were all of the full network's time explained by its own; below zero where a cache serves them faster",
    )
    .cost("products time", Format::Percent),
    number(
        "unexplained",
        "share",
        |row| row.unexplained(),
        "decode time that nothing accounts for: neither the bytes of layers and LM head nor any of the parts that are timed apart; where parts were not timed, all that the bytes read do not explain",
    )
    .cost("unexplained", Format::Percent),
    number(
        "wasted_row_layers",
        "share",
        |row| row.wasted(),
        "layers that rows ran while they waited for others",
    )
    .cost("wasted", Format::Cell(|row| row.wasted().filter(|&share| share > 0.0).map(percent))),
    number("holes_read_per_token", "", |row| row.holes_read(), "keys and values read per decoded token, over all layers, that were made up or hidden")
        .cost("holes read", Format::Cell(|row| row.holes_read().filter(|&h| h > 0.0).map(|h| format!("{h:.0}")))),
    number(
        "kv_distance",
        "",
        |row| row.quality()?.kv_audit.as_ref()?.distance,
        "mean relative distance of the made-up keys and values from a full-depth replay",
    )
    .cost("KV error", Format::Fixed(2)),
    count("peak_kv_bytes", "bytes", |row| Some(row.quality()?.peak_kv_bytes), "largest KV cache of a batch"),
    count(
        "peak_memory_bytes",
        "bytes",
        |row| row.record.timing.as_ref()?.peak_memory_bytes,
        "largest resident memory of the process while the cell ran (in the table: MiB)",
    )
    .cost("memory", Format::Cell(|row| Some(mebibytes(row.record.timing.as_ref()?.peak_memory_bytes?)))),
    count(
        "peak_gpu_bytes",
        "bytes",
        |row| row.record.timing.as_ref()?.peak_gpu_bytes,
        "largest memory of the process on the GPU (in the table: MiB)",
    )
    .cost("GPU memory", Format::Cell(|row| Some(mebibytes(row.record.timing.as_ref()?.peak_gpu_bytes?)))),
    number(
        "joules_per_token",
        "J",
        |row| row.joules_per_token(),
        "energy of the processor, and of the GPU where one computes, for a generated token, prefill included; never estimated",
    )
    .cost("J/token", Format::Significant),
    text("failure", |row| row.record.failure.clone(), "why there is no result, where there is none"),
    text("note", |row| Some(row.notes.join("; ")).filter(|note| !note.is_empty()), "what a reader must know of the row"),
    count("threads", "", |row| Some(row.record.measured().machine.threads as u64), "threads that the kernels used"),
    text("instruction_set", |row| Some(row.record.measured().machine.instruction_set.clone()), "instruction set that the kernels used"),
    text("gpu", |row| Some(row.record.measured().machine.gpu.as_ref()?.name.clone()), "name of the GPU, where one computed"),
    text("dtype", |row| Some(row.record.model.dtype.clone()), "element type of the weights in memory"),
    text("kv_dtype", |row| row.record.model.kv_dtype.clone(), "element type of the KV cache, where it was chosen: else f32 on a CPU, and what is computed in on a GPU"),
    text("device", |row| Some(row.record.model.device.clone()), "`cpu` or `cuda`"),
    text("binary", |row| Some(row.record.measured().binary.version.clone()), "version of skipbench"),
    text("commit", |row| row.record.measured().binary.commit.clone(), "commit that it was built from"),
    text("measured_at", |row| Some(row.record.measured().at.clone()), "date and time of the timing, or of the answers where nothing was timed"),
    text("cell", |row| Some(row.record.id.clone()), "id of the cell, by which its answers and its record are found"),
    text("weights", |row| Some(short(&row.record.model.weights).to_owned()), "first digits of the SHA-256 of all weight files"),
];
