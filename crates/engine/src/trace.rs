//! What became of each token.

use skipbench_strategy::LayerSet;

/// How one generated token came to be.
#[derive(Debug, Clone, PartialEq)]
pub struct TokenTrace {
    /// The layers that ran for it, those of a draft and of the verification together.
    pub layers: LayerSet,
    /// The layer after which it left, where it left before the last.
    pub exit_layer: Option<usize>,
    /// The value of the last check, where there was one.
    pub confidence: Option<f64>,
    /// Whether it was drafted, where drafts are made: the other tokens come from a verification alone.
    pub drafted: Option<bool>,
    /// How each layer's key and value came to be at the position whose state gave the token, a letter a layer as in
    /// [`Provenance::letter`](skipbench_model::Provenance::letter); `.` where nothing is held.
    pub kv: String,
}

impl TokenTrace {
    pub(crate) fn new(layers: LayerSet) -> Self {
        Self {
            layers,
            exit_layer: None,
            confidence: None,
            drafted: None,
            kv: String::new(),
        }
    }
}
