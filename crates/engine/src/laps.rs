//! Where the time of decode steps goes.

use serde::{Deserialize, Serialize};
use skipbench_model::CausalLm;
use std::time::Instant;

/// Seconds of decode steps by what they went to; what is left of a step is the choice of tokens and the strategy itself. All 0
/// on a GPU, where nobody waits for a part of a step to end.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Spent {
    /// Layers.
    pub layers_s: f64,
    /// The LM head, for tokens.
    pub head_s: f64,
    /// Exit checks.
    pub checks_s: f64,
    /// Keys and values made up for skipped layers.
    pub kv_fill_s: f64,
    /// Gathering and scattering the rows of a step, their embedding among it.
    pub rows_s: f64,
}

impl Spent {
    /// Whether nothing was timed.
    pub fn is_zero(&self) -> bool {
        *self == Self::default()
    }

    /// All of it.
    pub fn total_s(&self) -> f64 {
        self.layers_s + self.head_s + self.checks_s + self.kv_fill_s + self.rows_s
    }

    /// Each part by `of`.
    #[must_use]
    pub(crate) fn map(&self, of: impl Fn(f64) -> f64) -> Self {
        Self {
            layers_s: of(self.layers_s),
            head_s: of(self.head_s),
            checks_s: of(self.checks_s),
            kv_fill_s: of(self.kv_fill_s),
            rows_s: of(self.rows_s),
        }
    }
}

/// A part of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Lap {
    Layers,
    Head,
    Check,
    KvFill,
    Rows,
}

/// A clock that gives all time since it was last looked at to one part.
#[derive(Debug, Default)]
pub(crate) struct Laps {
    last: Option<Instant>,
    pub(crate) spent: Spent,
}

impl Laps {
    /// A step of `model` begins.
    pub(crate) fn start(&mut self, model: &dyn CausalLm) {
        self.last = model.device().is_cpu().then(Instant::now);
    }

    /// A part of the step has ended.
    pub(crate) fn end(&mut self, lap: Lap) {
        let Some(last) = &mut self.last else {
            return;
        };
        let now = Instant::now();
        let seconds = (now - *last).as_secs_f64();
        *last = now;
        let spent = &mut self.spent;
        *match lap {
            Lap::Layers => &mut spent.layers_s,
            Lap::Head => &mut spent.head_s,
            Lap::Check => &mut spent.checks_s,
            Lap::KvFill => &mut spent.kv_fill_s,
            Lap::Rows => &mut spent.rows_s,
        } += seconds;
    }
}
