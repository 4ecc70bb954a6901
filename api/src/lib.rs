//! The tenant REST API, the host manager, and the `dormouse` command.
//!
//! See `README.md` beside this crate for the parts and for what they promise. In short: [`settings`] says how,
//! [`metadata`] remembers, [`host`] wakes and suspends, [`http`] answers, [`server`] puts them together with the
//! pooler, and [`cli`] is the command.

pub mod cli;
pub mod crash;
mod front;
pub mod host;
pub mod http;
pub mod identity;
pub mod log;
pub mod metadata;
pub mod secret;
pub mod server;
pub mod settings;

/// Version and build of this program: `0.1.0 (0123456789ab)`.
pub const VERSION: &str = concat!(env!("CARGO_PKG_VERSION"), " (", env!("DORMOUSE_BUILD"), ")");
