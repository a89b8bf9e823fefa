//! `sublayer-drop`: attention or MLPs alone are cut out (Tyukin et al. 2024, arXiv 2407.15516).

use crate::budget::{Number, fastest};
use crate::names::{Named, named};
use crate::pruned::first_of;
use crate::settings::{Asked, Common, Definition, Settings};
use crate::{LayerSet, Prefill, Scoring, Strategy, StrategyError};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// One kind of sub-layer of some layers goes, and the other kind stays. The target counts sub-layers: floor(2 L / speedup)
/// of the 2 L are kept, so it stays below 2. A layer without attention needs no KV cache either.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct SublayerDrop {
    /// Which kind goes.
    drop: SubLayer,
    /// Which go first.
    rule: Rule,
}

named! {
    /// A kind of sub-layer.
    enum SubLayer {
        /// Attention, and with it the layer's KV cache.
        #[default]
        Attention = "attention",
        /// The MLP.
        Mlp = "mlp",
    }
}

named! {
    /// Which sub-layers go first.
    enum Rule {
        /// The deepest, but never that of the last layer (arXiv 2407.15516).
        #[default]
        Deepest = "deepest",
        /// Those whose output is most like their input on calibration text: block influence (arXiv 2403.03853) of a
        /// sub-layer.
        Similarity = "similarity",
    }
}

impl SublayerDrop {
    /// The layers whose sub-layer goes; `None` if they are still to be found.
    fn dropped(&self, asked: &Asked<'_>) -> Result<Option<Vec<usize>>, StrategyError> {
        let n_layers = asked.n_layers;
        let count = 2 * n_layers - asked.kept_sub_layers()?;
        if count >= n_layers {
            let message = format!(
                "{} would drop {count} sub-layers of one kind, and of the {n_layers} one must stay; the largest possible \
                 speedup is {}",
                Number(asked.target()?),
                fastest(2 * n_layers, n_layers + 1)
            );
            return Err(asked.wrong("speedup", message));
        }
        match (self.rule, asked.order) {
            (Rule::Deepest, None) => Ok(Some((0..n_layers - 1).rev().take(count).collect())),
            (Rule::Deepest, Some(_)) => Err(asked.wrong(
                "order",
                "rule `deepest` has its own; set `rule: similarity` to give one",
            )),
            (Rule::Similarity, None) if count > 0 => Ok(None),
            (Rule::Similarity, order) => {
                let dropped = first_of(asked, order.unwrap_or_default(), count, 2)?;
                Ok(Some(dropped.to_vec()))
            }
        }
    }
}

impl Settings for SublayerDrop {
    fn definition(&self) -> Definition {
        Definition {
            variant_key: Some("drop"),
            order: true,
            // The sub-layers are cut out.
            prefill: Some(Prefill::Skip),
            ..Definition::fixed(
                "sublayer-drop",
                "attention or MLPs alone are cut out (arXiv 2407.15516)",
            )
        }
    }

    fn variants(&self) -> Vec<&'static str> {
        SubLayer::names()
    }

    fn variant(&self) -> Option<&'static str> {
        Some(self.drop.name())
    }

    fn set_variant(&mut self, variant: &'static str, _: &mut Common) {
        self.drop = SubLayer::by_name(variant).unwrap_or_default();
    }

    fn scoring(&self, asked: &Asked<'_>) -> Option<Scoring> {
        let open = matches!(self.dropped(asked), Ok(None));
        open.then_some(match self.drop {
            SubLayer::Attention => Scoring::AttentionInfluence,
            SubLayer::Mlp => Scoring::MlpInfluence,
        })
    }

    fn build(&self, asked: &Asked<'_>) -> Result<Box<dyn Strategy>, StrategyError> {
        let strategy = asked.name;
        let dropped = self.dropped(asked)?;
        let mut layers = LayerSet::full(asked.n_layers);
        for layer in dropped.ok_or(StrategyError::NotScored { strategy })? {
            match self.drop {
                SubLayer::Attention => layers.remove_attention(layer),
                SubLayer::Mlp => layers.remove_mlp(layer),
            }
        }
        Ok(asked.run(layers))
    }
}

#[cfg(test)]
mod tests {
    use crate::{Scoring, StrategySpec};

    fn layers(spec: &StrategySpec) -> String {
        format!("{:?}", spec.build(6).unwrap().reachable())
    }

    #[test]
    fn the_deepest_but_the_last_go_first() {
        let spec = |text: &str| -> StrategySpec { text.parse().unwrap() };
        // 12 sub-layers, of which 12 / 1.5 = 8 stay.
        let attention = spec("sublayer-drop@1.5");
        assert_eq!(layers(&attention), "{0, 1m, 2m, 3m, 4m, 5}");
        let mlp = spec("sublayer-drop:mlp@1.2");
        assert_eq!(layers(&mlp), "{0, 1, 2, 3a, 4a, 5}");
        assert_eq!(mlp.build(6).unwrap().reachable().sub_layers(), 10);
        let error = mlp.with_target(2.0).validate(6).unwrap_err().to_string();
        assert!(
            error.contains("the largest possible speedup is 1.71"),
            "{error}"
        );
        assert!(mlp.with_target(1.71).validate(6).is_ok());
    }

    #[test]
    fn a_measured_order_is_asked_for() {
        let spec: StrategySpec = "sublayer-drop@1.5 {rule: similarity}".parse().unwrap();
        assert_eq!(spec.scoring(6), Some(Scoring::AttentionInfluence));
        assert!(spec.validate(6).is_ok() && spec.build(6).is_err());
        let ordered = spec.with_order(vec![5, 0, 2, 1]);
        assert_eq!(ordered.scoring(6), None);
        assert_eq!(layers(&ordered), "{0m, 1m, 2m, 3, 4, 5m}");
        let short = spec.with_order(vec![1, 2]);
        let error = short.validate(6).unwrap_err().to_string();
        assert!(
            error.contains("the largest possible speedup with it is 1.2"),
            "{error}"
        );
        assert!(short.with_target(1.2).validate(6).is_ok());
    }
}
