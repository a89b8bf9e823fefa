//! The axes along which strategies differ: signals, filling of the KV cache, prefill, batches.

use crate::names::named;

named! {
    /// How sure the model is of a token after some of its layers: what a dynamic strategy decides on.
    pub enum ExitSignal {
        /// Probability of the most likely token minus that of the second, in 0..1
        /// (`softmax_diff` of CALM, arXiv 2207.07061). Reads the LM head.
        #[default]
        SoftmaxMargin = "softmax-margin",
        /// Probability of the most likely token, in 0..1 (CALM, arXiv 2207.07061). Reads the LM head.
        MaxProb = "max-prob",
        /// Entropy of the next-token distribution over its largest value, ln(vocabulary), in 0..1;
        /// low is confident (DeeBERT, arXiv 2004.12993). Reads the LM head.
        Entropy = "entropy",
        /// Cosine of a layer's output to its input, in -1..1 (`state` of CALM, arXiv 2207.07061).
        /// Reads no LM head, so a check costs almost nothing.
        Cosine = "cosine",
        /// Id of the most likely token. A row exits when it has stayed the same from check to check often enough
        /// (PABEE, arXiv 2006.04152). Reads the LM head.
        Patience = "patience",
    }
}

impl ExitSignal {
    /// Whether a check reads the LM head: as many weights as several layers in a small model.
    pub const fn needs_head(self) -> bool {
        match self {
            Self::SoftmaxMargin | Self::MaxProb | Self::Entropy | Self::Patience => true,
            Self::Cosine => false,
        }
    }
}

named! {
    /// What of the LM head a check reads, for a signal that reads it.
    pub enum ExitCheck {
        /// All of it, as published: the signal is that of the whole vocabulary.
        #[default]
        Full = "full",
        /// The 64 tokens that were likeliest at the first check of the step, found by a copy of the LM head in one byte a
        /// weight; their logits are exact. The signal is that of the list. The token itself is always read off the whole head.
        /// After SpecEE (arXiv 2504.08850), which has a draft model and trained predictors where this has the first check.
        Candidates = "candidates",
    }
}

impl ExitCheck {
    /// Tokens of a list. On SmolLM2-135M-Instruct such a list, drawn after 2 layers, holds the likeliest token of a later check in 96 of 100.
    pub const CANDIDATES: usize = 64;
}

named! {
    /// What is done about the keys and values of a (layer, position) that was skipped and that a
    /// later position may read: a hole.
    pub enum KvFill {
        /// Nothing: a hole is never read, because a later step runs no layer that an earlier one skipped.
        #[default]
        None = "none",
        /// Each skipped layer projects its keys and values from the hidden state that passes it by
        /// (state propagation of CALM, arXiv 2207.07061). Approximate.
        Propagate = "propagate",
        /// The keys and values of the nearest lower layer that ran, as the released code of arXiv 2404.06954 leaves in the
        /// cache of a skipped layer. Approximate, and free of arithmetic.
        Copy = "copy",
        /// Later positions do not see the hole (as in D-LLM, where a skipped token is evicted from the layer's cache).
        /// Approximate.
        Mask = "mask",
        /// The skipped layers run on the position as soon as a later position needs them, together with it
        /// (synchronised parallel decoding of FREE, arXiv 2310.05424). Exact.
        Deferred = "deferred",
    }
}

impl KvFill {
    /// The ways of an exit: what a strategy whose tokens leave before the last layer can do.
    pub(crate) const OF_EXITS: [Self; 4] =
        [Self::Propagate, Self::Copy, Self::Mask, Self::Deferred];

    /// What a later token finds, in a few words.
    pub const fn about(self) -> &'static str {
        match self {
            Self::None => "never read",
            Self::Propagate => "projected from the state that passed them by",
            Self::Copy => "those of the nearest lower layer that ran",
            Self::Mask => "hidden from later tokens",
            Self::Deferred => "computed once a later token needs them, exact",
        }
    }
}

named! {
    /// Which layers the prompt runs through.
    pub enum Prefill {
        /// All of them: the first token is the full network's.
        #[default]
        Full = "full",
        /// The kept ones alone, as in a network whose other layers are cut out (structured pruning).
        Skip = "skip",
    }
}

named! {
    /// What becomes of a row of a batch that is done with a step before others are.
    pub enum BatchMode {
        /// It leaves the computation at that layer.
        #[default]
        Compact = "compact",
        /// It goes through the layers of the deepest row, for nothing: what a batch costs where rows cannot leave. The tokens
        /// are the same. (Under `deferred` it is not quite for nothing: those layers need not be made up for later.)
        Sync = "sync",
    }
}

/// What a strategy wants to know of a prompt, computed during the prefill.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PromptSignal {
    /// One value: how sure the full network is of the first token, by a signal that reads the LM head.
    Confidence(ExitSignal),
    /// The cosine of the output of each sub-layer to its input, mean over the prompt's tokens:
    /// attention of layer 0, MLP of layer 0, attention of layer 1, and so on (AdaSkip, arXiv 2501.02336).
    Similarity,
}

named! {
    /// When an oracle says that a token was decided.
    pub enum Agreement {
        /// At the first check whose vote is the full network's.
        #[default]
        First = "first",
        /// At the first check from which on every vote is the full network's.
        Stable = "stable",
    }
}
