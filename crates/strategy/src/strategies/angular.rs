//! `angular`: the block whose ends are most alike is cut out (Gromov et al. 2024, arXiv 2403.17887).

use crate::Scoring;
use crate::pruned::{Criterion, Pruned};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The angular distance of layers l and l + n is arccos(cos(x_l, x_l+n)) / pi, with x_l the input of layer l at the last
/// token of a text; the block of n = L - K layers of least mean distance over calibration text goes (arXiv 2403.17887,
/// section 3.2).
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(transparent)]
pub(crate) struct Angular(Pruned);

impl Criterion for Angular {
    const NAME: &'static str = "angular";
    const ABOUT: &'static str =
        "the contiguous block whose ends are most alike is cut out (arXiv 2403.17887)";

    fn pruned(&self) -> &Pruned {
        &self.0
    }

    fn pruned_mut(&mut self) -> &mut Pruned {
        &mut self.0
    }

    fn scoring(drop: usize) -> Scoring {
        Scoring::AngularDistance { block: drop }
    }
}
