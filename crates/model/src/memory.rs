//! Memory that can be had: what is large is asked for first, and refused with its size.

use crate::error::{ModelError, Result};
use sysinfo::System;

/// Below it nobody is asked: a machine that runs a model has so much, and asking takes longer than the rest.
const SMALL: u64 = 64 << 20;

/// Refuses bytes of host memory that the machine has not free. `lower`: what makes them fewer.
///
/// # Errors
/// [`ModelError::NoMemory`].
pub(crate) fn require(what: &'static str, bytes: u128, lower: &'static str) -> Result<()> {
    take(bytes).map_err(|free| ModelError::NoMemory {
        what,
        bytes,
        free,
        lower,
    })
}

/// Whether bytes of host memory can be had; if not, how many are free, where that is known.
///
/// # Errors
/// They cannot.
pub(crate) fn take(bytes: u128) -> std::result::Result<(), Option<u64>> {
    if bytes <= u128::from(SMALL) {
        return Ok(());
    }
    match free() {
        Some(free) if bytes > u128::from(free) => Err(Some(free)),
        free => {
            // A limit on the process's address space is known to the allocator alone.
            let bytes = usize::try_from(bytes).map_err(|_| free)?;
            Vec::<u8>::new().try_reserve_exact(bytes).map_err(|_| free)
        }
    }
}

/// `len` zeros, or an error where they cannot be had.
///
/// # Errors
/// [`ModelError::NoMemory`].
pub(crate) fn zeros<T: Copy + Default>(
    what: &'static str,
    len: u128,
    lower: &'static str,
) -> Result<Vec<T>> {
    let bytes = len.saturating_mul(size_of::<T>() as u128);
    require(what, bytes, lower)?;
    let refused = |_| ModelError::NoMemory {
        what,
        bytes,
        free: free(),
        lower,
    };
    let len = usize::try_from(len).unwrap_or(usize::MAX);
    let mut values = Vec::new();
    values.try_reserve_exact(len).map_err(refused)?;
    values.resize(len, T::default());
    Ok(values)
}

/// Bytes that the machine, or the container that this runs in, can still give; `None` where that is not known.
fn free() -> Option<u64> {
    let mut system = System::new();
    system.refresh_memory();
    let free = system.available_memory() + system.free_swap();
    // What a container uses counts its page cache too, so only its limit says anything.
    let limit = system.cgroup_limits().map(|limits| limits.total_memory);
    (free > 0).then(|| free.min(limit.unwrap_or(free)))
}

/// Bytes for a reader: `1.5 GiB`.
pub fn human(bytes: u128) -> String {
    let mut value = bytes as f64;
    for unit in ["bytes", "KiB", "MiB", "GiB", "TiB"] {
        if value < 1024.0 {
            let digits = usize::from(unit != "bytes");
            return format!("{value:.digits$} {unit}");
        }
        value /= 1024.0;
    }
    format!("{value:.1} PiB")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_no_machine_has_is_refused_with_its_size() {
        for bytes in [1 << 60, 1 << 70, u128::MAX] {
            let error = require("the KV cache", bytes, "the batch size").unwrap_err();
            let message = error.to_string();
            assert!(message.contains(&human(bytes)), "{message}");
            assert!(message.contains("lower the batch size"), "{message}");
            assert!(zeros::<f32>("the KV cache", bytes / 4, "the batch size").is_err());
        }
        assert_eq!(zeros::<f32>("a row", 3, "nothing").unwrap(), [0.0; 3]);
    }

    #[test]
    fn sizes_are_read_at_a_glance() {
        assert_eq!(human(1000), "1000 bytes");
        assert_eq!(human(1536 << 20), "1.5 GiB");
        assert_eq!(human(1 << 60), "1024.0 PiB");
    }

    #[test]
    fn the_machine_says_what_is_free() {
        assert!(free().is_some_and(|free| free > SMALL));
    }
}
