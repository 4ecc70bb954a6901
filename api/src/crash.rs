//! Named steps at which a test has the server kill itself, as a crash would.
//!
//! Without the cargo feature `crash-points`, which no shipped build has, a step is nothing at all. The VMM's steps are its
//! own (`dormouse_vmm::crash`).

use std::time::Duration;

use crate::host::State;

/// Steps in order, by what is under way.
pub const STEPS: &[&str] = &[
    // A create: in its transaction, on disk, told to the listeners.
    "create-written",
    "create-committed",
    "create-announced",
    // A first wake, beside the steps of any wake.
    "folders-made",
    "folders-flushed",
    "folders-noted",
    // A wake. "Offered": the pooler may bind the held sessions already; "bound": it is told that the guest runs.
    "wake-begun",
    "resuming-noted",
    "wake-turn-taken",
    "wake-lent",
    "wake-claimed",
    "wake-recorded",
    "wake-offered",
    "wake-connected",
    "wake-ready",
    "wake-bound",
    "wake-answered",
    "running-noted",
    // A suspend. "Gone": the process.
    "suspend-quiesced",
    "suspend-asked",
    "suspending-noted",
    "suspend-answered",
    "suspend-told",
    "suspend-gone",
    "suspended-noted",
    // A delete.
    "delete-marked",
    "delete-ended",
    "delete-files-removed",
    "delete-row-removed",
    // The start after a crash.
    "takeover-begun",
    "takeover-reached",
    "takeover-adopted",
    "takeover-killed",
    "takeover-vms-settled",
    "takeover-deleted",
    "takeover-rested",
    "takeover-done",
];

/// Kills the process if `DORMOUSE_CRASH_AT` names this step.
#[cfg(feature = "crash-points")]
pub(crate) fn point(step: &'static str) {
    debug_assert!(STEPS.contains(&step));
    if std::env::var_os("DORMOUSE_CRASH_AT").is_some_and(|at| at == step) {
        // SAFETY: kills this process; nothing of it goes on.
        unsafe { libc::kill(libc::getpid(), libc::SIGKILL) };
        loop {
            std::thread::park();
        }
    }
}

/// Nothing.
#[cfg(not(feature = "crash-points"))]
#[inline(always)]
pub(crate) fn point(_step: &'static str) {}

/// The steps at which states have been written.
#[cfg(feature = "crash-points")]
pub(crate) fn noted(states: impl Iterator<Item = State>) {
    for state in states {
        match state {
            State::Resuming => point("resuming-noted"),
            State::Running => point("running-noted"),
            State::Suspending => point("suspending-noted"),
            State::Suspended => point("suspended-noted"),
            _ => {}
        }
    }
}

/// How long states gather before they are written: not at all where each is to be.
#[cfg(feature = "crash-points")]
pub(crate) fn gathered(time: Duration) -> Duration {
    let each = std::env::var("DORMOUSE_CRASH_AT").is_ok_and(|at| at.ends_with("-noted"));
    if each { Duration::ZERO } else { time }
}

/// As long as that.
#[cfg(not(feature = "crash-points"))]
#[inline(always)]
pub(crate) fn gathered(time: Duration) -> Duration {
    time
}

/// Nothing.
#[cfg(not(feature = "crash-points"))]
#[inline(always)]
pub(crate) fn noted(_states: impl Iterator<Item = State>) {}
