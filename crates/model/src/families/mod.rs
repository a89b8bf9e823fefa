//! Model families: how a checkpoint's names and config keys become one common decoder layer.
//! Adding a family is its own file here and a variant of [`Family`].

mod bloom;
mod llama;

use crate::checkpoint::Checkpoint;
use crate::config::{ConfigFile, ModelConfig};
use crate::error::{ModelError, Result};
use crate::weights::{Frame, LayerWeights};

/// A model family, by the `architectures` or `model_type` of `config.json`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// LLaMA 1, 2, 3 (arXiv 2302.13971, 2307.09288, 2407.21783).
    Llama,
    /// Mistral (arXiv 2310.06825): the LLaMA layer; run up to its sliding window.
    Mistral,
    /// Qwen2 (arXiv 2407.10671): the LLaMA layer with biases on Q, K and V.
    Qwen2,
    /// BLOOM and BLOOMZ (arXiv 2211.05100): ALiBi, layer norms, GELU MLP.
    Bloom,
}

impl Family {
    const ALL: [Family; 4] = [Family::Llama, Family::Mistral, Family::Qwen2, Family::Bloom];

    /// `model_type` and the classes in transformers, with an LM head and without.
    fn names(self) -> [&'static str; 3] {
        match self {
            Family::Llama => ["llama", "LlamaForCausalLM", "LlamaModel"],
            Family::Mistral => ["mistral", "MistralForCausalLM", "MistralModel"],
            Family::Qwen2 => ["qwen2", "Qwen2ForCausalLM", "Qwen2Model"],
            Family::Bloom => ["bloom", "BloomForCausalLM", "BloomModel"],
        }
    }

    /// The family that `model_type` and the first of `architectures` name, where they are given.
    pub(crate) fn detect(file: &ConfigFile) -> Result<Self> {
        let class = file.get("architectures").and_then(|list| list.get(0));
        let given: Vec<&str> = [file.get("model_type"), class]
            .into_iter()
            .flatten()
            .filter_map(|value| value.as_str())
            .collect();
        if given.is_empty() {
            return Err(file.error("neither `architectures` nor `model_type` is given"));
        }
        Self::ALL
            .into_iter()
            .find(|family| given.iter().all(|name| family.names().contains(name)))
            .ok_or_else(|| ModelError::UnknownArchitecture {
                path: file.path.clone(),
                found: given.join(", "),
                supported: Self::ALL
                    .map(|family| family.names()[..2].join(", "))
                    .join("; "),
            })
    }

    pub(crate) fn config(self, file: &ConfigFile) -> Result<ModelConfig> {
        match self {
            Family::Llama | Family::Mistral | Family::Qwen2 => llama::config(self, file),
            Family::Bloom => bloom::config(file),
        }
    }

    /// Embedding, final norm and LM head.
    pub(crate) fn frame(self, checkpoint: &Checkpoint, config: &ModelConfig) -> Result<Frame> {
        match self {
            Family::Llama | Family::Mistral | Family::Qwen2 => llama::frame(checkpoint, config),
            Family::Bloom => bloom::frame(checkpoint, config),
        }
    }

    /// One decoder layer.
    pub(crate) fn layer(
        self,
        checkpoint: &Checkpoint,
        config: &ModelConfig,
        index: usize,
    ) -> Result<LayerWeights> {
        match self {
            Family::Llama | Family::Mistral | Family::Qwen2 => {
                llama::layer(checkpoint, config, index)
            }
            Family::Bloom => bloom::layer(checkpoint, config, index),
        }
    }
}
