//! What names a model: a Hugging Face folder, a `.gguf` file, or a repository of the hub.

use crate::error::Result;
use crate::hub::HubName;
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// Where a model comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ModelSource {
    /// A folder or a `.gguf` file.
    Path(PathBuf),
    /// `hub:owner/name[@revision]`.
    Hub(HubName),
}

impl ModelSource {
    /// The source that a path on a command line or in an experiment stands for.
    ///
    /// # Errors
    /// A name of the hub that is not one.
    pub fn of(path: &Path) -> Result<Self> {
        match path.to_str() {
            Some(text) => text.parse(),
            None => Ok(Self::Path(path.to_path_buf())),
        }
    }
}

impl FromStr for ModelSource {
    type Err = crate::ModelError;

    fn from_str(text: &str) -> Result<Self> {
        match text.strip_prefix("hub:") {
            Some(name) => name.parse().map(Self::Hub),
            None => Ok(Self::Path(PathBuf::from(text))),
        }
    }
}

impl fmt::Display for ModelSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Path(path) => path.display().fmt(f),
            Self::Hub(name) => name.fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_and_a_name_of_the_hub_are_told_apart() {
        let source = |text: &str| text.parse::<ModelSource>();
        assert_eq!(
            source("models/x.gguf").unwrap(),
            ModelSource::Path("models/x.gguf".into())
        );
        for name in [
            "hub:owner/name",
            "hub:a-b/c_d.e-1.5B@main",
            "hub:o/n@refs/pr/1",
        ] {
            let parsed = source(name).unwrap();
            assert!(matches!(parsed, ModelSource::Hub(_)), "{name}");
            assert_eq!(parsed.to_string(), name);
        }
        for wrong in [
            "hub:",
            "hub:name",
            "hub:../../x",
            "hub:../x",
            "hub:a/..",
            "hub:/etc/passwd",
            "hub:a/b/c",
            "hub:a//b",
            "hub:a/b@",
            "hub:a/b@../../main",
            "hub:a/b@/main",
            "hub:a/b@x//y",
            "hub:a/b@.git",
            "hub:a/b c",
            "hub:a/b\n",
            "hub:a/b?x=1",
            "hub:a/b%2e%2e",
            "hub:a/b--c",
            "hub:-a/b",
            "hub:a\\b/c",
            "hub:ä/b",
            "hub:https://huggingface.co/a/b",
        ] {
            let message = source(wrong).unwrap_err().to_string();
            assert!(message.contains("owner/name"), "{wrong}: {message}");
        }
    }
}
