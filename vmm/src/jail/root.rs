//! A root folder with the image and the templates in it, to be read, and nothing else; and namespaces in which there is
//! nothing else either.

use std::ffi::CString;
use std::fs::{self, File, Permissions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use super::folders::{self, Owner};
use crate::settings::Settings;

fn check(result: libc::c_long) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn said(what: &str) -> impl Fn(io::Error) -> io::Error {
    move |error| io::Error::new(error.kind(), format!("{what}: {error}"))
}

/// Leaves the host's file system, network, message queues, names and control groups. From here on `/images` and `/templates`
/// are those of `home`.
///
/// The network is one that all VMMs share, with nothing in it: each of its own would cost 170 KiB and half a millisecond,
/// and without a socket there is nothing to meet on it.
pub fn enter(settings: &Settings, image: &str, owner: Option<&Owner>) -> io::Result<()> {
    let home = &settings.home;
    let lend = |name: &Path| folders::lend(&home.join(name), owner, true);
    let mut lent = vec![
        (Path::new("images").join(image), lend(&Path::new("images").join(image)).map_err(said("the image"))?),
        (Path::new("templates").to_owned(), lend(Path::new("templates")).map_err(said("the templates"))?),
    ];
    if let Some(folder) = settings.share() {
        let inside = folder.strip_prefix("/").unwrap_or(folder);
        lent.push((inside.to_owned(), folders::lend(folder, owner, false).map_err(said("the shared folder"))?));
    }
    if let Some(network) = &settings.jail_network {
        let network = File::open(network).map_err(said("the network"))?;
        // SAFETY: takes integers.
        check(unsafe { libc::setns(network.as_raw_fd(), libc::CLONE_NEWNET) }.into()).map_err(said("the network"))?;
    }
    let others = libc::CLONE_NEWNS | libc::CLONE_NEWIPC | libc::CLONE_NEWUTS | libc::CLONE_NEWCGROUP;
    // SAFETY: takes integers.
    check(unsafe { libc::unshare(others) }.into()).map_err(said("namespaces"))?;
    let place = CString::new(home.as_os_str().as_bytes())?;
    mount(c"/", libc::MS_REC | libc::MS_PRIVATE, None)?;
    let plain = libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC;
    mount(&place, plain, Some(c"size=64k,mode=755"))?;
    for (name, folder) in lent {
        let at = home.join(name);
        fs::create_dir_all(&at)?;
        // Whatever the umask.
        for above in at.ancestors().skip(1).take_while(|above| above != home) {
            fs::set_permissions(above, Permissions::from_mode(0o755))?;
        }
        folders::attach(&folder, &at).map_err(said("attaching a folder"))?;
    }
    mount(&place, plain | libc::MS_REMOUNT | libc::MS_BIND | libc::MS_RDONLY, None)?;
    std::env::set_current_dir(home)?;
    // The old root comes to lie over the new one, and goes.
    // SAFETY: NUL-terminated paths.
    unsafe {
        check(libc::syscall(libc::SYS_pivot_root, c".".as_ptr(), c".".as_ptr())).map_err(said("changing the root"))?;
        check(libc::umount2(c".".as_ptr(), libc::MNT_DETACH).into()).map_err(said("leaving the old root"))?;
    }
    std::env::set_current_dir("/")
}

/// A small file system in memory at a folder if there are options, else another manner of what is mounted there.
fn mount(at: &std::ffi::CStr, flags: libc::c_ulong, options: Option<&std::ffi::CStr>) -> io::Result<()> {
    let none = std::ptr::null();
    let (kind, options) = options.map_or((none, none), |options| (c"tmpfs".as_ptr(), options.as_ptr()));
    // SAFETY: NUL-terminated strings or none.
    check(unsafe { libc::mount(c"dormouse".as_ptr(), at.as_ptr(), kind, flags, options.cast()) }.into()).map_err(said("mounting"))
}
