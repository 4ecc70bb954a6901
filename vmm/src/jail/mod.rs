//! The jail: what is left to this process should its guest take it over (`docs/jail.md`).
//!
//! ```text
//!  enter ─▶ image, VM, vCPU, golden memory ─▶ close ─▶ "ready" ─▶ the claim ─▶ a guest
//!    │                                         │                     └ the database's folder
//!    └ namespaces, an empty root               └ own user, no powers, system calls filtered, threads that may make fewer still
//! ```
//!
//! - [`root`]: namespaces and the root folder; [`folders`]: a database's, handed over by who claims it;
//! - [`landlock`]: what the files there may be used for;
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
pub mod landlock;
pub mod powers;
pub mod refusal;
pub mod root;
pub mod threads;

use std::io;
use std::path::{Path, PathBuf};

pub use calls::ThreadKind;
use folders::Owner;
use root::said;

use crate::image::Image;
use crate::settings::Settings;

/// Of a process that is apart from the host: the user that it becomes, and who root's files are to belong to there.
pub struct Apart {
    pub owner: Option<Owner>,
    user: Option<u32>,
}

/// Leaves the host's file system, if the settings ask for it: from here on `/images` and `/templates` are those of the home. The
/// calling thread must be the only one.
pub fn enter(settings: &Settings) -> io::Result<Option<Apart>> {
    let Some(image) = settings.image.as_ref().filter(|_| settings.jail_root && settings.standby && !settings.no_jail) else {
        return Ok(None);
    };
    let user = settings.jail_uids.map(|first| first.checked_add(std::process::id()).ok_or(io::ErrorKind::InvalidInput));
    let user = user.transpose()?;
    let owner = user.map(Owner::new).transpose().map_err(said("a user of its own"))?;
    let lend = |name: &Path, read_only| folders::lend(&settings.home.join(name), owner.as_ref(), read_only);
    let (image, templates) = (Path::new("images").join(image), PathBuf::from("templates"));
    let mut inside = vec![
        (image.clone(), lend(&image, true).map_err(said("the image"))?),
        (templates.clone(), lend(&templates, true).map_err(said("the templates"))?),
    ];
    if let Some(folder) = settings.share() {
        let at = folder.strip_prefix("/").unwrap_or(folder);
        inside.push((at.to_owned(), lend(folder, false).map_err(said("the shared folder"))?));
    }
    root::enter(&settings.home, inside, settings.jail_network.as_deref())?;
    Ok(Some(Apart { user, owner }))
}

/// Closes the jail around this process, of which the calling thread, the main one, must be the only one yet.
pub fn close(settings: &Settings, image: &Image, apart: Option<&Apart>) -> io::Result<()> {
    powers::give_up(apart.and_then(|apart| apart.user))?;
    landlock::close(settings, image)?;
    refusal::tell()?;
    filter::close()?;
    threads::make_ready()
}
