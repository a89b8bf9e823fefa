//! Work shared among the threads of the processor.

use rayon::prelude::*;
use std::ops::Range;

/// Multiply-adds below which work stays on one thread: waking a second one costs some ten microseconds.
const WORTH_SHARING: usize = 1 << 19;

/// Parts for each thread, so that one that is held up does not hold up the others.
const PARTS: usize = 8;

/// Runs `work` over all of `0..items`, in parts on all threads if the `multiply_adds` are worth it.
pub(crate) fn share(items: usize, multiply_adds: usize, work: impl Fn(Range<usize>) + Sync) {
    let threads = rayon::current_num_threads();
    if items < 2 || threads == 1 || multiply_adds < WORTH_SHARING {
        return work(0..items);
    }
    let part = items.div_ceil(threads * PARTS);
    (0..items.div_ceil(part))
        .into_par_iter()
        .for_each(|index| work(index * part..items.min((index + 1) * part)));
}
