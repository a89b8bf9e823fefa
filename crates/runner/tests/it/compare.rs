//! `skipbench compare` on folders that were made for it: pairing, verdicts, outputs, refusals.

use crate::runs::{Change, FakeRun, block, machine, score, texts};
use crate::support::{assert_names, refused, skipbench};
use skipbench_engine::Block;
use skipbench_record::{Identity, Record};
use std::path::Path;

/// 8 batches, twice each, with the noise of a quiet machine; the strategy takes `seconds` where the full network takes 1.
fn blocks(seconds: f64) -> Vec<Block> {
    (0..16)
        .map(|index| {
            let (batch, pass) = (index % 8, index / 8);
            let noise = 1.0 + 0.01 * [0.3, -0.9, 0.6, 0.1, -0.4, 0.8, -0.7, 0.2][(index * 3) % 8];
            let per_batch = 1.0 + 0.1 * batch as f64;
            block(batch, pass, per_batch, per_batch * seconds * noise)
        })
        .collect()
}

fn baseline() -> FakeRun {
    FakeRun::of(texts(40), &["full", "unified@2", "top@2"]).timed(|strategy| match strategy {
        "full" => blocks(1.0),
        _ => blocks(0.5),
    })
}

/// Every so manieth answer loses its last half.
fn spoil(answers: &mut [String], every: usize) {
    for answer in answers.iter_mut().step_by(every) {
        let words: Vec<&str> = answer.split(' ').collect();
        *answer = words[..words.len() / 2].join(" ");
    }
}

/// Runs `compare` on both with more arguments; gives the exit code, stdout and stderr.
fn compare(old: &FakeRun, new: &FakeRun, more: &[&str]) -> (i32, String, String) {
    let dir = tempfile::tempdir().unwrap();
    old.write(&dir.path().join("old"));
    new.write(&dir.path().join("new"));
    compare_in(dir.path(), more)
}

fn compare_in(dir: &Path, more: &[&str]) -> (i32, String, String) {
    let mut command = skipbench();
    command.current_dir(dir).args(["compare", "old", "new"]);
    let output = command.args(more).output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    let stderr = text(output.stderr);
    assert!(!stderr.contains("panicked"), "{stderr}");
    (output.status.code().unwrap(), text(output.stdout), stderr)
}

/// The verdict on a cell in a dimension.
fn verdict(json: &str, strategy: &str, dimension: &str) -> String {
    let value: serde_json::Value = serde_json::from_str(json).unwrap();
    let cells = value["cells"].as_array().unwrap();
    let cell = cells.iter().find(|cell| cell["strategy"] == strategy);
    let checks = cell.unwrap()["checks"].as_array().unwrap();
    let check = checks.iter().find(|check| check["dimension"] == dimension);
    check
        .map_or("none", |check| check["verdict"].as_str().unwrap())
        .to_owned()
}

#[test]
fn the_same_folder_twice_is_the_same_all_over() {
    let dir = tempfile::tempdir().unwrap();
    baseline().write(&dir.path().join("old"));
    let mut command = skipbench();
    command
        .current_dir(dir.path())
        .args(["compare", "old", "old", "--json", "-"]);
    let output = command.output().unwrap();
    assert_eq!(output.status.code(), Some(0));
    let json = String::from_utf8(output.stdout).unwrap();
    for (strategy, dimension) in [
        ("full", "quality"),
        ("full", "tokens/s"),
        ("unified@2", "speed"),
        ("unified@2", "quality"),
        ("top@2", "tokens/s"),
    ] {
        assert_eq!(
            verdict(&json, strategy, dimension),
            "same",
            "{strategy} {dimension}"
        );
    }
    // The full network is its own yardstick.
    assert_eq!(verdict(&json, "full", "speed"), "none");
}

/// One run in which everything happens, in every form of output.
#[test]
fn every_output_tells_the_same() {
    let mut old = baseline();
    old.cells.truncate(3);
    let mut new = FakeRun::of(texts(40), &["full", "unified@2", "top@2", "middle@2"]);
    new = new.timed(|strategy| match strategy {
        "full" => blocks(1.0),
        "unified@2" => blocks(0.56),
        _ => blocks(0.5),
    });
    spoil(&mut new.cell("top@2").answers, 3);
    old.cells
        .extend(FakeRun::of(texts(40), &["bottom@2", "random@2"]).cells);
    let mut failed = FakeRun::of(texts(40), &["bottom@2"]).cells;
    failed[0]
        .record
        .fail("the model has \"too few\" layers <16> & more");
    new.cells.extend(failed);
    let dir = tempfile::tempdir().unwrap();
    old.write(&dir.path().join("old"));
    new.write(&dir.path().join("new"));
    let (code, table, _) = compare_in(
        dir.path(),
        &[
            "--json",
            "c.json",
            "--junit",
            "c.xml",
            "--markdown",
            "c.md",
            "--github",
        ],
    );
    assert_eq!(code, 1);
    insta::assert_snapshot!("compare_table", table);
    let read = |name: &str| std::fs::read_to_string(dir.path().join(name)).unwrap();
    insta::assert_snapshot!("compare_junit", read("c.xml"));
    insta::assert_snapshot!("compare_markdown", read("c.md"));
    let json = read("c.json");
    for (strategy, dimension, expected) in [
        ("unified@2", "speed", "worse"),
        ("unified@2", "tokens/s", "cannot-tell"),
        ("unified@2", "quality", "same"),
        ("top@2", "speed", "same"),
        ("top@2", "quality", "worse"),
        ("bottom@2", "result", "worse"),
        ("random@2", "result", "worse"),
    ] {
        assert_eq!(
            verdict(&json, strategy, dimension),
            expected,
            "{strategy} {dimension}"
        );
    }
}

#[test]
fn what_is_faster_or_better_is_said_and_is_no_failure() {
    let mut old = baseline();
    spoil(&mut old.cell("top@2").answers, 2);
    let new = baseline().timed(|strategy| match strategy {
        "unified@2" => blocks(0.4),
        "full" => blocks(1.0),
        _ => blocks(0.5),
    });
    let (code, json, _) = compare(&old, &new, &["--json", "-"]);
    assert_eq!(code, 0);
    assert_eq!(verdict(&json, "unified@2", "speed"), "better");
    assert_eq!(verdict(&json, "top@2", "quality"), "better");
}

/// A loss within the limits is none.
#[test]
fn limits_are_the_users() {
    let new = baseline().timed(|strategy| match strategy {
        "full" => blocks(1.0),
        _ => blocks(0.56),
    });
    let speed = |more: &[&str]| {
        let (code, json, _) = compare(&baseline(), &new, &[more, &["--json", "-"]].concat());
        (code, verdict(&json, "top@2", "speed"))
    };
    assert_eq!(speed(&[]), (1, "worse".to_owned()));
    assert_eq!(speed(&["--max-slowdown", "20%"]), (0, "same".to_owned()));
    assert_eq!(speed(&["--max-slowdown", "0.2"]), (0, "same".to_owned()));

    let mut new = baseline();
    spoil(&mut new.cell("top@2").answers, 3);
    let quality = |more: &[&str]| {
        let (code, json, _) = compare(&baseline(), &new, &[more, &["--json", "-"]].concat());
        (code, verdict(&json, "top@2", "quality"))
    };
    assert_eq!(quality(&[]), (1, "worse".to_owned()));
    assert_eq!(
        quality(&["--max-quality-drop", "60"]),
        (0, "same".to_owned())
    );
}

/// What slows the full network as well shows in tokens per second alone, and never without a word.
#[test]
fn a_slower_build_is_told_from_a_slower_strategy() {
    let slower = |_: &str| -> Vec<Block> {
        let mut all = blocks(0.5);
        for times in all
            .iter_mut()
            .flat_map(|block| [&mut block.full, &mut block.strategy])
        {
            times.step_s.iter_mut().for_each(|seconds| *seconds *= 1.2);
        }
        all
    };
    let run = || FakeRun::of(texts(5), &["unified@2"]);
    let (old, new) = (run().timed(|_| blocks(0.5)), run().timed(slower));
    let (code, json, _) = compare(&old, &new, &["--json", "-"]);
    assert_eq!(code, 0);
    assert_eq!(verdict(&json, "unified@2", "speed"), "same");
    assert_eq!(verdict(&json, "unified@2", "tokens/s"), "cannot-tell");
    assert_names(
        &json,
        &[
            "alone fails no gate",
            "the full network beside it changed by -16.7%",
        ],
    );
    let (_, annotations, _) = compare(&old, &new, &["--github"]);
    assert_names(&annotations, &["::warning title=tokens/s%2C cannot tell"]);
    let (code, json, _) = compare(&old, &new, &["--tokens-per-s", "--json", "-"]);
    assert_eq!(
        (code, verdict(&json, "unified@2", "tokens/s").as_str()),
        (1, "worse")
    );
}

#[test]
fn too_little_is_said_to_be_too_little() {
    let noisy = |shift: f64| -> Vec<Block> {
        let noise = [0.08, -0.1, 0.05];
        let all = noise.iter().enumerate();
        all.map(|(batch, noise)| block(batch, 0, 1.0, 0.5 * (1.0 + shift * noise)))
            .collect()
    };
    let run = |blocks: &dyn Fn() -> Vec<Block>| {
        FakeRun::of(texts(40), &["unified@2"]).timed(|_| blocks())
    };
    let (old, mut new) = (run(&|| noisy(1.0)), run(&|| noisy(-1.0)));
    spoil(&mut new.cell("unified@2").answers[..3], 3);
    let (code, table, _) = compare(&old, &new, &[]);
    assert_eq!(code, 0);
    assert_names(
        &table,
        &["batches would tell, not 3", "prompts would tell, not 40"],
    );

    let single = run(&|| blocks(0.5)[..1].to_vec());
    let (_, table, _) = compare(
        &single,
        &single.clone().timed(|_| blocks(0.9)[..1].to_vec()),
        &[],
    );
    assert_names(&table, &["one batch cannot tell; two are the least"]);
}

#[test]
fn another_machine_leaves_speed_open_unless_asked() {
    let new = baseline().with(|record| {
        record.timing.as_mut().unwrap().made.machine = machine(1);
    });
    let (code, json, _) = compare(&baseline(), &new, &["--json", "-"]);
    assert_eq!(code, 0);
    assert_eq!(verdict(&json, "top@2", "speed"), "cannot-tell");
    assert_eq!(verdict(&json, "top@2", "tokens/s"), "none");
    assert_eq!(verdict(&json, "top@2", "quality"), "same");
    assert_names(&json, &["another machine (threads 1, not 2)"]);
    let (_, json, _) = compare(&baseline(), &new, &["--across", "machine", "--json", "-"]);
    assert_eq!(verdict(&json, "top@2", "speed"), "same");
}

#[test]
fn other_weights_texts_or_settings_are_not_comparable() {
    let weights = |record: &mut Record| record.model.weights = "d4".repeat(32);
    let settings = |record: &mut Record| {
        let from = std::mem::take(&mut record.answers_from);
        record.answers_from = from.with("max-new-tokens", 32);
        record.renew();
    };
    let binary = |record: &mut Record| {
        let from = std::mem::take(&mut record.answers_from);
        record.answers_from = from.with("binary", "another");
        record.renew();
    };
    let mut fewer = texts(40);
    fewer.truncate(30);
    let cases: [(FakeRun, &str, &[&str]); 3] = [
        (
            baseline().with(weights),
            "model",
            &["model adapted: weights (a1a1a1a1 -> d4d4d4d4)"],
        ),
        (
            baseline().with(settings),
            "settings",
            &["max-new-tokens (64 -> 32)"],
        ),
        (
            FakeRun::of(fewer, &["full", "unified@2", "top@2"]),
            "task",
            &["task translation: prompts (40 -> 30)"],
        ),
    ];
    for (new, axis, parts) in cases {
        let (code, stdout, stderr) = compare(&baseline(), &new, &[]);
        assert_eq!((code, stdout.as_str()), (2, ""), "{axis}");
        assert_names(&stderr, parts);
        assert_names(&stderr, &[&format!("`--across {axis}`")]);
        let (code, json, stderr) = compare(&baseline(), &new, &["--across", axis, "--json", "-"]);
        assert_eq!(code, 0, "{stderr}");
        assert_eq!(verdict(&json, "top@2", "quality"), "same", "{axis}");
    }
    assert_eq!(compare(&baseline(), &baseline().with(binary), &[]).0, 0);
}

/// Prompts are found by their text, whatever their order and their ids.
#[test]
fn prompts_are_paired_by_their_text() {
    let mut turned = texts(40);
    turned.reverse();
    let old = FakeRun::of(texts(40), &["top@2"]);
    let new = FakeRun::of(turned, &["top@2"]);
    let (code, json, stderr) = compare(&old, &new, &["--across", "task", "--json", "-"]);
    assert_eq!(code, 0, "{stderr}");
    assert_names(&json, &["all 40 answers are the same"]);
    let other = texts(80).split_off(40);
    let (code, table, _) = compare(&old, &FakeRun::of(other, &["top@2"]), &["--across", "task"]);
    assert_eq!(code, 0);
    assert_names(&table, &["no prompt is in both runs", "1 cannot tell"]);
}

#[test]
fn pairs_set_other_strategies_side_by_side() {
    let dir = tempfile::tempdir().unwrap();
    let mut run = baseline();
    spoil(&mut run.cell("top@2").answers, 2);
    run.write(&dir.path().join("old"));
    run.write(&dir.path().join("new"));
    let pair = |pair: &str| compare_in(dir.path(), &["--pair", pair, "--json", "-"]);
    let (code, json, _) = pair("unified@2=top@2");
    assert_eq!(code, 1);
    assert_eq!(verdict(&json, "unified@2", "quality"), "worse");
    assert_names(
        &json,
        &["\"new_strategy\": \"top@2\"", "unified@2 -> top@2"],
    );
    assert!(!json.contains("batch 1 full"), "only the pair: {json}");
    // However it is written.
    assert_eq!(pair("unified: {speedup: 2}=top@2.0").0, 1);
    let (code, _, stderr) = pair("unified@2=top@3");
    assert_eq!(code, 2);
    assert_names(
        &stderr,
        &[
            "NEW has no strategy `top@3`",
            "`full`, `top@2`, `unified@2`",
        ],
    );
    for wrong in ["unified@2", "=top@2", "unified@2="] {
        let mut command = skipbench();
        command
            .current_dir(dir.path())
            .args(["compare", "old", "new", "--pair", wrong]);
        assert_names(&refused(&mut command), &["OLD=NEW"]);
    }
}

/// A strategy that this program does not know is found by its label, and is the same with the same settings.
#[test]
fn unknown_strategies_are_paired_too() {
    let run = |stride: u64| {
        FakeRun::of(texts(5), &["top@2", "full"]).with(|record| {
            if !record.strategy.is_full {
                record.strategy.label = "rotating@2".to_owned();
                record.strategy.spec = serde_json::json!({"rotating": {"stride": stride}});
            }
        })
    };
    let (code, json, _) = compare(&run(1), &run(1), &["--json", "-"]);
    assert_eq!(code, 0);
    assert_eq!(verdict(&json, "rotating@2", "quality"), "same");
    let (code, json, _) = compare(&run(1), &run(2), &["--json", "-"]);
    assert_eq!(code, 1);
    assert_eq!(verdict(&json, "rotating@2", "result"), "worse");
    let (code, json, _) = compare(
        &run(1),
        &run(2),
        &["--pair", "rotating@2=rotating@2", "--json", "-"],
    );
    assert_eq!(
        (code, verdict(&json, "rotating@2", "quality").as_str()),
        (0, "same")
    );
}

/// Right-or-wrong scores of a metric that this program does not know.
#[test]
fn right_or_wrong_is_tested_by_mcnemar() {
    let run = |wrong: std::ops::Range<usize>, lose: f64| {
        let mut run = FakeRun::of(texts(200), &["top@2"]);
        let cell = run.cell("top@2");
        cell.record.task.metrics = vec!["exact-answer".to_owned()];
        let right = |index: usize| if wrong.contains(&index) { lose } else { 1.0 };
        let scores = score("exact-answer", (0..200).map(right).collect());
        cell.record.quality.as_mut().unwrap().scores = vec![scores];
        for index in wrong {
            cell.answers[index].push('x');
        }
        run
    };
    let json = |old: &FakeRun, new: &FakeRun| compare(old, new, &["--json", "-"]);
    let (code, worse, _) = json(&run(0..10, 0.0), &run(0..40, 0.0));
    assert_eq!(code, 1);
    assert_eq!(verdict(&worse, "top@2", "quality"), "worse");
    assert_names(&worse, &["McNemar, exact", "\"value\": -15.0"]);
    // Three more of 200 may be chance.
    let (code, open, _) = json(&run(0..10, 0.0), &run(0..13, 0.0));
    assert_eq!(
        (code, verdict(&open, "top@2", "quality").as_str()),
        (0, "cannot-tell")
    );
    let (_, unknown, _) = json(&run(0..10, 0.5), &run(0..40, 0.5));
    assert_eq!(verdict(&unknown, "top@2", "quality"), "cannot-tell");
    assert_names(&unknown, &["metric `exact-answer` is not known"]);
}

#[test]
fn times_of_one_side_alone_tell_nothing() {
    let untimed = FakeRun::of(texts(40), &["full", "unified@2", "top@2"]);
    for (old, new, side) in [
        (&baseline(), &untimed, "NEW"),
        (&untimed, &baseline(), "BASELINE"),
    ] {
        let (code, json, _) = compare(old, new, &["--json", "-"]);
        assert_eq!(code, 0);
        assert_eq!(verdict(&json, "top@2", "speed"), "cannot-tell");
        assert_names(&json, &[&format!("not timed in {side}")]);
    }
    let (_, json, _) = compare(&untimed, &untimed, &["--json", "-"]);
    assert_eq!(verdict(&json, "top@2", "speed"), "none");
    let broken = baseline().timed(|_| vec![block(0, 0, 0.0, 0.0), block(1, 0, 1.0, 0.0)]);
    let (code, json, _) = compare(&baseline(), &broken, &["--json", "-"]);
    assert_eq!(code, 0);
    assert_names(&json, &["there is no usable time"]);
}

#[test]
fn bad_input_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    baseline().write(&at("old"));
    std::fs::create_dir(at("empty")).unwrap();
    let refused = |arguments: &[&str]| {
        let mut command = skipbench();
        command
            .current_dir(dir.path())
            .arg("compare")
            .args(arguments);
        refused(&mut command)
    };
    assert_names(&refused(&["old", "nowhere"]), &["nowhere holds no run"]);
    assert_names(
        &refused(&["empty", "old"]),
        &["empty holds no run: run.json is missing"],
    );
    for (version, part) in [("99", "has format version 99"), ("null", "run.json")] {
        baseline().write(&at("other"));
        let text = std::fs::read_to_string(at("other/run.json")).unwrap();
        let text = text.replacen("\"version\": 4", &format!("\"version\": {version}"), 1);
        std::fs::write(at("other/run.json"), text).unwrap();
        assert_names(&refused(&["old", "other"]), &[part]);
        std::fs::remove_dir_all(at("other")).unwrap();
    }
    let mut other = FakeRun::of(texts(5), &["top@2"]);
    other.cells[0].record.model.name = "base".to_owned();
    other.write(&at("base"));
    assert_names(
        &refused(&["old", "base"]),
        &["no cell of BASELINE is in NEW", "base translation"],
    );
    for (option, value) in [
        ("--max-slowdown", "3"),
        ("--max-slowdown", "nan"),
        ("--max-quality-drop", "-1"),
        ("--alpha", "0"),
        ("--alpha", "NaN"),
        ("--across", "everything"),
    ] {
        let option = format!("{option}={value}");
        assert_names(&refused(&["old", "old", &option]), &[value]);
    }
    for output in ["old/cells.jsonl", "./old/../old/run.json"] {
        assert_names(
            &refused(&["old", "old", "--json", output]),
            &["would overwrite what BASELINE reads"],
        );
    }
    assert_names(
        &refused(&["old", "old", "--json", "x", "--junit", "./x"]),
        &["are the same file"],
    );
    assert_names(
        &refused(&["old", "old", "--json", "-", "--github"]),
        &["print to stdout together"],
    );
    assert_names(
        &refused(&["old", "old", "--json", "no/where.json"]),
        &["no/where.json"],
    );
}

/// What the cells depend on beside what the records say for themselves.
#[test]
fn a_part_that_is_not_known_is_a_setting() {
    let with = |record: &mut Record| {
        let from: Identity = std::mem::take(&mut record.answers_from);
        record.answers_from = from.with("temperature", 0.7);
        record.renew();
    };
    let (code, _, stderr) = compare(&baseline(), &baseline().with(with), &[]);
    assert_eq!(code, 2);
    assert_names(&stderr, &["temperature (none -> 0.7)", "--across settings"]);
}
