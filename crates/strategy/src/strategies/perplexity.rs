//! `perplexity`: the layers that are missed least, each alone, are cut out (Shortened LLaMA, Kim et al. 2024, arXiv 2402.02834).

use crate::Scoring;
use crate::preset::Preset;
use crate::pruned::{Criterion, Pruned};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Each layer is left out alone, and the layers without which the perplexity of calibration text is least go, all at once
/// (Shortened LLaMA, section 3.2).
///
/// The preset `llama-2-7b` is the beginning of the order that the authors ship for Llama-2-7B.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(transparent)]
pub(crate) struct Perplexity(Pruned);

impl Criterion for Perplexity {
    const NAME: &'static str = "perplexity";
    const ABOUT: &'static str = "the layers that are missed least, each alone, are cut out (Shortened LLaMA, arXiv 2402.02834)";
    const PRESETS: &'static [Preset<&'static [usize]>] = &[Preset {
        name: "llama-2-7b",
        n_layers: 32,
        layers: &[11, 8, 24, 21, 12, 7, 9, 10, 18, 27],
    }];

    fn pruned(&self) -> &Pruned {
        &self.0
    }

    fn pruned_mut(&mut self) -> &mut Pruned {
        &mut self.0
    }

    fn scoring(_drop: usize) -> Scoring {
        Scoring::Perplexity
    }
}

#[cfg(test)]
mod tests {
    use crate::StrategySpec;

    #[test]
    fn the_shipped_order_of_llama_2_7b() {
        let spec: StrategySpec = "perplexity:llama-2-7b@1.18".parse().unwrap();
        let kept = spec.explain(32, 8).unwrap().layers;
        let dropped: Vec<usize> = (0..32).filter(|layer| !kept.contains(layer)).collect();
        assert_eq!(dropped, [8, 11, 12, 21, 24]);
    }
}
