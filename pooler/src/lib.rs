//! The Postgres wire protocol front of Dormouse: clients connect here, prove their password here, and stay connected
//! here while their database sleeps.
//!
//! ```text
//!  client ──TCP, TLS──▶ login ──▶ forward ◀─VMM.sock──▶ VMM, guest
//!                         │  │        │
//!          password ◀─────┘  └─▶ bind │    one task a client
//!             │ lookup     wake │     │
//!             ▼                 ▼     ▼
//!           Host (the host manager)  registry ◀── Sessions (quiesce, release, suspended, end, drain)
//! ```
//!
//! It promises: nobody wakes a database without its password, but one whose tenant sets passwords in SQL, and that only so
//! often; whether a user or a database exists cannot be found out;
//! no byte of a session is lost, doubled or put out of order by a sleep; a session is either the one it was or ended
//! with FATAL 57P01, never replaced. It refuses: clear text from other machines unless told otherwise, and anything
//! before authentication that is longer than it has to be.
//!
//! The README beside this crate has the states and the settings.

#![cfg_attr(test, allow(clippy::unwrap_used))]

mod bind;
mod buffer;
pub mod certificate;
mod client;
mod farewell;
mod forward;
mod guesses;
mod guest;
mod guest_end;
mod host;
mod keys;
mod login;
pub mod metrics;
mod opening;
mod password;
mod pooler;
mod registry;
mod roles;
mod scram;
pub mod service;
mod session;
mod sessions;
mod settings;
pub mod socket;
mod steps;
mod track;
pub mod verifier;
mod wire;

pub use host::{Availability, Awake, BoxFuture, DatabaseId, Host, HostError, NotADatabaseId, PasswordsSet, Route, WakeError};
pub use metrics::Metrics;
pub use pooler::{Pooler, StartError};
pub use registry::{Active, Busy, SessionCounts};
pub use sessions::Sessions;
pub use settings::{Plain, Settings};
pub use steps::{Step, monotonic_us};
