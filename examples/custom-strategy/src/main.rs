//! A strategy that skipbench does not know, with the whole command line of skipbench:
//!
//! ```sh
//! cargo run --release -p custom-strategy -- layers --strategy rotating@2 --n-layers 12 --max-new-tokens 5
//! ```
//!
//! It is three things: a [`Strategy`], which decides; an [`Extension`], which makes one from what a user wrote; and a
//! `main` that registers it.

use skipbench_strategy::{
    BatchShape, Extension, KvFill, LayerSet, Needs, Request, StepPlan, Strategy, StrategyError,
    kept_layers, register,
};
use std::io::Write;
use std::process::ExitCode;

const NAME: &str = "rotating";

/// Set in the environment, it plays the part of a commit that breaks the policy, for the gate to catch: `docs/gate.md`.
const BUG: &str = "ROTATING_BUG";

/// Both ends and a window of the inner layers that moves up with every token, around and around: over a few tokens every
/// layer has its turn. Each token skips layers that the next ones run, so the holes in the KV cache must be filled.
struct Rotating {
    n_layers: usize,
    kept: usize,
    stride: usize,
    kv_fill: KvFill,
    /// The first layer, and the last one too unless that is forgotten.
    ends: Vec<usize>,
}

impl Strategy for Rotating {
    fn needs(&self) -> Needs {
        Needs {
            kv_fill: self.kv_fill,
            ..Needs::default()
        }
    }

    fn begin(&mut self, shape: &BatchShape) -> Result<(), StrategyError> {
        match shape.n_layers == self.n_layers {
            true => Ok(()),
            false => Err(StrategyError::OtherModel {
                built_for: self.n_layers,
                found: shape.n_layers,
            }),
        }
    }

    fn plan(&mut self, step: usize) -> StepPlan {
        let inner = self.n_layers - 2;
        let first = (step - 1) * self.stride;
        let window = (0..self.kept - 2).map(|offset| 1 + (first + offset) % inner.max(1));
        StepPlan::fixed(LayerSet::from_layers(
            self.ends.iter().copied().chain(window),
        ))
    }

    fn reachable(&self) -> LayerSet {
        LayerSet::full(self.n_layers)
    }
}

/// What a user can write: `rotating@2`, `rotating:copy@2`, `rotating: {speedup: 2, stride: 3}`.
struct RotatingExtension;

impl Extension for RotatingExtension {
    fn name(&self) -> &'static str {
        NAME
    }

    fn about(&self) -> &'static str {
        "both ends and a window of inner layers that moves up with every token"
    }

    fn variants(&self) -> &'static [&'static str] {
        &["propagate", "copy", "mask"]
    }

    fn build(&self, request: &Request<'_>) -> Result<Box<dyn Strategy>, StrategyError> {
        let wrong = |message: String| StrategyError::Other {
            strategy: NAME,
            message,
        };
        let speedup = request
            .speedup
            .ok_or(StrategyError::MissingSpeedup { strategy: NAME })?;
        let mut stride = 1;
        for (key, value) in request.settings {
            match (key.as_str(), value.as_u64()) {
                ("stride", Some(found @ 1..=256)) => stride = found as usize,
                ("stride", _) => {
                    return Err(wrong("`stride` is a number from 1 to 256".to_owned()));
                }
                _ => {
                    return Err(wrong(format!(
                        "unknown key `{key}`; known: speedup, variant, stride"
                    )));
                }
            }
        }
        let last = std::env::var_os(BUG)
            .is_none()
            .then_some(request.n_layers - 1);
        Ok(Box::new(Rotating {
            ends: std::iter::once(0).chain(last).collect(),
            n_layers: request.n_layers,
            kept: kept_layers(request.n_layers, speedup)?,
            stride,
            kv_fill: match request.variant {
                Some("copy") => KvFill::Copy,
                Some("mask") => KvFill::Mask,
                _ => KvFill::Propagate,
            },
        }))
    }
}

fn main() -> ExitCode {
    if let Err(error) = register(&RotatingExtension) {
        // Nothing is left to tell if stderr is gone.
        let _ = writeln!(std::io::stderr(), "error: {error}");
        return ExitCode::from(2);
    }
    skipbench::main()
}
