//! Work of a step shared among the threads of the processor.
//!
//! A step shares hundreds of products of microseconds. candle's pool spins between them, where rayon's threads go to sleep and have
//! to be woken for each; and since candle's own operations use it, threads of another pool would wait behind those that spin.

use candle_core::utils::barrier_pool;
use parking_lot::Mutex;
use std::ops::Range;

/// Multiply-adds below which work stays on one thread: handing it over costs some microseconds.
const WORTH_SHARING: usize = 1 << 16;

/// Threads that work is shared among, the calling one included.
pub fn count() -> usize {
    barrier_pool().n_workers() + 1
}

/// Items that are worked on side by side. What is done with one shares nothing itself: the pool is taken.
pub trait SideBySide: Iterator + Sized
where
    Self::Item: Send,
{
    /// Runs `work` on each item, which threads take as they come.
    fn on_all_threads(self, work: impl Fn(Self::Item) + Sync) {
        let items: Vec<_> = self.map(|item| Mutex::new(Some(item))).collect();
        barrier_pool().execute_chunked(items.len(), |part| {
            for item in &items[part] {
                if let Some(item) = item.lock().take() {
                    work(item);
                }
            }
        });
    }

    /// What `work` gives for each item, in their order.
    fn map_on_all_threads<T: Send>(self, work: impl Fn(Self::Item) -> T + Sync) -> Vec<T> {
        let items: Vec<_> = self.collect();
        let mut results: Vec<Option<T>> = items.iter().map(|_| None).collect();
        let places = items.into_iter().zip(&mut results);
        places.on_all_threads(|(item, result)| *result = Some(work(item)));
        results.into_iter().flatten().collect()
    }
}

impl<I: Iterator> SideBySide for I where I::Item: Send {}

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
    let threads = count();
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

#[cfg(test)]
mod tests {
    use super::*;

    /// Which thread took what shows in nothing.
    #[test]
    fn every_item_is_worked_on_once_and_results_keep_their_order() {
        for len in [0, 1, 2, 7, 1000] {
            let squares = (0..len).map_on_all_threads(|at: usize| at * at);
            assert_eq!(squares, (0..len).map(|at| at * at).collect::<Vec<_>>());
            let mut values = vec![1; len];
            let parts = values.chunks_mut(3).enumerate();
            parts.on_all_threads(|(at, part)| part.iter_mut().for_each(|value| *value += at));
            let wanted: Vec<_> = (0..len).map(|at| 1 + at / 3).collect();
            assert_eq!(values, wanted);
            let seen: Vec<_> = (0..len).map(|_| Mutex::new(0)).collect();
            let see = |part: Range<usize>| part.for_each(|at| *seen[at].lock() += 1);
            share(len, WORTH_SHARING, see);
            split(len, WORTH_SHARING, see);
            assert!(seen.iter().all(|seen| *seen.lock() == 2));
        }
    }
}
