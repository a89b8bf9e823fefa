//! Without the feature `nvml` there is no GPU.

use crate::machine::Gpu;

pub(crate) fn describe() -> Option<Gpu> {
    None
}

pub(crate) fn millijoules() -> Option<u64> {
    None
}

/// GPU memory that this process holds now: `None`, since this build computes on no GPU.
pub fn gpu_memory_bytes() -> Option<u64> {
    None
}
