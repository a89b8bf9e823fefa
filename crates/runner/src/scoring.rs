//! What `loglikelihood` and `perplexity` share: a model that scores given text under a strategy.

use crate::calibrate::{lacks_text, on_prompts};
use crate::experiment::{MAX_BATCH_SIZE, ScoringMode};
use crate::load::ComputeArgs;
use crate::{layer_files, models};
use anyhow::{Context, bail};
use clap::Args;
use skipbench_engine::{Engine, EngineError, Likelihood, Options, ScoreOptions, ScoredText};
use skipbench_model::{CausalLm, Decoder, ModelError, TextTokenizer, Tokenize};
use skipbench_strategy::{Strategy, StrategySpec};
use std::path::PathBuf;

/// What every command that scores text takes.
#[derive(Debug, Clone, Args)]
pub(crate) struct ScoringArgs {
    /// Checkpoint folder, `.gguf` file or hub:owner/name[@revision]
    #[arg(long)]
    model: PathBuf,
    /// Strategy, such as `unified@2` or `early-exit: {signal: entropy, threshold: 0.9}`
    #[arg(long, default_value = "full", value_parser = layer_files::parse)]
    pub(crate) strategy: StrategySpec,
    /// Which layers a scored token has behind it
    #[arg(long, value_enum, default_value = "as-decoded")]
    pub(crate) mode: ScoringMode,
    /// Texts scored together
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=MAX_BATCH_SIZE as i64))]
    batch_size: u32,
    #[command(flatten)]
    compute: ComputeArgs,
}

/// A model with its tokenizer.
pub(crate) struct Scorer<'a> {
    args: &'a ScoringArgs,
    /// Where the model lies on this machine.
    pub(crate) path: PathBuf,
    model: Decoder,
    pub(crate) tokenizer: TextTokenizer,
}

/// Tokens that a strategy is calibrated to generate where the text does not say.
const CALIBRATION_TOKENS: usize = 16;

impl<'a> Scorer<'a> {
    /// Loads a model, and refuses a strategy that does not suit its depth.
    ///
    /// # Errors
    /// A checkpoint or a strategy that cannot be used.
    pub(crate) fn load(args: &'a ScoringArgs) -> anyhow::Result<Self> {
        let path = models::fetch(&args.model)?;
        let model = args.compute.load(&path)?;
        let tokenizer = TextTokenizer::load(&path, model.sizes().vocab_size)?;
        args.strategy
            .validate(model.sizes().n_layers)
            .with_context(|| format!("strategy `{}`", args.strategy))?;
        Ok(Self {
            args,
            path,
            model,
            tokenizer,
        })
    }

    /// Largest number of positions, where there is one.
    pub(crate) fn max_positions(&self) -> Option<usize> {
        self.model.sizes().max_positions
    }

    /// What stands in front of a text where nothing else does: the beginning of sequence, or the end of sequence of a
    /// tokenizer that has no beginning.
    pub(crate) fn beginning(&self) -> anyhow::Result<u32> {
        let added = self.tokenizer.encode("")?;
        if let Some(&id) = added.first() {
            return Ok(id);
        }
        let special = self.tokenizer.special_tokens();
        for text in [&special.bos, &special.eos].into_iter().flatten() {
            if let [id] = self.tokenizer.encode_with(text, false)?[..] {
                return Ok(id);
            }
        }
        let end = self.tokenizer.eos_ids().first().copied();
        end.with_context(|| {
            format!(
                "{} names neither a beginning nor an end of sequence to stand in front of a text; give a context",
                self.path.display()
            )
        })
    }

    /// The strategy, ready to run, with what it lacks found on the contexts of the first texts.
    ///
    /// # Errors
    /// A strategy that cannot be calibrated or built.
    pub(crate) fn strategy(&self, texts: &[ScoredText]) -> anyhow::Result<Box<dyn Strategy>> {
        let spec = &self.args.strategy;
        let n_layers = self.model.sizes().n_layers;
        let built = || -> anyhow::Result<Box<dyn Strategy>> {
            if !lacks_text(spec, n_layers) {
                return Ok(spec.build(n_layers)?);
            }
            tracing::warn!("`{spec}` is calibrated on the first texts themselves");
            let longest = texts.iter().map(|text| text.continuation.len()).max();
            let options = Options {
                max_new_tokens: longest.unwrap_or(1).clamp(CALIBRATION_TOKENS, 64),
                eos_ids: self.tokenizer.eos_ids().to_vec(),
                ..Options::default()
            };
            let engine = Engine::new(&self.model);
            let contexts: Vec<Vec<u32>> = texts
                .iter()
                .map(|text| text.context.clone())
                .filter(|context| {
                    engine
                        .check(std::slice::from_ref(context), &options)
                        .is_ok()
                })
                .collect();
            let rows = self.args.batch_size as usize;
            let found = on_prompts(engine, spec, &contexts, options, rows)?;
            if let Some(note) = &found.note {
                tracing::warn!("{spec}: {note}");
            }
            Ok(found.spec.build(n_layers)?)
        };
        built().with_context(|| format!("strategy `{spec}`"))
    }

    /// Scores texts in batches; `each` hears of every batch as it is done.
    ///
    /// # Errors
    /// What [`Engine::score`] refuses, and what `each` does.
    pub(crate) fn score(
        &self,
        texts: &[ScoredText],
        strategy: &mut dyn Strategy,
        mut each: impl FnMut(Vec<Likelihood>) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        let how = ScoreOptions {
            mode: self.args.mode.into(),
            ..ScoreOptions::default()
        };
        for batch in texts.chunks(self.args.batch_size as usize) {
            let scored = Engine::new(&self.model).score(batch, strategy, how);
            each(scored.with_context(|| format!("strategy `{}`", self.args.strategy))?)?;
        }
        Ok(())
    }

    /// Refuses texts that cannot be scored before the first one is.
    ///
    /// # Errors
    /// A text that does not fit.
    pub(crate) fn check(&self, text: &ScoredText) -> anyhow::Result<()> {
        let mode = self.args.mode.into();
        let checked = Engine::new(&self.model).check_scored(std::slice::from_ref(text), mode);
        // The engine speaks of rows and new tokens, which a user of these commands has not named.
        match checked {
            Ok(_) => Ok(()),
            Err(EngineError::NothingToScore { .. }) => {
                bail!("the continuation has no token, so there is nothing to score")
            }
            Err(EngineError::Model(ModelError::TooLong { needed, limit, .. })) => bail!(
                "context and continuation take {needed} positions, but the model has {limit}; shorten the context"
            ),
            Err(EngineError::Model(ModelError::Switch { limit, .. })) => bail!(
                "context and continuation grow past {limit} tokens, where LongRoPE takes other frequencies for all positions; shorten the context, or use `--mode one-pass`"
            ),
            Err(error) => Err(error.into()),
        }
    }
}
