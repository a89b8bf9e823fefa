//! Energy, where the machine counts it.

use crate::gpu;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// The shortest span of which a counter tells anything: Intel's and AMD's (RAPL) steps about once a millisecond.
const SHORTEST_OF_PROCESSOR: Duration = Duration::from_millis(20);
/// NVML's counter steps up to every 100 ms.
const SHORTEST_OF_GPU: Duration = Duration::from_secs(1);
/// More power than a processor package takes: a counter that could have wrapped twice at that tells nothing.
const MOST_WATTS: f64 = 1000.0;

/// Energy of a span of time; what is not counted is absent.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Energy {
    /// Joules of all processor packages, other work on them included.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub processor_j: Option<f64>,
    /// Joules of the GPU.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gpu_j: Option<f64>,
}

impl Energy {
    /// Whether nothing was counted.
    pub fn is_absent(&self) -> bool {
        *self == Self::default()
    }
}

/// Reads the energy counters of this machine: RAPL's of the processor packages, NVML's of the GPU.
#[derive(Debug)]
pub struct EnergyMeter {
    packages: Vec<Package>,
    use_gpu: bool,
}

/// A RAPL zone of a whole processor package.
#[derive(Debug)]
struct Package {
    counter: PathBuf,
    /// The largest value of the counter, which goes on from 0.
    range_uj: u64,
}

/// What the counters say.
struct Reading {
    at: Instant,
    packages_uj: Vec<Option<u64>>,
    gpu_mj: Option<u64>,
}

impl EnergyMeter {
    /// The counters of this machine; those of the GPU only if it computes.
    pub fn new(use_gpu: bool) -> Self {
        Self::of(Path::new("/sys/class/powercap"), use_gpu)
    }

    /// `powercap`: a folder laid out as the kernel's.
    fn of(powercap: &Path, use_gpu: bool) -> Self {
        Self {
            packages: packages(powercap),
            use_gpu,
        }
    }

    /// Does `work` and gives the energy that it took.
    pub fn span<T>(&self, work: impl FnOnce() -> T) -> (T, Energy) {
        let before = self.read();
        let value = work();
        (value, self.between(&before, &self.read()))
    }

    fn read(&self) -> Reading {
        Reading {
            at: Instant::now(),
            packages_uj: self
                .packages
                .iter()
                .map(|package| read_number(&package.counter))
                .collect(),
            gpu_mj: self.use_gpu.then(gpu::millijoules).flatten(),
        }
    }

    fn between(&self, before: &Reading, after: &Reading) -> Energy {
        let elapsed = after.at - before.at;
        let counts = std::iter::zip(&before.packages_uj, &after.packages_uj);
        let processor: Option<f64> = std::iter::zip(&self.packages, counts)
            .map(|(package, (&before, &after))| package.joules(before?, after?, elapsed))
            .sum();
        let gpu = before.gpu_mj.zip(after.gpu_mj);
        Energy {
            processor_j: processor
                .filter(|_| !self.packages.is_empty() && elapsed >= SHORTEST_OF_PROCESSOR),
            gpu_j: gpu
                .filter(|_| elapsed >= SHORTEST_OF_GPU)
                .and_then(|(before, after)| Some(after.checked_sub(before)? as f64 * 1e-3)),
        }
    }
}

impl Package {
    fn joules(&self, before_uj: u64, after_uj: u64, elapsed: Duration) -> Option<f64> {
        if elapsed.as_secs_f64() * MOST_WATTS > self.range_uj as f64 * 1e-6 {
            return None;
        }
        let wrapped = if after_uj < before_uj {
            self.range_uj
        } else {
            0
        };
        let uj = (after_uj + wrapped).checked_sub(before_uj)?;
        Some(uj as f64 * 1e-6)
    }
}

/// The zones `intel-rapl:N` (AMD's are called so too) that are packages; not the parts of one, nor the whole platform.
fn packages(powercap: &Path) -> Vec<Package> {
    let Ok(entries) = std::fs::read_dir(powercap) else {
        return Vec::new();
    };
    entries
        .flatten()
        .filter(|entry| {
            let name = entry.file_name();
            let index = name
                .to_str()
                .and_then(|name| name.strip_prefix("intel-rapl:"));
            index.is_some_and(|index| index.bytes().all(|byte| byte.is_ascii_digit()))
        })
        .filter_map(|entry| {
            let zone = entry.path();
            let name = std::fs::read_to_string(zone.join("name")).ok()?;
            name.starts_with("package").then_some(Package {
                range_uj: read_number(&zone.join("max_energy_range_uj"))?,
                counter: zone.join("energy_uj"),
            })
        })
        .collect()
}

fn read_number(path: &Path) -> Option<u64> {
    std::fs::read_to_string(path).ok()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const RANGE_UJ: u64 = 262_143_328_850;

    fn zone(powercap: &Path, zone: &str, name: &str, uj: u64) {
        let zone = powercap.join(zone);
        std::fs::create_dir_all(&zone).unwrap();
        std::fs::write(zone.join("name"), format!("{name}\n")).unwrap();
        std::fs::write(zone.join("energy_uj"), format!("{uj}\n")).unwrap();
        std::fs::write(zone.join("max_energy_range_uj"), RANGE_UJ.to_string()).unwrap();
    }

    fn after(reading: &Reading, seconds: f64, packages_uj: Vec<Option<u64>>) -> Reading {
        Reading {
            at: reading.at + Duration::from_secs_f64(seconds),
            packages_uj,
            gpu_mj: reading.gpu_mj.map(|mj| mj + 1500),
        }
    }

    #[test]
    fn packages_are_summed_and_a_counter_may_wrap_once() {
        let powercap = tempfile::tempdir().unwrap();
        zone(powercap.path(), "intel-rapl:0", "package-0", 1_000_000);
        zone(powercap.path(), "intel-rapl:0:0", "core", 7);
        zone(
            powercap.path(),
            "intel-rapl:1",
            "package-1",
            RANGE_UJ - 500_000,
        );
        zone(powercap.path(), "intel-rapl:2", "psys", 7);
        zone(powercap.path(), "intel-rapl-mmio:0", "package-0", 7);
        let mut meter = EnergyMeter::of(powercap.path(), false);
        meter.packages.sort_by(|a, b| a.counter.cmp(&b.counter));
        let before = meter.read();
        assert_eq!(before.packages_uj.len(), 2);
        let end = || vec![Some(3_000_000), Some(250_000)];
        let energy = meter.between(&before, &after(&before, 1.0, end()));
        assert_eq!(
            energy,
            Energy {
                processor_j: Some(2.75),
                gpu_j: None
            }
        );
        for seconds in [0.001, 300.0] {
            let energy = meter.between(&before, &after(&before, seconds, end()));
            assert!(energy.is_absent(), "{seconds} s: {energy:?}");
        }
    }

    #[test]
    fn a_package_that_cannot_be_read_leaves_no_sum() {
        let powercap = tempfile::tempdir().unwrap();
        zone(powercap.path(), "intel-rapl:0", "package-0", 1);
        zone(powercap.path(), "intel-rapl:1", "package-1", 1);
        std::fs::remove_file(powercap.path().join("intel-rapl:1/energy_uj")).unwrap();
        let meter = EnergyMeter::of(powercap.path(), false);
        let (_, energy) = meter.span(|| std::thread::sleep(2 * SHORTEST_OF_PROCESSOR));
        assert!(energy.is_absent());
        std::fs::remove_dir_all(powercap.path().join("intel-rapl:1")).unwrap();
        let meter = EnergyMeter::of(powercap.path(), false);
        let (_, energy) = meter.span(|| {
            zone(powercap.path(), "intel-rapl:0", "package-0", 500_001);
            std::thread::sleep(2 * SHORTEST_OF_PROCESSOR);
        });
        assert_eq!(energy.processor_j, Some(0.5));
    }

    #[test]
    fn without_counters_there_is_no_energy() {
        let nowhere = EnergyMeter::of(Path::new("/nowhere"), true);
        let (value, energy) = nowhere.span(|| 7);
        assert_eq!((value, energy.processor_j), (7, None));
    }

    #[test]
    fn the_counter_of_a_gpu_needs_a_second() {
        let meter = EnergyMeter::of(Path::new("/nowhere"), true);
        let before = Reading {
            gpu_mj: Some(10),
            ..meter.read()
        };
        let over = |seconds| {
            meter
                .between(&before, &after(&before, seconds, Vec::new()))
                .gpu_j
        };
        assert_eq!((over(2.0), over(0.5)), (Some(1.5), None));
    }
}
