//! What the guest's files do, seen through the functions that system calls use, and what that costs in requests.

use crate::device;
use crate::errno::Errno;
use crate::file::File;
use crate::fs::{self, flags};
use crate::guest::{pages, slots};
use crate::model::Model;
use crate::rings::{self, Ring};
use crate::server::{self, Server};
use crate::virtio::Queue;
use dormouse_abi::{LARGE_PAGE, QUEUE_SIZE, SLOT_BASE, queue};
use std::rc::Rc;
use std::sync::atomic::Ordering;
use std::sync::{Mutex, MutexGuard};

pub(crate) const CWD: &[u8] = b"/pgdata";
pub(crate) const READ: u32 = 0;
pub(crate) const WRITE: u32 = 2;
pub(crate) const NEW: u32 = flags::O_RDWR | flags::O_CREAT;

/// The queue's memory is at one fixed address: one test at a time.
fn alone() -> MutexGuard<'static, ()> {
    static LOCK: Mutex<()> = Mutex::new(());
    let guard = LOCK.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    rings::reset();
    pages::COUNT.store(pages::SMALL, Ordering::Relaxed);
    guard
}

fn entry(name: &str, mode: u32, content: &[u8]) -> Vec<u8> {
    let mut out = format!("070701{:08x}{mode:08x}", 7);
    for value in [0, 0, 1, 0, content.len(), 0, 0, 0, 0, name.len() + 1, 0] {
        out += &format!("{value:08x}");
    }
    let mut out = out.into_bytes();
    assert_eq!(out.len(), 110);
    out.extend(name.as_bytes());
    out.push(0);
    out.resize(out.len().next_multiple_of(4), 0);
    out.extend(content);
    out.resize(out.len().next_multiple_of(4), 0);
    out
}

fn archive() -> Vec<u8> {
    [
        entry(".", 0o40755, b""),
        entry("pg", 0o40755, b""),
        entry("pg/bin", 0o40755, b""),
        entry("pg/bin/postgres", 0o100755, b""),
        entry("pg/share/zone/UTC", 0o100644, b"TZif2"),
        entry("pg/share/Zulu", 0o120777, b"zone/UTC"),
        entry("etc/passwd", 0o100644, b"postgres:x:1000:1000::/pgdata:\n"),
        entry("etc/loop", 0o120777, b"/etc/loop"),
        entry("TRAILER!!!", 0, b""),
    ]
    .concat()
}

pub(crate) fn boot_with(archive: Vec<u8>) -> crate::errno::Result<()> {
    let archive: &'static [u8] = archive.leak();
    // SAFETY: integers and byte arrays: zeroes are a value.
    let mut info: dormouse_abi::BootInfo = unsafe { std::mem::zeroed() };
    info.archive = archive.as_ptr() as u64;
    info.archive_len = archive.len() as u64;
    fs::init(&info)
}

/// Mounts everything on what `prepare` puts in the share.
pub(crate) fn boot(prepare: impl FnOnce(&mut Server)) -> MutexGuard<'static, ()> {
    let guard = alone();
    let mut server = Server::new();
    prepare(&mut server);
    device::attach(server);
    boot_with(archive()).unwrap();
    device::with(|server| server.log.clear());
    guard
}

pub(crate) fn requests() -> usize {
    device::with(|server| server.log.len())
}

pub(crate) fn count(opcode: u32) -> usize {
    device::with(|server| server.count(opcode))
}

pub(crate) fn open(path: &str, how: u32) -> Rc<dyn File> {
    fs::open(CWD, path.as_bytes(), how, 0o600).unwrap()
}

pub(crate) fn failure<T>(result: crate::errno::Result<T>) -> Errno {
    match result {
        Ok(_) => panic!("this should have failed"),
        Err(error) => error,
    }
}

fn fails(path: &str, how: u32) -> Errno {
    failure(fs::open(CWD, path.as_bytes(), how, 0o600))
}

pub(crate) fn read(file: &dyn File) -> Vec<u8> {
    let mut all = vec![0; file.len().unwrap() as usize + 10];
    let len = file.read_at(&mut all, 0).unwrap();
    all.truncate(len);
    all
}

fn names(path: &str) -> Vec<String> {
    let mut names: Vec<String> = open(path, READ)
        .entries()
        .unwrap()
        .into_iter()
        .map(|entry| String::from_utf8(entry.name).unwrap())
        .filter(|name| name != "." && name != "..")
        .collect();
    names.sort();
    names
}

// The virtqueue.

#[test]
fn a_queue_gives_back_what_it_took_over_many_turns_of_the_index() {
    let _guard = alone();
    let (mut queue, mut device) = (Queue::new(queue::RNG), Ring::new(queue::RNG));
    let mut buffer = [0u8; 64];
    let address = buffer.as_mut_ptr() as u64;
    for turn in 0..70_000u32 {
        let parts = turn as usize % 3;
        let readable = [(address, 4), (address + 4, 2)];
        let head = queue.push(&readable[..parts], &[(address + 8, 8), (address + 16, 8)]).unwrap();
        assert_eq!(queue.pop(), None);
        assert_eq!(queue.pending(), 1);
        let chain = device.next().unwrap();
        assert_eq!((chain.head, chain.readable, chain.room.len()), (head, parts, 2));
        device.answer(&chain, &turn.to_le_bytes());
        assert_eq!(queue.pop(), Some((head, 4)));
        assert_eq!(buffer[8..12], turn.to_le_bytes());
        assert_eq!(queue.free_count(), usize::from(QUEUE_SIZE));
    }
}

#[test]
fn chains_come_back_in_any_order_and_a_full_queue_refuses() {
    static BYTES: [u8; 2] = [0; 2];
    let _guard = alone();
    let (mut queue, mut device) = (Queue::new(queue::RNG), Ring::new(queue::RNG));
    let byte = (&raw const BYTES) as u64;
    let mut heads: Vec<u16> = (0..QUEUE_SIZE / 2).map(|_| queue.push(&[(byte, 1)], &[(byte + 1, 1)]).unwrap()).collect();
    assert_eq!(queue.push(&[(byte, 1)], &[]), None);
    assert_eq!(queue.push(&[], &[]), None);
    while device.next().is_some() {}
    for &head in heads.iter().rev() {
        device.give_back(u32::from(head), 1);
    }
    heads.reverse();
    let back: Vec<u16> = std::iter::from_fn(|| queue.pop()).map(|(head, _)| head).collect();
    assert_eq!(back, heads);
    let all = vec![(byte, 1); usize::from(QUEUE_SIZE)];
    let head = queue.push(&all, &[]).unwrap();
    assert_eq!(queue.free_count(), 0);
    device.give_back(u32::from(head), 0);
    assert_eq!(queue.pop(), Some((head, 0)));
    assert_eq!(queue.free_count(), usize::from(QUEUE_SIZE));
}

#[test]
#[should_panic(expected = "which it does not have")]
fn a_device_that_gives_back_what_it_never_had_is_the_end() {
    let _guard = alone();
    let (mut queue, mut device) = (Queue::new(queue::RNG), Ring::new(queue::RNG));
    queue.push(&[(1, 1)], &[]).unwrap();
    device.give_back(77, 0);
    queue.pop();
}

// The boot archive and memory files.

#[test]
fn the_boot_archive_is_the_read_only_root() {
    let _guard = boot(|_| {});
    assert_eq!(read(&*open("/etc/passwd", READ)), b"postgres:x:1000:1000::/pgdata:\n");
    assert_eq!(read(&*open("/pg/share/Zulu", READ)), b"TZif2");
    let stat = fs::stat(CWD, b"/proc/self/exe", true).unwrap();
    assert_eq!((stat.mode, stat.uid, stat.gid), (0o100755, 1000, 1000));
    let mut target = [0; 100];
    let len = fs::readlink(CWD, b"/proc/self/exe", &mut target).unwrap();
    assert_eq!(&target[..len], b"/pg/bin/postgres");
    assert_eq!(fails("/etc/passwd", WRITE), Errno::EROFS);
    assert_eq!(fails("/etc/group", NEW), Errno::EROFS);
    assert_eq!(fails("/etc/group", READ), Errno::ENOENT);
    assert_eq!(failure(fs::unlink(CWD, b"/etc/passwd")), Errno::EROFS);
    assert_eq!(failure(fs::mkdir(CWD, b"/etc", 0o755)), Errno::EEXIST);
    assert_eq!(fs::access(CWD, b"/pg/bin/postgres", 1), Ok(()));
    assert_eq!(fs::access(CWD, b"/etc/passwd", 1), Err(Errno::EACCES));
    assert_eq!(fs::access(CWD, b"/etc/passwd", 2), Err(Errno::EROFS));
    assert_eq!(names("/"), ["dev", "etc", "pg", "pgdata", "proc", "run", "tmp"]);
    assert_eq!(requests(), 0);
}

#[test]
fn a_damaged_archive_is_refused_without_a_panic() {
    let _guard = alone();
    device::attach(Server::new());
    let whole = archive();
    for cut in (0..whole.len() - 124).step_by(7) {
        assert_eq!(boot_with(whole[..cut].to_vec()), Err(Errno::EINVAL), "cut at {cut}");
    }
    for at in (0..whole.len() - 130).step_by(5) {
        let mut damaged = whole.clone();
        damaged[at] = 0xff;
        rings::reset();
        device::attach(Server::new());
        let _ = boot_with(damaged);
    }
}

#[test]
fn paths_resolve_as_on_linux() {
    let _guard = boot(|server| {
        server.put("base/5/", b"");
        server.put("PG_VERSION", b"17\n");
    });
    let ok = |path: &str| fs::stat(CWD, path.as_bytes(), true).map(|stat| stat.mode);
    assert_eq!(ok("PG_VERSION"), Ok(0o100600));
    assert_eq!(ok("./base/../base//5/../../PG_VERSION"), Ok(0o100600));
    assert_eq!(ok("../etc/passwd"), Ok(0o100644));
    assert_eq!(ok("../../../.."), Ok(0o40755));
    assert_eq!(ok("/pgdata/pgsql_tmp/../PG_VERSION"), Ok(0o100600));
    assert_eq!(ok("."), Ok(0o40700));
    assert_eq!(ok("base/5/"), Ok(0o40700));
    assert_eq!(ok("PG_VERSION/"), Err(Errno::ENOTDIR));
    assert_eq!(ok("PG_VERSION/x"), Err(Errno::ENOTDIR));
    assert_eq!(ok("none/x"), Err(Errno::ENOENT));
    assert_eq!(ok(""), Err(Errno::ENOENT));
    assert_eq!(ok("/etc/loop"), Err(Errno::ELOOP));
    assert_eq!(ok(&"x".repeat(256)), Err(Errno::ENAMETOOLONG));
    assert_eq!(ok(&"x/".repeat(3000)), Err(Errno::ENAMETOOLONG));
    assert_eq!(fs::stat(b"/etc", b"passwd", true).unwrap().mode, 0o100644);
    assert_eq!(fs::stat(b"/pgdata/base/5", b"../../PG_VERSION", true).unwrap().mode, 0o100600);
    for (cwd, path, normal) in [
        ("/pgdata", "", "/pgdata"),
        ("/pgdata", "base/./5/", "/pgdata/base/5"),
        ("/pgdata", "../..", "/"),
        ("/pgdata/base", "../../tmp//x", "/tmp/x"),
        ("/", "/a/b/../c", "/a/c"),
    ] {
        assert_eq!(fs::normalise(cwd.as_bytes(), path.as_bytes()), normal.as_bytes());
    }
}

#[test]
fn open_answers_with_linux_errors() {
    let _guard = boot(|server| {
        server.put("base/5/1259", b"x");
    });
    fs::symlink(CWD, b"/pgdata/base/5", b"link").unwrap();
    fs::symlink(CWD, b"base/5/made", b"dangling").unwrap();
    assert_eq!(fails("base", WRITE), Errno::EISDIR);
    assert_eq!(fails("base", NEW), Errno::EISDIR);
    assert_eq!(fails("base/5/1259", flags::O_DIRECTORY), Errno::ENOTDIR);
    assert_eq!(fails("base/5/1259", NEW | flags::O_EXCL), Errno::EEXIST);
    assert_eq!(fails("base/5/1260", WRITE), Errno::ENOENT);
    assert_eq!(fails("base/5/1260/", NEW), Errno::EISDIR);
    assert_eq!(fails("link", flags::O_NOFOLLOW), Errno::ELOOP);
    assert_eq!(fails("dangling", NEW | flags::O_EXCL), Errno::EEXIST);
    assert_eq!(read(&*open("link/1259", READ)), b"x");
    open("dangling", NEW).write_at(b"through", 0).unwrap();
    assert_eq!(device::with(|server| server.content("base/5/made").to_vec()), b"through");
    assert_eq!(fs::stat(CWD, b"link", false).unwrap().mode, 0o120777);
    assert_eq!(fs::stat(CWD, b"link", true).unwrap().mode, 0o40700);
}

#[test]
fn shared_memory_files_have_one_address_and_go_when_nothing_holds_them() {
    let _guard = boot(|_| {});
    let before = pages::IN_USE.load(Ordering::Relaxed);
    let used = || pages::IN_USE.load(Ordering::Relaxed) - before;
    let file = open("/dev/shm/PostgreSQL.42", NEW | flags::O_EXCL);
    file.allocate(0, 1_048_576).unwrap();
    assert_eq!((file.len(), used()), (Ok(1_048_576), 256));
    let address = file.map_shared(0, 1_048_576).unwrap();
    let other = open("/dev/shm/PostgreSQL.42", WRITE);
    assert_eq!(other.map_shared(4096, 4096), Ok(address.wrapping_add(4096)));
    other.write_at(b"seen by all", 5000).unwrap();
    // SAFETY: mapped, 1 MiB.
    assert_eq!(unsafe { std::slice::from_raw_parts(address.add(5000), 11) }, b"seen by all");
    assert_eq!(file.truncate(2_000_000), Err(Errno::ENOSPC), "a mapped file cannot move");
    fs::unlink(CWD, b"/dev/shm/PostgreSQL.42").unwrap();
    assert_eq!(file.stat().unwrap().nlink, 0);
    other.unmap_shared();
    drop((file, other));
    assert_eq!(used(), 256, "still mapped");
    // SAFETY: the mapping keeps it.
    assert_eq!(unsafe { *address.add(5000) }, b's');
}

#[test]
fn a_mapped_file_that_was_removed_is_freed_at_its_last_unmap() {
    let _guard = boot(|_| {});
    let before = pages::IN_USE.load(Ordering::Relaxed);
    let file = open("/dev/shm/a", NEW);
    file.truncate(10_000).unwrap();
    file.map_shared(0, 10_000).unwrap();
    fs::unlink(CWD, b"/dev/shm/a").unwrap();
    file.unmap_shared();
    assert_eq!(pages::IN_USE.load(Ordering::Relaxed) - before, 3, "still open");
    drop(file);
    assert_eq!(pages::IN_USE.load(Ordering::Relaxed), before);
}

#[test]
fn memory_files_read_as_written_and_zero_in_between() {
    let _guard = boot(|_| {});
    let file = open("/tmp/x", NEW);
    file.write_at(b"end", 9_000).unwrap();
    file.write_at(b"start", 0).unwrap();
    let all = read(&*file);
    assert_eq!((all.len(), &all[..6], &all[8_999..]), (9_003, &b"start\0"[..], &b"\0end"[..]));
    file.truncate(2).unwrap();
    file.truncate(6).unwrap();
    assert_eq!(read(&*file), b"st\0\0\0\0");
    assert_eq!(file.read_at(&mut [0; 4], 6), Ok(0));
    assert_eq!(file.stat().unwrap().blocks, 8);
    drop(open("/tmp/x", WRITE | flags::O_TRUNC));
    assert_eq!(file.len(), Ok(0));
    fs::mkdir(CWD, b"/tmp/d", 0o700).unwrap();
    fs::rename(CWD, b"/tmp/x", CWD, b"/tmp/d/y").unwrap();
    assert_eq!(failure(fs::rmdir(CWD, b"/tmp/d")), Errno::ENOTEMPTY);
    assert_eq!(failure(fs::rename(CWD, b"/tmp/d", CWD, b"/tmp/d/e")), Errno::EINVAL);
    assert_eq!(failure(fs::rename(CWD, b"/tmp/d/y", CWD, b"/dev/shm/y")), Errno::EXDEV);
    assert_eq!(failure(fs::rename(CWD, b"/tmp/d/y", CWD, b"/pgdata/y")), Errno::EXDEV);
    fs::link(CWD, b"/tmp/d/y", CWD, b"/tmp/z").unwrap();
    assert_eq!(fs::stat(CWD, b"/tmp/z", true).unwrap().nlink, 2);
    fs::unlink(CWD, b"/tmp/d/y").unwrap();
    fs::rmdir(CWD, b"/tmp/d").unwrap();
    assert_eq!(names("/tmp"), ["z"]);
    assert_eq!(requests(), 0);
}

#[test]
fn devices_answer() {
    let _guard = boot(|_| {});
    let mut buf = [7; 16];
    assert_eq!(open("/dev/null", WRITE).read(&mut buf, false), Ok(0));
    assert_eq!(open("/dev/null", WRITE).write(&buf, false), Ok(16));
    assert_eq!(open("/dev/zero", READ).read(&mut buf, false), Ok(16));
    assert_eq!(buf, [0; 16]);
    assert_eq!(open("/dev/urandom", READ).read_at(&mut buf, 3), Ok(16));
    assert_ne!(buf, [0; 16]);
    assert_eq!(fs::stat(CWD, b"/dev/null", true).unwrap().mode, 0o20666);
}

// The overlays on the share.

#[test]
fn a_backends_parameters_stay_in_memory() {
    let _guard = boot(|server| {
        server.put("global/pg_control", b"control");
        server.put("global/config_exec_params", b"the host's old one");
        server.put("pgsql_tmp/left_over", b"");
        server.put("base/pgsql_tmp/", b"");
    });
    let path = "pgsql_tmp/pgsql_tmp.backend_var.12.1";
    let file = open(path, NEW | flags::O_TRUNC);
    file.write_at(&[9; 3400], 0).unwrap();
    assert_eq!(read(&*open(path, READ)), [9; 3400]);
    fs::unlink(CWD, path.as_bytes()).unwrap();
    assert_eq!(names("pgsql_tmp"), Vec::<String>::new());
    assert_eq!(failure(fs::mkdir(CWD, b"pgsql_tmp", 0o700)), Errno::EEXIST);
    assert_eq!(requests(), 0);

    assert_eq!(fails("global/config_exec_params", READ), Errno::ENOENT);
    let file = open("global/config_exec_params.new", NEW | flags::O_TRUNC);
    file.write_at(b"settings", 0).unwrap();
    fs::rename(CWD, b"global/config_exec_params.new", CWD, b"global/config_exec_params").unwrap();
    assert_eq!(read(&*open("global/config_exec_params", READ)), b"settings");
    assert_eq!(names("global"), ["config_exec_params", "pg_control"]);
    assert_eq!(names("."), ["base", "global", "pg_stat_tmp", "pgsql_tmp"]);
    assert_eq!(count(server::CREATE) + count(server::WRITE) + count(server::RENAME), 0);
    assert_eq!(device::with(|server| server.content("global/config_exec_params").to_vec()), b"the host's old one");
    // Files for sorting are another folder, and the host's.
    open("base/pgsql_tmp/pgsql_tmp12.0", NEW).write_at(b"tape", 0).unwrap();
    assert_eq!(count(server::WRITE), 1);
}

// The share.

#[test]
fn what_is_known_costs_no_request() {
    let _guard = boot(|server| {
        server.put("base/5/1259", &[1; 100_000]);
    });
    let file = open("base/5/1259", WRITE);
    let first = requests();
    assert_eq!(first, 3, "one LOOKUP for each name");
    for _ in 0..10 {
        drop(open("base/5/1259", WRITE));
        let stat = fs::stat(CWD, b"/pgdata/base/5/1259", true).unwrap();
        assert_eq!((stat.size, stat.uid, stat.mode, stat.ino), (100_000, 1000, 0o100600, 4));
        assert_eq!(stat.mtime, 1_600_000_000_000_000_500);
        assert_eq!(file.len(), Ok(100_000));
        assert_eq!(file.read_at(&mut [0; 100], 100_000), Ok(0), "the end of the file is known");
    }
    assert_eq!(requests(), first);
}

#[test]
fn absent_names_cost_one_listing_at_most() {
    let _guard = boot(|server| {
        for i in 0..500 {
            server.put(&format!("base/5/{i}"), b"");
        }
    });
    drop(open("base/5", READ));
    let before = requests();
    for i in 0..50 {
        assert_eq!(fails(&format!("base/5/{i}_vm"), READ), Errno::ENOENT);
        assert_eq!(fails(&format!("base/5/{i}_vm"), READ), Errno::ENOENT);
    }
    assert_eq!(count(server::LOOKUP) - before, 4);
    assert!(count(server::READDIR) >= 6, "the test's server cuts listings");
    let before = requests();
    assert_eq!(names("base/5").len(), 500);
    let file = open("base/5/new", NEW);
    assert_eq!(names("base/5").len(), 501);
    assert_eq!(requests() - before, 1, "one CREATE, no LOOKUP before it");
    drop(file);
    // A directory made here is known whole.
    fs::mkdir(CWD, b"base/6", 0o700).unwrap();
    let before = requests();
    assert_eq!(fails("base/6/1259", READ), Errno::ENOENT);
    assert_eq!(names("base/6").len(), 0);
    assert_eq!(requests(), before);
}

#[test]
fn sizes_follow_writes_truncation_and_allocation() {
    let _guard = boot(|_| {});
    let file = open("f", NEW);
    let block: Vec<u8> = (0..8192u32).map(|i| (i % 251) as u8).collect();
    assert_eq!(file.write_at(&block, 8192), Ok(8192));
    assert_eq!(file.len(), Ok(16384));
    let mut back = vec![1; 20_000];
    assert_eq!(file.read_at(&mut back, 0), Ok(16384));
    assert!(back[..8192].iter().all(|&b| b == 0) && back[8192..16384] == block[..]);
    file.allocate(0, 40_000).unwrap();
    assert_eq!(file.stat().unwrap().size, 40_000);
    file.allocate(0, 10).unwrap();
    assert_eq!(file.len(), Ok(40_000));
    file.truncate(100).unwrap();
    assert_eq!(fs::stat(CWD, b"f", true).unwrap().size, 100);
    let before = requests();
    file.truncate(100).unwrap();
    fs::truncate(CWD, b"f", 100).unwrap();
    assert_eq!(requests(), before);
    assert_eq!(device::with(|server| server.content("f").len()), 100);
    drop(open("f", WRITE | flags::O_TRUNC));
    assert_eq!(file.len(), Ok(0));
    assert!(file.stat().unwrap().mtime > 1_650_000_000_000_000_000);
}

#[test]
fn small_reads_are_read_ahead_and_never_stale() {
    let content: Vec<u8> = (0..150_000u32).map(|i| (i * 7 % 253) as u8).collect();
    let _guard = boot(|server| {
        server.put("pg_internal.init", &content);
    });
    let file = open("pg_internal.init", WRITE);
    let mut back: Vec<u8> = Vec::new();
    let mut piece = [0; 1000];
    for _ in 0..2 {
        back.clear();
        loop {
            match file.read_at(&mut piece, back.len() as u64).unwrap() {
                0 => break,
                len => back.extend(&piece[..len]),
            }
        }
        assert_eq!(back, content);
    }
    assert_eq!(count(server::READ), 3, "150 kB in windows of 64 KiB, read once");
    file.write_at(b"changed", 70_000).unwrap();
    file.read_at(&mut piece, 69_999).unwrap();
    assert_eq!(&piece[1..8], b"changed");
    assert_eq!(count(server::READ), 3, "what was written is in the window");
    assert!(fs::reclaim());
    file.read_at(&mut piece, 69_999).unwrap();
    assert_eq!(&piece[1..8], b"changed", "and on the host");
    assert_eq!(count(server::READ), 4);
    assert!(fs::reclaim() && !fs::reclaim());
    file.truncate(70_003).unwrap();
    assert_eq!(file.read_at(&mut piece, 69_999), Ok(4));
    let held = pages::IN_USE.load(Ordering::Relaxed);
    fs::unlink(CWD, b"pg_internal.init").unwrap();
    drop(file);
    assert!(pages::IN_USE.load(Ordering::Relaxed) < held, "a file that went keeps no window");
}

#[test]
fn the_page_cache_is_bounded() {
    let _guard = boot(|server| {
        for i in 0..40 {
            server.put(&format!("f{i}"), &vec![i; 65_536]);
        }
    });
    let before = pages::IN_USE.load(Ordering::Relaxed);
    let files: Vec<_> = (0..40).map(|i| open(&format!("f{i}"), READ)).collect();
    for (i, file) in files.iter().enumerate() {
        let mut byte = [0xff];
        file.read_at(&mut byte, 5).unwrap();
        assert_eq!(usize::from(byte[0]), i);
    }
    assert_eq!(pages::IN_USE.load(Ordering::Relaxed) - before, 256);
}

#[test]
fn what_nobody_reads_leaves_the_page_cache() {
    let _guard = boot(|server| {
        for i in 0..10 {
            server.put(&format!("f{i}"), &vec![i; 65_536]);
        }
    });
    let before = pages::IN_USE.load(Ordering::Relaxed);
    let held = || pages::IN_USE.load(Ordering::Relaxed) - before;
    let files: Vec<_> = (0..10).map(|i| open(&format!("f{i}"), READ)).collect();
    let mut byte = [0];
    for times in 1..=2 {
        assert_eq!(fs::cache_pages(), 0);
        for file in &files {
            file.read_at(&mut byte, 5).unwrap();
        }
        assert_eq!((held(), fs::cache_pages()), (160, 160));
        assert!(fs::cache_due() < u64::MAX);
        // One is read again and again, and stays.
        for _ in 0..10 {
            fs::sweep();
            files[3].read_at(&mut byte, 7).unwrap();
        }
        assert_eq!((held(), fs::cache_pages()), (16, 16));
        assert_eq!(count(server::READ), 10 * times, "it was not fetched again");
        for _ in 0..10 {
            fs::sweep();
        }
        assert_eq!((held(), fs::cache_due()), (0, u64::MAX), "an empty cache wants no sweep");
    }
}

/// As a sleep and a wake: spare memory is lost.
pub fn sleep() {
    pages::forget_spare();
    fs::resumed();
}

#[test]
fn small_files_are_kept_over_a_sleep_and_large_ones_are_not() {
    let _guard = boot(|server| {
        for (name, len) in [("pg_hba.conf", 5_000), ("pg_internal.init", 160_000), ("2608", 300_000)] {
            server.put(name, &vec![7; len]);
        }
    });
    let before = pages::IN_USE.load(Ordering::Relaxed);
    let files = ["pg_hba.conf", "pg_internal.init", "2608"].map(|name| open(name, flags::O_RDWR));
    let whole = |file: &Rc<dyn File>| {
        let mut content = vec![0; file.len().unwrap() as usize];
        for (n, piece) in content.chunks_mut(4096).enumerate() {
            assert_eq!(file.read_at(piece, n as u64 * 4096), Ok(piece.len()));
        }
        content
    };
    files.iter().for_each(|file| file.keep().unwrap());
    let read = count(server::READ);
    // 5,000 bytes are a block, 160,000 twenty.
    assert_eq!((read, fs::cache_pages()), (4, 42));
    for _ in 0..2 {
        sleep();
        assert!(files[..2].iter().all(|file| whole(file).iter().all(|byte| *byte == 7)));
    }
    files[0].keep().unwrap();
    assert_eq!(count(server::READ), read, "they were there");
    whole(&files[2]);
    assert!(count(server::READ) > read);
    sleep();
    (0..10).for_each(|_| fs::sweep());
    assert_eq!((fs::cache_pages(), fs::cache_due()), (42, u64::MAX), "no idle guest is woken for them");
    // They are what the file is.
    files[1].write_at(b"new", 70_000).unwrap();
    fs::settle().unwrap();
    sleep();
    let read = count(server::READ);
    assert_eq!(&whole(&files[1])[69_999..70_004], b"\x07new\x07");
    assert_eq!(count(server::READ), read);
    // Memory that somebody wants goes before them, and with its file one goes.
    assert!(fs::reclaim());
    assert_eq!((fs::cache_pages(), pages::IN_USE.load(Ordering::Relaxed)), (0, before));
    files[0].keep().unwrap();
    fs::unlink(CWD, b"pg_hba.conf").unwrap();
    drop(files);
    assert_eq!(pages::IN_USE.load(Ordering::Relaxed), before);
}

#[test]
fn no_more_is_kept_than_there_is_room_for() {
    let _guard = boot(|server| {
        for i in 0..6 {
            server.put(&format!("f{i}"), &vec![i; 250_000]);
        }
    });
    for i in 0..6 {
        open(&format!("f{i}"), READ).keep().unwrap();
    }
    sleep();
    assert!((200..=256).contains(&fs::cache_pages()), "{}", fs::cache_pages());
    // Those go that were not used for longest.
    let read = count(server::READ);
    open("f5", READ).keep().unwrap();
    assert_eq!(count(server::READ), read);
    open("f0", READ).keep().unwrap();
    assert!(count(server::READ) > read);
}

#[test]
fn vectors_go_in_one_request() {
    let _guard = boot(|_| {});
    let file = open("f", NEW);
    let blocks: Vec<Vec<u8>> = (0..16).map(|i| vec![i; 8192]).collect();
    let from: Vec<&[u8]> = blocks.iter().map(|block| &block[..]).collect();
    assert_eq!(fs::write_vectored(&*file, &from, 0), Ok(131_072));
    let mut back = vec![vec![0; 8192]; 17];
    let mut into: Vec<&mut [u8]> = back.iter_mut().map(|block| &mut block[..]).collect();
    assert_eq!(fs::read_vectored(&*file, &mut into, 0), Ok(131_072));
    assert_eq!(back[..16], blocks[..]);
    assert_eq!((count(server::READ), count(server::WRITE)), (1, 1));
    // More pieces than the queue has room for.
    let many: Vec<&[u8]> = (0..300).map(|i| &blocks[i % 16][..100]).collect();
    assert_eq!(fs::write_vectored(&*file, &many, 0), Ok(30_000));
    assert!(device::with(|server| server.content("f")[29_900..30_000] == blocks[299 % 16][..100]));
    assert_eq!(count(server::WRITE), 5);
    // More bytes than a message carries.
    let big: Vec<u8> = (0..2_500_000u32).map(|i| (i / 1000) as u8).collect();
    assert_eq!(file.write_at(&big, 0), Ok(2_500_000));
    assert_eq!(count(server::WRITE), 8);
    let mut back = vec![0; 2_500_000];
    assert_eq!(file.read_at(&mut back, 0), Ok(2_500_000));
    assert!(back == big);
}

#[test]
fn a_buffer_in_a_process_slot_is_translated_page_by_page() {
    let _guard = boot(|_| {});
    // Two large pages of "physical" memory whose order is the reverse of their order in the slot.
    let large = LARGE_PAGE as usize;
    let memory: Vec<u8> = (0..2 * large).map(|i| (i / 997) as u8).collect();
    let start = memory.as_ptr() as u64;
    slots::map(vec![start + LARGE_PAGE, start]);
    let (at, len) = (large - 5000, 10_000);
    // SAFETY: never dereferenced: the file system only takes its address and length.
    let buffer = unsafe { std::slice::from_raw_parts((SLOT_BASE as usize + at) as *const u8, len) };
    let file = open("f", NEW);
    assert_eq!(file.write_at(buffer, 0), Ok(len));
    let expected = [&memory[2 * large - 5000..], &memory[..5000]].concat();
    assert!(device::with(|server| server.content("f") == expected));
    assert_eq!(device::with(|server| server.shape), (3, 1));
    let mut back = vec![0; len];
    file.read_at(&mut back, 0).unwrap();
    assert!(back == expected);
}

#[test]
fn open_files_survive_unlink_and_rename() {
    let _guard = boot(|server| {
        server.put("a", b"content of a");
        server.put("b", b"content of b");
    });
    let (a, b) = (open("a", WRITE), open("b", WRITE));
    fs::rename(CWD, b"a", CWD, b"b").unwrap();
    assert_eq!(fails("a", READ), Errno::ENOENT);
    assert_eq!(read(&*open("b", READ)), b"content of a");
    assert_eq!(read(&*b), b"content of b");
    assert_eq!((a.stat().unwrap().nlink, b.stat().unwrap().nlink), (1, 0));
    fs::unlink(CWD, b"b").unwrap();
    assert_eq!(fails("b", READ), Errno::ENOENT);
    a.write_at(b"C", 0).unwrap();
    assert_eq!(read(&*a), b"Content of a");
    assert!(device::with(|server| server.forgets.is_empty()));
    let before = requests();
    drop((a, b));
    assert_eq!(requests(), before, "FORGET waits for the next request");
    fs::sync().unwrap();
    device::with(|server| {
        let mut forgets = server.forgets.clone();
        forgets.sort();
        assert_eq!(forgets, [(2, 1), (3, 1)]);
        assert_eq!(server.inodes.len(), 1, "the server keeps nothing of what is gone");
        assert_eq!(server.syncs, [(server::SYNCFS, 1, 0)]);
    });
}

#[test]
fn every_lookup_is_forgotten_in_the_end() {
    let _guard = boot(|server| {
        for i in 0..1000 {
            server.put(&format!("d/{i}"), b"");
        }
    });
    for i in 0..1000 {
        drop(open(&format!("d/{i}"), READ));
    }
    for i in 0..1000 {
        fs::unlink(CWD, format!("d/{i}").as_bytes()).unwrap();
    }
    fs::rmdir(CWD, b"d").unwrap();
    fs::sync().unwrap();
    assert_eq!(device::with(|server| server.inodes.len()), 1);
}

#[test]
fn a_name_not_looked_up_is_unlinked_in_one_request() {
    let _guard = boot(|server| {
        server.put("d/a", b"");
        server.put("d/e/", b"");
    });
    assert_eq!(names("d"), ["a", "e"]);
    let before = requests();
    fs::unlink(CWD, b"d/a").unwrap();
    assert_eq!(requests() - before, 1);
    assert_eq!(failure(fs::unlink(CWD, b"d/a")), Errno::ENOENT);
    assert_eq!(failure(fs::unlink(CWD, b"d/e")), Errno::EISDIR);
    assert_eq!(failure(fs::rmdir(CWD, b"d/a")), Errno::ENOENT);
    assert_eq!(failure(fs::rmdir(CWD, b"d")), Errno::ENOTEMPTY);
    fs::rmdir(CWD, b"d/e").unwrap();
    fs::rmdir(CWD, b"d").unwrap();
}

#[test]
fn renames_between_directories_keep_names_right() {
    let _guard = boot(|server| {
        server.put("pg_wal/1", b"one");
        server.put("pg_wal/archive_status/1.ready", b"");
        server.put("d/2", b"two");
    });
    // Neither looked up nor listed.
    fs::rename(CWD, b"pg_wal/1", CWD, b"d/1").unwrap();
    assert_eq!(read(&*open("d/1", READ)), b"one");
    assert_eq!(fails("pg_wal/1", READ), Errno::ENOENT);
    // Listed, not looked up.
    assert_eq!(names("d"), ["1", "2"]);
    fs::rename(CWD, b"d/2", CWD, b"pg_wal/2").unwrap();
    assert_eq!(names("d"), ["1"]);
    assert_eq!(names("pg_wal"), ["2", "archive_status"]);
    // A whole directory.
    fs::rename(CWD, b"pg_wal/archive_status", CWD, b"d/moved").unwrap();
    assert_eq!(names("d/moved"), ["1.ready"]);
    assert_eq!(names("pg_wal"), ["2"]);
    // To itself.
    fs::rename(CWD, b"d/1", CWD, b"d/1").unwrap();
    assert_eq!(read(&*open("d/1", READ)), b"one");
    assert_eq!(failure(fs::rename(CWD, b"d/none", CWD, b"d/1")), Errno::ENOENT);
    assert_eq!(failure(fs::rename(CWD, b"/pgdata", CWD, b"/tmp/x")), Errno::EROFS);
}

#[test]
fn hard_links_share_one_size() {
    let _guard = boot(|server| {
        server.put("a", b"12345");
    });
    fs::link(CWD, b"a", CWD, b"b").unwrap();
    let (a, b) = (open("a", WRITE), open("b", WRITE));
    a.write_at(b"6", 5).unwrap();
    assert_eq!((b.len(), b.stat().unwrap().nlink), (Ok(6), 2));
    fs::rename(CWD, b"a", CWD, b"b").unwrap();
    assert_eq!(names("."), ["a", "b", "pg_stat_tmp", "pgsql_tmp"], "two names of one file stay two");
    fs::unlink(CWD, b"a").unwrap();
    assert_eq!((a.stat().unwrap().nlink, read(&*b)), (1, b"123456".to_vec()));
}

#[test]
fn flushes_reach_the_host() {
    let _guard = boot(|server| {
        server.put("d/f", b"");
    });
    let (file, directory) = (open("d/f", WRITE), open("d", READ));
    file.sync(true).unwrap();
    file.sync(false).unwrap();
    directory.sync(false).unwrap();
    fs::syncfs(&*directory).unwrap();
    device::with(|server| {
        use server::{FSYNC, FSYNCDIR, SYNCFS};
        // What a task waits for alone says that the answer may come later.
        const LATER: u32 = 1 << 31;
        assert_eq!(server.syncs, [(FSYNC, 3, LATER | 1), (FSYNC, 3, LATER), (FSYNCDIR, 2, 0), (SYNCFS, 1, 0)]);
        server.fail.insert(FSYNC, 28);
        server.fail.insert(FSYNCDIR, 38);
    });
    assert_eq!(file.sync(false), Err(Errno::ENOSPC));
    assert_eq!(directory.sync(false), Err(Errno::ENOSYS), "a flush that did not happen is never called done");
}

#[test]
fn a_full_disk_and_short_writes_are_told_truly() {
    let _guard = boot(|_| {});
    let file = open("f", NEW);
    device::with(|server| server.cut = 5000);
    assert_eq!(file.write_at(&[1; 8192], 0), Ok(5000));
    assert_eq!(file.len(), Ok(5000));
    device::with(|server| {
        server.cut = usize::MAX;
        server.fail.insert(server::WRITE, 28);
    });
    assert_eq!(file.write_at(&[1; 8192], 5000), Err(Errno::ENOSPC));
    assert_eq!(file.len(), Ok(5000));
    device::with(|server| server.fail.insert(server::CREATE, 28));
    assert_eq!(fails("g", NEW), Errno::ENOSPC);
    device::with(|server| server.fail.clear());
    assert_eq!(fails("g", READ), Errno::ENOENT);
    drop(open("g", NEW));
}

#[test]
fn answers_that_make_no_sense_are_io_errors() {
    let _guard = boot(|server| {
        server.put("f", &[3; 20_000]);
    });
    let file = open("f", WRITE);
    let head = |len: u32, error: i32, unique: u64| {
        [&len.to_le_bytes()[..], &error.to_le_bytes(), &unique.to_le_bytes()].concat()
    };
    for garbage in [vec![], vec![0; 15], head(16, 0, 1), head(4000, 0, u64::MAX), head(16, 5, u64::MAX)] {
        device::with(|server| server.garble = Some(garbage));
        assert_eq!(file.read_at(&mut [0; 9000], 0), Err(Errno::EIO));
    }
    // An old server, and one that does not answer INIT.
    rings::reset();
    let mut server = Server::new();
    server.minor = 27;
    device::attach(server);
    assert_eq!(boot_with(archive()), Err(Errno::EPROTONOSUPPORT));
}

#[test]
fn a_host_that_answers_later_is_rung_again() {
    let _guard = boot(|server| {
        server.put("f", b"content");
        server.lazy = 3;
    });
    assert_eq!(read(&*open("f", READ)), b"content");
    let file = open("f", READ);
    fs::unlink(CWD, b"f").unwrap();
    drop(file);
    for _ in 0..10 {
        fs::sync().unwrap();
    }
    assert_eq!(device::with(|server| server.inodes.len()), 1);
}

#[test]
fn times_and_modes() {
    let _guard = boot(|server| {
        server.put("f", b"");
    });
    fs::utimens(CWD, b"f", None, Some(1_234_000_000_007), true).unwrap();
    assert_eq!(fs::stat(CWD, b"f", true).unwrap().mtime, 1_234_000_000_007);
    assert_eq!(device::with(|server| server.inodes[&2].mtime), 1234);
    fs::chmod(CWD, b"f", 0o644).unwrap();
    assert_eq!(fs::stat(CWD, b"f", true).unwrap().mode, 0o100600);
    assert_eq!(failure(fs::chmod(CWD, b"g", 0o644)), Errno::ENOENT);
    let file = open("/tmp/m", NEW);
    fs::chmod_file(&*file, 0o644).unwrap();
    fs::utimens_file(&*file, Some(5), Some(6)).unwrap();
    let stat = fs::stat(CWD, b"/tmp/m", true).unwrap();
    assert_eq!((stat.mode, stat.atime, stat.mtime), (0o100644, 5, 6));
    let statfs = fs::statfs(CWD, b".").unwrap();
    assert_eq!((statfs.blocks, statfs.block_size, statfs.kind), (1000, 4096, 0x6573_5546));
    assert_eq!(fs::statfs_file(&*file).unwrap().kind, 0x0102_1994);
    let devices: std::collections::BTreeSet<u64> = ["/", "/dev/shm", "/tmp", "/run", "/pgdata", "/pgdata/pgsql_tmp"]
        .iter()
        .map(|path| fs::stat(CWD, path.as_bytes(), true).unwrap().dev)
        .collect();
    assert_eq!(devices.len(), 6);
}

#[test]
fn too_many_inodes_are_dropped_and_come_back() {
    let _guard = boot(|server| {
        for i in 0..17_000 {
            server.put(&format!("d/{i}"), format!("{i}").as_bytes());
        }
    });
    let kept = open("d/7", READ);
    for i in 0..17_000 {
        fs::stat(CWD, format!("d/{i}").as_bytes(), true).unwrap();
    }
    fs::sync().unwrap();
    let held = device::with(|server| server.inodes.values().filter(|inode| inode.lookups > 0).count());
    assert!(held < 16_900, "{held} nodes are held on the server");
    assert_eq!(read(&*kept), b"7");
    for i in [0, 7, 9000, 16_999] {
        assert_eq!(read(&*open(&format!("d/{i}"), READ)), format!("{i}").as_bytes());
    }
    assert_eq!(fails("d/none", READ), Errno::ENOENT);
}

/// Not a test: `cargo test --release ... -- --ignored --nocapture` prints what the commonest calls cost without a
/// request.
#[test]
#[ignore = "a measurement"]
fn cost_of_what_is_known() {
    let _guard = boot(|server| {
        for i in 0..400 {
            server.put(&format!("base/5/{i}"), &[0; 8192]);
        }
    });
    let names: Vec<String> = (0..400).map(|i| format!("base/5/{i}")).collect();
    let time = |what: &str, f: &dyn Fn(&str)| {
        names.iter().for_each(|name| f(name));
        let start = std::time::Instant::now();
        for _ in 0..2500 {
            names.iter().for_each(|name| f(name));
        }
        eprintln!("{what}: {} ns", start.elapsed().as_nanos() / 1_000_000);
    };
    time("open", &|name| drop(open(name, READ)));
    time("stat", &|name| _ = fs::stat(CWD, name.as_bytes(), true));
    time("absent", &|name| _ = fs::stat(CWD, format!("{name}_vm").as_bytes(), true));
    let file = open("base/5/7", READ);
    time("len", &|_| _ = std::hint::black_box(file.len()));
}

/// What both sides of a random history begin with.
const TEMPLATE: [(&str, usize); 6] = [
    ("PG_VERSION", 3),
    ("base/5/1259", 163_840),
    ("base/5/1259_fsm", 24_576),
    ("base/5/pg_internal.init", 150_001),
    ("base/2608", 8192),
    ("sub/2608", 100),
];

fn template_content(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i / 64) as u8 ^ i as u8).collect()
}

fn fill(folder: &std::path::Path) {
    for (path, len) in TEMPLATE {
        std::fs::create_dir_all(folder.join(path).parent().unwrap()).unwrap();
        std::fs::write(folder.join(path), template_content(len)).unwrap();
    }
}

#[test]
fn random_histories_agree_with_a_plain_folder() {
    let mut ok = std::collections::BTreeMap::<&str, (usize, usize)>::new();
    for seed in 0..20 {
        let host = tempfile::tempdir().unwrap();
        fill(host.path());
        let _guard = boot(|server| {
            for (path, len) in TEMPLATE {
                server.put(path, &template_content(len));
            }
            // Half of the hosts give room when they are asked for it.
            server.gives_room = seed % 2 == 0;
        });
        let mut model = Model::new(host.path(), seed);
        for _ in 0..600 {
            model.step();
        }
        model.compare();
        // The same server, seen by a guest that knows nothing yet.
        fs::settle().unwrap();
        let server = device::with(|server| std::mem::replace(server, Server::new()));
        rings::reset();
        device::attach(server.restarted());
        boot_with(archive()).unwrap();
        model.compare();
        for (what, (good, bad)) in model.steps {
            let count = ok.entry(what).or_default();
            *count = (count.0 + good, count.1 + bad);
        }
    }
    assert!(ok.values().all(|count| count.0 > 50), "too few of some step: {ok:?}");
}

#[test]
#[cfg(feature = "layer")]
fn random_histories_on_a_data_layer_agree_with_a_plain_folder() {
    use crate::layer::Layer;
    for seed in 0..20 {
        let (host, template, layer) =
            (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        fill(host.path());
        fill(template.path());
        let _guard = alone();
        let mut model = Model::new(host.path(), seed);
        for _ in 0..3 {
            // A cold start: the layer closed and opened again.
            rings::reset();
            device::attach_other(None);
            device::attach_other(Some(Box::new(Layer::open(layer.path(), template.path()))));
            boot_with(archive()).unwrap();
            model.compare();
            for _ in 0..300 {
                model.step();
            }
            model.close();
            fs::sync().unwrap();
            model.compare();
        }
        device::attach_other(None);
    }
}
