//! `random`: a seeded random subset, the null that a chosen set has to beat.

use crate::settings::{Asked, Definition, Settings};
use crate::{LayerSet, Strategy, StrategyError};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Keeps the first and the last layer, as `unified` does, and K - 2 of the others at random, with
/// K = floor(L / speedup): what is left of the comparison is only where the inner layers lie.
///
/// One seed gives the same set on every machine, the same at every step and for every row; and its set for a higher
/// speedup is a subset of its set for a lower one.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Random {
    /// Which of the random sets; 0 if not given.
    seed: u64,
    /// How many sets an experiment runs, of seeds `seed` on, to show the band in which sets lie that nobody chose; 1 if
    /// not given.
    #[serde(skip_serializing_if = "is_one")]
    seeds: u64,
}

/// More sets than this are a slip of the pen.
const MAX_SEEDS: u64 = 1000;

fn is_one(seeds: &u64) -> bool {
    *seeds == 1
}

impl Default for Random {
    fn default() -> Self {
        Self { seed: 0, seeds: 1 }
    }
}

impl Random {
    /// One strategy for each seed, where there are several.
    pub(crate) fn members(&self) -> Option<impl Iterator<Item = Self> + use<>> {
        let last = self.seed.checked_add(self.seeds.checked_sub(1)?)?;
        let seeds = self.seed..=last;
        (2..=MAX_SEEDS)
            .contains(&self.seeds)
            .then(|| seeds.map(|seed| Self { seed, seeds: 1 }))
    }

    /// What it has in common with other seeds.
    pub(crate) fn first(&self) -> Self {
        Self {
            seed: 0,
            seeds: self.seeds,
        }
    }

    fn check(&self, asked: &Asked<'_>) -> Result<(), StrategyError> {
        let Self { seed, seeds } = *self;
        if !(1..=MAX_SEEDS).contains(&seeds) {
            let message = format!("{seeds} is outside 1 to {MAX_SEEDS}");
            return Err(asked.wrong("seeds", message));
        }
        let largest = u64::MAX - (seeds - 1);
        if seed > largest {
            let message = format!(
                "there are no {seeds} seeds from {seed} on; the largest for that many is {largest}"
            );
            return Err(asked.wrong("seed", message));
        }
        Ok(())
    }
}

impl Settings for Random {
    fn definition(&self) -> Definition {
        Definition::fixed(
            "random",
            "both ends and a seeded random subset: the null that a chosen set has to beat",
        )
    }

    fn build(&self, asked: &Asked<'_>) -> Result<Box<dyn Strategy>, StrategyError> {
        self.check(asked)?;
        asked.fixed(|n_layers, kept| layers(n_layers, kept, self.seed))
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

#[cfg(test)]
mod tests {
    use super::{LayerSet, layers};
    use crate::StrategySpec;
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

    #[test]
    fn a_band_that_ends_behind_the_last_seed_is_refused() {
        let spec = |seed: u64, seeds: u64| -> StrategySpec {
            let text = format!("random@2 {{seed: {seed}, seeds: {seeds}}}");
            text.parse().unwrap()
        };
        let last = spec(u64::MAX - 2, 3);
        assert_eq!(last.validate(8), Ok(()));
        let members: Vec<_> = last
            .members()
            .unwrap()
            .iter()
            .map(|m| m.to_string())
            .collect();
        assert_eq!(members.len(), 3);
        assert_eq!(members[2], "random@2 {seed: 18446744073709551615}");
        for too_far in [spec(u64::MAX, 3), spec(u64::MAX - 1, 3)] {
            assert_eq!(too_far.members(), None);
            let error = too_far.validate(8).unwrap_err().to_string();
            assert!(
                error.contains("the largest for that many is 18446744073709551613"),
                "{error}"
            );
        }
        assert_eq!(spec(u64::MAX, 1).validate(8), Ok(()));
        for none in [0, 1001] {
            let error = spec(0, none).validate(8).unwrap_err().to_string();
            assert!(error.contains("is outside 1 to 1000"), "{error}");
        }
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
