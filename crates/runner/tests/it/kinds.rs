//! Tasks that do not ask for an answer, and metrics that need no text of one.

use crate::hub_server::Server;
use crate::support::{assert_names, checkpoint, csv_rows, refused, skipbench};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// A folder with an experiment over the shipped checkpoint.
struct Lab {
    dir: tempfile::TempDir,
}

type Row = BTreeMap<String, String>;

impl Lab {
    fn new() -> Self {
        let lab = Self {
            dir: tempfile::tempdir().unwrap(),
        };
        let questions = [
            json!({"question": "der Hund", "choices": {"text": ["bellt", "liest"], "label": ["A", "B"]}, "key": "A"}),
            json!({"question": "die Frau", "choices": {"text": ["liest", "liest ein Buch", "das"], "label": ["1", "2", "3"]}, "key": "3"}),
            json!({"question": "ein Haus", "choices": {"text": ["ist", "ist alt", "ist"], "label": ["A", "B", "C"]}, "key": "C"}),
        ];
        lab.lines("questions.jsonl", &questions);
        let texts = [
            json!({"page": "The old man reads a book.", "id": "a"}),
            json!({"page": "A dog barks .\nThe woman sleeps.", "id": "b"}),
            json!({"page": "", "id": "c"}),
        ];
        lab.lines("texts.jsonl", &texts);
        lab
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn lines(&self, name: &str, items: &[Value]) {
        let text: String = items.iter().map(|item| format!("{item}\n")).collect();
        std::fs::write(self.path(name), text).unwrap();
    }

    /// Writes the experiment; the task is in YAML's flow style, on line 4.
    fn task(&self, task: &str, strategies: &str) {
        let model = checkpoint().canonicalize().unwrap();
        let text = format!(
            "name: lab\nmodels: [{{name: m, path: {model:?}}}]\ntasks:\n  - {{name: t, {task}}}\nstrategies: [{strategies}]\nbatch-sizes: [2]\ntiming: {{batches: 0}}\n"
        );
        std::fs::write(self.path("lab.yaml"), text).unwrap();
    }

    /// Runs it; the rows of its results by strategy.
    fn run(&self, task: &str, strategies: &str) -> BTreeMap<String, Row> {
        self.task(task, strategies);
        let out = self.path("out");
        if out.exists() {
            std::fs::remove_dir_all(&out).unwrap();
        }
        let mut run = skipbench();
        run.arg("run")
            .arg(self.path("lab.yaml"))
            .arg("--out")
            .arg(&out);
        run.assert().success();
        let rows = csv_rows(&out.join("results.csv")).into_iter();
        rows.map(|row| (row["label"].clone(), row)).collect()
    }

    fn refused(&self, task: &str) -> String {
        self.task(task, "full");
        let mut plan = skipbench();
        refused(
            plan.arg("plan")
                .arg(self.path("lab.yaml"))
                .arg("--no-estimate"),
        )
    }

    fn answers(&self) -> Vec<Value> {
        read(&self.path("out/samples.jsonl"))
    }
}

fn read(path: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(path).unwrap();
    let lines = text.lines();
    lines
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

fn number(row: &Row, column: &str) -> f64 {
    row[column]
        .parse()
        .unwrap_or_else(|_| panic!("{column}: {:?}", row[column]))
}

const QUESTIONS: &str = "kind: multiple-choice, source: questions.jsonl, prompt: \"{{ question }}\", choices: choices.text, answer: \"choices.label | index(key)\"";
const TEXTS: &str =
    "kind: perplexity, source: texts.jsonl, fields: {id: id, source: page}, prompts: all";

#[test]
fn choices_are_scored_under_every_strategy_and_mode() {
    let lab = Lab::new();
    let asked = format!("{QUESTIONS}, metrics: [acc, acc-norm, kl, top1]");
    let strategies =
        "full, \"unified@2\", {unified: {speedup: 2, prefill: skip}}, early-exit: {threshold: 0.5}";
    let rows = lab.run(&asked, strategies);
    let full = &rows["full"];
    assert_eq!(full["scoring"], "as-decoded");
    assert_eq!(number(full, "layers_per_token"), 16.0);
    assert_eq!(number(full, "same_as_full"), 1.0);
    // A pass over all and a pass for the prompt round differently.
    assert!(number(full, "kl") < 1e-5);
    assert_eq!(number(full, "top1"), 1.0);
    assert!(full["mbytes_per_token"].is_empty() && full["repetition"].is_empty());
    assert_names(
        &full["signatures"],
        &[
            "acc scored:choices|mode:as-decoded|tokenizer:",
            "|norm:characters|",
            "kl scored:",
        ],
    );
    let skipped = &rows["unified@2"];
    assert!(number(skipped, "layers_per_token") < 16.0);
    assert!(number(skipped, "kl") > 1e-3);
    assert!(number(skipped, "kl_p") > 0.0);
    assert!(number(skipped, "acc_se") >= 0.0);
    // Where the prompt skips too, the first token of each choice does.
    let pruned = rows
        .values()
        .find(|row| row["label"].contains("skip"))
        .unwrap();
    assert_eq!(number(pruned, "layers_per_token"), 8.0);
    assert!(rows.keys().any(|label| label.starts_with("early-exit")));
    let answers = lab.answers();
    assert_eq!(
        answers[0]["evidence"]["choices"].as_array().unwrap().len(),
        2
    );
    assert_eq!(answers[1]["evidence"]["choices"][1]["characters"], 14);
    let prompts = read(&lab.path("out/prompts.jsonl"));
    assert_eq!(
        prompts[1]["choices"],
        json!(["liest", "liest ein Buch", "das"])
    );
    assert_eq!(
        (&prompts[1]["right"], &prompts[1]["references"]),
        (&json!(2), &json!(["das"]))
    );
    // Of equal choices the first is the answer, so the third question cannot be right.
    let equal = &answers[2]["evidence"]["choices"];
    assert_eq!(equal[0]["logprob"], equal[2]["logprob"]);

    let rows = lab.run(
        &format!("{asked}, scoring: one-pass"),
        "full, \"unified@2\"",
    );
    let one_pass = &rows["unified@2"];
    assert_eq!(one_pass["scoring"], "one-pass");
    assert_eq!(number(one_pass, "layers_per_token"), 8.0);
    assert!(number(one_pass, "kl") > number(skipped, "kl"));
}

#[test]
fn batches_do_not_change_what_a_choice_gets() {
    let lab = Lab::new();
    let scores = |batch: &str| {
        lab.task(QUESTIONS, "\"skip-decode@2\"");
        let mut run = skipbench();
        run.arg("run").arg(lab.path("lab.yaml"));
        run.args(["--set", &format!("batch-sizes=[{batch}]")]);
        let out = lab.path(&format!("out{batch}"));
        run.arg("--out").arg(&out).assert().success();
        let answers = read(&out.join("samples.jsonl")).into_iter();
        let choices = answers.map(|answer| answer["evidence"]["choices"].clone());
        choices
            .flat_map(|choices| choices.as_array().unwrap().clone())
            .map(|choice| choice["logprob"].as_f64().unwrap())
            .collect::<Vec<f64>>()
    };
    for (one, many) in scores("1").iter().zip(scores("7")) {
        assert!((one - many).abs() < 1e-4, "{one} {many}");
    }
}

#[test]
fn a_question_that_does_not_fit_is_wrong_and_disturbs_no_other() {
    let lab = Lab::new();
    let mut items = read(&lab.path("questions.jsonl"));
    let alone = lab.run(QUESTIONS, "full");
    items[1]["question"] = json!("x ".repeat(600));
    lab.lines("questions.jsonl", &items);
    lab.task(QUESTIONS, "full");
    let mut run = skipbench();
    run.arg("run")
        .arg(lab.path("lab.yaml"))
        .arg("--out")
        .arg(lab.path("out2"));
    run.assert().code(1);
    let answers = read(&lab.path("out2/samples.jsonl"));
    assert_names(answers[1]["error"].as_str().unwrap(), &["512"]);
    assert_eq!(answers[1].get("evidence"), None);
    let before = lab.answers();
    for index in [0, 2] {
        assert_eq!(answers[index]["evidence"], before[index]["evidence"]);
    }
    let row = csv_rows(&lab.path("out2/results.csv")).remove(0);
    assert_eq!(row["n_failed"], "1");
    assert!(number(&row, "acc") <= number(&alone["full"], "acc"));
}

/// The windows of lm-eval and those of transformers' guide, which `skipbench perplexity` has too.
#[test]
fn texts_are_scored_in_windows() {
    let lab = Lab::new();
    let rows = lab.run(&format!("{TEXTS}, window: 4, metrics: [perplexity, word-perplexity, byte-perplexity, bits-per-byte, top1]"), "full, \"unified@2\"");
    let full = &rows["full"];
    let answers = lab.answers();
    let sums: Vec<&Value> = answers[..3]
        .iter()
        .map(|answer| &answer["evidence"]["text"])
        .collect();
    // The beginning of sequence, which the tokenizer puts in front of an empty text too; lm-eval scores it likewise.
    assert_eq!(sums[2]["tokens"], 1);
    assert_eq!(
        (&sums[0]["words"], &sums[1]["bytes"]),
        (&json!(6), &json!(31))
    );
    let total = |key: &str| {
        sums.iter()
            .map(|sum| sum[key].as_f64().unwrap())
            .sum::<f64>()
    };
    for (column, unit) in [
        ("perplexity", "tokens"),
        ("word-perplexity", "words"),
        ("byte-perplexity", "bytes"),
    ] {
        let expected = (-total("logprob") / total(unit)).exp();
        assert!(
            (number(full, column) / expected - 1.0).abs() < 1e-9,
            "{column}"
        );
    }
    assert!((number(full, "bits-per-byte") - number(full, "byte-perplexity").log2()).abs() < 1e-9);
    assert_names(
        &full["signatures"],
        &["perplexity scored:texts|mode:as-decoded|window:4|stride:rolling|tokenizer:"],
    );
    assert_eq!(full["same_as_full"], "");
    // The model is one of German: on English a part of it may do better than all of it.
    let skipped = number(&rows["unified@2"], "perplexity");
    assert!((skipped / number(full, "perplexity") - 1.0).abs() > 0.01);
    assert!(number(&rows["unified@2"], "top1") < 1.0);

    std::fs::write(
        lab.path("text.txt"),
        "The old man reads a book.\nA dog barks.\n",
    )
    .unwrap();
    let rows = lab.run(
        "kind: perplexity, source: text.txt, window: 8, stride: 4",
        "\"unified@2\"",
    );
    let mut command = skipbench();
    command.args([
        "perplexity",
        "--window",
        "8",
        "--stride",
        "4",
        "--strategy",
        "unified@2",
        "--model",
    ]);
    command
        .arg(checkpoint())
        .arg("--input")
        .arg(lab.path("text.txt"));
    let alone: Value = serde_json::from_slice(&command.output().unwrap().stdout).unwrap();
    let row = &rows["unified@2"];
    for (column, key) in [
        ("perplexity", "token_perplexity"),
        ("byte-perplexity", "byte_perplexity"),
        ("layers_per_token", "layers_per_token"),
    ] {
        let expected = alone[key].as_f64().unwrap();
        assert!(
            (number(row, column) / expected - 1.0).abs() < 1e-6,
            "{column}"
        );
    }
    // One text has no spread.
    assert_eq!(row["perplexity_se"], "");
}

#[test]
fn answers_have_a_distance_from_the_full_network_and_samples_for_a_sandbox() {
    let lab = Lab::new();
    let task = "source: items.jsonl, fields: {id: key}, max-new-tokens: 8, samples: evalplus, metrics: [kl, top1, repetition, contains, exact-match: {name: strict, extract: last-number}]";
    let items = (0..5).map(
        |n| json!({"key": format!("T/{n}"), "source": format!("ein Hund {n}"), "reference": "a"}),
    );
    lab.lines("items.jsonl", &items.collect::<Vec<_>>());
    let rows = lab.run(task, "full, \"unified@2\", early-exit: {threshold: 0.5}");
    let full = &rows["full"];
    assert!(number(full, "kl") < 1e-5);
    assert_eq!(number(full, "top1"), 1.0);
    assert_names(
        &full["signatures"],
        &[
            "kl scored:full-answers|mode:as-decoded|",
            "strict nrefs:1|extract:",
        ],
    );
    // The metric stands where the column of its name did.
    assert!(full.contains_key("repetition") && full.contains_key("repetition_p"));
    for (label, row) in &rows {
        let skips = label != "full";
        assert_eq!(number(row, "kl") > 1e-4, skips, "{label}");
        assert_eq!(row["kl_p"].is_empty(), !skips, "{label}");
    }
    let answers = lab.answers();
    let full_tokens = answers[0]["tokens"].as_array().unwrap().len();
    assert_eq!(answers[0]["evidence"]["distance"]["tokens"], full_tokens);
    assert_eq!(answers[5]["evidence"]["distance"]["tokens"], full_tokens);
    let written = read(&lab.path("out/evalplus/m-t-b2-beams1-unified@2.jsonl"));
    assert_eq!(written.len(), 5);
    assert_eq!(written[3]["task_id"], "T/3");
    assert_eq!(written[0]["completion"], answers[5]["text"]);
}

#[test]
fn examples_are_those_of_the_same_subject() {
    let lab = Lab::new();
    let shots: Vec<Value> = (0..6)
        .map(|n| json!({"q": format!("q{n}"), "c": ["x", "y"], "a": n % 2, "subject": if n % 2 == 0 { "s" } else { "t" }}))
        .collect();
    lab.lines("shots.jsonl", &shots);
    lab.lines(
        "asked.jsonl",
        &[json!({"q": "Q", "c": ["x", "y"], "a": 0, "subject": "t"})],
    );
    let task = |more: &str| {
        format!(
            "kind: multiple-choice, source: asked.jsonl, prompt: \"{{{{ q }}}}:\", choices: c, answer: a, few-shot: {{k: 2, draw: first, from: shots.jsonl, same: subject}}, description: \"Of {{{{ subject }}}}.\\n\"{more}"
        )
    };
    lab.run(&task(""), "full");
    let prompt = &read(&lab.path("out/prompts.jsonl"))[0]["prompt"];
    assert_eq!(prompt, "Of t.\nq1: y\n\nq3: y\n\nQ:");
    lab.lines(
        "asked.jsonl",
        &[json!({"q": "Q", "c": ["x", "y"], "a": 0, "subject": "u"})],
    );
    let unlike = lab.refused(&task(""));
    assert_names(
        &unlike,
        &[
            "lab.yaml:4:",
            "no few-shot example whose `subject` is \"u\"",
        ],
    );
}

#[test]
fn a_task_may_lie_in_a_file_of_its_own() {
    let lab = Lab::new();
    std::fs::create_dir(lab.path("ready")).unwrap();
    std::fs::write(
        lab.path("ready/base.yaml"),
        format!("{{{QUESTIONS}, metrics: [acc]}}"),
    )
    .unwrap();
    std::fs::write(
        lab.path("ready/q.yaml"),
        "extends: base.yaml\nprompts: 2\nsource: ../questions.jsonl\n",
    )
    .unwrap();
    let rows = lab.run("extends: ready/q.yaml, metrics: [acc-norm]", "full");
    assert_eq!(rows["full"]["n_prompts"], "2");
    assert!(rows["full"].contains_key("acc-norm") && !rows["full"].contains_key("acc"));
    assert_names(
        &lab.refused("extends: ready/none.yaml"),
        &["lab.yaml:4:", "`extends`: cannot read", "none.yaml"],
    );
    std::fs::write(
        lab.path("ready/bad.yaml"),
        "kind: multiple-choice\nchoise: x\n",
    )
    .unwrap();
    assert_names(
        &lab.refused("extends: ready/bad.yaml"),
        &["bad.yaml:2:1", "unknown key `choise`"],
    );
}

#[test]
fn what_suits_no_task_of_its_kind_is_refused_with_its_place() {
    let lab = Lab::new();
    for (task, parts) in [
        (
            "kind: multiple-choice, source: questions.jsonl",
            vec!["takes `choices`"],
        ),
        (
            "kind: choice, source: questions.jsonl",
            vec!["multiple-choice"],
        ),
        (
            &*format!("{QUESTIONS}, metrics: [bleu]"),
            vec!["`bleu` is for `kind: generate`"],
        ),
        (
            &*format!("{QUESTIONS}, metrics: [acc, acc]"),
            vec!["`acc` stands twice"],
        ),
        (
            &*format!("{QUESTIONS}, stop: [x]"),
            vec!["`stop` is for `kind: generate`"],
        ),
        (
            &*format!("{TEXTS}, metrics: [acc]"),
            vec!["`acc` is for `kind: multiple-choice`"],
        ),
        (&*format!("{TEXTS}, window: 1024"), vec!["512 positions"]),
        (&*format!("{TEXTS}, window: 8, stride: 9"), vec!["left out"]),
        (&*format!("{TEXTS}, chat: true"), vec!["no `chat`"]),
        ("builtin: translation, metrics: [acc]", vec!["`acc` is for"]),
        ("builtin: translation, kind: perplexity", vec!["built-in"]),
        (
            "builtin: translation, metrics: [{exact-match: {extract: \"(\"}}]",
            vec!["no regular expression"],
        ),
        (
            "builtin: translation, metrics: [{exact-match: {extrct: x}}]",
            vec!["extrct"],
        ),
        ("builtin: translation, metrics: [{bleu: {}}]", vec!["bleu"]),
        (
            &*QUESTIONS.replace("choices.text", "choices.txt"),
            vec!["line 1", "choices.txt"],
        ),
        (
            &*QUESTIONS.replace("choices.text", "texts"),
            vec!["`texts`", "there are"],
        ),
        (
            &*QUESTIONS.replace("choices.text", "question"),
            vec!["a list of texts"],
        ),
        (
            &*QUESTIONS.replace("index(key)", "length"),
            vec!["the number of the right choice"],
        ),
        (
            &*QUESTIONS.replace("index(key)", "index(question)"),
            vec!["is none of"],
        ),
        (
            &*QUESTIONS.replace("{{ question }}", "{{ question }}{{ choice }}"),
            vec!["`choice`"],
        ),
        (
            &*format!("{QUESTIONS}, continuation: \"{{{{ '' if choice else choice }}}}\""),
            vec!["`continuation` is empty"],
        ),
    ] {
        let message = lab.refused(task);
        assert_names(&message, &["lab.yaml:4:"]);
        assert_names(&message, &parts);
    }
    let empty =
        json!({"question": "q", "choices": {"text": ["", "a"], "label": ["A", "B"]}, "key": "A"});
    lab.lines("questions.jsonl", &[empty]);
    assert_names(&lab.refused(QUESTIONS), &["line 1", "choice 0 is empty"]);
}

#[test]
fn a_file_of_a_data_set_is_fetched_once() {
    let lab = Lab::new();
    std::fs::create_dir_all(lab.path("data/main")).unwrap();
    std::fs::rename(
        lab.path("questions.jsonl"),
        lab.path("data/main/test-0.jsonl"),
    )
    .unwrap();
    let server = Server::of(&lab.path("data"));
    let task = |file: &str| QUESTIONS.replace("questions.jsonl", file);
    let plan = |endpoint: &str, file: &str| {
        lab.task(&task(file), "full");
        let mut plan = skipbench();
        plan.arg("plan")
            .arg(lab.path("lab.yaml"))
            .arg("--no-estimate");
        plan.env("HF_HOME", lab.path("hf"))
            .env("HF_ENDPOINT", endpoint);
        plan.env_remove("HF_HUB_CACHE").env_remove("HF_HUB_OFFLINE");
        plan
    };
    let file = "\"hub:datasets/owner/name/main/test-0.jsonl\"";
    plan(&server.address, file).assert().success();
    let asked = server.asked_for("/main/test-0.jsonl");
    assert!(asked > 0);
    plan(&server.address, file).assert().success();
    assert_eq!(server.asked_for("/main/test-0.jsonl"), asked);
    // Where nobody answers, the cache does.
    plan("http://127.0.0.1:9", file).assert().success();
    let other = file.replace("test-0", "test-1");
    assert_names(
        &refused(&mut plan(&server.address, &other)),
        &[
            "lab.yaml:4:",
            "hub:datasets/owner/name",
            "holds no main/test-1.jsonl; there is main/test-0.jsonl",
        ],
    );
    assert_names(
        &refused(&mut plan("http://127.0.0.1:9", &other)),
        &["cannot be reached, and main/test-1.jsonl is not in the cache"],
    );
    assert_names(
        &refused(&mut plan(&server.address, "\"hub:owner/name/x.jsonl\"")),
        &["lab.yaml:4:", "hub:datasets/owner/name/path/of/file"],
    );
}
