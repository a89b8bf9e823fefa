//! A paper's table beside a run, from the experiment to the report.

use crate::support::{assert_names, refused, repository, skipbench, stdout};
use serde_json::Value;

#[test]
fn table_4_stands_beside_a_run_of_the_shipped_checkpoint() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    let experiment = repository().join("experiments/paper/shipped.yaml");
    let mut command = skipbench();
    command.arg("run").arg(experiment).arg("--out").arg(&out);
    for set in [
        "tasks.0.prompts=4",
        "tasks.0.calibration-prompts=2",
        "tasks.0.max-new-tokens=8",
        "batch-sizes=[1]",
        "timing.batches=1",
        "timing.repeats=1",
        "timing.warm-up=0",
        "timing.new-tokens=3",
    ] {
        command.args(["--set", set]);
    }
    let text = stdout(&mut command);
    assert_names(
        &text,
        &[
            "Paper against here: Table 4 of arXiv 2404.06954, adapted",
            "Unified Skipping",
            "unified@5",
            "not in this run",
            "model: the paper has BLOOMZ-7B (30 layers); here adapted (16 layers).",
            "fine-tuning: the paper has BLOOMZ fine-tuned on WMT17-20",
            "SkipDecode, unified and five others",
            "search: the paper has 4 beams, no 3-gram twice, at most 256 new tokens; here greedy decoding",
            "hardware: the paper has an NVIDIA A100 of 80 GB; here",
        ],
    );
    // The folder stands alone: the figures are in it.
    let info = std::fs::read_to_string(out.join("run.json")).unwrap();
    let info: Value = serde_json::from_str(&info).unwrap();
    assert_eq!(info["paper"]["paper"]["rows"][0]["score"], 23.81);
    let again = stdout(skipbench().arg("report").arg(&out));
    assert_names(&again, &["Paper against here"]);
    assert!(
        out.join("plots/paper-paper-table4-shipped-adapted-b1.png")
            .is_file()
    );
}

#[test]
fn figures_that_cannot_be_used_are_refused_where_they_stand() {
    let dir = tempfile::tempdir().unwrap();
    let figures = dir.path().join("figures.yaml");
    let good = repository().join("experiments/paper/table4-figures.yaml");
    let good = std::fs::read_to_string(good).unwrap();
    let experiment = repository().join("experiments/paper/shipped.yaml");
    let wrong = |text: &str| {
        std::fs::write(&figures, text).unwrap();
        let set = format!("paper.figures={}", figures.display());
        refused(
            skipbench()
                .arg("plan")
                .arg(&experiment)
                .args(["--set", &set]),
        )
    };
    let unsourced = wrong(&good.replace("source: >-", "sauce: >-"));
    assert_names(&unsourced, &["figures.yaml:", "sauce"]);
    let no_full = wrong(&good.replace("strategy: full", "strategy: top"));
    assert_names(&no_full, &["figures.yaml", "0 rows of the full network"]);
    let negative = wrong(&good.replace("score: 17.82", "score: -1"));
    assert_names(&negative, &["`score` of Early Exit at 2x is -1"]);
    std::fs::remove_file(&figures).unwrap();
    let set = format!("paper.figures={}", figures.display());
    let missing = refused(
        skipbench()
            .arg("plan")
            .arg(&experiment)
            .args(["--set", &set]),
    );
    assert_names(&missing, &["cannot read", "figures.yaml"]);
    let nobody = refused(
        skipbench()
            .arg("plan")
            .arg(&experiment)
            .args(["--set", "paper.full-of=plain"]),
    );
    assert_names(
        &nobody,
        &["full-of", "no model is called `plain`", "adapted"],
    );
}

#[test]
fn a_published_instruction_comes_from_its_own_file() {
    let dir = tempfile::tempdir().unwrap();
    for (name, text) in [
        ("s.txt", "ein Haus\n"),
        ("r.txt", "a house\n"),
        ("i.txt", "Translate from [SRC] to [TGT].\nDo it.\n"),
        ("none.txt", "\nDo it.\n"),
    ] {
        std::fs::write(dir.path().join(name), text).unwrap();
    }
    let path = dir.path().join("e.yaml");
    let write = |instruction: &str| {
        let model = repository().join("data/checkpoints/base");
        let text = format!(
            "name: e\nmodels: [{{path: {:?}}}]\nstrategies: [top]\ntasks:\n  - name: t\n    source: s.txt\n    reference: r.txt\n    instruction: {instruction}\n    prompt: \"{{{{ source }}}} | {{{{ instruction | replace('[SRC]', 'German') | replace('[TGT]', 'English') }}}}\"\n",
            model.canonicalize().unwrap()
        );
        std::fs::write(&path, text).unwrap();
    };
    write("i.txt");
    let plan = stdout(skipbench().arg("plan").arg(&path));
    assert_names(&plan, &["ein Haus | Translate from German to English."]);
    write("none.txt");
    let refused = refused(skipbench().arg("plan").arg(&path));
    assert_names(&refused, &["none.txt", "first line", "e.yaml:8"]);
}
