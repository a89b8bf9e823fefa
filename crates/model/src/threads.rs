//! Work of a step shared among the threads of the processor.
//!
//! A step of decoding shares hundreds of products of microseconds. candle's pool spins between them, where rayon's threads go to
//! sleep and have to be woken for each.

use candle_core::utils::barrier_pool;
use std::ops::Range;

/// Multiply-adds below which work stays on one thread: handing it over costs some microseconds.
const WORTH_SHARING: usize = 1 << 16;

/// Runs `work` over all of `0..items`, in parts that threads take as they come, if the `multiply_adds` are worth it. `work` shares
/// nothing itself.
pub(crate) fn share(items: usize, multiply_adds: usize, work: impl Fn(Range<usize>) + Sync) {
    if items < 2 || multiply_adds < WORTH_SHARING {
        return work(0..items);
    }
    barrier_pool().execute_chunked(items, work);
}

/// Runs `work` over all of `0..items`, one part for each thread, if the `multiply_adds` are worth it: for parts that are better long
/// than even. `work` shares nothing itself.
pub(crate) fn split(items: usize, multiply_adds: usize, work: impl Fn(Range<usize>) + Sync) {
    let threads = barrier_pool().n_workers() + 1;
    if items < 2 || multiply_adds < WORTH_SHARING || threads == 1 {
        return work(0..items);
    }
    let part = items.div_ceil(threads);
    barrier_pool().execute(|thread| {
        let first = thread * part;
        if first < items {
            work(first..items.min(first + part));
        }
    });
}
