//! The GPU that CUDA computes on, through NVML (libnvidia-ml), which is loaded when first asked for and need not be there.

use crate::machine::Gpu;
use nvml_wrapper::enums::device::UsedGpuMemory;
use nvml_wrapper::{Device, Nvml};
use std::sync::OnceLock;

static NVML: OnceLock<Option<Nvml>> = OnceLock::new();

/// The first GPU that CUDA sees.
fn device() -> Option<Device<'static>> {
    let nvml = NVML.get_or_init(|| Nvml::init().ok()).as_ref()?;
    let visible = std::env::var("CUDA_VISIBLE_DEVICES").unwrap_or_default();
    match first_visible(&visible) {
        Visible::Index(index) => nvml.device_by_index(index).ok(),
        Visible::Uuid(uuid) => nvml.device_by_uuid(uuid).ok(),
    }
}

#[derive(Debug, PartialEq)]
enum Visible<'a> {
    Index(u32),
    Uuid(&'a str),
}

/// The first entry of `CUDA_VISIBLE_DEVICES`: an index, or the UUID of a GPU or of a part of one.
fn first_visible(list: &str) -> Visible<'_> {
    let first = list.split(',').next().unwrap_or_default().trim();
    match first.parse() {
        Ok(index) => Visible::Index(index),
        Err(_) if first.is_empty() => Visible::Index(0),
        Err(_) => Visible::Uuid(first),
    }
}

pub(crate) fn describe() -> Option<Gpu> {
    let device = device()?;
    Some(Gpu {
        name: device.name().ok()?,
        driver: device.nvml().sys_driver_version().ok()?,
        memory_bytes: device.memory_info().ok()?.total,
    })
}

/// Energy that the GPU has used since its driver was loaded.
pub(crate) fn millijoules() -> Option<u64> {
    device()?.total_energy_consumption().ok()
}

/// GPU memory that this process holds now. `None` without a GPU, and where the driver does not know the process by its
/// number here, as in some containers.
pub fn gpu_memory_bytes() -> Option<u64> {
    let processes = device()?.running_compute_processes().ok()?;
    let own = processes
        .iter()
        .find(|process| process.pid == std::process::id())?;
    match own.used_gpu_memory {
        UsedGpuMemory::Used(bytes) => Some(bytes),
        UsedGpuMemory::Unavailable => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_visible_gpu_is_an_index_or_a_uuid() {
        assert_eq!(first_visible(""), Visible::Index(0));
        assert_eq!(first_visible("2,0"), Visible::Index(2));
        assert_eq!(first_visible(" GPU-1f , 0"), Visible::Uuid("GPU-1f"));
    }

    #[test]
    fn without_a_driver_everything_is_absent() {
        if NVML.get_or_init(|| Nvml::init().ok()).is_none() {
            assert_eq!((describe(), millijoules()), (None, None));
            assert_eq!(gpu_memory_bytes(), None);
        }
    }
}
