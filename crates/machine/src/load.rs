//! What else the processor did meanwhile.

use std::path::{Path, PathBuf};

/// Ticks of all cores below which a share would be mostly rounding; a tick is 10 ms of one core.
const FEWEST_TICKS: u64 = 50;

/// Measures how much of the machine's processor time other work took, from when it is started.
#[derive(Debug)]
pub struct LoadMeter {
    proc: PathBuf,
    start: Option<Ticks>,
}

/// Processor time of all cores since the machine was started.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Ticks {
    /// Idle time included.
    all: u64,
    idle: u64,
    /// Of this process.
    own: u64,
}

impl LoadMeter {
    /// Starts now.
    pub fn start() -> Self {
        Self::of(Path::new("/proc"))
    }

    fn of(proc: &Path) -> Self {
        Self {
            proc: proc.to_owned(),
            start: read(proc),
        }
    }

    /// Share of the processor time of all cores, since the start, that neither was idle nor went to this process: other
    /// processes, the kernel's own work, and other virtual machines on the same cores. `None` off Linux and for spans too
    /// short to tell (a quarter of a second on two cores).
    pub fn others(&self) -> Option<f64> {
        let (start, end) = (self.start?, read(&self.proc)?);
        let since = |of: fn(&Ticks) -> u64| of(&end).saturating_sub(of(&start));
        let all = since(|ticks| ticks.all);
        let others = all
            .saturating_sub(since(|ticks| ticks.idle))
            .saturating_sub(since(|ticks| ticks.own));
        (all >= FEWEST_TICKS).then(|| others as f64 / all as f64)
    }
}

fn read(proc: &Path) -> Option<Ticks> {
    let machine = std::fs::read_to_string(proc.join("stat")).ok()?;
    let process = std::fs::read_to_string(proc.join("self/stat")).ok()?;
    parse(&machine, &process)
}

/// From the text of `/proc/stat` and `/proc/self/stat` (proc(5)).
fn parse(machine: &str, process: &str) -> Option<Ticks> {
    let line = machine.lines().find_map(|line| line.strip_prefix("cpu "))?;
    // user, nice, system, idle, iowait, irq, softirq, steal; what follows is part of user and nice.
    let times: Vec<u64> = line
        .split_ascii_whitespace()
        .take(8)
        .map(|ticks| ticks.parse().ok())
        .collect::<Option<_>>()?;
    // The name of the process stands in parentheses and may hold spaces.
    let (_, fields) = process.rsplit_once(')')?;
    let mut used = fields.split_ascii_whitespace().skip(11);
    let mut next = || used.next()?.parse::<u64>().ok();
    Some(Ticks {
        all: times.iter().sum(),
        idle: times.get(3)? + times.get(4)?,
        own: next()? + next()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(proc: &Path, machine: &str, process: &str) {
        std::fs::create_dir_all(proc.join("self")).unwrap();
        std::fs::write(proc.join("stat"), machine).unwrap();
        std::fs::write(proc.join("self/stat"), process).unwrap();
    }

    fn process(user: u64, system: u64) -> String {
        format!("7 (a ) b) S 1 7 7 0 -1 4 9 9 9 9 {user} {system} 80 90 20 0 4 0 55")
    }

    #[test]
    fn others_are_all_but_idle_and_own() {
        let proc = tempfile::tempdir().unwrap();
        let at = |machine, user, system| write(proc.path(), machine, &process(user, system));
        at("cpu  100 0 50 800 50 0 0 0 0 0\ncpu0 1 2 3 4\n", 70, 20);
        let meter = LoadMeter::of(proc.path());
        at("cpu  400 10 90 1300 100 10 10 80 5 0\n", 270, 40);
        // 1000 ticks: 550 idle, 220 own.
        assert_eq!(meter.others(), Some(0.23));
    }

    #[test]
    fn what_cannot_be_told_is_absent() {
        let proc = tempfile::tempdir().unwrap();
        assert_eq!(LoadMeter::of(proc.path()).others(), None);
        write(proc.path(), "cpu  1 2 3 4 5 6 7 8\n", &process(1, 1));
        let meter = LoadMeter::of(proc.path());
        assert_eq!(meter.others(), None, "no time has passed");
        write(proc.path(), "cpu  1 2 x\n", &process(1, 1));
        assert_eq!(meter.others(), None);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn this_machine_tells() {
        assert!(read(Path::new("/proc")).is_some());
    }
}
