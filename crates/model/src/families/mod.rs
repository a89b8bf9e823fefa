//! Model families: how a checkpoint's names and config keys become one common decoder layer.
//! Adding a family is its own file here and a variant of [`Family`].

mod bloom;
mod gemma;
mod gpt_neox;
mod llama;
mod names;
mod olmo2;
mod opt;
mod phi3;

use crate::checkpoint::Checkpoint;
use crate::config::{ConfigFile, ModelConfig};
use crate::error::{ModelError, Result};
use crate::weights::{Frame, LayerWeights};

/// A model family, by the `model_type` of `config.json`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// LLaMA 1, 2, 3 (arXiv 2302.13971, 2307.09288, 2407.21783).
    Llama,
    /// Mistral (arXiv 2310.06825): the LLaMA layer with a sliding window.
    Mistral,
    /// Qwen2 (arXiv 2407.10671): the LLaMA layer with biases on Q, K and V.
    Qwen2,
    /// Qwen3 (arXiv 2505.09388): the LLaMA layer with norms on the queries and keys of each head.
    Qwen3,
    /// Gemma 2 (arXiv 2408.00118): norms on both sides, soft caps, every other layer slides.
    Gemma2,
    /// The text models of Gemma 3 (arXiv 2503.19786): five of six layers slide, with RoPE of their own.
    Gemma3,
    /// Phi-3 and Phi-4-mini (arXiv 2404.14219): the LLaMA layer with LongRoPE.
    Phi3,
    /// OLMo 2 (arXiv 2501.00656): norms behind attention and MLP.
    Olmo2,
    /// GPT-NeoX and Pythia (arXiv 2204.06745, 2304.01373): attention and MLP side by side.
    GptNeoX,
    /// OPT (arXiv 2205.01068): learned positions, ReLU.
    Opt,
    /// BLOOM and BLOOMZ (arXiv 2211.05100): ALiBi, layer norms, GELU MLP.
    Bloom,
}

impl Family {
    const ALL: [Family; 11] = [
        Family::Llama,
        Family::Mistral,
        Family::Qwen2,
        Family::Qwen3,
        Family::Gemma2,
        Family::Gemma3,
        Family::Phi3,
        Family::Olmo2,
        Family::GptNeoX,
        Family::Opt,
        Family::Bloom,
    ];

    /// `model_type`, and how the names of the classes in transformers begin.
    fn names(self) -> (&'static str, &'static str) {
        match self {
            Family::Llama => ("llama", "Llama"),
            Family::Mistral => ("mistral", "Mistral"),
            Family::Qwen2 => ("qwen2", "Qwen2"),
            Family::Qwen3 => ("qwen3", "Qwen3"),
            Family::Gemma2 => ("gemma2", "Gemma2"),
            Family::Gemma3 => ("gemma3_text", "Gemma3"),
            Family::Phi3 => ("phi3", "Phi3"),
            Family::Olmo2 => ("olmo2", "Olmo2"),
            Family::GptNeoX => ("gpt_neox", "GPTNeoX"),
            Family::Opt => ("opt", "OPT"),
            Family::Bloom => ("bloom", "Bloom"),
        }
    }

    /// The family that `model_type` names; where it is not given, the one whose class the first of `architectures` is, in
    /// whatever case it is written.
    pub(crate) fn detect(file: &ConfigFile) -> Result<Self> {
        let class = file.get("architectures").and_then(|list| list.get(0));
        let text = |value: Option<&serde_json::Value>| Some(value?.as_str()?.to_owned());
        let (kind, class) = (text(file.get("model_type")), text(class));
        let family = |family: &Family| match (&kind, &class) {
            (Some(kind), _) => family.names().0 == kind,
            (None, Some(class)) => family
                .classes()
                .iter()
                .any(|name| name.eq_ignore_ascii_case(class)),
            (None, None) => false,
        };
        if let Some(family) = Self::ALL.into_iter().find(family) {
            return Ok(family);
        }
        let Some(found) = kind.or(class) else {
            return Err(file.error("neither `model_type` nor `architectures` is given"));
        };
        Err(ModelError::UnknownArchitecture {
            path: file.path.clone(),
            found,
            supported: Self::ALL.map(|family| family.names().0).join(", "),
        })
    }

    /// A tensor's name within a model that has an LM head: base models are written without the prefix that they have there.
    pub(crate) fn module_name(self, name: &str) -> String {
        let prefix = match self {
            Family::Bloom => "transformer.",
            Family::GptNeoX => "gpt_neox.",
            Family::Opt => "model.decoder.",
            _ => "model.",
        };
        let outside = ["lm_head.", "embed_out."];
        let name = match self {
            Family::Opt => name.strip_prefix("decoder.").unwrap_or(name),
            _ => name,
        };
        match name.starts_with(prefix) || outside.iter().any(|head| name.starts_with(head)) {
            true => name.to_owned(),
            false => format!("{prefix}{name}"),
        }
    }

    /// The classes with an LM head and without.
    fn classes(self) -> Vec<String> {
        let begins = self.names().1;
        ["ForCausalLM", "Model", "TextModel"]
            .map(|ends| format!("{begins}{ends}"))
            .into()
    }

    pub(crate) fn config(self, file: &ConfigFile) -> Result<ModelConfig> {
        match self {
            Family::Llama | Family::Mistral | Family::Qwen2 | Family::Qwen3 => {
                llama::config(self, file)
            }
            Family::Gemma2 | Family::Gemma3 => gemma::config(self, file),
            Family::Phi3 => phi3::config(file),
            Family::Olmo2 => olmo2::config(file),
            Family::GptNeoX => gpt_neox::config(file),
            Family::Opt => opt::config(file),
            Family::Bloom => bloom::config(file),
        }
    }

    /// Embedding, final norm and LM head.
    pub(crate) fn frame(self, checkpoint: &Checkpoint, config: &ModelConfig) -> Result<Frame> {
        match self {
            Family::Llama | Family::Mistral | Family::Qwen2 | Family::Qwen3 | Family::Phi3 => {
                llama::frame(checkpoint, config)
            }
            Family::Gemma2 | Family::Gemma3 => gemma::frame(checkpoint, config),
            Family::Olmo2 => olmo2::frame(checkpoint, config),
            Family::GptNeoX => gpt_neox::frame(checkpoint, config),
            Family::Opt => opt::frame(checkpoint, config),
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
            Family::Llama | Family::Mistral | Family::Qwen2 | Family::Qwen3 => {
                llama::layer(checkpoint, config, index)
            }
            Family::Gemma2 | Family::Gemma3 => gemma::layer(checkpoint, config, index),
            Family::Phi3 => phi3::layer(checkpoint, config, index),
            Family::Olmo2 => olmo2::layer(checkpoint, config, index),
            Family::GptNeoX => gpt_neox::layer(checkpoint, config, index),
            Family::Opt => opt::layer(checkpoint, config, index),
            Family::Bloom => bloom::layer(checkpoint, config, index),
        }
    }
}
