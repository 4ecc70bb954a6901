//! System V shared memory: Postgres' main segment. Every task sees a segment at the same address, because there
//! is only one address space.

use crate::errno::{Errno, Result};
use crate::global::Global;
use crate::pages;
use crate::sched;
use crate::task::Task;
use crate::time;
use alloc::vec::Vec;
use core::cell::RefCell;

const PAGE: u64 = dormouse_abi::PAGE;
const IPC_CREAT: i32 = 0o1000;
const IPC_EXCL: i32 = 0o2000;
const IPC_RMID: i32 = 0;
const IPC_STAT: i32 = 2;

struct Segment {
    id: i32,
    key: i32,
    len: u64,
    start: u64,
    mode: i32,
    creator: i32,
    last: i32,
    created: u64,
    /// One pid an attachment.
    attached: Vec<i32>,
    removed: bool,
}

struct Segments {
    list: Vec<Segment>,
    next: i32,
}

static SEGMENTS: Global<RefCell<Segments>> = Global::new(RefCell::new(Segments { list: Vec::new(), next: 1 }));

/// `struct shmid_ds` (x86-64).
#[repr(C)]
#[derive(Default)]
pub struct Status {
    key: i32,
    uid: u32,
    gid: u32,
    cuid: u32,
    cgid: u32,
    mode: u32,
    sequence: u32,
    pad: u32,
    unused: [u64; 2],
    len: u64,
    attach_time: u64,
    detach_time: u64,
    change_time: u64,
    creator: i32,
    last: i32,
    attached: u64,
    rest: [u64; 2],
}
const _: () = assert!(core::mem::size_of::<Status>() == 112);

pub fn get(key: i32, len: u64, flags: i32) -> Result<i32> {
    let mut segments = SEGMENTS.get().borrow_mut();
    if key != 0
        && let Some(segment) = segments.list.iter().find(|segment| segment.key == key && !segment.removed)
    {
        return match () {
            _ if flags & IPC_CREAT != 0 && flags & IPC_EXCL != 0 => Err(Errno::EEXIST),
            _ if len > segment.len => Err(Errno::EINVAL),
            _ => Ok(segment.id),
        };
    }
    if key != 0 && flags & IPC_CREAT == 0 {
        return Err(Errno::ENOENT);
    }
    if len == 0 {
        return Err(Errno::EINVAL);
    }
    let count = len.div_ceil(PAGE) as usize;
    // Large segments begin at a large page: their hot parts then share as few of them as can be.
    let align = if count >= 512 { 512 } else { 1 };
    let start = pages::alloc_aligned(count, align).ok_or(Errno::ENOMEM)? as u64;
    let id = segments.next;
    segments.next += 1;
    let creator = sched::current().pid;
    let created = time::wall_ns() / 1_000_000_000;
    segments.list.push(Segment { id, key, len, start, mode: flags & 0o777, creator, last: creator, created, attached: Vec::new(), removed: false });
    Ok(id)
}

pub fn attach(id: i32, at: u64) -> Result<u64> {
    let mut segments = SEGMENTS.get().borrow_mut();
    let segment = segments.list.iter_mut().find(|segment| segment.id == id).ok_or(Errno::EINVAL)?;
    if at != 0 && at != segment.start {
        return Err(Errno::EINVAL);
    }
    let pid = sched::current().pid;
    segment.attached.push(pid);
    segment.last = pid;
    Ok(segment.start)
}

impl Segments {
    /// Frees segments that are removed and that nobody uses.
    fn sweep(&mut self) {
        self.list.retain(|segment| {
            let gone = segment.removed && segment.attached.is_empty();
            if gone {
                pages::free(segment.start as *mut u8, segment.len.div_ceil(PAGE) as usize);
            }
            !gone
        });
    }
}

pub fn detach(at: u64) -> Result<()> {
    let pid = sched::current().pid;
    let mut segments = SEGMENTS.get().borrow_mut();
    let segment = segments.list.iter_mut().find(|segment| segment.start == at).ok_or(Errno::EINVAL)?;
    let index = segment.attached.iter().position(|&other| other == pid).ok_or(Errno::EINVAL)?;
    segment.attached.swap_remove(index);
    segments.sweep();
    Ok(())
}

/// A task has ended.
pub fn detach_all(task: &Task) {
    let mut segments = SEGMENTS.get().borrow_mut();
    for segment in &mut segments.list {
        segment.attached.retain(|&pid| pid != task.pid);
    }
    segments.sweep();
}

pub fn control(id: i32, command: i32, status: *mut Status) -> Result<()> {
    let mut segments = SEGMENTS.get().borrow_mut();
    let segment = segments.list.iter_mut().find(|segment| segment.id == id).ok_or(Errno::EINVAL)?;
    match command & 0xff {
        IPC_STAT => {
            let value = Status {
                key: segment.key,
                uid: crate::task::UID,
                gid: crate::task::UID,
                cuid: crate::task::UID,
                cgid: crate::task::UID,
                mode: segment.mode as u32,
                len: segment.len,
                change_time: segment.created,
                creator: segment.creator,
                last: segment.last,
                attached: segment.attached.len() as u64,
                ..Status::default()
            };
            // SAFETY: the caller's buffer, of this size by the ABI.
            unsafe { status.write(value) };
            Ok(())
        }
        IPC_RMID => {
            segment.removed = true;
            segments.sweep();
            Ok(())
        }
        _ => Err(Errno::EINVAL),
    }
}
