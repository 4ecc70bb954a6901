//! Named steps at which a test has the process kill itself, as a crash of the host would.
//!
//! Without the cargo feature `crash-points`, which no shipped build has, a step is nothing at all.

/// Steps of suspend and restore, of packing and of a wake from packed, in order.
pub const STEPS: &[&str] = &[
    "suspend-begun",
    "suspend-flushed",
    "suspend-written",
    "suspend-synced",
    "suspend-renamed",
    "suspend-committed",
    "restore-begun",
    "restore-loaded",
    "spend-begun",
    "spent-renamed",
    "spent",
    "restore-entered",
    "pack-written",
    "pack-renamed",
    "pack-snapshot-gone",
    "pack-layer-gone",
    "unpack-begun",
    "unpack-files",
    "unpack-synced",
    "unpack-spent",
];

/// Kills the process if `DORMOUSE_CRASH_AT` names this step; takes 300 ms for it if `DORMOUSE_STALL_AT` does, for
/// tests of what goes on beside it.
#[cfg(feature = "crash-points")]
pub fn point(step: &'static str) {
    debug_assert!(STEPS.contains(&step));
    if std::env::var_os("DORMOUSE_STALL_AT").is_some_and(|at| at == step) {
        std::thread::sleep(std::time::Duration::from_millis(300));
    }
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
pub fn point(_step: &'static str) {}
