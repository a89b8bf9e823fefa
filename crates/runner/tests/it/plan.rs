//! `skipbench plan`.

use crate::support::{assert_names, checkpoint, skipbench, stdout};
use serde_json::Value;
use std::path::{Path, PathBuf};

/// An experiment on text files, with slips in it.
fn slips(dir: &Path) -> PathBuf {
    let path = dir.join("e.yaml");
    for (name, text) in [
        ("s.txt", "a house\na cat\nthe dog\n"),
        ("r.txt", "a\nb\nc\n"),
    ] {
        std::fs::write(dir.join(name), text).unwrap();
    }
    let text = format!(
        "name: e
models: [{{name: m, path: {:?}}}]
tasks:
  - {{name: t, source: s.txt, reference: r.txt, prompt: '{{{{ source }}}} = {{target}}\\n ', prompts: 50, max-new-tokens: 510}}
  - {{builtin: translation, prompts: 2}}
strategies: [early-exit: {{threshold: 0.5}}, unified@2]
timing: {{batches: 2, repeats: 1}}
",
        checkpoint().canonicalize().unwrap()
    );
    std::fs::write(&path, text).unwrap();
    path
}

#[test]
fn a_plan_shows_what_the_model_gets_and_what_looks_like_a_slip() {
    let dir = tempfile::tempdir().unwrap();
    let path = slips(dir.path());
    let text = stdout(skipbench().arg("plan").arg(&path));
    assert_names(
        &text,
        &[
            r#""a house = {target}\\n ""#,
            "t with m: 3 of 3 prompts",
            "translation with m: 2 prompts, 32 to calibrate on",
            "Warning: task `t`: `prompts` asks for 50, but there are 3",
            "Warning: task `t`: the prompt holds {target}",
            r"Warning: task `t`: the prompt holds a backslash and a letter (\n)",
            "Warning: task `t`: 3 of 3 prompts end in a space",
            "Warning: task `t`: 3 of 3 prompts do not fit with 510 new tokens in the 512 positions of model `m`",
            "batch 1  beams 1",
            "kv-fill propagate",
            "6 cells, results in runs/e",
            "on this machine at the full network's pace",
        ],
    );
    assert!(!text.contains("Warning: task `translation`"), "{text}");
}

#[test]
fn a_plan_is_data_too() {
    let dir = tempfile::tempdir().unwrap();
    let path = slips(dir.path());
    let plan = |more: &[&str]| -> Value {
        let text = stdout(skipbench().arg("plan").arg(&path).arg("--json").args(more));
        serde_json::from_str(&text).unwrap()
    };
    let whole = plan(&[]);
    assert_eq!(whole["experiment"], "e");
    assert_eq!(whole["out"], "runs/e");
    assert_eq!(whole["cells"].as_array().unwrap().len(), 6);
    assert_eq!(whole["tasks"][0]["prompt"], "a house = {target}\\n ");
    assert_eq!(whole["tasks"][0]["available"], 3);
    assert!(whole["tasks"][0]["prompt_tokens"].as_u64().unwrap() > 3);
    assert_eq!(whole["warnings"].as_array().unwrap().len(), 5);
    assert!(whole["estimate"]["seconds"].as_f64().unwrap() > 0.0);

    let ids = |plan: &Value| -> Vec<String> {
        let cells = plan["cells"].as_array().unwrap().iter();
        cells
            .map(|cell| cell["id"].as_str().unwrap().to_owned())
            .collect()
    };
    let mut shards: Vec<String> = ["1/4", "2/4", "3/4", "4/4"]
        .iter()
        .flat_map(|shard| ids(&plan(&["--no-estimate", "--shard", shard])))
        .collect();
    let mut all = ids(&whole);
    shards.sort();
    all.sort();
    assert_eq!(shards, all);

    let set = plan(&[
        "--no-estimate",
        "--set",
        "tasks=[{builtin: translation, prompts: 4}]",
        "--set",
        "speedups=[2, 3]",
        "--set",
        "strategies.1=unified",
        "--out",
        "elsewhere",
    ]);
    assert_eq!(set["out"], "elsewhere");
    assert_eq!(set["cells"].as_array().unwrap().len(), 4);
    assert_eq!(set["tasks"][0]["prompts"], 4);
    assert_eq!(set["estimate"], Value::Null);
}

/// Each model runs the strategies that it names, or else those of the experiment, and what is wrong with one is said at its place.
#[test]
fn a_model_may_have_strategies_of_its_own() {
    let dir = tempfile::tempdir().unwrap();
    let plan = |strategies: &str| {
        let path = dir.path().join("own.yaml");
        let model = checkpoint().canonicalize().unwrap();
        let text = format!(
            "name: own
models: [{{name: one, path: {model:?}}}, {{name: other, path: {model:?}, strategies: {strategies}}}]
tasks: [{{builtin: translation, prompts: 2}}]
strategies: [unified]
speedups: [2, 4]
timing: {{batches: 0}}
"
        );
        std::fs::write(&path, text).unwrap();
        let mut plan = skipbench();
        plan.arg("plan").arg(path).args(["--json", "--no-estimate"]);
        plan
    };
    let cells: Value = serde_json::from_str(&stdout(&mut plan("[top, \"middle@1.5\"]"))).unwrap();
    let cells: Vec<(&str, &str)> = cells["cells"]
        .as_array()
        .unwrap()
        .iter()
        .map(|cell| {
            (
                cell["model"].as_str().unwrap(),
                cell["strategy"].as_str().unwrap(),
            )
        })
        .collect();
    let wanted = [
        ("one", "full"),
        ("one", "unified@2"),
        ("one", "unified@4"),
        ("other", "full"),
        ("other", "top@2"),
        ("other", "top@4"),
        ("other", "middle@1.5"),
    ];
    assert_eq!(cells, wanted);
    let refused = plan("[top, \"unified@900\"]").output().unwrap();
    assert_eq!(refused.status.code(), Some(2));
    let error = String::from_utf8(refused.stderr).unwrap();
    assert_names(
        &error,
        &["own.yaml:2:", "strategy `unified@900` with model `other`"],
    );
}

#[test]
fn results_never_go_into_a_checkpoint() {
    let dir = tempfile::tempdir().unwrap();
    let path = slips(dir.path());
    let into = skipbench()
        .arg("plan")
        .arg(&path)
        .arg("--out")
        .arg(checkpoint())
        .output()
        .unwrap();
    assert_eq!(into.status.code(), Some(2));
    let error = String::from_utf8(into.stderr).unwrap();
    assert_names(&error, &["into the checkpoint folder"]);
}

#[test]
fn an_experiment_extends_another_in_another_folder() {
    let dir = tempfile::tempdir().unwrap();
    slips(dir.path());
    std::fs::create_dir(dir.path().join("sub")).unwrap();
    let path = dir.path().join("sub/f.yaml");
    std::fs::write(
        &path,
        "extends: ../e.yaml\nname: f\nstrategies: [unified]\n",
    )
    .unwrap();
    let text = stdout(skipbench().arg("plan").arg("--no-estimate").arg(&path));
    // The texts were found beside the file that names them.
    assert_names(
        &text,
        &["t with m: 3 of 3 prompts", "4 cells, results in runs/f"],
    );
}
