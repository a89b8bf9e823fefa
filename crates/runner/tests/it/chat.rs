//! Chats, special tokens and stop texts of `generate`, and chats of tasks.

use crate::support::{assert_names, checkpoint, checkpoint_copy, refused, skipbench, stdout};
use assert_cmd::Command;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

/// Turns are told by the tokens that the shipped tokenizer has.
const TEMPLATE: &str = "{{ bos_token }}{% for message in messages %}{% if message.role == 'tool' %}{{ raise_exception('no tools') }}{% endif %}{{ message.role }}: {{ message.content }}{{ eos_token }}{% endfor %}{% if enable_thinking is defined and not enable_thinking %}(quick){% endif %}{% if add_generation_prompt %}assistant:{% endif %}";

struct Lab {
    dir: tempfile::TempDir,
    model: PathBuf,
}

impl Lab {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let model = checkpoint_copy(dir.path());
        std::fs::copy(
            checkpoint().join("tokenizer_config.json"),
            model.join("tokenizer_config.json"),
        )
        .unwrap();
        std::fs::write(model.join("chat_template.jinja"), TEMPLATE).unwrap();
        Self { dir, model }
    }

    fn file(&self, name: &str, text: impl AsRef<[u8]>) -> PathBuf {
        let path = self.dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    }

    fn command(&self, input: &Path, more: &[&str]) -> Command {
        let mut command = skipbench();
        command.arg("generate").arg("--model").arg(&self.model);
        command.arg("--input").arg(input).args(more);
        if !more.contains(&"--max-new-tokens") {
            command.args(["--max-new-tokens", "8"]);
        }
        command
    }

    fn answers(&self, input: &Path, more: &[&str]) -> Vec<Value> {
        let text = stdout(&mut self.command(input, more));
        text.lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect()
    }

    /// Answers to lines.
    fn ask(&self, lines: &[Value], more: &[&str]) -> Vec<Value> {
        let text: String = lines.iter().map(|line| format!("{line}\n")).collect();
        self.answers(&self.file("input.jsonl", text), more)
    }
}

#[test]
fn a_prompt_is_the_users_turn_and_gets_no_special_tokens_twice() {
    let lab = Lab::new();
    let chat = lab.ask(&[json!({"prompt": "a house"})], &["--chat"]);
    // What the template writes, given as a text without special tokens of the tokenizer's own.
    let written = |text: &str| lab.ask(&[json!({"prompt": text})], &["--special-tokens", "none"]);
    let expected = written("<bos>user: a house<eos>assistant:");
    assert_eq!(chat, expected);
    let system = ["--chat", "--system", "Be brief."];
    let with_system = written("<bos>system: Be brief.<eos>user: a house<eos>assistant:");
    assert_eq!(
        lab.ask(&[json!({"prompt": "a house"})], &system),
        with_system
    );
    let messages = json!({"messages": [{"role": "user", "content": "a house"}]});
    assert_eq!(
        lab.ask(std::slice::from_ref(&messages), &["--chat"]),
        expected
    );
    assert_eq!(lab.ask(&[messages], &system), with_system);
    // A line's own system prompt stands.
    let own = json!({"messages": [{"role": "system", "content": "No."}, {"role": "user", "content": "x"}]});
    assert_eq!(
        lab.ask(&[own], &system),
        written("<bos>system: No.<eos>user: x<eos>assistant:")
    );
    let plain = lab.file("input.txt", "a house\n");
    assert_eq!(lab.answers(&plain, &["--chat"]), expected);
}

#[test]
fn special_tokens_are_the_tokenizers_or_none() {
    let lab = Lab::new();
    let count = |text: &str, rule: &str| {
        let answers = lab.ask(&[json!({"prompt": text})], &["--special-tokens", rule]);
        answers[0]["prompt_tokens"].as_u64().unwrap()
    };
    let bare = count("a house", "none");
    assert_eq!(count("a house", "auto"), bare + 1);
    assert_eq!(count("a house", "add"), bare + 1);
    // As transformers counts, unless it is asked for.
    assert_eq!(count("<bos>a house", "auto"), bare + 2);
    assert_eq!(count("<bos>a house", "add"), bare + 1);
    assert_eq!(count("<bos>a house", "none"), bare + 1);
    let input = lab.file("doubled.txt", "<bos>a house\n");
    let said = |rule: &str| {
        let mut command = lab.command(&input, &["--special-tokens", rule]);
        let output = command.assert().success().get_output().stderr.clone();
        String::from_utf8(output).unwrap()
    };
    assert_names(
        &said("auto"),
        &["1 of 1 prompts begin with the beginning-of-sequence token twice"],
    );
    assert!(!said("none").contains("twice") && !said("add").contains("twice"));

    // A tokenizer that adds nothing itself.
    let path = lab.model.join("tokenizer.json");
    let mut tokenizer: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    tokenizer["post_processor"] = Value::Null;
    std::fs::write(&path, tokenizer.to_string()).unwrap();
    assert_eq!(count("a house", "auto"), bare);
    assert_eq!(count("a house", "add"), bare + 1);
    assert_eq!(count("<bos>a house", "add"), bare + 1);
    std::fs::remove_file(lab.model.join("tokenizer_config.json")).unwrap();
    let error = refused(&mut lab.command(&input, &["--special-tokens", "add"]));
    assert_names(&error, &["special-tokens: add", "bos_token"]);
}

#[test]
fn a_stop_is_cut_from_the_answer() {
    let lab = Lab::new();
    let output = stdout(skipbench().args(["data", "translation", "-n", "4"]));
    let input = lab.file("prompts.jsonl", output);
    let whole = lab.answers(&input, &[]);
    let text = |line: &Value| line["text"].as_str().unwrap().to_owned();
    let stop = text(&whole[0])[4..7].to_owned();
    for more in [
        &[][..],
        &["--batch-size", "4"],
        &["--strategy", "self-speculative:top@2"],
    ] {
        let more = [more, &["--stop", &stop, "--stop", "never found"]].concat();
        let cut = lab.answers(&input, &more);
        for (whole, cut) in whole.iter().zip(&cut) {
            let full = text(whole);
            let at = full.find(&stop).unwrap_or(full.len());
            assert_eq!(text(cut), full[..at], "{more:?}");
        }
        assert!(
            cut[0]["tokens"].as_array().unwrap().len()
                < whole[0]["tokens"].as_array().unwrap().len()
        );
    }
    // A special token has no text; it ends the answer all the same.
    let long = ["--max-new-tokens", "40", "--ignore-eos"];
    let error = refused(&mut lab.command(&input, &["--ignore-eos", "--stop", "x"]));
    assert_names(&error, &["--stop"]);
    assert!(!text(&lab.answers(&input, &long)[0]).is_empty());
    std::fs::remove_file(lab.model.join("generation_config.json")).unwrap();
    let config = std::fs::read_to_string(lab.model.join("config.json")).unwrap();
    let config = config.replace("eos_token_id", "former_eos_token_id");
    std::fs::write(lab.model.join("config.json"), config).unwrap();
    let ended = lab.answers(&input, &["--max-new-tokens", "40", "--stop", "<eos>"]);
    assert!(
        ended
            .iter()
            .all(|line| line["tokens"].as_array().unwrap().last().unwrap() == 2)
    );
    let error = refused(&mut lab.command(&input, &["--stop", ""]));
    assert_names(&error, &["--stop", "empty"]);
}

#[test]
fn lines_with_marks_and_carriage_returns_are_read() {
    let lab = Lab::new();
    let counts = |bytes: &[u8]| -> Vec<u64> {
        let answers = lab.answers(&lab.file("x.jsonl", bytes), &[]);
        answers
            .iter()
            .map(|line| line["prompt_tokens"].as_u64().unwrap())
            .collect()
    };
    let plain = counts(b"{\"prompt\": \"x\"}\n{\"prompt\": \"y\"}\n");
    assert_eq!(
        counts(b"\xef\xbb\xbf{\"prompt\": \"x\"}\r\n\r\n{\"prompt\": \"y\"}\r\n"),
        plain
    );
    let spaces =
        counts(b"{\"prompt\": \"The\"}\n{\"prompt\": \"The \"}\n{\"prompt\": \"The\\n\"}\n");
    assert!(spaces[1] > spaces[0] && spaces[2] > spaces[0], "{spaces:?}");
    let text = lab.answers(&lab.file("x.txt", b"\xef\xbb\xbfx\r\ny\r\n"), &[]);
    assert_eq!(text[0]["prompt_tokens"], plain[0]);
}

#[test]
fn chats_that_cannot_be() {
    let lab = Lab::new();
    let refuse = |line: Value, more: &[&str]| {
        let input = lab.file("wrong.jsonl", format!("{{\"prompt\": \"x\"}}\n{line}\n"));
        refused(&mut lab.command(&input, more))
    };
    let messages = json!({"messages": [{"role": "user", "content": "x"}]});
    assert_names(
        &refuse(messages.clone(), &[]),
        &["wrong.jsonl: line 2", "add `--chat`"],
    );
    for (line, said) in [
        (json!({"messages": "x"}), "`messages` is a list"),
        (json!({"messages": [{"content": "x"}]}), "has a `role`"),
        (json!({"messages": []}), "prompt 2 is empty"),
        (json!({"text": "x"}), "it has `text`"),
        (json!({"prompt": 3}), "not 3"),
        (json!(["x"]), "expected a JSON object, not a list"),
        (
            json!({"messages": [{"role": "tool", "content": "x"}]}),
            "refuses the messages: no tools",
        ),
    ] {
        let error = refuse(line, &["--chat"]);
        assert_names(&error, &["wrong.jsonl", "2", said]);
    }
    let error = refuse(messages.clone(), &["--chat", "--special-tokens", "none"]);
    assert_names(&error, &["--special-tokens", "--chat"]);
    assert_names(&refuse(messages.clone(), &["--system", "x"]), &["--chat"]);
    for (template, said) in [
        (
            "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
            "runs for ever",
        ),
        (
            "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
            "calls itself",
        ),
        ("{% include 'tokenizer.json' %}", "asks for another file"),
        ("\n{% if %}", "line 2"),
    ] {
        std::fs::write(lab.model.join("chat_template.jinja"), template).unwrap();
        let error = refuse(messages.clone(), &["--chat"]);
        assert_names(&error, &["chat_template.jinja", said]);
    }
    std::fs::remove_file(lab.model.join("chat_template.jinja")).unwrap();
    let error = refuse(messages, &["--chat"]);
    assert_names(
        &error,
        &[
            "no chat template",
            "chat_template.jinja",
            "tokenizer_config.json",
        ],
    );
}

#[test]
fn a_task_is_a_chat_with_its_examples_as_turns() {
    let lab = Lab::new();
    lab.file("s.jsonl", "{\"source\": \"Haus\", \"reference\": \"house\"}\n{\"source\": \"Hund\", \"reference\": \"dog\"}\n");
    lab.file(
        "shots.jsonl",
        "{\"source\": \"Buch\", \"reference\": \"book\"}\n",
    );
    let experiment = |task: &str| {
        let text = format!(
            "name: e\nmodels: [{{name: m, path: {:?}}}]\ntasks:\n  - {{name: t, source: s.jsonl, max-new-tokens: 3, {task}}}\nstrategies: [full]\ntiming: {{batches: 0}}\n",
            lab.model
        );
        lab.file("e.yaml", text)
    };
    let plan = |task: &str| -> Value {
        let text = stdout(
            skipbench()
                .arg("plan")
                .arg(experiment(task))
                .args(["--json", "--no-estimate"]),
        );
        serde_json::from_str(&text).unwrap()
    };
    let first = |task: &str| {
        plan(task)["tasks"][0]["prompt"]
            .as_str()
            .unwrap()
            .to_owned()
    };
    assert_eq!(first("chat: true"), "<bos>user: Haus<eos>assistant:");
    assert_eq!(first("chat: false"), "Haus");
    assert_eq!(
        first(
            "prompt: \"de: {{ source }}\", chat: {system: Be brief., enable_thinking: false}, few-shot: {k: 1, from: shots.jsonl}"
        ),
        "<bos>system: Be brief.<eos>user: de: Buch<eos>assistant: book<eos>user: de: Haus<eos>(quick)assistant:"
    );
    let id = |task: &str| plan(task)["cells"][0]["id"].clone();
    let ids = [
        id("chat: false"),
        id("chat: true"),
        id("chat: {system: x}"),
        id("chat: {enable_thinking: false}"),
        id("stop: [x]"),
        id("special-tokens: none"),
    ];
    for (index, id) in ids.iter().enumerate() {
        assert!(!ids[..index].contains(id), "{ids:?}");
    }

    let out = lab.dir.path().join("out");
    skipbench()
        .arg("run")
        .arg(experiment("chat: {system: Be brief.}"))
        .arg("--out")
        .arg(&out)
        .assert()
        .success();
    let prompts = std::fs::read_to_string(out.join("prompts.jsonl")).unwrap();
    let prompt: Value = serde_json::from_str(prompts.lines().next().unwrap()).unwrap();
    assert_eq!(prompt["prompt"], "Haus");
    assert_eq!(
        prompt["messages"],
        json!([{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Haus"}])
    );

    // A template that writes the day.
    std::fs::write(
        lab.model.join("chat_template.jinja"),
        "{{ date_string or strftime_now('%Y') }} {{ messages[0].content }}",
    )
    .unwrap();
    let warned = |task: &str| plan(task)["warnings"].to_string();
    assert_names(&warned("chat: true"), &["today's date", "date_string"]);
    assert!(!warned("chat: {date_string: 1 May 2026}").contains("date"));
    assert_eq!(first("chat: {date_string: 1 May 2026}"), "1 May 2026 Haus");
}
