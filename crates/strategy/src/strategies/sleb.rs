//! `sleb`: layers are cut out one at a time, each the one that is missed least (SLEB, Song et al. 2024, arXiv 2402.09025).

use crate::Scoring;
use crate::pruned::{Criterion, Pruned};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Of all layers that are left but the first and the last, the one goes without which the negative log-likelihood of
/// calibration text is least; then all are looked at again (SLEB, algorithm 1).
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(transparent)]
pub(crate) struct Sleb(Pruned);

impl Criterion for Sleb {
    const NAME: &'static str = "sleb";
    const ABOUT: &'static str = "layers are cut out one at a time, each the one that is missed least (SLEB, arXiv 2402.09025)";

    fn pruned(&self) -> &Pruned {
        &self.0
    }

    fn pruned_mut(&mut self) -> &mut Pruned {
        &mut self.0
    }

    fn scoring(drop: usize) -> Scoring {
        Scoring::Sleb { drop }
    }
}
