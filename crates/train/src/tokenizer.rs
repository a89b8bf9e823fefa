//! A byte-level BPE tokenizer trained on the task's own text.

use crate::error::{Result, TrainError};
use tokenizers::models::bpe::{BPE, BpeTrainerBuilder};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::processors::template::TemplateProcessing;
use tokenizers::{AddedToken, DecoderWrapper, ModelWrapper, NormalizerWrapper, Tokenizer};
use tokenizers::{PostProcessorWrapper, PreTokenizerWrapper, TokenizerBuilder};

/// Padding, id 0; never fed to a model.
pub const PAD: &str = "<pad>";
/// Beginning of sequence, id 1; in front of every prompt.
pub const BOS: &str = "<bos>";
/// End of sequence, id 2.
pub const EOS: &str = "<eos>";

/// Trains a tokenizer with at most `vocab_size` entries; a frequent word with the space before it becomes one token.
///
/// # Errors
/// A vocabulary too small for the bytes and special tokens.
pub fn train_tokenizer(
    texts: impl Iterator<Item = String> + Send,
    vocab_size: usize,
) -> Result<Tokenizer> {
    const SMALLEST: usize = 256 + 3;
    if vocab_size < SMALLEST {
        return Err(TrainError::Config(format!(
            "`vocab-size` {vocab_size} is below {SMALLEST}: 256 bytes and 3 special tokens"
        )));
    }
    let fail = |error: &dyn std::fmt::Display| TrainError::Tokenizer(error.to_string());
    let special = [PAD, BOS, EOS].map(|token| AddedToken::from(token, true));
    let mut trainer = BpeTrainerBuilder::new()
        .show_progress(false)
        .vocab_size(vocab_size)
        .min_frequency(2)
        .special_tokens(special.to_vec())
        .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
        .build();
    let bytes = ByteLevel::new(false, true, true);
    let mut tokenizer =
        TokenizerBuilder::<BPE, NormalizerWrapper, ByteLevel, ByteLevel, ByteLevel>::new()
            .with_model(BPE::default())
            .with_pre_tokenizer(Some(bytes))
            .with_post_processor(Some(bytes))
            .with_decoder(Some(bytes))
            .build()
            .map_err(|error| fail(&error))?;
    tokenizer
        .train(&mut trainer, texts)
        .map_err(|error| fail(&error))?;
    let bos = tokenizer.token_to_id(BOS).unwrap_or(1);
    let template = TemplateProcessing::builder()
        .try_single(format!("{BOS} $A"))
        .map_err(|error| fail(&error))?
        .special_tokens(vec![(BOS, bos)])
        .build()
        .map_err(|error| fail(&error))?;
    let mut whole = Tokenizer::new(ModelWrapper::BPE(tokenizer.get_model().clone()));
    whole.with_pre_tokenizer(Some(PreTokenizerWrapper::ByteLevel(bytes)));
    whole.with_decoder(Some(DecoderWrapper::ByteLevel(bytes)));
    whole.with_post_processor(Some(PostProcessorWrapper::Template(template)));
    whole
        .add_special_tokens(special)
        .map_err(|error| fail(&error))?;
    Ok(whole)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts() -> impl Iterator<Item = String> + Send {
        (0..50)
            .map(|i| format!("translate: The cat sees the dog {i}. => Die Katze sieht den Hund."))
    }

    #[test]
    fn frequent_words_are_one_token_and_bytes_round_trip() {
        let tokenizer = train_tokenizer(texts(), 400).unwrap();
        let encoding = tokenizer.encode("The cat sees the dog.", true).unwrap();
        assert_eq!(
            encoding.get_tokens(),
            ["<bos>", "The", "Ġcat", "Ġsees", "Ġthe", "Ġdog", "."]
        );
        let odd = "zwölf 猫 \u{1f408}";
        let ids = tokenizer.encode(odd, false).unwrap();
        assert_eq!(tokenizer.decode(ids.get_ids(), true).unwrap(), odd);
        assert_eq!(tokenizer.token_to_id(EOS), Some(2));
    }

    #[test]
    fn training_is_deterministic() {
        let json = || {
            train_tokenizer(texts(), 400)
                .unwrap()
                .to_string(false)
                .unwrap()
        };
        assert_eq!(json(), json());
    }
}
