//! Where llama.cpp's converter put the tensors of a Hugging Face checkpoint, and how they are put back.

use super::Gguf;

/// The names of a tensor without `.weight` or `.bias`: Hugging Face's and llama.cpp's.
type Names = [(&'static str, &'static str)];

/// A model that GGUF files hold, by `general.architecture`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Architecture {
    Llama,
    Qwen2,
    Qwen3,
    Gemma2,
    Gemma3,
    Phi3,
    GptNeoX,
    Bloom,
}

/// What the converter did to the values of a tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Layout {
    /// Nothing.
    Same,
    /// LLaMA's query rows, paired for llama.cpp's interleaved RoPE.
    PairedQueries,
    /// As [`PairedQueries`](Self::PairedQueries), of the key rows.
    PairedKeys,
    /// Gemma's norms hold `1 + w`.
    OnePlus,
    /// All queries, then all keys, then all values; Hugging Face has them head by head.
    QkvApart,
}

const ATTENTION: &Names = &[
    ("self_attn.q_proj", "attn_q"),
    ("self_attn.k_proj", "attn_k"),
    ("self_attn.v_proj", "attn_v"),
    ("self_attn.o_proj", "attn_output"),
    ("self_attn.q_norm", "attn_q_norm"),
    ("self_attn.k_norm", "attn_k_norm"),
    ("mlp.gate_proj", "ffn_gate"),
    ("mlp.up_proj", "ffn_up"),
    ("mlp.down_proj", "ffn_down"),
    ("input_layernorm", "attn_norm"),
];
const LLAMA_NORMS: &Names = &[("post_attention_layernorm", "ffn_norm")];
const GEMMA_NORMS: &Names = &[
    ("post_attention_layernorm", "post_attention_norm"),
    ("pre_feedforward_layernorm", "ffn_norm"),
    ("post_feedforward_layernorm", "post_ffw_norm"),
];
/// The gate and the up projection share `ffn_up`.
const PHI3: &Names = &[
    ("self_attn.qkv_proj", "attn_qkv"),
    ("self_attn.o_proj", "attn_output"),
    ("mlp.gate_up_proj", "ffn_up"),
    ("mlp.down_proj", "ffn_down"),
    ("input_layernorm", "attn_norm"),
];
const NEOX: &Names = &[
    ("attention.query_key_value", "attn_qkv"),
    ("attention.dense", "attn_output"),
    ("mlp.dense_h_to_4h", "ffn_up"),
    ("mlp.dense_4h_to_h", "ffn_down"),
    ("input_layernorm", "attn_norm"),
    ("post_attention_layernorm", "ffn_norm"),
];
const BLOOM: &Names = &[
    ("self_attention.query_key_value", "attn_qkv"),
    ("self_attention.dense", "attn_output"),
    ("mlp.dense_h_to_4h", "ffn_up"),
    ("mlp.dense_4h_to_h", "ffn_down"),
    ("input_layernorm", "attn_norm"),
    ("post_attention_layernorm", "ffn_norm"),
];

const LLAMA_FRAME: &Names = &[
    ("model.embed_tokens", "token_embd"),
    ("model.norm", "output_norm"),
    ("lm_head", "output"),
];
const NEOX_FRAME: &Names = &[
    ("gpt_neox.embed_in", "token_embd"),
    ("gpt_neox.final_layer_norm", "output_norm"),
    // Pythia's files, and what transformers 5 writes.
    ("embed_out", "output"),
    ("lm_head", "output"),
];
const BLOOM_FRAME: &Names = &[
    ("transformer.word_embeddings", "token_embd"),
    ("transformer.word_embeddings_layernorm", "token_embd_norm"),
    ("transformer.ln_f", "output_norm"),
    ("lm_head", "output"),
];

impl Architecture {
    const ALL: [Self; 8] = [
        Self::Llama,
        Self::Qwen2,
        Self::Qwen3,
        Self::Gemma2,
        Self::Gemma3,
        Self::Phi3,
        Self::GptNeoX,
        Self::Bloom,
    ];

    fn name(self) -> &'static str {
        match self {
            Self::Llama => "llama",
            Self::Qwen2 => "qwen2",
            Self::Qwen3 => "qwen3",
            Self::Gemma2 => "gemma2",
            Self::Gemma3 => "gemma3",
            Self::Phi3 => "phi3",
            Self::GptNeoX => "gptneox",
            Self::Bloom => "bloom",
        }
    }

    pub(crate) fn of(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|known| known.name() == name)
    }

    /// The names of all that are supported.
    pub(crate) fn names() -> String {
        Self::ALL.map(Self::name).join(", ")
    }

    /// A key of the architecture's own metadata.
    pub(crate) fn key(self, key: &str) -> String {
        format!("{}.{key}", self.name())
    }

    fn frame(self) -> &'static Names {
        match self {
            Self::GptNeoX => NEOX_FRAME,
            Self::Bloom => BLOOM_FRAME,
            _ => LLAMA_FRAME,
        }
    }

    /// What stands before the number of a layer, and the names behind it.
    fn layer(self) -> (&'static str, [&'static Names; 2]) {
        match self {
            Self::Llama | Self::Qwen2 | Self::Qwen3 => ("model.layers.", [ATTENTION, LLAMA_NORMS]),
            Self::Gemma2 | Self::Gemma3 => ("model.layers.", [ATTENTION, GEMMA_NORMS]),
            Self::Phi3 => ("model.layers.", [PHI3, LLAMA_NORMS]),
            Self::GptNeoX => ("gpt_neox.layers.", [NEOX, &[]]),
            Self::Bloom => ("transformer.h.", [BLOOM, &[]]),
        }
    }

    /// llama.cpp's name for what Hugging Face calls `name`, and what was done to it.
    pub(crate) fn find(self, name: &str) -> Option<(String, Layout)> {
        let (stem, ending) = name.rsplit_once('.')?;
        if !matches!(ending, "weight" | "bias") {
            return None;
        }
        let lookup = |names: &Names, wanted: &str| -> Option<&'static str> {
            let found = names.iter().find(|(theirs, _)| *theirs == wanted);
            found.map(|(_, own)| *own)
        };
        let (before, tables) = self.layer();
        let in_layer = stem
            .strip_prefix(before)
            .and_then(|rest| rest.split_once('.'));
        let (own, full) = match in_layer {
            Some((index, rest)) => {
                let index: u32 = index.parse().ok()?;
                let own = tables.iter().find_map(|names| lookup(names, rest))?;
                (own, format!("blk.{index}.{own}.{ending}"))
            }
            None => {
                let own = lookup(self.frame(), stem)?;
                (own, format!("{own}.{ending}"))
            }
        };
        let layout = match (self, own) {
            (Self::Llama, "attn_q") => Layout::PairedQueries,
            (Self::Llama, "attn_k") => Layout::PairedKeys,
            (Self::Gemma2 | Self::Gemma3, own) if own.ends_with("norm") => Layout::OnePlus,
            (Self::GptNeoX | Self::Bloom, "attn_qkv") => Layout::QkvApart,
            _ => Layout::Same,
        };
        Some((full, layout))
    }
}

/// Where the rows of a tensor stand in the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Order {
    /// As in Hugging Face's.
    Same,
    /// Of each head of `width` rows, rows of its first and of its second half by turns.
    Paired { width: usize },
    /// `[3, heads, width]`, where Hugging Face has `[heads, 3, width]`.
    Apart { heads: usize, width: usize },
}

impl Order {
    /// The row of the file that is Hugging Face's row `row`.
    pub(crate) fn place(self, row: usize) -> usize {
        match self {
            Order::Same => row,
            Order::Paired { width } => {
                let (head, row) = (row / width, row % width);
                let half = width / 2;
                head * width + row % half * 2 + row / half
            }
            Order::Apart { heads, width } => {
                let (head, row) = (row / (3 * width), row % (3 * width));
                (row / width * heads + head) * width + row % width
            }
        }
    }
}

impl Layout {
    /// What undoes what the converter did to each value.
    pub(crate) fn add(self) -> f32 {
        match self {
            Self::OnePlus => -1.0,
            _ => 0.0,
        }
    }

    /// What the converter did to the order of `rows` rows.
    pub(crate) fn order(self, gguf: &Gguf, rows: usize) -> Result<Order, String> {
        let heads = |key: &str| -> Result<usize, String> {
            gguf.usize(key).map_err(|error| error.to_string())
        };
        let width = |parts: usize| match parts > 0 && rows > 0 && rows.is_multiple_of(parts) {
            true => Ok(rows / parts),
            false => Err(format!("its {rows} rows do not divide into the heads")),
        };
        match self {
            Self::Same | Self::OnePlus => Ok(Order::Same),
            Self::PairedQueries | Self::PairedKeys => {
                let heads = match gguf.usize_if("attention.head_count_kv") {
                    Ok(Some(heads)) if self == Self::PairedKeys => heads,
                    _ => heads("attention.head_count")?,
                };
                let width = width(2 * heads)? * 2;
                Ok(Order::Paired { width })
            }
            Self::QkvApart => {
                let heads = heads("attention.head_count")?;
                let width = width(3 * heads)?;
                Ok(Order::Apart { heads, width })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_found_both_in_and_outside_layers() {
        let find = |architecture: Architecture, name: &str| architecture.find(name);
        let same = |name: &str| Some((name.to_owned(), Layout::Same));
        assert_eq!(
            find(Architecture::Llama, "model.layers.12.self_attn.q_proj.bias"),
            Some(("blk.12.attn_q.bias".to_owned(), Layout::PairedQueries))
        );
        assert_eq!(
            find(
                Architecture::Qwen2,
                "model.layers.0.self_attn.q_proj.weight"
            ),
            same("blk.0.attn_q.weight")
        );
        assert_eq!(
            find(
                Architecture::Gemma3,
                "model.layers.3.self_attn.k_norm.weight"
            ),
            Some(("blk.3.attn_k_norm.weight".to_owned(), Layout::OnePlus))
        );
        assert_eq!(
            find(Architecture::Gemma3, "model.norm.weight"),
            Some(("output_norm.weight".to_owned(), Layout::OnePlus))
        );
        assert_eq!(
            find(Architecture::Phi3, "model.layers.1.mlp.gate_up_proj.weight"),
            same("blk.1.ffn_up.weight")
        );
        assert_eq!(
            find(Architecture::Bloom, "lm_head.weight"),
            same("output.weight")
        );
        for unknown in [
            "model.layers.x.mlp.up_proj.weight",
            "model.layers.1",
            "lm_head",
            "model.layers.1.mlp.up_proj.scale",
            "transformer.ln_f.weight",
        ] {
            assert_eq!(find(Architecture::Llama, unknown), None, "{unknown}");
        }
    }

    #[test]
    fn rows_are_put_back() {
        let places = |order: Order, rows: usize| -> Vec<usize> {
            (0..rows).map(|row| order.place(row)).collect()
        };
        // Two heads of four rows; the converter wrote 0 2 1 3 for 0 1 2 3.
        assert_eq!(
            places(Order::Paired { width: 4 }, 8),
            [0, 2, 1, 3, 4, 6, 5, 7]
        );
        assert_eq!(places(Order::Paired { width: 6 }, 6), [0, 2, 4, 1, 3, 5]);
        // Two heads of two rows: their queries, keys and values.
        assert_eq!(
            places(Order::Apart { heads: 2, width: 2 }, 12),
            [0, 1, 4, 5, 8, 9, 2, 3, 6, 7, 10, 11]
        );
    }
}
