//! Work shared among the threads of the processor.

use candle_core::utils::barrier_pool;
use std::ops::Range;

/// Multiply-adds below which work stays on one thread: telling the others takes a microsecond or two.
const WORTH_SHARING: usize = 1 << 17;

/// Runs `work` over all of `0..items`, in parts on all threads if the `multiply_adds` are worth it. The threads wait for
/// work without sleeping between the products of a step.
pub(crate) fn share(items: usize, multiply_adds: usize, work: impl Fn(Range<usize>) + Sync) {
    if items < 2 || multiply_adds < WORTH_SHARING {
        work(0..items);
    } else {
        barrier_pool().execute_chunked(items, work);
    }
}
