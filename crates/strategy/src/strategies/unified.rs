//! `unified`: Unified Layer Skipping (Liu, Meng, Zhou 2024, arXiv 2404.06954).

use crate::budget::{Number, fastest};
use crate::names::{Named, named};
use crate::settings::{Asked, Common, Definition, Settings};
use crate::{LayerSet, Strategy, StrategyError};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The number of layers follows from the target speedup alone, K = floor(L / speedup), and the layers are
/// spread over the depth. The first and the last layer always run (arXiv 2404.06954).
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Unified {
    /// Which layers are kept.
    rule: Rule,
}

named! {
    /// How K layers are spread over L.
    enum Rule {
        /// The rule of the authors' released code: the first and the last layer, and every multiple of
        /// floor(L / (K - 1)) from the bottom up until there are K. All slack collects in one hole under the last layer:
        /// below 2x it keeps the lowest K - 1 layers and the last.
        #[default]
        Published = "published",
        /// Layer j of K is round(j (L - 1) / (K - 1)), halves to the even layer: no hole is more than a layer
        /// larger than another.
        Even = "even",
        /// The first and the last layer, and from the bottom up those whose index is a multiple of the target, until there
        /// are K. Needs a whole number as the target.
        Modulo = "modulo",
        /// The "unified skipping" baseline of AdaSkip's released code (arXiv 2501.02336), another algorithm by the same name:
        /// with n layers to skip, those whose index is 1 modulo floor(L / n) go. It may skip more than n, the last layer too,
        /// and cannot skip more than half.
        Adaskip = "adaskip",
    }
}

impl Rule {
    fn layers(self, n_layers: usize, kept: usize, speedup: f64) -> LayerSet {
        match self {
            Self::Published => multiples(n_layers, kept, n_layers / (kept - 1)),
            Self::Even => even(n_layers, kept),
            Self::Modulo => multiples(n_layers, kept, speedup as usize),
            Self::Adaskip => LayerSet::from_layers((0..n_layers).filter(|layer| {
                let skipped = n_layers - kept;
                skipped == 0 || layer % (n_layers / skipped) != 1
            })),
        }
    }
}

/// The ends, and multiples of `stride` from the bottom up until there are `kept`; all rules need `2 <= kept <= n_layers`.
fn multiples(n_layers: usize, kept: usize, stride: usize) -> LayerSet {
    let between = (stride..n_layers - 1).step_by(stride).take(kept - 2);
    LayerSet::from_layers([0, n_layers - 1].into_iter().chain(between))
}

fn even(n_layers: usize, kept: usize) -> LayerSet {
    LayerSet::from_layers((0..kept).map(|j| divide_half_even(j * (n_layers - 1), kept - 1)))
}

/// `a / b` rounded to the nearest integer, halves to the even one; in integers, so that no half is missed.
fn divide_half_even(a: usize, b: usize) -> usize {
    let (quotient, twice_rest) = (a / b, a % b * 2);
    let up = twice_rest > b || twice_rest == b && quotient % 2 == 1;
    quotient + usize::from(up)
}

impl Settings for Unified {
    fn definition(&self) -> Definition {
        Definition {
            variant_key: Some("rule"),
            ..Definition::fixed(
                "unified",
                "layers spread over the whole depth, from the target alone (Unified Layer Skipping, arXiv 2404.06954)",
            )
        }
    }

    fn variants(&self) -> Vec<&'static str> {
        Rule::names()
    }

    fn variant(&self) -> Option<&'static str> {
        Some(self.rule.name())
    }

    fn set_variant(&mut self, variant: &'static str, _: &mut Common) {
        self.rule = Rule::by_name(variant).unwrap_or_default();
    }

    fn build(&self, asked: &Asked<'_>) -> Result<Box<dyn Strategy>, StrategyError> {
        let (n_layers, kept, speedup) = (asked.n_layers, asked.kept()?, asked.target()?);
        let refused = match self.rule {
            Rule::Adaskip if 2 * kept < n_layers => format!(
                "rule `adaskip` cannot skip more than half of the layers, so {} is too fast; the largest possible speedup \
                 for {n_layers} layers is {}",
                Number(speedup),
                fastest(n_layers, n_layers.div_ceil(2))
            ),
            Rule::Modulo if speedup.fract() != 0.0 => format!(
                "rule `modulo` needs a whole number, not {}; the nearest is {}",
                Number(speedup),
                speedup.round()
            ),
            _ => return asked.fixed(|n_layers, kept| self.rule.layers(n_layers, kept, speedup)),
        };
        Err(asked.wrong("speedup", refused))
    }
}

#[cfg(test)]
mod tests {
    use super::{LayerSet, Rule, divide_half_even, even};
    use proptest::prelude::*;

    #[test]
    fn halves_go_to_the_even_number() {
        let rounded: Vec<_> = (0..=10).map(|a| divide_half_even(a, 2)).collect();
        assert_eq!(rounded, [0, 0, 1, 2, 2, 2, 3, 4, 4, 4, 5]);
        assert_eq!(divide_half_even(7, 4), 2);
        assert_eq!(divide_half_even(5, 4), 1);
    }

    #[test]
    fn multiples_of_the_target() {
        let modulo =
            |n_layers, kept, speedup| Rule::Modulo.layers(n_layers, kept, speedup).to_vec();
        assert_eq!(modulo(30, 6, 5.0), [0, 5, 10, 15, 20, 29]);
        assert_eq!(
            modulo(24, 12, 2.0),
            Rule::Published.layers(24, 12, 2.0).to_vec()
        );
        assert_eq!(modulo(6, 6, 1.0), [0, 1, 2, 3, 4, 5]);
    }

    proptest! {
        #[test]
        fn modulo_keeps_exactly_k_too(n_layers in 2..=crate::MAX_LAYERS, speedup in 1usize..128) {
            let kept = n_layers / speedup;
            prop_assume!(kept >= 2);
            let set = Rule::Modulo.layers(n_layers, kept, speedup as f64);
            prop_assert_eq!(set.len(), kept);
            prop_assert!(set.contains(0) && set.contains(n_layers - 1));
        }

        #[test]
        fn both_rules_keep_exactly_k_and_both_ends(
            (n_layers, kept) in (2..=crate::MAX_LAYERS).prop_flat_map(|l| (Just(l), 2..=l)),
        ) {
            for rule in [Rule::Published, Rule::Even] {
                let set = rule.layers(n_layers, kept, 1.0);
                prop_assert_eq!(set.len(), kept);
                prop_assert!(set.contains(0) && set.contains(n_layers - 1));
                prop_assert!(set.is_subset(&LayerSet::full(n_layers)));
            }
            let even = even(n_layers, kept).to_vec();
            let gaps = || even.windows(2).map(|pair| pair[1] - pair[0]);
            prop_assert!(gaps().max().unwrap() - gaps().min().unwrap() <= 1);
        }
    }

    #[test]
    fn adaskips_rule_drops_seven_layers_when_asked_for_six() {
        let dropped = |kept: usize| -> Vec<usize> {
            let layers = Rule::Adaskip.layers(32, kept, 1.0);
            (0..32).filter(|&layer| !layers.contains(layer)).collect()
        };
        assert_eq!(dropped(28), [1, 9, 17, 25]);
        assert_eq!(dropped(26), [1, 6, 11, 16, 21, 26, 31]);
        assert_eq!(dropped(24).len(), 8);
        assert_eq!(dropped(32), [0; 0]);
        let spec: crate::StrategySpec = "unified:adaskip@2".parse().unwrap();
        assert!(spec.validate(32).is_ok());
        let error = spec.validate(33).unwrap_err().to_string();
        assert!(error.contains("for 33 layers is 1.94"), "{error}");
        assert!(spec.with_target(1.94).validate(33).is_ok());
    }
}
