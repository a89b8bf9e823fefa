//! Memory in which weights are read and converted, a chunk at a time: as much as the threads need, however many weights there are.

use std::sync::{Mutex, PoisonError};

/// What one thread reads and converts at a time.
#[derive(Default)]
pub(crate) struct Scratch {
    /// Rows as they lie in their file.
    pub(crate) bytes: Vec<u8>,
    /// Where they lie in another order, from the first to the last of them.
    pub(crate) span: Vec<u8>,
    /// Their values.
    pub(crate) wide: Vec<f32>,
    /// Their values in blocks.
    pub(crate) blocks: Vec<u8>,
}

/// What threads have at hand from one weight to the next.
#[derive(Default)]
pub(crate) struct Pool(Mutex<Vec<Scratch>>);

impl Pool {
    /// What `work` gives with memory that nobody else uses meanwhile; what it held before is still in it.
    pub(crate) fn with<R>(&self, work: impl FnOnce(&mut Scratch) -> R) -> R {
        let free = || self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut scratch = free().pop().unwrap_or_default();
        let outcome = work(&mut scratch);
        free().push(scratch);
        outcome
    }
}
