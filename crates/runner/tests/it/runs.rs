//! Folders of runs as `skipbench run` leaves them, made without a model.

use serde_json::json;
use skipbench_engine::Block;
use skipbench_machine::Machine;
use skipbench_record::{
    Answer, Binary, Folder, Identity, Made, ModelRecord, PlannedCell, Prompt, Quality, Record,
    RunInfo, Score, Search, TaskRecord, Timing, VERSION, Written,
};
use skipbench_strategy::StrategySpec;
use std::path::Path;

/// A run to be written.
#[derive(Clone)]
pub(crate) struct FakeRun {
    /// Prompts with their references.
    pub(crate) texts: Vec<(String, String)>,
    pub(crate) cells: Vec<FakeCell>,
}

/// A cell with the text of each answer.
#[derive(Clone)]
pub(crate) struct FakeCell {
    pub(crate) record: Record,
    pub(crate) answers: Vec<String>,
}

impl FakeRun {
    /// Cells whose answers are the references, without times.
    pub(crate) fn of(texts: Vec<(String, String)>, strategies: &[&str]) -> Self {
        let answers: Vec<String> = texts
            .iter()
            .map(|(_, reference)| reference.clone())
            .collect();
        let cell = |strategy: &&str| FakeCell {
            record: record(strategy, &texts),
            answers: answers.clone(),
        };
        Self {
            cells: strategies.iter().map(cell).collect(),
            texts,
        }
    }

    pub(crate) fn cell(&mut self, strategy: &str) -> &mut FakeCell {
        let mut cells = self.cells.iter_mut();
        cells
            .find(|cell| cell.record.strategy.label == strategy)
            .unwrap()
    }

    /// Gives every cell such blocks.
    pub(crate) fn timed(mut self, blocks: impl Fn(&str) -> Vec<Block>) -> Self {
        for cell in &mut self.cells {
            cell.record.time(blocks(&cell.record.strategy.label));
        }
        self
    }

    /// The same with every record changed.
    pub(crate) fn with(mut self, change: impl Fn(&mut Record)) -> Self {
        for cell in &mut self.cells {
            change(&mut cell.record);
        }
        self
    }

    /// Writes it to a folder.
    pub(crate) fn write(&self, dir: &Path) {
        let first = &self.cells[0].record;
        let planned = self
            .cells
            .iter()
            .map(|FakeCell { record, .. }| PlannedCell {
                id: record.id.clone(),
                place: 0,
                content: record.content.clone(),
                name: record.name(),
                model: record.model.name.clone(),
                task: record.task.name.clone(),
                metrics: record.task.metrics.clone(),
            });
        let info = RunInfo {
            version: VERSION,
            name: "fake".to_owned(),
            title: "A run that was never run".to_owned(),
            notes: Vec::new(),
            seed: 1,
            written: Written::default(),
            experiment: json!({"name": "fake"}),
            models: vec![first.model.clone()],
            tasks: vec![first.task.clone()],
            cells: planned.collect(),
            paper: None,
        };
        let mut folder = Folder::open(dir, &info).unwrap();
        let prompts: Vec<Prompt> = std::iter::zip(&self.texts, 0..)
            .map(|((prompt, reference), index)| Prompt {
                task: first.task.texts.clone(),
                id: format!("p{index}"),
                prompt: prompt.clone(),
                messages: None,
                references: vec![reference.clone()],
                choices: Vec::new(),
                right: None,
            })
            .collect();
        folder.add_prompts(&prompts).unwrap();
        for FakeCell { record, answers } in &self.cells {
            let answers = match &record.quality {
                Some(_) => std::iter::zip(answers, &prompts)
                    .map(|(text, prompt)| answer(record, prompt, text))
                    .collect(),
                None => Vec::new(),
            };
            folder.append(record, &answers).unwrap();
        }
    }
}

fn answer(record: &Record, prompt: &Prompt, text: &str) -> Answer {
    Answer {
        cell: record.id.clone(),
        id: prompt.id.clone(),
        prompt_tokens: 3,
        tokens: vec![1, 2],
        text: text.to_owned(),
        layers: vec![16.0, 8.0],
        end: None,
        error: None,
        evidence: Default::default(),
    }
}

/// What tests change of a record.
pub(crate) trait Change {
    /// Renews its ids after a change of what it depends on.
    fn renew(&mut self);
    fn time(&mut self, blocks: Vec<Block>);
    fn fail(&mut self, reason: &str);
}

impl Change for Record {
    fn renew(&mut self) {
        self.id = self.answers_from.id();
        self.content = self.id.clone();
    }

    fn time(&mut self, blocks: Vec<Block>) {
        self.times_from = Some(Identity::default());
        self.timing = Some(Timing {
            id: "times".to_owned(),
            blocks,
            new_tokens: 64,
            notes: Vec::new(),
            peak_memory_bytes: None,
            peak_gpu_bytes: None,
            made: self.made.clone(),
        });
    }

    fn fail(&mut self, reason: &str) {
        self.failure = Some(reason.to_owned());
        self.quality = None;
        self.timing = None;
    }
}

/// The record of a cell without times, whose answers are all right.
pub(crate) fn record(strategy: &str, texts: &[(String, String)]) -> Record {
    let spec: StrategySpec = strategy.parse().unwrap();
    let texts_digest = format!("texts {}", Identity::default().with("texts", texts).id());
    let answers_from = Identity::default()
        .with("binary", "0123456789abcdef")
        .with("task texts", &texts_digest)
        .with("strategy", &spec)
        .with("max-new-tokens", 64);
    let mut record = Record {
        version: VERSION,
        id: String::new(),
        content: String::new(),
        answers_from,
        times_from: None,
        experiment: "fake".to_owned(),
        model: ModelRecord {
            name: "adapted".to_owned(),
            n_layers: 16,
            weights: "a1".repeat(32),
            tokenizer: "b2".repeat(32),
            config: "c3".repeat(32),
            dtype: "f32".to_owned(),
            kv_dtype: None,
            device: "cpu".to_owned(),
        },
        task: TaskRecord {
            name: "translation".to_owned(),
            texts: texts_digest,
            prompts: texts.len(),
            prompts_available: None,
            max_new_tokens: 64,
            metrics: vec!["bleu".to_owned()],
            metric_settings: Default::default(),
            scoring: None,
        },
        strategy: (&spec).into(),
        search: Search {
            batch_size: 1,
            beams: 1,
            length_penalty: 1.0,
            no_repeat_ngram: 0,
        },
        executed: None,
        quality: Some(Quality {
            answers: texts.len(),
            ..Quality::default()
        }),
        timing: None,
        notes: Vec::new(),
        failure: None,
        made: Made {
            at: "2026-11-26T12:00:00Z".to_owned(),
            machine: machine(2),
            binary: Binary {
                version: "0.1.0".to_owned(),
                commit: Some("0123456789ab".to_owned()),
                features: Vec::new(),
                digest: "0123456789abcdef".to_owned(),
            },
        },
    };
    record.renew();
    record
}

/// A score that a run recorded.
pub(crate) fn score(metric: &str, by_prompt: Vec<f64>) -> Score {
    Score {
        metric: metric.to_owned(),
        score: by_prompt.iter().sum::<f64>() / by_prompt.len() as f64,
        lo: 0.0,
        hi: 1.0,
        by_prompt,
    }
}

pub(crate) fn machine(threads: usize) -> Machine {
    serde_json::from_value(json!({
        "host": "bench-1",
        "cpu": "Some Processor",
        "cores": 2,
        "threads": threads,
        "instruction_set": "avx2+fma",
        "memory_bytes": 8_u64 << 30,
        "os": "Linux",
    }))
    .unwrap()
}

/// A block of 64 tokens.
pub(crate) fn block(batch: usize, pass: usize, full_s: f64, strategy_s: f64) -> Block {
    let times = |seconds: f64| json!({"prefill_s": 0.01, "step_s": [seconds]});
    serde_json::from_value(json!({
        "batch": batch,
        "pass": pass,
        "rows": 1,
        "prompt_tokens": 20 + batch,
        "decoded_tokens": 64,
        "bytes": 1,
        "full_bytes": 2,
        "full": times(full_s),
        "strategy": times(strategy_s),
    }))
    .unwrap()
}

/// Sentences of made-up words, each prompt different.
pub(crate) fn texts(count: usize) -> Vec<(String, String)> {
    const WORDS: [&str; 24] = [
        "der", "Hund", "sieht", "einen", "roten", "Vogel", "am", "Fluss", "und", "die", "alte",
        "Frau", "liest", "ein", "Buch", "im", "Garten", "wenn", "es", "kalt", "ist", "bald", "nie",
        "dort",
    ];
    // Steps without a common factor with the number of words.
    let sentence = |index: usize| -> String {
        let length = 6 + index % 7;
        let word = |at: usize| WORDS[(index * 7 + at * (5 + 2 * (index % 4))) % WORDS.len()];
        (0..length).map(word).collect::<Vec<_>>().join(" ")
    };
    (0..count)
        .map(|index| (format!("{index}: say it in German"), sentence(index)))
        .collect()
}
