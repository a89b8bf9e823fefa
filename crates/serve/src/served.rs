//! What is served: one checkpoint, by its name and by its name with a strategy.

use crate::error::{ApiError, Result};
use axum::http::StatusCode;
use skipbench_engine::Engine;
use skipbench_model::{CausalLm, Tokenize};
use skipbench_prompts::ChatTemplate;
use skipbench_strategy::{StrategyError, StrategySpec};
use std::sync::Arc;

/// A checkpoint with what turns texts into its tokens.
pub struct Served {
    /// What clients call it; a strategy follows behind a colon.
    pub name: String,
    /// The model.
    pub model: Box<dyn CausalLm>,
    /// Its tokenizer.
    pub tokenizer: Arc<dyn Tokenize>,
    /// The form of its chats, where it has one.
    pub chat: Option<ChatTemplate>,
    /// Strategies that the list of models names: what they are called, and what they are with all that was calibrated.
    pub strategies: Vec<(String, StrategySpec)>,
}

impl Served {
    pub(crate) fn engine(&self) -> Engine<'_> {
        Engine::new(self.model.as_ref())
    }

    pub(crate) fn n_layers(&self) -> usize {
        self.model.sizes().n_layers
    }

    /// Every name that the list of models gives.
    pub(crate) fn names(&self) -> impl Iterator<Item = String> {
        let with = self.strategies.iter();
        let with = with.map(|(strategy, _)| format!("{}:{strategy}", self.name));
        [self.name.clone()].into_iter().chain(with)
    }

    /// The strategy of a model that is called `NAME` or `NAME:STRATEGY`, which can be built.
    pub(crate) fn strategy(&self, model: &str) -> Result<StrategySpec> {
        let Some(rest) = model.strip_prefix(&self.name) else {
            return Err(self.no_such_model(model));
        };
        if rest.is_empty() {
            return Ok(StrategySpec::full());
        }
        let Some(text) = rest.strip_prefix(':') else {
            return Err(self.no_such_model(model));
        };
        let ready = self.strategies.iter().find(|(name, _)| name == text);
        if let Some((_, spec)) = ready {
            return Ok(spec.clone());
        }
        let refused = |status, message: String| ApiError {
            param: Some("model".to_owned()),
            ..ApiError::new(status, format!("model `{model}`: {message}"))
        };
        let spec: StrategySpec = text.parse().map_err(|error: StrategyError| {
            refused(StatusCode::NOT_FOUND, error.to_string()).with_code("model_not_found")
        })?;
        let bad = |message| refused(StatusCode::BAD_REQUEST, message).with_code("invalid_strategy");
        if spec.layer_file().is_some() {
            return Err(bad(format!(
                "no request makes the server read a file; start it with `--strategy '{text}'`"
            )));
        }
        if spec.members().is_some() {
            return Err(bad(
                "it stands for several strategies; leave out `seeds` and give a `seed`".to_owned(),
            ));
        }
        match spec.build(self.n_layers()) {
            Ok(_) => Ok(spec),
            Err(StrategyError::NotCalibrated { .. } | StrategyError::NotScored { .. }) => {
                Err(bad(format!(
                    "it is calibrated on prompts first: start the server with `--strategy '{text}' --calibration PROMPTS`, or give its threshold or order in the long form"
                )))
            }
            Err(error) => Err(bad(error.to_string())),
        }
    }

    fn no_such_model(&self, model: &str) -> ApiError {
        let message = format!(
            "there is no model `{model}`; this server has `{0}`, and `{0}:STRATEGY` such as `{0}:unified@2`",
            self.name
        );
        ApiError {
            param: Some("model".to_owned()),
            ..ApiError::new(StatusCode::NOT_FOUND, message).with_code("model_not_found")
        }
    }
}
