//! The machine that a measurement was made on.
//!
//! # Overview
//!
//! [`Machine`] says what it is, as a record keeps it. [`peak_memory_bytes`] and [`reset_peak_memory`] give the memory that
//! a stretch of work needed, [`EnergyMeter`] its energy and [`LoadMeter`] what other processes did meanwhile. [`Checkup`]
//! measures what a timing run can trust. What a machine does not tell is absent; nothing is estimated.
//!
//! What a GPU tells needs the feature `nvml`, which builds that compute on one turn on.

mod checkup;
mod energy;
#[cfg_attr(not(feature = "nvml"), path = "no_gpu.rs")]
mod gpu;
mod load;
mod machine;
mod memory;
mod rates;

pub use checkup::{Checkup, Finding, QUIET};
pub use energy::{Energy, EnergyMeter};
pub use gpu::gpu_memory_bytes;
pub use load::LoadMeter;
pub use machine::{Gpu, Machine};
pub use memory::{peak_memory_bytes, reset_peak_memory, resident_bytes};
