//! Memory of this process, as Linux counts it; absent elsewhere.

/// Most memory resident at once since the process began, or since [`reset_peak_memory`].
pub fn peak_memory_bytes() -> Option<u64> {
    status("VmHWM:")
}

/// Memory resident now.
pub fn resident_bytes() -> Option<u64> {
    status("VmRSS:")
}

/// Begins a new peak at what is resident now. False where the kernel does not allow it; the peak then goes on as that of
/// the whole process.
pub fn reset_peak_memory() -> bool {
    std::fs::write("/proc/self/clear_refs", "5").is_ok()
}

/// Memory of the machine that is free to be used.
pub(crate) fn available_bytes() -> Option<u64> {
    parse(
        &std::fs::read_to_string("/proc/meminfo").ok()?,
        "MemAvailable:",
    )
}

fn status(key: &str) -> Option<u64> {
    parse(&std::fs::read_to_string("/proc/self/status").ok()?, key)
}

/// The line `key  <number> kB`.
fn parse(status: &str, key: &str) -> Option<u64> {
    let value = status.lines().find_map(|line| line.strip_prefix(key))?;
    let kib: u64 = value.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_kibibytes() {
        let status = "Name:\tVmHWM: 1 kB\nVmHWM:\t   20 kB\nVmRSS:\t 3 kB\n";
        assert_eq!(parse(status, "VmHWM:"), Some(20 * 1024));
        assert_eq!(parse(status, "VmSwap:"), None);
        assert_eq!(parse("VmHWM: many kB", "VmHWM:"), None);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_peak_belongs_to_the_work_since_it_was_reset() {
        const BYTES: usize = 256 << 20;
        let before = resident_bytes().unwrap();
        let held = std::hint::black_box(vec![1u8; BYTES]);
        drop(held);
        let peak = peak_memory_bytes().unwrap();
        assert!(peak > before + (BYTES as u64) / 2, "{peak} {before}");
        if reset_peak_memory() {
            assert!(peak_memory_bytes().unwrap() < peak - (BYTES as u64) / 2);
        }
    }
}
