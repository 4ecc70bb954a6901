//! What makes Dormouse's numbers, and the harness under its integration tests.
//!
//! ```text
//!  wake · speed · steady · footprint · smoke · scale   one file or folder a sub-command
//!        │
//!  rest ─┼─ client ── message, scram   REST and PostgreSQL's protocol, raw on both sides
//!   vm ──┼─ native ── pgbouncer        PostgreSQL of `make oracle`, the yardstick, and its pooler
//!        └─ pgbench · cpu              PostgreSQL's own load, and what it costs
//! ```
//!
//! It promises that every figure it prints was measured in that run, against a server that anyone can start,
//! with the machine and the command beside it; that a database timed as asleep was asleep (the API says so and
//! its process is gone); and that comparisons with native PostgreSQL are of the same version in the same run.
//! It refuses to print a figure for a series that failed.

pub mod client;
pub mod cpu;
pub mod footprint;
pub mod http;
pub mod machine;
pub mod message;
pub mod native;
pub mod patience;
pub mod pgbench;
pub mod pgbouncer;
pub mod plot;
pub mod port;
pub mod report;
pub mod rest;
pub mod scale;
pub mod scram;
pub mod smoke;
pub mod speed;
pub mod stats;
pub mod steady;
mod tls;
pub mod trace;
pub mod used;
pub mod vm;
pub mod wake;
