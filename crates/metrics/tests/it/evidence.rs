//! Metrics of what a model made of text that was given to it.

use skipbench_metrics::{
    Choice, Distance, Evidence, Hypotheses, Hypothesis, Metric, MetricError, Reference, References,
    Resampling, TextLikelihood, evaluate, mcnemar, tested,
};

fn metric(name: &str) -> Metric {
    name.parse().unwrap()
}

fn question(choices: &[(f64, usize)]) -> Hypothesis {
    let choice = |&(logprob, characters): &(f64, usize)| Choice {
        logprob,
        tokens: 1,
        characters,
    };
    Hypothesis {
        evidence: Evidence {
            choices: choices.iter().map(choice).collect(),
            ..Evidence::default()
        },
        ..Hypothesis::default()
    }
}

fn right(choices: &[usize]) -> References {
    References::of(choices.iter().map(|&choice| Reference {
        choice: Some(choice),
        ..Reference::default()
    }))
}

fn given(text: Option<TextLikelihood>, distance: Option<Distance>) -> Hypothesis {
    Hypothesis {
        evidence: Evidence {
            text,
            distance,
            ..Evidence::default()
        },
        ..Hypothesis::default()
    }
}

fn no_references(count: usize) -> References {
    References::of((0..count).map(|_| Reference::default()))
}

#[test]
fn the_likeliest_choice_counts_by_its_length_or_not() {
    let answers = Hypotheses::new([
        question(&[(-2.0, 1), (-3.0, 10)]),
        // Of equal ones the first.
        question(&[(-2.0, 4), (-2.0, 4)]),
        // What could not be scored is wrong.
        question(&[]),
        question(&[(-9.0, 3), (-1.0, 1), (-8.0, 9)]),
    ]);
    let right = right(&[0, 1, 0, 1]);
    let scores = |name: &str| {
        evaluate(&metric(name), &answers, &right)
            .unwrap()
            .segment_scores()
    };
    assert_eq!(scores("acc"), [1.0, 0.0, 0.0, 1.0]);
    assert_eq!(scores("acc-norm"), [0.0, 0.0, 0.0, 0.0]);
    let found = evaluate(&metric("acc"), &answers, &right).unwrap();
    assert_eq!(found.score(), 0.5);
    assert_eq!(
        found.signature(None),
        format!(
            "norm:none|ties:first|failed-as-wrong:yes|version:skipbench-{}",
            env!("CARGO_PKG_VERSION")
        )
    );
}

#[test]
fn what_is_right_or_wrong_has_mcnemars_test() {
    let question = |is_right: bool| question(&[(if is_right { -1.0 } else { -3.0 }, 1), (-2.0, 1)]);
    let of = |pattern: fn(usize) -> bool| {
        let answers = Hypotheses::new((0..60).map(|index| question(pattern(index))));
        evaluate(&metric("acc"), &answers, &right(&[0; 60])).unwrap()
    };
    let (old, new) = (of(|index| index % 3 > 0), of(|index| index % 4 > 0));
    let change = tested(&old, &new, &Resampling::default()).unwrap();
    assert_eq!(change.test, "McNemar, exact");
    let expected = mcnemar((0..60).map(|index| (index % 3 > 0, index % 4 > 0)));
    assert_eq!(change.p, expected.p);
    assert!((change.difference - (45.0 - 40.0) / 60.0).abs() < 1e-12);
    assert!(
        tested(
            &old,
            &evaluate(
                &metric("acc-norm"),
                &Hypotheses::new([question(true)]),
                &right(&[0])
            )
            .unwrap(),
            &Resampling::default()
        )
        .is_err()
    );
}

#[test]
fn perplexity_is_that_of_all_units_together() {
    let text = |logprob, tokens, words, bytes| TextLikelihood {
        logprob,
        tokens,
        words,
        bytes,
    };
    let texts = Hypotheses::new([
        given(Some(text(-10.0, 4, 2, 9)), None),
        given(Some(text(-2.0, 2, 2, 7)), None),
        given(Some(text(0.0, 0, 1, 0)), None),
    ]);
    let score = |name: &str| {
        evaluate(&metric(name), &texts, &no_references(3))
            .unwrap()
            .score()
    };
    assert!((score("perplexity") - 2f64.exp()).abs() < 1e-12);
    assert!((score("word-perplexity") - (12.0f64 / 5.0).exp()).abs() < 1e-12);
    assert!((score("byte-perplexity") - 0.75f64.exp()).abs() < 1e-12);
    assert!((score("bits-per-byte") - 0.75 / 2f64.ln()).abs() < 1e-12);
    assert!(!metric("perplexity").higher_is_better());
    let without = Hypotheses::new([given(None, None)]);
    let error = evaluate(&metric("perplexity"), &without, &no_references(1)).unwrap_err();
    assert!(
        matches!(error, MetricError::NotScored { index: 0, .. }),
        "{error}"
    );
}

#[test]
fn distances_are_means_over_tokens_with_the_standard_error_of_a_ratio() {
    // 200 texts of 5 tokens and 200 of 15, whose divergence by token is 0.1 and 0.3.
    let texts = (0..400).map(|index| {
        let (tokens, kl, same) = if index % 2 == 0 {
            (5, 0.5, 5)
        } else {
            (15, 4.5, 12)
        };
        given(None, Some(Distance { tokens, kl, same }))
    });
    let texts = Hypotheses::new(texts);
    let kl = evaluate(&metric("kl"), &texts, &no_references(400)).unwrap();
    assert!((kl.score() - 0.25).abs() < 1e-12);
    // Of a ratio of means the deviation is that of kl - 0.25 tokens, over the mean length: 0.75 / 10 / 20.
    let error = kl.interval(&Resampling::default()).standard_error;
    assert!((error / 0.00375 - 1.0).abs() < 0.1, "{error}");
    let top1 = evaluate(&metric("top1"), &texts, &no_references(400)).unwrap();
    assert!((top1.score() - 0.85).abs() < 1e-12);
    assert!(metric("top1").higher_is_better() && !metric("kl").higher_is_better());
    // A text of which the full network said nothing has no part in it, but one must have said something.
    let one = Distance {
        tokens: 2,
        kl: 1.0,
        same: 1,
    };
    let some = Hypotheses::new([given(None, None), given(None, Some(one))]);
    let found = evaluate(&metric("kl"), &some, &no_references(2)).unwrap();
    assert_eq!((found.score(), found.segments()), (0.5, 2));
    assert!(found.interval(&Resampling::default()).hi.is_finite());
    let none = Hypotheses::new([given(None, None)]);
    assert!(evaluate(&metric("kl"), &none, &no_references(1)).is_err());
}

#[test]
fn a_metric_says_what_it_misses() {
    let answers = Hypotheses::new(["a"]);
    for (name, says) in [
        ("acc", "multiple choice"),
        ("kl", "experiments"),
        ("bleu", "no reference"),
    ] {
        let error = evaluate(&metric(name), &answers, &no_references(1)).unwrap_err();
        let message = error.to_string();
        assert!(
            message.contains(says) && message.contains("segment 1"),
            "{message}"
        );
    }
}
