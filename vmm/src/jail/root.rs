//! A root folder with the image and the templates in it, to be read, and nothing else; and namespaces in which there is
//! nothing else either.

use std::ffi::CString;
use std::fs::{self, File, Permissions};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use super::folders::{self, Owner};

fn check(result: libc::c_long) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

pub(super) fn said(what: &str) -> impl Fn(io::Error) -> io::Error {
    move |error| io::Error::new(error.kind(), format!("{what}: {error}"))
}

/// A folder of the home, lent: where it lies in it, which is where it will lie in the new root.
pub type Inside = (PathBuf, OwnedFd);

/// Leaves the host's file system, network, message queues, names and control groups. From here on there is what is `inside`,
/// and nothing else. Of the calling thread alone.
///
/// The network is one that all VMMs share, with nothing in it: each of its own would cost 170 KiB and half a millisecond,
/// and without a socket there is nothing to meet on it.
pub fn enter(home: &Path, inside: Vec<Inside>, network: Option<&Path>) -> io::Result<()> {
    if let Some(network) = network {
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
    for (name, folder) in inside {
        let at = home.join(name);
        fs::create_dir_all(&at)?;
        // Whatever the umask.
        for above in at.ancestors().skip(1).take_while(|above| *above != home) {
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

/// Tries whether that can be done here with the folders of a home, each of which may lie on a file system of its own.
pub fn probe(home: &Path, owner: Option<&Owner>) -> io::Result<()> {
    let lend = |name: &str| Ok((PathBuf::from(name), folders::lend(&home.join(name), owner, true).map_err(said(name))?));
    let inside = ["databases", "images", "templates"].into_iter().map(lend).collect::<io::Result<_>>()?;
    // What it enters ends with it.
    let tried = std::thread::scope(|scope| scope.spawn(|| enter(home, inside, None)).join());
    tried.unwrap_or_else(|_| Err(io::Error::other("the thread that tries it panicked")))
}

/// A small file system in memory at a folder if there are options, else another manner of what is mounted there.
fn mount(at: &std::ffi::CStr, flags: libc::c_ulong, options: Option<&std::ffi::CStr>) -> io::Result<()> {
    let none = std::ptr::null();
    let (kind, options) = options.map_or((none, none), |options| (c"tmpfs".as_ptr(), options.as_ptr()));
    // SAFETY: NUL-terminated strings or none.
    check(unsafe { libc::mount(c"dormouse".as_ptr(), at.as_ptr(), kind, flags, options.cast()) }.into()).map_err(said("mounting"))
}
