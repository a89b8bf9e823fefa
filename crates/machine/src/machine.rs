//! What the machine is.

use crate::gpu;
use serde::{Deserialize, Serialize};
use std::fmt;
use sysinfo::System;

/// A processor with what a measurement on it used.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Machine {
    /// Its name in the network: machines of one kind may differ in speed.
    #[serde(default)]
    pub host: String,
    /// Model of the processor.
    pub cpu: String,
    /// Cores that the process may use.
    pub cores: usize,
    /// Threads that the kernels use.
    pub threads: usize,
    /// Instruction set that the kernels use, such as `avx2+fma`.
    pub instruction_set: String,
    /// Memory of the whole machine.
    pub memory_bytes: u64,
    /// Operating system and kernel.
    pub os: String,
    /// The GPU, where one computes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gpu: Option<Gpu>,
}

/// A GPU.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gpu {
    /// Its model.
    pub name: String,
    /// Version of its driver.
    pub driver: String,
    /// Its memory.
    pub memory_bytes: u64,
}

impl Machine {
    /// This machine. `threads` and `instruction_set` are what the kernels use; `use_gpu` says whether a GPU computes.
    pub fn here(threads: usize, instruction_set: &str, use_gpu: bool) -> Self {
        let mut system = System::new();
        system.refresh_memory();
        system.refresh_cpu_all();
        let cpu = system.cpus().first().map_or("", |cpu| cpu.brand()).trim();
        let os = [System::long_os_version(), System::kernel_version()];
        Self {
            host: System::host_name().unwrap_or_default(),
            cpu: match cpu {
                "" => format!("unknown {} processor", std::env::consts::ARCH),
                cpu => cpu.to_owned(),
            },
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            threads,
            instruction_set: instruction_set.to_owned(),
            memory_bytes: system.total_memory(),
            os: os
                .into_iter()
                .flatten()
                .collect::<Vec<_>>()
                .join(", kernel "),
            gpu: use_gpu.then(gpu::describe).flatten(),
        }
    }

    /// What makes times of `self` and `other` differ, each as `threads 2, not 4`; empty where times of both stand side by
    /// side. Memory and the operating system are not counted: an update changes them in passing.
    pub fn differences(&self, other: &Self) -> Vec<String> {
        let gpu = |machine: &Self| match &machine.gpu {
            Some(gpu) => format!("{} (driver {})", gpu.name, gpu.driver),
            None => "none".to_owned(),
        };
        let facts = |machine: &Self| {
            [
                ("host", machine.host.clone()),
                ("processor", machine.cpu.clone()),
                ("cores", machine.cores.to_string()),
                ("threads", machine.threads.to_string()),
                ("instruction set", machine.instruction_set.clone()),
                ("GPU", gpu(machine)),
            ]
        };
        std::iter::zip(facts(self), facts(other))
            .filter(|(here, there)| here != there)
            .map(|((fact, here), (_, there))| format!("{fact} {here}, not {there}"))
            .collect()
    }
}

impl fmt::Display for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let gib = |bytes: u64| bytes as f64 / (1u64 << 30) as f64;
        let plural = |count: usize| if count == 1 { "" } else { "s" };
        if let Some(gpu) = &self.gpu {
            let memory = gib(gpu.memory_bytes);
            write!(
                f,
                "{}, {memory:.0} GiB, driver {}; host ",
                gpu.name, gpu.driver
            )?;
        }
        write!(
            f,
            "{}, {} core{}, {} thread{}, {}, {:.0} GiB",
            self.cpu,
            self.cores,
            plural(self.cores),
            self.threads,
            plural(self.threads),
            self.instruction_set,
            gib(self.memory_bytes)
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn machine() -> Machine {
        Machine {
            host: "node1".to_owned(),
            cpu: "AMD EPYC 7B13".to_owned(),
            cores: 2,
            threads: 1,
            instruction_set: "avx2+fma".to_owned(),
            memory_bytes: 23 << 30,
            os: "Linux".to_owned(),
            gpu: None,
        }
    }

    #[test]
    fn a_line_says_what_it_is() {
        let mut machine = machine();
        let line = "AMD EPYC 7B13, 2 cores, 1 thread, avx2+fma, 23 GiB";
        assert_eq!(machine.to_string(), line);
        machine.gpu = Some(Gpu {
            name: "NVIDIA H100".to_owned(),
            driver: "570.1".to_owned(),
            memory_bytes: 80 << 30,
        });
        let gpu = "NVIDIA H100, 80 GiB, driver 570.1";
        assert_eq!(machine.to_string(), format!("{gpu}; host {line}"));
    }

    #[test]
    fn only_what_changes_a_time_makes_a_difference() {
        let here = machine();
        let mut other = machine();
        (other.os, other.memory_bytes) = ("Linux, updated".to_owned(), 1);
        assert!(here.differences(&other).is_empty());
        other.threads = 4;
        other.instruction_set = "avx512f+fma".to_owned();
        assert_eq!(
            here.differences(&other),
            [
                "threads 1, not 4",
                "instruction set avx2+fma, not avx512f+fma"
            ]
        );
    }

    #[test]
    fn this_machine_is_described_and_read_back() {
        let here = Machine::here(3, "portable", false);
        assert!(here.cores > 0 && here.memory_bytes > 0);
        assert!(!here.cpu.is_empty() && !here.os.is_empty());
        assert_eq!((here.threads, here.gpu.clone()), (3, None));
        let text = serde_json::to_string(&here).unwrap();
        assert_eq!(serde_json::from_str::<Machine>(&text).unwrap(), here);
    }
}
