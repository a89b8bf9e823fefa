//! Chat templates as transformers renders them, and the prompts of tasks.
//!
//! # Overview
//!
//! A [`ChatTemplate`] turns [`Message`]s into the text that a model was trained on. It comes from a checkpoint folder
//! ([`ChatTemplate::of_folder`]) or from texts that stand elsewhere, such as the metadata of a GGUF file
//! ([`ChatTemplate::new`]). What it gives holds its special tokens already, so it is tokenized without adding them again.
//!
//! A [`PromptTemplate`] turns an item of a task into a prompt: `{{ source }}` and every field of the item.
//!
//! Templates are untrusted: they cannot read files, and one that runs for ever or calls itself without end is stopped.

mod chat;
mod clean;
mod environment;
mod error;
mod message;
mod prompt;
mod python;
mod special;

pub use chat::ChatTemplate;
pub use error::{PromptError, Result};
pub use message::Message;
pub use prompt::{Expression, PromptTemplate};
pub use special::SpecialTokens;
