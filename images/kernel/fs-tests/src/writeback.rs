//! What is written later: when it reaches the host, and what is promised until then.

use crate::device;
use crate::errno::Errno;
use crate::file::File;
use crate::fs;
use crate::guest::pages;
use crate::server;
use crate::tests::{CWD, NEW, READ, WRITE, boot, count, open, read};
use std::rc::Rc;
use std::sync::atomic::Ordering;

const BLOCK: usize = 8192;

/// A new file of so many blocks, all of them given to the host at once.
fn file_of(path: &str, blocks: usize) -> Rc<dyn File> {
    let file = open(path, NEW);
    for block in 0..blocks {
        file.write_at(&[1; BLOCK], (block * BLOCK) as u64).unwrap();
    }
    device::with(|server| (server.log.clear(), server.rung = 0));
    file
}

fn write(file: &dyn File, block: usize, byte: u8) {
    assert_eq!(file.write_at(&[byte; BLOCK], (block * BLOCK) as u64), Ok(BLOCK));
}

fn rung() -> u32 {
    device::with(|server| std::mem::take(&mut server.rung))
}

fn on_host(path: &str, block: usize) -> u8 {
    device::with(|server| server.content(path)[block * BLOCK])
}

fn durable(path: &str, block: usize) -> Option<u8> {
    let node = device::with(|server| server.find(path).unwrap());
    Some(device::durable(node)?[block * BLOCK])
}

#[test]
fn a_commit_is_one_exit() {
    let _guard = boot(|_| {});
    let wal = file_of("pg_wal", 16);
    for byte in 2..10 {
        write(&*wal, 3, byte);
        assert_eq!((rung(), on_host("pg_wal", 3)), (0, byte - 1), "the write stays here");
        wal.sync(true).unwrap();
        assert_eq!((rung(), durable("pg_wal", 3)), (1, Some(byte)), "write and flush are one ring");
    }
    wal.sync(true).unwrap();
    assert_eq!(count(server::WRITE), 8, "nothing is written twice");
}

#[test]
fn a_flush_carries_all_of_its_file_and_nothing_else() {
    let _guard = boot(|_| {});
    pages::COUNT.store(16 * pages::SMALL, Ordering::Relaxed);
    let (log, table) = (file_of("log", 200), file_of("table", 8));
    write(&*table, 5, 9);
    // More requests than the queue has room for: each is a run of its own.
    let blocks: Vec<usize> = (0..100).map(|i| i * 2).collect();
    for &block in &blocks {
        write(&*log, block, 7);
    }
    rung();
    log.sync(true).unwrap();
    assert!((5..=6).contains(&rung()));
    assert!(blocks.iter().all(|&block| durable("log", block) == Some(7)));
    assert_eq!((on_host("table", 5), durable("table", 5)), (1, None), "a flush is of one file");
    fs::sync().unwrap();
    assert_eq!(durable("table", 5), Some(9));
}

#[test]
fn scattered_blocks_share_a_ring_and_neighbours_a_request() {
    let _guard = boot(|_| {});
    let file = file_of("f", 64);
    for block in [0, 1, 2, 3, 7, 8, 9, 20] {
        write(&*file, block, 5);
    }
    file.sync(true).unwrap();
    assert_eq!((count(server::WRITE), rung()), (3, 1), "7 to 9 go on over the edge of a window");
    assert!([0, 3, 7, 8, 9, 20].iter().all(|&block| durable("f", block) == Some(5)));
    assert!([4, 6, 10, 19, 21].iter().all(|&block| durable("f", block) == Some(1)));
}

#[test]
fn want_of_room_is_told_at_the_write() {
    let _guard = boot(|server| {
        server.put("base/5/1259", &[1; 4 * BLOCK]);
    });
    let file = file_of("f", 4);
    let of_template = open("base/5/1259", WRITE);
    device::with(|server| server.fail.insert(server::WRITE, 28));
    assert_eq!(file.write_at(&[2; BLOCK], 4 * BLOCK as u64), Err(Errno::ENOSPC), "a longer file");
    assert_eq!(of_template.write_at(&[2; BLOCK], 0), Err(Errno::ENOSPC), "a block that is the template's");
    let hole = open("hole", NEW);
    hole.truncate(4 * BLOCK as u64).unwrap();
    assert_eq!(hole.write_at(&[2; BLOCK], BLOCK as u64), Err(Errno::ENOSPC), "a hole");
    assert_eq!(file.write_at(&[2; 100], 50), Err(Errno::ENOSPC), "part of a block");
    write(&*file, 1, 2);
    file.truncate(BLOCK as u64).unwrap();
    file.truncate(4 * BLOCK as u64).unwrap();
    assert_eq!(file.write_at(&[2; BLOCK], BLOCK as u64), Err(Errno::ENOSPC), "a block that was cut off meanwhile");
    device::with(|server| server.fail.clear());
    // What was allocated past the end has room; what may have been the template's below it is not known to.
    of_template.allocate(0, 6 * BLOCK as u64).unwrap();
    device::with(|server| server.fail.insert(server::WRITE, 28));
    write(&*of_template, 4, 3);
    assert_eq!(of_template.write_at(&[2; BLOCK], 3 * BLOCK as u64), Err(Errno::ENOSPC));
}

#[test]
fn room_in_a_hole_is_asked_for_by_the_window() {
    let _guard = boot(|server| {
        server.gives_room = true;
    });
    let wal = open("pg_wal", NEW);
    wal.truncate(1 << 20).unwrap();
    rung();
    for block in 3..16 {
        write(&*wal, block, 9);
        wal.sync(true).unwrap();
    }
    assert_eq!((count(server::FALLOCATE), count(server::WRITE), rung()), (2, 13, 15));
    device::with(|server| server.fail.insert(server::FALLOCATE, 28));
    write(&*wal, 16, 9);
    assert_eq!(on_host("pg_wal", 16), 9, "there is still room for this one");
    device::with(|server| (server.fail.clear(), server.gives_room = false));
    write(&*wal, 30, 9);
    write(&*wal, 40, 9);
    assert_eq!((on_host("pg_wal", 30), on_host("pg_wal", 40)), (9, 9));
    assert_eq!(count(server::FALLOCATE), 4, "a host that gives none is not asked again");
}

#[test]
fn a_file_that_grows_asks_for_room_ahead() {
    let _guard = boot(|server| {
        server.gives_room = true;
    });
    pages::COUNT.store(64 * pages::SMALL, Ordering::Relaxed);
    let file = open("pgsql_tmp7.0", NEW);
    for block in 0..200 {
        write(&*file, block, block as u8);
        assert_eq!(file.len(), Ok((block as u64 + 1) * BLOCK as u64));
    }
    // Eight blocks at once, then room for as much as there is, up to a MiB.
    assert_eq!((count(server::WRITE), count(server::FALLOCATE)), (8, 5));
    assert_eq!(device::with(|server| server.content("pgsql_tmp7.0").len()), 8 * BLOCK);
    let all = read(&*file);
    assert!(all.len() == 200 * BLOCK && (0..200).all(|block| all[block * BLOCK] == block as u8));
    // The host refuses more: at the write.
    device::with(|server| {
        server.fail.insert(server::FALLOCATE, 28);
        server.fail.insert(server::WRITE, 28);
    });
    let full = (200..400).find(|&block| file.write_at(&[1; BLOCK], (block * BLOCK) as u64).is_err()).unwrap();
    assert_eq!(file.write_at(&[1; BLOCK], (full * BLOCK) as u64), Err(Errno::ENOSPC));
    assert_eq!(file.len(), Ok((full * BLOCK) as u64));
    device::with(|server| server.fail.clear());
    file.truncate(100 * BLOCK as u64).unwrap();
    file.sync(true).unwrap();
    assert_eq!((durable("pgsql_tmp7.0", 99), read(&*file).len()), (Some(99), 100 * BLOCK));
    // The flush gave the room back.
    let before = count(server::FALLOCATE);
    write(&*file, 100, 7);
    assert_eq!(count(server::FALLOCATE), before + 1);
    drop(file);
    let before = count(server::WRITE);
    fs::unlink(CWD, b"pgsql_tmp7.0").unwrap();
    fs::sync().unwrap();
    assert_eq!(count(server::WRITE), before, "what is gone is never written");
}

#[test]
fn room_is_asked_for_from_the_first_block_without_it() {
    let _guard = boot(|server| {
        server.gives_room = true;
    });
    pages::COUNT.store(64 * pages::SMALL, Ordering::Relaxed);
    let asked = || device::with(|server| server.rooms.iter().map(|at| *at as usize / BLOCK).collect::<Vec<_>>());
    let file = file_of("f", 8);
    // With the ninth, room for eight more.
    (8..16).for_each(|block| write(&*file, block, 2));
    file.write_at(&[2; 2 * BLOCK], 16 * BLOCK as u64).unwrap();
    assert_eq!(asked(), [8, 17]);
    // In a hole, to the end of a window.
    let hole = open("hole", NEW);
    hole.truncate(32 * BLOCK as u64).unwrap();
    write(&*hole, 20, 2);
    hole.write_at(&[2; 2 * BLOCK], 23 * BLOCK as u64).unwrap();
    assert_eq!(asked(), [8, 17, 20, 24]);
    // A flush takes what is past the end, the rest of a half block too.
    hole.truncate(32 * BLOCK as u64 - 100).unwrap();
    hole.sync(true).unwrap();
    hole.truncate(32 * BLOCK as u64).unwrap();
    write(&*hole, 31, 2);
    assert_eq!(asked(), [8, 17, 20, 24, 31]);
}

#[test]
fn a_write_that_was_kept_in_part_and_then_refused_leaves_nothing_past_the_end() {
    let _guard = boot(|server| {
        server.gives_room = true;
    });
    pages::COUNT.store(64 * pages::SMALL, Ordering::Relaxed);
    let file = file_of("f", 16);
    (16..23).for_each(|block| write(&*file, block, 2));
    // Memory for one block more of the last window, and for no other.
    pages::LEFT.store(1, Ordering::Relaxed);
    device::with(|server| server.fail.insert(server::WRITE, 28));
    let refused = file.write_at(&[3; 2 * BLOCK], 23 * BLOCK as u64);
    pages::LEFT.store(usize::MAX, Ordering::Relaxed);
    assert_eq!((refused, file.len()), (Err(Errno::ENOSPC), Ok(23 * BLOCK as u64)));
    device::with(|server| server.fail.clear());
    file.sync(true).unwrap();
    assert_eq!(device::with(|server| server.content("f").len()), 23 * BLOCK);
}

#[test]
fn memory_is_given_back_for_as_long_as_it_is_wanted() {
    let _guard = boot(|_| {});
    let before = pages::IN_USE.load(Ordering::Relaxed);
    let (clean, dirty) = (file_of("clean", 8), file_of("dirty", 8));
    assert!(clean.read_at(&mut [0; 100], 0).is_ok());
    write(&*dirty, 1, 7);
    let taken = fs::or_reclaim(|| (pages::IN_USE.load(Ordering::Relaxed) == before).then_some(()));
    assert_eq!((taken, on_host("dirty", 1)), (Some(()), 7));
    assert_eq!(fs::or_reclaim(|| None::<()>), None, "there is an end");
}

#[test]
fn scattered_dirty_blocks_count_as_the_windows_they_hold() {
    let _guard = boot(|_| {});
    let file = file_of("f", 80);
    (0..10).for_each(|window| write(&*file, window * 8 + window % 8, 2));
    // An eighth of 2 MiB is four windows.
    let dirty = (0..10).filter(|window| on_host("f", window * 8 + window % 8) != 2).count();
    assert!((1..=4).contains(&dirty), "{dirty}");
}

#[test]
fn a_write_that_the_host_refuses_later_is_told_at_every_flush_and_never_dropped() {
    for error in [5, 28] {
        let _guard = boot(|_| {});
        let (file, other) = (file_of("f", 8), file_of("g", 8));
        let again = open("f", WRITE);
        write(&*file, 2, 7);
        write(&*other, 2, 8);
        device::with(|server| server.fail.insert(server::WRITE, error));
        // In the background first: the error waits for who asks.
        (0..5).for_each(|_| fs::sweep());
        assert_eq!(file.sync(true), Err(Errno(error)));
        assert_eq!(again.sync(true), Err(Errno(error)), "whoever has it open is told");
        assert_eq!(other.sync(false), Err(Errno(error)));
        assert_eq!(fs::sync(), Err(Errno(error)));
        assert_eq!(fs::settle(), Err(Errno(error)));
        assert!(!fs::is_settled(), "such a guest must not be suspended");
        fs::reclaim();
        assert_eq!(read(&*file)[2 * BLOCK..][..BLOCK], [7; BLOCK], "it is still here");
        device::with(|server| {
            server.fail.clear();
            server.cut = 5 * BLOCK;
        });
        for block in 0..8 {
            write(&*file, block, 9);
        }
        assert_eq!(file.sync(true), Err(Errno::ENOSPC), "a host that takes only a part");
        device::with(|server| server.cut = usize::MAX);
        file.sync(true).unwrap();
        assert!((0..8).all(|block| durable("f", block) == Some(9)));
        fs::settle().unwrap();
        assert!(fs::is_settled() && on_host("g", 2) == 8);
    }
}

#[test]
fn a_guest_is_idle_only_when_the_host_has_everything() {
    let _guard = boot(|_| {});
    let file = file_of("f", 8);
    write(&*file, 1, 4);
    assert!(!fs::is_settled());
    fs::settle().unwrap();
    assert!(fs::is_settled());
    assert_eq!((on_host("f", 1), durable("f", 1)), (4, None), "given to the host, and flushed by nobody");
    // After a wake the memory is gone, and another layer may stand behind: every block asks for room anew.
    fs::resumed();
    assert_eq!(fs::cache_pages(), 0);
    assert_eq!(read(&*file)[BLOCK], 4);
    write(&*file, 1, 5);
    assert_eq!(on_host("f", 1), 5);
}

#[test]
#[should_panic(expected = "suspended before")]
fn a_guest_that_was_suspended_too_early_does_not_go_on() {
    let _guard = boot(|_| {});
    let file = file_of("f", 8);
    write(&*file, 1, 4);
    fs::resumed();
}

#[test]
fn what_is_removed_in_time_is_never_written() {
    let _guard = boot(|_| {});
    let file = file_of("pgsql_tmp7.0", 8);
    (0..8).for_each(|block| write(&*file, block, 3));
    assert_eq!(read(&*file), [3; 8 * BLOCK]);
    drop(file);
    fs::unlink(CWD, b"pgsql_tmp7.0").unwrap();
    let file = file_of("replaced", 8);
    write(&*file, 0, 3);
    drop(file);
    fs::rename(CWD, b"other", CWD, b"replaced").unwrap_err();
    file_of("other", 1);
    fs::rename(CWD, b"other", CWD, b"replaced").unwrap();
    let file = file_of("cut", 8);
    write(&*file, 6, 3);
    file.truncate(6 * BLOCK as u64).unwrap();
    assert!(fs::is_settled());
    fs::sync().unwrap();
    assert_eq!(count(server::WRITE), 0);
}

#[test]
fn a_cut_leaves_what_is_before_it() {
    let _guard = boot(|_| {});
    let file = file_of("f", 20);
    for block in 0..20 {
        write(&*file, block, 6);
    }
    let end = 10 * BLOCK as u64 + 100;
    file.truncate(end).unwrap();
    file.truncate(20 * BLOCK as u64).unwrap();
    let expected = [vec![6; end as usize], vec![0; 20 * BLOCK - end as usize]].concat();
    assert!(read(&*file) == expected);
    file.sync(true).unwrap();
    assert!(device::with(|server| server.content("f") == expected));
    let mut direct = vec![1; 20 * BLOCK];
    assert_eq!(file.read_at(&mut direct, 0), Ok(20 * BLOCK));
    assert!(direct == expected);
}

#[test]
fn a_long_read_sees_what_was_not_written_yet() {
    let _guard = boot(|_| {});
    let file = file_of("f", 24);
    write(&*file, 13, 8);
    let mut all = vec![0; 24 * BLOCK];
    assert_eq!(open("f", READ).read_at(&mut all, 0), Ok(24 * BLOCK));
    assert!(all[13 * BLOCK..][..BLOCK] == [8; BLOCK] && all[..13 * BLOCK].iter().all(|&byte| byte == 1));
    let mut blocks = vec![vec![0; BLOCK]; 24];
    let mut into: Vec<&mut [u8]> = blocks.iter_mut().map(|block| &mut block[..]).collect();
    assert_eq!(fs::read_vectored(&*file, &mut into, 0), Ok(24 * BLOCK));
    assert!(blocks[13] == [8; BLOCK] && blocks[14] == [1; BLOCK]);
    assert!(!fs::is_settled(), "reading writes nothing");
}

#[test]
fn part_of_a_dirty_block_written_through_is_not_undone() {
    let _guard = boot(|_| {});
    let file = file_of("f", 4);
    write(&*file, 1, 8);
    file.write_at(b"newer", BLOCK as u64 + 10).unwrap();
    file.sync(true).unwrap();
    let expected = [&[8; 10][..], b"newer", &[8; 20]].concat();
    assert!(device::with(|server| server.content("f")[BLOCK..].starts_with(&expected)));
}

#[test]
fn no_more_is_dirty_than_may_be_and_not_for_long() {
    let _guard = boot(|_| {});
    let before = pages::IN_USE.load(Ordering::Relaxed);
    let file = file_of("f", 150);
    // A sixteenth of 2 MiB is 16 blocks.
    for block in 0..150 {
        write(&*file, block, 2);
    }
    let dirty = |byte| (0..150).filter(|&block| on_host("f", block) != byte).count();
    assert!((1..=16).contains(&dirty(2)), "{}", dirty(2));
    assert!(rung() <= 150 / 16 + 1, "they go in batches");
    assert!(pages::IN_USE.load(Ordering::Relaxed) - before <= 256);
    assert!(fs::cache_due() < u64::MAX);
    fs::sweep();
    fs::sweep();
    fs::sweep();
    assert_eq!(dirty(2), 0, "age writes it too");
    // Memory that somebody wants is given back, what is dirty after it was written.
    write(&*file, 3, 5);
    assert!(fs::reclaim());
    assert!(fs::reclaim() && !fs::reclaim());
    assert_eq!((on_host("f", 3), pages::IN_USE.load(Ordering::Relaxed)), (5, before));
}

#[test]
fn a_dirty_file_that_is_forgotten_is_written_first() {
    let _guard = boot(|server| {
        server.put("d/", b"");
        for i in 0..17_000 {
            server.put(&format!("e/{i}"), b"");
        }
    });
    let file = file_of("d/f", 4);
    write(&*file, 1, 3);
    drop(file);
    for i in 0..17_000 {
        fs::stat(CWD, format!("e/{i}").as_bytes(), true).unwrap();
    }
    assert_eq!(read(&*open("d/f", READ))[BLOCK], 3);
    // A second name that nobody looked up keeps the file when the first goes.
    fs::link(CWD, b"d/f", CWD, b"d/g").unwrap();
    let file = open("d/g", WRITE);
    write(&*file, 2, 4);
    drop(file);
    fs::unlink(CWD, b"d/f").unwrap();
    fs::sync().unwrap();
    assert_eq!(on_host("d/g", 2), 4);
}
