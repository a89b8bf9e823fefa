//! Running the binary, and the folders that tests need.

use assert_cmd::Command;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// The repository.
pub(crate) fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// The shipped base checkpoint.
pub(crate) fn checkpoint() -> PathBuf {
    repository().join("data/checkpoints/base")
}

/// A copy of the shipped checkpoint that a test may spoil.
pub(crate) fn checkpoint_copy(dir: &Path) -> PathBuf {
    let copy = dir.join("checkpoint");
    std::fs::create_dir(&copy).unwrap();
    for name in [
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
    ] {
        std::fs::copy(checkpoint().join(name), copy.join(name)).unwrap();
    }
    copy
}

pub(crate) fn skipbench() -> Command {
    let mut command = Command::cargo_bin("skipbench").unwrap();
    command.env_remove("RUST_LOG");
    command
}

/// Standard output of a command that succeeds.
pub(crate) fn stdout(command: &mut Command) -> String {
    let output = command.assert().success().get_output().stdout.clone();
    String::from_utf8(output).unwrap()
}

/// Standard error of a command that is refused with exit code 2 and prints nothing.
pub(crate) fn refused(command: &mut Command) -> String {
    let assert = command.assert().code(2);
    let output = assert.get_output();
    assert_eq!(String::from_utf8_lossy(&output.stdout), "");
    let text = String::from_utf8(output.stderr.clone()).unwrap();
    assert!(!text.contains("panicked"), "{text}");
    text
}

/// Holds when every part is found.
#[track_caller]
pub(crate) fn assert_names(text: &str, parts: &[&str]) {
    for part in parts {
        assert!(text.contains(part), "no {part:?} in:\n{text}");
    }
}

/// The rows of a CSV file, by column.
pub(crate) fn csv_rows(path: &Path) -> Vec<BTreeMap<String, String>> {
    let text = std::fs::read_to_string(path).unwrap();
    let mut lines = text.lines().map(csv_cells);
    let header = lines.next().unwrap();
    lines
        .map(|cells| header.iter().cloned().zip(cells).collect())
        .collect()
}

/// The cells of a line, quoted where they hold a comma or a quote.
fn csv_cells(line: &str) -> Vec<String> {
    let (mut cells, mut quoted) = (vec![String::new()], false);
    let mut characters = line.chars().peekable();
    while let Some(character) = characters.next() {
        let cell = cells.last_mut().unwrap();
        match character {
            '"' if quoted && characters.peek() == Some(&'"') => {
                cell.push('"');
                characters.next();
            }
            '"' => quoted = !quoted,
            ',' if !quoted => cells.push(String::new()),
            _ => cell.push(character),
        }
    }
    cells
}
