//! Landlock: what files may be used for, whatever path leads to them; as much of it as the kernel has, which may be nothing.
//!
//! Two rulesets, each of which only takes away. The first is of the whole process and comes before there are other threads:
//! what nothing here ever does. The second comes with the claim, since only then it is known which folder is the database's;
//! each thread that is there by then takes it on for itself.

use std::fs::DirBuilder;
use std::io;
use std::path::Path;
use std::sync::{Mutex, OnceLock, PoisonError};

use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, PathBeneath, PathFd, PathFdError, Ruleset, RulesetAttr, RulesetCreated,
    RulesetCreatedAttr, RulesetError, Scope, make_bitflags,
};

use crate::image::Image;
use crate::settings::Settings;

/// The newest with rights that are used here; of an older kernel's the others are left out.
pub const KNOWN: ABI = ABI::V6;

/// What is never done: executing, making nodes, opening devices to command them, moving files between folders.
const NEVER: BitFlags<AccessFs> =
    make_bitflags!(AccessFs::{Execute | MakeChar | MakeBlock | MakeFifo | MakeSym | IoctlDev | Refer});
const READ: BitFlags<AccessFs> = make_bitflags!(AccessFs::{ReadFile | ReadDir});
const WRITE: BitFlags<AccessFs> =
    make_bitflags!(AccessFs::{ReadFile | ReadDir | WriteFile | Truncate | MakeReg | MakeDir | RemoveFile | RemoveDir});

/// The second ruleset until it is known whose it is.
static BEGUN: Mutex<Option<RulesetCreated>> = Mutex::new(None);
/// The second ruleset, for threads that do not have it yet.
static WHOLE: OnceLock<RulesetCreated> = OnceLock::new();

fn failed(error: RulesetError) -> io::Error {
    io::Error::other(format!("Landlock: {error}"))
}

/// The version of Landlock that this kernel has; 0 for none.
pub fn version() -> u32 {
    const VERSION: libc::c_uint = 1;
    // SAFETY: asks for a number.
    let version =
        unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, std::ptr::null::<libc::c_void>(), 0, VERSION) };
    u32::try_from(version).unwrap_or(0)
}

/// What is beneath a path, if it is there.
fn beneath(rules: RulesetCreated, path: &Path, rights: BitFlags<AccessFs>) -> io::Result<RulesetCreated> {
    let opened = match PathFd::new(path) {
        Ok(opened) => opened,
        Err(PathFdError::OpenCall { source, .. }) if source.kind() == io::ErrorKind::NotFound => return Ok(rules),
        Err(error) => return Err(io::Error::other(format!("Landlock: {error}"))),
    };
    let rights = if path.is_dir() { rights } else { rights & AccessFs::from_file(KNOWN) };
    rules.add_rule(PathBeneath::new(opened, rights)).map_err(failed)
}

/// Takes from the calling thread, and those that it makes, what no VMM needs, and begins the ruleset of its database.
pub fn close(settings: &Settings, image: &Image) -> io::Result<()> {
    #[cfg(feature = "crash-points")]
    if std::env::var_os("DORMOUSE_WITHOUT_LANDLOCK").is_some() {
        return Ok(());
    }
    let never = Ruleset::default().handle_access(NEVER).map_err(failed)?;
    let never = never.handle_access(AccessNet::from_all(KNOWN)).map_err(failed)?;
    let never = never.scope(Scope::from_all(KNOWN)).map_err(failed)?;
    never.create().and_then(RulesetCreated::restrict_self).map_err(failed)?;

    let mut rules =
        Ruleset::default().handle_access(AccessFs::from_all(KNOWN)).map_err(failed)?.create().map_err(failed)?;
    let parts = [&image.boot.kernel, &image.boot.postgres, &image.boot.archive, &image.template_dir];
    for path in parts.into_iter().chain(&settings.image_dir()).chain([&settings.home.join("templates")]) {
        rules = beneath(rules, path, READ)?;
    }
    for path in settings.golden.as_deref().into_iter().chain(settings.share()).chain(settings.note_pages.as_deref()) {
        DirBuilder::new().recursive(true).create(path)?;
        rules = beneath(rules, path, WRITE)?;
    }
    *BEGUN.lock().unwrap_or_else(PoisonError::into_inner) = Some(rules);
    Ok(())
}

/// From now on the calling thread, and those that it makes, have the image and the templates to read, and the database's folder; and
/// no other file.
pub fn keep_to(database: &Path) -> io::Result<()> {
    let Some(rules) = BEGUN.lock().unwrap_or_else(PoisonError::into_inner).take() else { return Ok(()) };
    let rules = beneath(rules, database, WRITE)?;
    rules.try_clone()?.restrict_self().map_err(failed)?;
    let _ = WHOLE.set(rules);
    Ok(())
}

/// The same for a thread that was there before; nothing where there is no jail, or no Landlock.
pub fn narrow() -> io::Result<()> {
    let Some(rules) = WHOLE.get() else { return Ok(()) };
    rules.try_clone()?.restrict_self().map(drop).map_err(failed)
}
