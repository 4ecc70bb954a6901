//! Folders handed from one process to another: by descriptor, as mounts of their own.
//!
//! What is reached from such a descriptor is the folder and nothing above it: `..` ends at a mount's root. With
//! [`Owner`], what root owns on the disk is owned by the jail's user as seen through it, and what that user makes is root's.

use std::ffi::{CString, c_int};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

// <linux/mount.h>
const OPEN_TREE_CLONE: libc::c_uint = 1;
const MOVE_MOUNT_F_EMPTY_PATH: libc::c_uint = 4;
const MOUNT_ATTR_RDONLY: u64 = 0x1;
/// No device, no set-user-id, nothing to execute.
const MOUNT_ATTR_PLAIN: u64 = 0x2 | 0x4 | 0x8;
const MOUNT_ATTR_IDMAP: u64 = 0x10_0000;

#[repr(C)]
struct MountAttr {
    set: u64,
    clear: u64,
    propagation: u64,
    userns: u64,
}

fn check(result: libc::c_long) -> io::Result<c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result as c_int) }
}

/// Who root's files are to belong to: a user namespace that has that user for root, and no process.
#[derive(Debug)]
pub struct Owner(OwnedFd);

impl From<OwnedFd> for Owner {
    fn from(descriptor: OwnedFd) -> Self {
        Self(descriptor)
    }
}

impl From<Owner> for OwnedFd {
    fn from(owner: Owner) -> Self {
        owner.0
    }
}

impl AsFd for Owner {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl Owner {
    /// The user and the group of this number. Needs to be root.
    pub fn new(user: u32) -> io::Result<Self> {
        let none = 0usize;
        // SAFETY: as fork does it: no shared memory, no stack of its own. The child makes three system calls, whatever lock another
        // thread held.
        let child = unsafe { libc::syscall(libc::SYS_clone, libc::CLONE_NEWUSER | libc::SIGCHLD, none, none, none, none) };
        if child == 0 {
            // SAFETY: none of them touches memory.
            unsafe {
                libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
                libc::pause();
                libc::_exit(0);
            }
        }
        let child = check(child)?;
        let made = Self::of(child, user);
        // SAFETY: a child that has not been waited for; nothing is written.
        unsafe {
            libc::kill(child, libc::SIGKILL);
            libc::waitpid(child, std::ptr::null_mut(), 0);
        }
        made
    }

    fn of(child: c_int, user: u32) -> io::Result<Self> {
        for map in ["uid_map", "gid_map"] {
            std::fs::write(format!("/proc/{child}/{map}"), format!("0 {user} 1"))?;
        }
        Ok(Self(File::open(format!("/proc/{child}/ns/user"))?.into()))
    }
}

/// A folder as a mount of its own, which nobody has attached anywhere.
pub fn lend(folder: &Path, owner: Option<&Owner>, read_only: bool) -> io::Result<OwnedFd> {
    let path = CString::new(folder.as_os_str().as_bytes())?;
    let flags = OPEN_TREE_CLONE | libc::O_CLOEXEC as libc::c_uint;
    // SAFETY: a NUL-terminated path; the descriptor is new and owned by nobody else.
    let mount = unsafe {
        OwnedFd::from_raw_fd(check(libc::syscall(libc::SYS_open_tree, libc::AT_FDCWD, path.as_ptr(), flags))?)
    };
    let attributes = MountAttr {
        set: MOUNT_ATTR_PLAIN
            | if read_only { MOUNT_ATTR_RDONLY } else { 0 }
            | if owner.is_some() { MOUNT_ATTR_IDMAP } else { 0 },
        clear: 0,
        // Else what the host mounts below would come to be there too.
        propagation: libc::MS_PRIVATE,
        userns: owner.map_or(0, |owner| owner.0.as_raw_fd() as u64),
    };
    // SAFETY: an empty NUL-terminated path, and a structure that outlives the call.
    check(unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            &raw const attributes,
            size_of::<MountAttr>(),
        )
    })?;
    Ok(mount)
}

/// Attaches a mount at a folder.
pub(super) fn attach(mount: &OwnedFd, at: &Path) -> io::Result<()> {
    let path = CString::new(at.as_os_str().as_bytes())?;
    // SAFETY: NUL-terminated paths.
    check(unsafe {
        libc::syscall(
            libc::SYS_move_mount,
            mount.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_FDCWD,
            path.as_ptr(),
            MOVE_MOUNT_F_EMPTY_PATH,
        )
    })?;
    Ok(())
}

/// Room for a message's control part, of the alignment that it wants.
type Control = [u64; 8];
/// Of a descriptor in it.
const DESCRIPTOR: libc::c_uint = size_of::<c_int>() as libc::c_uint;

/// Sends bytes, and a descriptor with them, at once; how many bytes went.
pub fn send(socket: impl AsFd, bytes: &[u8], descriptor: Option<&OwnedFd>) -> io::Result<usize> {
    let mut control: Control = [0; 8];
    let part = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
    // SAFETY: an all-zero header is a valid one; all it points to outlives the call, and `control` has room for more than a number.
    let sent = unsafe {
        let mut message: libc::msghdr = std::mem::zeroed();
        (message.msg_iov, message.msg_iovlen) = ((&raw const part).cast_mut(), 1);
        if let Some(descriptor) = descriptor {
            (message.msg_control, message.msg_controllen) = (control.as_mut_ptr().cast(), libc::CMSG_SPACE(DESCRIPTOR) as usize);
            let head = libc::CMSG_FIRSTHDR(&message);
            ((*head).cmsg_level, (*head).cmsg_type) = (libc::SOL_SOCKET, libc::SCM_RIGHTS);
            (*head).cmsg_len = libc::CMSG_LEN(DESCRIPTOR) as usize;
            libc::CMSG_DATA(head).cast::<c_int>().write_unaligned(descriptor.as_raw_fd());
        }
        libc::sendmsg(socket.as_fd().as_raw_fd(), &message, libc::MSG_NOSIGNAL)
    };
    Ok(check(sent as libc::c_long)? as usize)
}

/// Receives bytes, and the descriptor that came with them.
pub fn receive(socket: impl AsFd, bytes: &mut [u8]) -> io::Result<(usize, Option<OwnedFd>)> {
    let mut control: Control = [0; 8];
    let mut part = libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() };
    let mut descriptor = None;
    // SAFETY: an all-zero header is a valid one; all it points to outlives the call. The kernel made the descriptors for this
    // process, and nobody else owns them.
    let received = unsafe {
        let mut message: libc::msghdr = std::mem::zeroed();
        (message.msg_iov, message.msg_iovlen) = (&raw mut part, 1);
        (message.msg_control, message.msg_controllen) = (control.as_mut_ptr().cast(), size_of::<Control>());
        let received = check(libc::recvmsg(socket.as_fd().as_raw_fd(), &mut message, libc::MSG_CMSG_CLOEXEC) as libc::c_long)?;
        let head = libc::CMSG_FIRSTHDR(&message);
        if !head.is_null() && ((*head).cmsg_level, (*head).cmsg_type) == (libc::SOL_SOCKET, libc::SCM_RIGHTS) {
            let count = ((*head).cmsg_len - libc::CMSG_LEN(0) as usize) / size_of::<c_int>();
            let numbers = libc::CMSG_DATA(head).cast::<c_int>();
            // More than one, which nobody here sends, are closed again.
            for number in (0..count).rev() {
                descriptor = Some(OwnedFd::from_raw_fd(numbers.add(number).read_unaligned()));
            }
        }
        received
    };
    Ok((received as usize, descriptor))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;
    use std::os::unix::net::UnixStream;

    #[test]
    fn a_descriptor_goes_with_the_bytes_and_is_the_same_file() {
        let (near, far) = UnixStream::pair().unwrap();
        let (reader, writer) = io::pipe().unwrap();
        drop(writer);
        assert_eq!(send(&near, b"one", Some(&reader.into())).unwrap(), 3);
        let mut bytes = [0; 8];
        let (len, descriptor) = receive(&far, &mut bytes).unwrap();
        assert_eq!(&bytes[..len], b"one");
        assert_eq!(File::from(descriptor.unwrap()).read(&mut bytes).unwrap(), 0);
        assert_eq!(send(&near, b"none", None).unwrap(), 4);
        assert!(receive(&far, &mut bytes).unwrap().1.is_none());
    }
}
