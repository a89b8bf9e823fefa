//! SentencePiece's BPE as llama.cpp computes it (arXiv 1808.06226): of all neighbours that make a token together, those
//! of the best score are joined first, the leftmost of equals; what is no token in the end is spelt in bytes.

use std::collections::{BinaryHeap, HashMap};
use std::path::{Path, PathBuf};
use tokenizers::models::bpe::BpeTrainer;
use tokenizers::tokenizer::{Model, Result, Token};
use tokenizers::{
    DecoderWrapper, NormalizerWrapper, PostProcessorWrapper, PreTokenizerWrapper, TokenizerImpl,
};

/// A tokenizer of the library around [`SentencePiece`].
pub(crate) type PieceTokenizer = TokenizerImpl<
    SentencePiece,
    NormalizerWrapper,
    PreTokenizerWrapper,
    PostProcessorWrapper,
    DecoderWrapper,
>;

/// The tokens of a model with their scores.
#[derive(Debug, Clone)]
pub(crate) struct SentencePiece {
    ids: HashMap<String, u32>,
    tokens: Vec<String>,
    scores: Vec<f32>,
    /// The token of each byte.
    bytes: Vec<Option<u32>>,
    unknown: Option<u32>,
}

/// Two neighbours that make a token.
#[derive(Debug, PartialEq)]
struct Pair {
    score: f32,
    left: usize,
    right: usize,
    /// Bytes of both: a pair whose sides have grown since is out of date.
    len: usize,
}

impl Eq for Pair {}

impl Ord for Pair {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        let by_score = self.score.total_cmp(&other.score);
        by_score.then_with(|| other.left.cmp(&self.left))
    }
}

impl PartialOrd for Pair {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

/// A stretch of the text between two others.
#[derive(Debug, Clone, Copy)]
struct Piece {
    start: usize,
    len: usize,
    before: Option<usize>,
    after: Option<usize>,
}

impl SentencePiece {
    /// `scores` has a score for each of `tokens`; `unknown` stands for a byte that has no token.
    pub(super) fn new(tokens: Vec<String>, scores: Vec<f32>, unknown: Option<u32>) -> Self {
        let mut ids = HashMap::with_capacity(tokens.len());
        for (id, token) in tokens.iter().enumerate() {
            // The first of equal tokens is the one that a text is written with.
            ids.entry(token.clone()).or_insert(id as u32);
        }
        let byte = |byte: u8| {
            let spelt = ids.get(&format!("<0x{byte:02X}>"));
            let plain = || ids.get(std::str::from_utf8(&[byte]).ok()?);
            spelt.or_else(plain).copied()
        };
        Self {
            bytes: (0..=255).map(byte).collect(),
            ids,
            tokens,
            scores,
            unknown,
        }
    }

    fn pair(&self, text: &str, pieces: &[Piece], left: usize, right: usize) -> Option<Pair> {
        let (start, len) = (pieces[left].start, pieces[left].len + pieces[right].len);
        let id = *self.ids.get(&text[start..start + len])?;
        Some(Pair {
            score: self.scores.get(id as usize).copied().unwrap_or(0.0),
            left,
            right,
            len,
        })
    }

    /// The text in pieces that cannot be joined any further.
    fn join(&self, text: &str) -> Vec<Piece> {
        let mut pieces: Vec<Piece> = text
            .char_indices()
            .enumerate()
            .map(|(index, (start, char))| Piece {
                start,
                len: char.len_utf8(),
                before: index.checked_sub(1),
                after: Some(index + 1),
            })
            .collect();
        if let Some(last) = pieces.last_mut() {
            last.after = None;
        }
        let mut queue: BinaryHeap<Pair> = (1..pieces.len())
            .filter_map(|right| self.pair(text, &pieces, right - 1, right))
            .collect();
        while let Some(pair) = queue.pop() {
            let (left, right) = (pieces[pair.left], pieces[pair.right]);
            if left.len == 0 || right.len == 0 || left.len + right.len != pair.len {
                continue;
            }
            pieces[pair.left].len = pair.len;
            pieces[pair.left].after = right.after;
            pieces[pair.right].len = 0;
            if let Some(after) = right.after {
                pieces[after].before = Some(pair.left);
                queue.extend(self.pair(text, &pieces, pair.left, after));
            }
            if let Some(before) = left.before {
                queue.extend(self.pair(text, &pieces, before, pair.left));
            }
        }
        pieces.retain(|piece| piece.len > 0);
        pieces
    }

    fn token(&self, id: u32, offsets: (usize, usize)) -> Token {
        let value = self.tokens.get(id as usize).cloned();
        Token::new(id, value.unwrap_or_default(), offsets)
    }
}

impl Model for SentencePiece {
    type Trainer = BpeTrainer;

    fn tokenize(&self, text: &str) -> Result<Vec<Token>> {
        let mut tokens = Vec::new();
        for piece in self.join(text) {
            let offsets = (piece.start, piece.start + piece.len);
            let piece = &text[offsets.0..offsets.1];
            match self.ids.get(piece) {
                Some(&id) => tokens.push(self.token(id, offsets)),
                None => {
                    let ids = piece
                        .bytes()
                        .filter_map(|byte| self.bytes[usize::from(byte)].or(self.unknown));
                    tokens.extend(ids.map(|id| self.token(id, offsets)));
                }
            }
        }
        Ok(tokens)
    }

    fn token_to_id(&self, token: &str) -> Option<u32> {
        self.ids.get(token).copied()
    }

    fn id_to_token(&self, id: u32) -> Option<String> {
        self.tokens.get(id as usize).cloned()
    }

    fn get_vocab(&self) -> HashMap<String, u32> {
        self.ids.clone()
    }

    fn get_vocab_size(&self) -> usize {
        self.tokens.len()
    }

    fn save(&self, _folder: &Path, _prefix: Option<&str>) -> Result<Vec<PathBuf>> {
        Err("a tokenizer of a GGUF file is not written".into())
    }

    fn get_trainer(&self) -> BpeTrainer {
        BpeTrainer::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn model(tokens: &[(&str, f32)]) -> SentencePiece {
        let (tokens, scores): (Vec<_>, Vec<_>) = tokens
            .iter()
            .map(|&(token, score)| (token.to_owned(), score))
            .unzip();
        SentencePiece::new(tokens, scores, Some(0))
    }

    fn tokens(model: &SentencePiece, text: &str) -> Vec<String> {
        let tokens = model.tokenize(text).unwrap();
        tokens.into_iter().map(|token| token.value).collect()
    }

    #[test]
    fn the_best_score_is_joined_first() {
        let model = model(&[
            ("<unk>", 0.0),
            ("a", -9.0),
            ("b", -9.0),
            ("c", -9.0),
            ("ab", -3.0),
            ("bc", -2.0),
            ("abc", -4.0),
        ]);
        assert_eq!(tokens(&model, "abc"), ["abc"]);
        assert_eq!(tokens(&model, "abcb"), ["abc", "b"]);
        assert_eq!(tokens(&model, "aabc"), ["a", "abc"]);
    }

    #[test]
    fn equal_scores_join_from_the_left() {
        let model = model(&[("<unk>", 0.0), ("a", -1.0), ("aa", -1.0)]);
        assert_eq!(tokens(&model, "aaa"), ["aa", "a"]);
    }

    #[test]
    fn what_is_no_token_is_spelt_in_bytes() {
        let model = model(&[("<unk>", 0.0), ("<0xC3>", 0.0), ("<0xA9>", 0.0), ("e", 0.0)]);
        assert_eq!(tokens(&model, "eé!"), ["e", "<0xC3>", "<0xA9>", "<unk>"]);
        assert!(tokens(&model, "").is_empty());
    }
}
