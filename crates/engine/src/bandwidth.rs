//! How fast a device copies its own memory: what bounds a decode step, which reads every weight once.

use crate::error::Result;
use candle_core::{DType, Device, Tensor};
use std::time::{Duration, Instant};

/// Bytes of a copy, more than any cache holds.
const BYTES: usize = 256 << 20;
/// Copies between two looks at the clock, each of which waits for the device.
const COPIES: usize = 8;
/// How long copies go on.
const SPAN: Duration = Duration::from_millis(300);

/// Bytes read and written per second where `device` copies memory of its own.
///
/// # Errors
/// Less than 512 MiB of it are free.
pub fn copied_bytes_per_s(device: &Device) -> Result<f64> {
    let from = Tensor::ones(BYTES / size_of::<f32>(), DType::F32, device)?;
    // The first copy takes memory that the others find free.
    from.copy()?;
    device.synchronize()?;
    let (start, mut done) = (Instant::now(), 0);
    loop {
        for _ in 0..COPIES {
            from.copy()?;
        }
        device.synchronize()?;
        done += 2 * COPIES * BYTES;
        let elapsed = start.elapsed();
        if elapsed >= SPAN {
            return Ok(done as f64 / elapsed.as_secs_f64());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_copies() {
        let rate = copied_bytes_per_s(&Device::Cpu).unwrap();
        assert!(rate > 0.0 && rate.is_finite());
    }
}
