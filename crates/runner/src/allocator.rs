//! What the binary asks of its allocator.

use libmimalloc_sys::{mi_option_set, mi_option_t};

/// `mi_option_purge_delay` of mimalloc 2 and 3, in milliseconds; the bindings have no name for it.
const PURGE_DELAY: mi_option_t = 15;

/// Memory that is freed from now on stays with the process. A step of training frees and allocates the same tensors as the one
/// before; pages that went back to the kernel in between would have to be cleared again.
pub(crate) fn keep_freed_memory() {
    // SAFETY: the option exists, and any thread may set it at any time.
    unsafe { mi_option_set(PURGE_DELAY, -1) };
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of all options this one alone is a thousand by default.
    #[test]
    fn the_option_is_the_delay() {
        // SAFETY: as above.
        let delay = || unsafe { libmimalloc_sys::mi_option_get(PURGE_DELAY) };
        assert_eq!(delay(), 1000);
        keep_freed_memory();
        assert_eq!(delay(), -1);
    }
}
