//! Thresholds, checks and published settings.

use crate::testing::begun;
use crate::{ExitCheck, ExitSignal, KvFill, LayerSet, StrategyError, StrategySpec, Verdict};

fn spec(text: &str) -> StrategySpec {
    text.parse().unwrap()
}

/// What is wrong with a strategy for a model of some layers.
fn error(text: &str, n_layers: usize) -> String {
    spec(text).validate(n_layers).unwrap_err().to_string()
}

fn verdict(signal: ExitSignal, threshold: f64, value: f64) -> Verdict {
    let text = format!("early-exit:{signal} {{threshold: {threshold}}}");
    begun(&text, 4, 100).observe(1, 0, value)
}

#[test]
fn the_ends_of_the_threshold_are_exact() {
    let values = [-1.0, -0.1, 0.0, 1e-300, 0.5, 1.0, 1.000_000_1];
    for &signal in ExitSignal::ALL {
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
    let decaying = |threshold: f64| {
        let text = format!("early-exit:max-prob {{decay: 4, threshold: {threshold}}}");
        begun(&text, 4, 100)
    };
    let mut strategy = decaying(0.8);
    let mut exits = |step: usize, value: f64| {
        strategy.plan(step);
        strategy.observe(1, 0, value) == Verdict::Exit
    };
    // 0.8 (0.9 + 0.1 e^-4t/100): 0.7969 at 1, 0.7309 at 50, 0.7215 at 100.
    assert!(!exits(1, 0.7968) && exits(1, 0.7970));
    assert!(!exits(50, 0.7308) && exits(50, 0.7309));
    assert!(!exits(100, 0.7214) && exits(100, 0.7215));
    let mut never = decaying(1.0);
    never.plan(100);
    assert_eq!(never.observe(1, 0, 1.0), Verdict::Continue);
    let entropy = error("early-exit:entropy {decay: 4, threshold: 0.5}", 4);
    assert!(entropy.contains("makes `entropy` exit later"), "{entropy}");
}

/// They have no part in the outcome, but no part in a panic either.
#[test]
fn settings_beside_layer_thresholds_are_checked() {
    let with = |settings: &str| format!("early-exit {{layer-thresholds: {{2: 0.5}}, {settings}}}");
    assert!(spec(&with("first-exit: 2")).build(6).is_ok());
    let error = |settings: &str| error(&with(settings), 6);
    assert!(error("check-every: 0").contains("0 layers between checks"));
    assert!(error("first-exit: 0").contains("0 of 6 layers before the first check"));
}

#[test]
fn published_settings() {
    let long = |text: &str| spec(text).to_string();
    assert_eq!(long("early-exit:calm@2"), "early-exit@2 {decay: 4.0}");
    assert_eq!(
        long("early-exit:lite@2"),
        "early-exit:max-prob@2 {first-exit: 8, check-every: 4}"
    );
    let checks = spec("early-exit:lite@2").explain(32, 8).unwrap().checks;
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
    let checks = |first_exit: usize, check_every: usize| {
        let text = format!(
            "early-exit:cosine {{threshold: 0.5, first-exit: {first_exit}, check-every: {check_every}}}"
        );
        let plan = begun(&text, 6, 8).plan(1);
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
    let rises = |text: &str| spec(text).knob().map(|knob| knob.rises_with_depth);
    assert_eq!(rises("early-exit@2"), Some(true));
    assert_eq!(rises("early-exit:entropy@2"), Some(false));
    for settled in [
        "early-exit@2 {threshold: 0.4}",
        "early-exit:patience@2 {patience: 2}",
        "early-exit@2 {layer-thresholds: {2: 0.5}}",
    ] {
        assert_eq!(rises(settled), None, "{settled}");
        assert!(spec(settled).build(12).is_ok(), "{settled}");
    }
    let strategy = "early-exit";
    assert_eq!(
        spec("early-exit@2").build(12).err(),
        Some(StrategyError::NotCalibrated { strategy })
    );
}

#[test]
fn patience_waits_for_votes_in_a_row() {
    let patient = |patience: usize| format!("early-exit:patience {{patience: {patience}}}");
    let mut strategy = begun(&patient(2), 12, 8);
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
    assert!(error("early-exit {patience: 2}", 12).contains("give it with `signal: patience`"));
    // Two checks in a model of four layers: the second can agree with the first.
    let mut once = begun(&patient(1), 4, 8);
    once.plan(1);
    assert_eq!(once.observe(1, 0, 5.0), Verdict::Continue);
    assert_eq!(once.observe(2, 0, 5.0), Verdict::Exit);
    for never in [0, 2, 99] {
        let error = error(&patient(never), 4);
        assert!(error.contains("of 2 checks; it must be 1 to 1"), "{error}");
    }
}

#[test]
fn each_layer_may_have_its_threshold() {
    let with = |thresholds: &str| format!("early-exit {{layer-thresholds: {{{thresholds}}}}}");
    let mut strategy = begun(&with("2: 0.9, 4: 0.5"), 6, 8);
    assert_eq!(strategy.plan(1).checks.to_vec(), [1, 3]);
    assert_eq!(strategy.observe(1, 0, 0.8), Verdict::Continue);
    assert_eq!(strategy.observe(3, 0, 0.8), Verdict::Exit);
    for (wrong, reason) in [
        ("", "there is none"),
        ("0: 0.5", "after 1 to 5 of 6 layers"),
        ("6: 0.5", "after 1 to 5 of 6 layers"),
        ("2: 1.5", "1.5, after 2 layers, is outside 0 to 1"),
    ] {
        let error = error(&with(wrong), 6);
        assert!(error.contains(reason), "{error}");
    }
    let both = "early-exit {threshold: 0.5, layer-thresholds: {2: 0.9}}";
    assert!(error(both, 6).contains("give one of them"));
}

#[test]
fn holes_that_are_read_must_be_filled() {
    let with = |fill: KvFill| format!("early-exit {{threshold: 0.5, kv-fill: {fill}}}");
    for fill in KvFill::OF_EXITS {
        assert_eq!(begun(&with(fill), 6, 8).needs().kv_fill, fill);
    }
    let error = error(&with(KvFill::None), 6);
    assert!(
        error.contains("use propagate, copy, mask, deferred"),
        "{error}"
    );
}

#[test]
fn a_check_may_read_a_list_alone() {
    let listed = spec("early-exit {check: candidates, threshold: 0.5}");
    assert_eq!(
        listed.build(8).unwrap().needs().check,
        ExitCheck::Candidates
    );
    assert_eq!(
        listed.to_string(),
        "early-exit {threshold: 0.5, check: candidates}"
    );
    let full = spec("early-exit {check: full, threshold: 0.5}");
    assert_eq!(full.to_string(), "early-exit {threshold: 0.5}");
    let cosine = error("early-exit:cosine {check: candidates, threshold: 0.5}", 8);
    assert!(
        cosine.contains("`cosine` reads nothing of the LM head"),
        "{cosine}"
    );
    let wrong = "early-exit {check: list}"
        .parse::<StrategySpec>()
        .unwrap_err()
        .to_string();
    assert!(wrong.contains("candidates"), "{wrong}");
}

/// What a strategy would say changes nothing of what it says.
#[test]
fn a_verdict_is_not_remembered() {
    let mut patient = begun("early-exit:patience {patience: 1}", 8, 100);
    patient.plan(1);
    assert_eq!(patient.verdict(1, 0, 7.0), Verdict::Continue);
    assert_eq!(patient.observe(1, 0, 7.0), Verdict::Continue);
    assert_eq!(patient.verdict(2, 0, 7.0), Verdict::Exit);
    assert_eq!(patient.verdict(2, 0, 8.0), Verdict::Continue);
    assert_eq!(patient.observe(2, 0, 7.0), Verdict::Exit);
}
