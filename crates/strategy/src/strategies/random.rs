//! `random`: a seeded random subset, the null that a chosen set has to beat.

use crate::budget::required_layers;
use crate::registry::{Kind, Settings};
use crate::strategy::FixedLayers;
use crate::{LayerSet, Prefill, Strategy, StrategyError};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

const NAME: &str = "random";

/// Keeps the first and the last layer, as `unified` does, and K - 2 of the others at random, with
/// K = floor(L / speedup): what is left of the comparison is only where the inner layers lie.
///
/// One seed gives the same set on every machine, the same at every step and for every row; and its set for a higher
/// speedup is a subset of its set for a lower one.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct Random {
    /// The target speedup.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    speedup: Option<f64>,
    /// Which layers the prompt runs through.
    #[serde(
        default,
        deserialize_with = "crate::strict::named",
        skip_serializing_if = "Prefill::is_full"
    )]
    prefill: Prefill,
    /// Which of the random sets; 0 if not given.
    #[serde(default)]
    seed: u64,
    /// How many sets an experiment runs, of seeds `seed` on, to show the band in which sets lie that nobody chose; 1 if
    /// not given.
    #[serde(default = "one", skip_serializing_if = "is_one")]
    seeds: u64,
}

/// More sets than this are a slip of the pen.
const MAX_SEEDS: u64 = 1000;

fn one() -> u64 {
    1
}

fn is_one(seeds: &u64) -> bool {
    *seeds == 1
}

impl Default for Random {
    fn default() -> Self {
        Self {
            speedup: None,
            prefill: Prefill::Full,
            seed: 0,
            seeds: 1,
        }
    }
}

/// The ends, and the first `kept - 2` of a shuffle of the rest. Needs `2 <= kept <= n_layers <= MAX_LAYERS`.
fn layers(n_layers: usize, kept: usize, seed: u64) -> LayerSet {
    // ChaCha has one stream on every platform; drawing u32 keeps the width of usize out of it.
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut inner: Vec<usize> = (1..n_layers - 1).collect();
    for drawn in 0..kept - 2 {
        let offset: u32 = rng.random_range(0..(inner.len() - drawn) as u32);
        inner.swap(drawn, drawn + offset as usize);
    }
    inner.truncate(kept - 2);
    LayerSet::from_layers([0, n_layers - 1].into_iter().chain(inner))
}

impl Settings for Random {
    fn name(&self) -> &'static str {
        NAME
    }

    fn about(&self) -> &'static str {
        "both ends and a seeded random subset: the null that a chosen set has to beat"
    }

    fn speedup(&self) -> Option<f64> {
        self.speedup
    }

    fn speedup_mut(&mut self) -> Option<&mut Option<f64>> {
        Some(&mut self.speedup)
    }

    fn validate(&self, n_layers: usize) -> Result<(), StrategyError> {
        required_layers(NAME, n_layers, self.speedup)?;
        match (1..=MAX_SEEDS).contains(&self.seeds) {
            true => Ok(()),
            false => Err(StrategyError::Setting {
                strategy: NAME,
                key: "seeds",
                message: format!("{} is outside 1 to {MAX_SEEDS}", self.seeds),
            }),
        }
    }

    fn band(&self) -> Option<Kind> {
        Some(Kind::Random(Self {
            seed: 0,
            ..self.clone()
        }))
    }

    fn members(&self) -> Option<Vec<Kind>> {
        let member = |seed| {
            Kind::Random(Self {
                seed,
                seeds: 1,
                ..self.clone()
            })
        };
        let last = self.seed.saturating_add(self.seeds);
        (self.seeds > 1).then(|| (self.seed..last).map(member).collect())
    }

    fn build(&self, n_layers: usize) -> Result<Box<dyn Strategy>, StrategyError> {
        self.validate(n_layers)?;
        let kept = required_layers(NAME, n_layers, self.speedup)?;
        Ok(FixedLayers::boxed(
            n_layers,
            layers(n_layers, kept, self.seed),
            self.prefill,
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::{LayerSet, layers};
    use proptest::prelude::*;

    #[test]
    fn the_stream_is_pinned() {
        assert_eq!(layers(24, 8, 0).to_vec(), [0, 3, 12, 14, 15, 16, 17, 23]);
        assert_eq!(layers(24, 8, 7).to_vec(), [0, 4, 5, 6, 7, 9, 17, 23]);
    }

    #[test]
    fn every_inner_layer_is_equally_likely() {
        let mut counts = [0; 12];
        for seed in 0..2000 {
            layers(12, 6, seed).iter().for_each(|l| counts[l] += 1);
        }
        assert_eq!((counts[0], counts[11]), (2000, 2000));
        // Four of ten: 800 expected, standard deviation 22.
        assert!(
            counts[1..11].iter().all(|n| (700..900).contains(n)),
            "{counts:?}"
        );
    }

    proptest! {
        #[test]
        fn keeps_k_and_both_ends_and_is_nested(
            (n_layers, kept) in (2..=crate::MAX_LAYERS).prop_flat_map(|l| (Just(l), 2..=l)),
            seed: u64,
        ) {
            let set = layers(n_layers, kept, seed);
            prop_assert_eq!(set.len(), kept);
            prop_assert!(set.contains(0) && set.contains(n_layers - 1));
            prop_assert!(set.is_subset(&LayerSet::full(n_layers)));
            prop_assert_eq!(set, layers(n_layers, kept, seed));
            prop_assert!(kept == n_layers || set.is_subset(&layers(n_layers, kept + 1, seed)));
        }
    }
}
