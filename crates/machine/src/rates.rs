//! How fast the machine copies and computes, and how fine its clock is.

use std::hint::black_box;
use std::time::{Duration, Instant};

/// Bytes that each thread copies at a time: more than the caches of a core hold.
const COPIED: usize = 64 << 20;
/// Sums that do not wait for each other, of as many lanes each; an FMA takes four cycles and two may begin in each.
const SUMS: usize = 10;
const LANES: usize = 16;
/// Rounds of sums between two looks at the clock.
const ROUNDS: usize = 20_000;

/// Bytes read and written per second where every thread copies memory of its own.
pub(crate) fn copied_bytes_per_s(threads: usize, span: Duration) -> f64 {
    of_all(threads, || {
        let from = vec![1u8; COPIED];
        let mut to = vec![0u8; COPIED];
        to.copy_from_slice(&from);
        repeated(span, || {
            black_box(&mut to).copy_from_slice(black_box(&from));
            2 * COPIED as u64
        })
    })
}

/// Floating-point operations per second where every thread multiplies and adds numbers of 32 bits that it holds in registers.
pub(crate) fn flops(threads: usize, span: Duration) -> f64 {
    of_all(threads, || {
        repeated(span, || {
            black_box(multiply_add(black_box(0.999), black_box(0.001)));
            (2 * ROUNDS * SUMS * LANES) as u64
        })
    })
}

/// Sum of what every thread gives, all at the same time.
fn of_all(threads: usize, rate: impl Fn() -> f64 + Sync) -> f64 {
    std::thread::scope(|scope| {
        let running: Vec<_> = (0..threads.max(1)).map(|_| scope.spawn(&rate)).collect();
        // A thread that does not come back has computed nothing.
        running
            .into_iter()
            .map(|thread| thread.join().unwrap_or(0.0))
            .sum()
    })
}

/// What `work` counts per second, repeated for so long.
fn repeated(span: Duration, mut work: impl FnMut() -> u64) -> f64 {
    let (start, mut done) = (Instant::now(), 0);
    loop {
        done += work();
        let elapsed = start.elapsed();
        if elapsed >= span {
            return done as f64 / elapsed.as_secs_f64();
        }
    }
}

fn multiply_add(factor: f32, term: f32) -> f32 {
    #[cfg(target_arch = "x86_64")]
    {
        #[target_feature(enable = "avx512f,fma")]
        fn avx512(factor: f32, term: f32) -> f32 {
            sums::<true>(factor, term)
        }
        #[target_feature(enable = "avx2,fma")]
        fn avx2(factor: f32, term: f32) -> f32 {
            sums::<true>(factor, term)
        }
        if is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("fma") {
            // SAFETY: the features were detected.
            return unsafe { avx512(factor, term) };
        }
        if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
            // SAFETY: the features were detected.
            return unsafe { avx2(factor, term) };
        }
    }
    sums::<false>(factor, term)
}

#[inline(always)]
fn sums<const FMA: bool>(factor: f32, term: f32) -> f32 {
    let mut sums = [[0.0f32; LANES]; SUMS];
    for _ in 0..ROUNDS {
        // Nested, so that the lanes of a sum become one vector.
        for sum in &mut sums {
            for lane in sum {
                *lane = match FMA {
                    true => lane.mul_add(factor, term),
                    false => *lane * factor + term,
                };
            }
        }
    }
    sums.iter().flatten().sum()
}

/// The shortest time that the clock tells from none, seconds.
pub(crate) fn clock_step_s() -> f64 {
    let step = |_| {
        let start = Instant::now();
        loop {
            let elapsed = start.elapsed();
            if !elapsed.is_zero() {
                return elapsed.as_secs_f64();
            }
        }
    };
    (0..1000).map(step).fold(f64::INFINITY, f64::min)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_of_a_machine_of_this_century() {
        // A sum of `term / (1 - factor)` in each lane is what the rounds approach.
        let limit = (SUMS * LANES) as f32;
        assert!((multiply_add(0.5, 0.5) - limit).abs() < 1e-2);
        assert!(clock_step_s() < 1e-3);
    }
}
