//! How strategies are written: short form, long form, and what is said about mistakes.
#![allow(
    clippy::unwrap_used,
    reason = "clippy.toml allows it in #[test] functions, not in their helpers"
)]

use super::forms::any_spec;
use insta::assert_snapshot;
use proptest::prelude::*;
use serde::Deserialize;
use skipbench_strategy::{BatchShape, KvFill, MAX_LAYERS, StrategyError, StrategySpec};
use std::collections::BTreeSet;

fn short(text: &str) -> StrategySpec {
    text.parse().unwrap()
}

fn yaml(text: &str) -> Result<StrategySpec, String> {
    serde_saphyr::from_str(text).map_err(|error| error.to_string())
}

fn parse_error(text: &str) -> String {
    let error = text.parse::<StrategySpec>().unwrap_err().to_string();
    without_names(&error)
}

/// A message without the list of all strategies, so that a new one changes no snapshot.
fn without_names(message: &str) -> String {
    let names: Vec<_> = StrategySpec::all().iter().map(StrategySpec::name).collect();
    message.replace(&names.join(", "), "[all]")
}

fn build_error(text: &str, n_layers: usize) -> String {
    let spec = yaml(text).unwrap();
    let error = spec.validate(n_layers).unwrap_err().to_string();
    assert_eq!(spec.build(n_layers).err().unwrap().to_string(), error);
    assert_eq!(spec.explain(n_layers, 8).unwrap_err().to_string(), error);
    error
}

#[test]
fn short_and_long_form_agree() {
    for (text, long) in [
        ("full", "full: {}"),
        ("full", "full:"),
        ("unified@2", "unified: {speedup: 2}"),
        ("unified:published@2", "unified: {speedup: 2}"),
        ("unified:even@3", "unified: {rule: even, speedup: 3}"),
        ("top@1.5", "top: {speedup: 1.5}"),
        ("random@2", "random: {speedup: 2, seed: 0}"),
        (
            "skip-decode@2",
            "skip-decode: {speedup: 2, warmup-layers: 1}",
        ),
        (
            "early-exit@2",
            "early-exit: {signal: softmax-margin, speedup: 2, first-exit: 2, check-every: 1}",
        ),
        ("early-exit:cosine", "early-exit:\n  signal: cosine\n"),
    ] {
        assert_eq!(short(text), yaml(long).unwrap(), "{long}");
        assert_eq!(short(text), yaml(&format!("\"{text}\"")).unwrap(), "{text}");
    }
    assert_ne!(
        short("random@2"),
        yaml("random: {speedup: 2, seed: 7}").unwrap()
    );
}

/// What a table calls a strategy is a way to write it.
#[test]
fn labels_are_read_again() {
    for (label, long) in [
        (
            "early-exit@2 {kv-fill: deferred, batch-mode: sync}",
            "early-exit: {speedup: 2, kv-fill: deferred, batch-mode: sync}",
        ),
        (
            r#"early-exit {layer-thresholds: {"2":0.5,"4":0.3}}"#,
            "early-exit: {layer-thresholds: {2: 0.5, 4: 0.3}}",
        ),
        ("drop-list {drop: [1,4]}", "drop-list: {drop: [1, 4]}"),
        (
            r#"self-speculative:early-exit@2 {draft: "early-exit:cosine@2 {kv-fill: mask}", adaptive: true}"#,
            "self-speculative: {draft: {early-exit: {signal: cosine, speedup: 2, kv-fill: mask}}, adaptive: true}",
        ),
    ] {
        let spec = yaml(long).unwrap();
        assert_eq!(spec.to_string(), label);
        assert_eq!(short(label), spec);
        assert_eq!(yaml(&format!("'{label}'")).unwrap(), spec);
    }
    for (twice, what) in [
        ("early-exit@2 {speedup: 3}", "speedup"),
        ("early-exit:entropy@2 {signal: cosine}", "variant"),
        ("self-speculative@2 {draft: top@3}", "speedup"),
    ] {
        let error = parse_error(twice);
        assert!(
            error.contains(&format!("its {what} is given twice")),
            "{error}"
        );
    }
    assert_eq!(
        short("early-exit@2{kv-fill: mask}"),
        short("early-exit@2 {kv-fill: mask}")
    );
    let wrong = parse_error("early-exit@2 {kv-fil: mask}");
    assert!(wrong.contains("did you mean `kv-fill`?"), "{wrong}");
    assert!(parse_error("early-exit@2 {kv-fill: mask").contains("its settings"));
}

/// A string around a long form on one line is still a long form.
#[test]
fn quoted_long_forms_are_read() {
    for text in [
        "random: {seeds: 150}",
        "random:{seeds: 150}",
        " random:  {seeds: 150} ",
        "random:\n  seeds: 150",
    ] {
        let expected = yaml("random: {seeds: 150}").unwrap();
        assert_eq!(short(text), expected, "{text}");
        let quoted = serde_json::to_string(text).unwrap();
        assert_eq!(yaml(&quoted).unwrap(), expected, "{quoted}");
        assert_eq!(expected.to_string(), "random {seeds: 150}");
    }
    assert_eq!(short("full:"), StrategySpec::full());
    assert_snapshot!(parse_error("random: {sedes: 150}"), @"cannot read strategy `random: {sedes: 150}`: unknown key `sedes` of `random` (did you mean `seeds`?); known: speedup, seed, seeds, prefill (the form is name[:variant][@speedup], as in unified:even@3)");
    assert_snapshot!(parse_error("random: 150"), @"cannot read strategy `random: 150`: invalid type: integer `150`, expected the settings of `random` as a map, such as `random: {speedup: 2}` (the form is name[:variant][@speedup], as in unified:even@3)");
    assert_snapshot!(parse_error("randm: {seeds: 150}"), @"unknown strategy `randm` (did you mean `random`?); known: [all]");
}

/// A KV fill that is asked for by name stands, though it be the strategy's own choice; and it makes no other strategy.
#[test]
fn a_kv_fill_that_is_given_is_known() {
    for (bare, given) in [
        ("early-exit@2", "early-exit@2 {kv-fill: propagate}"),
        ("shallow-deep@2", "shallow-deep@2 {kv-fill: deferred}"),
        ("oracle-exit", "oracle-exit {kv-fill: none}"),
    ] {
        let (bare, given) = (short(bare), short(given));
        assert!(
            !bare.has_own_kv_fill() && given.has_own_kv_fill(),
            "{given}"
        );
        assert_eq!(bare.kv_fill(), given.kv_fill());
        assert_eq!((&bare, bare.to_string()), (&given, given.to_string()));
        let json = |spec| serde_json::to_string(spec).unwrap();
        assert_eq!(json(&bare), json(&given));
        assert!(bare.with_kv_fill(KvFill::Mask).has_own_kv_fill());
    }
    let long = yaml("early-exit: {speedup: 2, kv-fill: propagate}").unwrap();
    assert!(long.has_own_kv_fill());
    assert!(
        !short("unified@2")
            .with_kv_fill(KvFill::Mask)
            .has_own_kv_fill()
    );
}

#[test]
fn a_series_has_no_target() {
    for (spec, series) in [
        ("full", "full"),
        ("unified@2", "unified"),
        ("unified:even@3", "unified:even"),
        ("early-exit@2 {kv-fill: mask}", "early-exit {kv-fill: mask}"),
        ("self-speculative:top@2", "self-speculative:top"),
        (
            "self-speculative:unified:even@3",
            "self-speculative {draft: unified:even}",
        ),
        (
            "self-speculative@2 {draft: {early-exit: {first-exit: 4, speedup: 2}}, adaptive: true}",
            r#"self-speculative:early-exit {draft: "early-exit {first-exit: 4}", adaptive: true}"#,
        ),
    ] {
        assert_eq!(short(spec).series(), series);
    }
    assert!(short("full").is_full() && !short("unified@1").is_full());
}

#[test]
fn what_is_asked_of_a_spec() {
    let spec = short("unified@2");
    assert_eq!(
        (spec.name(), spec.variant()),
        ("unified", Some("published"))
    );
    assert_eq!(spec.target_speedup(), Some(2.0));
    assert_eq!(spec.with_target(3.0), short("unified@3"));
    assert_eq!(spec.with_threshold(0.5), spec);
    assert_eq!(short("top@2").variant(), None);
    assert_eq!(StrategySpec::full(), short("full"));
    assert_eq!(short("full").with_target(2.0).target_speedup(), None);
    let spec = short("early-exit:entropy@2");
    assert_eq!(spec.variant(), Some("entropy"));
    assert!(spec.validate(12).is_ok() && spec.build(12).is_err());
    let spec = spec.with_threshold(0.3);
    assert_eq!((spec.threshold(), spec.knob()), (Some(0.3), None));
    assert!(spec.build(12).is_ok());
}

#[test]
fn serializes_as_the_long_form_with_every_setting() {
    let json = |text: &str| serde_json::to_string(&short(text)).unwrap();
    assert_snapshot!(json("full"), @r#"{"full":{}}"#);
    assert_snapshot!(json("unified@2"), @r#"{"unified":{"rule":"published","speedup":2.0}}"#);
    assert_snapshot!(json("random@1.5"), @r#"{"random":{"speedup":1.5,"seed":0}}"#);
    assert_snapshot!(json("early-exit:cosine@2"), @r#"{"early-exit":{"signal":"cosine","speedup":2.0,"first-exit":2,"check-every":1,"check":"full"}}"#);
}

#[test]
fn explains_itself() {
    let explain = |text: &str| {
        let explanation = yaml(text).unwrap().explain(8, 5).unwrap();
        serde_json::to_string(&explanation).unwrap()
    };
    assert_snapshot!(explain("unified@2"), @r#"{"strategy":"unified@2","about":"layers spread over the whole depth, from the target alone (Unified Layer Skipping, arXiv 2404.06954)","variant":"published","n_layers":8,"target_speedup":2.0,"layers":[0,2,4,7],"layers_per_step":4.0,"layer_speedup":2.0}"#);
    assert_snapshot!(explain("skip-decode@2"), @r#"{"strategy":"skip-decode@2","about":"fewer layers with each position (SkipDecode, arXiv 2307.02628)","variant":null,"n_layers":8,"target_speedup":2.0,"layers":[0,4,5,6,7],"layers_per_step":4.0,"layer_speedup":2.0,"steps":[{"first":1,"last":1,"layers":[0,4,5,6,7]},{"first":2,"last":3,"layers":[0,5,6,7]},{"first":4,"last":4,"layers":[0,6,7]}]}"#);
    assert_snapshot!(explain("early-exit@2"), @r#"{"strategy":"early-exit@2","about":"each token leaves when the model is sure of it (CALM, arXiv 2207.07061)","variant":"softmax-margin","n_layers":8,"target_speedup":2.0,"layers":[0,1,2,3,4,5,6,7],"layers_per_step":null,"layer_speedup":null,"checks":[1,2,3,4,5,6],"kv_fill":"propagate"}"#);
}

#[test]
fn settings_of_exits_are_for_strategies_with_exits() {
    assert_snapshot!(parse_error("unified@2 {kv-fill: copy}"), @"cannot read strategy `unified@2 {kv-fill: copy}`: unknown key `kv-fill` of `unified`, which is for tokens that choose where they leave, as under `early-exit` and `shallow-deep`; known: rule, speedup, prefill (the form is name[:variant][@speedup], as in unified:even@3)");
    assert_snapshot!(parse_error("skip-decode@2 {batch-mode: sync}"), @"cannot read strategy `skip-decode@2 {batch-mode: sync}`: unknown key `batch-mode` of `skip-decode`, which is for tokens that choose where they leave, as under `early-exit` and `shallow-deep`; known: speedup, warmup-layers, schedule-length, max-layers, min-layers (the form is name[:variant][@speedup], as in unified:even@3)");
    assert_snapshot!(parse_error("oracle-exit {batch-mode: sync}"), @"cannot read strategy `oracle-exit {batch-mode: sync}`: unknown key `batch-mode` of `oracle-exit`, which is for tokens that choose where they leave, as under `early-exit` and `shallow-deep`; known: agreement, first-exit, kv-fill (the form is name[:variant][@speedup], as in unified:even@3)");
}

#[test]
fn mistakes_in_the_short_form() {
    assert_snapshot!(parse_error("unifed@2"), @"unknown strategy `unifed` (did you mean `unified`?); known: [all]");
    assert_snapshot!(parse_error("zzz"), @"unknown strategy `zzz`; known: [all]");
    assert_snapshot!(parse_error("unified:evn@2"), @"unknown variant `evn` of `unified` (did you mean `even`?); known: published, even, modulo, adaskip");
    assert_snapshot!(parse_error("top:even@2"), @"`top` has no variants, but `even` was given; leave it out");
    assert_snapshot!(parse_error("unified@2x"), @"cannot read strategy `unified@2x`: `2x` after the @ is not a number (the form is name[:variant][@speedup], as in unified:even@3)");
    assert_snapshot!(parse_error("unified@"), @"cannot read strategy `unified@`: `` after the @ is not a number (the form is name[:variant][@speedup], as in unified:even@3)");
    assert_snapshot!(parse_error("@2"), @"cannot read strategy `@2`: the name is missing (the form is name[:variant][@speedup], as in unified:even@3)");
    assert_snapshot!(parse_error("full@2"), @"cannot read strategy `full@2`: `full` takes no speedup (the form is name[:variant][@speedup], as in unified:even@3)");
    assert_snapshot!(parse_error("unified@0.5"), @"speedup 0.5 is not possible: it must be a finite number of at least 1");
    assert_snapshot!(parse_error("unified@-1e308"), @"speedup -1e308 is not possible: it must be a finite number of at least 1");
    assert_snapshot!(parse_error("unified@inf"), @"speedup inf is not possible: it must be a finite number of at least 1");
}

#[test]
fn mistakes_in_the_long_form() {
    #[derive(Debug, Deserialize)]
    #[expect(dead_code, reason = "only its errors are looked at")]
    struct Experiment {
        strategies: Vec<StrategySpec>,
    }
    let error = |text: &str| {
        let text = format!("strategies:\n  - full\n  - {text}\n");
        let error = serde_saphyr::from_str::<Experiment>(&text).unwrap_err();
        without_names(&error.to_string())
    };
    assert_snapshot!(error("unified: {speedup: 2, rul: even}"), @r#"
    error: line 3 column 27: unknown key `rul` of `unified` (did you mean `rule`?); known: rule, speedup, prefill
     --> <input>:3:27
      |
    1 | strategies:
    2 |   - full
    3 |   - unified: {speedup: 2, rul: even}
      |                           ^ unknown key `rul` of `unified` (did you mean `rule`?); known: rule, speedup, prefill
    "#);
    assert_snapshot!(error("full: {speedup: 2}"), @r#"
    error: line 3 column 12: unknown key `speedup`: `full` has no settings
     --> <input>:3:12
      |
    1 | strategies:
    2 |   - full
    3 |   - full: {speedup: 2}
      |            ^ unknown key `speedup`: `full` has no settings
    "#);
    assert_snapshot!(error("unified:\n      speedup: 2\n      rul: even"), @r#"
    error: line 5 column 7: unknown key `rul` of `unified` (did you mean `rule`?); known: rule, speedup, prefill
     --> <input>:5:7
      |
    3 |   - unified:
    4 |       speedup: 2
    5 |       rul: even
      |       ^ unknown key `rul` of `unified` (did you mean `rule`?); known: rule, speedup, prefill
    "#);
    assert_snapshot!(error("unified: {rule: evn}"), @r#"
    error: line 3 column 21: unknown value `evn` (did you mean `even`?); known: published, even, modulo, adaskip
     --> <input>:3:21
      |
    1 | strategies:
    2 |   - full
    3 |   - unified: {rule: evn}
      |                     ^ unknown value `evn` (did you mean `even`?); known: published, even, modulo, adaskip
    "#);
    assert_snapshot!(error("early-exit: {signal: margin}"), @r#"
    error: line 3 column 26: unknown value `margin`; known: softmax-margin, max-prob, entropy, cosine, patience
     --> <input>:3:26
      |
    1 | strategies:
    2 |   - full
    3 |   - early-exit: {signal: margin}
      |                          ^ unknown value `margin`; known: softmax-margin, max-prob, entropy, cosine, patience
    "#);
    assert_snapshot!(error("early-exit: {speedup: fast}"), @r#"
    error: line 3 column 27: invalid floating point
     --> <input>:3:27
      |
    1 | strategies:
    2 |   - full
    3 |   - early-exit: {speedup: fast}
      |                           ^ invalid floating point
    "#);
    assert_snapshot!(error("erly-exit: {speedup: 2}"), @r#"
    error: line 3 column 5: unknown strategy `erly-exit` (did you mean `early-exit`?); known: [all]
     --> <input>:3:5
      |
    1 | strategies:
    2 |   - full
    3 |   - erly-exit: {speedup: 2}
      |     ^ unknown strategy `erly-exit` (did you mean `early-exit`?); known: [all]
    "#);
    assert_snapshot!(error("unified:\n    speedup: 2"), @r#"
    error: line 3 column 5: a strategy is one name with its settings below it, but `speedup` stands beside `unified`; indent it if it is a setting of `unified`
     --> <input>:3:5
      |
    1 | strategies:
    2 |   - full
    3 |   - unified:
      |     ^ a strategy is one name with its settings below it, but `speedup` stands beside `unified`; indent it if it is a setting of `unified`
    4 |     speedup: 2
      |
    "#);
    assert_snapshot!(error("2"), @r#"
    error: line 3 column 5: invalid type: integer `2`, expected a strategy: `name[:variant][@speedup]`, or a map such as `unified: {rule: even, speedup: 3}`
     --> <input>:3:5
      |
    1 | strategies:
    2 |   - full
    3 |   - 2
      |     ^ invalid type: integer `2`, expected a strategy: `name[:variant][@speedup]`, or a map such as `unified: {rule: even, speedup: 3}`
    "#);
    assert_snapshot!(error("unified: 2"), @r#"
    error: line 3 column 5: invalid type: integer `2`, expected the settings of `unified` as a map, such as `unified: {speedup: 2}`
     --> <input>:3:5
      |
    1 | strategies:
    2 |   - full
    3 |   - unified: 2
      |     ^ invalid type: integer `2`, expected the settings of `unified` as a map, such as `unified: {speedup: 2}`
    "#);
    assert_snapshot!(error("{}"), @r#"
    error: line 3 column 5: a strategy is missing its name
     --> <input>:3:5
      |
    1 | strategies:
    2 |   - full
    3 |   - {}
      |     ^ a strategy is missing its name
    "#);
}

#[test]
fn settings_that_cannot_work() {
    assert_snapshot!(build_error("unified@10", 12), @"speedup 10 leaves 1 of 12 layers, and at least 2 must run; the largest possible speedup for 12 layers is 6");
    assert_snapshot!(build_error("unified@1e308", 12), @"speedup 1e308 leaves 0 of 12 layers, and at least 2 must run; the largest possible speedup for 12 layers is 6");
    assert_snapshot!(build_error("top@2", 3), @"speedup 2 leaves 1 of 3 layers, and at least 2 must run; the largest possible speedup for 3 layers is 1.5");
    assert_snapshot!(build_error("unified", 12), @"`unified` needs a target: write unified@2, or `speedup: 2` among its settings, or a list of speedups in the experiment");
    assert_snapshot!(build_error("unified: {speedup: .nan}", 12), @"speedup NaN is not possible: it must be a finite number of at least 1");
    assert_snapshot!(build_error("unified@1", 1), @"`unified` needs a model of 2 to 256 layers, not 1");
    assert_snapshot!(build_error("full", 0), @"`full` needs a model of 1 to 256 layers, not 0");
    assert_snapshot!(build_error("full", MAX_LAYERS + 1), @"`full` needs a model of 1 to 256 layers, not 257");
    assert_snapshot!(build_error("skip-decode: {speedup: 4, warmup-layers: 3}", 12), @"`warmup-layers` of `skip-decode`: 3 warm-up layers and one more are more than the 3 of 12 that this speedup leaves; the largest possible speedup with them is 3");
    assert_snapshot!(build_error("skip-decode: {speedup: 2, warmup-layers: 20}", 12), @"`warmup-layers` of `skip-decode`: 20 of 12 layers leave none to skip; it must be at most 11");
    assert_snapshot!(build_error("skip-decode: {max-layers: 8}", 12), @"`max-layers` of `skip-decode`: give min-layers too, or neither and a speedup");
    assert_snapshot!(build_error("skip-decode: {max-layers: 4, min-layers: 6}", 12), @"`max-layers` of `skip-decode`: 4 must lie between min-layers, 6, and the model's 12 layers");
    assert_snapshot!(build_error("skip-decode: {max-layers: 4, min-layers: 1}", 12), @"`min-layers` of `skip-decode`: 1 is too few with 1 warm-up layers; it must be at least 2");
    assert_snapshot!(build_error("skip-decode: {speedup: 2, schedule-length: 1}", 12), @"`schedule-length` of `skip-decode`: 1 tokens are no schedule; it must be 2 to 1048576, `max-new` or `expected`");
    assert_snapshot!(build_error("early-exit", 12), @"`early-exit` needs a target: write early-exit@2, or `speedup: 2` among its settings, or a list of speedups in the experiment");
    assert_snapshot!(build_error("early-exit@7", 12), @"speedup 7 leaves 1 of 12 layers, and at least 2 must run; the largest possible speedup for 12 layers is 6");
    assert_snapshot!(build_error("early-exit: {threshold: -1e308}", 12), @"`threshold` of `early-exit`: -1e308 is outside 0 to 1");
    assert_snapshot!(build_error("early-exit: {threshold: 1.5}", 12), @"`threshold` of `early-exit`: 1.5 is outside 0 to 1");
    assert_snapshot!(build_error("early-exit: {threshold: 0.5, first-exit: 12}", 12), @"`first-exit` of `early-exit`: 12 of 12 layers before the first check; it must be 1 to 11, so that a layer is left to skip");
    assert_snapshot!(build_error("early-exit: {threshold: 0.5, check-every: 0}", 12), @"`check-every` of `early-exit`: 0 layers between checks; it must be at least 1");
    assert_snapshot!(build_error("early-exit: {speedup: 4, first-exit: 6}", 12), @"`first-exit` of `early-exit`: every token runs 6 of 12 layers, so speedup 4 cannot be met; the largest possible speedup with it is 2");
    assert_snapshot!(short("early-exit@2").build(12).err().unwrap(), @"`early-exit` has no threshold: calibrate it to its target speedup first (`skipbench run` does), or give `threshold` among its settings");
}

#[test]
fn a_batch_of_another_model_is_refused() {
    for spec in StrategySpec::all() {
        // An oracle that needs references never meets a batch.
        let spec = spec.with_target(1.5).with_threshold(0.5);
        let spec = match spec.scoring(12) {
            Some(_) => spec.with_order((1..11).collect()),
            None => spec,
        };
        let mut strategy = match spec.build(12) {
            Ok(strategy) => strategy,
            Err(StrategyError::NeedsReferences { .. }) => continue,
            Err(error) => panic!("{spec}: {error}"),
        };
        let other = BatchShape {
            prompt_lens: vec![1],
            n_layers: 16,
            max_new_tokens: 4,
        };
        let (built_for, found) = (12, 16);
        assert_eq!(
            strategy.begin(&other),
            Err(StrategyError::OtherModel { built_for, found })
        );
    }
}

#[test]
fn schema_names_every_strategy_and_both_forms() {
    let schema = serde_json::to_string(&schemars::schema_for!(StrategySpec)).unwrap();
    let names: BTreeSet<_> = StrategySpec::all().iter().map(StrategySpec::name).collect();
    assert_eq!(names.len(), StrategySpec::all().len());
    for name in names {
        assert!(
            schema.contains(&format!("\"required\":[\"{name}\"]")),
            "{name}"
        );
        // The tag that serde derives is the name that the settings give.
        let spec = StrategySpec::all()
            .into_iter()
            .find(|s| s.name() == name)
            .unwrap();
        let json = serde_json::to_string(&spec).unwrap();
        assert!(json.starts_with(&format!("{{\"{name}\":")), "{json}");
        assert_eq!(serde_json::from_str::<StrategySpec>(&json).unwrap(), spec);
    }
    assert!(schema.contains("\"type\":\"string\""));
}

proptest! {
    #[test]
    fn no_input_panics(
        spec in any_spec(),
        target in proptest::num::f64::ANY,
        threshold in proptest::num::f64::ANY,
        n_layers in 0..2 * MAX_LAYERS,
        max_new_tokens in 0..20usize,
        text in ".{0,20}",
    ) {
        let _ = text.parse::<StrategySpec>();
        let _ = spec.explain(n_layers, max_new_tokens);
        let spec = spec.with_target(target).with_threshold(threshold);
        let _ = spec.explain(n_layers, max_new_tokens);
    }

    #[test]
    fn what_validates_runs_two_layers_or_more_within_the_model(
        spec in any_spec(),
        speedup in 1.0..20.0f64,
        n_layers in 1..=64usize,
    ) {
        // Whole targets alone, up to half the layers, what was published for one model, at most one sub-layer of each layer:
        // what asks for more than a number of layers has tests of its own.
        let variant = spec.variant().unwrap_or_default();
        prop_assume!(!["modulo", "adaskip"].contains(&variant) && !variant.contains("llama"));
        prop_assume!(!spec.to_string().contains('{'));
        prop_assume!(spec.name() != "sublayer-drop" && spec.draft().is_none_or(|draft| draft.name() != "sublayer-drop"));
        prop_assume!(!spec.name().starts_with("oracle") && spec.name() != "prompt-depth");
        let spec = spec.with_target(speedup);
        let Ok(explained) = spec.explain(n_layers, 32) else {
            // `full` and a target of at most half the depth must always work.
            prop_assert!(spec.name() != "full" && (n_layers <= 2 || speedup > n_layers as f64 / 2.0));
            return Ok(());
        };
        prop_assert!(explained.layers.iter().all(|layer| *layer < n_layers));
        prop_assert!(explained.layers.len() >= 2 || n_layers == 1 || explained.chosen_by.is_some());
        let kept = (n_layers as f64 / speedup + 1e-9).floor();
        if let ("unified" | "top" | "bottom" | "middle" | "random" | "block-influence" | "angular" | "sleb" | "perplexity", Some(layers)) =
            (spec.name(), explained.layers_per_step)
        {
            prop_assert_eq!(layers, kept);
        }
    }
}
