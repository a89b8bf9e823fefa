//! What can be wrong with a template.

use std::path::PathBuf;

/// An error of this crate.
#[derive(Debug, thiserror::Error)]
pub enum PromptError {
    /// A checkpoint has no chat template.
    #[error(
        "no chat template: {looked} of {} were looked at; a base model has none, so leave the chat out, or write the template to chat_template.jinja", dir.display()
    )]
    NoTemplate {
        /// The checkpoint.
        dir: PathBuf,
        /// The places that were looked at.
        looked: &'static str,
    },
    /// A file that cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// A file of a checkpoint that is not as it should be.
    #[error("{}: {message}", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        message: String,
    },
    /// A template that does not parse.
    #[error("{origin}: {}{message}", at(*line))]
    Syntax {
        /// Where the template is from.
        origin: String,
        /// The line in it.
        line: Option<usize>,
        /// What is wrong.
        message: String,
    },
    /// A template refuses the messages by `raise_exception`.
    #[error("{origin} refuses the messages: {message}")]
    Refused {
        /// Where the template is from.
        origin: String,
        /// What it says.
        message: String,
    },
    /// A template that does not come to an end.
    #[error("{origin} was stopped: {why}")]
    Stopped {
        /// Where the template is from.
        origin: String,
        /// What it did.
        why: String,
    },
    /// A template asks for another file.
    #[error(
        "{origin}: {}it asks for another file, and none is given to templates ({message}); write what it would include into the template", at(*line)
    )]
    AsksForFile {
        /// Where the template is from.
        origin: String,
        /// The line in it.
        line: Option<usize>,
        /// What it asked for.
        message: String,
    },
    /// A template that fails on what it is given.
    #[error("{origin}: {}{message}", at(*line))]
    Render {
        /// Where the template is from.
        origin: String,
        /// The line in it.
        line: Option<usize>,
        /// What went wrong.
        message: String,
    },
    /// A prompt in the form of earlier versions.
    #[error(
        "`prompt` has `{{source}}` in single braces, the form of earlier versions; write `{{{{ source }}}}`"
    )]
    OldForm,
    /// A prompt that says the same whatever the item is.
    #[error(
        "`prompt` {template:?} names no field, so every prompt would be the same; `{{{{ source }}}}` stands for the source"
    )]
    Constant {
        /// The template.
        template: String,
    },
    /// A prompt that names what an item does not have.
    #[error(
        "{origin} names {}, which there is not; there are: {}",
        listed(unknown),
        listed(known)
    )]
    Unknown {
        /// The template.
        origin: String,
        /// What it names.
        unknown: Vec<String>,
        /// What it may name.
        known: Vec<String>,
    },
    /// A message that is none.
    #[error("{0}")]
    Message(String),
}

fn at(line: Option<usize>) -> String {
    line.map_or_else(String::new, |line| format!("line {line}: "))
}

fn listed(names: &[String]) -> String {
    let names: Vec<String> = names.iter().map(|name| format!("`{name}`")).collect();
    names.join(", ")
}

/// Result of this crate.
pub type Result<T> = std::result::Result<T, PromptError>;
