//! The tenant REST API, the host manager, and the `dormouse` command.
//!
//! See `README.md` beside this crate for the parts and for what they promise. In short: [`settings`] says how,
//! [`metadata`] remembers, [`host`] wakes and suspends, [`http`] answers, [`server`] puts them together with the
//! pooler, and [`cli`] is the command.

pub mod host;
pub mod http;
pub mod identity;
pub mod metadata;
pub mod secret;
pub mod settings;
