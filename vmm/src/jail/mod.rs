//! The jail: what is left to this process should its guest take it over (`docs/jail.md`).
//!
//! ```text
//!  image, VM, vCPU, golden memory ─▶ close ─▶ "ready" ─▶ the claim ─▶ a guest
//!                                      │
//!                powers given up, system calls filtered, threads made that may make fewer still
//! ```
//!
//! - [`powers`]: capabilities, privileges, limits;
//! - [`calls`]: the table of system calls, by thread; [`filter`]: the seccomp programs made of it;
//! - [`refusal`]: what is said of a call that is refused, and the end that follows;
//! - [`threads`]: threads that close their own jail before they are needed.
//!
//! Promises: from [`close`] on no thread gets back what it gave up, and a call that is not in the table does not happen.
//! Refuses: to go on where a part of it fails that every kernel since 4.14 has.

#[cfg(feature = "crash-points")]
pub mod attempts;
pub mod calls;
pub mod filter;
pub mod powers;
pub mod refusal;
pub mod threads;

use std::io;

pub use calls::ThreadKind;

/// Closes the jail around this process, of which the calling thread, the main one, must be the only one yet.
pub fn close() -> io::Result<()> {
    powers::give_up()?;
    refusal::tell()?;
    filter::close()?;
    threads::make_ready()
}
