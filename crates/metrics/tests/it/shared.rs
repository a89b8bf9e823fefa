//! The references' own unit vectors and real system outputs, where `../shared` lies beside the project.

use serde_json::Value;
use skipbench_metrics::{
    Bleu, Chrf, Hypotheses, Metric, References, Rouge, Smoothing, Tokenizer, evaluate,
};
use std::io::Read;
use std::path::{Path, PathBuf};

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/data/metric_parity_dev")
}

fn json(path: &Path) -> Value {
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

fn lines(path: &Path) -> Vec<String> {
    let mut text = String::new();
    flate2::read::MultiGzDecoder::new(std::fs::File::open(path).unwrap())
        .read_to_string(&mut text)
        .unwrap();
    text.strip_suffix('\n')
        .unwrap_or(&text)
        .split('\n')
        .map(str::to_owned)
        .collect()
}

fn texts(value: &Value) -> Vec<String> {
    let texts = value.as_array().unwrap().iter();
    texts
        .map(|text| text.as_str().unwrap().to_owned())
        .collect()
}

/// sacrebleu's streams, one per reference, as the references of each segment.
fn by_segment(streams: &Value) -> References {
    let streams: Vec<Vec<Option<String>>> = streams
        .as_array()
        .unwrap()
        .iter()
        .map(|stream| {
            let stream = stream.as_array().unwrap().iter();
            stream
                .map(|text| text.as_str().map(str::to_owned))
                .collect()
        })
        .collect();
    let segments = (0..streams[0].len()).map(|at| {
        streams
            .iter()
            .filter_map(|stream| stream[at].clone())
            .collect()
    });
    References::new(segments.collect()).unwrap()
}

fn metric(kind: &str, options: &Value) -> Metric {
    let flag = |name: &str| options[name].as_bool();
    let number = |name: &str| options[name].as_u64().map(|n| n as usize);
    if kind.ends_with("bleu") {
        let value = options["smooth_value"].as_f64();
        Metric::Bleu(Bleu {
            tokenizer: options["tokenize"]
                .as_str()
                .unwrap_or("13a")
                .parse()
                .unwrap(),
            smoothing: match options["smooth_method"].as_str() {
                Some("none") => Smoothing::None,
                Some("floor") => Smoothing::Floor(value.unwrap_or(0.1)),
                Some("add-k") => Smoothing::AddK(value.unwrap_or(1.0)),
                _ => Smoothing::Exp,
            },
            lowercase: flag("lowercase").unwrap_or(false),
            effective_order: flag("effective_order").unwrap_or(kind == "sentence_bleu"),
            max_order: number("max_ngram_order").unwrap_or(4),
        })
    } else {
        Metric::Chrf(Chrf {
            char_order: number("char_order").unwrap_or(6),
            word_order: number("word_order").unwrap_or(0),
            beta: number("beta").unwrap_or(2) as u32,
            lowercase: flag("lowercase").unwrap_or(false),
            whitespace: !flag("remove_whitespace").unwrap_or(true),
            eps_smoothing: flag("eps_smoothing").unwrap_or(false),
        })
    }
}

#[test]
#[cfg_attr(not(has_shared), ignore = "needs ../shared")]
fn sacrebleus_unit_vectors() {
    let folder = folder();
    let cases = json(&folder.join("sacrebleu_unit_vectors.json"));
    let cases = cases["cases"].as_array().unwrap();
    for case in cases {
        let kind = case["kind"].as_str().unwrap();
        let (hypotheses, references) = match kind.starts_with("sentence") {
            true => (
                vec![case["hyp"].as_str().unwrap().to_owned()],
                References::new(vec![texts(&case["refs"])]).unwrap(),
            ),
            false => (texts(&case["hyps"]), by_segment(&case["refs"])),
        };
        let metric = metric(kind, &case["options"]);
        let found = evaluate(&metric, &Hypotheses::new(hypotheses), &references).unwrap();
        let expected = case["expected"].as_f64().unwrap();
        let tolerance = case["tolerance"].as_f64().unwrap();
        assert!(
            (found.score() - expected).abs() <= tolerance,
            "{} for {case}",
            found.score()
        );
    }
    assert!(cases.len() >= 50);
}

#[test]
#[cfg_attr(not(has_shared), ignore = "needs ../shared")]
fn googles_rouge_vectors() {
    let folder = folder();
    let cases = json(&folder.join("google_rouge_unit_vectors.json"));
    let cases = cases["cases"].as_array().unwrap();
    for case in cases {
        let Metric::Rouge(rouge) = case["rouge"].as_str().unwrap().parse().unwrap() else {
            panic!("{case}");
        };
        let metric = Metric::Rouge(Rouge {
            stemmer: case["use_stemmer"].as_bool().unwrap(),
            ..rouge
        });
        let hypothesis = Hypotheses::new([case["prediction"].as_str().unwrap()]);
        let reference = References::single([case["target"].as_str().unwrap()]).unwrap();
        let found = evaluate(&metric, &hypothesis, &reference).unwrap();
        let tolerance = case["tolerance"].as_f64().unwrap();
        for ((name, part), key) in found.parts().into_iter().zip(["p", "r", "f"]) {
            // Some cases give F1 alone.
            let expected = case["expected"][key].as_f64();
            assert!(key != "f" || expected.is_some());
            let Some(expected) = expected else { continue };
            assert!(
                (part - expected).abs() <= tolerance,
                "{name} {part} for {case}"
            );
        }
    }
    assert!(cases.len() >= 25);
}

#[test]
#[cfg_attr(not(has_shared), ignore = "needs ../shared")]
fn systems_of_wmt17() {
    let folder = folder().join("wmt17_en_de");
    let references = References::single(lines(&folder.join("ref.de.gz"))).unwrap();
    let expected = json(&folder.join("expected.json"));
    let bleu = |tokenizer, lowercase| {
        Metric::Bleu(Bleu {
            tokenizer,
            lowercase,
            ..Bleu::default()
        })
    };
    let metrics = [
        ("bleu.13a", bleu(Tokenizer::V13a, false)),
        ("bleu.none", bleu(Tokenizer::None, false)),
        ("bleu.intl", bleu(Tokenizer::Intl, false)),
        ("bleu.13a.lc", bleu(Tokenizer::V13a, true)),
        ("chrf2", "chrf".parse().unwrap()),
        ("chrf2++", "chrf++".parse().unwrap()),
    ];
    let systems = expected["scores"].as_object().unwrap();
    for (system, scores) in systems {
        let hypotheses = Hypotheses::new(lines(&folder.join(format!("{system}.gz"))));
        for (name, metric) in &metrics {
            let found = evaluate(metric, &hypotheses, &references).unwrap();
            let expected = &scores[name];
            assert!(
                (found.score() - expected["score"].as_f64().unwrap()).abs() <= 1e-9,
                "{system} {name}: {} for {expected}",
                found.score()
            );
            assert_eq!(
                Some(&*found.signature(None)),
                expected["signature"].as_str()
            );
        }
    }
    assert_eq!(systems.len(), 16);
}

#[test]
#[cfg_attr(not(has_shared), ignore = "needs ../shared")]
fn summaries_of_xsum() {
    let folder = folder().join("simcls_xsum");
    let hypotheses = Hypotheses::new(lines(&folder.join("hyp.txt.gz")));
    let references = References::single(lines(&folder.join("ref.txt.gz"))).unwrap();
    let expected = json(&folder.join("expected.json"));
    for (stemming, stemmer) in [("nostem", false), ("stem", true)] {
        for name in ["rouge1", "rouge2", "rougeL", "rougeLsum"] {
            let Metric::Rouge(rouge) = name.parse().unwrap() else {
                panic!("{name}");
            };
            let metric = Metric::Rouge(Rouge { stemmer, ..rouge });
            let found = evaluate(&metric, &hypotheses, &references).unwrap();
            let expected = &expected["one_line"][stemming][name];
            for ((part, value), key) in found.parts().into_iter().zip(["p", "r", "f"]) {
                let expected = expected[key].as_f64().unwrap();
                assert!(
                    (value - expected).abs() <= 1e-9,
                    "{name} {stemming} {part}: {value} is not {expected}"
                );
            }
        }
    }
}
