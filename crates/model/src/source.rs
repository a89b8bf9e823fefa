//! What names a model: a Hugging Face folder, a `.gguf` file, or a repository of the hub.

use crate::error::{ModelError, Result};
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
    type Err = ModelError;

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

/// `hub:owner/name[@revision]`; the revision is `main` if none is given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HubName {
    repo: String,
    revision: Option<String>,
    is_data: bool,
}

/// `hub:datasets/owner/name/path/of/file[@revision]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HubDataFile {
    name: HubName,
    path: String,
}

impl HubDataFile {
    /// The file that a path of an experiment names, if it names one of the hub.
    ///
    /// # Errors
    /// A name of the hub that is not one of a file of a data set.
    pub fn of(path: &Path) -> Result<Option<Self>> {
        match path.to_str().and_then(|text| text.strip_prefix("hub:")) {
            Some(name) => name.parse().map(Some),
            None => Ok(None),
        }
    }

    pub(crate) fn name(&self) -> &HubName {
        &self.name
    }

    /// The file within the data set.
    pub fn path(&self) -> &str {
        &self.path
    }
}

impl FromStr for HubDataFile {
    type Err = ModelError;

    /// Reads what stands behind `hub:`.
    fn from_str(text: &str) -> Result<Self> {
        let wrong = || {
            ModelError::Hub {
            name: format!("hub:{}", text.escape_debug()),
            message: "not the name of a file of a data set; it is written hub:datasets/owner/name/path/of/file, with @revision behind it for another than main".to_owned(),
        }
        };
        let (whole, revision) = match text.split_once('@') {
            Some((whole, revision)) => (whole, Some(revision)),
            None => (text, None),
        };
        let rest = whole.strip_prefix("datasets/").ok_or_else(wrong)?;
        let mut parts = rest.splitn(3, '/');
        let (Some(owner), Some(name), Some(path)) = (parts.next(), parts.next(), parts.next())
        else {
            return Err(wrong());
        };
        let revision = revision.map_or_else(String::new, |revision| format!("@{revision}"));
        let name: HubName = format!("{owner}/{name}{revision}")
            .parse()
            .map_err(|_| wrong())?;
        match path.split('/').all(is_plain) {
            true => Ok(Self {
                name: HubName {
                    is_data: true,
                    ..name
                },
                path: path.to_owned(),
            }),
            false => Err(wrong()),
        }
    }
}

impl HubName {
    /// `owner/name`.
    pub(crate) fn repo(&self) -> &str {
        &self.repo
    }

    pub(crate) fn kind(&self) -> hf_hub::RepoType {
        match self.is_data {
            true => hf_hub::RepoType::Dataset,
            false => hf_hub::RepoType::Model,
        }
    }

    pub(crate) fn revision(&self) -> &str {
        self.revision.as_deref().unwrap_or("main")
    }

    /// The last part of the name: what a folder of it would be called.
    pub fn short(&self) -> &str {
        self.repo.rsplit('/').next().unwrap_or(&self.repo)
    }

    pub(crate) fn error(&self, message: String) -> ModelError {
        ModelError::Hub {
            name: self.to_string(),
            message,
        }
    }
}

impl fmt::Display for HubName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = if self.is_data { "datasets/" } else { "" };
        write!(f, "hub:{kind}{}", self.repo)?;
        match &self.revision {
            Some(revision) => write!(f, "@{revision}"),
            None => Ok(()),
        }
    }
}

/// Whether a text can be a part of a path and of an address, and no more than that.
pub(crate) fn is_plain(part: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    let edge = |char: char| char == '.' || char == '-';
    !part.is_empty()
        && part.len() <= 96
        && part.bytes().all(plain)
        && !part.contains("..")
        && !part.starts_with(edge)
        && !part.ends_with(edge)
}

impl FromStr for HubName {
    type Err = ModelError;

    /// Reads what stands behind `hub:`.
    fn from_str(text: &str) -> Result<Self> {
        let (repo, revision) = match text.split_once('@') {
            Some((repo, revision)) => (repo, Some(revision)),
            None => (text, None),
        };
        let parts: Vec<&str> = repo.split('/').collect();
        // In the cache `--` stands for the slash.
        let good_repo = matches!(parts[..], [owner, name] if is_plain(owner) && is_plain(name))
            && !repo.contains("--");
        let good_revision = revision.is_none_or(|revision| revision.split('/').all(is_plain));
        if !good_repo || !good_revision {
            return Err(ModelError::Hub {
                name: format!("hub:{}", text.escape_debug()),
                message: "not the name of a repository; it is written hub:owner/name or hub:owner/name@revision, of letters, digits, `-`, `_` and `.`".to_owned(),
            });
        }
        Ok(Self {
            repo: repo.to_owned(),
            revision: revision.map(str::to_owned),
            is_data: false,
        })
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

    #[test]
    fn a_file_of_a_data_set_is_within_it() {
        let file = |text: &str| HubDataFile::of(Path::new(text));
        assert_eq!(file("data/x.jsonl").unwrap(), None);
        let found = file("hub:datasets/o/n/main/test-00000-of-00001.parquet@v1")
            .unwrap()
            .unwrap();
        assert_eq!(found.name().to_string(), "hub:datasets/o/n@v1");
        assert_eq!(found.path(), "main/test-00000-of-00001.parquet");
        for wrong in [
            "hub:o/n/x.parquet",
            "hub:datasets/o/n",
            "hub:datasets/o/n/",
            "hub:datasets/o/n/../x",
            "hub:datasets/o/n/a//b",
            "hub:datasets/../n/x",
            "hub:datasets/o/n/x@../y",
            "hub:datasets/o/n/x y",
        ] {
            let message = file(wrong).unwrap_err().to_string();
            assert!(
                message.contains("hub:datasets/owner/name"),
                "{wrong}: {message}"
            );
        }
    }
}
