//! Strategies whose layers follow from the position: the length of their schedule, and the steps of a batch.

use crate::budget::MAX_STEPS;
use crate::settings::Asked;
use crate::strategy::check_same_model;
use crate::{BatchShape, LayerSet, Needs, StepPlan, Strategy, StrategyError};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{Error, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::borrow::Cow;
use std::fmt;

/// Generated tokens over which a schedule runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum ScheduleLength {
    /// The largest number of new tokens.
    #[default]
    MaxNew,
    /// The mean length of the full network's answers to the calibration prompts; to be resolved before a run.
    Expected,
    /// This many.
    Tokens(usize),
}

impl ScheduleLength {
    pub(crate) fn is_default(&self) -> bool {
        *self == Self::MaxNew
    }

    /// Refuses a length that is no schedule.
    pub(crate) fn check(self, asked: &Asked<'_>) -> Result<(), StrategyError> {
        match self {
            Self::Tokens(length) if !(2..=MAX_STEPS).contains(&length) => {
                let message = format!(
                    "{length} tokens are no schedule; it must be 2 to {MAX_STEPS}, `max-new` or `expected`"
                );
                Err(asked.wrong("schedule-length", message))
            }
            _ => Ok(()),
        }
    }

    /// Decode steps of the schedule: token 0 comes from the prefill. One that is still to be resolved is taken as the
    /// largest number of new tokens.
    fn steps(self, max_new_tokens: usize) -> usize {
        let length = match self {
            Self::Tokens(length) => length,
            Self::MaxNew | Self::Expected => max_new_tokens,
        };
        length.saturating_sub(1).clamp(1, MAX_STEPS)
    }
}

/// The layers of each decode step, counted from 1.
type Steps = Box<dyn Fn(usize) -> LayerSet + Send>;

/// A strategy whose layers follow from the position alone. Each step's are a subset of the step's before, so every key and
/// value that is read was computed.
pub(crate) struct ByPosition<F> {
    n_layers: usize,
    length: ScheduleLength,
    /// From the number of steps of the schedule to its steps.
    schedule: F,
    /// The steps of the batch; before the first, every layer runs.
    steps: Steps,
}

impl<F: Fn(usize) -> Steps + Send + 'static> ByPosition<F> {
    pub(crate) fn boxed(n_layers: usize, length: ScheduleLength, schedule: F) -> Box<dyn Strategy> {
        Box::new(Self {
            n_layers,
            length,
            schedule,
            steps: Box::new(move |_| LayerSet::full(n_layers)),
        })
    }
}

impl<F: Fn(usize) -> Steps + Send> Strategy for ByPosition<F> {
    fn needs(&self) -> Needs {
        Needs::default()
    }

    fn begin(&mut self, shape: &BatchShape) -> Result<(), StrategyError> {
        check_same_model(self.n_layers, shape)?;
        self.steps = (self.schedule)(self.length.steps(shape.max_new_tokens));
        Ok(())
    }

    fn plan(&mut self, step: usize) -> StepPlan {
        StepPlan::fixed((self.steps)(step))
    }

    fn reachable(&self) -> LayerSet {
        (self.steps)(1)
    }
}

impl Serialize for ScheduleLength {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::MaxNew => serializer.serialize_str("max-new"),
            Self::Expected => serializer.serialize_str("expected"),
            Self::Tokens(length) => serializer.serialize_u64(*length as u64),
        }
    }
}

impl<'de> Deserialize<'de> for ScheduleLength {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Length;

        impl Visitor<'_> for Length {
            type Value = ScheduleLength;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("`max-new`, `expected` or a number of tokens")
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<ScheduleLength, E> {
                match text {
                    "max-new" => Ok(ScheduleLength::MaxNew),
                    "expected" => Ok(ScheduleLength::Expected),
                    _ => Err(E::custom(format_args!(
                        "unknown schedule length `{text}`; it is `max-new`, `expected` or a number of tokens"
                    ))),
                }
            }

            fn visit_u64<E: Error>(self, length: u64) -> Result<ScheduleLength, E> {
                Ok(ScheduleLength::Tokens(
                    usize::try_from(length).unwrap_or(usize::MAX),
                ))
            }

            fn visit_i64<E: Error>(self, length: i64) -> Result<ScheduleLength, E> {
                match u64::try_from(length) {
                    Ok(length) => self.visit_u64(length),
                    Err(_) => Err(E::custom(format_args!(
                        "schedule length {length} is not a number of tokens; it must be at least 2"
                    ))),
                }
            }
        }

        deserializer.deserialize_any(Length)
    }
}

impl JsonSchema for ScheduleLength {
    fn schema_name() -> Cow<'static, str> {
        "ScheduleLength".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "description": "Generated tokens over which a schedule runs: the largest number of new tokens, the mean length of the full network's answers to the calibration prompts, or a number.",
            "anyOf": [
                {"enum": ["max-new", "expected"]},
                {"type": "integer", "minimum": 2},
            ],
        })
    }
}
