//! The checkpoint that training starts from: what it computes, its tokenizer, and the files that go on beside its weights.

use super::super::prune::other_files;
use crate::models::{self, Located};
use anyhow::{Context, bail};
use serde_json::{Map, Value, json};
use skipbench_model::{
    ModelConfig, ModelError, Shape, SpecialTokens, TextTokenizer, Tokenize, config_json,
};
use skipbench_train::{Architecture, BOS, EOS, PAD};
use std::path::{Path, PathBuf};
use tokenizers::Tokenizer;

/// A checkpoint to start from.
pub(super) struct Start {
    /// Folder or `.gguf` file.
    pub(super) path: PathBuf,
    /// As the config names it.
    pub(super) name: String,
    pub(super) architecture: Architecture,
}

/// What turns texts into ids.
pub(super) struct Words {
    engine: Engine,
    /// Ids that end a sequence.
    ends: Vec<u32>,
}

enum Engine {
    /// A tokenizer of this trainer.
    Own(Box<Tokenizer>),
    /// That of a checkpoint from elsewhere.
    Given(Box<TextTokenizer>),
}

impl Start {
    /// Looks at what `model` names, downloads it if it is not here yet, and reads its configuration; no weights.
    ///
    /// # Errors
    /// A model that cannot be had or trained.
    pub(super) fn open(model: &Path, context: Option<usize>) -> anyhow::Result<Self> {
        let Located { path, .. } = models::fetch_located(model)?;
        if Shape::of(&path)?.is_some() {
            bail!(
                "{} is a shape without weights; give its sizes as `shape` instead",
                path.display()
            );
        }
        let config = ModelConfig::open(&path)?;
        let json = config_json(&path)?;
        let rope_theta = json["rope_theta"]
            .as_f64()
            .or_else(|| json["rope_parameters"]["rope_theta"].as_f64())
            .unwrap_or(10_000.0);
        Ok(Self {
            architecture: Architecture::of_checkpoint(config, Some(rope_theta), context)?,
            name: called(model),
            path,
        })
    }

    /// The tokenizer.
    ///
    /// # Errors
    /// A file that is missing or malformed.
    pub(super) fn words(&self) -> anyhow::Result<Words> {
        let file = self.path.join("tokenizer.json");
        if file.is_file() {
            let tokenizer = Tokenizer::from_file(&file)
                .map_err(|error| anyhow::anyhow!("{}: {error}", file.display()))?;
            let ids = [PAD, BOS, EOS].map(|token| tokenizer.token_to_id(token));
            if ids == [Some(0), Some(1), Some(2)] {
                return Words::own(tokenizer);
            }
        }
        let vocab_size = self.architecture.config().vocab_size;
        let tokenizer = TextTokenizer::load(&self.path, vocab_size)?;
        Ok(Words {
            ends: tokenizer.eos_ids().to_vec(),
            engine: Engine::Given(Box::new(tokenizer)),
        })
    }

    /// Names and contents of what stands beside weights and configuration in the folder.
    ///
    /// # Errors
    /// A file that cannot be read.
    pub(super) fn files(&self) -> anyhow::Result<Files> {
        let read = |path: PathBuf| {
            let bytes =
                std::fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            Ok((name.into_owned(), bytes))
        };
        other_files(&self.path)?.into_iter().map(read).collect()
    }

    /// Names and contents of what stands beside weights and configuration in a folder of the result. Of a GGUF file they are
    /// made from its metadata.
    ///
    /// # Errors
    /// A file that cannot be read; a tokenizer of a GGUF file that has no form as `tokenizer.json`.
    pub(super) fn files_beside(&self, tokenizer: &TextTokenizer) -> anyhow::Result<Files> {
        let Some(special) = SpecialTokens::of_gguf(&self.path)? else {
            return self.files();
        };
        let Some(json) = tokenizer.to_json()? else {
            bail!(
                "{}: its tokenizer, SentencePiece's, has no form that a Hugging Face folder could hold; write the adapter alone \
                 (`adapter`, with `export: adapter`), or start from the folder that the file was made from",
                self.path.display()
            );
        };
        let named = [
            ("bos_token", &special.bos),
            ("eos_token", &special.eos),
            ("unk_token", &special.unknown),
            ("pad_token", &special.padding),
            ("chat_template", &special.chat_template),
        ];
        let mut settings = Map::from_iter([(
            "tokenizer_class".to_owned(),
            Value::from("PreTrainedTokenizerFast"),
        )]);
        for (key, text) in named {
            if let Some(text) = text {
                settings.insert(key.to_owned(), text.as_str().into());
            }
        }
        let generation = json!({"eos_token_id": tokenizer.eos_ids(), "do_sample": false});
        let pretty = |value: &Value| format!("{value:#}\n").into_bytes();
        Ok(vec![
            ("tokenizer.json".to_owned(), json.into_bytes()),
            (
                "tokenizer_config.json".to_owned(),
                pretty(&Value::Object(settings)),
            ),
            ("generation_config.json".to_owned(), pretty(&generation)),
        ])
    }
}

/// Files by name.
pub(super) type Files = Vec<(String, Vec<u8>)>;

impl Words {
    /// A tokenizer of this trainer.
    ///
    /// # Errors
    /// One that lacks the token that ends a sequence.
    pub(super) fn own(tokenizer: Tokenizer) -> anyhow::Result<Self> {
        let end = tokenizer.token_to_id(EOS);
        Ok(Self {
            ends: vec![end.with_context(|| format!("the tokenizer has no `{EOS}` token"))?],
            engine: Engine::Own(Box::new(tokenizer)),
        })
    }

    /// It, if it is one of this trainer.
    pub(super) fn as_own(&self) -> Option<&Tokenizer> {
        match &self.engine {
            Engine::Own(tokenizer) => Some(tokenizer),
            Engine::Given(_) => None,
        }
    }

    /// It, if it is that of a checkpoint from elsewhere.
    pub(super) fn as_given(&self) -> Option<&TextTokenizer> {
        match &self.engine {
            Engine::Own(_) => None,
            Engine::Given(tokenizer) => Some(tokenizer),
        }
    }

    /// What ends an answer.
    ///
    /// # Errors
    /// A tokenizer that has no such token.
    pub(super) fn end(&self) -> anyhow::Result<u32> {
        let end = self.ends.first().copied();
        end.context("the model names no token that ends a sequence (`eos_token_id`)")
    }
}

impl Tokenize for Words {
    fn encode_with(&self, text: &str, special: bool) -> skipbench_model::Result<Vec<u32>> {
        match &self.engine {
            Engine::Own(tokenizer) => tokenizer
                .encode(text, special)
                .map(|encoding| encoding.get_ids().to_vec())
                .map_err(|error| own_error(&error)),
            Engine::Given(tokenizer) => tokenizer.encode_with(text, special),
        }
    }

    fn decode(&self, ids: &[u32]) -> skipbench_model::Result<String> {
        match &self.engine {
            Engine::Own(tokenizer) => tokenizer
                .decode(ids, true)
                .map_err(|error| own_error(&error)),
            Engine::Given(tokenizer) => tokenizer.decode(ids),
        }
    }

    fn eos_ids(&self) -> &[u32] {
        &self.ends
    }
}

/// What PEFT looks for: a path, or the name of a repository.
fn called(model: &Path) -> String {
    let name = model.display().to_string();
    match name.strip_prefix("hub:") {
        Some(repository) => repository.split('@').next().unwrap_or_default().to_owned(),
        None => name,
    }
}

fn own_error(error: &tokenizers::Error) -> ModelError {
    ModelError::Tokenizer {
        path: PathBuf::from("tokenizer.json"),
        message: error.to_string(),
    }
}
