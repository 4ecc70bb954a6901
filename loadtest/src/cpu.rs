//! CPU time as the kernel counts it, in ticks of 10 ms: of processes, of single threads, and of the whole machine.

use std::fs;
use std::ops::{Add, Sub};
use std::time::Duration;

/// CPU time in user mode (a guest's included) and in the kernel.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Cpu {
    pub user: Duration,
    pub system: Duration,
}

impl Cpu {
    pub fn total(self) -> Duration {
        self.user + self.system
    }
}

impl Add for Cpu {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            user: self.user + other.user,
            system: self.system + other.system,
        }
    }
}

impl Sub for Cpu {
    type Output = Self;

    /// What came since `earlier`; never less than nothing, for processes come and go.
    fn sub(self, earlier: Self) -> Self {
        Self {
            user: self.user.saturating_sub(earlier.user),
            system: self.system.saturating_sub(earlier.system),
        }
    }
}

/// What `/proc/PID/stat` says.
struct Stat {
    parent: u32,
    own: Cpu,
    /// Of its children that have ended and were waited for.
    reaped: Cpu,
}

impl Stat {
    fn read(path: &str) -> Option<Self> {
        Self::parse(&fs::read_to_string(path).ok()?)
    }

    fn parse(line: &str) -> Option<Self> {
        // The name, in parentheses, may hold anything.
        let fields: Vec<&str> = line.rsplit_once(')')?.1.split_ascii_whitespace().collect();
        let cpu = |first: usize| {
            Some(Cpu {
                user: ticks(fields.get(first)?)?,
                system: ticks(fields.get(first + 1)?)?,
            })
        };
        Some(Self {
            parent: fields.get(1)?.parse().ok()?,
            own: cpu(11)?,
            reaped: cpu(13)?,
        })
    }
}

fn ticks(text: &str) -> Option<Duration> {
    // SAFETY: asks for a number.
    let a_second = unsafe { libc::sysconf(libc::_SC_CLK_TCK) };
    let ticks: u64 = text.parse().ok()?;
    Some(Duration::from_micros(
        ticks * 1_000_000 / u64::try_from(a_second).ok()?.max(1),
    ))
}

/// A process with all its threads; nothing once it has ended.
pub fn of_process(pid: u32) -> Cpu {
    Stat::read(&format!("/proc/{pid}/stat")).map_or(Cpu::default(), |stat| stat.own)
}

/// A process' first thread.
pub fn of_main_thread(pid: u32) -> Cpu {
    Stat::read(&format!("/proc/{pid}/task/{pid}/stat")).map_or(Cpu::default(), |stat| stat.own)
}

/// A process with its children, those that have ended included.
pub fn of_family(pid: u32) -> Cpu {
    let Some(root) = Stat::read(&format!("/proc/{pid}/stat")) else {
        return Cpu::default();
    };
    children(pid)
        .into_iter()
        .fold(root.own + root.reaped, |sum, child| sum + of_process(child))
}

/// The living children of a process.
pub fn children(parent: u32) -> Vec<u32> {
    let Ok(entries) = fs::read_dir("/proc") else {
        return Vec::new();
    };
    entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok())
        .filter(|pid| {
            Stat::read(&format!("/proc/{pid}/stat")).is_some_and(|stat| stat.parent == parent)
        })
        .collect()
}

/// Programs that this process has run to their end.
pub fn of_finished_children() -> Cpu {
    // SAFETY: rusage is plain data, and the call fills it.
    let usage = unsafe {
        let mut usage: libc::rusage = std::mem::zeroed();
        libc::getrusage(libc::RUSAGE_CHILDREN, &raw mut usage);
        usage
    };
    let duration = |time: libc::timeval| {
        Duration::from_secs(u64::try_from(time.tv_sec).unwrap_or(0))
            + Duration::from_micros(u64::try_from(time.tv_usec).unwrap_or(0))
    };
    Cpu {
        user: duration(usage.ru_utime),
        system: duration(usage.ru_stime),
    }
}

/// All that the machine's CPUs did since it was started.
pub fn of_machine() -> Duration {
    machine(&fs::read_to_string("/proc/stat").unwrap_or_default()).unwrap_or_default()
}

fn machine(stat: &str) -> Option<Duration> {
    let fields: Vec<_> = stat
        .lines()
        .next()?
        .strip_prefix("cpu ")?
        .split_ascii_whitespace()
        .collect();
    // user, nice, system; idle, iowait; irq, softirq. A guest's time is part of user.
    [0, 1, 2, 5, 6]
        .iter()
        .map(|field| ticks(fields.get(*field)?))
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_a_process_whatever_its_name() {
        let line = "77 (a) b (c) S 12 77 77 0 -1 4194304 1 2 3 4 150 25 1000 7 20 0 1 0 9 9 9";
        let stat = Stat::parse(line).unwrap();
        assert_eq!(stat.parent, 12);
        assert_eq!(stat.own.total(), ticks("175").unwrap());
        assert_eq!(stat.reaped.system, ticks("7").unwrap());
        assert!(Stat::parse("77 (a) S 12").is_none());
    }

    #[test]
    fn idle_time_is_not_work() {
        let stat = "cpu  100 10 20 9999 9999 3 4 0 50 0\ncpu0 1 1 1\n";
        assert_eq!(machine(stat), ticks("137"));
        assert_eq!(machine(""), None);
    }

    #[test]
    fn counts_what_a_child_did() {
        let before = (of_family(std::process::id()), of_finished_children());
        let status = std::process::Command::new("sh")
            .args(["-c", "i=0; while [ $i -lt 200000 ]; do i=$((i+1)); done"])
            .status()
            .unwrap();
        assert!(status.success());
        let spent = (of_finished_children() - before.1).total();
        assert!(spent > Duration::from_millis(20), "{spent:?}");
        let family = (of_family(std::process::id()) - before.0).total();
        assert!(
            family + Duration::from_millis(30) > spent,
            "{family:?} {spent:?}"
        );
    }
}
