//! What experiments make of strategies that need more than a target: calibration, fills, bands, oracles, beams.

use crate::support::{assert_names, checkpoint, csv_rows, refused, skipbench, stdout};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// An experiment on the shipped base model; `more` holds strategies and whatever else differs.
fn experiment(dir: &Path, more: &str) -> PathBuf {
    let path = dir.join("experiment.yaml");
    let text = format!(
        "name: small\nmodels: [{{name: base, path: {:?}}}]\ntasks: [{{builtin: translation, prompts: 6, calibration-prompts: 6}}]\n{more}",
        checkpoint().canonicalize().unwrap()
    );
    std::fs::write(&path, text).unwrap();
    path
}

const UNTIMED: &str = "timing: {batches: 0}\n";
const TIMED: &str = "timing: {batches: 2, repeats: 1, warm-up: 1, new-tokens: 4}\n";

struct Outcome {
    printed: String,
    out: PathBuf,
}

impl Outcome {
    fn lines(&self, name: &str) -> Vec<Value> {
        let text = std::fs::read_to_string(self.out.join(name)).unwrap();
        text.lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect()
    }

    /// Records by the strategy as it ran.
    fn records(&self) -> BTreeMap<String, Value> {
        let label = |record: &Value| -> String {
            let label = record["strategy"]["label"].as_str().unwrap();
            format!("{label} beams {}", record["search"]["beams"])
        };
        let records = self.lines("cells.jsonl").into_iter();
        records.map(|record| (label(&record), record)).collect()
    }
}

fn run(dir: &Path, more: &str) -> Outcome {
    let out = dir.join("out");
    let experiment = experiment(dir, more);
    let printed = stdout(
        skipbench()
            .arg("run")
            .arg(experiment)
            .arg("--out")
            .arg(&out),
    );
    Outcome { printed, out }
}

#[test]
fn scores_are_computed_once_and_kept() {
    let dir = tempfile::tempdir().unwrap();
    let strategies =
        "strategies: [block-influence, sleb, {sublayer-drop: {rule: similarity, speedup: 1.5}}]\n";
    let first = run(dir.path(), &format!("{strategies}{UNTIMED}"));
    let scores = first.lines("calibration.jsonl");
    let sleb = &first.records()["sleb@2 beams 1"];
    let order = sleb["executed"]["spec"]["sleb"]["order"]
        .as_array()
        .unwrap();
    assert_eq!(order.len(), 8);
    assert!(
        order
            .iter()
            .all(|layer| (1..15).contains(&layer.as_u64().unwrap()))
    );
    assert_eq!(sleb["quality"]["layers_per_token"], 8.0);
    // Another target asks for another number of SLEB's rounds; block influence is known for all.
    let again = run(dir.path(), &format!("{strategies}speedups: [4]\n{UNTIMED}"));
    let all = again.lines("calibration.jsonl");
    assert_eq!(all[..scores.len()], scores[..], "nothing is scored twice");
    let keys: BTreeSet<&str> = all
        .iter()
        .map(|line| line["key"].as_str().unwrap())
        .collect();
    assert_eq!(keys.len(), all.len());
    // SLEB removes four layers more, each the best of those that are left but the first and the last.
    let added = |about: &str| {
        let lines = all[scores.len()..].iter();
        lines
            .filter(|line| line["about"].as_str().unwrap().contains(about))
            .count()
    };
    assert_eq!(added("score of dropping"), 6 + 5 + 4 + 3);
    assert_eq!(added("order of layers"), 1);
}

#[test]
fn a_schedule_is_laid_over_the_expected_length() {
    let dir = tempfile::tempdir().unwrap();
    let outcome = run(
        dir.path(),
        &format!("strategies: [{{skip-decode: {{schedule-length: expected}}}}]\n{UNTIMED}"),
    );
    let records = outcome.records();
    let record = &records["skip-decode@2 {schedule-length: expected} beams 1"];
    let length = record["executed"]["spec"]["skip-decode"]["schedule-length"]
        .as_u64()
        .unwrap();
    assert!((6..40).contains(&length), "{length}");
    let layers = record["quality"]["layers_per_token"].as_f64().unwrap();
    assert!((layers - 8.0).abs() < 1.5, "near its target: {layers}");
}

#[test]
fn fills_are_an_axis_and_are_audited() {
    let dir = tempfile::tempdir().unwrap();
    let outcome = run(
        dir.path(),
        &format!(
            "strategies: [unified, early-exit, oracle-exit, \"early-exit:max-prob@2 {{kv-fill: copy}}\"]\nkv-fills: [propagate, mask, deferred]\n{UNTIMED}"
        ),
    );
    let records = outcome.records();
    assert_eq!(records.len(), 1 + 1 + 3 + 1 + 1, "{:?}", records.keys());
    let own = &records["early-exit:max-prob@2 {kv-fill: copy} beams 1"];
    assert_eq!(own["executed"]["kv_fill"], "copy");
    let audit = |label: &str| &records[label]["quality"]["kv_audit"];
    let propagate = audit("early-exit@2 beams 1");
    assert!(propagate["approximate_reads"].as_u64().unwrap() > 0);
    assert!(propagate["distance"].as_f64().unwrap() > 0.0);
    let mask = audit("early-exit@2 {kv-fill: mask} beams 1");
    assert!(mask["masked_reads"].as_u64().unwrap() > 0);
    assert!(mask["distance"].is_null());
    let deferred = audit("early-exit@2 {kv-fill: deferred} beams 1");
    assert_eq!(deferred["approximate_reads"], 0);
    assert!(deferred["deferred_distance"].as_f64().unwrap() < 1e-5);
    assert!(audit("unified@2 beams 1").is_null(), "it reads no hole");
    assert_eq!(
        records["oracle-exit beams 1"]["executed"]["kv_fill"],
        "none"
    );
}

#[test]
fn random_sets_are_a_band_and_oracles_are_not_timed() {
    let dir = tempfile::tempdir().unwrap();
    let outcome = run(
        dir.path(),
        &format!(
            "strategies: [{{random: {{seeds: 4}}}}, unified, oracle-exit, oracle-depth]\n{TIMED}"
        ),
    );
    assert_names(
        &outcome.printed,
        &["random@2 (4 sets)", "no better than random sets"],
    );
    let records = outcome.records();
    assert_eq!(records.len(), 1 + 4 + 1 + 2);
    let timed = |label: &str| !records[label]["timing"].is_null();
    assert!(timed("random@2 beams 1") && timed("unified@2 beams 1"));
    assert!(!timed("random@2 {seed: 3} beams 1"));
    assert!(!timed("oracle-exit beams 1") && !timed("oracle-depth beams 1"));
    // An oracle of depths is never worse than the full network and never slower.
    let layers = |label: &str| {
        records[label]["quality"]["layers_per_token"]
            .as_f64()
            .unwrap()
    };
    assert!(layers("oracle-depth beams 1") <= 16.0);
    assert!(layers("oracle-exit beams 1") < 16.0);
    let full: Vec<Value> = outcome.lines("samples.jsonl");
    let of = |label: &str| -> Vec<&Value> {
        let id = &records[label]["id"];
        full.iter()
            .filter(|sample| sample["cell"] == *id)
            .map(|s| &s["tokens"])
            .collect()
    };
    assert_eq!(of("oracle-exit beams 1"), of("full beams 1"));
}

/// Of TER less is better.
#[test]
fn an_oracle_follows_the_direction_of_its_metric() {
    let dir = tempfile::tempdir().unwrap();
    let path = experiment(
        dir.path(),
        &format!("strategies: [oracle-depth]\n{UNTIMED}"),
    );
    let text = std::fs::read_to_string(&path).unwrap();
    let text = text.replace("prompts: 6,", "prompts: 6, metrics: [ter],");
    std::fs::write(&path, text).unwrap();
    let out = dir.path().join("out");
    stdout(skipbench().arg("run").arg(&path).arg("--out").arg(&out));
    let rows = csv_rows(&out.join("results.csv"));
    let ter: Vec<f64> = rows.iter().map(|row| row["ter"].parse().unwrap()).collect();
    assert!(ter[1] <= ter[0], "full {}, oracle {}", ter[0], ter[1]);
}

/// A band's sets have as many layers as the one that is timed, whatever the clock says of each.
#[test]
fn sets_of_a_band_are_matched_together() {
    let dir = tempfile::tempdir().unwrap();
    let outcome = run(
        dir.path(),
        &format!(
            "strategies: [{{random: {{seeds: 4}}}}]\nspeedups: [1.6]\nmatch: wallclock\n{TIMED}"
        ),
    );
    let records = outcome.records();
    let layers: Vec<f64> = records
        .iter()
        .filter(|(label, _)| label.starts_with("random"))
        .map(|(_, record)| record["quality"]["layers_per_token"].as_f64().unwrap())
        .collect();
    assert_eq!(layers, [layers[0]; 4]);
}

#[test]
fn calibration_prompts_that_do_not_fit_are_left_out() {
    let dir = tempfile::tempdir().unwrap();
    let long = "the teacher sees the house ".repeat(200);
    std::fs::write(dir.path().join("s"), "a house\n").unwrap();
    std::fs::write(dir.path().join("r"), "ein Haus\n").unwrap();
    let calibration = |text: String| {
        std::fs::write(dir.path().join("c"), text).unwrap();
        let path = dir.path().join("e.yaml");
        let text = format!(
            "name: x\nmodels: [{{path: {:?}}}]\ntasks: [{{name: t, source: s, reference: r, calibration: c, max-new-tokens: 8}}]\nstrategies: [early-exit]\n{UNTIMED}",
            checkpoint().canonicalize().unwrap()
        );
        std::fs::write(&path, text).unwrap();
        let out = dir.path().join("out");
        let _ = std::fs::remove_dir_all(&out);
        skipbench()
            .arg("run")
            .arg(&path)
            .arg("--out")
            .arg(&out)
            .output()
            .unwrap()
    };
    let some = calibration(format!("{long}\nthe dog sees the house\n"));
    assert!(some.status.success());
    let said = String::from_utf8(some.stderr).unwrap();
    assert_names(&said, &["1 of 2 calibration prompts", "left out"]);
    let none = calibration(format!("{long}\n"));
    assert_eq!(none.status.code(), Some(1));
    let printed = String::from_utf8(none.stdout).unwrap();
    assert_names(
        &printed,
        &["failed", "no calibration text that the model can run"],
    );
}

#[test]
fn a_target_can_be_met_in_time() {
    let dir = tempfile::tempdir().unwrap();
    let outcome = run(
        dir.path(),
        &format!(
            "strategies: [unified, early-exit]\nspeedups: [1.5, 8]\nmatch: wallclock\n{TIMED}"
        ),
    );
    let records = outcome.records();
    let unified = &records["unified@1.5 beams 1"];
    let calibration = &unified["executed"]["calibration"];
    assert_eq!(calibration["of"], "layers: speedup");
    // Depths are tried by halving; the one that runs met the target, unless nothing did.
    let trace: Vec<(f64, f64)> = serde_json::from_value(calibration["points"].clone()).unwrap();
    assert!((2..=6).contains(&trace.len()), "{trace:?}");
    let met: Vec<f64> = trace.iter().filter(|p| p.1 >= 1.5).map(|p| p.0).collect();
    let most = met.iter().copied().fold(2.0, f64::max);
    assert_eq!(
        unified["quality"]["layers_per_token"].as_f64().unwrap(),
        most
    );
    // Reading the LM head at every check leaves no room for eight times the speed.
    let exit = &records["early-exit@8 beams 1"];
    assert_eq!(exit["executed"]["calibration"]["of"], "threshold: speedup");
    assert_names(
        &exit["notes"].to_string(),
        &["8x cannot be reached on this machine"],
    );
    assert_names(&outcome.printed, &["8x cannot be reached on this machine"]);
}

#[test]
fn beams_are_an_axis() {
    let dir = tempfile::tempdir().unwrap();
    let outcome = run(
        dir.path(),
        &format!("strategies: [unified]\nbeams: [1, 4]\nno-repeat-ngram: 3\n{TIMED}"),
    );
    assert_names(
        &outcome.printed,
        &[
            "translation, batch 1, base",
            "translation, batch 1, 4 beams, base",
        ],
    );
    let records = outcome.records();
    assert_eq!(records.len(), 4);
    let kv = |label: &str| records[label]["quality"]["peak_kv_bytes"].as_u64().unwrap();
    assert_eq!(kv("unified@2 beams 4"), 4 * kv("unified@2 beams 1"));
    assert!(
        outcome
            .out
            .join("plots/quality-base-translation-b1-beams4.svg")
            .is_file()
    );
}

#[test]
fn contradictions_are_refused_before_anything_is_loaded() {
    let error = |more: &str| {
        let dir = tempfile::tempdir().unwrap();
        let path = experiment(dir.path(), more);
        // Without its weights a model cannot be loaded, so nothing was.
        let text = std::fs::read_to_string(&path).unwrap();
        let empty = dir.path().join("model");
        std::fs::create_dir(&empty).unwrap();
        std::fs::copy(checkpoint().join("config.json"), empty.join("config.json")).unwrap();
        let whole = format!("{:?}", checkpoint().canonicalize().unwrap());
        std::fs::write(&path, text.replace(&whole, &format!("{empty:?}"))).unwrap();
        refused(
            skipbench()
                .arg("run")
                .arg(&path)
                .arg("--out")
                .arg(dir.path().join("out")),
        )
    };
    assert_names(
        &error("strategies: [self-speculative]\nbeams: [4]\n"),
        &[
            "`self-speculative` cannot run under a beam search",
            "one greedy continuation",
        ],
    );
    assert_names(
        &error("strategies: [oracle-exit]\nno-repeat-ngram: 3\n"),
        &["`oracle-exit` cannot run under `no-repeat-ngram`"],
    );
    assert_names(
        &error("strategies: [{early-exit: {speedup: 2, kv-fill: none}}]\n"),
        &[
            "`kv-fill` of `early-exit`",
            "use propagate, copy, mask, deferred",
        ],
    );
    assert_names(
        &error("strategies: [unified]\nkv-fills: [mask]\n"),
        &["`kv-fills` holds `mask`, which none of the strategies can use"],
    );
    assert_names(
        &error("strategies: [position-decay: {start: 0.5}]\nspeedups: [4]\n"),
        &["4 cannot be met", "the largest possible speedup is"],
    );
    assert_names(
        &error("strategies: [sublayer-drop]\nspeedups: [2]\n"),
        &["the largest possible speedup is 1.88"],
    );
    assert_names(
        &error("strategies: [unified]\nmatch: wallclock\ntiming: {batches: 0}\n"),
        &["`match: wallclock` needs a timing pass"],
    );
    assert_names(
        &error("strategies: [unified]\nbatch-sizes: [1000000]\n"),
        &["`batch-sizes.0` is 1000000", "1 to 4096"],
    );
    assert_names(
        &error("strategies: [unified]\nbatch-sizes: [2, 2]\n"),
        &["`batch-sizes` holds 2 twice"],
    );
    assert_names(
        &error("strategies: [unified]\ntiming: {new-tokens: 5000}\n"),
        &["`timing.new-tokens` is 5000", "512 positions"],
    );
    assert_names(
        &error("strategies: [unified]\nlength-penalty: -1e30\n"),
        &["`length-penalty`", "from -10 to 10"],
    );
    assert_names(
        &error("strategies: [self-speculative: {draft: {random: {seeds: 5, speedup: 2}}}]\n"),
        &["stands for several strategies, and one drafts"],
    );
    assert_names(
        &error("strategies: [{random: {seeds: 5000}}]\n"),
        &["`seeds` of `random`", "5000 is outside 1 to 1000"],
    );
    assert_names(
        &error("strategies: [unified]\nbeams: [0]\n"),
        &["`beams.0` is 0"],
    );
    assert_names(
        &error("strategies: [{unified: {speedup: 2, prefill: skp}}]\n"),
        &["unknown value `skp`", "did you mean `skip`?"],
    );
    assert_names(
        &error("strategies: [{skip-decode: {speedup: 2, schedule-length: mean}}]\n"),
        &[
            "unknown schedule length `mean`",
            "`max-new`, `expected` or a number",
        ],
    );
}

#[test]
fn strategies_that_need_text_say_so() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("s"), "a house\n").unwrap();
    std::fs::write(dir.path().join("r"), "ein Haus\n").unwrap();
    for (strategy, lacks) in [
        ("sleb", "the order of its layers"),
        ("early-exit", "its threshold"),
        (
            "{skip-decode: {schedule-length: expected}}",
            "the expected length",
        ),
    ] {
        let path = dir.path().join("e.yaml");
        let text = format!(
            "name: x\nmodels: [{{path: {:?}}}]\ntasks: [{{name: t, source: s, reference: r}}]\nstrategies: [{strategy}]\n",
            checkpoint().canonicalize().unwrap()
        );
        std::fs::write(&path, text).unwrap();
        let error = refused(skipbench().arg("plan").arg(&path));
        assert_names(&error, &["no `calibration` texts", lacks]);
    }
}
