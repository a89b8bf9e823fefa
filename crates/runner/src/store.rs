//! What a run has finished: JSON lines, each written in one piece, so that a cut-off loses at most the cell it was in.

use anyhow::{Context, bail};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use skipbench_engine::{Block, Cost, DraftTally, Ledger};
use skipbench_strategy::{Scoring, StrategySpec};
use std::collections::BTreeMap;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

/// The result of one cell. Raw times are kept beside what is derived from them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// The cell.
    pub id: String,
    /// Threshold that the strategy ran with, where it has one.
    #[serde(default)]
    pub threshold: Option<f64>,
    /// The strategy as it ran, everything found on calibration text included.
    pub executed: StrategySpec,
    /// What calibration set and measured, as `threshold: layers`; empty where nothing was tried.
    #[serde(default)]
    pub calibration_of: String,
    /// What it tried, in order.
    #[serde(default)]
    pub calibration: Vec<(f64, f64)>,
    /// What a reader of the table must know.
    #[serde(default)]
    pub note: Option<String>,
    /// How skipped positions were filled.
    pub kv_fill: String,
    /// Mean layers run for a decoded token (the first token of an answer, from the prefill, left out).
    pub layers_per_token: f64,
    /// Speedup that the bytes read allow.
    pub bound_speedup: f64,
    /// Tokens that the decode steps of the quality pass generated.
    pub decoded_tokens: usize,
    /// What they cost.
    pub ledger: LedgerRecord,
    /// Keys and values read that were made up, over all queries and layers.
    pub approximate_reads: u64,
    /// Positions that a query should have seen and did not, over all queries and layers.
    pub masked_reads: u64,
    /// How far the made-up keys and values are from a full-depth replay: mean relative L2 distance over the first prompts.
    #[serde(default)]
    pub kv_distance: Option<f64>,
    /// Their mean cosine to the replay's.
    #[serde(default)]
    pub kv_cosine: Option<f64>,
    /// Largest relative L2 distance of what was computed at a later step; exact up to rounding.
    #[serde(default)]
    pub kv_deferred_distance: Option<f64>,
    /// What became of drafts, where the strategy makes some.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub drafts: Option<DraftRecord>,
    /// Answers that belong to it.
    pub answers: usize,
    /// Largest KV cache of a batch.
    pub peak_kv_bytes: u64,
    /// Timed blocks, full network and strategy back to back.
    #[serde(default)]
    pub blocks: Vec<Block>,
}

/// How many drafted tokens stood in the quality pass.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DraftRecord {
    /// Verifications, one for each row that takes part.
    pub verified: u64,
    /// Tokens drafted.
    pub drafted: u64,
    /// Of these, the ones that stood.
    pub accepted: u64,
}

impl DraftRecord {
    /// `None` where nothing was verified.
    pub fn of(tally: &DraftTally) -> Option<Self> {
        (tally.verified > 0).then_some(Self {
            verified: tally.verified,
            drafted: tally.drafted,
            accepted: tally.accepted,
        })
    }
}

/// What decoding cost by what it did; (bytes, floating-point operations) each.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LedgerRecord {
    /// Weights of the layers.
    pub layers: (u64, u64),
    /// Keys and values read, and attention over them.
    pub kv_read: (u64, u64),
    /// The LM head, for tokens.
    pub head: (u64, u64),
    /// The LM head, for exit checks.
    pub checks: (u64, u64),
    /// Keys and values made up for skipped layers.
    pub kv_fill: (u64, u64),
    /// Of all that, drafting.
    pub draft: (u64, u64),
    /// Of all that, verifying drafts.
    pub verify: (u64, u64),
    /// The full network, for the same tokens.
    pub full: (u64, u64),
    /// (token, layer) pairs that ran.
    pub row_layers: u64,
    /// Of these, the ones of rows that were done and waited.
    pub wasted_row_layers: u64,
}

impl From<&Ledger> for LedgerRecord {
    fn from(ledger: &Ledger) -> Self {
        let pair = |cost: Cost| (cost.bytes, cost.flops);
        Self {
            layers: pair(ledger.layers),
            kv_read: pair(ledger.kv_read),
            head: pair(ledger.head),
            checks: pair(ledger.checks),
            kv_fill: pair(ledger.kv_fill),
            draft: pair(ledger.draft),
            verify: pair(ledger.verify),
            full: pair(ledger.full),
            row_layers: ledger.row_layers,
            wasted_row_layers: ledger.wasted_row_layers,
        }
    }
}

impl LedgerRecord {
    /// Bytes and floating-point operations of the strategy.
    pub fn total(&self) -> (u64, u64) {
        let parts = [
            self.layers,
            self.kv_read,
            self.head,
            self.checks,
            self.kv_fill,
        ];
        parts
            .iter()
            .fold((0, 0), |sum, part| (sum.0 + part.0, sum.1 + part.1))
    }
}

/// One answer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Sample {
    /// The cell.
    pub cell: String,
    /// The prompt.
    pub id: String,
    /// Length of the prompt.
    pub prompt_tokens: usize,
    /// Generated ids, without the prompt.
    pub tokens: Vec<u32>,
    /// Their text.
    pub text: String,
    /// Layers run for each, half a layer for a sub-layer.
    #[serde(serialize_with = "layer_counts")]
    pub layers: Vec<f64>,
    /// Why there is no answer, where there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// Whole numbers of layers as integers: most are.
pub(crate) fn layer_counts<S: serde::Serializer>(
    layers: &[f64],
    out: S,
) -> Result<S::Ok, S::Error> {
    out.collect_seq(layers.iter().map(|&layers| match layers.fract() == 0.0 {
        true => serde_json::Value::from(layers as u64),
        false => serde_json::Value::from(layers),
    }))
}

/// Orders of layers that were found by scoring them, kept beside the results so that no text is scored twice.
#[derive(Debug, Default)]
pub(crate) struct ScoreCache {
    file: Option<File>,
    orders: Vec<ScoredOrder>,
}

#[derive(Debug, Serialize, Deserialize)]
struct ScoredOrder {
    /// Hash of the model and the calibration text.
    key: String,
    scoring: serde_json::Value,
    order: Vec<usize>,
}

impl ScoreCache {
    /// The cache in the folder of a run.
    ///
    /// # Errors
    /// A folder that cannot be written, or lines that are not ours.
    pub(crate) fn open(dir: &Path) -> anyhow::Result<Self> {
        let (file, orders) = open_lines(&dir.join("scores.jsonl"), |_| true)?;
        Ok(Self {
            file: Some(file),
            orders,
        })
    }

    pub(crate) fn get(&self, key: &str, scoring: Scoring) -> Option<&[usize]> {
        let scoring = serde_json::to_value(scoring).ok()?;
        let found = self
            .orders
            .iter()
            .find(|found| found.key == key && found.scoring == scoring)?;
        Some(&found.order)
    }

    pub(crate) fn insert(
        &mut self,
        key: &str,
        scoring: Scoring,
        order: &[usize],
    ) -> anyhow::Result<()> {
        let scored = ScoredOrder {
            key: key.to_owned(),
            scoring: serde_json::to_value(scoring)?,
            order: order.to_vec(),
        };
        if let Some(file) = &mut self.file {
            let mut line = serde_json::to_vec(&scored)?;
            line.push(b'\n');
            file.write_all(&line).context("scores.jsonl")?;
        }
        self.orders.push(scored);
        Ok(())
    }
}

/// The folder of a run.
#[derive(Debug)]
pub struct Store {
    /// Held as long as the store is, so that two runs do not write to one folder.
    _lock: File,
    cells: File,
    samples: File,
    /// Finished cells by id.
    pub records: BTreeMap<String, Record>,
    /// Their answers, by cell and in order.
    pub answers: BTreeMap<String, Vec<Sample>>,
}

impl Store {
    /// Opens the folder, keeping what is finished: a line that was cut off is dropped, and so are the answers of a
    /// cell that did not come to its record.
    ///
    /// # Errors
    /// A folder that cannot be written or that another run is writing to, or lines that are not ours.
    pub fn open(dir: &Path) -> anyhow::Result<Self> {
        std::fs::create_dir_all(dir)
            .with_context(|| format!("cannot write to {}", dir.display()))?;
        let lock = lock(dir)?;
        let (cells, records) = open_lines::<Record>(&dir.join("cells.jsonl"), |_| true)?;
        let mut records: BTreeMap<String, Record> = records
            .into_iter()
            .map(|record| (record.id.clone(), record))
            .collect();
        let path = dir.join("samples.jsonl");
        let (_, answers) = open_lines::<Sample>(&path, |_| true)?;
        let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
        for sample in &answers {
            *counts.entry(&sample.cell).or_default() += 1;
        }
        // A cell that has lost answers is run again.
        records.retain(|id, record| counts.get(id.as_str()) == Some(&record.answers));
        let finished = |sample: &Sample| records.contains_key(&sample.cell);
        let (samples, answers) = open_lines::<Sample>(&path, finished)?;
        let mut by_cell: BTreeMap<String, Vec<Sample>> = BTreeMap::new();
        for sample in answers {
            by_cell.entry(sample.cell.clone()).or_default().push(sample);
        }
        Ok(Self {
            _lock: lock,
            cells,
            samples,
            records,
            answers: by_cell,
        })
    }

    /// Adds a cell: its answers first, then the record that makes it finished.
    ///
    /// # Errors
    /// The disk is full or gone.
    pub fn append(&mut self, record: Record, samples: Vec<Sample>) -> anyhow::Result<()> {
        let mut lines = Vec::new();
        for sample in &samples {
            serde_json::to_writer(&mut lines, sample)?;
            lines.push(b'\n');
        }
        self.samples.write_all(&lines).context("samples.jsonl")?;
        self.samples.sync_data().context("samples.jsonl")?;
        let mut line = serde_json::to_vec(&record)?;
        line.push(b'\n');
        self.cells.write_all(&line).context("cells.jsonl")?;
        self.cells.sync_data().context("cells.jsonl")?;
        self.answers.insert(record.id.clone(), samples);
        self.records.insert(record.id.clone(), record);
        Ok(())
    }
}

/// Takes the folder; a run that was killed holds it no longer.
fn lock(dir: &Path) -> anyhow::Result<File> {
    let failed = || format!("cannot write to {}", dir.display());
    let file = OpenOptions::new()
        .append(true)
        .create(true)
        .open(dir.join(".lock"))
        .with_context(failed)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => bail!(
            "another skipbench is writing to {}; wait for it, or give --out",
            dir.display()
        ),
        Err(TryLockError::Error(error)) => Err(error).with_context(failed),
    }
}

/// Opens a file of JSON lines for appending, after reading what it holds; lines that are not to be kept leave it.
fn open_lines<T: DeserializeOwned>(
    path: &Path,
    keep: impl Fn(&T) -> bool,
) -> anyhow::Result<(File, Vec<T>)> {
    let failed = || format!("cannot write {}", path.display());
    let text = match std::fs::read(path) {
        Ok(bytes) => {
            String::from_utf8(bytes).with_context(|| format!("{} is not UTF-8", path.display()))?
        }
        Err(error) if error.kind() == ErrorKind::NotFound => String::new(),
        Err(error) => return Err(error).with_context(failed),
    };
    let whole = text.rfind('\n').map_or(0, |end| end + 1);
    let mut kept = String::new();
    let mut values = Vec::new();
    for (index, line) in text[..whole].lines().enumerate() {
        let value = serde_json::from_str(line).with_context(|| {
            format!(
                "{}: line {} is not a record of this version; use another output folder or move this one away",
                path.display(),
                index + 1
            )
        })?;
        if keep(&value) {
            kept.push_str(line);
            kept.push('\n');
            values.push(value);
        }
    }
    if kept != text {
        write_whole(path, &kept)?;
    }
    let file = OpenOptions::new()
        .append(true)
        .create(true)
        .open(path)
        .with_context(failed)?;
    Ok((file, values))
}

/// Writes `text` whole or not at all.
///
/// # Errors
/// A folder that cannot be written.
pub fn write_whole(path: &Path, text: &str) -> anyhow::Result<()> {
    let temporary: PathBuf = path.with_extension("tmp");
    std::fs::write(&temporary, text).with_context(|| format!("cannot write {}", path.display()))?;
    std::fs::rename(&temporary, path).with_context(|| format!("cannot write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(id: &str) -> Record {
        Record {
            id: id.to_owned(),
            threshold: None,
            executed: StrategySpec::full(),
            calibration_of: String::new(),
            calibration: Vec::new(),
            note: None,
            kv_fill: "none".to_owned(),
            layers_per_token: 4.0,
            bound_speedup: 1.0,
            decoded_tokens: 0,
            ledger: LedgerRecord::default(),
            approximate_reads: 0,
            masked_reads: 0,
            kv_distance: None,
            kv_cosine: None,
            kv_deferred_distance: None,
            drafts: None,
            answers: 1,
            peak_kv_bytes: 0,
            blocks: Vec::new(),
        }
    }

    fn sample(cell: &str) -> Sample {
        Sample {
            cell: cell.to_owned(),
            id: "0".to_owned(),
            prompt_tokens: 1,
            tokens: vec![1],
            text: "a".to_owned(),
            layers: vec![4.0],
            error: None,
        }
    }

    #[test]
    fn a_cut_off_line_is_dropped_and_the_rest_kept() {
        let dir = tempfile::tempdir().unwrap();
        let mut store = Store::open(dir.path()).unwrap();
        store.append(record("a"), vec![sample("a")]).unwrap();
        store.append(record("b"), vec![sample("b")]).unwrap();
        drop(store);
        let path = dir.path().join("cells.jsonl");
        let bytes = std::fs::read(&path).unwrap();
        std::fs::write(&path, &bytes[..bytes.len() - 5]).unwrap();
        let mut store = Store::open(dir.path()).unwrap();
        assert_eq!(store.records.keys().collect::<Vec<_>>(), ["a"]);
        store.append(record("b"), vec![sample("b")]).unwrap();
        drop(store);
        assert_eq!(Store::open(dir.path()).unwrap().records.len(), 2);
    }

    #[test]
    fn a_folder_takes_one_run_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        let first = Store::open(dir.path()).unwrap();
        let error = Store::open(dir.path()).unwrap_err().to_string();
        assert!(error.contains("another skipbench is writing"), "{error}");
        drop(first);
        assert!(Store::open(dir.path()).is_ok());
    }

    #[test]
    fn a_record_without_its_answers_is_not_finished() {
        let dir = tempfile::tempdir().unwrap();
        let mut store = Store::open(dir.path()).unwrap();
        store.append(record("a"), vec![sample("a")]).unwrap();
        store.append(record("b"), vec![sample("b")]).unwrap();
        drop(store);
        let path = dir.path().join("samples.jsonl");
        let text = std::fs::read_to_string(&path).unwrap();
        std::fs::write(&path, text.lines().next().unwrap().to_owned() + "\n").unwrap();
        let store = Store::open(dir.path()).unwrap();
        assert_eq!(store.records.keys().collect::<Vec<_>>(), ["a"]);
    }
}
