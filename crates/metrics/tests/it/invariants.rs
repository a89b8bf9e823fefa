//! What holds of every metric, whatever the text.

use proptest::prelude::*;
use skipbench_metrics::{
    Hypotheses, Metric, MetricError, References, Resampling, Unit, evaluate, paired,
};

fn metrics() -> Vec<Metric> {
    [
        "bleu",
        "bleu-intl",
        "bleu-zh",
        "bleu-char",
        "bleu-none",
        "chrf",
        "chrf++",
        "ter",
        "rouge1",
        "rouge2",
        "rougeL",
        "rougeLsum",
        "exact-match",
        "contains",
    ]
    .iter()
    .map(|name| name.parse().unwrap())
    .collect()
}

fn corpus() -> impl Strategy<Value = Vec<(String, Vec<String>)>> {
    let text = || prop_oneof![any::<String>(), "([a-d]{1,2}[ .,]{0,2}){0,9}"];
    prop::collection::vec((text(), prop::collection::vec(text(), 1..3)), 1..6)
}

fn few() -> Resampling {
    Resampling {
        resamples: 100,
        shuffles: 100,
        seed: 7,
    }
}

proptest! {
    #[test]
    fn scores_lie_in_their_range_and_order_does_not_matter(corpus in corpus()) {
        let (hypotheses, references): (Vec<_>, Vec<_>) = corpus.iter().cloned().unzip();
        let (backwards, references_backwards): (Vec<_>, Vec<_>) = corpus.iter().rev().cloned().unzip();
        for metric in metrics() {
            let forward = evaluate(&metric, &Hypotheses::new(hypotheses.clone()), &References::new(references.clone()).unwrap()).unwrap();
            let backward = evaluate(&metric, &Hypotheses::new(backwards.clone()), &References::new(references_backwards.clone()).unwrap()).unwrap();
            let score = forward.score();
            prop_assert!((score - backward.score()).abs() < 1e-9);
            let most = match (metric.higher_is_better(), metric.unit()) {
                (false, _) => f64::INFINITY,
                (true, Unit::Percent) => 100.0,
                (true, _) => 1.0,
            };
            prop_assert!((0.0..=most + 1e-9).contains(&score), "{metric}: {score}");
            prop_assert_eq!(forward.segment_scores().len(), hypotheses.len());
        }
    }

    #[test]
    fn a_system_equals_itself(corpus in corpus()) {
        let (hypotheses, references): (Vec<_>, Vec<_>) = corpus.into_iter().unzip();
        let (hypotheses, references) = (Hypotheses::new(hypotheses), References::new(references).unwrap());
        for metric in metrics() {
            let system = evaluate(&metric, &hypotheses, &references).unwrap();
            let test = paired(&system, &system, &few()).unwrap();
            prop_assert_eq!((test.difference, test.bootstrap_p, test.randomisation_p), (0.0, 1.0, 1.0));
            let interval = system.interval(&few());
            prop_assert!(interval.lo <= interval.hi);
        }
    }
}

#[test]
fn a_right_answer_is_the_best() {
    let texts = [
        "The dog bit the man in the park.",
        "Nobody was surprised by that, it seems.",
    ];
    let references = References::single(texts).unwrap();
    for metric in metrics() {
        let score = evaluate(&metric, &Hypotheses::new(texts), &references)
            .unwrap()
            .score();
        let best = match (metric.higher_is_better(), metric.unit()) {
            (false, _) => 0.0,
            (true, Unit::Percent) => 100.0,
            (true, _) => 1.0,
        };
        assert!((score - best).abs() < 1e-9, "{metric}: {score}");
    }
}

#[test]
fn an_empty_answer_scores_nothing_and_counts() {
    let references = References::single(["a b c d", "a b c d"]).unwrap();
    for metric in metrics() {
        let half = evaluate(&metric, &Hypotheses::new(["a b c d", ""]), &references).unwrap();
        let worst = if metric.higher_is_better() {
            0.0
        } else {
            100.0
        };
        assert_eq!(half.segments(), 2);
        assert_eq!(half.segment_scores()[1], worst, "{metric}");
    }
}

#[test]
fn a_clear_difference_is_significant_and_a_seed_repeats() {
    let segments = 60;
    let reference: Vec<String> = (0..segments)
        .map(|i| format!("segment number {i} of the text is here"))
        .collect();
    let good: Vec<String> = reference.clone();
    let bad: Vec<String> = reference
        .iter()
        .enumerate()
        .map(|(i, text)| match i % 2 {
            0 => text.clone(),
            _ => text.replace("number", "the"),
        })
        .collect();
    let references = References::single(reference).unwrap();
    for metric in metrics() {
        let good = evaluate(&metric, &Hypotheses::new(good.clone()), &references).unwrap();
        let bad = evaluate(&metric, &Hypotheses::new(bad.clone()), &references).unwrap();
        let resampling = Resampling {
            resamples: 200,
            shuffles: 500,
            seed: 3,
        };
        let test = paired(&good, &bad, &resampling).unwrap();
        assert!(
            test.randomisation_p < 0.01 && test.bootstrap_p < 0.01,
            "{metric}: {test:?}"
        );
        assert_eq!(metric.higher_is_better(), test.difference < 0.0);
        assert_eq!(test, paired(&good, &bad, &resampling).unwrap());
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(1)
            .build()
            .unwrap();
        assert_eq!(
            test,
            pool.install(|| paired(&good, &bad, &resampling).unwrap()),
            "threads"
        );
    }
}

#[test]
fn an_interval_covers_the_score_of_a_plain_sample() {
    // Half of 400 segments score 1, the others 0: the mean's standard error is 0.025.
    let reference: Vec<String> = (0..400).map(|_| "a".to_owned()).collect();
    let hypotheses = Hypotheses::new((0..400).map(|i| if i % 2 == 0 { "a" } else { "b" }));
    let metric: Metric = "rouge1".parse().unwrap();
    let system = evaluate(
        &metric,
        &hypotheses,
        &References::single(reference).unwrap(),
    )
    .unwrap();
    let interval = system.interval(&Resampling::default());
    assert!((interval.mean - 0.5).abs() < 0.005, "{interval:?}");
    assert!(
        (interval.half_width() - 1.96 * 0.025).abs() < 0.006,
        "{interval:?}"
    );
}

#[test]
fn what_cannot_be_scored() {
    let metric: Metric = "bleu".parse().unwrap();
    let none = Hypotheses::default();
    assert_eq!(
        evaluate(&metric, &none, &References::default()),
        Err(MetricError::Empty)
    );
    assert_eq!(
        evaluate(
            &metric,
            &Hypotheses::new(["a", "b"]),
            &References::single(["a"]).unwrap()
        ),
        Err(MetricError::Lengths {
            found: 1,
            expected: 2
        })
    );
    assert_eq!(
        References::new(vec![vec!["a".to_owned()], Vec::new()]),
        Err(MetricError::NoReference { index: 1 })
    );
    assert!(
        "bleau"
            .parse::<Metric>()
            .unwrap_err()
            .to_string()
            .contains("`bleu`")
    );
    let one = |name: &str| {
        evaluate(
            &name.parse().unwrap(),
            &Hypotheses::new(["a"]),
            &References::single(["a"]).unwrap(),
        )
        .unwrap()
    };
    assert!(matches!(
        paired(&one("bleu"), &one("chrf"), &few()),
        Err(MetricError::Different { .. })
    ));
}

#[test]
fn signatures_name_the_resamples() {
    let references = References::new(vec![
        vec!["a".to_owned()],
        vec!["a".to_owned(), "b".to_owned()],
    ])
    .unwrap();
    let evaluation = evaluate(
        &"chrf++".parse().unwrap(),
        &Hypotheses::new(["a", "b"]),
        &references,
    )
    .unwrap();
    assert_eq!(
        evaluation.signature(Some(&Resampling::default())),
        "nrefs:var|bs:1000|ar:10000|seed:chacha8-12345|case:mixed|eff:yes|nc:6|nw:2|space:no|version:2.6.0"
    );
}
