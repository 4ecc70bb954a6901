//! Calls about processes, identity, limits and memory.

use super::{Args, buffer_mut, load, number as nr, split_ns, store, string, strings, timespec};
use crate::errno::{Errno, Result};
use crate::sched;
use crate::task::{self, Timer, UID};
use crate::time;
use crate::wait::{Outcome, WaitQueue};

/// What the guest says its stack may grow to. The true room is 640 KiB: Postgres takes 512 KiB off this for its
/// own slop, which leaves `max_stack_depth` at 512 kB.
const STACK_LIMIT: u64 = 1 << 20;

/// (soft, hard) of a resource, as Linux numbers them.
fn limit(resource: u64) -> [u64; 2] {
    match resource {
        3 => [STACK_LIMIT, STACK_LIMIT],
        4 => [0, 0],
        7 => [crate::table::LIMIT as u64, crate::table::LIMIT as u64],
        _ => [u64::MAX, u64::MAX],
    }
}

/// `spawn(path, argv, envp, mask)`.
fn spawn(args: &Args) -> Result<u64> {
    let [path, argv, envp, mask, ..] = *args;
    string(path)?;
    let me = sched::current();
    let inherited = me.files.borrow().inherit();
    let mask = load::<u64>(mask).unwrap_or(me.signals.mask.get());
    task::spawn(Some(&me), &strings(argv)?, &strings(envp)?, mask, inherited).map(|pid| pid as u64)
}

/// `nanosleep` and `clock_nanosleep`; `remaining` is told when a signal cuts it short.
pub fn sleep(absolute: bool, wall: bool, request: u64, remaining: u64) -> Result<u64> {
    let ns = timespec(request).ok_or(Errno::EFAULT)??;
    let (now, wall_now) = time::clocks();
    let deadline = match (absolute, wall) {
        (false, _) => now.saturating_add(ns),
        (true, false) => ns,
        (true, true) => now.saturating_add(ns.saturating_sub(wall_now)),
    };
    let nobody = WaitQueue::new();
    loop {
        match nobody.wait(Some(deadline)) {
            Outcome::TimedOut => return Ok(0),
            Outcome::Woken if time::now() >= deadline => return Ok(0),
            Outcome::Woken => continue,
            Outcome::Interrupted => {
                if !absolute {
                    store(remaining, split_ns(deadline.saturating_sub(time::now())));
                }
                return Err(Errno::EINTR);
            }
        }
    }
}

fn set_timer(which: u64, new: u64, old: u64) -> Result<u64> {
    if which != 0 {
        return Err(Errno::EINVAL);
    }
    let me = sched::current();
    let now = time::now();
    let timer = me.timer.get();
    let left = if timer.deadline == u64::MAX { 0 } else { timer.deadline.saturating_sub(now).max(1000) };
    let micros = |ns: u64| [(ns / 1_000_000_000) as i64, (ns % 1_000_000_000 / 1000) as i64];
    let ([is, iu], [vs, vu]) = (micros(timer.interval), micros(left));
    store(old, [is, iu, vs, vu]);
    if let Some([is, iu, vs, vu]) = load::<[i64; 4]>(new) {
        if is < 0 || vs < 0 || !(0..1_000_000).contains(&iu) || !(0..1_000_000).contains(&vu) {
            return Err(Errno::EINVAL);
        }
        let ns = |s: i64, u: i64| s as u64 * 1_000_000_000 + u as u64 * 1000;
        let value = ns(vs, vu);
        let deadline = if value == 0 { u64::MAX } else { now.saturating_add(value) };
        me.timer.set(Timer { deadline, interval: ns(is, iu) });
        sched::publish();
    }
    Ok(0)
}

/// `struct rusage`: only the times, from what the scheduler measured.
fn usage(at: u64) -> Result<u64> {
    buffer_mut(at, 144)?.fill(0);
    let run = sched::current().run_ns.get();
    store(at, [(run / 1_000_000_000) as i64, (run % 1_000_000_000 / 1000) as i64]);
    Ok(0)
}

fn uname(at: u64) -> Result<u64> {
    let out = buffer_mut(at, 6 * 65)?;
    out.fill(0);
    let fields: [&[u8]; 6] = [b"Linux", b"dormouse", b"6.1.0", b"Dormouse library OS", b"x86_64", b"(none)"];
    for (i, field) in fields.iter().enumerate() {
        out[i * 65..i * 65 + field.len()].copy_from_slice(field);
    }
    Ok(0)
}

/// `struct sysinfo`.
fn system(at: u64) -> Result<u64> {
    let (used, all) = crate::pages::usage();
    buffer_mut(at, 112)?.fill(0);
    store(at, time::now() / 1_000_000_000);
    store(at + 32, all as u64);
    store(at + 40, (all - used) as u64);
    store(at + 104, 4096u32);
    Ok(0)
}

pub fn memory(number: i64, args: &Args) -> Result<u64> {
    const MAP_SHARED: u64 = 1;
    const MAP_FIXED: u64 = 0x10;
    const MAP_ANONYMOUS: u64 = 0x20;
    const MADV_DONTNEED: u64 = 4;
    let [a, b, c, d, e, f] = *args;
    let me = sched::current();
    match number {
        nr::BRK => Ok(me.memory.borrow_mut().set_break(a)),
        nr::MMAP if d & MAP_FIXED != 0 => Err(Errno::EINVAL),
        nr::MMAP if d & MAP_ANONYMOUS != 0 => me.memory.borrow_mut().map_private(b),
        nr::MMAP => {
            let file = task::file(e as i32)?;
            if d & MAP_SHARED == 0 {
                // A private copy of the file's bytes.
                let start = me.memory.borrow_mut().map_private(b)?;
                file.read_at(buffer_mut(start, b)?, f)?;
                return Ok(start);
            }
            me.memory.borrow_mut().map_shared(file, f, b)
        }
        nr::MUNMAP => me.memory.borrow_mut().unmap(a, b).map(|()| 0),
        nr::MREMAP => me.memory.borrow_mut().remap(a, b, c, d & 1 != 0),
        nr::MADVISE if c == MADV_DONTNEED => me.memory.borrow_mut().discard(a, b).map(|()| 0),
        // Protections are not enforced, hints not needed.
        _ => Ok(0),
    }
}

pub fn call(number: i64, args: &Args) -> Option<Result<u64>> {
    let [a, b, c, d, _, _] = *args;
    let me = sched::current();
    let result = match number {
        nr::GETPID | nr::GETTID | nr::SET_TID_ADDRESS => Ok(me.pid as u64),
        nr::GETPPID => Ok(me.parent.get() as u64),
        nr::GETUID | nr::GETEUID | nr::GETGID | nr::GETEGID => Ok(UID as u64),
        nr::GETGROUPS => Ok(0),
        nr::GETPGRP => Ok(me.group.get() as u64),
        nr::GETPGID | nr::GETSID => {
            let who = if a == 0 { Some(me) } else { task::find(a as i32) };
            let pick = |task: &task::Task| if number == nr::GETPGID { task.group.get() } else { task.session.get() };
            who.map(|task| pick(&task) as u64).ok_or(Errno::ESRCH)
        }
        nr::SETPGID => {
            let who = if a == 0 { Some(me) } else { task::find(a as i32) };
            who.map(|task| task.group.set(if b == 0 { task.pid } else { b as i32 })).map(|()| 0).ok_or(Errno::ESRCH)
        }
        nr::SETSID => {
            me.group.set(me.pid);
            me.session.set(me.pid);
            Ok(me.pid as u64)
        }
        nr::SPAWN => {
            drop(me);
            spawn(args)
        }
        nr::EXIT | nr::EXIT_GROUP => {
            drop(me);
            task::exit((a as i32 & 0xff) << 8)
        }
        nr::WAIT4 => {
            drop(me);
            task::wait(a as i32, c & 1 != 0).map(|(pid, status)| {
                if pid != 0 {
                    store(b, status);
                }
                pid as u64
            })
        }
        nr::UNAME => uname(a),
        nr::SYSINFO => system(a),
        nr::GETRLIMIT => {
            store(b, limit(a));
            Ok(0)
        }
        nr::PRLIMIT64 => {
            store(d, limit(b));
            Ok(0)
        }
        nr::GETRUSAGE => usage(b),
        nr::TIMES => Ok(time::now() / 10_000_000),
        nr::SETITIMER => {
            drop(me);
            set_timer(a, b, c)
        }
        nr::GETITIMER => {
            drop(me);
            set_timer(a, 0, b)
        }
        nr::SCHED_GETAFFINITY => buffer_mut(c, b.min(8)).map(|mask| {
            mask.fill(0);
            if let Some(first) = mask.first_mut() {
                *first = 1;
            }
            mask.len() as u64
        }),
        nr::GETPRIORITY => Ok(20),
        nr::GETCPU => {
            store(a, 0u32);
            store(b, 0u32);
            Ok(0)
        }
        // The guest's C library starts no threads, and the program never forks: both are bugs of the image.
        nr::CLONE | nr::CLONE3 | nr::FORK | nr::VFORK | nr::EXECVE => return None,
        _ => return None,
    };
    Some(result)
}
