//! Speedup of a strategy over the full network, measured so that drift of the machine cancels out.

mod block;
mod change;
mod diagnostics;
mod measure;
#[cfg(test)]
mod simulation;
mod speedup;
pub mod student;

pub use block::{Block, Times};
pub use change::{SpeedChange, compare_speed};
pub use diagnostics::{Drift, Latency, Outliers, energy_per_token};
pub use measure::{TimingPlan, measure};
pub use speedup::{Interval, Speedup, speedup};
