//! What makes Dormouse's numbers, and the harness under its integration tests.
//!
//! ```text
//!  wake · pgbench · footprint · smoke          one file a sub-command
//!        │
//!  rest ─┼─ client ── message, scram   REST and PostgreSQL's protocol, raw on both sides
//!        └─ native                     PostgreSQL of `make oracle`, the yardstick
//! ```
//!
//! It promises that every figure it prints was measured in that run, against a server that anyone can start,
//! with the machine and the command beside it; that a database timed as asleep was asleep (the API says so and
//! its process is gone); and that comparisons with native PostgreSQL are of the same version in the same run.
//! It refuses to print a figure for a series that failed.

pub mod client;
pub mod footprint;
pub mod http;
pub mod machine;
pub mod message;
pub mod native;
pub mod patience;
pub mod pgbench;
pub mod report;
pub mod rest;
pub mod scram;
pub mod smoke;
pub mod stats;
pub mod wake;
