//! The jail: what is left to this process should its guest take it over (`docs/jail.md`).
//!
//! ```text
//!  enter ─▶ image, VM, vCPU, golden memory ─▶ close ─▶ "ready" ─▶ the claim ─▶ a guest
//!    │                                         │                     └ the database's folders
//!    └ namespaces, an empty root               └ own user, no powers, system calls filtered, threads that may make fewer still
//! ```
//!
//! - [`root`]: namespaces and the root folder; [`folders`]: those of a database, handed over by who claims it;
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
pub mod folders;
pub mod powers;
pub mod refusal;
pub mod root;
pub mod threads;

use std::io;

pub use calls::ThreadKind;
use folders::Owner;

use crate::settings::Settings;

/// Of a process that is apart from the host: the user that it becomes, and who root's files are to belong to there.
pub struct Apart {
    pub owner: Option<Owner>,
    user: Option<u32>,
}

/// Leaves the host's file system, if the settings ask for it. The calling thread must be the only one.
pub fn enter(settings: &Settings) -> io::Result<Option<Apart>> {
    let (Some(first), Some(image)) = (settings.jail_uids, &settings.image) else { return Ok(None) };
    if settings.no_jail || !settings.standby {
        return Ok(None);
    }
    let user = first.checked_add(std::process::id()).ok_or(io::ErrorKind::InvalidInput)?;
    let own = Owner::new(user).and_then(|owner| {
        // Each may lie on a file system of its own.
        for folder in ["databases", "images", "templates"] {
            folders::lend(&settings.home.join(folder), Some(&owner), true)?;
        }
        Ok(owner)
    });
    // File systems that cannot show their files as another's: then an own root has to do.
    let owner = own
        .inspect_err(|error| tracing::warn!(%error, "the VMM keeps its user: files of its home cannot be shown as another's"))
        .ok();
    root::enter(settings, image, owner.as_ref())?;
    Ok(Some(Apart { user: owner.is_some().then_some(user), owner }))
}

/// Closes the jail around this process, of which the calling thread, the main one, must be the only one yet.
pub fn close(apart: Option<&Apart>) -> io::Result<()> {
    powers::give_up(apart.and_then(|apart| apart.user))?;
    refusal::tell()?;
    filter::close()?;
    threads::make_ready()
}
