//! `block-influence`: the layers that change the hidden state least are cut out (ShortGPT, Men et al. 2024, arXiv 2403.03853).

use crate::Scoring;
use crate::preset::Preset;
use crate::pruned::{Criterion, Pruned};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Block influence of a layer is 1 minus the mean cosine of its input and output over the tokens of calibration text; the
/// layers of least influence go, all at once (ShortGPT, equation 1).
///
/// The preset `llama-2-7b` is the order that the authors publish for Llama-2-7B: nine of its 32 layers.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(transparent)]
pub(crate) struct BlockInfluence(Pruned);

impl Criterion for BlockInfluence {
    const NAME: &'static str = "block-influence";
    const ABOUT: &'static str =
        "the layers that change the hidden state least are cut out (ShortGPT, arXiv 2403.03853)";
    const PRESETS: &'static [Preset<&'static [usize]>] = &[Preset {
        name: "llama-2-7b",
        n_layers: 32,
        layers: &[27, 26, 25, 28, 24, 29, 23, 21, 22],
    }];

    fn pruned(&self) -> &Pruned {
        &self.0
    }

    fn pruned_mut(&mut self) -> &mut Pruned {
        &mut self.0
    }

    fn scoring(_drop: usize) -> Scoring {
        Scoring::BlockInfluence
    }
}

#[cfg(test)]
mod tests {
    use crate::StrategySpec;

    #[test]
    fn the_published_order_of_llama_2_7b() {
        let spec: StrategySpec = "block-influence:llama-2-7b@1.39".parse().unwrap();
        let kept = spec.explain(32, 8).unwrap().layers;
        let dropped: Vec<usize> = (0..32).filter(|layer| !kept.contains(layer)).collect();
        assert_eq!(dropped, [21, 22, 23, 24, 25, 26, 27, 28, 29]);
        let error = |text: &str, n_layers| {
            let spec: StrategySpec = text.parse().unwrap();
            spec.validate(n_layers).unwrap_err().to_string()
        };
        assert!(
            error("block-influence:llama-2-7b@2", 32)
                .contains("largest possible speedup with it is 1.39")
        );
        assert!(
            error("block-influence:llama-2-7b@1.2", 16)
                .contains("is for a model of 32 layers, not 16")
        );
    }

    #[test]
    fn an_order_must_be_measured_or_given() {
        let spec: StrategySpec = "block-influence@2".parse().unwrap();
        assert!(spec.validate(6).is_ok());
        assert!(spec.build(6).err().unwrap().to_string().contains("scores"));
        let ordered = spec.with_order(vec![4, 1, 2]);
        assert_eq!(ordered.build(6).unwrap().reachable().to_vec(), [0, 3, 5]);
        let wrong = |order: Vec<usize>| spec.with_order(order).validate(6).unwrap_err().to_string();
        assert!(wrong(vec![1, 6, 2]).contains("there is no layer 6"));
        assert!(wrong(vec![1, 1, 2]).contains("layer 1 is there twice"));
        assert!(wrong(vec![1]).contains("it names 1 layers, and 3 must go"));
    }
}
