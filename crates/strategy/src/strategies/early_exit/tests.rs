//! Thresholds, checks and published settings.

use super::*;
use crate::{BatchShape, LayerSet, Verdict};

fn with(signal: ExitSignal, threshold: f64) -> EarlyExit {
    EarlyExit {
        signal,
        threshold: Some(threshold),
        ..EarlyExit::default()
    }
}

fn verdict(signal: ExitSignal, threshold: f64, value: f64) -> Verdict {
    let mut strategy = with(signal, threshold).build(4).unwrap();
    strategy.observe(1, 0, value)
}

#[test]
fn the_ends_of_the_threshold_are_exact() {
    let values = [-1.0, -0.1, 0.0, 1e-300, 0.5, 1.0, 1.000_000_1];
    for signal in ExitSignal::ALL {
        let (never, always) = match signal {
            ExitSignal::Entropy => (0.0, 1.0),
            _ => (1.0, 0.0),
        };
        for value in values {
            assert_eq!(verdict(signal, never, value), Verdict::Continue, "{signal}");
            assert_eq!(verdict(signal, always, value), Verdict::Exit, "{signal}");
        }
    }
}

#[test]
fn a_decaying_threshold_falls_to_nine_tenths() {
    let settings = EarlyExit {
        decay: Some(4.0),
        ..with(ExitSignal::MaxProb, 0.8)
    };
    let mut strategy = settings.build(4).unwrap();
    let shape = BatchShape {
        prompt_lens: vec![1],
        n_layers: 4,
        max_new_tokens: 100,
    };
    strategy.begin(&shape).unwrap();
    let mut exits = |step: usize, value: f64| {
        strategy.plan(step);
        strategy.observe(1, 0, value) == Verdict::Exit
    };
    // 0.8 (0.9 + 0.1 e^-4t/100): 0.7969 at 1, 0.7309 at 50, 0.7215 at 100.
    assert!(!exits(1, 0.7968) && exits(1, 0.7970));
    assert!(!exits(50, 0.7308) && exits(50, 0.7309));
    assert!(!exits(100, 0.7214) && exits(100, 0.7215));
    let never = EarlyExit {
        decay: Some(4.0),
        ..with(ExitSignal::MaxProb, 1.0)
    };
    let mut never = never.build(4).unwrap();
    never.begin(&shape).unwrap();
    never.plan(100);
    assert_eq!(never.observe(1, 0, 1.0), Verdict::Continue);
    let entropy = EarlyExit {
        decay: Some(4.0),
        ..with(ExitSignal::Entropy, 0.5)
    };
    assert!(entropy.validate(4).is_err());
}

/// They have no part in the outcome, but no part in a panic either.
#[test]
fn settings_beside_layer_thresholds_are_checked() {
    let settings = |first_exit, check_every| EarlyExit {
        layer_thresholds: Some(BTreeMap::from([(2, 0.5)])),
        first_exit,
        check_every,
        ..EarlyExit::default()
    };
    assert!(settings(2, 1).build(6).is_ok());
    let error = |first_exit, check_every| {
        let built = settings(first_exit, check_every).build(6);
        built.err().unwrap().to_string()
    };
    assert!(error(2, 0).contains("0 layers between checks"));
    assert!(error(0, 1).contains("0 of 6 layers before the first check"));
}

#[test]
fn published_settings() {
    let long = |text: &str| text.parse::<crate::StrategySpec>().unwrap().to_string();
    assert_eq!(long("early-exit:calm@2"), "early-exit@2 {decay: 4.0}");
    assert_eq!(
        long("early-exit:lite@2"),
        "early-exit:max-prob@2 {first-exit: 8, check-every: 4}"
    );
    let lite: crate::StrategySpec = "early-exit:lite@2".parse().unwrap();
    let checks = lite.explain(32, 8).unwrap().checks;
    assert_eq!(checks, [7, 11, 15, 19, 23, 27]);
}

#[test]
fn between_them_the_comparison_is_strict() {
    for signal in [
        ExitSignal::SoftmaxMargin,
        ExitSignal::MaxProb,
        ExitSignal::Cosine,
    ] {
        assert_eq!(verdict(signal, 0.9, 0.9), Verdict::Continue);
        assert_eq!(verdict(signal, 0.9, 0.91), Verdict::Exit);
        assert_eq!(verdict(signal, 0.9, f64::NAN), Verdict::Continue);
    }
    assert_eq!(verdict(ExitSignal::Entropy, 0.2, 0.2), Verdict::Continue);
    assert_eq!(verdict(ExitSignal::Entropy, 0.2, 0.19), Verdict::Exit);
    assert_eq!(
        verdict(ExitSignal::Entropy, 0.2, f64::NAN),
        Verdict::Continue
    );
}

#[test]
fn checks_start_after_first_exit_and_end_before_the_last_layer() {
    let checks = |first_exit, check_every| {
        let settings = EarlyExit {
            first_exit,
            check_every,
            ..with(ExitSignal::Cosine, 0.5)
        };
        let plan = settings.build(6).unwrap().plan(1);
        assert_eq!(plan.layers, LayerSet::full(6));
        plan.checks.to_vec()
    };
    assert_eq!(checks(2, 1), [1, 2, 3, 4]);
    assert_eq!(checks(1, 2), [0, 2, 4]);
    assert_eq!(checks(2, 2), [1, 3]);
    assert_eq!(checks(5, 1), [4]);
    assert_eq!(checks(2, usize::MAX), [1]);
}

#[test]
fn the_knob_is_there_until_it_is_set() {
    let mut settings = EarlyExit {
        speedup: Some(2.0),
        ..EarlyExit::default()
    };
    assert!(settings.knob().is_some_and(|knob| knob.rises_with_depth));
    settings.signal = ExitSignal::Entropy;
    assert!(settings.knob().is_some_and(|knob| !knob.rises_with_depth));
    assert_eq!(
        settings.build(12).err(),
        Some(StrategyError::NotCalibrated { strategy: NAME })
    );
    settings.threshold = Some(0.4);
    assert_eq!(settings.knob(), None);
    assert!(settings.build(12).is_ok());
}

#[test]
fn patience_waits_for_votes_in_a_row() {
    let settings = EarlyExit {
        signal: ExitSignal::Patience,
        patience: Some(2),
        ..EarlyExit::default()
    };
    let mut strategy = settings.build(12).unwrap();
    let mut exit_at = |votes: &[u32]| {
        strategy.plan(1);
        let mut layers = 1..;
        votes.iter().position(|&vote| {
            let layer = layers.next().unwrap();
            strategy.observe(layer, 3, f64::from(vote)) == Verdict::Exit
        })
    };
    assert_eq!(exit_at(&[7, 7, 7, 7]), Some(2));
    assert_eq!(exit_at(&[7, 7, 8, 8, 8]), Some(4));
    assert_eq!(exit_at(&[7, 8, 7, 8, 8]), None);
    let wrong = EarlyExit {
        patience: Some(2),
        ..EarlyExit::default()
    };
    assert!(wrong.validate(12).is_err());
    // Two checks in a model of four layers: the second can agree with the first.
    let with = |patience| EarlyExit {
        patience: Some(patience),
        ..settings.clone()
    };
    let mut once = with(1).build(4).unwrap();
    once.plan(1);
    assert_eq!(once.observe(1, 0, 5.0), Verdict::Continue);
    assert_eq!(once.observe(2, 0, 5.0), Verdict::Exit);
    for never in [0, 2, 99] {
        let error = with(never).build(4).err().unwrap().to_string();
        assert!(error.contains("of 2 checks; it must be 1 to 1"), "{error}");
    }
}

#[test]
fn each_layer_may_have_its_threshold() {
    let settings = |thresholds: &[(usize, f64)]| EarlyExit {
        layer_thresholds: Some(thresholds.iter().copied().collect()),
        ..EarlyExit::default()
    };
    let mut strategy = settings(&[(2, 0.9), (4, 0.5)]).build(6).unwrap();
    assert_eq!(strategy.plan(1).checks.to_vec(), [1, 3]);
    assert_eq!(strategy.observe(1, 0, 0.8), Verdict::Continue);
    assert_eq!(strategy.observe(3, 0, 0.8), Verdict::Exit);
    for wrong in [&[][..], &[(0, 0.5)], &[(6, 0.5)], &[(2, 1.5)]] {
        assert!(settings(wrong).validate(6).is_err(), "{wrong:?}");
    }
    let both = EarlyExit {
        threshold: Some(0.5),
        ..settings(&[(2, 0.9)])
    };
    assert!(both.validate(6).is_err());
}

#[test]
fn holes_that_are_read_must_be_filled() {
    let settings = |kv_fill| EarlyExit {
        kv_fill,
        ..with(ExitSignal::MaxProb, 0.5)
    };
    for fill in KvFill::OF_EXITS {
        assert_eq!(settings(fill).build(6).unwrap().needs().kv_fill, fill);
    }
    let error = settings(KvFill::None).validate(6).unwrap_err().to_string();
    assert!(
        error.contains("use propagate, copy, mask, deferred"),
        "{error}"
    );
}
