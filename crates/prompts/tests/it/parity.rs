//! Chats as transformers renders and tokenizes them (`scripts/fixtures/make_chat_fixtures.py`).

use serde::Deserialize;
use serde_json::{Map, Value};
use skipbench_prompts::{ChatTemplate, Message, PromptError};
use std::path::{Path, PathBuf};
use tokenizers::Tokenizer;

#[derive(Deserialize)]
struct Style {
    tokenizer_config: Value,
    #[serde(default, rename = "chat_template.jinja")]
    file: Option<String>,
    chats: Vec<Chat>,
}

#[derive(Deserialize)]
struct Chat {
    messages: Vec<Message>,
    variables: Map<String, Value>,
    text: Option<String>,
    ids: Option<Vec<u32>>,
    error: Option<String>,
    /// It fails without meaning to.
    #[serde(default)]
    fails: bool,
}

fn fixtures() -> PathBuf {
    let own = || Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    std::env::var_os("SKIPBENCH_CHATS").map_or_else(own, PathBuf::from)
}

/// The template of a style, read from a folder as a checkpoint has it.
fn template(style: &Style) -> ChatTemplate {
    let dir = tempfile::tempdir().unwrap();
    let config = style.tokenizer_config.to_string();
    std::fs::write(dir.path().join("tokenizer_config.json"), config).unwrap();
    if let Some(file) = &style.file {
        std::fs::write(dir.path().join("chat_template.jinja"), file).unwrap();
    }
    ChatTemplate::of_folder(dir.path()).unwrap()
}

/// `SKIPBENCH_CHATS` names a folder of more that the script has made.
#[test]
fn every_style_is_rendered_and_tokenized_as_transformers_does() {
    let tokenizer = Tokenizer::from_file(fixtures().join("tokenizer.json")).unwrap();
    let mut styles = 0;
    let mut different = Vec::new();
    for entry in std::fs::read_dir(fixtures()).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
        if name == "tokenizer" {
            continue;
        }
        styles += 1;
        let style: Style = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        let template = template(&style);
        for (index, chat) in style.chats.iter().enumerate() {
            let rendered = template.render(&chat.messages, &chat.variables);
            match (rendered, &chat.text, &chat.error) {
                (Ok(text), Some(expected), None) if text == *expected => {
                    let ids = tokenizer.encode(text.as_str(), false).unwrap();
                    assert_eq!(
                        ids.get_ids(),
                        chat.ids.as_deref().unwrap(),
                        "{name} {index}"
                    );
                }
                (Err(PromptError::Refused { message, .. }), None, Some(expected)) => {
                    assert_eq!(message, *expected, "{name} {index}");
                }
                (Err(PromptError::Render { .. }), None, None) if chat.fails => {}
                (found, text, error) => different.push(format!(
                    "{name} {index}:\n  ours:         {found:?}\n  transformers: {text:?} {error:?}"
                )),
            }
        }
    }
    assert!(different.is_empty(), "{}", different.join("\n"));
    let own = std::env::var_os("SKIPBENCH_CHATS").is_none();
    assert!(styles >= if own { 11 } else { 1 }, "{styles} styles");
}
