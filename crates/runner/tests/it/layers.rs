//! `skipbench layers`.

use crate::support::{assert_names, checkpoint, refused, skipbench, stdout};
use serde_json::Value;

fn layers(strategy: &str, n_layers: &str) -> String {
    stdout(skipbench().args(["layers", "--strategy", strategy, "--n-layers", n_layers]))
}

#[test]
fn the_layers_are_drawn() {
    let drawn: Vec<String> = [
        "full",
        "unified@2",
        "unified:even@2",
        "top@2",
        "middle@3",
        "skip-decode@2",
        "self-speculative:top@2",
    ]
    .iter()
    .map(|strategy| format!("{strategy}\n{}", layers(strategy, "16")))
    .collect();
    insta::assert_snapshot!(drawn.join("\n"));
}

#[test]
fn json_is_one_object_with_the_layers() {
    let text = stdout(skipbench().args([
        "layers",
        "--strategy",
        "bottom@2",
        "--n-layers",
        "12",
        "--json",
    ]));
    let value: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(value["layers"], serde_json::json!([6, 7, 8, 9, 10, 11]));
}

#[test]
fn a_speedup_that_leaves_fewer_than_two_layers_is_refused() {
    let text = refused(skipbench().args(["layers", "--strategy", "unified@9", "--n-layers", "12"]));
    assert_names(&text, &["unified@9", "6"]);
    insta::assert_snapshot!(text);
}

#[test]
fn every_strategy_is_listed() {
    let text = stdout(skipbench().args(["layers", "--list"]));
    assert_names(
        &text,
        &[
            "unified: layers spread",
            ":published :even",
            "oracle-depth: an oracle",
        ],
    );
    let listed: Value =
        serde_json::from_str(&stdout(skipbench().args(["layers", "--list", "--json"]))).unwrap();
    let listed = listed.as_array().unwrap();
    let names: Vec<_> = listed.iter().map(|entry| entry["name"].as_str()).collect();
    let all = skipbench_strategy::StrategySpec::all();
    let known: Vec<_> = all.iter().map(|spec| Some(spec.name())).collect();
    assert_eq!(names, known);
}

#[test]
fn an_unknown_name_gets_the_nearest() {
    for (strategy, near) in [
        ("unifed@2", "unified"),
        ("unified:publised@2", "published"),
        ("early-exit:max-porb@2", "max-prob"),
        ("early-exit: {treshold: 0.5}", "threshold"),
    ] {
        let text =
            refused(skipbench().args(["layers", "--strategy", strategy, "--n-layers", "12"]));
        assert_names(&text, &[&format!("did you mean `{near}`?")]);
    }
}

#[test]
fn a_model_and_text_settle_what_scores_choose() {
    let dir = tempfile::tempdir().unwrap();
    let text = dir.path().join("prompts.jsonl");
    std::fs::write(
        &text,
        stdout(skipbench().args(["data", "translation", "-n", "4"])),
    )
    .unwrap();
    let layers = |calibrated: bool| {
        let mut command = skipbench();
        command
            .args(["layers", "--strategy", "sleb@2", "--json", "--model"])
            .arg(checkpoint());
        if calibrated {
            command.arg("--calibration").arg(&text);
        }
        serde_json::from_str::<Value>(&stdout(&mut command)).unwrap()
    };
    let open = layers(false);
    assert_eq!(open["chosen_by"], "scores on calibration text");
    assert_eq!(
        (&open["n_layers"], &open["layers"]),
        (&16.into(), &Value::Array(Vec::new()))
    );
    let settled = layers(true);
    assert_eq!(settled["layers"].as_array().unwrap().len(), 8);
    assert!(settled["chosen_by"].is_null());
}
