//! How far a command is, on stderr: a bar on a terminal, and off one a plain line now and then.
//!
//! At most one [`Progress`] is shown at a time. Whatever else writes to stderr goes through [`Stderr`], so that it stands
//! above the bar instead of in it.

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::fmt;
use std::io::{self, IsTerminal, Write};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Between two plain lines.
const INTERVAL: Duration = Duration::from_secs(10);

/// The bar on the terminal.
static SHOWN: Mutex<Option<ProgressBar>> = Mutex::new(None);

/// Steps of a known number.
///
/// A step that takes long has parts: [`part`](Self::part) counts those.
pub(crate) struct Progress {
    bar: ProgressBar,
    state: Mutex<State>,
}

struct State {
    lines: Option<Lines>,
    begun: Instant,
    count: Count,
    message: String,
    part: Option<(&'static str, u64, u64)>,
}

/// What has been done of how much.
#[derive(Clone, Copy)]
struct Count {
    name: &'static str,
    done: u64,
    /// Of these, steps that had been done before.
    skipped: u64,
    total: u64,
}

impl Progress {
    /// Of `total` steps called `name`, as in `cells`.
    pub(crate) fn new(total: u64, name: &'static str) -> Self {
        let style = ProgressStyle::with_template("{prefix} {wide_bar} {pos}/{len} {eta} {msg}");
        let bar = ProgressBar::new(total)
            .with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
            .with_prefix(name);
        *lock(&SHOWN) = Some(bar.clone());
        Self {
            bar,
            state: Mutex::new(State {
                lines: (!io::stderr().is_terminal()).then(Lines::default),
                begun: Instant::now(),
                count: Count {
                    name,
                    done: 0,
                    skipped: 0,
                    total,
                },
                message: String::new(),
                part: None,
            }),
        }
    }

    /// Counts steps that had been done before: they say nothing about how long the others take.
    pub(crate) fn skip(&self, steps: u64) {
        let count = {
            let mut state = lock(&self.state);
            state.count.done += steps;
            state.count.skipped += steps;
            state.count
        };
        self.bar.set_position(count.done);
        self.bar.reset_eta();
    }

    /// What the step under way is about.
    pub(crate) fn set_message(&self, message: impl Into<String>) {
        let message = message.into();
        self.bar.set_message(message.clone());
        let mut state = lock(&self.state);
        state.message = message;
        state.part = None;
    }

    /// Counts finished steps.
    pub(crate) fn inc(&self, steps: u64) {
        self.bar.inc(steps);
        let mut state = lock(&self.state);
        state.count.done += steps;
        state.part = None;
        let Count {
            done,
            total,
            skipped,
            ..
        } = state.count;
        state.say(done == skipped + steps || done >= total);
    }

    /// Of the step under way: `done` of `total` parts called `name`, as in `removals scored`.
    pub(crate) fn part(&self, name: &'static str, done: u64, total: u64) {
        let mut state = lock(&self.state);
        self.bar
            .set_message(format!("{}: {name} {done}/{total}", state.message));
        state.part = Some((name, done, total));
        state.say(false);
    }

    /// Prints with the bar out of the way.
    pub(crate) fn suspend<R>(&self, print: impl FnOnce() -> R) -> R {
        // A log line that `print` writes must not suspend the bar once more: indicatif would wait for itself.
        let shown = lock(&SHOWN).take();
        let result = self.bar.suspend(print);
        *lock(&SHOWN) = shown;
        result
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
        *lock(&SHOWN) = None;
    }
}

impl State {
    /// A plain line, where lines are wanted and one is due.
    fn say(&mut self, important: bool) {
        let now = self.begun.elapsed();
        if let Some(lines) = &mut self.lines
            && lines.is_due(now, important)
        {
            let line = self.line(now);
            // Nobody is left to tell if stderr is gone.
            let _ = writeln!(io::stderr(), "{line}");
        }
    }

    fn line(&self, now: Duration) -> String {
        let mut line = self.count.at(now);
        if !self.message.is_empty() && self.count.done < self.count.total {
            line = format!("{line}; {}", self.message);
        }
        if let Some((name, done, total)) = self.part {
            line = format!("{line}: {name} {done} of {total}");
        }
        line
    }
}

impl Count {
    /// What is done, and what is left if the steps to come take as long as those so far.
    fn at(&self, now: Duration) -> String {
        let Self {
            name, done, total, ..
        } = *self;
        let timed = done.saturating_sub(self.skipped);
        let left = total.saturating_sub(done);
        match (left, timed) {
            (0, _) => format!("{name}: {done} of {total} after {}", Spell(now)),
            (_, 0) => format!("{name}: {done} of {total}"),
            (left, timed) => {
                let rest = now.mul_f64(left as f64 / timed as f64);
                format!("{name}: {done} of {total}, about {} left", Spell(rest))
            }
        }
    }
}

/// When the last line was printed.
#[derive(Default)]
struct Lines {
    last: Option<Duration>,
}

impl Lines {
    fn is_due(&mut self, now: Duration, important: bool) -> bool {
        let due = match self.last {
            Some(last) => now.saturating_sub(last) >= INTERVAL,
            // What is over in no time needs no line but its last.
            None => now >= INTERVAL,
        };
        if due || important {
            self.last = Some(now);
        }
        due || important
    }
}

/// A duration as people say it: `12 s`, `3 min`, `1 h 20 min`.
pub(crate) struct Spell(pub(crate) Duration);

impl fmt::Display for Spell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.0.as_secs_f64().round() as u64;
        let minutes = (self.0.as_secs_f64() / 60.0).round() as u64;
        match (seconds, minutes) {
            (0..90, _) => write!(f, "{seconds} s"),
            (_, 0..90) => write!(f, "{minutes} min"),
            (_, minutes) => match minutes % 60 {
                0 => write!(f, "{} h", minutes / 60),
                rest => write!(f, "{} h {rest} min", minutes / 60),
            },
        }
    }
}

/// Stderr for log lines: the bar steps aside for each.
pub(crate) struct Stderr;

impl Write for Stderr {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let bar = lock(&SHOWN).clone();
        match bar {
            Some(bar) => bar.suspend(|| io::stderr().write(bytes)),
            None => io::stderr().write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush()
    }
}

/// From here on, Ctrl-C and a request to terminate clear the bar, say `words` and end the process with 130 or 143.
pub(crate) fn end_on_signals(words: &'static str) {
    on_signals(move |signal| {
        clear();
        let _ = writeln!(io::stderr(), "{words}");
        end(signal);
    });
}

/// From here on, the first Ctrl-C or request to terminate says `words` and calls `stop`, and the second ends the process with
/// 130 or 143.
pub(crate) fn stop_on_signals(words: &'static str, stop: impl FnOnce() + Send + 'static) {
    let mut stop = Some(stop);
    on_signals(move |signal| match stop.take() {
        Some(stop) => {
            let _ = writeln!(io::stderr(), "{words}");
            stop();
        }
        None => end(signal),
    });
}

/// Calls `each` with SIGINT and SIGTERM. Without a handler a signal ends the process all the same, without a word.
fn on_signals(mut each: impl FnMut(i32) + Send + 'static) {
    #[cfg(unix)]
    {
        use signal_hook::consts::{SIGINT, SIGTERM};
        if let Ok(mut signals) = signal_hook::iterator::Signals::new([SIGINT, SIGTERM]) {
            std::thread::spawn(move || signals.forever().for_each(&mut each));
        }
    }
    #[cfg(not(unix))]
    let _ = &mut each;
}

fn clear() {
    if let Some(bar) = lock(&SHOWN).take() {
        bar.finish_and_clear();
        bar.set_draw_target(ProgressDrawTarget::hidden());
    }
}

fn end(signal: i32) -> ! {
    #[expect(
        clippy::exit,
        reason = "a signal ends the process from whatever it does"
    )]
    std::process::exit(128 + signal)
}

/// From here on this process ends when the one that began it does and lets go of its standard input, however that ends.
pub(crate) fn end_with_parent() {
    std::thread::spawn(|| {
        let _ = io::copy(&mut io::stdin(), &mut io::sink());
        let _ = writeln!(
            io::stderr(),
            "stopped, since the process that began this one has ended"
        );
        #[expect(
            clippy::exit,
            reason = "the work is nobody's any more; what is finished is on the disk"
        )]
        std::process::exit(1);
    });
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn lines_come_at_the_ends_and_now_and_then() {
        let mut lines = Lines::default();
        let due: Vec<u32> = (0..60)
            .filter(|&second| lines.is_due(SECOND * second, second == 3 || second == 59))
            .collect();
        assert_eq!(due, [3, 13, 23, 33, 43, 53, 59]);
        assert!(!Lines::default().is_due(SECOND, false));
    }

    #[test]
    fn steps_done_before_do_not_count_for_what_is_left() {
        let count = |done, skipped| Count {
            name: "cells",
            done,
            skipped,
            total: 112,
        };
        assert_eq!(count(100, 100).at(SECOND), "cells: 100 of 112");
        assert_eq!(
            count(102, 100).at(60 * SECOND),
            "cells: 102 of 112, about 5 min left"
        );
        assert_eq!(
            count(112, 100).at(4800 * SECOND),
            "cells: 112 of 112 after 80 min"
        );
    }

    #[test]
    fn a_line_tells_the_step_and_its_part() {
        let progress = Progress::new(3, "cells");
        progress.set_message("translation sleb@2");
        progress.part("removals scored", 12, 240);
        let line = |progress: &Progress| lock(&progress.state).line(SECOND);
        assert_eq!(
            line(&progress),
            "cells: 0 of 3; translation sleb@2: removals scored 12 of 240"
        );
        progress.inc(1);
        progress.set_message("next");
        assert_eq!(line(&progress), "cells: 1 of 3, about 2 s left; next");
        progress.inc(2);
        assert_eq!(line(&progress), "cells: 3 of 3 after 1 s");
    }

    #[test]
    fn durations_are_spelled_in_the_unit_that_fits() {
        let spell = |seconds| Spell(SECOND * seconds).to_string();
        assert_eq!(
            [0, 89, 90, 3599, 7200, 8000].map(spell),
            ["0 s", "89 s", "2 min", "60 min", "2 h", "2 h 13 min"]
        );
    }
}
