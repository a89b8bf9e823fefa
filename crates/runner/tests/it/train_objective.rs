//! `skipbench train` under the objectives of the papers.

use crate::support::{assert_names, refused, repository, skipbench};
use crate::train::{ONE_STEP, config, files, logged, train, tuning, weights, write};

#[test]
fn objectives_in_pieces_end_with_the_bytes_of_a_run_in_a_piece() {
    let dir = tempfile::tempdir().unwrap();
    train(&config(dir.path(), ""), &[]);
    let objectives = [
        "objective: {unified: {speedups: [1, 1.5, 2], full-loss: 0.5, state-cosine: 0.2}}",
        "objective: {early-exit: {exits: [2, 3]}}\ndistil: {logits: 0.5, temperature: 2}",
        "objective: {layer-skip: {p-max: 0.8, dropout: rising, curriculum: rotational, rotation: 2}}",
        "objective: {layer-drop: {p: 0.5, per: sample}}\ndistil: {states: 0.5}",
        "objective: {pruning-on-demand: {p: 0.5}}",
        "objective: layer-consistency",
    ];
    for (index, objective) in objectives.into_iter().enumerate() {
        let [whole, pieces] = ["whole", "pieces"].map(|name| {
            let out = format!("{name}-{index}");
            (tuning(dir.path(), &out, objective), dir.path().join(out))
        });
        train(&whole.0, &[]);
        for _ in 0..3 {
            train(&pieces.0, &[ONE_STEP]);
        }
        assert!(files(&pieces.1) == files(&whole.1), "{objective}");
        for column in [
            "loss",
            "last_loss",
            "layers_per_token",
            "full_layers_per_token",
        ] {
            let (whole, pieces) = (logged(&whole.1, column), logged(&pieces.1, column));
            assert_eq!(whole, pieces, "{objective}: {column}");
        }
    }
    // Another objective is another run.
    let other = tuning(
        dir.path(),
        "whole-5",
        "objective: {layer-consistency: {min-layers: 2}}",
    );
    let text = refused(skipbench().arg("train").arg(&other));
    assert_names(
        &text,
        &["`objective.layer-consistency.min-layers` was 1 and is 2"],
    );
}

/// What objectives train, seen from outside.
#[test]
fn objectives_run_what_they_say_and_train_no_more() {
    let dir = tempfile::tempdir().unwrap();
    train(&config(dir.path(), ""), &[]);
    let start = weights(&dir.path().join("model"));
    // (objective, layers per token, those of passes beside it, parts of the names of what is not trained)
    let cases: [(&str, f64, f64, &[&str]); 5] = [
        ("objective: early-exit", 4.0, 0.0, &[]),
        ("objective: {layer-drop: {p: 1}}", 0.0, 0.0, &["layers."]),
        (
            "objective: {layer-drop: {p: 1}}\ndistil: {logits: 1}",
            0.0,
            4.0,
            &["layers."],
        ),
        (
            "objective: {pruning-on-demand: {p: 0, weight: 1, exits: [2]}}",
            4.0,
            0.0,
            &["layers.2.", "layers.3."],
        ),
        (
            "objective: {unified: {speedup: 1, full-loss: 1}}",
            4.0,
            4.0,
            &[],
        ),
    ];
    for (index, (objective, per_token, beside, untrained)) in cases.into_iter().enumerate() {
        let out = format!("tuned-{index}");
        // A weight that has a gradient of zeros still decays.
        let path = tuning(dir.path(), &out, objective);
        let text = std::fs::read_to_string(&path).unwrap();
        std::fs::write(&path, text.replace("weight-decay: 0.1", "weight-decay: 0")).unwrap();
        train(&path, &[]);
        let model = dir.path().join(out);
        assert_eq!(
            logged(&model, "layers_per_token"),
            [per_token; 3],
            "{objective}"
        );
        assert_eq!(
            logged(&model, "full_layers_per_token"),
            [beside; 3],
            "{objective}"
        );
        for (name, values) in &weights(&model) {
            let is_untrained = untrained.iter().any(|part| name.contains(part));
            assert_eq!(*values == start[name], is_untrained, "{objective}: {name}");
        }
    }
}

#[test]
fn objectives_that_cannot_work_are_refused_before_anything_is_written() {
    let dir = tempfile::tempdir().unwrap();
    let refusals: [(&str, &[&str]); 5] = [
        ("objective: earlyexit", &["did you mean `early-exit`?"]),
        (
            "objective: {early-exit: {exits: [2, 5]}}",
            &["`objective.early-exit.exits` holds 5", "4 layers"],
        ),
        (
            "objective: {unified: {speedup: 9}}",
            &["`objective.unified`", "largest possible"],
        ),
        (
            "objective: {layer-drop: {p: 2}}",
            &["`objective.layer-drop.p`", "0 to 1"],
        ),
        ("distil: {logits: 1}", &["`distil.logits`"]),
    ];
    for (objective, named) in refusals {
        let path = config(dir.path(), &format!("{objective}\n"));
        let text = refused(skipbench().arg("train").arg(&path));
        assert_names(&text, named);
        assert_names(&text, &["train.yaml"]);
    }
    assert!(!dir.path().join("model").exists());
}

/// Each config of `experiments/train/objectives` trains the checkpoint that it names.
#[test]
fn the_example_of_each_objective_trains() {
    let dir = tempfile::tempdir().unwrap();
    let folder = repository().join("experiments/train/objectives");
    let mut seen = 0;
    for entry in std::fs::read_dir(folder).unwrap() {
        let name = entry.as_ref().unwrap().file_name().into_string().unwrap();
        let text = std::fs::read_to_string(entry.unwrap().path()).unwrap();
        let base = repository().join("data/checkpoints/base");
        let text = text
            .replace("../../../data/checkpoints/base", base.to_str().unwrap())
            .replace("../../../runs/objectives/", "")
            .replace("steps: 100", "steps: 1")
            .replace("warm-up-steps: 10", "warm-up-steps: 1")
            .replace("batch-size: 16", "batch-size: 2");
        let path = write(dir.path(), &name, &text);
        train(&path, &[]);
        let out = dir.path().join(name.trim_end_matches(".yaml"));
        assert!(logged(&out, "last_loss")[0] > 0.0);
        seen += 1;
    }
    assert_eq!(seen, 8);
}
