//! Socket calls.

use super::{Args, buffer, buffer_mut, load, number as nr, store};
use crate::errno::{Errno, Result};
use crate::sched;
use crate::socket::{self, Socket};
use crate::table::{O_CLOEXEC, O_NONBLOCK, OpenFile};
use crate::stream::Stream;
use crate::vsock::Connection;
use alloc::vec::Vec;

const AF_UNIX: u16 = 1;
const SOL_SOCKET: u64 = 1;
const SO_TYPE: u64 = 3;
const SO_ERROR: u64 = 4;
const SO_SNDBUF: u64 = 7;
const SO_RCVBUF: u64 = 8;
const SO_PEERCRED: u64 = 17;
const MSG_PEEK: u64 = 2;
const MSG_DONTWAIT: u64 = 0x40;

/// The path of a `struct sockaddr_un`.
fn path_of(address: u64, len: u64) -> Result<Vec<u8>> {
    let bytes = buffer(address, len)?;
    if bytes.len() < 3 || u16::from_le_bytes([bytes[0], bytes[1]]) != AF_UNIX {
        return Err(Errno::EINVAL);
    }
    let path = &bytes[2..];
    let end = path.iter().position(|&byte| byte == 0).unwrap_or(path.len());
    Ok(path[..end].to_vec())
}

/// Writes a `struct sockaddr_un`, cut to the caller's length.
fn tell_address(address: u64, len: u64, path: &[u8]) -> Result<()> {
    let Some(room) = load::<u32>(len) else { return Ok(()) };
    let mut bytes = AF_UNIX.to_le_bytes().to_vec();
    if !path.is_empty() {
        bytes.extend(path);
        bytes.push(0);
    }
    let cut = bytes.len().min(room as usize);
    buffer_mut(address, cut as u64)?.copy_from_slice(&bytes[..cut]);
    store(len, bytes.len() as u32);
    Ok(())
}

fn socket_of(open: &OpenFile) -> Result<&Socket> {
    open.file.as_any().downcast_ref::<Socket>().ok_or(Errno::ENOTSOCK)
}

/// The stream behind a descriptor: to the host, or to another process.
enum Peer<'a> {
    Host(&'a Connection),
    Local(&'a Stream),
}

fn peer_of(open: &OpenFile) -> Option<Peer<'_>> {
    let file = open.file.as_any();
    if let Some(connection) = file.downcast_ref() {
        return Some(Peer::Host(connection));
    }
    let local = file.downcast_ref::<Stream>();
    local.or_else(|| file.downcast_ref::<Socket>()?.stream().map(|stream| &**stream)).map(Peer::Local)
}

fn option(name: u64) -> Result<i32> {
    match name {
        SO_TYPE => Ok(1),
        SO_ERROR => Ok(0),
        SO_SNDBUF | SO_RCVBUF => Ok(64 << 10),
        _ => Err(Errno::ENOPROTOOPT),
    }
}

pub fn call(number: i64, args: &Args) -> Result<u64> {
    let [a, b, c, d, e, _] = *args;
    let me = sched::current();
    if number == nr::SOCKET {
        let (kind, flags) = (b as i32, b as u32);
        let open = OpenFile::new(socket::new(a as i32, kind)?, 2 | flags & O_NONBLOCK);
        return me.files.borrow_mut().insert(open, flags & O_CLOEXEC != 0, 0).map(|fd| fd as u64);
    }
    let open = me.files.borrow().get(a as i32)?;
    let peer = peer_of(&open);
    match number {
        nr::BIND => {
            let cwd = me.cwd.borrow().clone();
            socket_of(&open)?.bind(&cwd, &path_of(b, c)?).map(|()| 0)
        }
        nr::CONNECT => {
            let cwd = me.cwd.borrow().clone();
            socket_of(&open)?.connect(&cwd, &path_of(b, c)?).map(|()| 0)
        }
        nr::LISTEN => socket_of(&open)?.listen(b as i32).map(|()| 0),
        nr::ACCEPT | nr::ACCEPT4 => {
            let accepted = socket_of(&open)?.accept(open.nonblock())?;
            tell_address(b, c, b"")?;
            let flags = if number == nr::ACCEPT4 { d as u32 } else { 0 };
            me.files.borrow_mut().insert(OpenFile::new(accepted, 2 | flags & O_NONBLOCK), flags & O_CLOEXEC != 0, 0).map(|fd| fd as u64)
        }
        nr::GETSOCKNAME => {
            let path = socket_of(&open).map(Socket::path).unwrap_or_default();
            tell_address(b, c, &path).map(|()| 0)
        }
        nr::GETPEERNAME => {
            peer.ok_or(Errno::ENOTCONN)?;
            tell_address(b, c, b"").map(|()| 0)
        }
        nr::SETSOCKOPT => {
            if peer.is_none() {
                socket_of(&open)?;
            }
            Ok(0)
        }
        nr::GETSOCKOPT => {
            if peer.is_none() {
                socket_of(&open)?;
            }
            if b != SOL_SOCKET {
                return Err(Errno::ENOPROTOOPT);
            }
            if c == SO_PEERCRED {
                store(d, [1u32, crate::task::UID, crate::task::UID]);
                store(e, 12u32);
                return Ok(0);
            }
            store(d, option(c)?);
            store(e, 4u32);
            Ok(0)
        }
        nr::SENDTO => open.file.write(buffer(b, c)?, open.nonblock() || d & MSG_DONTWAIT != 0).map(|n| n as u64),
        nr::RECVFROM => {
            let into = buffer_mut(b, c)?;
            if d & MSG_PEEK != 0 {
                let len = match peer.ok_or(Errno::ENOTSOCK)? {
                    Peer::Host(connection) => connection.peek(into),
                    Peer::Local(stream) => stream.peek(into),
                };
                return len.map(|n| n as u64);
            }
            open.file.read(into, open.nonblock() || d & MSG_DONTWAIT != 0).map(|n| n as u64)
        }
        nr::SENDMSG | nr::RECVMSG => {
            // struct msghdr: name, namelen, iov, iovlen, control, controllen, flags.
            let header = load::<[u64; 7]>(b).ok_or(Errno::EFAULT)?;
            let nonblock = open.nonblock() || c & MSG_DONTWAIT != 0;
            super::files::vectored(header[2], header[3], |part, first| {
                let nonblock = nonblock || !first;
                if number == nr::SENDMSG {
                    open.file.write(buffer(part[0], part[1])?, nonblock)
                } else {
                    open.file.read(buffer_mut(part[0], part[1])?, nonblock)
                }
            })
        }
        nr::SHUTDOWN => {
            let (receive, send) = (matches!(b, 0 | 2), matches!(b, 1 | 2));
            match peer.ok_or(Errno::ENOTCONN)? {
                Peer::Host(connection) => connection.shutdown(receive, send),
                Peer::Local(stream) => stream.shutdown(receive, send),
            }
            Ok(0)
        }
        _ => Err(Errno::ENOSYS),
    }
}
