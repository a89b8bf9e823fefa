//! What has to be measured on calibration text before a strategy knows its layers.

use serde::Serialize;

/// A score of layers. The harness computes it on calibration text and gives the strategy the layers in the order in which
/// they are dropped, the least important first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Scoring {
    /// 1 minus the mean cosine of a layer's input and output, lowest first (ShortGPT, arXiv 2403.03853).
    BlockInfluence,
    /// The angle between the input of a layer and that of the layer `block` above it at the last token of a text; the
    /// block of least mean angle goes (arXiv 2403.17887).
    AngularDistance {
        /// Layers of the block.
        block: usize,
    },
    /// Negative log-likelihood without a layer, the others evaluated anew each time one has gone; the first and the last
    /// layer stay (SLEB, arXiv 2402.09025).
    Sleb {
        /// Layers to drop.
        drop: usize,
    },
    /// Perplexity without the layer alone, lowest first (Shortened LLaMA, arXiv 2402.02834).
    Perplexity,
    /// Block influence of a layer's attention.
    AttentionInfluence,
    /// Block influence of a layer's MLP.
    MlpInfluence,
}
