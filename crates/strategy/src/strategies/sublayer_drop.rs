//! `sublayer-drop`: attention or MLPs alone are cut out (Tyukin et al. 2024, arXiv 2407.15516).

use crate::budget::{MIN_KEPT, check_depth, check_speedup, fastest};
use crate::pruned::first_of;
use crate::registry::Settings;
use crate::strategy::FixedLayers;
use crate::strict::Named;
use crate::{LayerSet, Prefill, Scoring, Strategy, StrategyError};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

const NAME: &str = "sublayer-drop";

/// One kind of sub-layer of some layers goes, and the other kind stays. The target counts sub-layers: floor(2 L / speedup)
/// of the 2 L are kept, so it stays below 2. A layer without attention needs no KV cache either.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct SublayerDrop {
    /// Which kind goes.
    #[serde(deserialize_with = "crate::strict::named")]
    drop: SubLayer,
    /// The target speedup.
    #[serde(skip_serializing_if = "Option::is_none")]
    speedup: Option<f64>,
    /// Which go first.
    #[serde(deserialize_with = "crate::strict::named")]
    rule: Rule,
    /// Layers in the order in which their sub-layer is dropped, instead of one measured; only with `rule: similarity`.
    #[serde(skip_serializing_if = "Option::is_none")]
    order: Option<Vec<usize>>,
    /// Which layers the prompt runs through; `skip` if not given, since the sub-layers are cut out.
    #[serde(deserialize_with = "crate::strict::named")]
    prefill: Prefill,
}

impl Default for SublayerDrop {
    fn default() -> Self {
        Self {
            drop: SubLayer::default(),
            speedup: None,
            rule: Rule::default(),
            order: None,
            prefill: Prefill::Skip,
        }
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
enum SubLayer {
    /// Attention, and with it the layer's KV cache.
    #[default]
    Attention,
    /// The MLP.
    Mlp,
}

impl Named for SubLayer {
    const ALL: &'static [Self] = &[Self::Attention, Self::Mlp];

    fn name(self) -> &'static str {
        match self {
            Self::Attention => "attention",
            Self::Mlp => "mlp",
        }
    }
}

/// Which sub-layers go first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
enum Rule {
    /// The deepest, but never that of the last layer (arXiv 2407.15516).
    #[default]
    Deepest,
    /// Those whose output is most like their input on calibration text: block influence (arXiv 2403.03853) of a
    /// sub-layer.
    Similarity,
}

impl Named for Rule {
    const ALL: &'static [Self] = &[Self::Deepest, Self::Similarity];

    fn name(self) -> &'static str {
        match self {
            Self::Deepest => "deepest",
            Self::Similarity => "similarity",
        }
    }
}

impl SublayerDrop {
    /// How many sub-layers the target takes away: of all layers but one at most.
    fn count(&self, n_layers: usize) -> Result<usize, StrategyError> {
        check_depth(NAME, n_layers, MIN_KEPT)?;
        let missing = StrategyError::MissingSpeedup { strategy: NAME };
        let speedup = self.speedup.ok_or(missing)?;
        check_speedup(speedup)?;
        let kept = (2.0 * n_layers as f64 / speedup + 1e-9).floor() as usize;
        let dropped = 2 * n_layers - kept;
        if dropped >= n_layers {
            return Err(StrategyError::Setting {
                strategy: NAME,
                key: "speedup",
                message: format!(
                    "{speedup} would drop {dropped} sub-layers of one kind, and of the {n_layers} one must stay; the \
                     largest possible speedup is {}",
                    fastest(2 * n_layers, n_layers + 1)
                ),
            });
        }
        Ok(dropped)
    }

    /// The layers whose sub-layer goes; `None` if they are still to be found.
    fn dropped(&self, n_layers: usize) -> Result<Option<Vec<usize>>, StrategyError> {
        let count = self.count(n_layers)?;
        match (self.rule, &self.order) {
            (Rule::Deepest, None) => Ok(Some((0..n_layers - 1).rev().take(count).collect())),
            (Rule::Deepest, Some(_)) => Err(StrategyError::Setting {
                strategy: NAME,
                key: "order",
                message: "rule `deepest` has its own; set `rule: similarity` to give one"
                    .to_owned(),
            }),
            (Rule::Similarity, None) if count > 0 => Ok(None),
            (Rule::Similarity, order) => {
                let order = order.as_deref().unwrap_or_default();
                first_of(NAME, order, n_layers, count, 2).map(|found| Some(found.to_vec()))
            }
        }
    }
}

impl Settings for SublayerDrop {
    fn name(&self) -> &'static str {
        NAME
    }

    fn about(&self) -> &'static str {
        "attention or MLPs alone are cut out (arXiv 2407.15516)"
    }

    fn variants(&self) -> Vec<&'static str> {
        SubLayer::ALL.iter().map(|kind| kind.name()).collect()
    }

    fn variant(&self) -> Option<&'static str> {
        Some(self.drop.name())
    }

    fn set_variant(&mut self, variant: &'static str) {
        self.drop = SubLayer::by_name(variant).unwrap_or_default();
    }

    fn speedup(&self) -> Option<f64> {
        self.speedup
    }

    fn speedup_mut(&mut self) -> Option<&mut Option<f64>> {
        Some(&mut self.speedup)
    }

    fn order_mut(&mut self) -> Option<&mut Option<Vec<usize>>> {
        Some(&mut self.order)
    }

    fn scoring(&self, n_layers: usize) -> Option<Scoring> {
        let open = matches!(self.dropped(n_layers), Ok(None));
        open.then_some(match self.drop {
            SubLayer::Attention => Scoring::AttentionInfluence,
            SubLayer::Mlp => Scoring::MlpInfluence,
        })
    }

    fn validate(&self, n_layers: usize) -> Result<(), StrategyError> {
        self.dropped(n_layers).map(drop)
    }

    fn build(&self, n_layers: usize) -> Result<Box<dyn Strategy>, StrategyError> {
        let Some(dropped) = self.dropped(n_layers)? else {
            return Err(StrategyError::NotScored { strategy: NAME });
        };
        let mut layers = LayerSet::full(n_layers);
        for layer in dropped {
            match self.drop {
                SubLayer::Attention => layers.remove_attention(layer),
                SubLayer::Mlp => layers.remove_mlp(layer),
            }
        }
        Ok(FixedLayers::boxed(n_layers, layers, self.prefill))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_deepest_but_the_last_go_first() {
        let settings = |drop, speedup| SublayerDrop {
            drop,
            speedup: Some(speedup),
            ..SublayerDrop::default()
        };
        // 12 sub-layers, of which 12 / 1.5 = 8 stay.
        let layers = settings(SubLayer::Attention, 1.5)
            .build(6)
            .unwrap()
            .reachable();
        assert_eq!(format!("{layers:?}"), "{0, 1m, 2m, 3m, 4m, 5}");
        let layers = settings(SubLayer::Mlp, 1.2).build(6).unwrap().reachable();
        assert_eq!(format!("{layers:?}"), "{0, 1, 2, 3a, 4a, 5}");
        assert_eq!(layers.sub_layers(), 10);
        let error = settings(SubLayer::Mlp, 2.0)
            .validate(6)
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("the largest possible speedup is 1.71"),
            "{error}"
        );
        assert!(settings(SubLayer::Mlp, 1.71).validate(6).is_ok());
    }

    #[test]
    fn a_measured_order_is_asked_for() {
        let mut settings = SublayerDrop {
            rule: Rule::Similarity,
            speedup: Some(1.5),
            ..SublayerDrop::default()
        };
        assert_eq!(settings.scoring(6), Some(Scoring::AttentionInfluence));
        assert!(settings.build(6).is_err());
        settings.order = Some(vec![5, 0, 2, 1]);
        assert_eq!(settings.scoring(6), None);
        let layers = settings.build(6).unwrap().reachable();
        assert_eq!(format!("{layers:?}"), "{0m, 1m, 2m, 3, 4, 5m}");
        settings.order = Some(vec![1, 2]);
        let error = settings.validate(6).unwrap_err().to_string();
        assert!(
            error.contains("the largest possible speedup with it is 1.2"),
            "{error}"
        );
        settings.speedup = Some(1.2);
        assert!(settings.validate(6).is_ok());
    }
}
