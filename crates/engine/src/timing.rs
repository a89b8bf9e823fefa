//! Speedup of a strategy over the full network, measured so that drift of the machine cancels out.

mod block;
mod measure;
mod speedup;
mod student;

pub use block::{Block, Times};
pub use measure::{TimingPlan, measure};
pub use speedup::{Interval, Speedup, speedup};
