//! Tasks as they come: JSON lines, Parquet, text; few-shot examples, stop texts.

use crate::support::{assert_names, checkpoint, csv_rows, refused, skipbench, stdout};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

/// A folder with files and an experiment of one task.
struct Lab {
    dir: tempfile::TempDir,
}

const ITEMS: [(u32, &str, &[&str]); 3] = [
    (11, "ein Haus", &["a house", "one house"]),
    (12, "der Hund\nbellt", &["the dog barks"]),
    (13, "das alte Buch", &["the old book"]),
];

impl Lab {
    fn new() -> Self {
        let lab = Self {
            dir: tempfile::tempdir().unwrap(),
        };
        let lines = ITEMS.iter().map(|(key, doc, sums)| {
            json!({"key": key, "doc": doc, "sums": sums, "one": sums[0], "topic": "t"})
        });
        lab.file(
            "items.jsonl",
            lines.map(|line| format!("{line}\n")).collect::<String>(),
        );
        let shots =
            (0..9).map(|n| json!({"doc": format!("Frage {n}"), "sums": format!("answer {n}")}));
        lab.file(
            "shots.jsonl",
            shots.map(|line| format!("{line}\n")).collect::<String>(),
        );
        lab
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn file(&self, name: &str, text: impl AsRef<[u8]>) {
        std::fs::write(self.path(name), text).unwrap();
    }

    /// Writes the experiment; `task` is in YAML's flow style, on line 4.
    fn task(&self, task: &str) {
        let model = checkpoint().canonicalize().unwrap();
        let text = format!(
            "name: lab\nmodels: [{{name: m, path: {model:?}}}]\ntasks:\n  - {{name: t, {task}}}\nstrategies: [full, unified@2]\ntiming: {{batches: 1, repeats: 1, warm-up: 0, new-tokens: 3}}\n"
        );
        self.file("lab.yaml", text);
    }

    /// What `plan` says of the task.
    fn plan(&self, task: &str) -> Value {
        self.task(task);
        let text = stdout(
            skipbench()
                .arg("plan")
                .arg(self.path("lab.yaml"))
                .args(["--json", "--no-estimate"]),
        );
        let mut plan: Value = serde_json::from_str(&text).unwrap();
        plan["tasks"][0].take()
    }

    fn refused(&self, task: &str) -> String {
        self.task(task);
        refused(
            skipbench()
                .arg("plan")
                .arg(self.path("lab.yaml"))
                .arg("--no-estimate"),
        )
    }

    fn run(&self, task: &str) -> PathBuf {
        self.task(task);
        let out = self.path("out");
        if out.exists() {
            std::fs::remove_dir_all(&out).unwrap();
        }
        skipbench()
            .arg("run")
            .arg(self.path("lab.yaml"))
            .arg("--out")
            .arg(&out)
            .assert()
            .success();
        out
    }
}

fn lines(path: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(path).unwrap();
    text.lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

const FIELDS: &str = "fields: {id: key, source: doc, reference: sums}";

#[test]
fn json_lines_and_parquet_are_read_alike() {
    let lab = Lab::new();
    let parquet = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/items.parquet");
    std::fs::copy(parquet, lab.path("items.parquet")).unwrap();
    let packed = std::fs::File::create(lab.path("items.jsonl.gz")).unwrap();
    let mut packed = flate2::write::GzEncoder::new(packed, flate2::Compression::fast());
    let text = std::fs::read(lab.path("items.jsonl")).unwrap();
    std::io::Write::write_all(&mut packed, &text).unwrap();
    packed.finish().unwrap();
    let mut seen = Vec::new();
    for file in ["items.jsonl", "items.jsonl.gz", "items.parquet"] {
        let out = lab.run(&format!(
            "source: {file}, {FIELDS}, prompt: \"de: {{{{ doc }}}}\\nen:\", prompts: all, max-new-tokens: 4, metrics: [rougeL, bleu]"
        ));
        let mut prompts = lines(&out.join("prompts.jsonl"));
        for (prompt, (key, doc, sums)) in prompts.iter_mut().zip(ITEMS) {
            assert_eq!(prompt["id"], key.to_string(), "{file}");
            // A line break in a source is text.
            assert_eq!(prompt["prompt"], format!("de: {doc}\nen:"), "{file}");
            assert_eq!(prompt["references"], json!(sums), "{file}");
            assert_eq!(prompt.get("messages"), None);
        }
        let answers: Vec<Value> = lines(&out.join("samples.jsonl"))
            .iter()
            .map(|line| line["tokens"].clone())
            .collect();
        assert_eq!(answers.len(), 6);
        let row = csv_rows(&out.join("results.csv")).remove(0);
        assert_eq!(
            (row["n_prompts"].as_str(), row["n_available"].as_str()),
            ("3", "3")
        );
        seen.push((
            prompts,
            answers,
            row["rougeL"].clone(),
            row["truncated"].clone(),
        ));
    }
    assert!(seen.iter().all(|each| *each == seen[0]));
}

#[test]
fn several_references_are_one_field_or_several() {
    let lab = Lab::new();
    let items = [
        json!({"fname": "a", "dialogue": "x", "summary1": "one", "summary2": "two"}),
        json!({"fname": "b", "dialogue": "y", "summary1": "three", "summary2": "four"}),
    ];
    lab.file("d.jsonl", items.map(|item| format!("{item}\r\n")).concat());
    let out = lab.run("source: d.jsonl, fields: {id: fname, source: dialogue, reference: [summary1, summary2]}, max-new-tokens: 3");
    let prompts = lines(&out.join("prompts.jsonl"));
    assert_eq!(prompts[1]["references"], json!(["three", "four"]));
    assert_eq!(prompts[1]["id"], "b");
    // Deeper fields, and items that are counted.
    let items = [json!({"translation": {"de": "x\u{feff}", "en": "one"}})];
    lab.file("t.jsonl", format!("\u{feff}{}\n\n", items[0]));
    let task = "source: t.jsonl, fields: {source: translation.de, reference: translation.en}, max-new-tokens: 3";
    let out = lab.run(task);
    let prompts = lines(&out.join("prompts.jsonl"));
    assert_eq!(
        prompts[0]["prompt"], "x\u{feff}",
        "only a mark at the beginning is none of the text"
    );
    assert_eq!(prompts[0]["references"], json!(["one"]));
    assert_eq!(prompts[0]["id"], "t/0");
}

#[test]
fn a_limit_is_told_wherever_results_are() {
    let lab = Lab::new();
    let text: String = (0..1984).map(|n| format!("Satz {n}\n")).collect();
    lab.file("s.txt", &text);
    lab.file("r.txt", &text);
    let out = lab.run("source: s.txt, reference: r.txt, prompts: 2, max-new-tokens: 3");
    let table = std::fs::read_to_string(out.join("table.md")).unwrap();
    assert!(
        table.contains("t, batch 1, m, 2 of 1,984 prompts"),
        "{table}"
    );
    for file in ["report.html", "table.tex"] {
        let text = std::fs::read_to_string(out.join(file)).unwrap();
        assert!(text.contains("2 of 1,984 prompts"), "{file}");
    }
    let plan = stdout(
        skipbench()
            .arg("plan")
            .arg(lab.path("lab.yaml"))
            .arg("--no-estimate"),
    );
    assert_names(&plan, &["t with m: 2 of 1,984 prompts"]);
    assert_eq!(
        lab.plan("source: s.txt, reference: r.txt, prompts: all")["prompts"],
        1984
    );
}

#[test]
fn examples_stand_in_front_of_every_prompt() {
    let lab = Lab::new();
    let few = |more: &str, prompt: &str| {
        let task = format!(
            "source: items.jsonl, {FIELDS}, prompt: \"{prompt}\", few-shot: {{k: 2, from: shots.jsonl{more}}}"
        );
        lab.plan(&task.replace(FIELDS, "fields: {source: doc, reference: sums}"))["prompt"]
            .as_str()
            .unwrap()
            .to_owned()
    };
    let text = few("", "Q: {{ doc }}\\nA:");
    let parts: Vec<&str> = text.split("\n\n").collect();
    assert_eq!(parts.len(), 3, "{text}");
    assert_eq!(parts[2], "Q: ein Haus\nA:");
    let number = |part: &str| {
        let n: u32 = part.strip_prefix("Q: Frage ").unwrap()[..1]
            .parse()
            .unwrap();
        assert_eq!(part, format!("Q: Frage {n}\nA: answer {n}"));
        n
    };
    assert_ne!(number(parts[0]), number(parts[1]));
    assert_eq!(
        few(", seed: 1", "Q: {{ doc }}\\nA:"),
        text,
        "the same seed draws the same"
    );
    let others: Vec<String> = (2..8)
        .map(|seed| few(&format!(", seed: {seed}"), "Q: {{ doc }}\\nA:"))
        .collect();
    assert!(others.iter().any(|other| *other != text));
    // White space at a prompt's end is all that stands in front of the answer.
    let lines = few(", separator: \"###\"", "{{ doc }}\\n");
    assert!(lines.starts_with("Frage "), "{lines}");
    assert!(
        lines.contains("\nanswer ") && !lines.contains(" answer"),
        "{lines}"
    );
    assert_eq!(lines.split("###").count(), 3);
    let arrow = few(", delimiter: \" => \"", "{{ doc }}");
    assert!(arrow.contains(" => answer "), "{arrow}");
    // Source texts have their answers in a file of their own.
    lab.file("s.txt", "eins\nzwei\n");
    lab.file("r.txt", "one\ntwo\n");
    let task = "source: s.txt, reference: r.txt, prompt: \"{{ source }}:\", few-shot: {k: 1, from: s.txt, reference: r.txt}";
    let plan = lab.plan(task);
    let prompt = plan["prompt"].as_str().unwrap();
    assert!(
        ["eins: one\n\neins:", "zwei: two\n\neins:"].contains(&prompt),
        "{prompt}"
    );
    let warnings = plan["warnings"].to_string();
    assert!(
        warnings.contains("1 of the prompts are asked about a few-shot example"),
        "{warnings}"
    );
}

#[test]
fn an_answer_goes_up_to_its_first_stop() {
    let lab = Lab::new();
    let task = "builtin: translation, prompts: 6, max-new-tokens: 12";
    let whole = lines(
        &lab.run(&task.replace("name: t, ", ""))
            .join("samples.jsonl"),
    );
    let text = |line: &Value| line["text"].as_str().unwrap().to_owned();
    let of_unified = whole.iter().filter(|line| line["layers"][1] == 8);
    assert!(of_unified.count() > 0);
    let words = [
        text(&whole[0])[3..6].to_owned(),
        text(&whole[4])[1..3].to_owned(),
    ];
    let out = lab.run(&format!("{task}, stop: [{:?}, {:?}]", words[0], words[1]));
    let cut = lines(&out.join("samples.jsonl"));
    let mut stopped = 0;
    for (whole, cut) in whole.iter().zip(&cut) {
        let full = text(whole);
        let at = words
            .iter()
            .filter_map(|word| full.find(word.as_str()))
            .min();
        assert_eq!(text(cut), full[..at.unwrap_or(full.len())].trim(), "{full}");
        assert_eq!(cut["end"] == "stop", at.is_some());
        let tokens = |line: &Value| line["tokens"].as_array().unwrap().len();
        stopped += usize::from(tokens(cut) < tokens(whole));
    }
    assert!(stopped >= 2, "{stopped}");
}

#[test]
fn what_a_task_has_wrong_is_told_with_file_and_place() {
    let lab = Lab::new();
    let parquet = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/items.parquet");
    std::fs::copy(&parquet, lab.path("items.parquet")).unwrap();
    let bytes = std::fs::read(&parquet).unwrap();
    lab.file("cut.parquet", &bytes[..bytes.len() / 2]);
    lab.file("text.parquet", "no table");
    lab.file(
        "list.jsonl",
        "{\"source\": \"a\", \"reference\": \"b\"}\n[1, 2]\n",
    );
    lab.file(
        "cut.jsonl",
        "{\"source\": \"a\", \"reference\": \"b\"}\n{\"source\": \"a\n",
    );
    lab.file(
        "twice.jsonl",
        "{\"id\": 1, \"source\": \"a\", \"reference\": \"b\"}\n".repeat(2),
    );
    lab.file("number.jsonl", "{\"source\": 3, \"reference\": \"b\"}\n");
    lab.file("none.jsonl", "{\"source\": \"a\", \"reference\": []}\n");
    lab.file(
        "mixed.jsonl",
        "{\"source\": \"a\", \"reference\": [\"b\", 1]}\n",
    );
    lab.file("empty.jsonl", "\n");
    lab.file(
        "latin.jsonl",
        b"{\"source\": \"a\"}\n{\"source\": \"\xfc\"}\n",
    );
    for (task, said) in [
        (
            "source: list.jsonl",
            &["list.jsonl: line 2", "expected a JSON object, not a list"][..],
        ),
        ("source: cut.jsonl", &["cut.jsonl: line 2", "not JSON"]),
        ("source: latin.jsonl", &["latin.jsonl: line 2 is not UTF-8"]),
        ("source: empty.jsonl", &["empty.jsonl holds nothing"]),
        ("source: gone.jsonl", &["cannot read", "gone.jsonl"]),
        (
            "source: number.jsonl",
            &["number.jsonl: line 1", "`source`", "is a number"],
        ),
        (
            "source: none.jsonl",
            &["none.jsonl: line 1", "`reference` holds no reference"],
        ),
        (
            "source: mixed.jsonl",
            &["mixed.jsonl: line 1", "holds a number"],
        ),
        (
            "source: twice.jsonl, fields: {id: id}",
            &["twice.jsonl: line 2 has the id \"1\" of line 1"],
        ),
        (
            "source: items.jsonl, fields: {source: document}",
            &[
                "items.jsonl: line 1",
                "no field `document`",
                "`key`, `doc`, `sums`, `one`, `topic`",
            ],
        ),
        (
            "source: items.jsonl, fields: {source: doc}",
            &["no field `reference`, which `fields.reference` names"],
        ),
        (
            "source: items.jsonl, fields: {source: doc, reference: sums}, prompt: \"{{ dok }}\"",
            &["lab.yaml:4:", "names `dok`", "`doc`", "`source`", "`topic`"],
        ),
        (
            "source: items.jsonl, fields: {source: doc, reference: sums}, prompt: \"{source}\"",
            &["lab.yaml:4:", "write `{{ source }}`"],
        ),
        (
            "source: items.jsonl, fields: {source: doc, reference: sums}, prompt: \"{{ doc.x.y }}\"",
            &["items.jsonl: line 1", "undefined"],
        ),
        (
            "source: items.jsonl, fields: {source: doc, reference: sums}, few-shot: {k: 10, from: shots.jsonl}",
            &[
                "lab.yaml:4:",
                "shots.jsonl has 9 items, and `k` asks for 10",
            ],
        ),
        (
            "source: items.parquet, fields: {source: text, reference: sums}",
            &["items.parquet: row 1", "no field `text`", "`doc`"],
        ),
        (
            "source: items.parquet, fields: {source: translation.de, reference: sums}",
            &["items.parquet", "no field `translation.de`"],
        ),
        (
            "source: cut.parquet",
            &["cut.parquet: not a whole Parquet file"],
        ),
        (
            "source: text.parquet",
            &["text.parquet: not a whole Parquet file"],
        ),
        (
            "source: items.jsonl, fields: {source: doc, reference: sums}, chat: true",
            &["lab.yaml:4:", "no chat template"],
        ),
    ] {
        let error = lab.refused(task);
        assert_names(&error, said);
    }
}
