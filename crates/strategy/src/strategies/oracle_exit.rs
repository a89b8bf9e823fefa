//! `oracle-exit`: the first layer that agrees with the last, the bound that every early exit chases
//! (CALM, Schuster et al. 2022, arXiv 2207.07061).

use crate::names::Named;
use crate::settings::{Asked, Common, Definition, Settings};
use crate::strategy::check_same_model;
use crate::{Agreement, BatchShape, KvFill, LayerSet, Needs, StepPlan, Strategy, StrategyError};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Every layer runs, and a token counts the layers up to the first whose state the LM head already reads as the token that
/// the last one gives. With `kv-fill: none` the layers above stay in the cache, so the answers are the full network's and
/// the depth is a lower bound; with any other fill the cache is left as such an exit would leave it, which shows what the
/// damage to the cache alone costs (the noisy-cache oracle of CALM's released code). Its time means nothing.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct OracleExit {
    /// Whether one agreeing layer is enough.
    agreement: Agreement,
    /// Layers that run before the first check.
    first_exit: usize,
}

impl Default for OracleExit {
    fn default() -> Self {
        Self {
            agreement: Agreement::First,
            first_exit: 1,
        }
    }
}

impl Settings for OracleExit {
    fn definition(&self) -> Definition {
        Definition {
            variant_key: Some("agreement"),
            kv_fill: Some(KvFill::None),
            kv_fills: &[KvFill::None, KvFill::Propagate, KvFill::Copy, KvFill::Mask],
            is_oracle: true,
            no_beams: Some(
                "it asks which layer agrees with one greedy token, and a beam has several",
            ),
            no_sampling: Some("it asks which layer agrees with the most likely token"),
            ..Definition::new(
                "oracle-exit",
                "an oracle: the first layer that already votes for the full network's token (arXiv 2207.07061)",
            )
        }
    }

    fn variants(&self) -> Vec<&'static str> {
        Agreement::names()
    }

    fn variant(&self) -> Option<&'static str> {
        Some(self.agreement.name())
    }

    fn set_variant(&mut self, variant: &'static str, _: &mut Common) {
        self.agreement = Agreement::by_name(variant).unwrap_or_default();
    }

    fn build(&self, asked: &Asked<'_>) -> Result<Box<dyn Strategy>, StrategyError> {
        let n_layers = asked.n_layers;
        if asked.kv_fill == KvFill::Deferred {
            let message =
                "`deferred` is exact, and so is `none` here, where every layer runs; use `none`";
            return Err(asked.wrong("kv-fill", message));
        }
        if !(1..n_layers).contains(&self.first_exit) {
            let message = format!(
                "{} of {n_layers} layers; it must be 1 to {}",
                self.first_exit,
                n_layers - 1
            );
            return Err(asked.wrong("first-exit", message));
        }
        Ok(Box::new(Agreeing {
            n_layers,
            agreement: self.agreement,
            kv_fill: asked.kv_fill,
            checks: LayerSet::from_layers(self.first_exit - 1..n_layers - 1),
        }))
    }
}

struct Agreeing {
    n_layers: usize,
    agreement: Agreement,
    kv_fill: KvFill,
    checks: LayerSet,
}

impl Strategy for Agreeing {
    fn needs(&self) -> Needs {
        Needs {
            kv_fill: self.kv_fill,
            oracle: Some(self.agreement),
            ..Needs::default()
        }
    }

    fn begin(&mut self, shape: &BatchShape) -> Result<(), StrategyError> {
        check_same_model(self.n_layers, shape)
    }

    fn plan(&mut self, _step: usize) -> StepPlan {
        StepPlan {
            layers: LayerSet::full(self.n_layers),
            checks: self.checks,
        }
    }

    fn reachable(&self) -> LayerSet {
        LayerSet::full(self.n_layers)
    }
}
