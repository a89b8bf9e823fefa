//! `oracle-exit`: the first layer that agrees with the last, the bound that every early exit chases
//! (CALM, Schuster et al. 2022, arXiv 2207.07061).

use crate::budget::{MIN_KEPT, check_depth};
use crate::registry::Settings;
use crate::strategy::check_same_model;
use crate::strict::Named;
use crate::{Agreement, BatchShape, KvFill, LayerSet, Needs, StepPlan, Strategy, StrategyError};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

const NAME: &str = "oracle-exit";

/// Every layer runs, and a token counts the layers up to the first whose state the LM head already reads as the token that
/// the last one gives. With `kv-fill: none` the layers above stay in the cache, so the answers are the full network's and
/// the depth is a lower bound; with any other fill the cache is left as such an exit would leave it, which shows what the
/// damage to the cache alone costs (the noisy-cache oracle of CALM's released code). Its time means nothing.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct OracleExit {
    /// Whether one agreeing layer is enough.
    #[serde(deserialize_with = "crate::strict::named")]
    agreement: Rule,
    /// Layers that run before the first check.
    first_exit: usize,
    /// What the cache holds of the layers above an exit.
    #[serde(deserialize_with = "crate::strict::named")]
    kv_fill: KvFill,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
enum Rule {
    /// The first layer that agrees.
    #[default]
    First,
    /// The first layer from which on all agree.
    Stable,
}

impl Named for Rule {
    const ALL: &'static [Self] = &[Self::First, Self::Stable];

    fn name(self) -> &'static str {
        match self {
            Self::First => "first",
            Self::Stable => "stable",
        }
    }
}

impl Default for OracleExit {
    fn default() -> Self {
        Self {
            agreement: Rule::First,
            first_exit: 1,
            kv_fill: KvFill::None,
        }
    }
}

const FILLS: [KvFill; 4] = [KvFill::None, KvFill::Propagate, KvFill::Copy, KvFill::Mask];

impl Settings for OracleExit {
    fn name(&self) -> &'static str {
        NAME
    }

    fn about(&self) -> &'static str {
        "an oracle: the first layer that already votes for the full network's token (arXiv 2207.07061)"
    }

    fn variants(&self) -> Vec<&'static str> {
        Rule::ALL.iter().map(|rule| rule.name()).collect()
    }

    fn variant(&self) -> Option<&'static str> {
        Some(self.agreement.name())
    }

    fn set_variant(&mut self, variant: &'static str) {
        self.agreement = Rule::by_name(variant).unwrap_or_default();
    }

    fn kv_fills(&self) -> &'static [KvFill] {
        &FILLS
    }

    fn kv_fill_mut(&mut self) -> Option<&mut KvFill> {
        Some(&mut self.kv_fill)
    }

    fn is_oracle(&self) -> bool {
        true
    }

    fn no_beams(&self) -> Option<&'static str> {
        Some("it asks which layer agrees with one greedy token, and a beam has several")
    }

    fn no_sampling(&self) -> Option<&'static str> {
        Some("it asks which layer agrees with the most likely token")
    }

    fn validate(&self, n_layers: usize) -> Result<(), StrategyError> {
        check_depth(NAME, n_layers, MIN_KEPT)?;
        let setting = |key, message| StrategyError::Setting {
            strategy: NAME,
            key,
            message,
        };
        if !FILLS.contains(&self.kv_fill) {
            return Err(setting(
                "kv-fill",
                "`deferred` is exact, and so is `none` here, where every layer runs; use `none`"
                    .to_owned(),
            ));
        }
        if !(1..n_layers).contains(&self.first_exit) {
            return Err(setting(
                "first-exit",
                format!(
                    "{} of {n_layers} layers; it must be 1 to {}",
                    self.first_exit,
                    n_layers - 1
                ),
            ));
        }
        Ok(())
    }

    fn build(&self, n_layers: usize) -> Result<Box<dyn Strategy>, StrategyError> {
        self.validate(n_layers)?;
        Ok(Box::new(Agreeing {
            n_layers,
            agreement: match self.agreement {
                Rule::First => Agreement::First,
                Rule::Stable => Agreement::Stable,
            },
            kv_fill: self.kv_fill,
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
