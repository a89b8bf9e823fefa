//! Hostile text: every score, sentence score, signature and score line is sacrebleu's or rouge_score's.
//!
//! `SKIPBENCH_GOLDEN=FILE` checks another file that `scripts/metrics/make_goldens.py` wrote.

use serde::Deserialize;
use skipbench_metrics::{
    Bleu, Chrf, Hypotheses, Metric, References, Rouge, RougeKind, Smoothing, Ter, evaluate,
};
use std::io::Read;
use std::path::PathBuf;

#[derive(Deserialize)]
struct Golden {
    corpora: Vec<Corpus>,
}

#[derive(Deserialize)]
struct Corpus {
    hypotheses: Vec<String>,
    references: Vec<Vec<String>>,
    results: Vec<Expected>,
}

#[derive(Deserialize)]
struct Expected {
    setting: Setting,
    score: f64,
    segments: Vec<f64>,
    signature: Option<String>,
    line: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Setting {
    metric: String,
    tokenize: Option<String>,
    lowercase: bool,
    smooth: Option<String>,
    value: Option<f64>,
    effective: bool,
    char_order: Option<usize>,
    word_order: usize,
    beta: Option<u32>,
    whitespace: bool,
    eps: bool,
    normalized: bool,
    no_punct: bool,
    asian: bool,
    case_sensitive: bool,
    stemmer: bool,
}

impl Setting {
    fn metric(&self) -> Metric {
        match self.metric.parse().unwrap() {
            Metric::Bleu(_) => Metric::Bleu(Bleu {
                tokenizer: self.tokenize.as_deref().unwrap_or("13a").parse().unwrap(),
                smoothing: match self.smooth.as_deref() {
                    Some("floor") => Smoothing::Floor(self.value.unwrap_or(0.1)),
                    Some("add-k") => Smoothing::AddK(self.value.unwrap_or(1.0)),
                    Some("none") => Smoothing::None,
                    _ => Smoothing::Exp,
                },
                lowercase: self.lowercase,
                effective_order: self.effective,
                ..Bleu::default()
            }),
            Metric::Chrf(_) => Metric::Chrf(Chrf {
                char_order: self.char_order.unwrap_or(6),
                word_order: self.word_order,
                beta: self.beta.unwrap_or(2),
                lowercase: self.lowercase,
                whitespace: self.whitespace,
                eps_smoothing: self.eps,
            }),
            Metric::Ter(_) => Metric::Ter(Ter {
                normalized: self.normalized,
                no_punct: self.no_punct,
                asian_support: self.asian,
                case_sensitive: self.case_sensitive,
            }),
            Metric::Rouge(Rouge { kind, .. }) => Metric::Rouge(Rouge {
                kind,
                stemmer: self.stemmer,
            }),
            other => panic!("{other} is checked elsewhere"),
        }
    }
}

fn golden() -> Golden {
    let path = std::env::var_os("SKIPBENCH_GOLDEN").map_or_else(
        || {
            PathBuf::from(concat!(
                env!("CARGO_MANIFEST_DIR"),
                "/tests/golden/hostile.json.gz"
            ))
        },
        PathBuf::from,
    );
    let mut text = String::new();
    flate2::read::GzDecoder::new(std::fs::File::open(path).unwrap())
        .read_to_string(&mut text)
        .unwrap();
    serde_json::from_str(&text).unwrap()
}

fn near(a: f64, b: f64) -> bool {
    (a - b).abs() <= 1e-9
}

#[test]
fn hostile_text_scores_as_the_references_do() {
    let golden = golden();
    let mut wrong = Vec::new();
    let mut checked = 0;
    for (index, corpus) in golden.corpora.iter().enumerate() {
        let hypotheses = Hypotheses::new(corpus.hypotheses.clone());
        let references = References::new(corpus.references.clone()).unwrap();
        for expected in &corpus.results {
            let setting = &expected.setting;
            let found = evaluate(&setting.metric(), &hypotheses, &references).unwrap();
            let segments = found.segment_scores();
            assert_eq!(segments.len(), expected.segments.len());
            for (segment, (&a, &b)) in segments.iter().zip(&expected.segments).enumerate() {
                checked += 1;
                if !near(a, b) {
                    wrong.push(format!(
                        "corpus {index} segment {segment} {setting:?}: {a} is not {b}\n  {:?}\n  {:?}",
                        corpus.hypotheses[segment], corpus.references[segment]
                    ));
                }
            }
            if !near(found.score(), expected.score) {
                wrong.push(format!(
                    "corpus {index} {setting:?}: {} is not {}",
                    found.score(),
                    expected.score
                ));
            }
            if let Some(signature) = &expected.signature {
                assert_eq!(&found.signature(None), signature);
                if Some(found.line(None)) != expected.line {
                    wrong.push(format!("{} is not {:?}", found.line(None), expected.line));
                }
            }
        }
    }
    assert!(checked > 0);
    assert!(
        wrong.is_empty(),
        "{} of {checked} differ, the first:\n{}",
        wrong.len(),
        wrong[..wrong.len().min(12)].join("\n")
    );
}

#[test]
fn the_golden_file_holds_every_kind_of_metric() {
    let mut kinds = [0; 6];
    for result in golden().corpora.iter().flat_map(|corpus| &corpus.results) {
        let kind = match result.setting.metric() {
            Metric::Bleu(_) => 0,
            Metric::Chrf(_) => 1,
            Metric::Ter(_) => 2,
            Metric::Rouge(Rouge {
                kind: RougeKind::N(_),
                ..
            }) => 3,
            Metric::Rouge(Rouge {
                kind: RougeKind::L, ..
            }) => 4,
            Metric::Rouge(Rouge {
                kind: RougeKind::Lsum,
                ..
            }) => 5,
            other => panic!("{other} is checked elsewhere"),
        };
        kinds[kind] += 1;
    }
    assert!(kinds.iter().all(|&n| n > 0), "{kinds:?}");
}
