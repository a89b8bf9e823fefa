//! What a timing run on this machine can trust.

use crate::energy::EnergyMeter;
use crate::load::LoadMeter;
use crate::machine::Machine;
use crate::memory::available_bytes;
use crate::rates;
use serde::{Deserialize, Serialize};
use std::path::Path;
use std::time::Duration;

/// Share of the processor that other work may take before times are doubted.
pub const QUIET: f64 = 0.05;
/// A clock that steps in longer than this blurs the times of short steps, seconds.
const FINE_CLOCK_S: f64 = 1e-5;
/// How long each rate is measured, by [`Checkup::here`] and [`Checkup::quick`].
const SPAN: Duration = Duration::from_millis(300);
const QUICK_SPAN: Duration = Duration::from_millis(30);
/// How long the counters of energy are watched; a GPU's step slowly.
const WATCHED: Duration = Duration::from_millis(50);
const GPU_WATCHED: Duration = Duration::from_millis(1100);

/// What the machine does when asked.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Checkup {
    /// Memory that is free to be used, bytes; `None` where it is not told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub available_bytes: Option<u64>,
    /// Bytes read and written per second where all threads copy memory.
    pub copied_bytes_per_s: f64,
    /// Floating-point operations per second where all threads multiply and add in 32 bits.
    pub flops: f64,
    /// The shortest time that the clock tells from none, seconds.
    pub clock_step_s: f64,
    /// How the kernel sets the processor's frequency; `None` where it does not, as in most virtual machines.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub governor: Option<String>,
    /// Share of the processor that other work took meanwhile; `None` where it is not told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub load_by_others: Option<f64>,
    /// The processor's energy can be read.
    pub counts_energy: bool,
    /// The GPU's energy can be read.
    pub counts_gpu_energy: bool,
}

/// Whether one thing can be trusted, and what to do where not.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// What was looked at.
    pub what: String,
    /// What was found.
    pub found: String,
    /// A timing run can trust it.
    pub is_good: bool,
    /// What to do, where there is something to do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub advice: Option<String>,
}

impl Checkup {
    /// Measures this machine with so many threads, in about a second. Nothing else should run meanwhile.
    pub fn here(threads: usize, use_gpu: bool) -> Self {
        Self::within(threads, use_gpu, SPAN)
    }

    /// The same in a fifth of a second, less precisely and without the load by others, which every cell tells of itself.
    pub fn quick(threads: usize, use_gpu: bool) -> Self {
        Self {
            load_by_others: None,
            ..Self::within(threads, use_gpu, QUICK_SPAN)
        }
    }

    fn within(threads: usize, use_gpu: bool, span: Duration) -> Self {
        let load = LoadMeter::start();
        let copied_bytes_per_s = rates::copied_bytes_per_s(threads, span);
        let flops = rates::flops(threads, span);
        let watched = if use_gpu { GPU_WATCHED } else { WATCHED };
        let ((), energy) = EnergyMeter::new(use_gpu).span(|| std::thread::sleep(watched));
        Self {
            available_bytes: available_bytes(),
            copied_bytes_per_s,
            flops,
            clock_step_s: rates::clock_step_s(),
            governor: governor(Path::new("/sys/devices/system/cpu")),
            load_by_others: load.others(),
            counts_energy: energy.processor_j.is_some(),
            counts_gpu_energy: energy.gpu_j.is_some(),
        }
    }

    /// What of it a timing run on `machine` can trust, in the order of a page.
    pub fn findings(&self, machine: &Machine) -> Vec<Finding> {
        let mut findings = vec![
            good(
                "processor",
                format!("{}, {} cores", machine.cpu, machine.cores),
            ),
            self.instruction_set(machine),
            threads(machine),
            self.memory(machine),
            good(
                "copy bandwidth",
                format!("{:.1} GB/s read and written", self.copied_bytes_per_s / 1e9),
            ),
            good(
                "arithmetic rate",
                format!("{:.0} GFLOP/s in 32 bits", self.flops / 1e9),
            ),
            self.clock(),
            self.frequency(),
            self.load(),
        ];
        if let Some(gpu) = &machine.gpu {
            let memory = gib(gpu.memory_bytes);
            findings.push(good(
                "GPU",
                format!("{}, {memory}, driver {}", gpu.name, gpu.driver),
            ));
        }
        findings.push(self.energy(machine));
        findings
    }

    fn instruction_set(&self, machine: &Machine) -> Finding {
        let set = &machine.instruction_set;
        match set.as_str() {
            "portable" => bad(
                "instruction set",
                "portable: this processor has no AVX2".to_owned(),
                "everything works, several times slower; compare speeds with those of other machines by ratios alone",
            ),
            _ => good("instruction set", set.clone()),
        }
    }

    fn memory(&self, machine: &Machine) -> Finding {
        let all = gib(machine.memory_bytes);
        match self.available_bytes {
            Some(free) if free < machine.memory_bytes / 10 => bad(
                "memory",
                format!("{} of {all} free", gib(free)),
                "end what holds the rest: a machine that swaps times its disk",
            ),
            Some(free) => good("memory", format!("{} of {all} free", gib(free))),
            None => good("memory", all),
        }
    }

    fn clock(&self) -> Finding {
        let found = format!("{:.0} ns", self.clock_step_s * 1e9);
        match self.clock_step_s <= FINE_CLOCK_S {
            true => good("timer resolution", found),
            false => bad(
                "timer resolution",
                found,
                "time longer steps: larger batches, a larger model",
            ),
        }
    }

    fn frequency(&self) -> Finding {
        match self.governor.as_deref() {
            Some("performance") => good("frequency governor", "performance".to_owned()),
            Some(other) => bad(
                "frequency governor",
                other.to_owned(),
                "the clock rate follows the load; `cpupower frequency-set -g performance` holds it",
            ),
            None => good(
                "frequency governor",
                "not told here, as in most virtual machines".to_owned(),
            ),
        }
    }

    fn load(&self) -> Finding {
        match self.load_by_others {
            Some(share) if share > QUIET => bad(
                "load by others",
                format!("{:.0}% of the processor", 100.0 * share),
                "end what else runs; blocks of full network and strategy alternate, but intervals get wider",
            ),
            Some(share) => good(
                "load by others",
                format!("{:.0}% of the processor", 100.0 * share),
            ),
            None => good("load by others", "not measured".to_owned()),
        }
    }

    fn energy(&self, machine: &Machine) -> Finding {
        let processor = if self.counts_energy { "processor" } else { "" };
        let gpu = if self.counts_gpu_energy { "GPU" } else { "" };
        let counted: Vec<&str> = [processor, gpu]
            .into_iter()
            .filter(|name| !name.is_empty())
            .collect();
        let needed = self.counts_energy && (machine.gpu.is_none() || self.counts_gpu_energy);
        match (needed, counted.is_empty()) {
            (true, _) => good("energy counters", counted.join(" and ")),
            (false, true) => bad("energy counters", "none".to_owned(), NO_ENERGY),
            (false, false) => bad(
                "energy counters",
                format!("{} alone", counted.join(" and ")),
                NO_ENERGY,
            ),
        }
    }
}

const NO_ENERGY: &str = "energy per token stays empty and is never estimated; on Linux the processor's counter is \
     /sys/class/powercap/intel-rapl:0/energy_uj, which only root may read by default";

fn threads(machine: &Machine) -> Finding {
    let found = format!("{} of {} cores", machine.threads, machine.cores);
    match machine.threads > machine.cores {
        true => bad(
            "threads",
            found,
            "more threads than cores wait for each other; set RAYON_NUM_THREADS",
        ),
        false => good("threads", found),
    }
}

fn good(what: &str, found: String) -> Finding {
    Finding {
        what: what.to_owned(),
        found,
        is_good: true,
        advice: None,
    }
}

fn bad(what: &str, found: String, advice: &str) -> Finding {
    Finding {
        is_good: false,
        advice: Some(advice.to_owned()),
        ..good(what, found)
    }
}

fn gib(bytes: u64) -> String {
    format!("{:.1} GiB", bytes as f64 / (1u64 << 30) as f64)
}

/// The governors of all cores, each once; `cpus`: a folder laid out as the kernel's.
fn governor(cpus: &Path) -> Option<String> {
    let mut found: Vec<String> = std::fs::read_dir(cpus)
        .ok()?
        .flatten()
        .filter_map(|cpu| std::fs::read_to_string(cpu.path().join("cpufreq/scaling_governor")).ok())
        .map(|name| name.trim().to_owned())
        .collect();
    found.sort();
    found.dedup();
    (!found.is_empty()).then(|| found.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::Gpu;

    fn machine() -> Machine {
        Machine {
            host: "node1".to_owned(),
            cpu: "AMD EPYC".to_owned(),
            cores: 2,
            threads: 2,
            instruction_set: "avx2+fma".to_owned(),
            memory_bytes: 16 << 30,
            os: "Linux".to_owned(),
            gpu: None,
        }
    }

    fn checkup() -> Checkup {
        Checkup {
            available_bytes: Some(8 << 30),
            copied_bytes_per_s: 20e9,
            flops: 100e9,
            clock_step_s: 30e-9,
            governor: None,
            load_by_others: Some(0.01),
            counts_energy: true,
            counts_gpu_energy: false,
        }
    }

    fn doubted(checkup: &Checkup, machine: &Machine) -> Vec<String> {
        let findings = checkup.findings(machine).into_iter();
        findings
            .filter(|finding| !finding.is_good)
            .map(|finding| {
                assert!(finding.advice.is_some(), "{finding:?}");
                finding.what
            })
            .collect()
    }

    #[test]
    fn a_quiet_machine_is_trusted() {
        assert!(doubted(&checkup(), &machine()).is_empty());
    }

    #[test]
    fn what_makes_times_doubtful_is_named_with_what_to_do() {
        let poor = Checkup {
            available_bytes: Some(1 << 30),
            clock_step_s: 1e-3,
            governor: Some("powersave".to_owned()),
            load_by_others: Some(0.4),
            counts_energy: false,
            ..checkup()
        };
        let mut slow = machine();
        (slow.threads, slow.instruction_set) = (4, "portable".to_owned());
        assert_eq!(
            doubted(&poor, &slow),
            [
                "instruction set",
                "threads",
                "memory",
                "timer resolution",
                "frequency governor",
                "load by others",
                "energy counters"
            ]
        );
        slow = machine();
        slow.gpu = Some(Gpu {
            name: "H100".to_owned(),
            driver: "1".to_owned(),
            memory_bytes: 1,
        });
        assert_eq!(doubted(&checkup(), &slow), ["energy counters"]);
    }

    #[test]
    fn governors_of_all_cores_are_told() {
        let cpus = tempfile::tempdir().unwrap();
        assert_eq!(governor(cpus.path()), None);
        for (cpu, name) in [
            ("cpu0", "performance\n"),
            ("cpu1", "powersave\n"),
            ("cpu2", "performance\n"),
        ] {
            let folder = cpus.path().join(cpu).join("cpufreq");
            std::fs::create_dir_all(&folder).unwrap();
            std::fs::write(folder.join("scaling_governor"), name).unwrap();
        }
        std::fs::create_dir(cpus.path().join("power")).unwrap();
        assert_eq!(
            governor(cpus.path()).as_deref(),
            Some("performance, powersave")
        );
    }
}
