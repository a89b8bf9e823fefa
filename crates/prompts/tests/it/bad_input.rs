//! Templates and folders that are wrong.

use serde_json::{Map, Value, json};
use skipbench_prompts::{ChatTemplate, Message, PromptError, PromptTemplate, SpecialTokens};
use std::path::Path;

fn render(source: &str) -> Result<String, PromptError> {
    let template = ChatTemplate::new(source, SpecialTokens::default(), "the template of x.gguf")?;
    template.render(&[Message::user("hi")], &Map::new())
}

fn error(source: &str) -> String {
    let error = render(source).unwrap_err().to_string();
    assert!(error.starts_with("the template of x.gguf"), "{error}");
    error
}

#[test]
fn a_template_that_does_not_end_is_stopped() {
    let forever = "{% for a in range(9999) %}{% for b in range(9999) %}{% set c = a + b %}{% endfor %}{% endfor %}";
    assert!(error(forever).contains("runs for ever"));
    let deep = "{% macro f(x) %}{{ f(x) }}{% endmacro %}{{ f(1) }}";
    assert!(error(deep).contains("calls itself"), "{}", error(deep));
    let loops = "{% for x in [[1]] recursive %}{{ loop([[1]]) }}{% endfor %}";
    assert!(error(loops).contains("was stopped"), "{}", error(loops));
    let nested = format!("{{{{ {}1{} }}}}", "(".repeat(100_000), ")".repeat(100_000));
    assert!(error(&nested).contains("line 1"), "{}", error(&nested));
    let long = format!(
        "{{% for a in range(90000) %}}{}{{% endfor %}}",
        "x".repeat(1000)
    );
    assert!(
        error(&long).contains("writes more than 64 MiB"),
        "{}",
        error(&long)
    );
    // A prompt of a task is held to the same.
    let prompt = PromptTemplate::new(&forever.replace("a + b", "source")).unwrap();
    let item: Map<String, Value> = json!({"source": "x"}).as_object().unwrap().clone();
    let stopped = prompt.render(&item).unwrap_err().to_string();
    assert!(stopped.contains("`prompt` was stopped"), "{stopped}");
}

#[test]
fn a_template_gets_no_file() {
    for asks in [
        "{% include '/etc/passwd' %}",
        "{% import 'other.jinja' as other %}",
        "{% from 'other.jinja' import f %}",
        "{% extends 'base.jinja' %}",
        "{% include 'template' %}",
    ] {
        let error = error(asks);
        assert!(error.contains("asks for another file"), "{asks}: {error}");
    }
}

#[test]
fn what_a_template_refuses_is_told_in_its_words() {
    let raised = error("{{ raise_exception('Roles must alternate') }}");
    assert_eq!(
        raised,
        "the template of x.gguf refuses the messages: Roles must alternate"
    );
    let nested = error("{% macro f() %}{{ raise_exception('no ' ~ 3) }}{% endmacro %}a{{ f() }}");
    assert!(nested.ends_with("refuses the messages: no 3"), "{nested}");
}

#[test]
fn a_mistake_is_told_with_its_line() {
    assert!(error("a\n{% if %}").contains("line 2"));
    assert!(error("{% endfor %}").contains("line 1"));
    assert!(error("a\n\n{{ x.y.z }}").contains("line 3"));
    assert!(error("{{ messages | nothing }}").contains("nothing"));
    assert!(error("{{ 'a' * 99999999999 }}").contains("too large"));
    assert!(error("{{ strftime_now('%!') }}").contains("strftime_now"));
    assert!(error("{{ x | tojson }}").contains("undefined"));
    assert!(error("{{ [] | tojson(indent=-1) }}").contains("indent"));
    let template = ChatTemplate::new("{{ 1 }}", SpecialTokens::default(), "t").unwrap();
    let empty = template.render(&[], &Map::new()).unwrap_err().to_string();
    assert!(empty.contains("without any message"), "{empty}");
}

fn of_folder(files: &[(&str, &str)]) -> Result<String, PromptError> {
    let dir = tempfile::tempdir().unwrap();
    for (name, text) in files {
        std::fs::write(dir.path().join(name), text).unwrap();
    }
    let template = ChatTemplate::of_folder(dir.path())?;
    template.render(&[Message::user("hi")], &Map::new())
}

#[test]
fn a_template_is_looked_for_where_transformers_looks() {
    let config = r#"{"bos_token": {"content": "<s>"}, "eos_token": "</s>", "pad_token": null, "chat_template": "{{ bos_token }}{{ messages[0].content }}{{ eos_token }}{{ pad_token }}"}"#;
    assert_eq!(
        of_folder(&[("tokenizer_config.json", config)]).unwrap(),
        "<s>hi</s>"
    );
    let file = "\u{feff}file {{ eos_token }}\n";
    assert_eq!(
        of_folder(&[
            ("tokenizer_config.json", config),
            ("chat_template.jinja", file)
        ])
        .unwrap(),
        "file </s>"
    );
    let list = r#"{"chat_template": [{"name": "tool_use", "template": "t"}, {"name": "default", "template": "{{ unk_token }}d"}]}"#;
    let map = r#"{"unk_token": "<unk>"}"#;
    let files = [
        ("tokenizer_config.json", list),
        ("special_tokens_map.json", map),
    ];
    assert_eq!(of_folder(&files).unwrap(), "<unk>d");
}

#[test]
fn a_folder_without_a_template_says_where_one_was_looked_for() {
    let none = of_folder(&[("tokenizer_config.json", r#"{"chat_template": null}"#)]).unwrap_err();
    for word in [
        "no chat template",
        "chat_template.jinja",
        "tokenizer_config.json",
    ] {
        assert!(none.to_string().contains(word), "{none}");
    }
    assert!(
        of_folder(&[])
            .unwrap_err()
            .to_string()
            .contains("no chat template")
    );
    for (config, said) in [
        ("[]", "expected a JSON object"),
        ("{\"chat_template\": ", "EOF"),
        (r#"{"chat_template": 3}"#, "neither a text nor a list"),
        (
            r#"{"chat_template": [{"name": "a"}]}"#,
            "lacks `name` or `template`",
        ),
        (
            r#"{"chat_template": [{"name": "rag", "template": ""}]}"#,
            "there are `rag`",
        ),
        (r#"{"chat_template": "{% if %}"}"#, "line 1"),
    ] {
        let error = of_folder(&[("tokenizer_config.json", config)])
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("tokenizer_config.json") && error.contains(said),
            "{error}"
        );
    }
    let gone = ChatTemplate::of_folder(Path::new("/nonexistent"))
        .unwrap_err()
        .to_string();
    assert!(gone.contains("/nonexistent"), "{gone}");
}
