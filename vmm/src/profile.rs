//! What a running guest costs: exits by reason, and where its time goes.
//!
//! Exits are always counted. A profile is taken on request (`docs/interfaces.md`, `profile`): a timer on the vCPU
//! thread's own CPU clock takes it out of the guest, and the instruction it was at is noted. Only samples that find the
//! thread in the guest count; what the host does for the guest, `perf` sees.

use std::collections::HashMap;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};

use dormouse_abi::{KERNEL, KERNEL_LEN, TEXT};
use serde_json::{Map, Value, json};

use crate::symbols::{Programs, Symbols};

/// Why the guest was left.
#[derive(Clone, Copy, Debug)]
#[repr(usize)]
pub enum Reason {
    /// NOTIFY with file requests.
    Files,
    /// NOTIFY with socket packets.
    Sockets,
    /// NOTIFY of any other queue.
    Devices,
    Halt,
    /// A kick or another signal.
    Signal,
    /// The event interrupt was injected at an entry: no exit, but as dear as one.
    Event,
}

const NAMES: [&str; 6] = ["files", "sockets", "devices", "halt", "signal", "event"];

/// Counts and samples of one guest; the vCPU thread writes, `VMM.ctl` reads.
#[derive(Default)]
pub struct Profile {
    exits: [AtomicU64; NAMES.len()],
    on: AtomicBool,
    samples: Mutex<HashMap<u64, u64>>,
    timer: Mutex<Option<Timer>>,
    programs: OnceLock<Programs>,
}

impl Profile {
    /// Where the names of the guest's functions are.
    pub fn set_programs(&self, programs: Programs) {
        let _ = self.programs.set(programs);
    }

    pub fn count(&self, reason: Reason) {
        self.exits[reason as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// Exits by reason, since this process began.
    pub fn exits(&self) -> Value {
        let counts = NAMES.iter().zip(&self.exits).map(|(name, count)| ((*name).to_owned(), json!(count.load(Ordering::Relaxed))));
        Value::Object(counts.collect::<Map<_, _>>())
    }

    /// Samples are wanted.
    pub fn is_on(&self) -> bool {
        self.on.load(Ordering::Relaxed)
    }

    /// The guest was at `rip`.
    pub fn sample(&self, rip: u64) {
        *self.samples.lock().unwrap_or_else(PoisonError::into_inner).entry(rip).or_default() += 1;
    }

    /// Begins to take `hz` samples in each second of CPU time of the thread, by a signal to it.
    pub fn start(&self, thread: (libc::pthread_t, libc::pid_t), signal: libc::c_int, hz: u32) -> io::Result<()> {
        let timer = Timer::start(thread, signal, hz)?;
        self.samples.lock().unwrap_or_else(PoisonError::into_inner).clear();
        *self.timer.lock().unwrap_or_else(PoisonError::into_inner) = Some(timer);
        self.on.store(true, Ordering::Relaxed);
        Ok(())
    }

    /// Ends it: samples by function, most first.
    pub fn stop(&self) -> Value {
        self.on.store(false, Ordering::Relaxed);
        *self.timer.lock().unwrap_or_else(PoisonError::into_inner) = None;
        let samples = std::mem::take(&mut *self.samples.lock().unwrap_or_else(PoisonError::into_inner));
        let mut symbols = self.programs.get().cloned().map(Symbols::new);
        let mut functions: HashMap<String, u64> = HashMap::new();
        for (rip, count) in &samples {
            *functions.entry(function(symbols.as_mut(), *rip)).or_default() += count;
        }
        let mut functions: Vec<(String, u64)> = functions.into_iter().collect();
        functions.sort_unstable_by(|one, other| other.1.cmp(&one.1).then_with(|| one.0.cmp(&other.0)));
        json!({"ok": true, "samples": samples.values().sum::<u64>(), "functions": functions})
    }
}

/// The function at a guest address, as `kernel NAME` or `postgres NAME`.
fn function(symbols: Option<&mut Symbols>, rip: u64) -> String {
    let line = if (KERNEL..KERNEL + KERNEL_LEN).contains(&rip) {
        format!("kernel {rip:#x}")
    } else if rip >= TEXT {
        format!("postgres {rip:#x}")
    } else {
        return format!("ring 0 {rip:#x}");
    };
    let named = symbols.map(|symbols| symbols.annotate(line.as_bytes())).and_then(|line| String::from_utf8(line).ok());
    match named.as_deref().and_then(|named| named.split_once("  ")) {
        Some((place, name)) => {
            let program = place.split(' ').next().unwrap_or_default();
            format!("{program} {}", name.rsplit_once('+').map_or(name, |(name, _)| name))
        }
        None => line,
    }
}

/// A timer on a thread's CPU clock that signals that thread.
struct Timer(libc::timer_t);

// SAFETY: a timer id may be used by any thread of the process.
unsafe impl Send for Timer {}

impl Timer {
    fn start((thread, id): (libc::pthread_t, libc::pid_t), signal: libc::c_int, hz: u32) -> io::Result<Self> {
        let mut clock = 0;
        // SAFETY: the vCPU thread outlives the profile, which the monitor holds; `clock` is written by the call.
        let error = unsafe { libc::pthread_getcpuclockid(thread, &raw mut clock) };
        if error != 0 {
            return Err(io::Error::from_raw_os_error(error));
        }
        // SAFETY: an all-zero sigevent is a valid one.
        let mut event: libc::sigevent = unsafe { std::mem::zeroed() };
        event.sigev_notify = libc::SIGEV_THREAD_ID;
        event.sigev_signo = signal;
        event.sigev_notify_thread_id = id;
        let mut id = std::ptr::null_mut();
        // SAFETY: both pointers are to values that outlive the call.
        if unsafe { libc::timer_create(clock, &raw mut event, &raw mut id) } < 0 {
            return Err(io::Error::last_os_error());
        }
        let timer = Self(id);
        let period = libc::timespec { tv_sec: 0, tv_nsec: 1_000_000_000 / i64::from(hz.clamp(2, 10_000)) };
        let every = libc::itimerspec { it_interval: period, it_value: period };
        // SAFETY: the id was just made; the argument outlives the call.
        if unsafe { libc::timer_settime(timer.0, 0, &every, std::ptr::null_mut()) } < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(timer)
    }
}

impl Drop for Timer {
    fn drop(&mut self) {
        // SAFETY: the id is this timer's, deleted once.
        unsafe { libc::timer_delete(self.0) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_counted_by_program() {
        let profile = Profile::default();
        for rip in [KERNEL + 0x10, KERNEL + 0x10, TEXT + 0x1234, 0x20_1000] {
            profile.sample(rip);
        }
        assert_eq!(
            profile.stop(),
            json!({"ok": true, "samples": 4, "functions": [
                ["kernel 0x400010", 2], ["postgres 0x801234", 1], ["ring 0 0x201000", 1]]})
        );
        assert_eq!(profile.stop()["samples"], 0, "a profile is told once");
    }

    #[test]
    fn exits_are_counted_by_reason() {
        let profile = Profile::default();
        profile.count(Reason::Halt);
        profile.count(Reason::Halt);
        profile.count(Reason::Files);
        assert_eq!(
            profile.exits(),
            json!({"files": 1, "sockets": 0, "devices": 0, "halt": 2, "signal": 0, "event": 0})
        );
    }
}
