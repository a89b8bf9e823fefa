//! How byte-level BPE splits a text before it merges, by `tokenizer.ggml.pre`: what llama.cpp does under the same name.

use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::tokenizer::{Result, SplitDelimiterBehavior};

/// A way to split, and what goes with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Pre {
    /// Applied in turn, each to the pieces of the one before.
    patterns: &'static [&'static str],
    /// Whether a piece that is a token is one, whatever the merges say.
    pub(super) ignore_merges: bool,
    /// Whether a beginning of sequence is put in front where the file does not say.
    pub(super) add_bos: bool,
}

const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN2: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const SEED: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}\r\n]+|\s*[\r\n]+|\s+(?!\S)|\s+";
const TEKKEN: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const GPT4O: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const BLOOM: &str = r" ?[^(\s|.,!?…。，、।۔،)]+";
const DEEPSEEK_V3: &str = r##"[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"##;

const fn plain(patterns: &'static [&'static str]) -> Pre {
    Pre {
        patterns,
        ignore_merges: false,
        add_bos: false,
    }
}

/// Names that mean the same, and what they mean.
const KNOWN: [(&[&str], Pre); 15] = [
    (
        &["default", ""],
        plain(&[r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"\p{N}+", r"[0-9][0-9][0-9]"]),
    ),
    (
        &[
            "gpt-2",
            "phi-2",
            "mpt",
            "olmo",
            "jais",
            "trillion",
            "granite-docling",
            "gigachat",
            "a.x-4.0",
            "mellum",
            "exaone4",
        ],
        plain(&[GPT2]),
    ),
    (
        &[
            "smollm",
            "starcoder",
            "refact",
            "command-r",
            "codeshell",
            "exaone",
            "minerva-7b",
            "mellum2",
        ],
        plain(&[r"\p{N}", GPT2]),
    ),
    (
        &[
            "llama-bpe",
            "llama3",
            "llama-v3",
            "falcon3",
            "falcon-h1",
            "pixtral",
            "midm-2.0",
            "lfm2",
        ],
        Pre {
            patterns: &[LLAMA3],
            ignore_merges: true,
            add_bos: true,
        },
    ),
    (
        &["dbrx", "smaug-bpe", "glm4", "chatglm-bpe"],
        plain(&[LLAMA3]),
    ),
    (
        &[
            "qwen2",
            "deepseek-r1-qwen",
            "megrez",
            "stablelm2",
            "hunyuan",
            "kormo",
            "solar-open",
            "grok-2",
        ],
        plain(&[QWEN2]),
    ),
    (&["bloom", "poro-chat", "gpt3-finnish"], plain(&[BLOOM])),
    (&["viking"], plain(&[BLOOM, r"\p{N}"])),
    (
        &["tekken"],
        Pre {
            patterns: &[TEKKEN],
            ignore_merges: true,
            add_bos: true,
        },
    ),
    (&["gpt-4o", "llama4", "kanana2"], plain(&[GPT4O])),
    (&["seed-coder"], plain(&[SEED])),
    (
        &["falcon"],
        plain(&[r"[\p{P}\$\+<=>\^~\|`]+", GPT2, r"[0-9][0-9][0-9]"]),
    ),
    (
        &["deepseek-coder"],
        plain(&[
            r"[\r\n]",
            r"\s?\p{L}+",
            r"\s?\p{P}+",
            r"[一-龥ࠀ-一가-퟿]+",
            r"\p{N}",
        ]),
    ),
    (
        &["deepseek-v3", "hunyuan-dense"],
        plain(&[r"\p{N}{1,3}", r"[一-龥぀-ゟ゠-ヿ]+", DEEPSEEK_V3]),
    ),
    (&["superbpe"], plain(&[r"\p{N}+", r"(?=(\d{3})+(?!\d))"])),
];

impl Pre {
    /// What goes under a name.
    pub(super) fn of(name: &str) -> Option<Self> {
        let known = KNOWN.iter().find(|(names, _)| names.contains(&name));
        known.map(|(_, pre)| *pre)
    }

    /// All names there are.
    pub(super) fn names() -> String {
        let names = KNOWN.iter().flat_map(|(names, _)| names.iter());
        let names: Vec<&str> = names.copied().filter(|name| !name.is_empty()).collect();
        names.join(", ")
    }

    /// The splits, then bytes as the characters that byte-level BPE writes them with.
    pub(super) fn build(self) -> Result<PreTokenizerWrapper> {
        let mut parts = Vec::new();
        for pattern in self.patterns {
            let pattern = SplitPattern::Regex((*pattern).to_owned());
            let split = Split::new(pattern, SplitDelimiterBehavior::Isolated, false)?;
            parts.push(PreTokenizerWrapper::Split(split));
        }
        parts.push(PreTokenizerWrapper::ByteLevel(ByteLevel::new(
            false, false, false,
        )));
        Ok(PreTokenizerWrapper::Sequence(Sequence::new(parts)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokenizers::{OffsetReferential, OffsetType, PreTokenizedString, PreTokenizer};

    fn pieces(name: &str, text: &str) -> Vec<String> {
        let mut split = PreTokenizedString::from(text);
        let pre = Pre::of(name).unwrap().build().unwrap();
        pre.pre_tokenize(&mut split).unwrap();
        let splits = split.get_splits(OffsetReferential::Original, OffsetType::Byte);
        let of = |range: (usize, usize)| text[range.0..range.1].to_owned();
        splits.into_iter().map(|(_, range, _)| of(range)).collect()
    }

    #[test]
    fn digits_part_as_the_name_says() {
        assert_eq!(pieces("gpt-2", "in 2024!"), ["in", " 2024", "!"]);
        assert_eq!(
            pieces("smollm", "in 2024!"),
            ["in", " ", "2", "0", "2", "4", "!"]
        );
        assert_eq!(
            pieces("llama-bpe", "in 2024!"),
            ["in", " ", "202", "4", "!"]
        );
        assert_eq!(
            pieces("qwen2", "in 2024!"),
            ["in", " ", "2", "0", "2", "4", "!"]
        );
        assert_eq!(pieces("default", "a1234"), ["a", "123", "4"]);
    }

    #[test]
    fn every_pattern_can_be_built() {
        for (names, pre) in KNOWN {
            assert!(pre.build().is_ok(), "{names:?}");
        }
        assert_eq!(Pre::of("no-such"), None);
    }
}
