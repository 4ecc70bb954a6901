//! The virtual machine monitor: one process per awake database.
//!
//! ```text
//! VMM.sock, VMM.ctl ──▶ monitor ◀──────────────▶ guest ──▶ machine (KVM, one vCPU)
//!                       sessions, control        doorbell      ▲
//!                       virtio::vsock            virtio::{files, rng, console}
//!                                                  │           │
//!                                 layer ◀── fs ◀───┘       boot │ snapshot
//! ```
//!
//! - [`settings`], [`image`], [`start`], [`standby`]: from the command line to a running guest;
//! - [`jail`]: what the process gives up before it has a guest;
//! - [`machine`]: KVM; [`boot`]: the cold start; [`snapshot`] and [`sleep`]: suspend and restore; [`pack`]: packed
//!   sleep;
//! - [`guest`]: the vCPU thread; [`monitor`]: what it shares with the I/O thread; [`reactor`]: what both wait on;
//! - [`watchdog`], [`tasks`]: whether the guest goes on, and what it is doing;
//! - [`virtio`]: the devices; [`sessions`], [`control`]: the two sockets;
//! - [`fs`] and [`layer`]: the data directory.
//!
//! Promises: a guest's memory, once suspended, is used once, and never with a data directory it does not belong
//! to; a guest can harm nobody but itself. Refuses: a layer that another VMM has, a host without KVM.
#![cfg_attr(not(test), warn(clippy::unwrap_used))]

pub mod boot;
pub mod clock;
pub mod codec;
pub mod control;
pub mod crash;
pub mod fs;
pub mod guest;
mod heap;
pub mod image;
pub mod jail;
pub mod layer;
pub mod machine;
mod mapped;
pub mod monitor;
pub mod pack;
pub mod profile;
pub mod reactor;
pub mod reclaim;
pub mod sessions;
pub mod settings;
pub mod shared;
pub mod sleep;
pub mod snapshot;
pub mod sockets;
pub mod standby;
pub mod start;
pub mod symbols;
pub mod tasks;
pub mod virtio;
pub mod watchdog;

use std::ffi::OsString;
use std::io::{self, Write};
use std::process::ExitCode;
use std::time::Instant;

use clap::Parser;

/// The whole program: reads `args` (the first is the program's name), runs the guest, and returns the exit status
/// of `docs/interfaces.md`.
pub fn main(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let started = Instant::now();
    let settings = match settings::Settings::try_parse_from(args) {
        Ok(settings) => settings,
        Err(error) => {
            let _ = error.print();
            return if error.use_stderr() { ExitCode::from(64) } else { ExitCode::SUCCESS };
        }
    };
    log_to_stderr();
    let result = start::run(&settings, started);
    match &result {
        Ok(end) => tracing::info!(?end, "the guest has left"),
        Err(error) => tracing::error!(error = %error, "the database cannot go on"),
    }
    start::exit_code(&result)
}

/// Standard error, whose errors are nobody's: a log that can't be written, on a full disk say, must not end a database.
struct Log;

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let _ = io::stderr().write_all(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// One JSON object a line; `DORMOUSE_LOG` sets the level.
fn log_to_stderr() {
    let filter =
        tracing_subscriber::EnvFilter::try_from_env("DORMOUSE_LOG").unwrap_or_else(|_| "info".into());
    let _ = tracing_subscriber::fmt()
        .json()
        .with_env_filter(filter)
        .with_writer(|| Log)
        // It would tell of them by eprintln!, to the same file, and panic.
        .log_internal_errors(false)
        .try_init();
}
