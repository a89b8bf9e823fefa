//! A small run, made by hand and written as a run writes its folder.

use serde_json::json;
use skipbench_engine::{Block, Cost, DraftTally, Ledger, Spent, Times};
use skipbench_machine::{Energy, Gpu, Machine};
use skipbench_record::{
    Answer, Binary, Executed, Folder, Identity, KvAuditRecord, Made, ModelRecord, PlannedCell,
    Prompt, Quality, Record, Run, RunInfo, Search, StrategyRecord, TaskRecord, Timing, VERSION,
    Written,
};
use std::path::Path;

const SOURCES: [(&str, &str); 4] = [
    ("p0", "the cat sat on the mat today"),
    ("p1", "a small dog runs over the green hill"),
    ("p2", "we read the same old book again tonight"),
    ("p3", "birds fly south when the winter comes near"),
];

/// The right answers with the first `spoilt` words of the first `wrong` of them replaced.
pub(crate) fn answers(wrong: usize, spoilt: usize) -> Vec<String> {
    let spoil = |(index, (_, text)): (usize, &(&str, &str))| {
        let words = text.split(' ').enumerate();
        let word = |(at, word)| {
            if index < wrong && at < spoilt {
                "wrong"
            } else {
                word
            }
        };
        words.map(word).collect::<Vec<&str>>().join(" ")
    };
    SOURCES.iter().enumerate().map(spoil).collect()
}

pub(crate) fn machine(threads: usize) -> Machine {
    Machine {
        host: "abacus".to_owned(),
        cpu: "Abacus 3000".to_owned(),
        cores: 4,
        threads,
        instruction_set: "avx2+fma".to_owned(),
        memory_bytes: 8 << 30,
        os: "Linux".to_owned(),
        gpu: None,
    }
}

pub(crate) fn gpu() -> Machine {
    Machine {
        gpu: Some(Gpu {
            name: "Abacus GPU".to_owned(),
            driver: "1.2".to_owned(),
            memory_bytes: 16 << 30,
        }),
        ..machine(2)
    }
}

fn made(machine: &Machine, at: &str) -> Made {
    Made {
        at: at.to_owned(),
        machine: machine.clone(),
        binary: Binary {
            version: "0.1.0".to_owned(),
            commit: Some("0123456789ab".to_owned()),
            features: Vec::new(),
            digest: "fedcba9876543210".to_owned(),
        },
    }
}

/// A record with its answers.
pub(crate) struct Cell {
    pub(crate) record: Record,
    pub(crate) answers: Vec<Answer>,
}

/// A cell of a strategy that takes `1 / speedup` of the full network's time and layers.
pub(crate) fn cell(label: &str, target: Option<f64>, batch_size: usize, texts: &[String]) -> Cell {
    let speedup = target.unwrap_or(1.0);
    let name = label.split(['@', ':']).next().unwrap_or(label);
    let series = label.split('@').next().unwrap_or(label);
    let answers_from = Identity::default()
        .with("strategy", label)
        .with("batch size", batch_size);
    let id = answers_from.id();
    let answers = SOURCES.iter().zip(texts).map(|((prompt, _), text)| Answer {
        cell: id.clone(),
        id: (*prompt).to_owned(),
        prompt_tokens: 5,
        tokens: text.bytes().map(u32::from).collect(),
        text: text.clone(),
        layers: vec![16.0 / speedup; 8],
        end: None,
        error: None,
        evidence: Default::default(),
    });
    let record = Record {
        version: VERSION,
        content: id.clone(),
        id: id.clone(),
        answers_from,
        times_from: Some(Identity::default().with("threads", 2)),
        experiment: "by-hand".to_owned(),
        model: ModelRecord {
            name: "tiny".to_owned(),
            n_layers: 16,
            weights: "ab".repeat(32),
            tokenizer: "cd".repeat(32),
            config: "ef".repeat(32),
            dtype: "f32".to_owned(),
            kv_dtype: None,
            device: "cpu".to_owned(),
        },
        task: TaskRecord {
            name: "copying".to_owned(),
            texts: "01".repeat(32),
            prompts: SOURCES.len(),
            prompts_available: Some(50),
            max_new_tokens: 16,
            metrics: vec!["bleu".to_owned(), "rougeL".to_owned()],
            metric_settings: Default::default(),
            scoring: None,
        },
        strategy: StrategyRecord {
            spec: json!({ name: {} }),
            name: name.to_owned(),
            variant: series
                .split_once(':')
                .map(|(_, variant)| variant.to_owned()),
            label: label.to_owned(),
            series: series.to_owned(),
            target_speedup: target,
            is_full: name == "full",
            is_oracle: name.starts_with("oracle"),
            is_lossless: name == "self-speculative",
            band: (name == "random").then(|| "random@2".to_owned()),
        },
        search: Search {
            batch_size,
            beams: 1,
            length_penalty: 1.0,
            no_repeat_ngram: 0,
        },
        executed: Some(Executed {
            spec: json!({ name: {} }),
            label: format!("{label} {{as: run}}"),
            threshold: None,
            kv_fill: "none".to_owned(),
            calibration: Default::default(),
        }),
        quality: Some(quality(speedup)),
        timing: Some(timing(speedup, batch_size)),
        notes: Vec::new(),
        failure: None,
        made: made(&machine(2), "2026-01-02T03:04:05Z"),
    };
    Cell {
        record,
        answers: answers.collect(),
    }
}

fn quality(speedup: f64) -> Quality {
    let cost = |bytes: f64| Cost {
        bytes: (bytes * 28.0) as u64,
        flops: (bytes * 14.0) as u64,
    };
    let mut ledger = Ledger::default();
    ledger.layers = cost(18e6 / speedup);
    ledger.kv_read = cost(2e6 / speedup);
    ledger.head = cost(5e6);
    ledger.full = cost(25e6);
    ledger.row_layers = 448;
    Quality {
        answers: SOURCES.len(),
        failed: 0,
        decoded_tokens: 28,
        layers_per_token: Some(16.0 / speedup),
        ledger,
        kv_audit: None,
        check_audit: None,
        drafts: None,
        peak_kv_bytes: 4096,
        scores: Vec::new(),
    }
}

fn timing(speedup: f64, batch_size: usize) -> Timing {
    let times = |share: f64| Times {
        prefill_s: 0.004,
        step_s: vec![0.002 * share, 0.002 * share, 0.003 * share, 0.001 * share],
        draft_s: 0.0,
        spent: Spent {
            layers_s: 0.005 * share,
            head_s: 0.001 * share,
            checks_s: 0.0005 * share,
            kv_fill_s: 0.0003 * share,
            rows_s: 0.0004 * share,
        },
        energy: Energy::default(),
    };
    // Three batches, each with its own noise; the geometric mean of the ratios is the speedup.
    let block = |batch: usize| Block {
        batch,
        pass: 0,
        strategy_first: false,
        rows: batch_size,
        prompt_tokens: 5 * batch_size,
        decoded_tokens: 4 * batch_size,
        bytes: (18e6 / speedup) as u64,
        extra_bytes: 1_000_000,
        full_bytes: 18_000_000,
        full: times(1.0),
        strategy: times([0.96, 1.0, 1.0 / 0.96][batch] / speedup),
    };
    Timing {
        id: "times".to_owned(),
        blocks: (0..3).map(block).collect(),
        new_tokens: 5,
        peak_memory_bytes: Some(300 << 20),
        peak_gpu_bytes: None,
        notes: Vec::new(),
        made: made(&machine(2), "2026-01-03T03:04:05Z"),
    }
}

impl Cell {
    pub(crate) fn untimed(mut self) -> Self {
        (self.record.timing, self.record.times_from) = (None, None);
        self
    }

    /// The same cell, on another machine.
    pub(crate) fn on(mut self, machine: &Machine) -> Self {
        let record = &mut self.record;
        record.answers_from = record.answers_from.clone().with("machine", machine);
        record.id = record.answers_from.id();
        record.times_from = Some(Identity::default().with("machine", machine));
        record.made.machine = machine.clone();
        if let Some(timing) = &mut record.timing {
            timing.made.machine = machine.clone();
            timing.id = machine.to_string();
        }
        for answer in &mut self.answers {
            answer.cell.clone_from(&record.id);
        }
        self
    }

    pub(crate) fn failed(mut self, reason: &str) -> Self {
        self.record.failure = Some(reason.to_owned());
        (self.record.executed, self.record.quality) = (None, None);
        self.answers.clear();
        self.untimed()
    }

    /// As a strategy with all there is to measure: drafts, exit checks, made-up keys, energy.
    pub(crate) fn with_everything(mut self) -> Self {
        if let Some(quality) = &mut self.record.quality {
            quality.drafts = Some(DraftTally {
                verified: 10,
                drafted: 30,
                accepted: 18,
                draft_s: 0.001,
            });
            quality.kv_audit = Some(KvAuditRecord {
                approximate_reads: 56,
                masked_reads: 28,
                distance: Some(0.25),
                ..KvAuditRecord::default()
            });
            quality.ledger.checks = Cost {
                bytes: 28_000_000,
                flops: 28_000_000,
            };
            quality.ledger.verify = quality.ledger.checks;
            quality.ledger.wasted_row_layers = 112;
        }
        let blocks = self
            .record
            .timing
            .iter_mut()
            .flat_map(|timing| &mut timing.blocks);
        for block in blocks {
            block.strategy.draft_s = 0.25 * block.strategy.decode_s();
            block.strategy.energy.processor_j =
                Some(0.5 * (block.rows + block.decoded_tokens) as f64);
        }
        self
    }
}

pub(crate) fn info(name: &str, cells: &[Cell]) -> RunInfo {
    RunInfo {
        version: VERSION,
        name: name.to_owned(),
        title: "Rows <made> by hand & typed".to_owned(),
        notes: vec!["<script>alert(1)</script>".to_owned()],
        seed: 1,
        written: Written::default(),
        experiment: json!({ "name": name }),
        models: Vec::new(),
        tasks: Vec::new(),
        cells: planned(cells),
        paper: None,
    }
}

pub(crate) fn planned(cells: &[Cell]) -> Vec<PlannedCell> {
    let mut planned: Vec<PlannedCell> = Vec::new();
    for cell in cells {
        let record = &cell.record;
        if planned.iter().all(|other| other.content != record.content) {
            planned.push(PlannedCell {
                id: record.id.clone(),
                place: planned.len(),
                content: record.content.clone(),
                name: record.name(),
                model: record.model.name.clone(),
                task: record.task.name.clone(),
                metrics: record.task.metrics.clone(),
            });
        }
    }
    planned
}

/// Writes the folder of a run as a run does.
pub(crate) fn write(dir: &Path, info: &RunInfo, cells: &[Cell]) {
    let mut folder = Folder::open(dir, info).unwrap();
    let prompt = |(id, text): &(&str, &str)| Prompt {
        task: "01".repeat(32),
        id: (*id).to_owned(),
        prompt: format!("Copy: {text}"),
        messages: None,
        references: vec![(*text).to_owned()],
        choices: Vec::new(),
        right: None,
    };
    folder
        .add_prompts(&SOURCES.iter().map(prompt).collect::<Vec<_>>())
        .unwrap();
    for cell in cells {
        folder.append(&cell.record, &cell.answers).unwrap();
    }
}

/// The run of these cells, from a folder of its own.
pub(crate) fn run(cells: &[Cell]) -> (tempfile::TempDir, [Run; 1]) {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), &info("by-hand", cells), cells);
    let run = Run::read(dir.path()).unwrap();
    assert_eq!(run.warnings, [""; 0]);
    (dir, [run])
}

/// The full network and two strategies at two speedups and two batch sizes; one with a note, one with everything, one that
/// failed.
pub(crate) fn cells() -> Vec<Cell> {
    let mut cells = Vec::new();
    for batch_size in [1, 8] {
        cells.push(cell("full", None, batch_size, &answers(1, 2)));
        for (speedup, wrong) in [(2.0, 2), (3.0, 4)] {
            let label = |name: &str| format!("{name}@{speedup}");
            let target = Some(speedup);
            cells.push(cell(
                &label("unified"),
                target,
                batch_size,
                &answers(wrong, 3),
            ));
            cells.push(cell(
                &label("early-exit:cosine"),
                target,
                batch_size,
                &answers(wrong, 6),
            ));
        }
    }
    cells[2] = cell("early-exit:cosine@2", Some(2.0), 1, &answers(2, 6)).with_everything();
    cells[3]
        .record
        .notes
        .push("reaches 1.4x at most | on this text".to_owned());
    cells[9] = cell("early-exit:cosine@3", Some(3.0), 8, &answers(4, 6))
        .failed("out of memory:\n  8 rows");
    cells
}
